"""A data directory that version 0.1 left: this version opens it, shows the same numbers, and goes on with its job."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from app.cli.embedded import EmbeddedService
from app.core.settings import Settings
from gkl.client import Client
from gkl.evaluation import verify
from tests import commands
from tests.cluster import free_port, until
from tests.specs import NO_FILES

LEFT = Path(__file__).parents[3] / "shared" / "cases" / "data-of-0.1.tar.gz"
# From the board and the verdict as that version showed them.
ROBUST = {
    ("Addepalli2021Towards_RN18", "Linf"): 0.5106,
    ("Addepalli2021Towards_WRN34", "Linf"): 0.5804,
    ("Addepalli2022Efficient_RN18", "Linf"): 0.5248,
    ("Addepalli2022Efficient_WRN_34_10", "Linf"): 0.5781,
    ("Addepalli2021Towards_WRN34", "corruptions"): 0.7678,
    ("Addepalli2022Efficient_WRN_34_10", "corruptions"): 0.8012,
}

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not LEFT.exists(), reason="the data directory of version 0.1 is not beside this checkout"),
]


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    with tarfile.open(LEFT) as archive:
        archive.extractall(tmp_path, filter="data")
    settings = Settings(data_dir=tmp_path / "data", port=free_port(), heartbeat_seconds=1.0, relay_seconds=1.0)
    commands.prepare()
    with EmbeddedService(settings) as service, Client(service.url) as client:
        yield client


def test_it_shows_the_same_numbers_and_goes_on(client: Client, tmp_path: Path) -> None:
    boards = {
        (row.model_id, row.threat_model): row.robust.accuracy
        for board in client.boards()
        for row in client.board(board.dataset, board.threat_model)
        if row.robust is not None
    }
    assert boards == pytest.approx(ROBUST)

    measured = client.model(1).evaluations[0]
    assert (measured.clean.correct, measured.robust.correct, measured.robust.points) == (51, 15, 60)  # type: ignore[union-attr]
    certificate = client.certificate(measured, tmp_path / "certificate.safetensors")
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(httpx2.get(f"{client.url}/api/v1/weights/{client.model(1).weights_sha256}/file").content)
    assert verify(certificate, weights, datasets_dir=NO_FILES).problems == []

    def epochs() -> int:
        return max((epoch.epoch for epoch in client.curves(3).epochs), default=0)

    until(lambda: epochs() >= 82)
    known = [epoch.epoch for epoch in client.curves(3).epochs]
    assert known == list(range(1, len(known) + 1)), "none trained twice, none lost"
    assert client.job(3).lost_leases == 0
    client.cancel(3)
    until(lambda: client.job(3).state.is_final)
