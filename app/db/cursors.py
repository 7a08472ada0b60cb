"""Where a page of a list ended, so that the next goes on from there whatever was added or removed meanwhile.

A cursor holds the values by which the last row of a page was sorted, not how many came before it.
"""

from __future__ import annotations

import base64
import binascii
import enum
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, and_, false, or_

from app.core.errors import Unprocessable

_STRANGE = "this cursor belongs to no page of this list in this order; begin again without one"
_LARGEST = 2**63 - 1


@dataclass(frozen=True)
class Key:
    """One of the things that a list is sorted by. What has none comes last, whichever way it is sorted."""

    by: ColumnElement[Any] | Any
    falls: bool = False
    """Whether the largest come first."""
    is_optional: bool = True
    """Whether a row may have none."""

    @property
    def order(self) -> Any:
        order = self.by.desc() if self.falls else self.by.asc()
        return order.nulls_last() if self.is_optional else order

    def is_after(self, value: Any) -> ColumnElement[bool]:
        """Of a row that comes later by this key alone."""
        if value is None:
            return false()
        later: ColumnElement[bool] = self.by < value if self.falls else self.by > value
        return or_(later, self.by.is_(None)) if self.is_optional else later

    def is_same(self, value: Any) -> ColumnElement[bool]:
        same: ColumnElement[bool] = self.by.is_(None) if value is None else self.by == value
        return same

    @property
    def kind(self) -> type:
        """Of its values, as Python has them."""
        kind: type = self.by.type.python_type
        return kind


def rows_after(keys: Sequence[Key], values: Sequence[Any]) -> ColumnElement[bool]:
    """Of the rows behind one that is sorted by these values."""
    ways = [
        and_(*(keys[before].is_same(values[before]) for before in range(number)), key.is_after(value))
        for number, (key, value) in enumerate(zip(keys, values, strict=True))
    ]
    return or_(*ways)


def cursor_of(order: str, values: Sequence[Any]) -> str:
    """
    Args:
        order: what the list is sorted by, in words: a cursor belongs to its order.
        values: of the last row of a page, by each key.
    """
    said = [value.isoformat() if isinstance(value, datetime) else value for value in values]
    return base64.urlsafe_b64encode(json.dumps([order, *said]).encode()).decode().rstrip("=")


def values_of(cursor: str, order: str, keys: Sequence[Key]) -> list[Any]:
    """
    Raises:
        Unprocessable: it is no cursor of a list in this order.
    """
    try:
        said, *values = json.loads(base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True))
        found = [_value(key, value) for key, value in zip(keys, values, strict=True)]
    except (ValueError, TypeError, OverflowError, RecursionError, binascii.Error) as error:
        raise Unprocessable(_STRANGE) from error
    if said != order:
        raise Unprocessable(_STRANGE)
    return found


def _value(key: Key, value: Any) -> Any:
    """One that came from outside: of any other kind the database would refuse it."""
    kind = key.kind
    if value is None and key.is_optional:
        return None
    if issubclass(kind, datetime):
        return datetime.fromisoformat(value).astimezone(UTC)
    if issubclass(kind, enum.Enum):
        return kind(value)
    if kind is float and isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    if kind is int and type(value) is int and abs(value) <= _LARGEST:
        return value
    if kind is str and isinstance(value, str) and "\0" not in value:
        value.encode()
        return value
    raise ValueError(value)
