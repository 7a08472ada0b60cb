"""Writes docs/command-line.md from the commands themselves: `.venv/bin/python docs/command_line.py`.

A test compares the page with what this writes, so that neither can change without the other.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "command-line.md"

# What the help calls <path>, <int> and <float>; all else is text.
_KINDS = {Path: "PATH", int: "NUMBER", float: "NUMBER"}

HEAD = """# Command line

What `gklbench --help` and the `--help` of each command say, on one page. `docs/command_line.py` writes it from the
commands themselves.

Every foreseen error is one sentence on standard error and exit status 1. Ctrl-C ends `train`, `evaluate` and `demo`
with 130 where they were not done; the first two have then saved what they have. A data directory and addresses can
also be given by [settings](settings.md).
"""


def page() -> str:
    import typer  # noqa: PLC0415

    from app.cli.main import cli  # noqa: PLC0415

    group = typer.main.get_command(cli)
    return "\n".join([HEAD, *_commands("gklbench", group)])


def _commands(before: str, group: Any) -> list[str]:
    lines = []
    for name, command in group.commands.items():
        if command.hidden:
            continue
        full = f"{before} {name}"
        if hasattr(command, "commands"):
            lines += _commands(full, command)
        else:
            lines += [f"## {full}", "", *_text(command.help), *_parameters(command)]
    return lines


def _text(help_text: str) -> list[str]:
    """The docstring, with each of its lines' paragraphs joined."""
    paragraphs = [" ".join(paragraph.split()) for paragraph in help_text.split("\n\n")]
    return [line for paragraph in paragraphs for line in (paragraph, "")]


def _parameters(command: Any) -> list[str]:
    shown = [parameter for parameter in command.params if not getattr(parameter, "hidden", False)]
    if not shown:
        return []
    rows = [f"| {_name(parameter)} | {_meaning(parameter)} |" for parameter in shown]
    return ["| argument or option | meaning |", "|---|---|", *rows, ""]


def _name(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return f"`{parameter.metavar or parameter.name.upper()}`"
    takes = "" if parameter.is_flag else " " + _KINDS.get(parameter.type_descriptor.annotation, "TEXT")
    return f"`{', '.join(parameter.opts)}{takes}`"


def _meaning(parameter: Any) -> str:
    said = [(parameter.help or "").replace("|", "\\|").replace("<", "&lt;")]
    if parameter.required and parameter.param_type_name == "option":
        said.append("Required.")
    if parameter.default not in (None, False) and not callable(parameter.default):
        said.append(f"Default: `{parameter.default}`.")
    if getattr(parameter, "envvar", None):
        said.append(f"Or `{parameter.envvar}`.")
    return " ".join(said)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    PAGE.write_text(page(), encoding="utf-8")
