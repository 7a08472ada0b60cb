"""Forms generated from the specs: each field of a spec has a field in its form."""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal, Union, get_args, get_origin
from urllib.parse import parse_qsl

from fastapi import Request
from pydantic import BaseModel, ValidationError, WithJsonSchema
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from app.core.errors import Unprocessable
from app.web import field_words
from gkl.field_errors import field_errors
from gkl.spec import format_epsilon

NONE = "none"
"""The option of a choice between variants that leaves the part out."""


@dataclass(frozen=True)
class Input:
    """One field, or a part of the spec with fields of its own."""

    name: str
    """Dotted path in the spec, as in error messages."""
    title: str
    kind: Literal["text", "number", "select", "checkbox", "group", "variant"]
    help: str
    value: str
    options: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    inputs: list[Input] = field(default_factory=list)
    is_required: bool = False
    notes: list[str] = field(default_factory=list)
    """Notes to read before sending, such as that no worker has a data set."""
    is_changed: bool = False
    """Whether it, or a field in it, differs from the default."""
    groups: list[tuple[str, list[tuple[str, str]]]] = field(default_factory=list)
    """The options of a long list under headings, each with its label."""

    @property
    def basic(self) -> list[Input]:
        """Its fields that are shown at once."""
        return basic(self.inputs)

    @property
    def advanced(self) -> list[Input]:
        """Its fields that are folded."""
        return advanced(self.inputs)

    @property
    def has_errors(self) -> bool:
        return bool(self.errors) or any(each.has_errors for each in self.inputs)


def basic(of: Sequence[Input]) -> list[Input]:
    """The fields that most users set; all fields if none of them is basic."""
    if not any(field_words.is_basic(each.name) for each in of):
        return list(of)
    found = [each for each in of if field_words.is_basic(each.name)]
    order = {name: number for number, name in enumerate(field_words.SHOWN_FIRST)}
    return sorted(found, key=lambda each: order.get(each.name, len(order)))


def advanced(of: Sequence[Input]) -> list[Input]:
    shown = {each.name for each in basic(of)}
    return [each for each in of if each.name not in shown]


def inputs(model: type[BaseModel], values: Mapping[str, Any], errors: Mapping[str, list[str]]) -> list[Input]:
    """The form's fields for a spec, from values as in its JSON and errors by dotted path."""
    return _inputs(model, values, errors, "")


def parse(model: type[BaseModel], sent: Mapping[str, str]) -> dict[str, Any]:
    """The spec's JSON from a sent form. A text that is not a number stays a text, which the spec then refuses."""
    return _parse(model, sent, "")


def errors_of(error: ValidationError, model: type[BaseModel]) -> dict[str, list[str]]:
    """Error messages by dotted path; for an item of a list, that of the list; '' for errors of the whole spec."""
    found: dict[str, list[str]] = {}
    for path, message in field_errors(error.errors(include_input=False, include_url=False), model):
        positions = [part for part in path if isinstance(part, int)]
        entry = f"entry {positions[-1] + 1}: " if positions else ""
        name = ".".join(part for part in path if isinstance(part, str))
        found.setdefault(name, []).append(entry + message)
    return found


# --- what an annotation is ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Shape:
    """The parts of a field's annotation."""

    models: dict[str, type[BaseModel]]
    """By the value of the discriminating field, if there are several."""
    literals: list[str]
    plain: set[type]
    is_optional: bool
    is_list: bool


def _shape(annotation: Any, metadata: list[Any]) -> _Shape:
    models: dict[str, type[BaseModel]] = {}
    literals: list[str] = []
    plain: set[type] = set()
    is_optional = is_list = False
    waiting = [annotation]
    for extra in metadata:
        if isinstance(extra, WithJsonSchema):
            literals += (extra.json_schema or {}).get("enum", [])
    while waiting:
        part = waiting.pop(0)
        origin = get_origin(part)
        if origin is Annotated:
            inner, *extras = get_args(part)
            shape = _shape(inner, list(extras))
            models |= shape.models
            literals += shape.literals
            plain |= shape.plain
        elif origin in (Union, types.UnionType):
            waiting = [*get_args(part), *waiting]
        elif origin is Literal:
            literals += [str(value) for value in get_args(part)]
        elif origin is tuple:
            is_list = True
            waiting.append(get_args(part)[0])
        elif part is type(None):
            is_optional = True
        elif isinstance(part, type) and issubclass(part, BaseModel):
            models[_tag_of(part)] = part
        elif isinstance(part, type):
            plain.add(part)
    return _Shape(models, literals, plain, is_optional, is_list)


def _tag_of(model: type[BaseModel]) -> str:
    """The value of its discriminating field; its own name if it has none."""
    for name in ("kind", "loss"):
        info = model.model_fields.get(name)
        if info is not None and get_origin(info.annotation) is Literal:
            return str(get_args(info.annotation)[0])
    return model.__name__


def _shape_of(info: FieldInfo) -> _Shape:
    return _shape(info.annotation, info.metadata)


def _tag_field(shape: _Shape) -> str | None:
    first = next(iter(shape.models.values()))
    return next((name for name in ("kind", "loss") if name in first.model_fields), None)


# --- to a form ---------------------------------------------------------------------------------------------------


def _inputs(
    model: type[BaseModel], values: Mapping[str, Any], errors: Mapping[str, list[str]], prefix: str
) -> list[Input]:
    found = []
    for name, info in model.model_fields.items():
        shape = _shape_of(info)
        # The discriminating field of a variant is not shown: the choice of the variant sets it.
        if name in ("kind", "loss") and len(shape.literals) == 1 and not shape.models:
            continue
        value = values.get(name, _default(info))
        made = _input(f"{prefix}{name}", info, shape, value, errors)
        found.append(replace(made, help=_description(model, name).replace("`", "")))
    return found


def _description(model: type[BaseModel], name: str) -> str:
    """The field's docstring; that of a base class where a class changes only the default."""
    bases = (base for base in model.__mro__ if issubclass(base, BaseModel) and name in base.model_fields)
    return next((found for base in bases if (found := base.model_fields[name].description)), "")


def defaults_of_variant(model: type[BaseModel], field: str, tag: str) -> dict[str, Any]:
    """The default values of a variant of one of a model's fields, as JSON; empty if there is no such variant."""
    variant = _shape_of(model.model_fields[field]).models.get(tag)
    if variant is None:
        return {}
    return {name: _default(info) for name, info in variant.model_fields.items() if not info.is_required()}


def _default(info: FieldInfo) -> Any:
    value = info.get_default(call_default_factory=True)
    if value is PydanticUndefined:
        return None
    if isinstance(value, tuple):
        return list(value)
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else value


def _input(path: str, info: FieldInfo, shape: _Shape, value: Any, errors: Mapping[str, list[str]]) -> Input:
    common: dict[str, Any] = {
        "name": path,
        "title": field_words.title(path),
        "help": "",
        "errors": errors.get(path, []),
        "is_required": info.is_required(),
        "is_changed": not info.is_required() and value != _default(info),
    }
    if shape.models:
        common["is_changed"] = not info.is_required() and _chosen(shape, value) != _chosen(shape, _default(info))
        return _part(path, shape, value if isinstance(value, Mapping) else None, common, errors)
    if shape.literals and not shape.plain - {str} and not shape.is_list:
        # In a long list of names, this project's own come first.
        options = ([""] if shape.is_optional else []) + sorted(shape.literals, key=lambda name: "/" in name)
        return Input(kind="select", value="" if value is None else str(value), options=options, **common)
    if shape.plain == {bool}:
        return Input(kind="checkbox", value="true" if value else "", **common)
    if isinstance(value, list | tuple):
        value = ", ".join(map(str, value))
    is_number = bool(shape.plain & {int, float}) and not shape.is_list
    return Input(kind="number" if is_number else "text", value=_text(value, path), **common)


def _text(value: Any, path: str) -> str:
    """The value as a text that `_value` parses to the same value."""
    if isinstance(value, float):
        if path.endswith("epsilon"):
            numerator, _, denominator = format_epsilon(value).partition("/")
            if float(numerator) / float(denominator or 1) == value:
                return format_epsilon(value)
        return str(int(value)) if value.is_integer() else repr(value)
    return "" if value is None else str(value)


def _chosen(shape: _Shape, value: Any) -> str | None:
    """The variant of a part that a value has; None if the part is left out."""
    tags, tag_field = list(shape.models), _tag_field(shape)
    if not isinstance(value, Mapping):
        return None if shape.is_optional else tags[0]
    said = value.get(tag_field) if tag_field is not None else None
    return said if said in tags else tags[0]


def _part(
    path: str, shape: _Shape, value: Mapping[str, Any] | None, common: dict[str, Any], errors: Mapping[str, list[str]]
) -> Input:
    tags, chosen = list(shape.models), _chosen(shape, value)
    inner = [] if chosen is None else _inputs(shape.models[chosen], value or {}, errors, f"{path}.")
    common["is_changed"] = common["is_changed"] or any(each.is_changed for each in inner)
    if len(tags) == 1 and not shape.is_optional:
        return Input(kind="group", value="", inputs=inner, **common)
    options = ([NONE] if shape.is_optional else []) + (tags if len(tags) > 1 else ["on"])
    shown = NONE if chosen is None else chosen if len(tags) > 1 else "on"
    return Input(kind="variant", value=shown, options=options, inputs=inner, **common)


# --- from a form -------------------------------------------------------------------------------------------------


def _parse(model: type[BaseModel], sent: Mapping[str, str], prefix: str) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, info in model.model_fields.items():
        shape, path = _shape_of(info), f"{prefix}{name}"
        if name in ("kind", "loss") and len(shape.literals) == 1 and not shape.models:
            values[name] = shape.literals[0]
        elif shape.models:
            tags = list(shape.models)
            said = sent.get(path)
            is_filled = any(key.startswith(f"{path}.") for key in sent)
            if said == NONE or (said is None and shape.is_optional and not is_filled):
                continue
            chosen = said if said in tags else tags[0]
            values[name] = _parse(shape.models[chosen], sent, f"{path}.")
        elif shape.plain == {bool}:
            # Browsers do not send unticked boxes.
            values[name] = sent.get(path) == "true"
        elif sent.get(path, "").strip() != "":
            values[name] = _value(sent[path].strip(), shape)
        # An empty field is left out: the spec uses the default, or reports an error.
    return values


def _value(text: str, shape: _Shape) -> Any:
    if shape.is_list:
        return [_number(part.strip(), shape) for part in text.split(",") if part.strip()]
    return _number(text, shape)


def _number(text: str, shape: _Shape) -> Any:
    if text in shape.literals:
        return text
    for kind in (int, float):
        if kind in shape.plain:
            try:
                return kind(text)
            except ValueError:
                continue
    return text


async def sent_fields(request: Request) -> dict[str, str]:
    """The fields of a form that a browser sent.

    Raises:
        Unprocessable: no page of this service could have sent it.
    """
    body = (await request.body()).decode("utf-8", "replace")
    try:
        return dict(parse_qsl(body, keep_blank_values=True, max_num_fields=1000))
    except ValueError as error:
        raise Unprocessable(f"this is not a form of this page ({error}); load the page again") from error
