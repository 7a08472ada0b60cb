"""The evaluation that measures the published weights of an imported entry."""

from __future__ import annotations

import re

from pydantic import ValidationError

from app.boards.names import threat_model_of_board
from app.boards.naming import zoo_name
from app.core.formatting import plain
from app.db.tables import Entry
from gkl.spec import PUBLISHED_WEIGHTS, EvaluateSpec, Evaluation, Publication


def spec_to_measure(entry: Entry) -> EvaluateSpec | None:
    """An evaluation of an imported entry's published weights, for the entry's board.

    None if it was not imported, if the zoo has no model with its id, or if this service cannot run the board's attack.
    """
    architecture = None if entry.source is None else zoo_name(entry.dataset, entry.board, entry.slug)
    if architecture is None:
        return None
    threat_model = threat_model_of_board(entry.dataset, entry.board)
    try:
        return EvaluateSpec(
            name=entry.slug[:100],
            dataset=entry.dataset,
            architecture=architecture,
            weights=PUBLISHED_WEIGHTS,
            evaluation=Evaluation(protocol="corruptions")
            if threat_model is None
            else Evaluation(threat_model=threat_model),
            publication=_publication(entry),
        )
    except ValidationError:
        return None


def _publication(entry: Entry) -> Publication | None:
    """The entry's publication, with each text cut to one line of the allowed length."""
    link = entry.link if re.fullmatch(r"https?://[!-~]{1,480}", entry.link) else None
    try:
        return Publication(
            title=plain(entry.name),
            authors=plain(entry.authors),
            link=link,
            venue=plain(entry.venue),
            extra_data=bool(entry.extra_data),
            synthetic_data=entry.synthetic_data,
            footnote=plain(entry.footnote),
        )
    except ValidationError:
        # Too long, or with hidden characters: the sender has to write it again.
        return None
