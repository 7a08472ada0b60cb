"""Each page: read rows, render. No page calls the broker or an engine."""

from __future__ import annotations

import hashlib
import json
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, BackgroundTasks, Query, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from fastapi.templating import Jinja2Templates
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from pydantic import BeforeValidator, Field

import gkl
from app import entries, formatting, job_files, jobs, leaderboard, robustbench, workers
from app.database import database_now
from app.routes.jobs import MAX_ID, JobId
from app.routes.leaderboards import BoardPart, EntryId
from app.service import ServiceDep
from app.tables import JobEvent, JobKind, JobState
from app.web.attempts import attempts
from app.web.boards import PROVENANCES, board_page
from app.web.charts import Curve, record, survivor_bars, training_curves
from app.web.rich_text import plain, rich
from gkl.catalog import ARCHITECTURES, DATASETS
from gkl.outcome import EpochFinished
from gkl.recipes import RECIPES
from gkl.spec import format_epsilon

router = APIRouter(include_in_schema=False, default_response_class=HTMLResponse)

_LOG_TAIL_BYTES = 16 * 1024
_JOBS_PER_PAGE = 50

# A form without JavaScript sends an empty text for a choice that was not made.
_Chosen = BeforeValidator(lambda value: value or None)


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("app.web"),
        autoescape=select_autoescape(),
        # A name that a template misspells must not turn into an empty cell.
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        duration=formatting.duration,
        percent=formatting.percent,
        interval=formatting.interval,
        size=formatting.size,
        when=formatting.when,
        when_exactly=formatting.when_exactly,
        epsilon=format_epsilon,
        rich=rich,
        plain=plain,
        pretty_json=lambda value: json.dumps(value, indent=2),
    )
    environment.globals.update(
        datasets=DATASETS,
        architectures=ARCHITECTURES,
        loss_titles=entries.LOSS_TITLES,
        provenances=PROVENANCES,
        loss_parts=_LOSS_PARTS,
        JobState=JobState,
        progress_of=jobs.progress,
    )
    return environment


# How a page names the parts of a training's loss.
_LOSS_PARTS = {"natural": "CE, natural", "kl": "KL", "dkl": "DKL", "ce": "CE, soft", "wmse": "wMSE"}

_templates = Jinja2Templates(env=_environment())


def _build() -> str:
    """Another text whenever a page may look otherwise for the same rows."""
    digest = hashlib.sha256(gkl.__version__.encode())
    for path in sorted(Path(__file__).parent.rglob("*.*")):
        if path.suffix in (".py", ".html", ".css", ".js"):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


_BUILD = _build()


def _render(
    request: Request, template: str, *, status_code: int = 200, headers: dict[str, str] | None = None, **context: Any
) -> HTMLResponse:
    return _templates.TemplateResponse(request, template, context, status_code=status_code, headers=headers)


def error_page(request: Request, status: int, detail: str) -> Response:
    return _render(request, "error.html", status_code=status, status=status, detail=detail)


@router.get("/")
def home(request: Request, service: ServiceDep) -> Response:
    with service.database.reading() as session:
        boards = entries.boards(session)
        leaders = [entries.leader(session, board) for board in boards]
        histories = [record(entries.points(session, board, entries.View())) for board in boards]
        recent = jobs.page(session, limit=5)
        return _render(
            request,
            "home.html",
            boards=list(zip(boards, leaders, histories, strict=True)),
            jobs=recent,
            url=str(request.base_url).rstrip("/"),
            recipe=next(iter(RECIPES)),
        )


class _PageOfView(entries.View):
    """The query string of a board's page."""

    page: int = Field(default=1, ge=1, le=1_000_000)


@router.get("/leaderboards/{dataset}/{name}")
def board(
    request: Request,
    service: ServiceDep,
    dataset: BoardPart,
    name: BoardPart,
    query: Annotated[_PageOfView, Query()],
) -> Response:
    with service.database.reading() as session:
        found = entries.board(session, dataset, name)
        # The address belongs to it, since one tag must not stand for two pages.
        what = f"{_BUILD} {request.url.path}?{request.url.query} {entries.revision(session, dataset, name)}"
        etag = f'W/"{hashlib.sha256(what.encode()).hexdigest()[:32]}"'
        headers = {"ETag": etag, "Cache-Control": "no-cache"}
        if etag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        view = entries.View.model_validate(query.model_dump(exclude={"page"}))
        return _render(request, "board.html", headers=headers, page=board_page(session, found, view, query.page))


@router.get("/entries/{entry_id}")
def entry(request: Request, service: ServiceDep, entry_id: EntryId) -> Response:
    with service.database.reading() as session:
        found = entries.get(session, entry_id)
        evaluation, model = found.entry.evaluation, found.entry.model
        train_job_id = None if model is None else model.train_job_id
        events = jobs.events_after(session, train_job_id, 0, limit=100_000) if train_job_id else []
        return _render(
            request,
            "entry.html",
            rank=found.rank,
            entry=found.entry,
            board=entries.board(session, found.entry.dataset, found.entry.board),
            model=model,
            evaluation=evaluation,
            bars=None if evaluation is None else survivor_bars(evaluation),
            curve=_curve(events),
            training=model.train_job.spec if model is not None and model.train_job is not None else None,
            model_info=robustbench.model_info(found.entry),
        )


@router.get("/models/{model_id}")
def model(request: Request, service: ServiceDep, model_id: JobId) -> Response:
    with service.database.reading() as session:
        found = leaderboard.model(session, model_id)
        evaluations = [
            (evaluation, entries.why_not_ranked(evaluation), survivor_bars(evaluation))
            for evaluation in leaderboard.evaluations_of(session, model_id)
        ]
        events = jobs.events_after(session, found.train_job_id, 0, limit=100_000) if found.train_job_id else []
        return _render(
            request,
            "model.html",
            model=found,
            evaluations=evaluations,
            places=entries.entries_of(session, model_id),
            curve=_curve(events),
        )


@router.get("/jobs")
def job_list(
    request: Request,
    service: ServiceDep,
    state: Annotated[JobState | None, _Chosen] = None,
    kind: Annotated[JobKind | None, _Chosen] = None,
    cursor: Annotated[int | None, Query(ge=1, le=MAX_ID)] = None,
) -> Response:
    with service.database.reading() as session:
        found = jobs.page(session, state=state, kind=kind, before_id=cursor, limit=_JOBS_PER_PAGE + 1)
        older = None
        if len(found) > _JOBS_PER_PAGE:
            older = f"?{request.url.include_query_params(cursor=found[_JOBS_PER_PAGE - 1].id).query}"
        return _render(
            request,
            "jobs.html",
            jobs=found[:_JOBS_PER_PAGE],
            older=older,
            is_first_page=cursor is None,
            state=state,
            kind=kind,
            states=list(JobState),
            kinds=list(JobKind),
            now=database_now(session),
        )


@router.get("/jobs/{job_id}")
def job(request: Request, service: ServiceDep, job_id: JobId) -> Response:
    with service.database.reading() as session:
        found = jobs.get(session, job_id)
        events = jobs.events_after(session, job_id, 0, limit=100_000)
        history, now = [event for event in events if event.type == "state"], database_now(session)
        return _render(
            request,
            "job.html",
            job=found,
            progress=jobs.progress(found),
            model=leaderboard.models_of_jobs(session, [job_id]).get(job_id),
            evaluation=leaderboard.evaluation_of_job(session, job_id),
            curve=_curve(events),
            attacks=_attacks_of_last_attempt(events),
            history=history,
            attempts=attempts(history),
            seconds=jobs.seconds_on_workers(found, now),
            now=now,
            saved=job_files.to_go_on_from(session, job_id),
            log=service.store.job_log(job_id).tail(_LOG_TAIL_BYTES),
        )


@router.post("/jobs/{job_id}/cancel")
def cancel(service: ServiceDep, job_id: JobId) -> Response:
    with service.database.writing() as session:
        jobs.request_cancel(session, job_id)
    return RedirectResponse(f"/jobs/{job_id}", status_code=303)


@router.post("/jobs/{job_id}/retry")
def retry(service: ServiceDep, background: BackgroundTasks, job_id: JobId) -> Response:
    with service.database.writing() as session:
        jobs.retry(session, job_id)
    background.add_task(service.publish_pending)
    return RedirectResponse(f"/jobs/{job_id}", status_code=303)


@router.get("/workers")
def worker_list(request: Request, service: ServiceDep) -> Response:
    with service.database.reading() as session:
        lease = timedelta(seconds=service.settings.lease_seconds)
        found, now = workers.all_of_them(session, lease=lease), database_now(session)
        return _render(request, "workers.html", workers=found, waiting=jobs.count_due(session), now=now)


def _curve(events: list[JobEvent]) -> Curve | None:
    return training_curves(
        [EpochFinished.model_validate(e.data | {"type": "epoch"}) for e in events if e.type == "epoch"]
    )


def _attacks_of_last_attempt(events: list[JobEvent]) -> list[dict[str, Any]]:
    """An evaluation that was taken up again ran its attacks again."""
    attacks: list[dict[str, Any]] = []
    for event in events:
        if event.type == "state" and event.data["state"] == JobState.RUNNING:
            attacks = []
        elif event.type == "attack":
            attacks.append(event.data["outcome"])
    return attacks
