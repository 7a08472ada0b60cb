"""Pages that send a job: a form generated from the spec, equivalent commands, and each error beside its field."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import secrets
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from types import MappingProxyType
from typing import Annotated, Any, Literal
from urllib.parse import urlencode

from fastapi import APIRouter, BackgroundTasks, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse, Response
from pydantic import ValidationError
from sqlalchemy.orm import Session

from app import jobs
from app.accounts import tokens
from app.accounts.principals import Principal
from app.boards import ranking, results
from app.boards.names import threat_model_of_board
from app.boards.naming import zoo_name
from app.core.errors import NotFound, TooMany, Unprocessable
from app.core.formatting import plain
from app.db.tables import Entry, Model
from app.http import owner_limits
from app.http.access import CSRF_FIELD, Sender
from app.http.parameters import MAX_ID
from app.http.service import Service, ServiceDep
from app.jobs import holdings, job_files, run_time
from app.web.fitting import Drawn, fitted, fitting_architectures, grouped
from app.web.forms import Input, advanced, basic, errors_of, inputs, parse, sent_fields
from app.web.rendering import Chosen, redirect, render
from gkl.catalog import unknown_name_message
from gkl.recipes import RECIPES
from gkl.spec import (
    PUBLISHED_WEIGHTS,
    EvaluateSpec,
    Evaluation,
    Publication,
    ThreatModel,
    TrainSpec,
    named_weights,
)

_log = logging.getLogger(__name__)

router = APIRouter(include_in_schema=False, default_response_class=HTMLResponse)

Kind = Literal["train", "evaluate"]
Choice = Literal["train", "evaluate", "import"]
SPECS: dict[Kind, type[TrainSpec] | type[EvaluateSpec]] = {"train": TrainSpec, "evaluate": EvaluateSpec}

# Fields that the form sends besides those of the spec.
_OWN = ("action", "submitter", "nonce", "drawn_for", CSRF_FIELD)
_NONCE = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class Form:
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
    spec: TrainSpec | EvaluateSpec | None

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
    if kind == "train":
        return next(iter(RECIPES.values()))().model_dump(mode="json")
    evaluation = Evaluation(threat_model=ThreatModel(epsilon=0.2))
    return {
        "name": "",
        "dataset": "digits",
        "architecture": "small_cnn",
        "weights": "",
        "evaluation": evaluation.model_dump(mode="json"),
    }


def spec_to_measure(entry: Entry) -> EvaluateSpec | None:
    """An evaluation of an imported entry's published weights, for the entry's board.

    None if it was not imported, if the zoo has no model with its id, or if this service cannot run the board's attack.
    """
    architecture = None if entry.source is None else zoo_name(entry.dataset, entry.board, entry.slug)
    if architecture is None:
        return None
    threat_model = threat_model_of_board(entry.dataset, entry.board)
    try:
        return EvaluateSpec(
            name=entry.slug[:100],
            dataset=entry.dataset,
            architecture=architecture,
            weights=PUBLISHED_WEIGHTS,
            evaluation=Evaluation(protocol="corruptions")
            if threat_model is None
            else Evaluation(threat_model=threat_model),
            publication=_publication(entry),
        )
    except ValidationError:
        return None


def _publication(entry: Entry) -> Publication | None:
    """The entry's publication, with each text cut to one line of the allowed length."""
    link = entry.link if re.fullmatch(r"https?://[!-~]{1,480}", entry.link) else None
    try:
        return Publication(
            title=plain(entry.name),
            authors=plain(entry.authors),
            link=link,
            venue=plain(entry.venue),
            extra_data=bool(entry.extra_data),
            synthetic_data=entry.synthetic_data,
            footnote=plain(entry.footnote),
        )
    except ValidationError:
        # Too long, or with hidden characters: the sender has to write it again.
        return None


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
    spec: TrainSpec | EvaluateSpec | None = None
    errors: dict[str, list[str]] = {}
    try:
        spec = SPECS[kind].model_validate(dict(values))
    except ValidationError as error:
        errors = errors_of(error, SPECS[kind])
    if refusal is not None:
        # Errors from the service begin with the name of their field, too.
        field, colon, sentence = str(refusal).partition(": ")
        known = bool(colon) and field in SPECS[kind].model_fields
        errors.setdefault(field if known else "", []).append(sentence if known else str(refusal))
    made = [_with_fitting(each, str(values.get("dataset", ""))) for each in inputs(SPECS[kind], values, errors)]
    made = [replace(each, notes=[notes[each.name]]) if each.name in notes else each for each in made]
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


def _with_fitting(shown: Input, dataset: str) -> Input:
    """Limit the architectures to those that fit the data set, and the one that is selected."""
    if shown.name != "architecture":
        return shown
    fitting = fitting_architectures(dataset)
    options = fitting if shown.value in fitting else [shown.value, *fitting]
    return replace(shown, options=options, groups=grouped(options))


# The choices that other fields follow from.
_CHOICES = ("dataset", "objective")


def prefilled(kind: Kind, values: Mapping[str, Any], given: Mapping[str, str]) -> dict[str, Any]:
    """The values with those in a link, by dotted path, and with others changed to fit them."""
    drawn = Drawn.of(values)
    choices = {name: value for name, value in given.items() if name in _CHOICES or name.endswith(".norm")}
    # First the choices that others follow from, so that the link's other values are kept.
    fitting, _ = fitted(from_sent(kind, _as_sent(kind, values) | choices), drawn)
    return from_sent(kind, _as_sent(kind, fitting) | dict(given))


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


def _short(spec: TrainSpec | EvaluateSpec) -> dict[str, Any]:
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


# --- the pages -----------------------------------------------------------------------------------------------------


@router.get("/submit")
def submit_page(request: Request, kind: Annotated[Choice | None, Chosen] = None) -> Response:
    """The choice of what to send. A link that names a kind or fields goes to the form at once."""
    query = [(name, value) for name, value in request.query_params.multi_items() if name != "kind"]
    if kind is None and not query:
        return render(request, "choose.html")
    if kind is None:
        kind = "evaluate" if {"weights", "weights_key"} & dict(query).keys() else "train"
    return redirect(request, f"/submit/{kind}" + (f"?{urlencode(query)}" if query else ""))


@router.get("/submit/import")
def import_page(request: Request) -> Response:
    return render(request, "import.html", url=str(request.base_url).rstrip("/"))


@router.get("/submit/{kind}")
def submit_form(
    *,
    request: Request,
    service: ServiceDep,
    kind: Kind,
    recipe: Annotated[str | None, Chosen, Query(max_length=100)] = None,
    job: Annotated[int | None, Chosen, Query(ge=1, le=MAX_ID)] = None,
    entry: Annotated[int | None, Chosen, Query(ge=1, le=MAX_ID)] = None,
) -> Response:
    """The form, filled in from a recipe, another job's spec, an imported entry's published weights, or fields in the
    address."""
    values = first_values(kind)
    if job is not None:
        with service.database.reading() as session:
            values = jobs.get(session, job).spec
    elif kind == "evaluate" and entry is not None:
        with service.database.reading() as session:
            spec = spec_to_measure(ranking.get(session, entry).entry)
        if spec is None:
            raise NotFound(f"the weights of entry {entry} are not in RobustBench's zoo; send them with this form")
        values = spec.model_dump(mode="json")
    elif kind == "train" and recipe is not None:
        if recipe not in RECIPES:
            raise NotFound(unknown_name_message("recipe", recipe, RECIPES))
        values = RECIPES[recipe]().model_dump(mode="json")
    given = {name: value for name, value in request.query_params.items() if name not in ("recipe", "job", "entry")}
    if given:
        values = prefilled(kind, values, given)
    form = _looked_at(service, form_of(kind, values, submitter=given.get("submitter", "")), values)
    # If the spec is valid, errors come from the service, such as missing weights that a link names.
    is_refused = form.spec is not None and form.has_errors
    return _submit_page(request, service, form, recipe=recipe or next(iter(RECIPES)), show_errors=is_refused)


@router.post("/submit/{kind}")
async def send_form(
    request: Request, service: ServiceDep, sender: Sender, background: BackgroundTasks, kind: Kind
) -> Response:
    sent = await sent_fields(request)
    return await run_in_threadpool(_take_form, request, service, sender, background, kind=kind, sent=sent)


def _take_form(
    request: Request,
    service: Service,
    sender: Principal,
    background: BackgroundTasks,
    *,
    kind: Kind,
    sent: dict[str, str],
) -> Response:
    values, submitter, nonce = from_sent(kind, sent), sent.get("submitter", "").strip(), sent.get("nonce", "")
    action = sent.get("action", "send")
    changes: list[str] = []
    if action != "check":
        values, changes = fitted(values, Drawn.read(sent.get("drawn_for", "")))
    form = form_of(kind, values, submitter=submitter, nonce=nonce, changes=changes)
    # If values were changed to fit a choice and no script has shown that, show the form again before sending.
    if action == "send" and form.spec is not None and not changes:
        try:
            _check_submitter(submitter)
            owner_limits.check_spec(service.settings, form.spec)
            # Includes the form's contents: after the browser's back button, a changed form is another job.
            content = hashlib.sha256(f"{submitter} {form.spec.model_dump_json()}".encode()).hexdigest()
            with service.database.reading() as session:
                warning = run_time.warning(session, form.spec, max_seconds=service.settings.max_run_seconds)
            job = jobs.submit(
                service.database,
                form.spec,
                key=f"form {form.nonce} {content}",
                remember=timedelta(hours=service.settings.idempotency_hours),
                submitter=sender.submitter(submitter or None),
                actor=sender.actor,
                warning=warning,
            )
        except (Unprocessable, TooMany) as refusal:
            form = form_of(kind, values, submitter=submitter, nonce=nonce, refusal=refusal)
        else:
            _log.info("job %d was sent", job.id, extra={"job_id": job.id})
            background.add_task(service.publish_pending)
            return redirect(request, f"/jobs/{job.id}", background)
    if not form.has_errors:
        form = _looked_at(service, form, values)
    # A script that checks the form while typing also shows errors, except in a form that was just adapted.
    status = 422 if action == "send" else 200
    return _submit_page(request, service, form, recipe=None, show_errors=action != "update", status_code=status)


def _looked_at(service: Service, form: Form, values: Mapping[str, Any]) -> Form:
    """The form with notes and errors that only the service knows."""
    refusal: Unprocessable | None = None
    with service.database.reading() as session:
        lease = timedelta(seconds=service.settings.lease_seconds)
        notes = holdings.of_live_workers(session, lease=lease).notes(values)
        named = named_weights(form.spec) if isinstance(form.spec, EvaluateSpec) else None
        if named is not None:
            try:
                job_files.check_weights(session, named, is_locking=False)
            except Unprocessable as found:
                refusal = found
    if not notes and refusal is None:
        return form
    said: dict[str, Any] = {"submitter": form.submitter, "nonce": form.nonce, "changes": form.changes}
    return form_of(form.kind, values, notes=notes, refusal=refusal, **said)


def _check_submitter(name: str) -> None:
    if name and not re.fullmatch(tokens.NAME_PATTERN, name):
        raise Unprocessable("submitter: write letters, digits, spaces and ._@+-, at most 100")


def _model_title(model: Model) -> str:
    of_several = f", weights_key {model.weights_key}" if model.weights_key else ""
    return f"{model.name}, {model.architecture}{of_several}"


def _estimates(session: Session, spec: TrainSpec | EvaluateSpec) -> list[str]:
    """Estimates of the job's time from earlier jobs; for a training also of its evaluation."""
    found = []
    own = run_time.estimate(session, spec)
    if own is not None:
        each = isinstance(spec, EvaluateSpec) and spec.evaluation.shards > 1
        found.append(f"{'each of its jobs ' if each else ''}{own}")
    after = spec.follow_up("0" * 64) if isinstance(spec, TrainSpec) else None
    following = None if after is None else run_time.estimate(session, after)
    if following is not None:
        found.append(f"its evaluation {following}")
    return found


def _submit_page(
    request: Request,
    service: Service,
    form: Form,
    *,
    recipe: str | None,
    show_errors: bool,
    status_code: int = 200,
) -> Response:
    url = str(request.base_url).rstrip("/")
    with service.database.reading() as session:
        models = results.newest_models(session, limit=50) if form.kind == "evaluate" else []
        estimates = [] if form.spec is None else _estimates(session, form.spec)
    return render(
        request,
        "submit.html",
        status_code=status_code,
        form=form,
        show_errors=show_errors,
        was_refused=status_code != 200,
        recipe=recipe,
        recipes=list(RECIPES),
        estimates=estimates,
        commands=commands(form, url, needs_token=not request.state.principal.is_open),
        models=[(found.weights_sha256, _model_title(found)) for found in models],
        url=url,
    )
