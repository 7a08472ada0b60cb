"""The code of docs/client.md, run from its beginning to its end against a service with its worker."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from safetensors.torch import save_file

from app.cli.embedded import EmbeddedService
from app.core.settings import Settings
from gkl.files import sha256_of
from gkl.models import build_model
from tests import commands
from tests.cluster import free_port

PAGE = Path(__file__).parents[3] / "docs" / "client.md"
ADDRESS = "http://127.0.0.1:8000"


@pytest.mark.long
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_the_code_of_the_page_runs(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_file(build_model("tiny_cnn", "digits").state_dict(), "weights.safetensors")
    blocks = re.findall(r"^```py\n(.*?)^```", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) == 5
    assert ADDRESS in blocks[0]
    commands.prepare()
    names: dict[str, object] = {}
    with EmbeddedService(settings.model_copy(update={"port": free_port()})) as service:
        for block in blocks:
            exec(block.replace(ADDRESS, service.url), names)
        names["client"].close()  # type: ignore[attr-defined]
    assert len(names["frame"]) == 1  # type: ignore[arg-type]
    assert names["broken"]
    assert sha256_of(Path("certificate.safetensors")) == names["measured"].certificate_sha256  # type: ignore[attr-defined]
