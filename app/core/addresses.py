"""Checks of the database's and the broker's address. Error messages never repeat the password in it."""

from __future__ import annotations

import re
from urllib.parse import SplitResult, urlsplit

from sqlalchemy import URL
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

_DRIVERS = ("sqlite", "sqlite+pysqlite", "postgresql", "postgresql+psycopg")
_SQLITE_OPTIONS = {
    *("timeout", "detect_types", "isolation_level", "check_same_thread", "cached_statements", "uri"),
    # Options of the file's URI, if `uri` is given.
    *("mode", "cache", "immutable", "nolock", "psow", "vfs"),
}
_ESCAPE = (
    "if a name or a password has other characters than letters and digits, percent-escape them: "
    "%40 for @, %3A for :, %2F for /, %3F for ?, %23 for #, %25 for %"
)
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_EXAMPLES = {
    "GKLBENCH_DATABASE_URL": "postgresql://user:password@host:5432/name or sqlite:////folder/file.sqlite3",
    "GKLBENCH_BROKER_URL": "redis://:password@host:6379/0",
}


def check_database_url(name: str, text: str) -> None:
    """Check the database's address.

    Raises:
        ValueError: it cannot be parsed, or names a database that the service does not support.
    """
    try:
        url = make_url(text)
        driver = url.drivername
    except (ArgumentError, ValueError, TypeError) as error:
        raise _unreadable(name) from error
    if driver == "postgres":
        raise ValueError(f"{name} begins with postgres://; write postgresql://")
    if driver not in _DRIVERS:
        raise ValueError(f"{name} names the system {driver!r}; supported are postgresql (with psycopg) and sqlite")
    if _has_stray_parts(url, text):
        raise _unreadable(name)
    if driver.startswith("sqlite"):
        _check_sqlite(name, url)


def check_broker_url(name: str, text: str) -> None:
    """Check the broker's address.

    Raises:
        ValueError: it cannot be parsed, or is not the address of a Redis-protocol server.
    """
    if not text.startswith(("redis://", "rediss://")):
        raise ValueError(f"{name} must be the address of a Redis-protocol server: redis://host:6379/0")
    try:
        url = urlsplit(text)
        is_sane = url.port != 0 and _names_a_host(url) and re.fullmatch(r"/?|/[0-9]+", url.path)
    except ValueError as error:
        raise _unreadable(name) from error
    if not is_sane or url.fragment or _BAD_ESCAPE.search(url.netloc):
        raise _unreadable(name)


def _names_a_host(url: SplitResult) -> bool:
    # After an unescaped ? or # in a password, the rest looks like a query or a fragment.
    host = url.hostname or ""
    return re.search(r"[\s@]", host) is None and "@" not in url.query and "\\" not in url.netloc


def _has_stray_parts(url: URL, text: str) -> bool:
    """Whether an unescaped @ or % in the password makes its rest look like the host."""
    authority, _, query = text.partition("://")[2].partition("?")
    options = [option.partition("=")[0] for option in query.split("&")]
    places = (url.host or "", url.database or "" if url.get_backend_name() != "sqlite" else "", *options)
    return (
        any("@" in place for place in places)
        or re.search(r"\s", url.host or "") is not None
        or _BAD_ESCAPE.search(authority) is not None
        or (url.port is not None and not 0 < url.port < 65536)
    )


def _check_sqlite(name: str, url: URL) -> None:
    if url.host or url.username or url.port:
        raise ValueError(
            f"{name} names a host, and SQLite has none: write three slashes before a relative path, four before a full "
            "one"
        )
    if url.database in (None, "", ":memory:"):
        raise ValueError(f"{name} names no file; each process would have a database of its own")
    unknown = sorted(set(url.query) - _SQLITE_OPTIONS)
    if unknown:
        raise ValueError(f"{name} has the option {unknown[0]!r}, which SQLite does not know")


def _unreadable(name: str) -> ValueError:
    return ValueError(f"{name} is not a valid address: write {_EXAMPLES[name]}; {_ESCAPE}")
