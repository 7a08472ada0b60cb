"""Making an answer of `gkl.answers` from a row."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel

_Answer = TypeVar("_Answer", bound=BaseModel)


def made(answer: type[_Answer], row: object, **others: Any) -> _Answer:
    """Make an answer: fields that are not in `others` come from the row's attributes of the same name."""
    same = answer.model_fields.keys() - others.keys()
    return answer.model_validate({name: getattr(row, name) for name in same} | others)
