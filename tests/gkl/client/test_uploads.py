"""Files in pieces, through proxies that refuse large ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from gkl.client import Client, ClientError
from gkl.files import sha256_of
from tests.servers import limited_proxy

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


def test_pieces_that_a_proxy_refuses_are_halved_once_for_all(url: str, weights: Path) -> None:
    with limited_proxy(url) as proxy, Client(proxy.url) as client:
        assert client.upload(weights).sha256 == sha256_of(weights)
        # 3 MB, 1.5 MB; then 750 kB went through.
        assert proxy.refused == 2
        assert sum(proxy.pieces) == weights.stat().st_size
        save_file({"weight": np.ones(750_000, np.float32)}, weights)
        client.upload(weights)
        assert proxy.refused == 2


def test_a_proxy_that_ends_the_connection_gets_smaller_pieces_too(
    url: str, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gkl.client.uploads._RECONNECT_SECONDS", 0.01)
    with limited_proxy(url, cuts=True) as proxy, Client(proxy.url) as client:
        assert client.upload(weights).sha256 == sha256_of(weights)


def test_where_even_the_smallest_piece_is_refused_the_proxy_is_named(url: str, weights: Path) -> None:
    with limited_proxy(url, max_bytes=1000) as proxy, Client(proxy.url) as client:
        with pytest.raises(ClientError, match=r"a proxy between here and http.* refuses even 65536 bytes as too large"):
            client.upload(weights)
        with pytest.raises(ClientError, match=r"a proxy between here and http.* refuses the body as too large"):
            client.attack(1, weights, name="a", submitter=None)
