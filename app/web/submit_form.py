"""The form of a job: its fields, values and errors, and the commands that send the same job."""

from __future__ import annotations

import json
import re
import secrets
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Literal

from pydantic import ValidationError

from app.core.errors import TooMany, Unprocessable
from app.http.access import CSRF_FIELD
from app.web.fitting import Drawn, fitted, fitting_architectures, grouped
from app.web.forms import Input, advanced, basic, errors_of, inputs, parse
from gkl.recipes import RECIPES
from gkl.spec import DistillSpec, EvaluateSpec, Evaluation, SentSpec, TeacherWeights, ThreatModel, TrainSpec

Kind = Literal["train", "distill", "evaluate"]
SPECS: dict[Kind, type[SentSpec]] = {"train": TrainSpec, "distill": DistillSpec, "evaluate": EvaluateSpec}

# Fields that the form sends besides those of the spec.
_OWN = ("action", "submitter", "nonce", "drawn_for", CSRF_FIELD)
_NONCE = re.compile(r"[0-9a-f]{32}")
_TEACHERS = ("job", "entry", "weights")
_TEACHERS_FILE = "teacher.weights"
_NO_TEACHERS_FILE = "give the sha256 of the teacher's file, or choose 'job' or 'entry' as the teacher above"
_FIELD = re.compile(r"\w+(\.\w+)*")
FIRST_RECIPES: dict[Kind, str] = {"train": "digits", "distill": "digits-distill"}
"""The recipe that fills in a new form."""


@dataclass(frozen=True)
class Form:
    """A form as it is shown: its fields, and what belongs to it as a whole."""

    kind: Kind
    inputs: list[Input]
    errors: list[str]
    """Errors of the spec as a whole."""
    has_errors: bool
    submitter: str
    nonce: str
    """Identifies the page: the same form sent twice from it creates one job."""
    drawn_for: str
    """What it was rendered for, see `app.web.fitting`."""
    changes: list[str]
    """What was changed to fit a choice."""
    note: str | None
    """A note on the whole job, such as that no worker is running."""
    body: str | None
    """The spec as JSON, without defaults; None while it is not valid."""
    spec: SentSpec | None

    @property
    def basic(self) -> list[Input]:
        return basic(self.inputs)

    @property
    def advanced(self) -> list[Input]:
        return advanced(self.inputs)

    @property
    def json(self) -> str | None:
        """The spec as indented JSON, to read and copy."""
        return None if self.body is None else json.dumps(json.loads(self.body), indent=2)


def first_values(kind: Kind) -> dict[str, Any]:
    """The values of a new form."""
    if kind in FIRST_RECIPES:
        return RECIPES[FIRST_RECIPES[kind]]().model_dump(mode="json")
    evaluation = Evaluation(threat_model=ThreatModel(epsilon=0.2))
    return {
        "name": "",
        "dataset": "digits",
        "architecture": "small_cnn",
        "weights": "",
        "evaluation": evaluation.model_dump(mode="json"),
    }


def form_of(
    kind: Kind,
    values: Mapping[str, Any],
    *,
    submitter: str = "",
    nonce: str = "",
    changes: Sequence[str] = (),
    notes: Mapping[str, str] = MappingProxyType({}),
    refusal: Unprocessable | TooMany | None = None,
) -> Form:
    """The form with these values, which need not be valid. Errors are shown only after an attempt to send it.

    `notes`: by field, what to know before sending.
    """
    spec: SentSpec | None = None
    errors: dict[str, list[str]] = {}
    try:
        spec = SPECS[kind].model_validate(dict(values))
    except ValidationError as error:
        errors = errors_of(error, SPECS[kind])
    if refusal is not None:
        # Errors from the service begin with the dotted name of their field, too.
        field, colon, sentence = str(refusal).partition(": ")
        known = bool(colon and _FIELD.fullmatch(field)) and field.partition(".")[0] in SPECS[kind].model_fields
        errors.setdefault(field if known else "", []).append(sentence if known else str(refusal))
    if isinstance(spec, DistillSpec) and isinstance(spec.teacher, TeacherWeights) and spec.teacher.weights is None:
        # A recipe may leave it out; a job may not.
        spec, errors[_TEACHERS_FILE] = None, [_NO_TEACHERS_FILE]
    made = _refined(inputs(SPECS[kind], values, errors), dataset=str(values.get("dataset", "")), notes=notes)
    shown = _names(made)
    rest = [
        f"{name}: {text}" if name else text for name, all_of in errors.items() if name not in shown for text in all_of
    ]
    return Form(
        kind=kind,
        inputs=made,
        errors=rest,
        has_errors=bool(errors),
        submitter=submitter,
        nonce=nonce if _NONCE.fullmatch(nonce) else secrets.token_hex(16),
        drawn_for=str(Drawn.of(values)),
        changes=list(changes),
        note=notes.get(""),
        body=None if spec is None else json.dumps(_short(spec)),
        spec=spec,
    )


def _refined(made: Sequence[Input], *, dataset: str, notes: Mapping[str, str]) -> list[Input]:
    """The fields with their notes, and with what the annotations of the spec do not say."""
    found = []
    for each in made:
        changes: dict[str, Any] = {"notes": [notes[each.name]]} if each.name in notes else {}
        if each.name in ("architecture", "teacher.architecture"):
            # Only those that fit the data set, and the one that is selected.
            fitting = fitting_architectures(dataset)
            options = fitting if each.value in fitting else [each.value, *fitting]
            changes |= {"options": options, "groups": grouped(options)}
        if each.name == _TEACHERS_FILE:
            changes["is_required"] = True
        found.append(replace(each, inputs=_refined(each.inputs, dataset=dataset, notes=notes), **changes))
    return found


# The choices that other fields follow from.
_CHOICES = ("dataset", "objective", "teacher")


def prefilled(kind: Kind, values: Mapping[str, Any], given: Mapping[str, str]) -> dict[str, Any]:
    """The values with those in a link, by dotted path, and with others changed to fit them."""
    drawn, given = Drawn.of(values), dict(given)
    for source in _TEACHERS:
        if f"teacher.{source}" in given:
            given.setdefault("teacher", source)
    choices = {name: value for name, value in given.items() if name in _CHOICES or name.endswith(".norm")}
    # First the choices that others follow from, so that the link's other values are kept.
    fitting, _ = fitted(from_sent(kind, _as_sent(kind, values) | choices), drawn)
    return from_sent(kind, _as_sent(kind, fitting) | given)


def _as_sent(kind: Kind, values: Mapping[str, Any]) -> dict[str, str]:
    """The fields that a browser sends for a form with these values."""

    def fields(made: Sequence[Input]) -> dict[str, str]:
        found: dict[str, str] = {}
        for each in made:
            if each.kind == "checkbox":
                found |= {each.name: "true"} if each.value else {}
            elif each.kind != "group":
                found[each.name] = each.value
            found |= fields(each.inputs)
        return found

    return fields(inputs(SPECS[kind], values, {}))


def from_sent(kind: Kind, sent: Mapping[str, str]) -> dict[str, Any]:
    return parse(SPECS[kind], {name: value for name, value in sent.items() if name not in _OWN})


def commands(form: Form, url: str, *, needs_token: bool = False) -> list[tuple[str, str]] | None:
    """Commands that send the same job, each with its title; they take the token from the variable of `gklbench`."""
    if form.body is None:
        return None
    body = shlex.quote(form.body)
    whose = f" --submitter {shlex.quote(form.submitter)}" if form.submitter else ""
    query = f"?submitter={form.submitter.replace(' ', '%20')}" if form.submitter else ""
    token = ' -H "Authorization: Bearer $GKLBENCH_TOKEN"' if needs_token else ""
    address = shlex.quote(f"{url}/api/v1/jobs{query}") if query else f"{url}/api/v1/jobs"
    return [
        ("gklbench", f"printf '%s' {body} |\n  gklbench submit - --follow{whose} --url {url}"),
        ("curl", f"curl {address}{token} --json {body}"),
        ("JSON", form.json or ""),
    ]


def _short(spec: SentSpec) -> dict[str, Any]:
    short = spec.model_dump(mode="json", exclude_defaults=True)
    return _with_tags(spec, short)


def _with_tags(spec: Any, short: dict[str, Any]) -> dict[str, Any]:
    """Add the tags of variants, which are needed even if they are defaults."""
    for tag in ("kind", "loss"):
        if tag in type(spec).model_fields:
            short = {tag: getattr(spec, tag)} | short
    return {
        name: _with_tags(getattr(spec, name), value) if isinstance(value, dict) else value
        for name, value in short.items()
    }


def _names(made: list[Input]) -> set[str]:
    return {name for each in made for name in (each.name, *_names(each.inputs))}
