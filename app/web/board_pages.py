"""Pages of boards, entries, points, models and comparisons."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar
from urllib.parse import urlencode

from fastapi import APIRouter, BackgroundTasks, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse, Response
from pydantic import Field, ValidationError
from safetensors import SafetensorError
from sqlalchemy.orm import Session

from app import jobs
from app.accounts.principals import Principal
from app.boards import (
    listing,
    placing,
    rank_bands,
    ranking,
    results,
    robustbench_export,
    strongest_certificates,
)
from app.boards.board_points import Order, board_points, pictured
from app.boards.certificates import Broken, broken_points, classes_of
from app.boards.published_weights import spec_to_measure
from app.boards.teachers import teacher_of
from app.core.errors import NotFound, StoreAway, Unprocessable
from app.core.paths import root_of
from app.db.tables import Entry
from app.evidence import external, transfers
from app.evidence.compare import Outcome, comparison_of, shared_points
from app.http.access import Admin, Reader, Sender, charge
from app.http.entity_tags import not_modified, tagged
from app.http.parameters import MAX_ID, BoardPart, EntryId, JobId
from app.http.service import Service, ServiceDep
from app.jobs import job_files, teachers
from app.web import cards
from app.web.boards import ChosenChart, board_page
from app.web.forms import sent_fields
from app.web.lessons import lesson_of
from app.web.model_charts import curve_of, survivor_bars
from app.web.rendering import Chosen, redirect, render
from gkl.answers import ClassView, RankNote, TransferRequest, Withdrawal
from gkl.catalog import DATASETS
from gkl.outcome import ReportOutcome
from gkl.outcome.flags import FLAGS, ON_CLEAN_BOARDS

router = APIRouter(include_in_schema=False, default_response_class=HTMLResponse)

_PICTURES_PER_PAGE = 24
_ATTACKS_SHOWN = 50
_EVALUATIONS_PER_PAGE = 20
_log = logging.getLogger(__name__)
_T = TypeVar("_T")


class _PageOfView(listing.View):
    """The query string of a board's page."""

    page: int = Field(default=1, ge=1, le=1_000_000)
    chart: ChosenChart = "focus"


@router.get("/leaderboards/{dataset}/{name}")
def board(
    *,
    request: Request,
    service: ServiceDep,
    principal: Reader,
    dataset: BoardPart,
    name: BoardPart,
    query: Annotated[_PageOfView, Query()],
) -> Response:
    with service.database.reading() as session:
        # Read before the rest: what changes meanwhile must not be cached under the older tag.
        revision = ranking.revision(session, dataset, name)
        found = ranking.board(session, dataset, name)
        # Another user of this browser must get a page of their own.
        headers = tagged(request, revision, f"{principal.name} {principal.csrf}")
        if (unchanged := not_modified(request, headers)) is not None:
            return unchanged
        charge(service, principal, rows=listing.PAGE_SIZE)
        view = listing.View.model_validate(query.model_dump(exclude={"page", "chart"}))
        page = board_page(
            session,
            service.charts,
            found,
            revision=revision,
            view=view,
            page=query.page,
            chart=query.chart,
            root=root_of(request.scope),
        )
        return render(request, "board.html", headers=headers, page=page)


@router.get("/leaderboards/{dataset}/{name}/points")
def hard_points(
    *,
    request: Request,
    service: ServiceDep,
    reader: Reader,
    dataset: BoardPart,
    name: BoardPart,
    order: Order = "hardest",
    page: Annotated[int, Query(ge=1, le=100_000)] = 1,
) -> Response:
    charge(service, reader, rows=_PICTURES_PER_PAGE * 4)
    offset = (page - 1) * _PICTURES_PER_PAGE
    with service.database.reading() as session:
        on = ranking.board(session, dataset, name)
        # Images that no network gets wrong have no picture.
        found = board_points(session, on, order, offset=offset, limit=_PICTURES_PER_PAGE + 1, least=1)
        names = {number: entry.name for number, entry in listing.with_ids(session, found.entry_ids).items()}
    shown = found.listed[:_PICTURES_PER_PAGE]
    # A certificate has pictures of the images that an attack broke, so there are none without attacks.
    with_pictures = [point.index for point in shown] if on.kind == "attacks" else []
    turn = request.url.include_query_params
    return render(
        request,
        "hard_points.html",
        board=on,
        found=found,
        names=names,
        order=order,
        shown=shown,
        pictures=pictured(service.store, found, with_pictures),
        earlier=f"?{turn(page=page - 1).query}" if page > 1 else None,
        later=f"?{turn(page=page + 1).query}" if len(found.listed) > len(shown) else None,
    )


@router.get("/entries/{entry_id}")
def entry(request: Request, service: ServiceDep, entry_id: EntryId) -> Response:
    with service.database.reading() as session:
        found = rank_bands.with_band(session, service.charts, ranking.get(session, entry_id))
        on = ranking.board(session, found.entry.dataset, found.entry.board)
        evaluation, model = found.entry.evaluation, found.entry.model
        train_job_id = None if model is None else model.train_job_id
        events = jobs.events_after(session, train_job_id, 0, limit=100_000) if train_job_id else []
        return render(
            request,
            "entry.html",
            rank=found.rank,
            band=found.band,
            entry=found.entry,
            board=on,
            model=model,
            evaluation=evaluation,
            bars=None if evaluation is None else survivor_bars(evaluation),
            report=None if found.entry.report is None else ReportOutcome.model_validate(found.entry.report.outcome),
            curve=curve_of(events),
            training=model.train_job.spec if model is not None and model.train_job is not None else None,
            model_info=_model_info(found.entry),
            leader=ranking.leader(session, on),
            lesson=lesson_of(session, found, on),
            can_be_measured=spec_to_measure(found.entry) is not None,
            can_teach=teachers.can_teach(found.entry),
            broken=_broken(service, session, found.entry, limit=6),
            classes=_classes(service, session, found.entry),
            attacks=external.newest_attacks(session, entry_id, limit=_ATTACKS_SHOWN),
            example_shape=external.shape_of_examples(found.entry),
            url=str(request.base_url).rstrip("/"),
        )


def _model_info(entry: Entry) -> str | None:
    """The entry's file as RobustBench would have it; None if it is not exported."""
    return None if robustbench_export.why_not_exported(entry) else robustbench_export.model_info(entry)


@router.get("/entries/{entry_id}/badge.svg")
def badge(request: Request, service: ServiceDep, entry_id: EntryId) -> Response:
    """An SVG badge with the current accuracy; other sites may embed it."""
    with service.database.reading() as session:
        drawn = cards.badge(ranking.get(session, entry_id))
    tag = f'"{hashlib.sha256(drawn.encode()).hexdigest()[:32]}"'
    headers = {"ETag": tag, "Cache-Control": "no-cache", "Cross-Origin-Resource-Policy": "cross-origin"}
    if tag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(drawn, media_type="image/svg+xml", headers=headers)


@router.get("/entries/{entry_id}/card.md")
def model_card(request: Request, service: ServiceDep, entry_id: EntryId) -> Response:
    with service.database.reading() as session:
        found = ranking.get(session, entry_id)
        on = ranking.board(session, found.entry.dataset, found.entry.board)
        url = str(request.base_url).rstrip("/")
        return Response(cards.card(found, on, url), media_type="text/markdown; charset=utf-8")


def _broken(service: Service, session: Session, entry: Entry, **which: Any) -> Broken | None:
    """Broken points from the entry's certificate; None if it has none."""
    return _of_certificate(service, session, entry, lambda path: broken_points(path, **which))


def _classes(service: Service, session: Session, entry: Entry) -> list[ClassView] | None:
    """Accuracies by class; None if the entry has no certificate of an attack."""
    if entry.epsilon is None:
        return None
    return _of_certificate(service, session, entry, lambda path: classes_of(path, DATASETS[entry.dataset]))


def _of_certificate(service: Service, session: Session, entry: Entry, read: Callable[[Path], _T]) -> _T | None:
    sha256 = strongest_certificates.of_entry(session, entry)
    if sha256 is None:
        return None
    try:
        return read(service.store.path(sha256))
    except (NotFound, StoreAway, SafetensorError, OSError) as error:
        # The accuracies are in the database, so the page is shown without the certificate's contents.
        _log.warning("the certificate of entry %d cannot be read (%s)", entry.id, error)
        return None


_Number = Annotated[int | None, Chosen, Query(ge=0, le=MAX_ID)]


@router.get("/entries/{entry_id}/points")
def points(
    *,
    request: Request,
    service: ServiceDep,
    entry_id: EntryId,
    attack: Annotated[str | None, Chosen, Query(max_length=200)] = None,
    label: _Number = None,
    first: _Number = None,
    page: Annotated[int, Query(ge=1, le=100_000)] = 1,
) -> Response:
    with service.database.reading() as session:
        found = ranking.get(session, entry_id).entry
        offset = (page - 1) * _PICTURES_PER_PAGE
        broken = _broken(
            service,
            session,
            found,
            attack=attack,
            label=label,
            first_point=first or 0,
            limit=_PICTURES_PER_PAGE,
            offset=offset,
        )
        if broken is None:
            raise NotFound(f"entry {entry_id} has no certificate to take pictures from")
        turn = request.url.include_query_params
        return render(
            request,
            "points.html",
            entry=found,
            board=ranking.board(session, found.dataset, found.board),
            broken=broken,
            attack=attack,
            label=label,
            first=first,
            earlier=f"?{turn(page=page - 1).query}" if page > 1 else None,
            later=f"?{turn(page=page + 1).query}" if offset + _PICTURES_PER_PAGE < broken.count else None,
        )


@router.post("/entries/{entry_id}/withdrawal")
async def change_withdrawal(request: Request, service: ServiceDep, admin: Admin, entry_id: EntryId) -> Response:
    sent = await sent_fields(request)
    await run_in_threadpool(_change_withdrawal, service, admin, entry_id, sent)
    return redirect(request, f"/entries/{entry_id}")


def _change_withdrawal(service: Service, admin: Principal, entry_id: int, sent: dict[str, str]) -> None:
    with service.database.writing() as session:
        if sent.get("action") == "restore":
            placing.restore(session, entry_id, by=admin.actor)
            return
        try:
            reason = Withdrawal(reason=sent.get("reason", "").strip()).reason
        except ValidationError as error:
            raise Unprocessable("write why the entry is withdrawn, in at most 1000 letters") from error
        placing.withdraw(session, entry_id, reason, by=admin.actor)


@router.post("/entries/{entry_id}/rank")
async def change_rank(request: Request, service: ServiceDep, admin: Admin, entry_id: EntryId) -> Response:
    sent = await sent_fields(request)
    await run_in_threadpool(_restore_rank, service, admin, entry_id, sent.get("note", "").strip())
    return redirect(request, f"/entries/{entry_id}")


def _restore_rank(service: Service, admin: Principal, entry_id: int, sent: str) -> None:
    try:
        note = RankNote(note=sent).note
    except ValidationError as error:
        raise Unprocessable("write why the entry is ranked, in 3 to 1000 letters") from error
    with service.database.writing() as session:
        placing.restore_rank(session, entry_id, note, by=admin.actor)


@router.get("/flags")
def flags(request: Request) -> Response:
    return render(request, "flags.html", kinds=FLAGS, on_clean=ON_CLEAN_BOARDS)


_Compared = Annotated[list[Annotated[int, Field(ge=1, le=MAX_ID)]], Query(alias="entries", min_length=2, max_length=4)]


@router.get("/compare")
def compare(
    request: Request,
    service: ServiceDep,
    chosen: _Compared,
) -> Response:
    return render(request, "compare.html", comparison=comparison_of(service.database, chosen))


@router.post("/compare")
async def measure_transfer(
    request: Request, service: ServiceDep, sender: Sender, background: BackgroundTasks, chosen: _Compared
) -> Response:
    """The form on a comparison: measure how many examples of one entry break another."""
    sent = await sent_fields(request)
    await run_in_threadpool(_measure_transfer, service, sender, sent)
    background.add_task(service.publish_pending)
    return redirect(request, f"/compare?{urlencode([('entries', each) for each in chosen])}#transfers", background)


def _measure_transfer(service: Service, sender: Principal, sent: dict[str, str]) -> None:
    try:
        source = TransferRequest.model_validate({"source": sent.get("source")}).source
        target = TransferRequest.model_validate({"source": sent.get("target")}).source
    except ValidationError as error:
        raise Unprocessable("choose two entries of the comparison with its button") from error
    transfers.request(service.database, source, target, submitter=sender.submitter(None), by=sender.actor)


@router.get("/compare/points")
def compared_points(
    request: Request,
    service: ServiceDep,
    chosen: Annotated[list[Annotated[int, Field(ge=1, le=MAX_ID)]], Query(alias="entries", min_length=2, max_length=2)],
    which: Outcome = "only_second",
    page: Annotated[int, Query(ge=1, le=100_000)] = 1,
) -> Response:
    offset = (page - 1) * _PICTURES_PER_PAGE
    pair = (chosen[0], chosen[1])
    found = shared_points(service.database, service.store, pair, which, offset=offset, limit=_PICTURES_PER_PAGE)
    turn = request.url.include_query_params
    return render(
        request,
        "compared_points.html",
        found=found,
        which=which,
        earlier=f"?{turn(page=page - 1).query}" if page > 1 else None,
        later=f"?{turn(page=page + 1).query}" if offset + _PICTURES_PER_PAGE < found.count else None,
    )


@router.get("/models/{model_id}")
def model(
    request: Request,
    service: ServiceDep,
    model_id: JobId,
    cursor: Annotated[int | None, Query(ge=1, le=MAX_ID)] = None,
) -> Response:
    with service.database.reading() as session:
        found = results.model(session, model_id)
        listed = results.evaluations_of(session, model_id, before_id=cursor, limit=_EVALUATIONS_PER_PAGE + 1)
        shown = listed[:_EVALUATIONS_PER_PAGE]
        evaluations = [(each, placing.why_not_ranked(each), survivor_bars(each)) for each in shown]
        events = jobs.events_after(session, found.train_job_id, 0, limit=100_000) if found.train_job_id else []
        return render(
            request,
            "model.html",
            model=found,
            teacher=teacher_of(session, found),
            has_file=job_files.were_trained_here(session, found.weights_sha256),
            evaluations=evaluations,
            older=f"?cursor={shown[-1].id}" if len(listed) > len(shown) else None,
            is_first_page=cursor is None,
            places=ranking.entries_of(session, model_id),
            curve=curve_of(events),
        )
