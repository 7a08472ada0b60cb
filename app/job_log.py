"""The log of a job's runs: a file that is followed by byte offsets and never grows beyond a bound.

When it would, its older half goes, and a first line says how much went. Offsets count from the first byte that was
ever written, so that a reader who follows goes on where it was.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_CHUNK_BYTES = 64 * 1024
_LONGEST_LINE = 1000
_DROPPED = re.compile(rb"--- the first (\d+) bytes of this log were dropped ---\n")


@dataclass(frozen=True)
class JobLog:
    path: Path
    """May not exist yet."""

    def append(self, text: bytes, *, max_bytes: int) -> None:
        """Add whole lines, or parts of one; drops the older half first if it would grow beyond `max_bytes`."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        piece = max_bytes // 2
        for start in range(0, len(text), piece):
            self._append(text[start : start + piece], max_bytes)

    def end(self) -> int:
        """The offset behind its last byte."""
        start, header, size = self._extent()
        return start + size - header

    def read(self, offset: int = 0, end: int | None = None) -> Iterator[bytes]:
        """From an offset to another, or to what is now the end; from the oldest byte that is left if that is later."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            start, header = _parse_header(file.readline(100))
            size = os.fstat(file.fileno()).st_size
            position = 0 if offset < start or offset == 0 else header + offset - start
            file.seek(min(position, size))
            left = (size if end is None else min(size, header + end - start)) - position
            while left > 0 and (chunk := file.read(min(_CHUNK_BYTES, left))):
                left -= len(chunk)
                yield chunk

    def tail(self, max_bytes: int) -> str:
        """The end of it, from the start of a line."""
        offset = max(0, self.end() - max_bytes)
        text = b"".join(self.read(offset)).decode(errors="replace")
        return text if offset == 0 else text.split("\n", 1)[-1]

    def _append(self, text: bytes, max_bytes: int) -> None:
        if self.path.exists() and self.path.stat().st_size + len(text) > max_bytes:
            self._drop_older_half()
        with self.path.open("ab") as file:
            file.write(text)

    def _extent(self) -> tuple[int, int, int]:
        """Offset of the first byte that is left, size of the line that says so, size of the file."""
        if not self.path.exists():
            return 0, 0, 0
        with self.path.open("rb") as file:
            start, header = _parse_header(file.readline(100))
            return start, header, os.fstat(file.fileno()).st_size

    def _drop_older_half(self) -> None:
        start, header, size = self._extent()
        with self.path.open("rb") as file:
            file.seek(header + (size - header) // 2)
            # To the end of the line, unless it is one of those that never end.
            file.readline(_LONGEST_LINE)
            dropped = start + file.tell() - header
            rest = file.read()
        shorter = self.path.with_suffix(".part")
        shorter.write_bytes(b"--- the first %d bytes of this log were dropped ---\n" % dropped + rest)
        shorter.replace(self.path)


def _parse_header(line: bytes) -> tuple[int, int]:
    match = _DROPPED.fullmatch(line)
    return (int(match[1]), len(line)) if match else (0, 0)
