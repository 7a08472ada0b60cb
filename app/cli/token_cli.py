"""`gklbench token`: creating, limiting and revoking tokens."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.extras import needs
from app.cli.terminal import DataDir, SettingsError, console, errors, own_database
from app.core import formatting

if TYPE_CHECKING:
    from app.accounts.tokens import Limits
    from gkl.answers import Scope

token_cli = typer.Typer(no_args_is_help=True, help="Who may use the service, and how much of it.")

_JOBS_SHOWN = 10

TokenName = Annotated[str, typer.Option("--name", help="The token's owner: the submitter of jobs sent with it.")]
MaxQueued = Annotated[str | None, typer.Option(help="Jobs that may be queued at once; 'none' for no limit.")]
MaxRunning = Annotated[str | None, typer.Option(help="Jobs that may run at once; 'none' for no limit.")]
GpuHours = Annotated[str | None, typer.Option(help="Hours on workers per day in UTC; 'none' for no limit.")]
UploadGib = Annotated[str | None, typer.Option(help="GiB of stored weights and job files; 'none' for no limit.")]
Requests = Annotated[str | None, typer.Option(help="Requests a minute; 'none' for no limit.")]


@token_cli.command("create")
@needs("server")
def create_token(
    *,
    name: TokenName,
    scopes: Annotated[str, typer.Option(help="read, submit or admin; each includes those before it.")] = "submit",
    expires: Annotated[str, typer.Option(help="Lifetime, such as 90d or 12h; or 'never'.")] = "90d",
    max_queued: MaxQueued = "100",
    max_running: MaxRunning = "none",
    gpu_hours_per_day: GpuHours = "none",
    upload_gib: UploadGib = "50",
    requests_per_minute: Requests = "600",
    data_dir: DataDir = None,
) -> None:
    """Create a token. It is shown only once.

    Example: `gklbench token create --name Ada --scopes submit --expires 90d --max-running 2`
    """
    from app.accounts import tokens  # noqa: PLC0415
    from app.accounts.audit import COMMAND_LINE  # noqa: PLC0415
    from app.accounts.tokens import Limits  # noqa: PLC0415

    asked = (max_queued, max_running, gpu_hours_per_day, upload_gib, requests_per_minute)
    limits = _limits(*asked, known=Limits())
    scope, lifetime = _scope(scopes), _lifetime(expires)
    with own_database(data_dir).writing() as session:
        made, secret = tokens.create(session, name, scope, lifetime=lifetime, limits=limits, by=COMMAND_LINE)
        until = "" if made.expires_at is None else f" until {formatting.when(made.expires_at)} UTC"
    _show_secret(f"Token of {name}, scope {scope}{until}. It is shown only once:", secret)


@token_cli.command("rotate")
@needs("server")
def rotate_token(
    *,
    name: TokenName,
    overlap: Annotated[str, typer.Option(help="How long the old token still works, such as 24h or 0h.")] = "24h",
    data_dir: DataDir = None,
) -> None:
    """Replace a token by a new one with the same scope and limits; the old one expires after a while.

    Example: `gklbench token rotate --name Ada --overlap 24h`
    """
    from app.accounts import tokens  # noqa: PLC0415
    from app.accounts.audit import COMMAND_LINE  # noqa: PLC0415

    with own_database(data_dir).writing() as session:
        _, secret = tokens.rotate(session, name, overlap=_lifetime(overlap) or timedelta(), by=COMMAND_LINE)
    _show_secret(f"New token of {name}; the old one works for {overlap} more. It is shown only once:", secret)


@token_cli.command("revoke")
@needs("server")
def revoke_token(
    *,
    name: TokenName,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask; required without a terminal.")] = False,
    data_dir: DataDir = None,
) -> None:
    """Revoke all tokens and logins of a name at once. Lists their unfinished jobs, which continue, and asks first.

    Example: `gklbench token revoke --name Ada --yes`
    """
    from app.accounts import tokens  # noqa: PLC0415
    from app.accounts.audit import COMMAND_LINE  # noqa: PLC0415

    database = own_database(data_dir)
    with database.reading() as session:
        known = len(tokens.valid(session, name))
        unfinished = tokens.unfinished_jobs(session, name)
    if known:
        console.print(f"{formatting.count(known, 'token')} of {name} would end.", highlight=False, soft_wrap=True)
        console.print(_what_becomes_of(unfinished, name), highlight=False, soft_wrap=True)
        if not (yes or sys.stdin.isatty()):
            raise SettingsError("nothing was revoked: add --yes, since there is no terminal to ask on")
        if not (yes or typer.confirm("Revoke?")):
            raise typer.Exit(1)
    with database.writing() as session:
        count = tokens.revoke(session, name, by=COMMAND_LINE)
    console.print(f"{formatting.count(count, 'token')} of {name} revoked.", highlight=False)


def _what_becomes_of(unfinished: Sequence[int], name: str) -> str:
    if not unfinished:
        return f"No job of {name} is queued or running."
    shown = ", ".join(str(number) for number in unfinished[:_JOBS_SHOWN])
    more = f" and {len(unfinished) - _JOBS_SHOWN} more" if len(unfinished) > _JOBS_SHOWN else ""
    return f"Unfinished jobs of {name} continue: job {shown}{more}. An admin can end one with 'gklbench cancel'."


@token_cli.command("limit")
@needs("server")
def limit_token(
    *,
    name: TokenName,
    max_queued: MaxQueued = None,
    max_running: MaxRunning = None,
    gpu_hours_per_day: GpuHours = None,
    upload_gib: UploadGib = None,
    requests_per_minute: Requests = None,
    data_dir: DataDir = None,
) -> None:
    """Change the limits of a name's tokens at once. Limits that are not given stay.

    Example: `gklbench token limit --name Ada --max-running 4 --gpu-hours-per-day 48`
    """
    from app.accounts import tokens  # noqa: PLC0415
    from app.accounts.audit import COMMAND_LINE  # noqa: PLC0415
    from app.accounts.tokens import Limits  # noqa: PLC0415

    asked = (max_queued, max_running, gpu_hours_per_day, upload_gib, requests_per_minute)
    with own_database(data_dir).writing() as session:
        limits = _limits(*asked, known=tokens.limits_of(session, [name]).get(name, Limits()))
        tokens.change(session, name, limits, by=COMMAND_LINE)
    for what, limit in asdict(limits).items():
        console.print(f"  {what.replace('_', ' ')}: {'no limit' if limit is None else limit}", highlight=False)


@token_cli.command("list")
@needs("server")
def list_tokens(data_dir: DataDir = None) -> None:
    """Show all tokens, by their first characters.

    Example: `gklbench token list`
    """
    from rich.table import Table  # noqa: PLC0415

    from app.accounts import tokens  # noqa: PLC0415

    table = Table("Name", "Token", "Scope", "State", "Expires (UTC)", "Last used (UTC)", box=None)
    with own_database(data_dir).reading() as session:
        valid = {token.id for token in tokens.valid(session)}
        for each in tokens.all_of_them(session):
            state = "valid" if each.id in valid else "revoked" if each.revoked_at is not None else "expired"
            moments = (each.expires_at, each.last_used_at)
            shown = ("-" if moment is None else formatting.when(moment) for moment in moments)
            table.add_row(each.name, f"{each.hint}…", each.scope, state, *shown)
    console.print(table)


def _show_secret(said: str, secret: str) -> None:
    errors.print(said, highlight=False, soft_wrap=True)
    # Only the secret goes to standard output, so that it can be redirected to a file or a variable.
    console.print(secret, markup=False, highlight=False, soft_wrap=True)


def _scope(text: str) -> Scope:
    """The highest of the comma-separated scopes: each includes those before it."""
    from gkl.answers import Scope  # noqa: PLC0415

    named = [word.strip() for word in text.split(",") if word.strip()]
    known = [scope for scope in Scope if scope in named]
    if not known or len(known) != len(set(named)):
        raise SettingsError(f"--scopes is read, submit or admin, or some of them with commas; not {text!r}")
    return known[-1]


def _lifetime(text: str) -> timedelta | None:
    match = re.fullmatch(r"(\d{1,5})([dh])", text)
    if text == "never":
        return None
    if match is None:
        raise SettingsError(f"write a time as days or hours, such as 90d or 12h, not {text!r}")
    return timedelta(**{"days" if match[2] == "d" else "hours": int(match[1])})


def _limits(
    queued: str | None,
    running: str | None,
    gpu_hours: str | None,
    upload_gib: str | None,
    requests: str | None,
    *,
    known: Limits,
) -> Limits:
    """The limits from the options; options that are not given keep the known limits."""
    from app.accounts.tokens import Limits  # noqa: PLC0415

    gib = _number(upload_gib, "upload-gib")
    return Limits(
        queued_jobs=known.queued_jobs if queued is None else _whole(queued, "max-queued"),
        running_jobs=known.running_jobs if running is None else _whole(running, "max-running"),
        gpu_hours_per_day=known.gpu_hours_per_day if gpu_hours is None else _number(gpu_hours, "gpu-hours-per-day"),
        upload_bytes=known.upload_bytes if upload_gib is None else None if gib is None else int(gib * 1024**3),
        requests_per_minute=known.requests_per_minute if requests is None else _whole(requests, "requests-per-minute"),
    )


def _whole(text: str, option: str) -> int | None:
    found = _number(text, option)
    if found is not None and found != int(found):
        raise SettingsError(f"--{option} is a whole number or 'none', not {text!r}")
    return None if found is None else int(found)


def _number(text: str | None, option: str) -> float | None:
    if text in (None, "none"):
        return None
    if not re.fullmatch(r"\d{1,9}(\.\d{1,6})?", text):
        raise SettingsError(f"--{option} is a number or 'none', not {text!r}")
    return float(text)
