"""An error stands at the keys that were sent, whatever unions are on the way."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self, get_args

import pytest
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from gkl.field_errors import FieldError, field_errors
from gkl.recipes import recipe
from gkl.recipes.adversarial import digits
from gkl.spec import JOB_SPEC, DistillSpec, EvaluateSpec, TrainSpec

BASE: dict[type[BaseModel], dict[str, Any]] = {
    TrainSpec: digits().model_dump(mode="json"),
    DistillSpec: recipe("digits-distill").model_dump(mode="json"),
    EvaluateSpec: {
        "kind": "evaluate",
        "name": "x",
        "dataset": "digits",
        "architecture": "tiny_cnn",
        "weights": "0" * 64,
        "evaluation": {"protocol": "clean"},
    },
}


def members(spec: type[BaseModel], before: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str, Any]]:
    """Path, discriminator and class of every member of every discriminated union in a model's fields."""
    for name, info in spec.model_fields.items():
        path = (*before, name)
        annotations = [(info.annotation, info.discriminator)]
        while annotations:
            annotation, discriminator = annotations.pop()
            inner = get_args(annotation)
            named = [each.discriminator for each in inner if getattr(each, "discriminator", None)]
            if named:
                annotations.append((inner[0], named[0]))
            elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
                yield from members(annotation, path)
            elif discriminator is not None:
                yield from ((path, discriminator, each) for each in inner if isinstance(each, type))
            else:
                annotations += [(each, None) for each in inner]


UNIONS = [(spec, *found) for spec in BASE for found in members(spec)]


def put(content: dict[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    first, *rest = path
    return content | {first: put(content.get(first) or {}, tuple(rest), value) if rest else value}


def errors_of(content: Any, validated: TypeAdapter[Any] = JOB_SPEC) -> list[FieldError]:
    with pytest.raises(ValidationError) as caught:
        validated.validate_python(content)
    return field_errors(caught.value.errors(), validated)


def test_these_are_the_unions() -> None:
    paths = {(spec, ".".join(path)) for spec, path, _, _ in UNIONS}
    assert {"objective", "schedule", "augmentation", "averaging", "teacher"} <= {path for _, path in paths}
    schema = JOB_SPEC.json_schema()
    # As many as the specs' schema says, and the one between the specs.
    assert str(schema).count("'discriminator':") == len(paths) + 1


@pytest.mark.parametrize(
    ("spec", "path", "discriminator", "member"), UNIONS, ids=[f"{'.'.join(p)}-{m.__name__}" for _, p, _, m in UNIONS]
)
def test_every_field_of_every_member_is_named_as_it_was_sent(
    spec: type[BaseModel], path: tuple[str, ...], discriminator: str, member: type[BaseModel]
) -> None:
    (tag,) = get_args(member.model_fields[discriminator].annotation)
    for name in set(member.model_fields) - {discriminator}:
        (error,) = errors_of(put(BASE[spec], path, {discriminator: tag, **needed(member), name: {"no": "value"}}))
        assert error.path == (*path, name), error
    for name in {tag, "train", "evaluate", "gkl", "constrained-float"} - set(member.model_fields):
        (error,) = errors_of(put(BASE[spec], path, {discriminator: tag, **needed(member), name: 1}))
        assert (error.path, error.message[:13]) == ((*path, name), "unknown field")


def needed(member: type[BaseModel]) -> dict[str, Any]:
    """Values for the fields that have no default."""
    known = {"milestones": [2], "architecture": "small_cnn", "job": 1, "entry": 1}
    return {name: known[name] for name, info in member.model_fields.items() if info.is_required() and name in known}


def test_a_field_of_a_plain_union_is_named_once() -> None:
    (error,) = errors_of(BASE[TrainSpec] | {"inner_maximization": {"start_noise": 3}})
    assert error.path == ("inner_maximization", "start_noise")
    assert error.message == "input should be less than or equal to 1, or input should be 'uniform'."


def test_positions_stay() -> None:
    (error,) = errors_of(BASE[TrainSpec] | {"schedule": {"kind": "piecewise", "milestones": [2, "x"]}})
    assert error.path == ("schedule", "milestones", 1)


@pytest.mark.parametrize(
    ("change", "path", "says"),
    [
        ({"epoch": 3}, ("epoch",), "did you mean epochs?"),
        ({"objective": {"loss": "ikl", "wmse_wieght": 1}}, ("objective", "wmse_wieght"), "did you mean wmse_weight"),
        ({"train": 1}, ("train",), "remove it, or correct its name."),
        ({"evaluation": {"protocol": "plus"}}, ("evaluation",), "needs a threat_model"),
        ({"epochs": None}, ("epochs",), "valid integer"),
    ],
)
def test_what_is_wrong_is_a_sentence(change: dict[str, Any], path: tuple[str, ...], says: str) -> None:
    (error,) = errors_of(BASE[TrainSpec] | change)
    assert error.path == path
    assert says in error.message


class Dog(BaseModel):
    model_config = ConfigDict(extra="forbid")
    kind: Literal["dog"]
    dog: int = 0
    legs: list[Annotated[int, Field(ge=0)]] = []


class Cat(BaseModel):
    kind: Literal["cat"]
    friends: dict[str, int] = {}
    seen: tuple[int, str] = (0, "")
    parent: Cat | Dog | None = None
    beside: Annotated[Cat | Dog, Field(discriminator="kind")] | None = None


Pet = Annotated[Cat | Dog, Field(discriminator="kind")]


class Owner(BaseModel):
    pets: list[Pet] = Field(alias="animals")
    by_name: dict[str, Pet] = {}


@pytest.mark.parametrize(
    ("sent", "path"),
    [
        ({"animals": [{"kind": "dog", "dog": "x"}]}, ("animals", 0, "dog")),
        ({"animals": [{"kind": "dog", "legs": [1, -1]}]}, ("animals", 0, "legs", 1)),
        ({"animals": [{"kind": "cow"}]}, ("animals", 0)),
        ({"animals": [{"kind": "cat", "friends": {"dog": "x"}}]}, ("animals", 0, "friends", "dog")),
        ({"animals": [{"kind": "cat", "seen": [1, 2]}]}, ("animals", 0, "seen", 1)),
        (
            {"animals": [{"kind": "cat", "beside": {"kind": "cat", "seen": [1, 2]}}]},
            ("animals", 0, "beside", "seen", 1),
        ),
        ({"animals": [], "by_name": {"dog": {"kind": "dog", "dog": "x"}}}, ("by_name", "dog", "dog")),
        ({}, ("animals",)),
    ],
)
def test_other_shapes_are_walked_too(sent: Any, path: tuple[str, ...]) -> None:
    assert errors_of(sent, TypeAdapter(Owner))[0].path == path


class Checked(BaseModel):
    pet: Pet

    @model_validator(mode="after")
    def _check(self) -> Self:
        return self


class Box(BaseModel):
    content: Checked | int


def test_also_within_a_model_that_checks_itself() -> None:
    sent = {"content": {"pet": {"kind": "dog", "dog": "x"}}}
    assert ("content", "pet", "dog") in [error.path for error in errors_of(sent, TypeAdapter(Box))]


def test_within_a_plain_union_of_models_the_key_is_found() -> None:
    sent = {"animals": [{"kind": "cat", "parent": {"kind": "dog", "dog": "x"}}]}
    assert ("animals", 0, "parent", "dog") in [error.path for error in errors_of(sent, TypeAdapter(Owner))]
