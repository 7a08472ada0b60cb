"""The code of docs/library.md, run from its beginning to its end."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

PAGE = Path(__file__).parents[3] / "docs" / "library.md"


@pytest.mark.usefixtures("short_attacks")
def test_the_code_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```py\n(.*?)^```", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) == 3
    with torch.random.fork_rng():
        torch.manual_seed(0)
        names: dict[str, object] = {}
        for block in blocks:
            exec(block, names)
    assert len(names["frame"]) == 50  # type: ignore[arg-type]
    assert (tmp_path / "certificate.safetensors").stat().st_size > 1000
