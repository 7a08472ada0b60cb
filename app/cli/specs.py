"""Reading the spec and the weights given to a command."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gkl.errors import InvalidInput
from gkl.files import sha256_of

if TYPE_CHECKING:
    from gkl.spec import SentSpec

SpecFile = Annotated[Path, typer.Argument(metavar="SPEC", help="JSON file with the spec; - reads standard input.")]
Weights = Annotated[
    Path | None,
    typer.Option(help="File of weights: safetensors or a state dict. Without it: RobustBench's published ones."),
]
WeightsKey = Annotated[
    str | None,
    typer.Option(help="Which network of the file, where it holds several, such as 'state_dict_ema'."),
]


def existing(path: Path, what: str) -> Path:
    if not path.is_file():
        raise InvalidInput(f"there is no file {path}; name {what}")
    return path


TeacherFile = Annotated[
    Path | None,
    typer.Option("--teacher", help="File with the weights of a distillation's teacher: safetensors or a state dict."),
]


def read_spec(
    path: Path, weights: Path | None = None, weights_key: str | None = None, *, teacher: Path | None = None
) -> SentSpec:
    """The spec in a file. `weights` and `weights_key` fill in what an evaluation does not name itself, `teacher` what a
    distillation does not."""
    from pydantic import ValidationError  # noqa: PLC0415

    from gkl.spec import JOB_SPEC  # noqa: PLC0415

    try:
        # JSON is UTF-8, whatever the terminal's encoding.
        text = (sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()).decode("utf-8")
        content = json.loads(text)
        is_evaluation = isinstance(content, dict) and content.get("kind") == "evaluate"
        if weights is not None and is_evaluation and "weights" not in content:
            content["weights"] = sha256_of(existing(weights, "the weights to attack"))
        if weights_key is not None:
            if not is_evaluation:
                raise InvalidInput(f"{path} is not an evaluation; --weights-key is for evaluations only")
            if content.get("weights_key") not in (None, weights_key):
                raise InvalidInput(
                    f"{path} has weights_key {content['weights_key']!r}, and --weights-key is {weights_key!r}; leave "
                    "one of them out"
                )
            content["weights_key"] = weights_key
        if teacher is not None:
            if not isinstance(content, dict):
                raise InvalidInput(f"{path} is no distillation; --teacher is for distillations only")
            from gkl.formats.teacher_file import with_teacher_file  # noqa: PLC0415 - needs safetensors

            content = with_teacher_file(content, teacher)
        return JOB_SPEC.validate_python(content)
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read ({error.strerror})") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path} is not JSON ({error})") from error
    except RecursionError as error:
        raise InvalidInput(f"{path} has brackets nested too deeply for a spec") from error
    except ValidationError as error:
        from gkl.field_errors import field_problems  # noqa: PLC0415

        named = {} if weights_key is None else {"weights_key": "--weights-key"}
        lines = [f"{named.get(p.location, p.location)}: {p.message}" for p in field_problems(error.errors(), JOB_SPEC)]
        raise InvalidInput(f"{path} is not a valid spec:\n  " + "\n  ".join(lines)) from error


def interrupt_on_signals() -> None:
    """Make SIGTERM act like Ctrl-C, and Ctrl-C work even if a shell made this process ignore it."""

    def interrupt(number: int, frame: FrameType | None) -> Any:
        raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, interrupt)
