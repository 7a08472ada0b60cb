"""Pages that send a job: a form generated from the spec, equivalent commands, and each error beside its field."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Mapping
from datetime import timedelta
from itertools import groupby
from typing import Annotated, Any, Literal, cast
from urllib.parse import urlencode

from fastapi import APIRouter, BackgroundTasks, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse, Response
from sqlalchemy.orm import Session

from app import jobs
from app.accounts import tokens
from app.accounts.principals import Principal
from app.boards import ranking, results
from app.boards.published_weights import spec_to_measure
from app.core.errors import NotFound, TooMany, Unprocessable
from app.db.tables import Model
from app.http import owner_limits
from app.http.access import Sender
from app.http.parameters import MAX_ID
from app.http.service import Service, ServiceDep
from app.jobs import holdings, job_files, run_time, teachers
from app.web.fitting import Drawn, fitted
from app.web.forms import sent_fields
from app.web.rendering import Chosen, redirect, render
from app.web.submit_form import FIRST_RECIPES, Form, Kind, commands, first_values, form_of, from_sent, prefilled
from gkl.catalog import DATASETS, unknown_name_message
from gkl.recipes import RECIPES, listed_recipes
from gkl.spec import SHA256_PATTERN, BaseTrainSpec, DistillSpec, EvaluateSpec, SentSpec, named_weights

_log = logging.getLogger(__name__)

router = APIRouter(include_in_schema=False, default_response_class=HTMLResponse)

Choice = Literal["train", "distill", "evaluate", "import"]


@router.get("/submit")
def submit_page(request: Request, kind: Annotated[Choice | None, Chosen] = None) -> Response:
    """The choice of what to send. A link that names a kind or fields goes to the form at once."""
    query = [(name, value) for name, value in request.query_params.multi_items() if name != "kind"]
    if kind is None and not query:
        return render(request, "choose.html")
    if kind is None:
        kind = _kind_of(dict(query))
    return redirect(request, f"/submit/{kind}" + (f"?{urlencode(query)}" if query else ""))


def _kind_of(given: Mapping[str, str]) -> Kind:
    """The form that the fields of a link belong to."""
    if given.keys() & {"weights", "weights_key"}:
        return "evaluate"
    if any(name.partition(".")[0] == "teacher" for name in given):
        return "distill"
    return _kind_of_recipe(given.get("recipe", "")) or "train"


def _kind_of_recipe(name: str) -> Kind | None:
    """The form that a recipe belongs to; None if there is no such recipe."""
    found = next((each for each in listed_recipes() if each.name == name), None)
    return None if found is None else cast(Kind, found.kind)


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
    elif kind != "evaluate" and recipe is not None:
        belongs_to = _kind_of_recipe(recipe)
        if belongs_to is None:
            raise NotFound(unknown_name_message("recipe", recipe, RECIPES))
        if belongs_to != kind:
            return redirect(request, f"/submit/{belongs_to}?{request.url.query}")
        values = RECIPES[recipe]().model_dump(mode="json")
    given = {name: value for name, value in request.query_params.items() if name not in ("recipe", "job", "entry")}
    if kind == "distill":
        given = _with_dataset(service, given)
    if given:
        values = prefilled(kind, values, given)
    form = _looked_at(service, form_of(kind, values, submitter=given.get("submitter", "")), values)
    # If the spec is valid, errors come from the service, such as missing weights that a link names.
    is_refused = form.spec is not None and form.has_errors
    return _submit_page(request, service, form, recipe=recipe or FIRST_RECIPES.get(kind), show_errors=is_refused)


def _with_dataset(service: Service, given: Mapping[str, str]) -> dict[str, str]:
    """The fields of a link, with the data set of the job or entry that it names as teacher."""
    numbers = {name: int(value) for name in ("job", "entry") if (value := given.get(f"teacher.{name}", "")).isdecimal()}
    if "dataset" in given or not numbers or max(numbers.values()) > MAX_ID:
        return dict(given)
    with service.database.reading() as session:
        dataset = teachers.dataset_of(session, job_id=numbers.get("job"), entry_id=numbers.get("entry"))
    return dict(given) if dataset is None else {"dataset": dataset, **given}


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
        if kind == "distill":
            changes += _fit_known_teacher(service, values)
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
        try:
            _check_named(session, form.spec)
        except Unprocessable as found:
            refusal = found
    if not notes and refusal is None:
        return form
    said: dict[str, Any] = {"submitter": form.submitter, "nonce": form.nonce, "changes": form.changes}
    return form_of(form.kind, values, notes=notes, refusal=refusal, **said)


def _check_named(session: Session, spec: SentSpec | None) -> None:
    """
    Raises:
        Unprocessable: the teacher or the weights that a spec names are not there, or do not fit.
    """
    if isinstance(spec, DistillSpec):
        spec, _ = teachers.looked_up(session, spec, is_locking=False)
    if isinstance(spec, EvaluateSpec | DistillSpec) and (named := named_weights(spec)) is not None:
        job_files.check_weights(session, named, within=job_files.field_of_weights(spec), is_locking=False)


def _fit_known_teacher(service: Service, values: dict[str, Any]) -> list[str]:
    """Take over the architecture and key of a known network whose file the teacher names; return what was changed."""
    teacher = values.get("teacher")
    if not isinstance(teacher, dict) or not re.fullmatch(SHA256_PATTERN, str(teacher.get("weights", ""))):
        return []
    with service.database.reading() as session:
        known = results.models_of_file(session, str(teacher["weights"]))
    key = teacher.get("weights_key") or ""
    if len(known) != 1 or (key and known[0].weights_key != key):
        # Of several networks in a file, the sender has to choose one.
        return []
    changes = []
    for name, value in (("architecture", known[0].architecture), ("weights_key", known[0].weights_key)):
        if (teacher.get(name) or "") != value:
            teacher[name] = value
            changes.append(f"teacher.{name} is now {value}, as these weights are known")
    return changes


def _check_submitter(name: str) -> None:
    if name and not re.fullmatch(tokens.NAME_PATTERN, name):
        raise Unprocessable("submitter: write letters, digits, spaces and ._@+-, at most 100")


def _model_title(model: Model) -> str:
    of_several = f", weights_key {model.weights_key}" if model.weights_key else ""
    return f"{model.name}, {model.architecture}{of_several}, {DATASETS[model.dataset].title}"


def _estimates(session: Session, spec: SentSpec) -> list[str]:
    """Estimates of the job's time from earlier jobs; for a training also of its evaluation."""
    found = []
    own = run_time.estimate(session, spec)
    if own is not None:
        each = isinstance(spec, EvaluateSpec) and spec.evaluation.shards > 1
        found.append(f"{'each of its jobs ' if each else ''}{own}")
    after = spec.follow_up("0" * 64) if isinstance(spec, BaseTrainSpec) else None
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
        models = results.newest_models(session, limit=50) if form.kind != "train" else []
        estimates = [] if form.spec is None else _estimates(session, form.spec)
    return render(
        request,
        "submit.html",
        status_code=status_code,
        form=form,
        show_errors=show_errors,
        was_refused=status_code != 200,
        recipe=recipe,
        recipes=[(group, list(of)) for group, of in groupby(listed_recipes(form.kind), key=lambda each: each.group)],
        estimates=estimates,
        commands=commands(form, url, needs_token=not request.state.principal.is_open),
        models=[(found.weights_sha256, _model_title(found)) for found in models],
        url=url,
    )
