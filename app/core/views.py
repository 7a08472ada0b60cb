"""How a row becomes an answer of `gkl.answers`."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel

_Answer = TypeVar("_Answer", bound=BaseModel)


def made(answer: type[_Answer], row: object, **others: Any) -> _Answer:
    """Each field that is not given here comes from the row's attribute of the same name."""
    same = answer.model_fields.keys() - others.keys()
    return answer.model_validate({name: getattr(row, name) for name in same} | others)
