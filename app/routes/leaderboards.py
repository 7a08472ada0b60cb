"""Leaderboards, their entries, and the import and export of RobustBench's files."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Path, Query, Request, Response
from fastapi.responses import FileResponse, StreamingResponse
from pydantic import Field

from app.boards import (
    listing,
    placing,
    rank_bands,
    ranking,
    results,
    robustbench,
    robustbench_export,
    strongest_certificates,
)
from app.boards.board_points import Order, board_points
from app.boards.certificates import Picture, classes_of
from app.boards.exports import FORMATS, formats_of, pieces
from app.boards.teachers import teacher_of
from app.boards.views import board_summary, entry_detail, entry_view, evaluation_view, model_view
from app.core.errors import Conflict, NotFound
from app.evidence import compare, external
from app.http.access import Admin, Reader, charge
from app.http.entity_tags import NOT_MODIFIED, not_modified, tagged
from app.http.paging import CURSOR_LENGTH, NumberedCursor, link_next
from app.http.parameters import MAX_ID, BoardPart, EntryId, EntryNumber
from app.http.service import Service, ServiceDep
from app.routes.evaluations import PointNumber, PointPage, certificate_response, picture_response
from gkl.answers import (
    BoardDetail,
    BoardPointsView,
    BoardPointView,
    BoardSummary,
    ClassView,
    ComparisonView,
    EntryDetail,
    EntryView,
    ModelDetail,
    ModelInfoFiles,
    PointView,
    RankNote,
    Withdrawal,
)
from gkl.catalog import DATASETS

router = APIRouter(tags=["leaderboards"])
ExportFormat = Literal["csv", "json", "robustbench", "bibtex", "latex"]

# A comparison costs as much as four pages of points.
_ROWS_OF_A_COMPARISON = 400


@router.get("/leaderboards", summary="List the leaderboards")
def list_leaderboards(service: ServiceDep) -> list[BoardSummary]:
    with service.database.reading() as session:
        return [board_summary(board) for board in ranking.boards(session)]


class _PageOfView(listing.View):
    """A view of a board, a page at a time."""

    limit: int = Field(default=100, ge=1, le=1000)
    """How many entries at most."""

    cursor: str | None = Field(default=None, max_length=CURSOR_LENGTH)
    """`next_cursor` of the previous page, with the same order."""


@router.get(
    "/leaderboards/{dataset}/{threat_model}",
    summary="Read a leaderboard",
    response_model=BoardDetail,
    responses=NOT_MODIFIED,
)
def get_leaderboard(
    *,
    request: Request,
    response: Response,
    service: ServiceDep,
    reader: Reader,
    dataset: BoardPart,
    threat_model: BoardPart,
    query: Annotated[_PageOfView, Query()],
) -> BoardDetail | Response:
    """`threat_model` is the board's name: 'Linf' for the data set's default budget, 'Linf-0.1' for another, 'clean'
    for clean accuracy.

    Filters and order are those of the board's page. Ranks always refer to the whole board. More than 100 entries count
    as more than one request; to get all entries at once, use an export.
    """
    with service.database.reading() as session:
        # Read before the rest: what changes meanwhile must not be cached under the older tag.
        revision = ranking.revision(session, dataset, threat_model)
        headers = tagged(request, revision)
        board = ranking.board(session, dataset, threat_model)
        if (unchanged := not_modified(request, headers)) is not None:
            return unchanged
        charge(service, reader, rows=query.limit)
        view = listing.View.model_validate(query.model_dump(exclude={"limit", "cursor"}))
        found, following = listing.page(session, board, view, limit=query.limit, cursor=query.cursor)
        found = rank_bands.with_bands(found, rank_bands.of_board(session, service.charts, board, revision))
        response.headers.update(headers)
        link_next(request, response, following)
        return BoardDetail(
            **board_summary(board).model_dump(),
            count=listing.count(session, board, view),
            entries=[entry_view(row) for row in found],
            next_cursor=following,
        )


@router.get(
    "/leaderboards/{dataset}/{threat_model}/export/{file_format}",
    summary="Download a leaderboard",
    response_class=Response,
    responses=NOT_MODIFIED
    | {
        200: {
            "content": {
                f.media_type.partition(";")[0]: {"schema": {"type": "object" if "json" in f.media_type else "string"}}
                for f in FORMATS.values()
            },
            "description": "The file.",
        }
    },
)
def export_leaderboard(
    *,
    request: Request,
    service: ServiceDep,
    reader: Reader,
    dataset: BoardPart,
    threat_model: BoardPart,
    file_format: ExportFormat,
    view: Annotated[listing.View, Query()],
) -> Response:
    """Exactly the entries that the page shows for the same query string, in the same order.

    Counts as one request for each 100 entries; as one if its ETag has not changed.
    """
    kind = FORMATS[file_format]
    with service.database.reading() as session:
        revision = ranking.revision(session, dataset, threat_model)
        headers = tagged(request, revision)
        board = ranking.board(session, dataset, threat_model)
        if kind not in formats_of(board).values():
            raise Conflict(f"the board {dataset}/{threat_model} {robustbench_export.NO_CLEAN_FORMAT}; take csv or json")
        if (unchanged := not_modified(request, headers)) is not None:
            return unchanged
        charge(service, reader, rows=listing.count(session, board, view))
        bands = rank_bands.of_board(session, service.charts, board, revision)
    headers |= {
        "Content-Disposition": f'attachment; filename="{dataset}-{threat_model}.{kind.ending}"',
        "X-Content-Type-Options": "nosniff",
    }
    parts = pieces(service.database, board, view, kind, bands)
    return StreamingResponse(parts, media_type=kind.media_type, headers=headers)


@router.get("/leaderboards/{dataset}/{threat_model}/points", summary="List the test images by difficulty")
def get_board_points(
    *,
    request: Request,
    response: Response,
    service: ServiceDep,
    reader: Reader,
    dataset: BoardPart,
    threat_model: BoardPart,
    order: Annotated[Order, Query(description="First the images that most networks get wrong, or that fewest do.")] = (
        "hardest"
    ),
    cursor: Annotated[int, Query(ge=0, le=MAX_ID, description="`next_cursor` of the previous page.")] = 0,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 1000,
) -> BoardPointsView:
    """How many of the ranked networks that were measured here get each test image wrong."""
    charge(service, reader, rows=_ROWS_OF_A_COMPARISON)
    with service.database.reading() as session:
        board = ranking.board(session, dataset, threat_model)
        # One more than requested, to know whether another page follows.
        found = board_points(session, board, order, offset=cursor, limit=limit + 1)
    following = cursor + limit if len(found.listed) > limit else None
    link_next(request, response, following)
    return BoardPointsView(
        entries=found.entry_ids,
        counts=found.counts,
        points=[BoardPointView(index=each.index, lost_by=each.lost_by) for each in found.listed[:limit]],
        next_cursor=following,
    )


@router.get("/compare", summary="Compare entries")
def compare_entries(
    service: ServiceDep,
    reader: Reader,
    chosen: Annotated[
        list[EntryNumber], Query(alias="entries", min_length=2, max_length=4, description="Numbers of 2 to 4 entries.")
    ],
) -> ComparisonView:
    """For each pair of entries on one board, whether one is better than the other; and how their specs differ.

    Entries that were measured here are compared point by point (McNemar's exact test, Tango's interval); entries
    without points, such as imported ones, by their accuracies alone.

    `transfers` says how many adversarial examples of one entry break the other, if that was measured.
    """
    charge(service, reader, rows=_ROWS_OF_A_COMPARISON)
    found = compare.comparison_of(service.database, chosen)
    return ComparisonView(
        entries=[entry_view(row) for row, _ in found.rows],
        pairs=found.pairs,
        differences=found.differences,
        transfers=found.transfers,
    )


@router.get("/entries/{entry_id}", summary="Look at an entry")
def get_entry(
    *,
    request: Request,
    response: Response,
    service: ServiceDep,
    entry_id: EntryId,
    cursor: NumberedCursor = None,
    limit: Annotated[int, Query(ge=1, le=1000, description="How many external attacks at most.")] = 100,
) -> EntryDetail:
    with service.database.reading() as session:
        row = rank_bands.with_band(session, service.charts, ranking.get(session, entry_id))
        attacks = external.attacks_that_held(session, entry_id, after_id=cursor, limit=limit + 1)
        following = attacks[limit - 1].id if len(attacks) > limit else None
        link_next(request, response, following)
        return entry_detail(row, attacks[:limit], following)


@router.get(
    "/entries/{entry_id}/model_info.json",
    summary="Read an entry as RobustBench's model_info",
    response_class=Response,
    responses={
        200: {"content": {"application/json": {"schema": {"type": "object"}}}, "description": "RobustBench's fields."}
    },
)
def get_model_info(service: ServiceDep, entry_id: EntryId) -> Response:
    """An imported file unchanged; results measured here in the same form."""
    with service.database.reading() as session:
        entry = ranking.get(session, entry_id).entry
        if (reason := robustbench_export.why_not_exported(entry)) is not None:
            raise Conflict(f"entry {entry_id} is not exported: it {reason}")
        return Response(robustbench_export.model_info(entry), media_type="application/json")


@router.get(
    "/entries/{entry_id}/certificate",
    summary="Fetch an entry's strongest certificate",
    response_class=FileResponse,
    responses={
        200: {
            "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
            "description": "The safetensors file.",
        }
    },
)
def get_entry_certificate(service: ServiceDep, entry_id: EntryId) -> FileResponse:
    """The evaluation's own, or one with merged external attacks. `gklbench verify FILE --weights W` re-checks it."""
    return certificate_response(service, _certificate(service, entry_id), f"entry-{entry_id}")


@router.get("/entries/{entry_id}/points", summary="List the outcome of each point of an entry")
def get_entry_points(
    service: ServiceDep, reader: Reader, entry_id: EntryId, asked: Annotated[PointPage, Depends()]
) -> list[PointView]:
    """Like the points of an evaluation."""
    return asked.points_of(service, reader, _certificate(service, entry_id))


@router.get("/entries/{entry_id}/classes", summary="How an entry does on each class")
def get_classes(service: ServiceDep, reader: Reader, entry_id: EntryId) -> list[ClassView]:
    """The least robust class first, with the classes that its attacked images were mistaken for."""
    charge(service, reader, rows=_ROWS_OF_A_COMPARISON // 4)
    with service.database.reading() as session:
        entry = ranking.get(session, entry_id).entry
    if entry.epsilon is None:
        raise NotFound(f"entry {entry_id} is on a board without attacks")
    return classes_of(service.store.path(_certificate(service, entry_id)), DATASETS[entry.dataset])


@router.get(
    "/entries/{entry_id}/points/{point}/{which}.png",
    summary="Look at a broken point of an entry",
    response_class=Response,
    responses={
        200: {
            "content": {"image/png": {"schema": {"type": "string", "format": "binary"}}},
            "description": "The picture, a pixel for a pixel.",
        }
    },
)
def get_entry_picture(
    request: Request, service: ServiceDep, entry_id: EntryId, point: PointNumber, which: Picture
) -> Response:
    """Like the pictures of an evaluation, also for points that an external attack broke."""
    return picture_response(request, service, _certificate(service, entry_id), point, which)


def _certificate(service: Service, entry_id: int) -> str:
    with service.database.reading() as session:
        found = strongest_certificates.of_entry(session, ranking.get(session, entry_id).entry)
    if found is None:
        raise NotFound(f"entry {entry_id} has no certificate: it was not measured here, or its verdict is provisional")
    return found


@router.post("/robustbench/imports", summary="Import RobustBench's model_info")
def import_model_info(service: ServiceDep, admin: Admin, body: ModelInfoFiles) -> robustbench.ImportReport:
    """All of the files or none. The same file again changes nothing; irregularities in a file are kept and reported."""
    # A text that is not valid UTF-8 is reported when the file is read.
    files = ((name, text.encode("utf-8", "surrogatepass")) for name, text in body.files.items())
    return robustbench.import_files(service.database, files, by=admin.actor)


@router.post("/entries/{entry_id}/withdrawal", summary="Withdraw an entry")
def withdraw_entry(service: ServiceDep, admin: Admin, entry_id: EntryId, body: Withdrawal) -> EntryView:
    """The entry loses its rank and stays visible, with the reason. Its results do not change."""
    with service.database.writing() as session:
        placing.withdraw(session, entry_id, body.reason, by=admin.actor)
        return entry_view(ranking.get(session, entry_id))


@router.delete("/entries/{entry_id}/withdrawal", summary="Take a withdrawal back")
def restore_entry(service: ServiceDep, admin: Admin, entry_id: EntryId) -> EntryView:
    with service.database.writing() as session:
        placing.restore(session, entry_id, by=admin.actor)
        return entry_view(ranking.get(session, entry_id))


@router.post("/entries/{entry_id}/rank", summary="Rank an entry despite its flags")
def restore_rank_of_entry(service: ServiceDep, admin: Admin, entry_id: EntryId, body: RankNote) -> EntryView:
    """For an entry that has no rank because its flags say that its accuracy is not reliable; the note is shown."""
    with service.database.writing() as session:
        placing.restore_rank(session, entry_id, body.note, by=admin.actor)
        return entry_view(ranking.get(session, entry_id))


@router.get("/models/{model_id}", summary="Look at a model and its evaluations")
def get_model(
    *,
    request: Request,
    response: Response,
    service: ServiceDep,
    model_id: Annotated[int, Path(ge=1, le=MAX_ID)],
    cursor: NumberedCursor = None,
    limit: Annotated[int, Query(ge=1, le=200, description="How many evaluations at most.")] = 50,
) -> ModelDetail:
    with service.database.reading() as session:
        model = results.model(session, model_id)
        found = results.evaluations_of(session, model_id, before_id=cursor, limit=limit + 1)
        following = found[limit - 1].id if len(found) > limit else None
        link_next(request, response, following)
        return ModelDetail(
            **model_view(model, teacher_of(session, model)).model_dump(),
            evaluations=[evaluation_view(each) for each in found[:limit]],
            next_cursor=following,
            entries=[entry_view(row) for row in ranking.entries_of(session, model_id).values()],
        )
