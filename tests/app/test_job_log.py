from __future__ import annotations

from pathlib import Path

from app.job_log import JobLog


def text(log: JobLog, offset: int = 0) -> bytes:
    return b"".join(log.read(offset))


def test_a_log_is_followed_by_offsets(tmp_path: Path) -> None:
    log = JobLog(tmp_path / "logs" / "7.log")
    assert (text(log), log.end(), log.tail(100)) == (b"", 0, "")
    log.append(b"first\n", max_bytes=1000)
    seen = log.end()
    log.append(b"second\nthi", max_bytes=1000)
    log.append(b"rd\n", max_bytes=1000)
    assert text(log) == b"first\nsecond\nthird\n"
    assert text(log, seen) == b"second\nthird\n"
    assert text(log, log.end()) == text(log, 10**6) == b""
    assert log.tail(12) == "third\n", "from the start of a line"
    assert log.tail(100) == "first\nsecond\nthird\n"


def test_it_stays_within_its_bound_and_offsets_go_on(tmp_path: Path) -> None:
    log = JobLog(tmp_path / "7.log")
    written = b"".join(b"line %06d\n" % number for number in range(2000))
    for start in range(0, len(written), 12 * 5):
        log.append(written[start : start + 12 * 5], max_bytes=4096)
        assert log.path.stat().st_size <= 4096 + 100
    assert log.end() == len(written)
    kept = text(log)
    head, _, rest = kept.partition(b"\n")
    dropped = int(head.split()[3])
    assert head == b"--- the first %d bytes of this log were dropped ---" % dropped
    assert rest == written[dropped:], "whole lines, up to the end"
    # One who follows from a place that is still there sees no difference; one from before it starts with that line.
    assert text(log, len(written) - 120) == written[-120:]
    assert text(log, dropped) == written[dropped:]
    assert text(log, 10) == kept


def test_one_huge_line_does_not_break_the_bound(tmp_path: Path) -> None:
    log = JobLog(tmp_path / "7.log")
    for _ in range(5):
        log.append(b"x" * 10_000, max_bytes=4096)
    assert log.path.stat().st_size <= 4096 + 100
    assert log.end() == 50_000
