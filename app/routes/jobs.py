"""Jobs: send, look, follow, cancel, retry."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterable, AsyncIterator
from contextlib import aclosing, suppress
from datetime import timedelta
from typing import Annotated, Any, Literal

from fastapi import APIRouter, BackgroundTasks, Body, Depends, Header, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent
from sqlalchemy.orm import Session

from app import jobs
from app.accounts import tokens
from app.boards import results
from app.core.errors import TooMany
from app.db.tables import Job, JobEvent
from app.evidence import reports
from app.http import owner_limits
from app.http.access import Reader, Sender, charge
from app.http.paging import NumberedCursor, link_next
from app.http.parameters import MAX_ID, JobId
from app.http.service import Service, ServiceDep
from app.jobs import holdings, job_log, job_metrics, metric_sums, retention, run_time
from app.jobs.views import job_view
from gkl.answers import JobKind, JobMetrics, JobPage, JobState, JobView
from gkl.recipes import RECIPES
from gkl.spec import JobSpec

_log = logging.getLogger(__name__)

router = APIRouter(prefix="/jobs", tags=["jobs"])

MAX_PRIORITY = 100


# Of the recipes one for each way of training; `/api/v1/recipes` lists all.
_SHOWN = {
    "digits": "Train with GKL",
    "digits-trades": "Train with TRADES",
    "digits-ce": "Train without an adversary",
    "digits-distill": "Distill with GKL",
    "digits-robust-distill": "Distill robustly",
    "cifar100": "Train with GKL",
}


def _examples() -> dict[str, Any]:
    evaluate = {
        "kind": "evaluate",
        "name": "GKL SmallCNN",
        "dataset": "digits",
        "architecture": "small_cnn",
        "weights": "0" * 64,
        "evaluation": {"threat_model": {"norm": "Linf", "epsilon": 0.2}},
    }
    examples: dict[str, Any] = {
        name: {"summary": f"{does}: the {name} recipe", "value": RECIPES[name]().model_dump(mode="json")}
        for name, does in _SHOWN.items()
    }
    return examples | {"evaluate": {"summary": "Evaluate weights that a train job left", "value": evaluate}}


@router.post("", status_code=202, summary="Send a job", response_description="The job, queued.")
def create_job(
    *,
    service: ServiceDep,
    sender: Sender,
    response: Response,
    background: BackgroundTasks,
    spec: Annotated[JobSpec, Body(openapi_examples=_examples())],
    submitter: Annotated[
        str | None,
        Query(
            pattern=tokens.NAME_PATTERN,
            description="Whose job it is: workers are shared fairly between submitters. By default the token's owner; "
            "admins, and everybody on an open service, may name another.",
        ),
    ] = None,
    priority: Annotated[
        int,
        Query(
            ge=-MAX_PRIORITY,
            le=MAX_PRIORITY,
            description="Jobs with higher priority run first. Only admins may go above 0.",
        ),
    ] = 0,
    idempotency_key: Annotated[
        str | None,
        Header(
            min_length=1,
            max_length=255,
            description="Any text that you choose: the same key and body give the same job, so a request whose "
            "answer was lost can be sent again.",
        ),
    ] = None,
) -> JobView:
    """Queue a training or an evaluation. `Location` is its address; 409 if the key was used with another body.

    Weights sent as safetensors are compared with the architecture: 422 names the first tensor that is missing,
    unexpected or of another shape. If no running worker has the job's data set or published weights, the job is
    accepted anyway, and `missing` says so.
    """
    owner_limits.check_spec(service.settings, spec)
    owner_limits.check_priority(sender, priority)
    with service.database.reading() as session:
        warning = run_time.warning(session, spec, max_seconds=service.settings.max_run_seconds)
    job = jobs.submit(
        service.database,
        spec,
        key=idempotency_key,
        remember=timedelta(hours=service.settings.idempotency_hours),
        submitter=sender.submitter(submitter),
        priority=priority,
        actor=sender.actor,
        warning=warning,
    )
    _log.info("job %d was sent", job.id, extra={"job_id": job.id})
    response.headers["Location"] = f"{service.settings.root_path}/api/v1/jobs/{job.id}"
    with service.database.reading() as session:
        view = _view(service, session, jobs.get(session, job.id)).model_copy(update={"warning": warning})
    # After the answer: a broker that is slow or down delays no client.
    background.add_task(service.publish_pending, view.shard_ids or [view.id])
    return view


@router.get("", summary="List jobs, newest first")
def list_jobs(
    *,
    request: Request,
    response: Response,
    service: ServiceDep,
    state: JobState | None = None,
    kind: JobKind | None = None,
    cursor: NumberedCursor = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> JobPage:
    with service.database.reading() as session:
        found = jobs.page(session, state=state, kind=kind, before_id=cursor, limit=limit + 1)
        following = found[limit - 1].id if len(found) > limit else None
        link_next(request, response, following)
        return JobPage(jobs=_views(service, session, found[:limit]), next_cursor=following)


@router.get("/{job_id}", summary="Look at a job")
def get_job(service: ServiceDep, job_id: JobId) -> JobView:
    with service.database.reading() as session:
        return _view(service, session, jobs.get(session, job_id))


@router.post("/{job_id}/cancel", status_code=202, summary="Cancel a job")
def cancel_job(service: ServiceDep, sender: Sender, job_id: JobId) -> JobView:
    """A queued job is cancelled at once; a running one is asked to stop and is `cancelling` until it has.

    For a training that has ended, this cancels the evaluation that follows it; for a shard, its whole evaluation. Only
    the job's submitter and admins can do that.
    """
    with service.database.writing() as session:
        return _view(service, session, jobs.cancel_own(session, sender, job_id))


@router.post("/{job_id}/retry", status_code=202, summary="Retry a failed or cancelled job")
def retry_job(service: ServiceDep, sender: Sender, background: BackgroundTasks, job_id: JobId) -> JobView:
    """Queue it again. It resumes from what it saved if that is still stored; otherwise it starts over.

    Only the job's submitter and admins can do that.
    """
    with service.database.writing() as session:
        jobs.retry_own(session, sender, job_id)
    background.add_task(service.publish_pending)
    with service.database.reading() as session:
        return _view(service, session, jobs.get(session, job_id))


@router.delete("/{job_id}", status_code=204, summary="Remove an ended job", response_class=Response)
def remove_job(service: ServiceDep, sender: Sender, job_id: JobId) -> Response:
    """Remove a job with its events, its log and its files, if it has no result and no job followed it.

    Only the job's submitter and admins can do that.
    """
    # The job's events are removed with it, so count them for the metrics first.
    metric_sums.count_new_events(service.database)
    with service.database.writing() as session:
        retention.remove_own_job(session, sender, job_id)
    return Response(status_code=204)


async def _followed(service: ServiceDep, reader: Reader, job_id: JobId) -> AsyncIterator[None]:
    """Reserve one of the user's event streams, before the stream begins so that an error can still be sent.

    Checks and counts in one step of the event loop, so that parallel requests cannot exceed the limit.
    """
    most, who = service.settings.max_streams, reader.counted_as
    if not reader.is_open and service.streams[who] >= most:
        raise TooMany(
            f"{most} event streams are already open, the limit; close one, or poll the job instead",
            retry_after_seconds=60,
        )
    service.streams[who] += 1
    try:
        await run_in_threadpool(_check_is_there, service, job_id)
        yield
    finally:
        service.streams[who] -= 1
        if service.streams[who] == 0:
            del service.streams[who]


def _check_is_there(service: Service, job_id: int) -> None:
    with service.database.reading() as session:
        jobs.get(session, job_id)


@router.get(
    "/{job_id}/events",
    response_class=EventSourceResponse,
    dependencies=[Depends(_followed)],
    summary="Follow a job as it happens",
)
async def follow_job(
    *,
    service: ServiceDep,
    job_id: JobId,
    last_event_id: Annotated[
        int | None, Header(ge=0, le=MAX_ID, description="Continue after this event; browsers send it by themselves.")
    ] = None,
) -> AsyncIterable[ServerSentEvent]:
    """Server-sent events: `state`, `epoch` and `attack` with an id to resume from, and between them `progress`.

    The stream ends after the job's last state, or after an hour; then continue in a new stream from the last id.
    """
    until = time.monotonic() + service.settings.max_stream_seconds
    # Closed as soon as the client disconnects: after the last one, the job's feed stops.
    async with aclosing(service.job_feeds.follow(job_id, last_event_id or 0, until=until)) as feed:
        async for news in feed:
            if isinstance(news, JobEvent):
                yield ServerSentEvent(id=str(news.id), event=news.type, data=news.data)
            else:
                yield ServerSentEvent(event="progress", data=news)


@router.get(
    "/{job_id}/metrics",
    summary="Read a training's curves",
    response_model=JobMetrics,
    responses={200: {"content": {"text/csv": {"schema": {"type": "string"}}}, "description": "The points."}},
)
def get_curves(
    *,
    service: ServiceDep,
    reader: Reader,
    job_id: JobId,
    file_format: Annotated[
        Literal["json", "csv"] | None,
        Query(alias="format", description="By default what `Accept` prefers of the two, and else JSON."),
    ] = None,
    accept: Annotated[str, Header(include_in_schema=False)] = "",
) -> Response:
    """Metrics of each finished epoch: loss and its parts, accuracies, epsilon, learning rate, seconds.

    As JSON, or as CSV with a line for each epoch. Counts as one request for each 100 epochs.
    """
    with service.database.reading() as session:
        jobs.get(session, job_id)
        found = job_metrics.epochs(session, job_id)
    charge(service, reader, rows=len(found))
    headers = {"Vary": "Accept"}
    if file_format == "csv" or (file_format is None and _prefers_csv(accept)):
        headers["Content-Disposition"] = f'attachment; filename="job-{job_id}-metrics.csv"'
        return Response("".join(job_metrics.as_csv(found)), media_type="text/csv; charset=utf-8", headers=headers)
    content = JobMetrics(job_id=job_id, epochs=found).model_dump_json()
    return Response(content, media_type="application/json", headers=headers)


def _prefers_csv(accept: str) -> bool:
    """Whether an `Accept` header prefers CSV to JSON."""
    weights = {"text/csv": 0.0, "application/json": 0.0}
    for each in accept.lower().split(","):
        name, *options = (part.strip() for part in each.split(";"))
        quality = next((option[2:] for option in options if option.startswith("q=")), "1")
        if name in weights:
            with suppress(ValueError):
                weights[name] = float(quality)
    return weights["text/csv"] > weights["application/json"]


@router.get(
    "/{job_id}/log",
    summary="Read a job's log",
    response_class=StreamingResponse,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}, "description": "The log's text."}},
)
def get_log(
    service: ServiceDep,
    job_id: JobId,
    offset: Annotated[int, Query(ge=0, le=MAX_ID, description="Byte to start at, to follow a growing log.")] = 0,
) -> StreamingResponse:
    """The output of the job's runs as plain text; empty before the first run. `X-Log-Size` is the next offset.

    The oldest part of a very long log is dropped; offsets count from the first byte ever written.
    """
    with service.database.reading() as session:
        jobs.get(session, job_id)
        end = job_log.kept(session, job_id).stop
    return StreamingResponse(
        job_log.read(service.database, job_id, offset, end),
        media_type="text/plain; charset=utf-8",
        headers={"X-Log-Size": str(end), "X-Content-Type-Options": "nosniff"},
    )


def _view(service: Service, session: Session, job: Job) -> JobView:
    return _views(service, session, [job])[0]


def _views(service: Service, session: Session, found: list[Job]) -> list[JobView]:
    numbers = [job.id for job in found]
    models, entry_ids = results.models_of_jobs(session, numbers), reports.entry_ids_by_job(session, numbers)
    missing = holdings.missing_by_job(session, found, lease=timedelta(seconds=service.settings.lease_seconds))
    return [
        job_view(job, models.get(job.id), entry_id=entry_ids.get(job.id), missing=missing.get(job.id)) for job in found
    ]
