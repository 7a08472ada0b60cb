"""From a verdict in Python to a row on the board of a running service."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import gkl
from gkl.client import Invalid
from gkl.errors import InvalidInput
from gkl.evaluation import verify
from gkl.models import build_model
from tests.gkl.evaluation.short_attacks import attacks_shortened
from tests.specs import NO_FILES

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build_model("tiny_cnn", "digits").eval()


def verdict_of(model: nn.Module, **options: Any) -> gkl.Verdict:
    with attacks_shortened():
        return gkl.evaluate(model, "digits", progress=False, **options)


def test_a_network_of_ones_own_is_reported_and_a_known_one_is_verified(url: str, tmp_path: Path) -> None:
    model = network()
    verdict = verdict_of(model)
    entry = verdict.publish(url, name="Mine", submitter="Ada", authors="Ada L.", progress=False)
    assert (entry.provenance, entry.rank, entry.robust) == ("reported", None, None)
    assert (entry.name, entry.authors, entry.architecture) == ("Mine", "Ada L.", "TinyCNN")
    assert entry.reported == verdict.robust_accuracy
    assert verdict.publish(url, name="Renamed", submitter="Ada", progress=False).id == entry.id
    # The same weights in a file, and where they belong: then the service measures them itself.
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    weights = tmp_path / "weights.safetensors"
    verified = verdict.publish(url, name="Mine", architecture="tiny_cnn", weights=weights, progress=False)
    assert (verified.provenance, verified.threat_model) == ("verified", entry.threat_model)
    assert verified.robust is not None
    assert verified.rank == 1


def test_what_no_board_has_a_place_for_is_said_before_anything_is_sent(database_url: str, tmp_path: Path) -> None:
    del database_url
    nowhere = "http://127.0.0.1:9"
    model = network()
    few = verdict_of(model, num_points=20)
    with pytest.raises(InvalidInput, match="20 of the 360 test images of digits, and a board is about all of them"):
        few.publish(nowhere, name="Mine")
    own = gkl.evaluate(model, (torch.rand(4, 1, 8, 8), torch.arange(4)), protocol="clean", progress=False)
    with pytest.raises(InvalidInput, match="images of your own, and boards are about data sets"):
        own.publish(nowhere, name="Mine")
    clean = gkl.evaluate(model, "digits", protocol="clean", progress=False)
    with pytest.raises(InvalidInput, match="protocol 'clean', and a board takes 'standard' and 'plus'"):
        clean.publish(nowhere, name="Mine")


def test_what_is_to_be_said_of_it_is_checked(url: str, tmp_path: Path) -> None:
    verdict = verdict_of(network())
    with pytest.raises(InvalidInput, match="link: "):
        verdict.publish(url, name="Mine", link="no address", progress=False)
    with pytest.raises(InvalidInput, match="author: "):
        verdict.publish(url, name="Mine", author="Ada", progress=False)
    with pytest.raises(InvalidInput, match="there is no file"):
        verdict.publish(url, name="Mine", architecture="tiny_cnn", weights=tmp_path / "none", progress=False)
    save_file({"weight": torch.zeros(3)}, tmp_path / "other")
    with pytest.raises(InvalidInput, match="architecture: "):
        verdict.publish(url, name="Mine", architecture="tiny", weights=tmp_path / "other", progress=False)
    with pytest.raises(Invalid, match="the file lacks the tensor"):
        verdict.publish(url, name="Mine", architecture="tiny_cnn", weights=tmp_path / "other", progress=False)
    # A state dict of torch.save is opened by the run alone.
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pt")
    with pytest.raises(InvalidInput, match=r"/jobs/1 failed: "):
        verdict.publish(url, name="Mine", architecture="tiny_cnn", weights=tmp_path / "other.pt", progress=False)
    path = verdict.save_certificate(tmp_path / "certificate.safetensors")
    assert verify(path, None, datasets_dir=NO_FILES, device="cpu").holds
