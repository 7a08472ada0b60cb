"""Export of RobustBench's `model_info`: the file of an entry, unchanged if it was imported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.db.tables import CLEAN_BOARD, Entry
from gkl.answers import Provenance
from gkl.errors import InvalidInput
from gkl.spec import format_epsilon

NO_CLEAN_FORMAT = "is about clean accuracy, for which RobustBench has no format"


def why_not_exported(entry: Entry) -> str | None:
    """Why an entry is not exported, as the end of a sentence; None if it is."""
    if entry.board == CLEAN_BOARD:
        return NO_CLEAN_FORMAT
    if entry.is_withdrawn:
        return f"was withdrawn ({entry.withdrawn_reason})"
    if entry.is_provisional:
        return "is provisional, an upper bound and not a result; wait for the final one"
    if entry.provenance is Provenance.REPORTED and entry.source is None:
        return "rests on its owner's certificate alone; the network was not evaluated here"
    return None


def model_info(entry: Entry) -> str:
    """The file of an entry: as it was imported, or in the same form with the results measured here."""
    if entry.source is not None:
        return entry.source
    return json.dumps(_described(entry), indent=2, ensure_ascii=False)


def _described(entry: Entry) -> dict[str, Any]:
    info: dict[str, Any] = {
        "link": entry.link,
        "name": entry.name,
        "authors": entry.authors,
        "additional_data": bool(entry.extra_data),
        "number_forward_passes": 1,
        "dataset": entry.dataset,
        "venue": entry.venue,
        "architecture": entry.architecture,
        "eps": None if entry.epsilon is None else format_epsilon(entry.epsilon),
        "clean_acc": _percent(entry.clean_accuracy),
        "reported": "" if entry.reported_accuracy is None else _percent(entry.reported_accuracy),
    }
    if entry.autoattack_accuracy is not None:
        info["autoattack_acc"] = _percent(entry.autoattack_accuracy)
    else:
        info["corruptions_acc"] = _percent(entry.robust_accuracy)
        if entry.robustbench_mean_corruption_error is not None:
            info["corruptions_mce"] = _percent(entry.robustbench_mean_corruption_error)
    if entry.external_accuracy is not None:
        info["external"] = _percent(entry.external_accuracy)
    if entry.footnote:
        info["footnote"] = entry.footnote
    return info | {"unreliable": entry.unreliable}


def _percent(share: float | None) -> str:
    """In percent, rounded as in RobustBench's `update_json`."""
    return "" if share is None else str(round(share * 100, 2))


def export_to(session: Session, directory: Path) -> int:
    """Write <dataset>/<threat model>/<model id>.json for every entry with a final verdict. Returns how many.

    Raises:
        InvalidInput: the directory cannot be written.
    """
    written = 0
    for entry in session.scalars(select(Entry).order_by(Entry.id).execution_options(yield_per=200)):
        if why_not_exported(entry) is not None:
            continue
        path = directory / entry.dataset / entry.board / f"{entry.slug}.json"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(model_info(entry).encode())
        except OSError as error:
            raise InvalidInput(f"{path} cannot be written ({error.strerror}); name a writable folder") from error
        written += 1
    return written
