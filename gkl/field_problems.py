"""What is wrong with which field, in words: pydantic's errors for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gkl.answers import FieldProblem

# pydantic puts the chosen member of a union into an error's location, where the sender's JSON has no such key.
_UNION_TAGS = {"train", "evaluate", "gkl", "trades"}


def field_problems(errors: Sequence[Any]) -> list[FieldProblem]:
    """pydantic's errors without their inputs: those may be NaN, which JSON cannot carry, or a secret."""
    return [FieldProblem(location=_location(raw["loc"]), message=_message(raw)) for raw in errors]


def _location(path: Sequence[str | int]) -> str:
    return ".".join(str(part) for part in path if part not in _UNION_TAGS)


def _message(raw: Any) -> str:
    if raw["type"] == "extra_forbidden":
        return "unknown field; remove it, or correct its name."
    if raw["type"] == "json_invalid":
        return f"the body is not JSON ({raw.get('ctx', {}).get('error', raw['msg'])})."
    message = str(raw["msg"]).removeprefix("Value error, ")
    # A name keeps its capitals.
    first = message[:1] if message[1:2].isupper() else message[:1].lower()
    return first + message[1:].rstrip(".") + ("" if message.endswith("?") else ".")
