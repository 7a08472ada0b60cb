"""The sentence that a command prints for an error before it exits with status 1, in the words of its options."""

from __future__ import annotations

import re
import sys

from app.cli import extras
from app.cli.terminal import CommandError
from app.core.errors import ServiceError
from gkl.client import ClientError, NotTheService, Unreachable
from gkl.errors import GklError

# The client's and the service's messages name parameters by their names in the API.
_OPTION = re.compile(r"query\.([a-z_]+)")
_ARGUMENT = re.compile(r"path\.([a-z_]+)")


def sentence_of(error: Exception) -> str | None:
    """The sentence for an error; None if it is unexpected."""
    if isinstance(error, ModuleNotFoundError):
        return extras.sentence_of(error)
    if isinstance(error, ClientError):
        return _of_client(error)
    if isinstance(error, CommandError | GklError | ServiceError):
        return str(error)
    # If SQLAlchemy was not imported, the error is not one of its errors.
    if "sqlalchemy.exc" in sys.modules and isinstance(error, sys.modules["sqlalchemy.exc"].SQLAlchemyError):
        cause = str(getattr(error, "orig", error)).splitlines()[0]
        return f"the database cannot be used ({cause}); look at GKLBENCH_DATABASE_URL"
    return None


def _of_client(error: ClientError) -> str:
    if isinstance(error, Unreachable):
        return f"{error}; start one with 'gklbench up', or give its address with --url"
    if isinstance(error, NotTheService):
        return f"{error} (--url)" if error.status != 413 else str(error)
    given = [problem.location for problem in error.errors]
    if given in (["url"], ["token"]):
        return f"--{given[0]}: {error}"
    sentence = _OPTION.sub(lambda match: "--" + match[1].replace("_", "-"), str(error))
    return _ARGUMENT.sub(lambda match: match[1].upper(), sentence)
