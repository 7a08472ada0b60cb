"""Turns pydantic's errors into sentences that say what to do, with the location in the sender's JSON. Free of torch.

In an error's location pydantic inserts the name of the union member that it chose, such as `piecewise` in
`schedule.piecewise.milestones`, although the sender's JSON has no such key. This module removes these names. It follows
the location through the validated schema, so that it finds every union and keeps fields that are named like a member.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from pydantic import BaseModel, TypeAdapter

from gkl.answers import FieldProblem

Path = tuple[str | int, ...]


class FieldError(NamedTuple):
    path: Path
    """Keys and indices in the sender's JSON; empty for an error about the whole."""
    message: str
    """What is wrong and what would be right, in a sentence that ends with a full stop or a question mark."""


def field_errors(errors: Sequence[Any], validated: TypeAdapter[Any] | type[BaseModel] | None) -> list[FieldError]:
    """Return each invalid field once.

    Args:
        errors: `errors()` of a `ValidationError`.
        validated: the model or adapter that raised it. None if it is unknown; the names of union members then stay in
            the locations.

    >>> from gkl.spec import JOB_SPEC
    >>> tag = ("train", "schedule", "piecewise", "factor")
    >>> field_errors([{"type": "missing", "loc": tag, "msg": "Field required"}], JOB_SPEC)
    [FieldError(path=('schedule', 'factor'), message='field required.')]
    """
    schema: Any = getattr(validated, "core_schema", None) or getattr(validated, "__pydantic_core_schema__", None)
    found: list[FieldError] = []
    before: Path | None = None
    for raw in errors:
        walked = _walk(schema, tuple(raw["loc"]))
        message = _sentence(raw, walked.fields)
        if walked.union is not None and walked.union == before:
            # Each member of an untagged union adds an error of its own for the same value.
            found[-1] = FieldError(walked.path, f"{found[-1].message.rstrip('.')}, or {message}")
        else:
            found.append(FieldError(walked.path, message))
        before = walked.union
    return found


def field_problems(errors: Sequence[Any], validated: TypeAdapter[Any] | type[BaseModel]) -> list[FieldProblem]:
    """Return `field_errors` in the form in which the service reports them, with locations such as
    'schedule.milestones.0'."""
    return [
        FieldProblem(location=".".join(map(str, path)), message=message)
        for path, message in field_errors(errors, validated)
    ]


def _sentence(raw: Any, known: Iterable[str]) -> str:
    if raw["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(raw["loc"][-1]), known, n=2, cutoff=0.7)
        if near:
            return f"unknown field; did you mean {' or '.join(near)}?"
        return "unknown field; remove it, or correct its name."
    message = str(raw["msg"]).removeprefix("Value error, ")
    # A first word such as 'JSON' keeps its capitals.
    first = message[:1] if message[1:2].isupper() else message[:1].lower()
    return first + message[1:].rstrip(".") + ("" if message.endswith("?") else ".")


class _Walked(NamedTuple):
    path: Path
    """The location without the names of union members."""
    fields: tuple[str, ...]
    """Names of the fields of the model that the path's last part belongs to."""
    union: Path | None
    """Path of the untagged union whose member raised the error; None for other errors."""


def _walk(schema: Any, location: Path) -> _Walked:
    """Follow an error's location through pydantic's core schema."""
    path: list[str | int] = []
    fields: tuple[str, ...] = ()
    union: Path | None = None
    definitions: dict[str, Any] = {}
    rest = list(location)
    while rest:
        kind = schema.get("type") if isinstance(schema, Mapping) else None
        if kind == "definitions":
            definitions |= {each["ref"]: each for each in schema["definitions"]}
            schema = schema["schema"]
        elif kind == "definition-ref":
            schema = definitions.get(schema["schema_ref"])
        elif kind == "tagged-union":
            schema = schema["choices"].get(rest.pop(0))
        elif kind == "union":
            schema, union = _member(schema, str(rest.pop(0))), tuple(path)
        elif kind in ("model-fields", "typed-dict"):
            by_name = {_sent_name(name, field): field["schema"] for name, field in schema["fields"].items()}
            fields, union = tuple(by_name), None
            path.append(rest.pop(0))
            schema = by_name.get(str(path[-1]))
        elif kind in ("list", "tuple", "set", "frozenset"):
            fields, union = (), None
            schema = _item(schema, rest[0])
            path.append(rest.pop(0))
        elif (inner := _inside(schema)) is not None:
            schema = inner
        elif kind == "dict":
            fields, union = (), None
            path.append(rest.pop(0))
            schema = schema.get("values_schema")
        else:
            # A key that has no schema, or a part that the error itself added. It is kept as in pydantic's location.
            path.append(rest.pop(0))
    return _Walked(tuple(path), fields, union)


def _inside(schema: Any) -> Any:
    """Return the schema inside a schema for a validator, a default, a nullable or a model; None if there is none."""
    if not isinstance(schema, Mapping):
        return None
    return next((schema[key] for key in ("schema", "lax_schema", "python_schema") if key in schema), None)


def _member(union: Any, label: str) -> Any:
    """Return the model that a label of an untagged union means, such as 'function-after[_check(), Cat]'; None for
    members other than models, which have no fields."""
    words = set(re.findall(r"\w+", label))
    for choice in union["choices"]:
        member = choice[0] if isinstance(choice, tuple) else choice
        inside = member
        while inside is not None and "cls" not in inside:
            inside = _inside(inside)
        if inside is not None and inside["cls"].__name__ in words:
            return member
    return None


def _sent_name(name: str, field: Any) -> str:
    """Return the key of a field in the sender's JSON: its alias, if it has one."""
    alias = field.get("validation_alias")
    return alias if isinstance(alias, str) else name


def _item(schema: Any, position: str | int) -> Any:
    """Return the schema of an item of a list, tuple or set."""
    items = schema.get("items_schema")
    if isinstance(items, list) and isinstance(position, int):
        variadic = schema.get("variadic_item_index")
        return items[min(position, len(items) - 1) if variadic is not None else position] if items else None
    return items
