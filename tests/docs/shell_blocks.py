"""A page's shell blocks, run in their order by one shell, and what the page shows of their answers.

A block fenced as `sh` is run; `bash` marks one that is only read (an installation, a path of the reader's). A block
fenced as `text` shows the answer of the `sh` block before it: its lines must come in that order, with other numbers,
hashes and times; a line of dots stands for what was left out, and dots at a line's end for its rest.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx2

ROOT = Path(__file__).parents[2]
SHOWN_URL = "http://127.0.0.1:8000"
_FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_MARK = "=-= block"
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_HASH = re.compile(r"\b(?=[0-9a-f]*\d)[0-9a-f]{12,64}\b")


@dataclass
class Block:
    text: str
    shown: list[str] = field(default_factory=list)


def blocks_of(page: Path) -> list[Block]:
    blocks: list[Block] = []
    follows = False
    for language, text in _FENCE.findall(page.read_text(encoding="utf-8")):
        if language == "sh":
            blocks.append(Block(text))
        elif language == "text" and follows:
            blocks[-1].shown += text.splitlines()
        follows = language == "sh" or (follows and language == "text")
    return blocks


def run_page(page: Path, directory: Path, port: int) -> list[str]:
    """What each of the page's blocks answers, run in `directory` with a service on `port`.

    Raises:
        AssertionError: a command fails, or answers otherwise than the page shows.
    """
    blocks = blocks_of(page)
    url = f"http://127.0.0.1:{port}"
    prepare(directory, url)
    script = ["set -euo pipefail"]
    for number, block in enumerate(blocks):
        # After a line of its own: not every answer ends with one.
        script.append(f"printf '\\n{_MARK} {number}\\n'")
        if not starts_service(block):
            script.append(block.text.replace(SHOWN_URL, url))
    done = subprocess.run(
        ["bash", "-c", "\n".join(script)],
        cwd=directory,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    answers = re.split(rf"^{_MARK} \d+\n", done.stdout, flags=re.MULTILINE)[1:]
    for block, answer in zip(blocks, answers, strict=True):
        check_answer(block, answer)
    return answers


def starts_service(block: Block) -> bool:
    return re.search(r"^\S*gklbench up\b", block.text, re.MULTILINE) is not None


def prepare(directory: Path, url: str) -> None:
    """What an installation puts there: the two programs of the pages' commands."""
    programs = directory / ".venv" / "bin"
    programs.mkdir(parents=True, exist_ok=True)
    # The pages leave the address out where it is the usual one.
    gklbench = f"""#!/bin/sh
case "$1" in submit|attack|cancel|retry) set -- "$@" --url {url};; esac
exec {sys.executable} -m app.cli "$@"
"""
    for name, text in (("gklbench", gklbench), ("python", f'#!/bin/sh\nexec {sys.executable} "$@"\n')):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)


def environment() -> dict[str, str]:
    ours = {name: value for name, value in os.environ.items() if not name.startswith("GKLBENCH_")}
    return ours | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "100"}


@contextmanager
def service(directory: Path, port: int, **settings: str) -> Iterator[str]:
    """`gklbench up` as a page's reader starts it, in its directory."""
    url = f"http://127.0.0.1:{port}"
    prepare(directory, url)
    log = directory / "up.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [directory / ".venv/bin/gklbench", "up", "--port", str(port)],
            cwd=directory,
            env=environment() | settings,
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    try:
        until = time.monotonic() + 60
        while not _is_ready(url):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < until, "the service did not start"
            time.sleep(0.2)
        yield url
    finally:
        process.terminate()
        process.wait(timeout=60)


def _is_ready(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/readyz", timeout=5).status_code == 200
    except httpx2.TransportError:
        return False


def check_answer(block: Block, answer: str) -> None:
    lines = iter([_shape(line) for line in answer.splitlines()])
    for shown in block.shown:
        wanted = _shape(shown)
        if wanted in ("", "…"):
            continue
        begins = wanted.removesuffix("…").rstrip() if wanted.endswith("…") else None
        found = any(line == wanted or (begins is not None and line.startswith(begins)) for line in lines)
        assert found, f"the page shows\n{shown}\nwhich is not, at its place, in the answer to\n{block.text}\n{answer}"


def _shape(line: str) -> str:
    """A line without what differs from run to run: workers, durations, hashes, numbers."""
    line = re.sub(r"[\w.-]+/\d+(?=[\"}\]]*$)", "WORKER", line.strip())
    line = re.sub(r"\((?:< )?(?:[\d.]+ (?:h|min|s) ?)+\)", "(TIME)", line)
    return " ".join(_NUMBER.sub("N", _HASH.sub("HASH", line)).split())
