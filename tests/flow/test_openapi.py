"""A short run of `python benchmarks/openapi.py`: random requests to every operation of the OpenAPI document."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.long
def test_whatever_it_is_sent_it_answers_as_documented() -> None:
    command = [sys.executable, ROOT / "benchmarks" / "openapi.py", "--examples", "4", "--phases", "examples,fuzzing"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    counted = re.search(r"(\d+) requests", done.stdout)
    assert counted is not None
    assert int(counted[1]) >= 100
