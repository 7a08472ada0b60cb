"""Downloads of certificates, also over connections that break."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from gkl.client import Client, ClientError, NotTheService, Unreachable
from tests.servers import limited_proxy

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


def test_a_certificate_is_whole_or_absent(url: str, client: Client, measured: Path, tmp_path: Path) -> None:
    (entry,) = client.board("digits", "Linf")
    assert entry.weights_id is not None
    (evaluation,) = client.model(entry.weights_id).evaluations
    for name, of in (("entry", entry), ("evaluation", evaluation)):
        path = client.certificate(of, tmp_path / "new folder" / name)
        assert path.read_bytes() == measured.read_bytes()
        assert hashlib.sha256(path.read_bytes()).hexdigest() == evaluation.certificate_sha256
    target = tmp_path / "kept"
    target.write_bytes(b"before")
    for fault, kind, said in (
        ({"damages": True}, ClientError, "was damaged on the way"),
        ({"halves": 9}, Unreachable, "no service answers"),
        ({"status": 200}, NotTheService, "is not GKL Bench"),
    ):
        with limited_proxy(url, **fault) as proxy, Client(proxy.url, patience_seconds=0) as through:  # noqa: SIM117
            with pytest.raises(kind, match=said):
                through.certificate(entry, target)
    assert target.read_bytes() == b"before"
    with limited_proxy(url, halves=1) as proxy, Client(proxy.url) as through:
        through.boards()
        proxy.halves = 1
        assert through.certificate(entry, target).read_bytes() == measured.read_bytes()
    with pytest.raises(ClientError, match="cannot be written"):
        client.certificate(entry, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.endswith(".part")) == []
