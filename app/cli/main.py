"""The `gklbench` command: its groups, version, completion, and error messages."""

from __future__ import annotations

import io
import os
import sys
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn

import typer

import gkl
from app.cli.look_cli import look_cli
from app.cli.process_cli import process_cli
from app.cli.robustbench_cli import robustbench_cli
from app.cli.run_cli import run_cli
from app.cli.send_cli import send_cli
from app.cli.service_cli import service_cli
from app.cli.terminal import (
    errors,
)
from app.cli.token_cli import token_cli

if TYPE_CHECKING:
    pass


cli = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="GKL Bench: adversarial training, AutoAttack evaluation and a leaderboard, as jobs over REST.",
)

cli.add_typer(service_cli)
cli.add_typer(robustbench_cli)
cli.add_typer(send_cli)
cli.add_typer(run_cli)
cli.add_typer(process_cli)
cli.add_typer(look_cli)
cli.add_typer(token_cli, name="token")


Shell = Literal["bash", "zsh", "fish"]
# The variable that the scripts of `gklbench completion` set when they request completions.
_COMPLETE = "_GKLBENCH_COMPLETE"


def _print_version(asked: bool) -> None:
    if asked:
        sys.stdout.write(f"gklbench {gkl.__version__}\n")
        raise typer.Exit


@cli.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options before the command."""


def main() -> None:
    """Entry point: an expected error prints one sentence on standard error and exits with status 1."""
    for stream in (sys.stdout, sys.stderr):
        # A character that the terminal cannot show must not end a command.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    if _COMPLETE in os.environ:
        from typer.completion import completion_init  # type: ignore[attr-defined]  # noqa: PLC0415

        completion_init()
    try:
        cli(prog_name="gklbench")
    except Exception as error:
        from app.cli.command_errors import sentence_of  # noqa: PLC0415

        sentence = sentence_of(error)
        if sentence is None:
            raise
        _fail(sentence)


def _fail(sentence: str) -> NoReturn:
    errors.print(f"gklbench: {sentence}", style="red", markup=False, highlight=False, soft_wrap=True)
    sys.exit(1)


@cli.command()
def completion(shell: Annotated[Shell, typer.Argument(help="The shell.")]) -> None:
    """Print the script with which a shell completes commands and options.

    Example: `gklbench completion bash >> ~/.bashrc`
    """
    from typer.completion import get_completion_script  # type: ignore[attr-defined]  # noqa: PLC0415

    script = get_completion_script(prog_name="gklbench", complete_var=_COMPLETE, shell=shell)
    sys.stdout.write(script + "\n")
