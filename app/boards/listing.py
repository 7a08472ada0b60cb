"""Boards and the entries on them: what ranks, in which order, and which part of it somebody wants to see."""

from __future__ import annotations

import hashlib
import itertools
import re
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from sqlalchemy import ColumnElement, Text, and_, case, cast, func, not_, or_, select
from sqlalchemy.orm import Session, joinedload

from app.cursors import Key, cursor_of, rows_after, values_of
from app.database import database_now
from app.errors import Conflict, NotFound
from app.tables import Entry, Evaluation, Model
from gkl.answers import Provenance
from gkl.catalog import ARCHITECTURES, DATASETS, LOSS_TITLES, named_so, num_parameters
from gkl.flags import unrankable
from gkl.outcome import Flag, gap
from gkl.spec import PUBLISHED_WEIGHTS, RANKED_PROTOCOLS, Publication, format_epsilon, threat_model_of_board

PAGE_SIZE = 200
_MANY = 1000
# As many dots as have room beside each other in a chart.
_COLUMNS_OF_DOTS, _ROWS_OF_DOTS = 48, 30


# --- boards ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Board:
    """A ranking of models under one threat model on one data set."""

    dataset: str
    name: str
    num_entries: int

    @property
    def norm(self) -> str | None:
        threat_model = threat_model_of_board(self.dataset, self.name)
        return None if threat_model is None else threat_model.norm

    @property
    def epsilon(self) -> float | None:
        threat_model = threat_model_of_board(self.dataset, self.name)
        return None if threat_model is None else threat_model.epsilon

    @property
    def title(self) -> str:
        dataset = DATASETS[self.dataset].title
        if self.norm is None or self.epsilon is None:
            return f"{dataset}, common corruptions{' in 3D' if self.name == 'corruptions_3d' else ''}"
        return f"{dataset}, {self.norm} {format_epsilon(self.epsilon)}"


def boards(session: Session) -> list[Board]:
    """The boards that have an entry, by data set and name."""
    rows = session.execute(
        select(Entry.dataset, Entry.board, func.count())
        .group_by(Entry.dataset, Entry.board)
        .order_by(Entry.dataset, Entry.board)
    )
    return [Board(*row) for row in rows]


def board(session: Session, dataset: str, name: str) -> Board:
    """
    Raises:
        NotFound: there is no entry on it yet.
    """
    count = session.scalar(select(func.count()).select_from(Entry).where(Entry.dataset == dataset, Entry.board == name))
    if not count:
        raise NotFound(f"there is no leaderboard {dataset}/{name}; /api/v1/leaderboards lists those there are")
    return Board(dataset, name, count)


def revision(session: Session, dataset: str, name: str) -> str:
    """Another text whenever an entry of the board has changed, in whatever order the changes were committed."""
    is_postgresql = session.get_bind().dialect.name == "postgresql"
    changed = func.extract("epoch", Entry.changed_at) if is_postgresql else Entry.changed_at
    line = cast(Entry.id, Text).concat(" ").concat(cast(changed, Text))
    # One text, made where the rows are: ten times as fast as rows that are fetched.
    lines = (
        select(line.label("line"), Entry.id)
        .where(Entry.dataset == dataset, Entry.board == name)
        .order_by(Entry.id)
        .subquery()
    )
    text = func.aggregate_strings(lines.c.line, "\n")
    if is_postgresql:
        return session.scalar(select(func.md5(text.aggregate_order_by(lines.c.id)))) or ""
    return hashlib.sha256((session.scalar(select(text)) or "").encode()).hexdigest()


# --- from a measurement to an entry ------------------------------------------------------------------------------

_IS_RANKED = and_(Evaluation.is_complete, Evaluation.protocol.in_(RANKED_PROTOCOLS))


def why_not_ranked(evaluation: Evaluation) -> str | None:
    """In words; None if it is, or will be when it is final."""
    if evaluation.protocol == "clean":
        return "clean images only"
    if evaluation.protocol not in RANKED_PROTOCOLS:
        return f"protocol {evaluation.protocol}: not ranked"
    if not evaluation.is_complete:
        return f"{evaluation.num_points} of {DATASETS[evaluation.model.dataset].num_test} points: not ranked"
    return None


def stand(session: Session, model: Model, name: str) -> Entry | None:
    """Give a model its place on a board by what was measured of it; None if nothing there may be ranked.

    A model that was evaluated more than once stands with its lowest robust accuracy: an adversarial example
    that was found once exists, whatever a later run with another seed found. Only a model without a final verdict
    stands with a provisional one.
    """
    _lock(session, model)
    best_known = session.scalars(
        select(Evaluation)
        .where(Evaluation.model_id == model.id, Evaluation.board == name, _IS_RANKED)
        .order_by(Evaluation.is_provisional, Evaluation.robust_accuracy, Evaluation.id)
        .limit(1)
    ).first()
    if best_known is None:
        return None
    now = database_now(session)
    known = select(Entry).where(Entry.model_id == model.id, Entry.board == name)
    # Locked too: somebody's examples may be lowering it in this moment.
    entry = session.scalars(known.with_for_update().execution_options(populate_existing=True)).first()
    if entry is None:
        entry = Entry(dataset=model.dataset, board=name, model_id=model.id, created_at=now, anomalies=[])
        entry.slug = _free_slug(session, model, name, best_known)
        entry.provenance = Provenance.VERIFIED
    _describe(session, entry, model, best_known)
    if entry.evaluation_id != best_known.id:
        # The admin's note was about another verdict.
        entry.rank_note = None
    entry.evaluation_id, entry.changed_at = best_known.id, now
    entry.epsilon, entry.num_points = best_known.epsilon, best_known.num_points
    entry.is_provisional = best_known.is_provisional
    entry.clean_accuracy = best_known.clean_accuracy
    entry.mean_corruption_error = best_known.mean_corruption_error
    entry.robustbench_mean_corruption_error = best_known.robustbench_mean_corruption_error
    entry.robust_accuracy = best_known.robust_accuracy
    if not best_known.corruptions:
        _stand_under_attack(session, entry, best_known)
    judge(entry, best_known)
    session.add(entry)
    session.flush()
    return entry


def _stand_under_attack(session: Session, entry: Entry, evaluation: Evaluation) -> None:
    """AutoAttack's lowest figure, and beside it the lower one that others left: the repair attack, examples sent."""
    lowest = evaluation.robust_accuracy
    assert lowest is not None
    rivals = select(Evaluation).where(
        Evaluation.model_id == evaluation.model_id,
        Evaluation.board == evaluation.board,
        Evaluation.is_provisional.is_(evaluation.is_provisional),
        _IS_RANKED,
    )
    known = [rival.autoattack_accuracy for rival in session.scalars(rivals)]
    autoattack = min(accuracy for accuracy in known if accuracy is not None)
    if entry.external_accuracy is not None:
        lowest = min(lowest, entry.external_accuracy)
    entry.autoattack_accuracy, entry.robust_accuracy = autoattack, lowest
    # It ranks wherever it is known, so that it must not be known where AutoAttack has broken as much.
    entry.external_accuracy = lowest if lowest < autoattack else None


def judge(entry: Entry, evaluation: Evaluation) -> None:
    """Say whether the entry's figure, as it stands now, can be believed."""
    flags = flags_of(entry, evaluation)
    reason = unrankable(flags)
    if _kind(reason) != _kind(entry.unrankable_reason):
        # The admin's note was about another doubt. A further point of the same kind is none: anybody could send one.
        entry.rank_note = None
    entry.unreliable, entry.unrankable_reason = bool(flags), reason


def _kind(reason: str | None) -> str | None:
    return None if reason is None else reason.partition(":")[0]


def flags_of(entry: Entry, evaluation: Evaluation) -> list[Flag]:
    """Those of its evaluation, and what examples that were sent since have added to them."""
    flags = [Flag.model_validate(flag) for flag in evaluation.flags]
    if evaluation.robust_correct is None or entry.robust_accuracy is None:
        return flags
    external = evaluation.robust_correct - round(entry.robust_accuracy * evaluation.num_points)
    found = gap({each.attack: each.broken for each in evaluation.attacks}, evaluation.num_points, external=external)
    return flags if found is None or external <= 0 else [*(flag for flag in flags if flag.name != "gap"), found]


def _lock(session: Session, model: Model) -> None:
    """Whoever changes where a model stands does so in turn, and sees what those before have committed."""
    # Not the stronger lock: an evaluation that another transaction has just added refers to the model.
    session.execute(select(Model.id).where(Model.id == model.id).with_for_update(key_share=True))


def withdraw_bound(session: Session, job_id: int) -> None:
    """Take back the provisional verdict of an evaluation that will not end."""
    bound = session.scalars(
        select(Evaluation).where(Evaluation.job_id == job_id, Evaluation.is_provisional)
    ).one_or_none()
    if bound is None:
        return
    model, name = bound.model, bound.board
    _lock(session, model)
    standing_with = select(Entry).where(Entry.evaluation_id == bound.id).execution_options(populate_existing=True)
    entry = session.scalars(standing_with).one_or_none()
    if entry is not None:
        entry.evaluation_id = None
        session.flush()
    session.delete(bound)
    session.flush()
    if stand(session, model, name) is None and entry is not None:
        session.delete(entry)
        session.flush()


def withdraw(session: Session, entry_id: int, reason: str) -> Entry:
    """Take an entry's rank, for all to see: it stays on its board with the reason, and a new measurement keeps it so.

    Raises:
        NotFound: there is no such entry.
        Conflict: it is withdrawn already.
    """
    entry = _locked(session, entry_id)
    if entry.is_withdrawn:
        raise Conflict(f"entry {entry_id} is withdrawn already: {entry.withdrawn_reason}")
    entry.withdrawn_at = entry.changed_at = database_now(session)
    entry.withdrawn_reason = reason
    session.flush()
    return entry


def restore(session: Session, entry_id: int) -> Entry:
    """Give a withdrawn entry its rank again.

    Raises:
        NotFound: there is no such entry.
        Conflict: it is not withdrawn.
    """
    entry = _locked(session, entry_id)
    if not entry.is_withdrawn:
        raise Conflict(f"entry {entry_id} is not withdrawn")
    entry.withdrawn_at = entry.withdrawn_reason = None
    entry.changed_at = database_now(session)
    session.flush()
    return entry


def restore_rank(session: Session, entry_id: int, note: str) -> Entry:
    """Rank an entry although its flags say that its figure cannot be believed; the note is shown with it.

    Raises:
        NotFound: there is no such entry.
        Conflict: its flags do not bar it.
    """
    entry = _locked(session, entry_id)
    if not entry.is_barred:
        raise Conflict(f"entry {entry_id} is not barred from its rank by its flags")
    if entry.provenance is Provenance.REPORTED:
        raise Conflict(f"entry {entry_id} has no rank to restore: its owner alone has measured it")
    entry.rank_note, entry.changed_at = note, database_now(session)
    session.flush()
    return entry


def _locked(session: Session, entry_id: int) -> Entry:
    entry = session.scalars(select(Entry).where(Entry.id == entry_id).with_for_update()).first()
    if entry is None:
        raise NotFound(f"there is no entry {entry_id}")
    return entry


def add_missing(session: Session) -> None:
    """What earlier versions did not keep of what they measured: entries, and on them RobustBench's mCE."""
    found = session.execute(
        select(Model, Evaluation.board)
        .join(Evaluation.model)
        .outerjoin(Entry, and_(Entry.model_id == Model.id, Entry.board == Evaluation.board))
        .where(_IS_RANKED, Entry.id.is_(None))
        .distinct()
        .order_by(Model.id, Evaluation.board)
    ).all()
    for model, name in found:
        stand(session, model, name)
    corrupted = (
        select(Entry)
        .join(Entry.evaluation)
        .where(
            Entry.dataset == "imagenet",
            Entry.board == "corruptions",
            Entry.robustbench_mean_corruption_error.is_(None),
        )
    )
    for entry in session.scalars(corrupted):
        assert entry.evaluation is not None, "joined"
        entry.robustbench_mean_corruption_error = entry.evaluation.robustbench_mean_corruption_error


def _describe(session: Session, entry: Entry, model: Model, evaluation: Evaluation) -> None:
    publication = _publication(session, model, evaluation)
    architecture = ARCHITECTURES[model.architecture].title
    train_spec = {} if model.train_job is None else model.train_job.spec
    publish(entry, publication, name=model.name, year=model.created_at.year)
    entry.architecture, entry.family = architecture, architecture_family(architecture)
    entry.num_parameters = num_parameters(model.architecture, model.dataset)
    entry.loss = None if model.loss is None else LOSS_TITLES[model.loss]
    entry.synthetic_data = publication.synthetic_data or train_spec.get("synthetic") is not None


def publish(entry: Entry, publication: Publication, *, name: str, year: int) -> None:
    """Say of an entry what its owner wants said; `name` and `year` stand where they say nothing."""
    entry.name = publication.title or name
    entry.authors, entry.link = publication.authors, publication.link or ""
    entry.venue, entry.footnote = publication.venue, publication.footnote
    entry.venue_series, published = series_and_year(publication.venue)
    entry.year = published or year
    entry.extra_data, entry.synthetic_data = publication.extra_data, publication.synthetic_data


def _publication(session: Session, model: Model, evaluation: Evaluation) -> Publication:
    """What was said with the evaluation, else with the training, else with the first evaluation that said something."""
    others = session.scalars(select(Evaluation.manifest).where(Evaluation.model_id == model.id).order_by(Evaluation.id))
    specs = [
        evaluation.manifest.get("spec", {}),
        {} if model.train_job is None else model.train_job.spec,
        *(manifest.get("spec", {}) for manifest in others),
    ]
    said: dict[str, Any] = next((spec["publication"] for spec in specs if spec.get("publication")), {})
    return Publication.model_validate(said)


def _free_slug(session: Session, model: Model, name: str, evaluation: Evaluation) -> str:
    """Of the published weights of RobustBench's zoo it is the id that they have there, if no import has taken it."""
    is_published = evaluation.manifest.get("spec", {}).get("weights") == PUBLISHED_WEIGHTS
    text = model.architecture.rpartition("/")[2] if is_published else model.name
    return free_slug(session, model.dataset, name, text, model.weights_sha256)


def free_slug(session: Session, dataset: str, name: str, text: str, weights_sha256: str) -> str:
    """Of a network's name, for an entry on a board."""
    slug = re.sub(r"[^A-Za-z0-9.-]+", "_", text).strip("._-")[:120] or "model"
    return slug if _is_free(session, dataset, name, slug) else _another(session, dataset, name, slug, weights_sha256)


def another_slug(session: Session, entry: Entry, slug: str) -> str:
    """One for an entry that gives its own to another."""
    weights = entry.model or entry.report
    return _another(session, entry.dataset, entry.board, slug, weights.weights_sha256 if weights else "")


def _another(session: Session, dataset: str, name: str, slug: str, weights_sha256: str) -> str:
    """One that is free on a board, told apart by the weights."""
    slug = f"{slug[:120]}_{weights_sha256[:12]}"
    numbers = (slug if number == 1 else f"{slug}_{number}" for number in itertools.count(1))
    return next(each for each in numbers if _is_free(session, dataset, name, each))


def _is_free(session: Session, dataset: str, name: str, slug: str) -> bool:
    taken = select(Entry.id).where(Entry.dataset == dataset, Entry.board == name, Entry.slug == slug)
    return session.scalar(taken) is None


_YEAR = re.compile(r"\b(?:19|20)\d\d\b")
_TAG = re.compile(r"<[^<>]*>")
# The longer name before the one that is a part of it.
_FAMILIES = "WideResNet PreActResNet ResNeXt ResNeSt ResNet ConvNeXt DenseNet EfficientNet BinaryNet XCiT DeiT Swin ViT"
_KNOWN_FAMILIES = (*_FAMILIES.split(), "SmallCNN", "TinyCNN", "CNN", "VGG")


def series_and_year(venue: str) -> tuple[str, int | None]:
    """
    >>> series_and_year("NeurIPS 2021"), series_and_year("GitHub,<br>Sep 2019"), series_and_year("N/A")
    (('NeurIPS', 2021), ('GitHub', 2019), ('N/A', None))
    """
    text = _TAG.sub(" ", venue)
    year = _YEAR.search(text)
    series = re.split(r",|\b(?:19|20)\d\d\b", text)[0].strip()
    return series, int(year[0]) if year else None


def architecture_family(architecture: str) -> str:
    """
    >>> architecture_family("WideResNet-28-10"), architecture_family("ResNet-152 + WideResNet-70-16")
    ('WideResNet', 'mixture')
    >>> architecture_family("MeanSparse RaWideResNet-70-16"), architecture_family("XCiT-L12")
    ('WideResNet', 'XCiT')
    """
    if "+" in architecture:
        return "mixture"
    lowered = architecture.lower()
    return next((family for family in _KNOWN_FAMILIES if family.lower() in lowered), "other")


def zoo_name(dataset: str, board: str, slug: str) -> str | None:
    """How a spec names the definition of RobustBench's zoo that has this model id on this board; None if none has.

    >>> zoo_name("cifar10", "Linf", "Carmon2019Unlabeled"), zoo_name("cifar10", "Linf-4-255", "Carmon2019Unlabeled")
    ('cifar10/Linf/Carmon2019Unlabeled', None)
    """
    name = f"{dataset}/{board}/{slug}"
    return name if name in ARCHITECTURES else None


def imported_parameters(dataset: str, board: str, slug: str, architecture: str) -> int | None:
    """Of a network that RobustBench describes: by its model id in the zoo, else by what its architecture is called.

    None where the name does not say which network it is.
    """
    known = zoo_name(dataset, board, slug) or named_so(architecture, dataset)
    return None if known is None else num_parameters(known, dataset)


# --- a view of a board -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Column:
    """Something that a board can show of its entries."""

    title: str
    by: ColumnElement[Any] | Any
    """What it is sorted by; None where it cannot be."""
    falls: bool = False
    """Whether the largest come first."""
    is_number: bool = False
    only: Literal["attacks", "corruptions"] | None = None
    """The kind of boards that have it."""

    @property
    def is_sortable(self) -> bool:
        return self.by is not None


_DATA_ORDER = case((Entry.extra_data.is_(True), 2), else_=0) + case((Entry.synthetic_data, 1), else_=0)

COLUMNS: dict[str, Column] = {
    "band": Column("Rank band", None, is_number=True, only="attacks"),
    "clean": Column("Clean", Entry.clean_accuracy, falls=True, is_number=True),
    "robust": Column("Robust", Entry.robust_accuracy, falls=True, is_number=True),
    "autoattack": Column("AutoAttack", Entry.autoattack_accuracy, falls=True, is_number=True, only="attacks"),
    "external": Column("External", Entry.external_accuracy, falls=True, is_number=True, only="attacks"),
    "reported": Column("Reported", Entry.reported_accuracy, falls=True, is_number=True),
    "mce": Column("mCE (Hendrycks)", Entry.mean_corruption_error, is_number=True, only="corruptions"),
    "mce_robustbench": Column(
        "mCE (RobustBench)", Entry.robustbench_mean_corruption_error, is_number=True, only="corruptions"
    ),
    "robust_3d": Column("Robust (3D)", Entry.corruptions_3d_accuracy, falls=True, is_number=True, only="corruptions"),
    "mce_3d": Column("mCE (3D)", Entry.corruptions_3d_error, is_number=True, only="corruptions"),
    "architecture": Column("Architecture", Entry.architecture),
    "parameters": Column("Parameters", Entry.num_parameters, is_number=True),
    "data": Column("Extra data", _DATA_ORDER),
    "loss": Column("Loss", Entry.loss),
    "epsilon": Column("Epsilon", Entry.epsilon, is_number=True),
    "venue": Column("Venue", Entry.venue_series),
    "year": Column("Year", Entry.year, falls=True, is_number=True),
    "provenance": Column("Provenance", Entry.provenance),
    "added": Column("Added", Entry.created_at, falls=True),
}
SORT_KEYS = ("rank", "name", *(name for name, column in COLUMNS.items() if column.is_sortable))
USUAL_COLUMNS = (
    *("band", "clean", "robust", "autoattack", "mce", "mce_robustbench", "robust_3d", "mce_3d"),
    *("architecture", "parameters", "data", "venue", "provenance"),
)
_OF_IMAGENET = ("mce_robustbench", "robust_3d", "mce_3d")


class View(BaseModel):
    """Which entries of a board, in which order: the query string of its page, its exports and its API."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    q: str | None = Field(default=None, max_length=200)
    """Words that must all stand in the name, model id, authors, architecture, venue or footnote."""

    family: str | None = Field(default=None, max_length=100)
    """Family of the architecture, such as 'WideResNet'."""

    data: Literal["none", "extra", "synthetic"] | None = None
    """Trained on nothing but the data set, on extra real images, on generated ones."""

    epsilon: str | None = Field(default=None, max_length=32)
    """As an entry states it: '8/255'."""

    venue: str | None = Field(default=None, max_length=200)
    """Without its year: 'NeurIPS'."""

    year: int | None = Field(default=None, ge=1900, le=2999)

    provenance: Provenance | None = None
    """'verified': measured here; 'imported': by RobustBench; 'reported': by the authors alone."""

    unreliable: Literal["yes", "no"] | None = None
    """Whether there is a reason not to trust the number."""

    loss: str | None = Field(default=None, max_length=50)
    """What it was trained with, where that is known: 'GKL'."""

    sort: str = "rank"
    """A column, or 'rank' or 'name'; with '-' before it the other way round."""

    columns: list[str] = Field(default_factory=list, max_length=50)
    """Which to show on the page and in exports; none for the usual ones."""

    @model_validator(mode="before")
    @classmethod
    def _drop_empty(cls, values: Any) -> Any:
        # A form without a script sends an empty text for a choice that was not made.
        if not isinstance(values, dict):
            return values
        if any("\0" in text for text in values.values() if isinstance(text, str)):
            raise ValueError("a view's address holds no NUL; leave it out")
        return {k: v for k, v in values.items() if v not in ("", [""])}

    @field_validator("sort")
    @classmethod
    def _known_key(cls, value: str) -> str:
        if value.removeprefix("-") not in SORT_KEYS:
            raise ValueError(f"must be one of {', '.join(SORT_KEYS)}, with or without '-' before it")
        return value

    @field_validator("columns")
    @classmethod
    def _known_columns(cls, value: list[str]) -> list[str]:
        unknown = [name for name in value if name not in COLUMNS]
        if unknown:
            raise ValueError(f"{unknown[0]!r} is no column; there are {', '.join(COLUMNS)}")
        return [name for name in COLUMNS if name in value]

    @property
    def sort_key(self) -> str:
        return self.sort.removeprefix("-")

    @property
    def is_reversed(self) -> bool:
        return self.sort.startswith("-")

    @property
    def is_filtered(self) -> bool:
        return bool(self.model_dump(exclude={"sort", "columns", "page"}, exclude_none=True))

    def columns_on(self, found: Board) -> list[str]:
        """The columns to show, without those that this kind of board does not have."""
        kind = "corruptions" if found.epsilon is None else "attacks"
        # RobustBench has neither mCE nor corruptions in 3D for other data sets, and the board of those has no others.
        left_out = _OF_IMAGENET if found.dataset != "imagenet" else _OF_IMAGENET[1:] * (found.name != "corruptions")
        usual = [name for name in USUAL_COLUMNS if name not in left_out]
        return [name for name in self.columns or usual if COLUMNS[name].only in (None, kind)]


@dataclass(frozen=True)
class Ranked:
    """An entry in its place; without a rank if it is provisional, withdrawn, barred, or its number is missing."""

    rank: int | None
    entry: Entry
    band: tuple[int, int] | None = None
    """The ranks that it may have, where they were asked for: see `app.rank_bands`."""


# Equal robust accuracy: the higher clean accuracy first, then who was first. What has no number comes last, but for
# entries whose figure cannot be believed and, after them, withdrawn ones.
_BEST_FIRST = (
    Key(Entry.tier, is_optional=False),
    Key(Entry.robust_accuracy, falls=True),
    Key(Entry.clean_accuracy, falls=True),
    Key(Entry.id, is_optional=False),
)
_HAS_RANK = and_(Entry.tier == 0, Entry.robust_accuracy.is_not(None), not_(Entry.is_provisional))


def search(
    session: Session, found: Board, view: View, *, limit: int | None = None, offset: int = 0, cursor: str | None = None
) -> list[Ranked]:
    """The entries of a view in its order, each with its rank on the whole board.

    Args:
        session: to read with.
        found: the board.
        view: which entries, in which order.
        limit: how many at most.
        offset: how many to pass over.
        cursor: of `page`; to begin behind its last entry.

    Raises:
        Unprocessable: the cursor is none of a page in this order.
    """
    return [row for row, _ in _listed(session, found, view, limit=limit, offset=offset, cursor=cursor)]


def page(
    session: Session, found: Board, view: View, *, limit: int, cursor: str | None = None
) -> tuple[list[Ranked], str | None]:
    """As many entries of a view, and the cursor with which the next page begins; None on the last one.

    Raises:
        Unprocessable: the cursor is none of a page in this order.
    """
    listed = _listed(session, found, view, limit=limit + 1, cursor=cursor)
    following = cursor_of(view.sort, listed[limit - 1][1]) if len(listed) > limit else None
    return [row for row, _ in listed[:limit]], following


def _listed(
    session: Session, found: Board, view: View, *, limit: int | None, offset: int = 0, cursor: str | None
) -> list[tuple[Ranked, tuple[Any, ...]]]:
    """Each entry with the values by which it is sorted."""
    keys = _order(view)
    values = [key.by.label(f"key_{number}") for number, key in enumerate(keys)]
    query = select(Entry, *values).where(_is_on(found), *_conditions(view), *_behind(view, cursor))
    rows = session.execute(query.order_by(*_orders(keys)).limit(limit).offset(offset)).all()
    ranks = ranks_of(session, found, [row[0].id for row in rows])
    return [(Ranked(ranks.get(row[0].id), row[0]), tuple(row)[1:]) for row in rows]


def _behind(view: View, cursor: str | None) -> list[ColumnElement[bool]]:
    if cursor is None:
        return []
    keys = _order(view)
    return [rows_after(keys, values_of(cursor, view.sort, keys))]


def ids(session: Session, found: Board, view: View) -> array[int]:
    """Of all entries of a view, in its order."""
    query = select(Entry.id).where(_is_on(found), *_conditions(view)).order_by(*_orders(_order(view)))
    return array("q", session.scalars(query.execution_options(yield_per=1000)))


def with_ids(session: Session, chosen: Sequence[int]) -> dict[int, Entry]:
    """Those of them that there are."""
    return {entry.id: entry for entry in session.scalars(select(Entry).where(Entry.id.in_(list(chosen))))}


def count(session: Session, found: Board, view: View) -> int:
    """How many entries a view has."""
    query = select(func.count()).select_from(Entry).where(_is_on(found), *_conditions(view))
    return session.scalar(query) or 0


@dataclass(frozen=True)
class Point:
    """What charts need of an entry."""

    id: int
    name: str
    slug: str
    clean_accuracy: float
    robust_accuracy: float
    year: int | None
    provenance: Provenance
    extra_data: bool | None
    synthetic_data: bool
    num_parameters: int | None


@dataclass(frozen=True)
class Points:
    """What charts draw of a view."""

    by_accuracy: list[Point]
    """Best first; all of them on the Pareto front are there."""
    by_year: list[Point]
    """Best first; the best one of each year is there."""
    count: int
    """How many the view has, of which these stand for the others if they are fewer."""
    count_with_year: int
    count_of_view: int
    """With those that have no rank or no accuracy."""


def points(session: Session, found: Board, view: View) -> Points:
    """The entries of a view that have both accuracies; provisional ones are left out.

    Of very many only the best of those whose dots would cover each other.
    """
    is_of_view = (_is_on(found), *_conditions(view))
    has_both = and_(_HAS_RANK, Entry.clean_accuracy.is_not(None))
    is_drawn = (*is_of_view, has_both)

    def of_drawn(column: Any) -> ColumnElement[Any]:
        return case((has_both, column))

    clean, robust = of_drawn(Entry.clean_accuracy), of_drawn(Entry.robust_accuracy)
    # With the others counted too: a search reads every entry each time.
    counts = (func.count(), func.count(of_drawn(Entry.id)), func.count(of_drawn(Entry.year)))
    extent = (func.min(clean), func.max(clean), func.min(robust), func.max(robust))
    of_view, total, with_year, *ends = session.execute(select(*counts, *extent).where(*is_of_view)).one()
    if total <= _MANY:
        listed = select(Entry.id).where(*is_drawn).order_by(*_orders(_BEST_FIRST))
        drawn = [(entry_id, True, True) for entry_id in session.scalars(listed)]
    else:
        least_clean, most_clean, least_robust, most_robust = (end or 0.0 for end in ends)
        across = _COLUMNS_OF_DOTS / max(most_clean - least_clean, 1e-9)
        up = _ROWS_OF_DOTS / max(most_robust - least_robust, 1e-9)
        drawn = _best_of_places(
            session, is_drawn, lambda c, r: (int((c - least_clean) * across), int((r - least_robust) * up))
        )
    columns = [getattr(Entry, field.name) for field in fields(Point)]
    rows = session.execute(select(*columns).where(Entry.id.in_([entry_id for entry_id, _, _ in drawn])))
    known = {row[0]: Point(*row) for row in rows}
    return Points(
        by_accuracy=[known[entry_id] for entry_id, is_shown, _ in drawn if is_shown and entry_id in known],
        by_year=[known[entry_id] for entry_id, _, is_shown in drawn if is_shown and entry_id in known],
        count=total,
        count_with_year=with_year,
        count_of_view=of_view,
    )


def _best_of_places(
    session: Session, is_drawn: Sequence[ColumnElement[bool]], place_of: Callable[[float, float], tuple[int, int]]
) -> list[tuple[int, bool, bool]]:
    """Number, and whether it is drawn by its accuracies and by its year, of those that are; best first."""
    columns = (Entry.id, Entry.clean_accuracy, Entry.robust_accuracy, Entry.year)
    listed = select(*columns).where(*is_drawn).order_by(*_orders(_BEST_FIRST)).execution_options(yield_per=1000)
    places: set[tuple[int, int]] = set()
    places_of_years: set[tuple[int, int]] = set()
    most_accurate = -1.0
    drawn: list[tuple[int, bool, bool]] = []
    # Many short steps, each of them cheap: windows over the same rows take the database three times as long.
    # Without the session between: that many rows would take half as long again.
    for entry_id, clean, robust, year in session.connection().execute(listed):
        assert clean is not None, "so it was asked for"
        assert robust is not None, "what has none has no rank"
        place = place_of(clean, robust)
        # On the Pareto front is what is more accurate than all that are more robust.
        by_accuracy = clean > most_accurate or place not in places
        by_year = year is not None and (year, place[1]) not in places_of_years
        if by_accuracy:
            places.add(place)
            most_accurate = max(most_accurate, clean)
        if by_year and year is not None:
            places_of_years.add((year, place[1]))
        if by_accuracy or by_year:
            drawn.append((entry_id, by_accuracy, by_year))
    return drawn


def choices(session: Session, found: Board) -> dict[str, list[Any]]:
    """What a board's entries can be filtered by: for each filter the values there are."""
    options: dict[str, set[Any]] = {name: set() for name in ("family", "venue", "year", "epsilon", "loss")}
    rows = session.execute(
        select(Entry.family, Entry.venue_series, Entry.year, Entry.epsilon, Entry.loss).where(_is_on(found)).distinct()
    )
    for family, venue, year, epsilon, loss in rows:
        known = (family, venue or None, year, None if epsilon is None else format_epsilon(epsilon), loss)
        for name, value in zip(options, known, strict=True):
            if value is not None:
                options[name].add(value)
    return {name: sorted(values, reverse=name == "year") for name, values in options.items()}


def leader(session: Session, found: Board) -> Ranked | None:
    """The first of a board; a provisional one only where there is no final one."""
    first = select(Entry).where(_is_on(found)).order_by(*_orders(_BEST_FIRST)).limit(1)
    ranked = session.scalars(first.where(_HAS_RANK)).first()
    if ranked is not None:
        return Ranked(1, ranked)
    other = session.scalars(first).first()
    return None if other is None else Ranked(None, other)


def count_ranked(session: Session, found: Board) -> int:
    return session.scalar(select(func.count()).select_from(Entry).where(_is_on(found), _HAS_RANK)) or 0


def ranked_figures(session: Session, found: Board) -> list[tuple[int, float, int]]:
    """Entry, robust accuracy and number of test images of each entry with a rank, the first rank first."""
    query = select(Entry.id, Entry.robust_accuracy, Entry.num_points).where(_is_on(found), _HAS_RANK)
    rows = session.execute(query.order_by(*_orders(_BEST_FIRST)))
    return [(entry_id, accuracy, points) for entry_id, accuracy, points in rows if accuracy is not None]


def best_by_year(session: Session, found: Board) -> dict[int, float]:
    """The highest robust accuracy of a board's entries of each year."""
    query = (
        select(Entry.year, func.max(Entry.robust_accuracy))
        .where(_is_on(found), _HAS_RANK, Entry.year.is_not(None), Entry.clean_accuracy.is_not(None))
        .group_by(Entry.year)
        .order_by(Entry.year)
    )
    return {year: best for year, best in session.execute(query) if year is not None and best is not None}


def get(session: Session, entry_id: int) -> Ranked:
    """
    Raises:
        NotFound: there is no such entry.
    """
    options = (
        joinedload(Entry.model),
        joinedload(Entry.report),
        joinedload(Entry.evaluation).selectinload(Evaluation.attacks),
    )
    entry = session.scalars(select(Entry).where(Entry.id == entry_id).options(*options)).first()
    if entry is None:
        raise NotFound(f"there is no entry {entry_id}")
    return Ranked(rank_of(session, entry), entry)


def rank_of(session: Session, entry: Entry) -> int | None:
    return ranks_of(session, Board(entry.dataset, entry.board, 0), [entry.id]).get(entry.id)


def entries_of(session: Session, model_id: int) -> dict[str, Ranked]:
    """A model's place on each board that it is on."""
    found = session.scalars(select(Entry).where(Entry.model_id == model_id).order_by(Entry.board)).all()
    return {entry.board: Ranked(rank_of(session, entry), entry) for entry in found}


def _is_on(found: Board) -> ColumnElement[bool]:
    return and_(Entry.dataset == found.dataset, Entry.board == found.name)


def ranks_of(session: Session, found: Board, chosen: Sequence[int]) -> dict[int, int]:
    """On the whole board, of those of these entries that have one."""
    place = func.row_number().over(order_by=_orders(_BEST_FIRST)).label("rank")
    ranks = select(Entry.id, place).where(_is_on(found), _HAS_RANK).subquery()
    query = select(ranks.c.id, ranks.c.rank)
    if len(chosen) <= _MANY:
        query = query.where(ranks.c.id.in_(list(chosen)))
    rows = session.execute(query.execution_options(yield_per=1000))
    return {entry_id: rank for entry_id, rank in rows}  # noqa: C416 - rows are no pairs to a type checker


def _conditions(view: View) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = []
    for word in (view.q or "").split():
        fields = (Entry.name, Entry.slug, Entry.authors, Entry.architecture, Entry.venue, Entry.footnote)
        conditions.append(or_(*(field.icontains(word, autoescape=True) for field in fields)))
    exact = {Entry.family: view.family, Entry.venue_series: view.venue, Entry.year: view.year, Entry.loss: view.loss}
    conditions += [column == value for column, value in exact.items() if value is not None]
    if view.provenance is not None:
        conditions.append(Entry.provenance == view.provenance)
    if view.unreliable is not None:
        conditions.append(Entry.unreliable.is_(view.unreliable == "yes"))
    if view.data == "extra":
        conditions.append(Entry.extra_data.is_(True))
    elif view.data == "synthetic":
        conditions.append(Entry.synthetic_data.is_(True))
    elif view.data == "none":
        conditions.append(and_(Entry.extra_data.is_(False), Entry.synthetic_data.is_(False)))
    if view.epsilon is not None:
        epsilon = _number(view.epsilon)
        # No entry states something that is no number.
        near = func.abs(Entry.epsilon - epsilon) < 1e-6 * epsilon if epsilon is not None else Entry.id.is_(None)
        conditions.append(near)
    return conditions


_NUMBER = r"[0-9]{1,20}(?:\.[0-9]{1,30})?(?:e[-+]?[0-9]{1,3})?"


def _number(text: str) -> float | None:
    """As `format_epsilon` writes it."""
    found = re.fullmatch(rf"({_NUMBER})(?:/({_NUMBER}))?", text)
    if found is None or float(found[2] or 1) == 0:
        return None
    return float(found[1]) / float(found[2] or 1)


def _order(view: View) -> tuple[Key, ...]:
    if view.sort_key == "rank":
        if not view.is_reversed:
            return _BEST_FIRST
        standing_first, robust, clean, first = _BEST_FIRST
        return (standing_first, *(replace(key, falls=not key.falls) for key in (robust, clean, first)))
    by, falls = (
        (func.lower(Entry.name, type_=Text()), False)
        if view.sort_key == "name"
        else (
            COLUMNS[view.sort_key].by,
            COLUMNS[view.sort_key].falls,
        )
    )
    return (Key(by, falls=falls != view.is_reversed), *_BEST_FIRST)


def _orders(keys: Sequence[Key]) -> list[Any]:
    return [key.order for key in keys]
