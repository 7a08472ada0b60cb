"""The code of docs/library.md, run from its beginning to its end."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import gkl
from gkl.models import build_model

PUBLISHED = "cifar10/Linf/Addepalli2022Efficient_RN18"
PAGE = Path(__file__).parents[3] / "docs" / "library.md"


@pytest.mark.usefixtures("short_attacks")
def test_the_code_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    # What RobustBench's drive would have brought.
    published = tmp_path / "models" / f"{PUBLISHED}.pt"
    published.parent.mkdir(parents=True)
    torch.save(build_model(PUBLISHED, "cifar10").state_dict(), published)
    monkeypatch.setenv("GKLBENCH_MODELS_DIR", str(tmp_path / "models"))
    blocks = re.findall(r"^```py\n(.*?)^```", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) == 6
    with torch.random.fork_rng():
        torch.manual_seed(0)
        names: dict[str, object] = {}
        for block in blocks:
            exec(block, names)
    assert len(names["frame"]) == 50  # type: ignore[arg-type]
    published.unlink()
    assert isinstance(names["published"], torch.nn.Module)
    assert isinstance(names["comparison"], gkl.Comparison)
    assert isinstance(names["trained"], gkl.Training)
    assert (tmp_path / "certificate.safetensors").stat().st_size > 1000
