"""Home, jobs, workers, identity, audit. Pages only read rows and render them; they call neither broker nor engine."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

from fastapi import APIRouter, BackgroundTasks, Query, Request
from fastapi.responses import HTMLResponse, Response

from app import jobs
from app.accounts import audit, quotas
from app.boards import ranking
from app.db.database import database_now
from app.http.access import READS, Admin, Reader, Sender
from app.http.parameters import MAX_ID, JobId
from app.http.service import ServiceDep
from app.jobs import workers
from app.web import board_pages, job_page, submit
from app.web.board_charts import record
from app.web.rendering import Chosen, redirect, render
from app.web.worker_days import day_of
from gkl.answers import JobKind, JobState
from gkl.recipes import RECIPES

router = APIRouter(include_in_schema=False, default_response_class=HTMLResponse, dependencies=[READS])
router.include_router(board_pages.router)
router.include_router(job_page.router)
router.include_router(submit.router)

_JOBS_PER_PAGE = 50
_RECORDS_PER_PAGE = 100


@router.get("/")
def home(request: Request, service: ServiceDep) -> Response:
    with service.database.reading() as session:
        boards = ranking.boards(session)
        leaders = [ranking.leader(session, board) for board in boards]
        histories = [record(ranking.best_by_year(session, board)) for board in boards]
        recent = jobs.page(session, limit=5)
        running = jobs.page(session, state=JobState.RUNNING, limit=5)
        return render(
            request,
            "home.html",
            boards=list(zip(boards, leaders, histories, strict=True)),
            jobs=recent,
            running=running,
            url=str(request.base_url).rstrip("/"),
            recipe=next(iter(RECIPES)),
        )


@router.get("/jobs")
def job_list(
    request: Request,
    service: ServiceDep,
    state: Annotated[JobState | None, Chosen] = None,
    kind: Annotated[JobKind | None, Chosen] = None,
    cursor: Annotated[int | None, Query(ge=1, le=MAX_ID)] = None,
) -> Response:
    with service.database.reading() as session:
        found = jobs.page(session, state=state, kind=kind, before_id=cursor, limit=_JOBS_PER_PAGE + 1)
        older = None
        if len(found) > _JOBS_PER_PAGE:
            older = f"?{request.url.include_query_params(cursor=found[_JOBS_PER_PAGE - 1].id).query}"
        return render(
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


@router.post("/jobs/{job_id}/cancel")
def cancel_job(request: Request, service: ServiceDep, sender: Sender, job_id: JobId) -> Response:
    with service.database.writing() as session:
        jobs.cancel_own(session, sender, job_id)
    return redirect(request, f"/jobs/{job_id}")


@router.post("/jobs/{job_id}/retry")
def retry_job(
    request: Request, service: ServiceDep, sender: Sender, background: BackgroundTasks, job_id: JobId
) -> Response:
    with service.database.writing() as session:
        jobs.retry_own(session, sender, job_id)
    background.add_task(service.publish_pending)
    return redirect(request, f"/jobs/{job_id}")


@router.get("/workers")
def worker_list(request: Request, service: ServiceDep) -> Response:
    with service.database.reading() as session:
        lease = timedelta(seconds=service.settings.lease_seconds)
        found, now = workers.all_of_them(session, lease=lease), database_now(session)
        loads = workers.loads(session)
        days = {
            each.row.name: day_of(loads.get(each.row.name, []), each.row.load["memory_total_bytes"], now)
            if each.row.load
            else None
            for each in found
        }
        return render(
            request,
            "workers.html",
            workers=found,
            days=days,
            queue=workers.queue(session),
            waiting=jobs.count_due(session),
            now=now,
        )


@router.get("/me")
def identity(request: Request, service: ServiceDep, reader: Reader) -> Response:
    with service.database.reading() as session:
        return render(request, "me.html", used=quotas.used(session, reader.name))


@router.get("/audit")
def audit_trail(
    request: Request, service: ServiceDep, _: Admin, cursor: Annotated[int | None, Query(ge=1, le=MAX_ID)] = None
) -> Response:
    with service.database.reading() as session:
        found = audit.page(session, before_id=cursor, limit=_RECORDS_PER_PAGE + 1)
        older = f"?cursor={found[_RECORDS_PER_PAGE - 1].id}" if len(found) > _RECORDS_PER_PAGE else None
        return render(
            request, "audit.html", records=found[:_RECORDS_PER_PAGE], older=older, is_first_page=cursor is None
        )
