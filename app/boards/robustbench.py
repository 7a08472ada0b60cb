"""Import of RobustBench's `model_info`: JSON files become entries, without loss.

The text of a file is stored unchanged; `robustbench_export` writes it again. Irregularities in it are reported and
shown, never corrected: only the authors may correct a published file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from app.accounts import audit
from app.accounts.audit import Actor
from app.boards.names import board_name, threat_model_of_board
from app.boards.naming import another_slug, architecture_family, imported_parameters, series_and_year
from app.boards.robustbench_export import model_info
from app.core.formatting import hidden_characters
from app.db.database import Database, database_now
from app.db.tables import Entry
from gkl.answers import Anomaly, Provenance
from gkl.catalog import DATASETS
from gkl.errors import InvalidInput
from gkl.spec import Evaluation, ThreatModel, format_epsilon

MAX_FILE_BYTES = 256 * 1024
_MODEL_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,149}")
_BOARDS = ("corruptions", "corruptions_3d")

_ALWAYS = (
    *("link", "name", "authors", "dataset", "venue", "architecture"),
    *("clean_acc", "additional_data", "number_forward_passes", "eps", "reported"),
)
_SOMETIMES = (
    *("autoattack_acc", "external", "unreliable", "footnote"),
    *("corruptions_acc", "corruptions_mce", "corruptions_acc_3d", "corruptions_mce_3d"),
)
_ACCURACIES = ("clean_acc", "autoattack_acc", "external", "reported", "corruptions_acc", "corruptions_acc_3d")
_TEXTS = ("link", "name", "authors", "dataset", "venue", "architecture", "footnote")
_FLAGS = ("additional_data", "unreliable")


class ImportReport(BaseModel):
    """The result of an import."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    added: int = 0
    changed: int = 0
    unchanged: int = 0
    refused: int = 0
    """Files that cannot become an entry; the anomalies say why."""
    anomalies: list[Anomaly] = []


def find_files(path: Path) -> list[Path]:
    """The JSON files of a RobustBench checkout, of its `model_info`, of a folder in it, or a single file.

    Raises:
        InvalidInput: there is none.
    """
    if path.is_file():
        return [path]
    root = path / "model_info" if (path / "model_info").is_dir() else path
    found = sorted(root.rglob("*.json"))
    if not found:
        raise InvalidInput(
            f"there is no .json file under {path}; name RobustBench's model_info, or a folder or file in it"
        )
    return found


def name_of(path: Path) -> str:
    """A file's name in reports and the API: <data set>/<threat model>/<model id>.json."""
    return "/".join(path.resolve().parts[-3:])


def import_files(
    database: Database, files: Iterable[tuple[str, bytes]], *, by: Actor = audit.COMMAND_LINE
) -> ImportReport:
    """Create or update an entry for each file; all of them in one transaction.

    Args:
        database: where the entries are stored.
        files: name (<data set>/<threat model>/<model id>.json) and contents of each.
        by: who imports them, for the audit trail.
    """
    given = list(files)

    def once() -> ImportReport:
        report = ImportReport()
        with database.writing() as session:
            for name, contents in given:
                _import(session, name, contents, report)
            counts = report.model_dump(mode="json", exclude={"anomalies"})
            audit.record(session, by, "robustbench.import", f"{len(given)} files", counts)
        return report

    try:
        return once()
    except IntegrityError:
        # Another transaction added an entry with the same id at the same moment: now it is visible.
        return once()


def _import(session: Session, name: str, contents: bytes, report: ImportReport) -> None:
    place = _place(name)
    if isinstance(place, str):
        report.refused += 1
        report.anomalies.append(Anomaly(file=_text(name)[-300:], field=None, what=place))
        return
    dataset, board, slug = place
    name = f"{dataset}/{board}/{slug}.json"
    found = session.scalars(
        select(Entry).where(Entry.dataset == dataset, Entry.board == board, Entry.slug == slug)
    ).first()
    read = _read(contents)
    if isinstance(read, str):
        report.refused += 1
        report.anomalies.append(Anomaly(file=name, field=None, what=read))
        return
    text, info, twice = read
    if found is not None and found.source is None:
        if found.model is not None and text == model_info(found):
            # The file was exported from here: nothing is new.
            report.unchanged += 1
            return
        # The imported file gets the published id, even if another entry had it first.
        found.slug = another_slug(session, found, slug)
        found.changed_at = database_now(session)
        session.flush()
        found = None
    seen = [(key, "is a duplicate key; the last one counts") for key in twice] + _anomalies(dataset, board, info)
    anomalies = [Anomaly(file=name, field=_text(key)[:100], what=what) for key, what in seen]
    report.anomalies += anomalies
    now = database_now(session)
    entry = found or Entry(dataset=dataset, board=board, slug=slug, created_at=now)
    _fill(entry, info)
    entry.source = text
    noted = [anomaly.model_dump() for anomaly in anomalies]
    if entry.anomalies != noted:
        entry.anomalies = noted
    # This version may read the same file differently than an earlier one.
    if found is not None and not session.is_modified(found):
        report.unchanged += 1
        return
    entry.changed_at = now
    session.add(entry)
    if found is None:
        # So that a second copy of the same file finds this entry.
        session.flush()
        report.added += 1
    else:
        report.changed += 1


def _place(name: str) -> tuple[str, str, str] | str:
    """The data set, board and model id in a file's name; or what is wrong with it."""
    dataset, board, file = ("", "", *name.split("/"))[-3:]
    if dataset not in DATASETS:
        return f"is not in a folder of a known data set ({', '.join(DATASETS)}) and threat model"
    if board not in _BOARDS and not _is_attacked(dataset, board):
        return f"is in a folder {_text(board)[:50]!r} that is not a threat model, such as Linf, L2 or {_BOARDS[0]}"
    slug, dot, ending = file.rpartition(".")
    if (dot, ending) != (".", "json") or not _MODEL_ID.fullmatch(slug):
        return "has a name that is not a model id: letters, digits and ._+- before .json, at most 150"
    return dataset, board, slug


def _is_attacked(dataset: str, board: str) -> bool:
    """Whether this is the name of a board with attacks, in its one valid form: 'Linf-16-510' is not."""
    try:
        threat_model = threat_model_of_board(dataset, board) if len(board) <= 50 else None
        return threat_model is not None and board_name(dataset, Evaluation(threat_model=threat_model)) == board
    except ValueError:
        return False


def _read(contents: bytes) -> tuple[str, dict[str, Any], list[str]] | str:
    """The text, its values and its duplicate keys; or why it cannot be read."""
    if len(contents) > MAX_FILE_BYTES:
        return f"has {len(contents)} bytes, more than the {MAX_FILE_BYTES} of a description"
    twice: list[str] = []

    def take(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key, value in pairs:
            if key in values:
                twice.append(key)
            values[key] = value
        return values

    try:
        text = contents.decode("utf-8")
        info = json.loads(text, object_pairs_hook=take, parse_constant=_no_number)
    except UnicodeDecodeError as error:
        return f"is not UTF-8 text ({error.reason} at byte {error.start})"
    except (ValueError, RecursionError) as error:
        return f"is not JSON ({str(error) or 'nested too deeply'})"
    if not isinstance(info, dict):
        return "is not a JSON object"
    return text, info, twice


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is not part of it")


def _anomalies(dataset: str, board: str, info: dict[str, Any]) -> list[tuple[str, str]]:
    found = [(key, "is missing") for key in _ALWAYS if key not in info]
    usable = _accuracies(info)
    for key, value in info.items():
        what = _anomaly(dataset, board, key, value)
        if what is None and key in _ACCURACIES and usable.get(key) is None and value != "":
            what = f'"{value}" seems to be a fraction; accuracies are in percent, so that it is not used'
        if what is not None:
            found.append((key, what))
        hidden = hidden_characters(f"{key}{_text(value)}")
        if hidden:
            found.append((key, f"has characters that hide or turn round what is shown: {', '.join(hidden[:8])}"))
    accuracy = (
        "corruptions_acc" if board == "corruptions" else "corruptions_acc_3d" if board == "corruptions_3d" else None
    )
    if accuracy is not None and accuracy not in info:
        found.append((accuracy, "is missing, so that it has no rank"))
    elif accuracy is None and not {"autoattack_acc", "external"} & info.keys():
        found.append(("autoattack_acc", "is missing, so that it has no rank"))
    elif accuracy is None and info.get("external") and usable.get("external") is None:
        found.append(("external", "is the number that would rank, so that it has no rank"))
    clean, attacked, external = (usable.get(key) for key in ("clean_acc", "autoattack_acc", "external"))
    if clean is not None and attacked is not None and attacked > clean:
        found.append(("autoattack_acc", f"{info['autoattack_acc']} is above clean_acc {info['clean_acc']}"))
    if external is not None and attacked is not None and external > attacked:
        found.append(("external", f"{info['external']} is above autoattack_acc {info['autoattack_acc']}, and ranks"))
    return found


def _anomaly(dataset: str, board: str, key: str, value: Any) -> str | None:  # noqa: PLR0911 - one question each
    shown = f'"{_text(value)[:80]}"' if isinstance(value, str) else json.dumps(value)[:80]
    if key not in _ALWAYS + _SOMETIMES:
        return "is not a key of RobustBench's"
    if key in _FLAGS:
        return None if isinstance(value, bool) else f"{shown} is neither true nor false"
    if key == "number_forward_passes":
        return None if type(value) is int and value >= 1 else f"{shown} is not a number of passes"
    if key == "eps":
        return _epsilon_anomaly(board, threat_model_of_board(dataset, board), value)
    if key in _TEXTS:
        if key == "footnote" and value is None:
            return None
        if not isinstance(value, str):
            return f"{shown} is not a text"
        if key == "dataset" and value != dataset:
            return f"names {shown} in the folder of {dataset}"
        return f"contains HTML: {shown}" if re.search(r"<[A-Za-z/][^<>]*>", value) else None
    # An accuracy or an error, in percent.
    if key == "reported" and value == "":
        return None
    if not isinstance(value, str):
        return f"{shown} is not a text with a number"
    # An error is relative to AlexNet's and may exceed 100.
    number, wanted = (_number(value), "number") if "mce" in key else (_share(value), "number from 0 to 100")
    if "mce" in key and number is not None and 0 < number <= 1:
        return f"{shown} seems to be a fraction; errors are in percent, so that it is not used"
    return f"{shown} is not a {wanted}" if number is None else None


def _epsilon_anomaly(board: str, threat_model: ThreatModel | None, value: Any) -> str | None:
    shown = json.dumps(value)[:80]
    if threat_model is None and value is None:
        return None
    stated = _epsilon(value)
    if stated is None or not isinstance(value, str):
        return f"{shown} is not a budget as text"
    if threat_model is not None and abs(stated - threat_model.epsilon) > 1e-5 * threat_model.epsilon:
        return f"{shown} is on the board of {threat_model.norm} {format_epsilon(threat_model.epsilon)}"
    return None


def _number(value: Any) -> float | None:
    """A number in plain decimal notation: float() would also accept 'nan', '1e3' and '1_0'."""
    found = isinstance(value, str) and re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,12})?", value)
    return float(value) if found else None


def _accuracies(info: dict[str, Any]) -> dict[str, float]:
    """The usable accuracies, as shares. RobustBench states percent; one that is clearly a fraction is left out.

    '0.26' alone may be a network that the attack breaks. It is taken as a fraction if the clean accuracy is at most 1,
    if it has more than the two decimals that RobustBench rounds to, or if another accuracy of the same attack is a
    hundred times as large.
    """
    shares = {key: share for key in _ACCURACIES if (share := _share(info.get(key))) is not None}

    def is_fraction(key: str) -> bool:
        share = shares[key]
        if not 0 < share <= 0.01:
            return False
        is_clean = key == "clean_acc" or 0 < shares.get("clean_acc", 0) <= 0.01
        others = (other for name, other in shares.items() if name not in (key, "clean_acc"))
        return (
            is_clean
            or len(info[key].partition(".")[2]) > 2
            or any(other > 0.01 and abs(other - 100 * share) <= 0.01 for other in others)
        )

    return {key: share for key, share in shares.items() if not is_fraction(key)}


def _share(value: Any) -> float | None:
    number = _number(value)
    return None if number is None or number > 100 else number / 100


def _epsilon(value: Any) -> float | None:
    # In plain notation, or as `format_epsilon` writes it.
    number = r"[0-9]{1,6}(?:\.[0-9]{1,20})?(?:e[-+]?[0-9]{1,3})?"
    found = isinstance(value, str) and re.fullmatch(rf"({number})(?:/([0-9]{{1,6}}))?", value)
    if not found or float(found[2] or 1) == 0:
        return None
    return float(found[1]) / float(found[2] or 1)


def _text(value: Any) -> str:
    """The value as a text that a database can store: without NUL and lone surrogates."""
    if value is None:
        return ""
    text = value if isinstance(value, str) else json.dumps(value)
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}").encode("utf-8", "replace").decode()


def _fill(entry: Entry, info: dict[str, Any]) -> None:
    """Set what pages show and sort by; an unusable value counts as missing."""
    entry.name = _text(info.get("name")) or entry.slug
    entry.authors, entry.link = _text(info.get("authors")), _text(info.get("link"))
    entry.venue, entry.footnote = _text(info.get("venue")), _text(info.get("footnote"))
    entry.venue_series, entry.year = series_and_year(entry.venue)
    entry.architecture = _text(info.get("architecture"))
    entry.family = architecture_family(entry.architecture)
    entry.num_parameters = imported_parameters(entry.dataset, entry.board, entry.slug, entry.architecture)
    extra, unreliable = info.get("additional_data"), info.get("unreliable")
    entry.extra_data = extra if isinstance(extra, bool) else None
    entry.synthetic_data = "synthetic" in entry.footnote.lower()
    entry.unreliable = unreliable is True
    entry.is_provisional = False
    entry.epsilon = _epsilon(info.get("eps"))
    entry.num_points = DATASETS[entry.dataset].num_test
    usable = _accuracies(info)
    entry.clean_accuracy, entry.reported_accuracy = usable.get("clean_acc"), usable.get("reported")
    entry.autoattack_accuracy = entry.external_accuracy = None
    entry.mean_corruption_error = entry.robustbench_mean_corruption_error = None
    if entry.board in _BOARDS:
        ending = "_3d" if entry.board == "corruptions_3d" else ""
        entry.robust_accuracy = usable.get(f"corruptions_acc{ending}")
        entry.robustbench_mean_corruption_error = _error(info.get(f"corruptions_mce{ending}"))
    else:
        entry.autoattack_accuracy = usable.get("autoattack_acc")
        entry.external_accuracy = usable.get("external")
        # An external accuracy ranks if the file has one. If it cannot be used, no other number may replace it.
        entry.robust_accuracy = entry.external_accuracy if info.get("external") else entry.autoattack_accuracy
    entry.corruptions_3d_accuracy, entry.corruptions_3d_error = figures_in_3d(entry.board, info)
    says_only_the_author = entry.robust_accuracy is None and entry.reported_accuracy is not None
    entry.provenance = Provenance.REPORTED if says_only_the_author else Provenance.IMPORTED


def figures_in_3d(board: str, info: dict[str, Any]) -> tuple[float | None, float | None]:
    """Accuracy and mean error on corruptions in 3D, as shares, of a file on a board of common corruptions.

    A file may have them besides the figures on common corruptions, which decide its rank there.
    """
    if board not in _BOARDS:
        return None, None
    return _accuracies(info).get("corruptions_acc_3d"), _error(info.get("corruptions_mce_3d"))


def _error(value: Any) -> float | None:
    """An error in percent as a share; None if it is clearly a fraction already."""
    error = _number(value)
    return None if error is None or 0 < error <= 1 else error / 100
