"""Comparing entries: which is better and how sure that is, which points each loses, and how they were trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

import numpy as np

from app.boards import ranking, robust_points, strongest_certificates
from app.boards.certificates import points_of, standing_points
from app.boards.names import BoardKind, kind_of_board
from app.boards.ranking import Board, Ranked
from app.boards.robust_points import Points
from app.core.errors import NotFound, Unprocessable
from app.core.formatting import plain
from app.db.database import Database
from app.db.tables import Entry
from app.evidence import transfers
from app.store import ArtifactStore
from gkl.answers import PairTransferView, PairView, PointView, Provenance, SpecDifference
from gkl.statistics.paired import PairedCounts
from gkl.statistics.unpaired import UnpairedCounts


@dataclass(frozen=True)
class Overlap:
    """Comparison of entries that were measured on the same images, all under attack or all on clean ones."""

    names: list[str]
    num_points: int
    lost: list[int]
    """How many points each loses, in the order of the names."""
    only: list[int]
    """How many points only this entry loses, in the order of the names."""
    all_lose: int
    none_loses: int
    agreement: list[list[float]]
    """Share of points on which two entries agree."""
    examples: list[list[int]]
    """The first few points that only this entry loses, in the order of the names."""
    entry_ids: list[int]
    is_clean: bool
    """Whether these are entries of boards of clean accuracy, which lose the images that they misclassify."""


@dataclass(frozen=True)
class Comparison:
    rows: list[tuple[Ranked, Board]]
    pairs: list[PairView]
    differences: list[SpecDifference]
    overlap: Overlap | None
    without_points: list[str]
    """Names of entries whose points are not stored, or belong to other images."""
    transfers: list[PairTransferView]
    """Transfers of each entry's examples to each other entry."""

    @property
    def shown_transfers(self) -> list[PairTransferView]:
        """Transfers that are measured or can be measured."""
        return [each for each in self.transfers if each.measured or each.job_id or each.can_be_measured]


@dataclass(frozen=True)
class SharedPoint:
    """A point of two entries, with its outcome on each."""

    index: int
    label: int
    sides: tuple[PointView, PointView]


@dataclass(frozen=True)
class SharedPoints:
    rows: tuple[Ranked, Ranked]
    count: int
    """How many points there are of the requested kind; `points` holds one page of them."""
    points: list[SharedPoint]

    @property
    def is_clean(self) -> bool:
        """Whether these are entries of boards of clean accuracy, without attacks."""
        return _kind(self.rows[0].entry) == "clean"


Outcome = Literal["only_first", "only_second", "neither", "both"]
"""Which of two entries gets a point right, under every attack if they were attacked."""

_EXAMPLES = 8
_SURE = 0.05


def comparison_of(database: Database, chosen: list[int]) -> Comparison:
    """Compare the entries with these numbers, in this order.

    Raises:
        NotFound: there is no such entry.
    """
    with database.reading() as session:
        rows = [ranking.get(session, entry_id) for entry_id in dict.fromkeys(chosen)]
        places = [(row, ranking.board(session, row.entry.dataset, row.entry.board)) for row in rows]
        compared = [row.entry for row in rows]
        differences = _differences(compared)
        replayed = transfers.between(session, compared)
        certificates = {
            entry.id: strongest_certificates.of_entry(session, entry) for entry in compared if _has_points(entry)
        }
        points = robust_points.stored_points(
            session, (sha256 for sha256 in certificates.values() if sha256 is not None)
        )
    known = {entry_id: points[sha256] for entry_id, sha256 in certificates.items() if sha256 in points}
    pairs = [pair for first, second in combinations(compared, 2) if (pair := _pair(first, second, known)) is not None]
    overlap, others = _overlap(rows, known)
    return Comparison(places, pairs, differences, overlap, others, replayed)


def _has_points(entry: Entry) -> bool:
    """Whether each point has a single outcome: with corruptions it has none."""
    return _kind(entry) != "corruptions"


def _kind(entry: Entry) -> BoardKind:
    return kind_of_board(entry.dataset, entry.board)


def shared_points(
    database: Database, store: ArtifactStore, pair: tuple[int, int], which: Outcome, *, offset: int, limit: int
) -> SharedPoints:
    """Points that only the first, only the second, neither or both of two entries withstand, in the order of the test
    images.

    Raises:
        NotFound: there is no such entry, or its points are not stored.
        Unprocessable: the entries were measured on different images, or only one of them was attacked.
    """
    with database.reading() as session:
        rows = ranking.get(session, pair[0]), ranking.get(session, pair[1])
        certificates = [strongest_certificates.of_entry(session, row.entry) for row in rows]
    paths = []
    for row, sha256 in zip(rows, certificates, strict=True):
        if sha256 is None or not _has_points(row.entry):
            raise NotFound(f"the points of entry {row.entry.id} are not stored; choose an entry with a certificate")
        paths.append(store.path(sha256))
    if _kind(rows[0].entry) != _kind(rows[1].entry):
        raise Unprocessable("entries: one of these two was attacked and the other was not; choose two of one kind")
    a, b = (standing_points(path) for path in paths)
    if rows[0].entry.dataset != rows[1].entry.dataset or len(a) != len(b):
        raise Unprocessable("entries: these two were measured on different images")
    chosen = {"both": a & b, "only_first": a & ~b, "only_second": ~a & b, "neither": ~a & ~b}[which].nonzero()[0]
    shown = [int(index) for index in chosen[offset : offset + limit]]
    if not shown:
        return SharedPoints(rows, len(chosen), [])
    first, last = shown[0], shown[-1]
    sides = [points_of(path, first=first, limit=last - first + 1)[0] for path in paths]
    points = [
        SharedPoint(index, sides[0][index - first].label, (sides[0][index - first], sides[1][index - first]))
        for index in shown
    ]
    return SharedPoints(rows, len(chosen), points)


def _pair(first: Entry, second: Entry, known: Mapping[int, Points]) -> PairView | None:
    """The comparison of two entries; None if they are on different boards, or one has no accuracy to compare."""
    if (first.dataset, first.board) != (second.dataset, second.board) or not _has_points(first):
        # A mean over corruptions is not a count of points, so these tests do not apply.
        return None
    a, b = known.get(first.id), known.get(second.id)
    if a is not None and b is not None and len(a) == len(b):
        return _paired(first, second, a, b)
    shares = first.ranked_accuracy, second.ranked_accuracy
    if shares[0] is None or shares[1] is None or first.is_provisional or second.is_provisional:
        return None
    counts = UnpairedCounts(
        round(shares[0] * first.num_points), first.num_points, round(shares[1] * second.num_points), second.num_points
    )
    by, names = counts.difference, (plain(first.name), plain(second.name))
    than = f"{'lower' if by < 0 else 'higher'} than {names[1]}'s"
    which = "clean" if _kind(first) == "clean" else "robust"
    headline = f"{names[0]}'s {which} accuracy is {abs(100 * by):.2f} points {than}"
    if counts.p_value >= _SURE:
        headline += ", a difference that is not significant"
    sentence = f"{headline}: {_statistics(counts)}{_reservation(first, second)}"
    empty = dict.fromkeys(("both", "only_first", "only_second", "neither"))
    return _view((first, second), counts, sentence, is_paired=False, points=first.num_points, **empty)


def _paired(first: Entry, second: Entry, a: Points, b: Points) -> PairView:
    table = {
        "both": int((a & b).sum()),
        "only_first": int((a & ~b).sum()),
        "only_second": int((~a & b).sum()),
        "neither": int((~a & ~b).sum()),
    }
    counts = PairedCounts(**table)
    more, names = counts.only_first - counts.only_second, (plain(first.name), plain(second.name))
    loses = "as many" if more == 0 else f"{abs(more)} {'fewer' if more > 0 else 'more'}"
    verb, what = ("misclassifies", "images") if _kind(first) == "clean" else ("loses", "points")
    headline = f"{names[0]} {verb} {loses} of {len(a)} {what} {'as' if more == 0 else 'than'} {names[1]}"
    sentence = f"{headline}: {_statistics(counts)}{_reservation(first, second)}"
    return _view((first, second), counts, sentence, is_paired=True, points=len(a), **table)


def _reservation(*compared: Entry) -> str:
    """Sentences on why the accuracy of one of them may not be reliable."""
    said = []
    for entry in compared:
        name = plain(entry.name)
        if entry.is_withdrawn:
            said.append(f" {name} was withdrawn: {entry.withdrawn_reason}")
        elif entry.is_barred:
            said.append(f" {name} has no rank, since its accuracy is not reliable.")
        elif entry.provenance is Provenance.REPORTED:
            said.append(f" Only its owner has measured {name}.")
    return "".join(said)


def _statistics(counts: PairedCounts | UnpairedCounts) -> str:
    low, high = (100 * end for end in counts.interval)
    is_paired = isinstance(counts, PairedCounts)
    interval, test = ("paired", "exact McNemar p") if is_paired else ("unpaired", "p")
    return (
        f"{100 * counts.difference:+.1f} points (95 % {interval} interval {low:+.1f} to {high:+.1f}), "
        f"{test} = {counts.p_value:.2g}."
    )


def _view(
    pair: tuple[Entry, Entry], counts: PairedCounts | UnpairedCounts, sentence: str, **others: int | bool | None
) -> PairView:
    found = {
        "first_id": pair[0].id,
        "second_id": pair[1].id,
        "sentence": sentence,
        "difference": counts.difference,
        "interval": counts.interval,
        "p_value": counts.p_value,
        "is_told_apart": counts.p_value < _SURE,
    }
    return PairView.model_validate(found | others)


# Fields that do not describe how a network was trained or evaluated.
_NOT_COMPARED = ("kind", "name", "publication", "evaluation", "weights", "weights_key", "dataset")


def _differences(compared: list[Entry]) -> list[SpecDifference]:
    """The fields in which their specs differ: of the evaluations, and of the trainings that ran here."""
    return _differing([dict(_fields_of(entry)) for entry in compared])


def training_differences(specs: list[dict[str, Any]]) -> list[SpecDifference]:
    """The fields in which training specs differ, each with its path: 'objective.kl_weight'."""
    found = _differing([dict(_compared_fields(spec, "train")) for spec in specs])
    return [each.model_copy(update={"field": each.field.removeprefix("train.")}) for each in found]


def _differing(found: list[dict[str, Any]]) -> list[SpecDifference]:
    parts = [{name.partition(".")[0] for name in fields} for fields in found]
    differences = []
    for name in dict.fromkeys(name for fields in found for name in fields):
        # Compare only the specs that have this part.
        known = [fields.get(name) for fields, has in zip(found, parts, strict=True) if name.partition(".")[0] in has]
        if any(value != known[0] for value in known):
            differences.append(SpecDifference(field=name, values=[fields.get(name) for fields in found]))
    return differences


def _fields_of(entry: Entry) -> Iterator[tuple[str, Any]]:
    trained = None if entry.model is None or entry.model.train_job is None else entry.model.train_job.spec
    measured = None
    if entry.evaluation is not None:
        measured = entry.evaluation.manifest.get("spec", {}).get("evaluation")
    elif entry.report is not None:
        measured = entry.report.outcome.get("evaluation")
    for part, spec in (("train", trained), ("evaluate", measured)):
        if isinstance(spec, dict):
            yield from _compared_fields(spec, part)


def _compared_fields(spec: dict[str, Any], part: str) -> Iterator[tuple[str, Any]]:
    return _flat({name: value for name, value in spec.items() if name not in _NOT_COMPARED}, part)


def _flat(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}")
    else:
        yield name, value


def _overlap(rows: list[Ranked], known: Mapping[int, Points]) -> tuple[Overlap | None, list[str]]:
    """The overlap of the entries with comparable points, and the names of the others."""
    first = next((row.entry for row in rows if row.entry.id in known), None)
    same = [
        row
        for row in rows
        if first is not None
        and row.entry.id in known
        and (row.entry.dataset, _kind(row.entry), len(known[row.entry.id]))
        == (first.dataset, _kind(first), len(known[first.id]))
    ]
    others = [row.entry.name for row in rows if row not in same]
    if len(same) < 2:
        return None, others
    withstood = np.stack([known[row.entry.id] for row in same])
    agreement = [[float((a == b).mean()) for b in withstood] for a in withstood]
    only = [~withstood[i] & np.delete(withstood, i, axis=0).all(axis=0) for i in range(len(same))]
    overlap = Overlap(
        names=[row.entry.name for row in same],
        num_points=withstood.shape[1],
        lost=[int((~each).sum()) for each in withstood],
        only=[int(each.sum()) for each in only],
        all_lose=int((~withstood).all(axis=0).sum()),
        none_loses=int(withstood.all(axis=0).sum()),
        agreement=agreement,
        examples=[each.nonzero()[0][:_EXAMPLES].tolist() for each in only],
        entry_ids=[row.entry.id for row in same],
        is_clean=_kind(same[0].entry) == "clean",
    )
    return overlap, others
