"""Types of path parameters, with their bounds."""

from __future__ import annotations

from typing import Annotated

from fastapi import Path
from pydantic import Field

MAX_ID = 2**63 - 1

JobId = Annotated[int, Path(ge=1, le=MAX_ID, description="A job's number.")]
EntryId = Annotated[int, Path(ge=1, le=MAX_ID, description="An entry's number.")]
EntryNumber = Annotated[int, Field(ge=1, le=MAX_ID)]
BoardPart = Annotated[str, Path(max_length=50, pattern=r"^[A-Za-z0-9._-]+$")]
