"""A corpus of files that somebody could send as weights: each is refused with a sentence, and nothing is left of it."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from app.core.settings import Settings
from gkl.errors import InvalidInput
from gkl.formats.torch_archive import HARMLESS
from gkl.formats.weights_format import check_weights_file
from tests.app.routes.test_api import assert_problem, send
from tests.hostile import OTHER, SAFETENSORS, torch_files

CANARY = Path("/tmp/gklbench-canary")
CORPUS = {**OTHER, **SAFETENSORS, **torch_files(CANARY)}


@pytest.mark.parametrize("kind", CORPUS)
def test_it_is_refused_with_a_sentence(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(CORPUS[kind].make())
    with pytest.raises(InvalidInput, match=CORPUS[kind].says.replace("[2]", r"\[2\]")) as caught:
        check_weights_file(path, "the file")
    assert str(caught.value).startswith("the file ")
    assert len(str(caught.value)) < 600
    assert not CANARY.exists()


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_over_rest_none_of_them_leaves_a_file(client: TestClient, settings: Settings) -> None:
    before = {path for path in settings.data_dir.rglob("*") if path.is_file()}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for kind, hostile in CORPUS.items():
        content = hostile.make()
        limit = len(content) > 16 * 2**20
        response = send(client, content)
        assert 400 <= response.status_code < 500, kind
        if not limit:
            assert_problem(response, 422, "he file ")
        assert {path for path in settings.data_dir.rglob("*") if path.name != ".lock" and path.is_file()} <= before, (
            kind
        )
    assert not CANARY.exists()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) * 1024
    assert grown < 400e6, "of which the largest files of the corpus are the most"


def test_nothing_passes_that_torchs_own_unpickler_refuses() -> None:
    """The other way round is the unpickler's business; `__builtin__` is what the older Python called its builtins."""
    from torch._weights_only_unpickler import _get_allowed_globals

    allowed = set(_get_allowed_globals())
    known = {each.replace("__builtin__", "builtins").replace(" ", ".") for each in HARMLESS}
    assert known <= allowed
