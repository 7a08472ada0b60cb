"""Uploaded weights: sent whole or in pieces, checked before they are stored, removed when nothing needs them.

A file sent in pieces grows under `uploads` in the data directory, and its length says where to continue: after a broken
connection, or a restart of this service, nothing is sent twice.
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

# Disk space is reserved for an upload if it began, or a byte of it arrived, within this time.
_LATELY = timedelta(minutes=10)
_ASK_AGAIN_SECONDS = 60


# --- in pieces ---------------------------------------------------------------------------------------------------


def begin(service: Service, submitter: str, size_bytes: int) -> PartialUpload:
    """Begin an upload in pieces.

    Raises:
        TooLarge, TooMany: the submitter's quota of stored bytes or of unfinished uploads is exceeded.
        NoRoom: the disk has too little space.
    """
    with service.database.writing() as session:
        quotas.lock_submitter(session, submitter)
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
    """Check, before a piece is written, that the rest of the file fits on the disk.

    It may not, since others may have filled the disk since the last piece.

    Raises:
        NoRoom: the rest of the file does not fit on the disk now.
    """
    with service.database.reading() as session:
        missing = upload.size_bytes - offset(service, upload.id)
        check_room(service, session, missing, apart_from=upload.id)


def check_room(service: Service, session: Session, size_bytes: int, *, apart_from: str | None = None) -> None:
    """Check that the disk has room for these bytes and for the rest of all unfinished uploads.

    Args:
        service: the service.
        session: a session of its database.
        size_bytes: bytes to be written.
        apart_from: the upload that they belong to, which is not counted twice.

    Raises:
        NoRoom: there is not enough room.
    """
    check_disk(service, size_bytes, held_bytes=_held(service, session, apart_from=apart_from))


def check_disk(service: Service, size_bytes: int, *, held_bytes: int = 0) -> None:
    """Check that the disk has room for these bytes, besides `held_bytes` for unfinished uploads.

    Raises:
        NoRoom: there is not enough room.
    """
    if size_bytes > _free_bytes(service) - held_bytes:
        beside = f" besides the {held_bytes} bytes that unfinished uploads still need" if held_bytes else ""
        raise NoRoom(f"the service's disk has no room for {size_bytes} bytes{beside}; try later, or tell its owner")


def _free_bytes(service: Service) -> int:
    service.settings.data_dir.mkdir(parents=True, exist_ok=True)
    return shutil.disk_usage(service.settings.data_dir).free - service.settings.min_free_bytes


def _held(service: Service, session: Session, *, apart_from: str | None = None) -> int:
    """Bytes that active uploads still have to write; a stalled upload reserves nothing."""
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
        # While the file is empty, no byte has arrived; then only the time when the upload began counts.
        if created_at > lately or (pieces.st_size > 0 and pieces.st_mtime > lately_on_disk):
            held += size_bytes - pieces.st_size
    return held


def _check_may_begin(service: Service, session: Session, submitter: str, size_bytes: int) -> None:
    """Check the limits on a submitter's unfinished uploads.

    Raises:
        TooMany: there are too many unfinished uploads, or too many bytes in them.
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
        f"{submitter} has {count(len(open_ones), 'unfinished upload')} of {announced} bytes together, and the limit is "
        f"{most}; finish them, or delete one, such as the one that has waited longest: "
        f"DELETE {settings.root_path}/api/v1/uploads/{open_ones[0].id}",
        retry_after_seconds=_ASK_AGAIN_SECONDS,
    )


def find(session: Session, upload_id: str, submitter: str | None) -> PartialUpload:
    """Find an upload by its id. For an admin `submitter` is None, which finds uploads of all submitters.

    Raises:
        NotFound: there is no such upload, or it is another submitter's.
    """
    found = session.get(PartialUpload, upload_id)
    if found is None or submitter not in (None, found.submitter):
        raise NotFound(f"there is no upload {upload_id}; it is finished, or was idle for too long: begin another")
    return found


def offset(service: Service, upload_id: str) -> int:
    """How many bytes of an unfinished upload have arrived."""
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
        """Append a piece, or nothing of it.

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
    return NoRoom("the service's disk is full; continue this upload later, or tell the service's owner")


@contextmanager
def growing(service: Service, upload_id: str, at: int) -> Iterator[Growing]:
    """Open the file of an upload to append at offset `at`, and lock it against other requests.

    Raises:
        Conflict: another request has locked it, or it is not `at` bytes long.
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
            raise Conflict(f"this upload has {found.size_bytes} bytes; continue at that offset, not at {at}")
        yield found


def touch(database: Database, upload_id: str) -> None:
    """Note that an upload is not idle."""
    with database.writing() as session:
        found = session.get(PartialUpload, upload_id)
        if found is not None:
            found.touched_at = database_now(session)


def give_up(service: Service, upload_id: str) -> None:
    """Delete an unfinished upload and its file."""
    with service.database.writing() as session:
        session.execute(delete(PartialUpload).where(PartialUpload.id == upload_id))
    forget_pieces(service, upload_id)


def forget_pieces(service: Service, upload_id: str) -> None:
    """Delete the file of an upload that has ended."""
    _path(service, upload_id).unlink(missing_ok=True)


def _path(service: Service, upload_id: str) -> Path:
    return _directory(service) / upload_id


def _directory(service: Service) -> Path:
    return service.settings.data_dir.resolve() / "uploads"


# --- what is kept ------------------------------------------------------------------------------------------------


def check_may_fetch(session: Session, sha256: str, submitter: str | None) -> None:
    """Check that a submitter may download weights: their own, or trained here. For an admin `submitter` is None.

    Raises:
        NotFound: they may not, or there are none with this hash. Uploads made while the service was open belong to no
            account.
    """
    sent_by = select(UploadSender.submitter).where(UploadSender.sha256 == sha256)
    senders = set(session.scalars(sent_by))
    if session.get(Upload, sha256) is None or submitter not in (None, *(senders - {ANONYMOUS})):
        raise NotFound(f"no weights with sha256 {sha256} can be fetched: none were trained here, or sent by you")


def remove(session: Session, sha256: str, submitter: str | None) -> None:
    """Remove weights that nothing needs, uploaded or trained; the next cleanup removes their file. For an admin
    `submitter` is None.

    Raises:
        NotFound: the submitter has no weights with this hash.
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
            # Other submitters of the same file keep it.
            return
        raise NotFound(
            f"no weights with sha256 {sha256} were sent or trained here" + (f" by {submitter}" if submitter else "")
        )
    others = senders - {submitter} if submitter is not None else set()
    if not others and sha256 in needed(session, [sha256]):
        raise Conflict("these weights cannot be removed: a job or a measured model needs them")
    if others:
        # The other submitters keep the file.
        session.execute(delete(UploadSender).where(UploadSender.sha256 == sha256, UploadSender.submitter == submitter))
        return
    _forget(session, {sha256})


def needed(session: Session, hashes: list[str]) -> set[str]:
    """Which of these uploads are needed: by an evaluated model, an unfinished job, or a job that may be retried."""
    models = session.scalars(select(Model.weights_sha256).where(Model.weights_sha256.in_(hashes)))
    # A failed job may be retried as long as it has something to resume from.
    kept = select(JobFile.id).where(JobFile.job_id == Job.id, JobFile.kind.in_(NEEDED_BY_A_RETRY)).exists()
    of_jobs = select(Job.weights_sha256).where(Job.weights_sha256.in_(hashes), Job.state.in_(UNFINISHED) | kept)
    return {*models, *(sha256 for sha256 in session.scalars(of_jobs) if sha256 is not None)}


def forget_old(session: Session, after: timedelta) -> None:
    """Remove old uploads that nothing needs."""
    before = database_now(session) - after
    # A job that is just being created with one of them has locked it.
    locked = select(Upload.sha256).where(Upload.created_at < before).with_for_update(skip_locked=True)
    old = session.scalars(locked).all()
    unneeded = set(old) - needed(session, list(old))
    _forget(session, unneeded)
    session.execute(delete(PartialUpload).where(PartialUpload.touched_at < before))


def _forget(session: Session, hashes: set[str]) -> None:
    """Remove uploads, and the files that they were converted to."""
    job_files.forget_converted(session, hashes)
    session.execute(delete(Upload).where(Upload.sha256.in_(hashes)))


def remove_pieces(service: Service, before: float) -> int:
    """Remove files of uploads that have ended or were deleted. Returns how many.

    Args:
        service: the service.
        before: only files last written before this moment of the disk's clock.
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
