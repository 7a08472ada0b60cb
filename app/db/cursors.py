"""Cursors: a page of a list begins where the previous one ended, even if rows were added or removed meanwhile.

A cursor holds the sort values of a page's last row, not the number of rows before it.
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

_STRANGE = "this cursor does not belong to this list in this order; begin again without a cursor"
_LARGEST = 2**63 - 1


@dataclass(frozen=True)
class Key:
    """A sort key of a list. Rows with a null value come last in both directions."""

    by: ColumnElement[Any] | Any
    falls: bool = False
    """Whether the largest values come first."""
    is_optional: bool = True
    """Whether the value may be null."""

    @property
    def order(self) -> Any:
        order = self.by.desc() if self.falls else self.by.asc()
        return order.nulls_last() if self.is_optional else order

    def is_after(self, value: Any) -> ColumnElement[bool]:
        """A condition for rows that come later by this key alone."""
        if value is None:
            return false()
        later: ColumnElement[bool] = self.by < value if self.falls else self.by > value
        return or_(later, self.by.is_(None)) if self.is_optional else later

    def is_same(self, value: Any) -> ColumnElement[bool]:
        same: ColumnElement[bool] = self.by.is_(None) if value is None else self.by == value
        return same

    @property
    def kind(self) -> type:
        """The Python type of its values."""
        kind: type = self.by.type.python_type
        return kind


def rows_after(keys: Sequence[Key], values: Sequence[Any]) -> ColumnElement[bool]:
    """A condition for rows after the one with these sort values."""
    ways = [
        and_(*(keys[before].is_same(values[before]) for before in range(number)), key.is_after(value))
        for number, (key, value) in enumerate(zip(keys, values, strict=True))
    ]
    return or_(*ways)


def cursor_of(order: str, values: Sequence[Any]) -> str:
    """The cursor of a page's last row.

    Args:
        order: a name of the list's order: a cursor is valid for one order only.
        values: the row's value of each key.
    """
    said = [value.isoformat() if isinstance(value, datetime) else value for value in values]
    return base64.urlsafe_b64encode(json.dumps([order, *said]).encode()).decode().rstrip("=")


def values_of(cursor: str, order: str, keys: Sequence[Key]) -> list[Any]:
    """The sort values in a cursor.

    Raises:
        Unprocessable: it is not a cursor of a list in this order.
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
    """Check the type of a value from outside, since the database would refuse another type."""
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
