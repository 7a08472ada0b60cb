from __future__ import annotations

from dataclasses import dataclass

import pytest

from app import jobs
from app.db.database import Database
from app.jobs import job_log
from tests.specs import tiny_train_spec


@dataclass
class Log:
    """Of a job, each call in a transaction of its own."""

    database: Database
    job_id: int

    def append(self, text: bytes, *, max_bytes: int = 100_000) -> None:
        with self.database.writing() as session:
            job_log.append(session, self.job_id, text, max_bytes=max_bytes)

    def read(self, offset: int = 0) -> bytes:
        return b"".join(job_log.read(self.database, self.job_id, offset, self.end))

    def tail(self, max_bytes: int) -> str:
        with self.database.reading() as session:
            return job_log.tail(session, self.job_id, max_bytes)

    @property
    def kept(self) -> range:
        with self.database.reading() as session:
            return job_log.kept(session, self.job_id)

    @property
    def end(self) -> int:
        return self.kept.stop


@pytest.fixture
def log(database: Database) -> Log:
    with database.writing() as session:
        ids = [jobs.create(session, tiny_train_spec()).id for _ in range(3)]
    for job_id in (ids[0], ids[2]):
        Log(database, job_id).append(b"another job's\n")
    return Log(database, ids[1])


def test_a_log_is_followed_by_offsets(log: Log) -> None:
    assert (log.read(), log.end, log.tail(100)) == (b"", 0, "")
    log.append(b"first\n")
    seen = log.end
    log.append(b"second\nthi")
    log.append(b"rd\n")
    assert log.read() == b"first\nsecond\nthird\n"
    assert log.read(seen) == b"second\nthird\n"
    assert log.read(log.end) == log.read(10**6) == b""
    assert log.tail(12) == "third\n", "from the start of a line"
    assert log.tail(100) == "first\nsecond\nthird\n"


def test_it_stays_within_its_bound_and_offsets_go_on(log: Log) -> None:
    written = b"".join(b"line %06d\n" % number for number in range(2000))
    for start in range(0, len(written), 12 * 25):
        log.append(written[start : start + 12 * 25], max_bytes=4096)
        assert len(log.kept) <= 4096
    assert log.end == len(written)
    text = log.read()
    head, _, rest = text.partition(b"\n")
    dropped = int(head.split()[3])
    assert head == b"--- the first %d bytes of this log were dropped ---" % dropped
    assert rest == written[dropped:], "up to the end"
    assert rest.startswith(b"line "), "whole lines"
    # One who follows from a place that is still there sees no difference; one from before it starts with that line.
    assert log.read(len(written) - 120) == written[-120:]
    assert log.read(dropped) == written[dropped:]
    assert log.read(10) == text
    assert log.tail(24).encode() == written[-12:]


def test_a_large_piece_is_read_as_it_was_written(log: Log) -> None:
    written = b"".join(b"line %06d of more than one row\n" % number for number in range(20_000))
    log.append(written, max_bytes=10**7)
    assert log.read() == written
    for offset in (1, 16 * 1024, 300_001, len(written) - 1):
        assert log.read(offset) == written[offset:]


def test_one_huge_line_does_not_break_the_bound(log: Log) -> None:
    for _ in range(5):
        log.append(b"x" * 10_000, max_bytes=4096)
        assert len(log.kept) <= 4096
    assert log.end == 50_000
