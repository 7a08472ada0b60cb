"""Weights from wherever people have them; nothing that could run is ever loaded."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from gkl.errors import InvalidInput
from gkl.formats.weights_format import weights_format
from gkl.models import build_model, load_model, load_weights, weights_sha256
from gkl.models.robustbench import published_files
from gkl.models.weights import read_weights

PIXELS = torch.rand(2, 1, 8, 8)


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(1)
    return build_model("tiny_cnn", "digits").eval()


def same_answers(path: Path, network: nn.Module) -> bool:
    other = build_model("tiny_cnn", "digits").eval()
    load_weights(other, path)
    return torch.equal(other(PIXELS), network(PIXELS))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 7},
        lambda state: {"model": state, "optimizer": {"lr": 0.1}},
        lambda state: {"net": {f"module.{name}": tensor for name, tensor in state.items()}},
        lambda state: {f"_orig_mod.module.{name}": tensor for name, tensor in state.items()},
    ],
    ids=["plain", "state_dict", "model", "DataParallel", "compiled"],
)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_state_dicts_as_people_save_them(wrap: Any, zipped: bool, network: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save(wrap(network.state_dict()), path, _use_new_zipfile_serialization=zipped)
    assert weights_format(path) == "torch"
    assert same_answers(path, network)


def test_safetensors(network: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "model.anything"
    save_file(network.state_dict(), path)
    assert weights_format(path) == "safetensors"
    assert same_answers(path, network)


class Runs:
    """Unpickling it runs something."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (Path.touch, (Path("/tmp/gklbench-was-here"),))  # type: ignore[return-value]


def whole_model(path: Path) -> None:
    torch.save(build_model("tiny_cnn", "digits"), path)


def hostile(path: Path) -> None:
    path.write_bytes(pickle.dumps({"state_dict": Runs()}, protocol=2))


def script(path: Path) -> None:
    torch.save({"weight": torch.zeros(1), "note": {1, 2, 3}}, path)


def half_a_zip(path: Path) -> None:
    torch.save({"weight": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:2000])


@pytest.mark.parametrize(
    ("write", "says"),
    [
        (
            whole_model,
            "holds a pickled gkl.models.small_cnn.TinyCNN, not only tensors; whole models",
        ),
        (hostile, "it holds a pickled .*getattr, not only tensors"),
        (half_a_zip, "cannot be read as a state dict"),
        (lambda path: torch.save(torch.zeros(3), path), "holds no state dict"),
        (lambda path: torch.save({"epoch": 3}, path), "holds no state dict"),
        (script, "holds no state dict|cannot be read"),
        (
            lambda path: path.write_bytes(b"\n <!DOCTYPE html><html>Quota exceeded</html>"),
            "is an HTML page, not weights",
        ),
        (lambda path: path.write_bytes(b"<html lang='en'>"), "is an HTML page, not weights"),
        (lambda path: path.write_bytes(b""), "neither safetensors nor a state dict"),
        (lambda path: path.write_bytes(b"\xff" * 100), "neither safetensors nor a state dict"),
        (lambda path: path.write_bytes(b"\x10" + bytes(7) + b"{" + b"x" * 50), "cannot be read as safetensors"),
    ],
)
def test_anything_else_is_one_sentence(write: Any, says: str, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    write(path)
    with pytest.raises(InvalidInput, match=says):
        read_weights(path)
    assert not Path("/tmp/gklbench-was-here").exists()


def test_half_precision_is_converted(network: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "half.safetensors"
    half: dict[str, Tensor] = {
        name: tensor.bfloat16() if tensor.is_floating_point() else tensor
        for name, tensor in network.state_dict().items()
    }
    save_file(half, path)
    load_weights(network, path)
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    assert torch.equal(network.state_dict()["features.0.weight"], half["features.0.weight"].float())


def test_files_from_before_batches_were_counted(network: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "old.pt"
    torch.save({n: t for n, t in network.state_dict().items() if "num_batches_tracked" not in n}, path)
    assert same_answers(path, network)


def test_weights_that_nobody_published_need_a_file(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="small_cnn has no published weights; name the file"):
        load_model("small_cnn", "digits", None, tmp_path)


@pytest.mark.long
def test_published_weights_are_looked_for_in_robustbenchs_layout(tmp_path: Path) -> None:
    """And loaded by its own loader: a state dict under the name that it downloads to."""
    name = "cifar10/Linf/Rice2020Overfitting"
    (path,) = published_files(name, tmp_path)
    assert path == tmp_path / "cifar10" / "Linf" / "Rice2020Overfitting.pt"
    torch.manual_seed(3)
    published = build_model(name, "cifar10").eval()
    path.parent.mkdir(parents=True)
    torch.save({f"module.{key}": tensor for key, tensor in published.state_dict().items()}, path)
    loaded = load_model(name, "cifar10", None, tmp_path)
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(loaded(x), published(x))
    assert len(weights_sha256(name, None, tmp_path)) == 64


def test_an_ensemble_has_several_files(tmp_path: Path) -> None:
    files = published_files("cifar10/Linf/Chen2020Adversarial", tmp_path)
    assert [file.name for file in files] == [f"Chen2020Adversarial.pt_m{i}.pt" for i in range(3)]


def test_an_html_page_in_the_cache_is_recognised(tmp_path: Path) -> None:
    (path,) = published_files("cifar10/Linf/Rice2020Overfitting", tmp_path)
    path.parent.mkdir(parents=True)
    path.write_text("<!doctype html><title>Google Drive - Quota exceeded</title>")
    with pytest.raises(InvalidInput, match=r"Rice2020Overfitting\.pt is an HTML page, not weights"):
        load_model("cifar10/Linf/Rice2020Overfitting", "cifar10", None, tmp_path)


def test_published_weights_that_cannot_be_downloaded_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A proxy that nothing listens on, so that this test reaches nothing wherever it runs.
    for variable in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.setenv(variable, "http://127.0.0.1:1")
    wanted = tmp_path / "cifar10" / "Linf" / "Rice2020Overfitting.pt"
    with pytest.raises(
        InvalidInput, match=f"cannot be downloaded .*; put them at {wanted}, or set GKLBENCH_MODELS_DIR"
    ):
        load_model("cifar10/Linf/Rice2020Overfitting", "cifar10", None, tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
