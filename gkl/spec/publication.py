"""What the owner of a network publishes about it."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, Field

from gkl.spec.common import Spec, one_printable_line


def _web_address(text: str) -> str:
    if not re.fullmatch(r"https?://[!-~]+", text):
        raise ValueError("must be an address that begins with http:// or https://, without spaces")
    return text


_OneLine = Annotated[str, Field(max_length=500), AfterValidator(one_printable_line)]


class Publication(Spec):
    """What a leaderboard says of a model besides its numbers, in the terms of RobustBench's `model_info`."""

    title: _OneLine = ""
    """Of the paper; without one the model's name stands in its place."""

    authors: _OneLine = ""
    """Separated by commas."""

    link: Annotated[str, Field(max_length=500), AfterValidator(_web_address)] | None = None
    """Where the paper or the code is."""

    venue: _OneLine = ""
    """Where it was published, with the year: 'NeurIPS 2025'; 'arXiv, Mar 2025'."""

    extra_data: bool = False
    """Whether it was trained on real images besides the data set's own."""

    synthetic_data: bool = False
    """Whether it was trained on generated images."""

    footnote: _OneLine = ""
