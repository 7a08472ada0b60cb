"""Reads our Dockerfiles: stages and instructions, so that their steps can be done without a container engine."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path

_ARGUMENT = re.compile(r"\$(?:\{(?P<braced>\w+)\}|(?P<plain>\w+))")


@dataclass(frozen=True)
class Instruction:
    name: str
    flags: tuple[str, ...]
    """`--mount=...`, `--from=...`, and those of HEALTHCHECK."""
    text: str
    """The rest, continued lines joined; of a RUN, a shell command."""

    def words(self, variables: dict[str, str]) -> list[str]:
        """An exec form's list, or the words, with variables put in."""
        if self.text.startswith("["):
            words: list[str] = json.loads(self.text)
            return words
        return [expand(word, variables) for word in shlex.split(self.text)]


@dataclass
class Stage:
    base: str
    name: str | None
    instructions: list[Instruction] = field(default_factory=list)

    def all(self, name: str) -> list[Instruction]:
        return [instruction for instruction in self.instructions if instruction.name == name]

    def environment(self, outside: dict[str, str] | None = None) -> dict[str, str]:
        """What the ARG and ENV of this stage set, over what is set outside."""
        values = dict(outside or {})
        for instruction in self.instructions:
            if instruction.name in ("ARG", "ENV"):
                for word in shlex.split(instruction.text):
                    key, _, value = word.partition("=")
                    values[key] = expand(value, values)
        return values


def expand(text: str, variables: dict[str, str]) -> str:
    """
    >>> expand("uv==${UV} $UV", {"UV": "1"})
    'uv==1 1'
    """
    return _ARGUMENT.sub(lambda match: variables[match["braced"] or match["plain"]], text)


def read(path: Path) -> list[Stage]:
    """
    Raises:
        ValueError: something stands there that this reader does not know.
    """
    known = {"RUN", "COPY", "ENV", "ARG", "LABEL", "USER", "WORKDIR", "EXPOSE", "STOPSIGNAL", "HEALTHCHECK"}
    known |= {"ENTRYPOINT", "CMD"}
    stages: list[Stage] = []
    before: dict[str, str] = {}
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.lstrip().startswith("#")]
    text = "\n".join(lines).replace("\\\n", " ")
    for line in filter(None, map(str.strip, text.splitlines())):
        name, _, rest = line.partition(" ")
        words = rest.split()
        if name == "ARG" and not stages:
            key, _, value = rest.partition("=")
            before[key] = value
        elif name == "FROM":
            base = expand(words[0], before)
            stages.append(Stage(base, words[2] if words[1:2] == ["AS"] else None))
        elif name not in known or not stages:
            raise ValueError(f"{path.name}: {line}")
        else:
            flags = []
            while words and words[0].startswith("--"):
                flags.append(words.pop(0))
                rest = rest.lstrip()[len(flags[-1]) :].lstrip()
            stages[-1].instructions.append(Instruction(name, tuple(flags), rest))
    return stages
