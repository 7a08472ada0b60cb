"""Files of weights that somebody sends: whole or in pieces, checked before they are kept, gone when nothing needs them.

In pieces a file grows under `uploads` in the data directory, and how long it is says where to go on: nothing that was
sent is sent again after a connection broke, or after this service was restarted.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from io import FileIO
from pathlib import Path

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from app.accounts import quotas
from app.core.errors import Conflict, NoRoom, NotFound, TooMany
from app.core.formatting import count
from app.db.database import Database, database_now
from app.db.tables import (
    ANONYMOUS,
    NEEDED_BY_A_RETRY,
    UNFINISHED,
    FileKind,
    Job,
    JobFile,
    Model,
    PartialUpload,
    Upload,
    UploadSender,
)
from app.http.service import Service
from app.jobs import job_files, retention
from app.store import disk_now
from gkl.files import is_disk_full

# Room on the disk is held for an upload that began, or of which a byte came, so lately.
_LATELY = timedelta(minutes=10)
_ASK_AGAIN_SECONDS = 60


# --- in pieces ---------------------------------------------------------------------------------------------------


def begin(service: Service, submitter: str, size_bytes: int) -> PartialUpload:
    """Make room for a file that will come in pieces.

    Raises:
        TooLarge, TooMany: more would be kept of the submitter's than may be, or more of theirs is under way.
        NoRoom: the disk has not enough.
    """
    with service.database.writing() as session:
        quotas.take_turn(session, submitter)
        quotas.check_upload_fits(session, submitter, size_bytes)
        _check_may_begin(service, session, submitter, size_bytes)
        check_room(service, session, size_bytes)
        now = database_now(session)
        upload = PartialUpload(
            id=secrets.token_hex(16), submitter=submitter, size_bytes=size_bytes, created_at=now, touched_at=now
        )
        session.add(upload)
    return upload


def check_may_go_on(service: Service, upload: PartialUpload) -> None:
    """Before a piece is written: while nothing came, the room may have gone to others.

    Raises:
        NoRoom: what is missing does not fit on the disk now.
    """
    with service.database.reading() as session:
        missing = upload.size_bytes - offset(service, upload.id)
        check_room(service, session, missing, apart_from=upload.id)


def check_room(service: Service, session: Session, size_bytes: int, *, apart_from: str | None = None) -> None:
    """
    Args:
        service: whose disk.
        session: on its database.
        size_bytes: to be written.
        apart_from: the upload that they belong to.

    Raises:
        NoRoom: it has not enough for them and for what other uploads under way still have to write.
    """
    check_disk(service, size_bytes, held_bytes=_held(service, session, apart_from=apart_from))


def check_disk(service: Service, size_bytes: int, *, held_bytes: int = 0) -> None:
    """
    Raises:
        NoRoom: it has not enough for so many bytes.
    """
    if size_bytes > _free_bytes(service) - held_bytes:
        beside = f" beside the {held_bytes} that are still to come of uploads under way" if held_bytes else ""
        raise NoRoom(f"the service's disk has no room for {size_bytes} bytes{beside}; try later, or tell its owner")


def _free_bytes(service: Service) -> int:
    service.settings.data_dir.mkdir(parents=True, exist_ok=True)
    return shutil.disk_usage(service.settings.data_dir).free - service.settings.min_free_bytes


def _held(service: Service, session: Session, *, apart_from: str | None = None) -> int:
    """Bytes that uploads under way still have to write. Of one that stands still nothing is held."""
    begun = session.execute(
        select(PartialUpload.id, PartialUpload.size_bytes, PartialUpload.created_at).where(
            PartialUpload.sha256.is_(None), PartialUpload.id != (apart_from or "")
        )
    ).all()
    lately = database_now(session) - _LATELY
    lately_on_disk = disk_now(service.settings.data_dir) - _LATELY.total_seconds() if begun else 0
    held = 0
    for upload_id, size_bytes, created_at in begun:
        try:
            pieces = _path(service, upload_id).stat()
        except FileNotFoundError:
            held += size_bytes if created_at > lately else 0
            continue
        # An empty file is one of which no byte has come.
        if created_at > lately or (pieces.st_size > 0 and pieces.st_mtime > lately_on_disk):
            held += size_bytes - pieces.st_size
    return held


def _check_may_begin(service: Service, session: Session, submitter: str, size_bytes: int) -> None:
    """
    Raises:
        TooMany: more of theirs is under way than may be.
    """
    settings = service.settings
    open_ones = session.scalars(
        select(PartialUpload)
        .where(PartialUpload.submitter == submitter, PartialUpload.sha256.is_(None))
        .order_by(PartialUpload.touched_at)
    ).all()
    announced = sum(upload.size_bytes for upload in open_ones)
    if not open_ones:
        return
    is_too_long = announced + size_bytes > settings.max_open_upload_bytes
    if len(open_ones) < settings.max_open_uploads and not is_too_long:
        return
    most = f"{settings.max_open_upload_bytes} bytes" if is_too_long else f"{settings.max_open_uploads} files"
    raise TooMany(
        f"{submitter} has begun to send {count(len(open_ones), 'file')} of {announced} bytes together, and at most "
        f"{most} may be under way; send them to their end, or give one up, as the one that has waited longest: "
        f"DELETE {settings.root_path}/api/v1/uploads/{open_ones[0].id}",
        retry_after_seconds=_ASK_AGAIN_SECONDS,
    )


def find(session: Session, upload_id: str, submitter: str | None) -> PartialUpload:
    """One's own; `submitter` None is an admin, who sees all.

    Raises:
        NotFound: there is none of this name, or it is somebody else's.
    """
    found = session.get(PartialUpload, upload_id)
    if found is None or submitter not in (None, found.submitter):
        raise NotFound(f"there is no upload {upload_id}; it has ended, or was idle for too long: begin another")
    return found


def offset(service: Service, upload_id: str) -> int:
    """How many bytes of one that is not whole are here."""
    try:
        return _path(service, upload_id).stat().st_size
    except FileNotFoundError:
        return 0


class Growing:
    """The file of an upload, while one request holds it."""

    def __init__(self, service: Service, file: FileIO, path: Path) -> None:
        self._service, self._file, self.path = service, file, path
        self.size_bytes = os.fstat(file.fileno()).st_size

    def write(self, piece: bytes) -> None:
        """All of it or nothing.

        Raises:
            NoRoom: the disk is full.
        """
        if len(piece) > _free_bytes(self._service):
            raise _full()
        view = memoryview(piece)
        try:
            while view:
                view = view[self._file.write(view) :]
        except OSError as error:
            with suppress(OSError):
                self._file.truncate(self.size_bytes)
            if not is_disk_full(error):
                raise
            raise _full() from error
        self.size_bytes += len(piece)


def _full() -> NoRoom:
    return NoRoom("the service's disk is full; go on with this upload later, or tell its owner")


@contextmanager
def growing(service: Service, upload_id: str, at: int) -> Iterator[Growing]:
    """The file, to be written on from `at`, kept from others who would write it.

    Raises:
        Conflict: another request holds it, or it is not `at` bytes long.
    """
    path = _path(service, upload_id)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab", buffering=0) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Conflict("another request is sending this upload; wait until it has ended") from error
        found = Growing(service, file, path)
        if at != found.size_bytes:
            raise Conflict(f"this upload has {found.size_bytes} bytes, so that it goes on there, not at {at}")
        yield found


def touch(database: Database, upload_id: str) -> None:
    """It is not idle."""
    with database.writing() as session:
        found = session.get(PartialUpload, upload_id)
        if found is not None:
            found.touched_at = database_now(session)


def give_up(service: Service, upload_id: str) -> None:
    """Forget it, with what there is of it."""
    with service.database.writing() as session:
        session.execute(delete(PartialUpload).where(PartialUpload.id == upload_id))
    forget_pieces(service, upload_id)


def forget_pieces(service: Service, upload_id: str) -> None:
    """Its file, once nothing more will be written."""
    _path(service, upload_id).unlink(missing_ok=True)


def _path(service: Service, upload_id: str) -> Path:
    return _directory(service) / upload_id


def _directory(service: Service) -> Path:
    return service.settings.data_dir.resolve() / "uploads"


# --- what is kept ------------------------------------------------------------------------------------------------


def check_may_fetch(session: Session, sha256: str, submitter: str | None) -> None:
    """
    Raises:
        NotFound: none with this hash were sent, or by others only; `submitter` None is an admin. Nobody is whoever sent
            them while the service was open.
    """
    sent_by = select(UploadSender.submitter).where(UploadSender.sha256 == sha256)
    senders = set(session.scalars(sent_by))
    if session.get(Upload, sha256) is None or submitter not in (None, *(senders - {ANONYMOUS})):
        raise NotFound(f"no weights with sha256 {sha256} can be fetched: none were trained here, or sent by you")


def remove(session: Session, sha256: str, submitter: str | None) -> None:
    """Forget weights that nothing needs, sent or trained; their file goes with the next cleanup. `submitter` None is an
    admin.

    Raises:
        NotFound: none of one's own have this hash.
        Conflict: a job or an entry needs them.
    """
    trained = select(Job).join(JobFile).where(JobFile.sha256 == sha256, JobFile.kind == FileKind.WEIGHTS)
    own = [job for job in session.scalars(trained) if submitter in (None, job.submitter)]
    for job in own:
        retention.remove_weights_of(session, job)
    found = session.get(Upload, sha256, with_for_update=True, populate_existing=True)
    senders = set(session.scalars(select(UploadSender.submitter).where(UploadSender.sha256 == sha256)))
    if found is None or submitter not in (None, *senders):
        if own:
            # What others have sent, even the same, stays theirs.
            return
        raise NotFound(
            f"no weights with sha256 {sha256} were sent or trained here" + (f" by {submitter}" if submitter else "")
        )
    others = senders - {submitter} if submitter is not None else set()
    if not others and sha256 in needed(session, [sha256]):
        raise Conflict("a job or a measured model needs these weights, so that they stay")
    if others:
        # Those keep them.
        session.execute(delete(UploadSender).where(UploadSender.sha256 == sha256, UploadSender.submitter == submitter))
        return
    _forget(session, {sha256})


def needed(session: Session, hashes: list[str]) -> set[str]:
    """Of some uploads those that a measured model has, or a job that has not ended, or may be retried."""
    models = session.scalars(select(Model.weights_sha256).where(Model.weights_sha256.in_(hashes)))
    # A failed job may be retried for as long as it keeps something to go on from.
    kept = select(JobFile.id).where(JobFile.job_id == Job.id, JobFile.kind.in_(NEEDED_BY_A_RETRY)).exists()
    of_jobs = select(Job.weights_sha256).where(Job.weights_sha256.in_(hashes), Job.state.in_(UNFINISHED) | kept)
    return {*models, *(sha256 for sha256 in session.scalars(of_jobs) if sha256 is not None)}


def forget_old(session: Session, after: timedelta) -> None:
    """Weights that nothing needs any more, or ever did."""
    before = database_now(session) - after
    # Locked: a job that is being made with one of them holds it.
    locked = select(Upload.sha256).where(Upload.created_at < before).with_for_update(skip_locked=True)
    old = session.scalars(locked).all()
    unneeded = set(old) - needed(session, list(old))
    _forget(session, unneeded)
    session.execute(delete(PartialUpload).where(PartialUpload.touched_at < before))


def _forget(session: Session, hashes: set[str]) -> None:
    """Also what was made of them."""
    job_files.forget_converted(session, hashes)
    session.execute(delete(Upload).where(Upload.sha256.in_(hashes)))


def remove_pieces(service: Service, before: float) -> int:
    """Files of uploads that have ended or were given up; returns how many.

    Args:
        service: whose.
        before: only those that were last written before this moment of the disk's clock.
    """
    removed = 0
    for path in _directory(service).glob("*"):
        with service.database.reading() as session:
            known = session.get(PartialUpload, path.name)
            is_known = known is not None and known.sha256 is None
        try:
            if not is_known and path.stat().st_mtime < before:
                path.unlink(missing_ok=True)
                removed += 1
        except FileNotFoundError:
            continue
    return removed
