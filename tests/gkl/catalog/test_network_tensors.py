"""The table of every network's tensors, and that a file is judged by it as a run judges it by the network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from gkl.catalog import ARCHITECTURES
from gkl.catalog.network_tensors import architectures_that_fit, check_contents, expected_tensors
from gkl.catalog.network_tensors import published as known_published
from gkl.errors import InvalidInput
from gkl.formats.weights_contents import safetensors_contents
from gkl.models import build_model, read_model
from gkl.models.tensor_table import built, published
from gkl.models.weights import expected_tensors as expected_of
from tests.gkl.formats.test_layouts import LAYOUTS, State, new, saved

NETWORKS = [(name, dataset) for name, each in ARCHITECTURES.items() for dataset in each.datasets]
QUICK = [each for each in NETWORKS if "/" not in each[0]] + [
    # One tensor under many names; a definition that looks at numbers while it is built; one of timm's.
    ("cifar10/Linf/Dai2021Parameterizing", "cifar10"),
    ("cifar10/Linf/Chen2020Adversarial", "cifar10"),
    ("imagenet/corruptions/Tian2022Deeper_DeiT-S", "imagenet"),
    ("cifar10/Linf/Debenedetti2022Light_XCiT-S12", "cifar10"),
]
AGAIN = "write the table again: python -m gkl.models.tensor_table"


def check_known(architecture: str, dataset: str) -> None:
    known, is_now = expected_tensors(architecture, dataset), built(architecture, dataset)
    assert known is not None, AGAIN
    assert list(known.tensors.items()) == list(is_now.tensors.items()), AGAIN
    assert known.same == is_now.same, AGAIN


@pytest.mark.parametrize(("architecture", "dataset"), QUICK)
def test_the_table_says_what_the_network_has(architecture: str, dataset: str) -> None:
    check_known(architecture, dataset)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_it_says_so_of_all_networks() -> None:
    for architecture, dataset in NETWORKS:
        check_known(architecture, dataset)


def test_all_networks_and_all_published_weights_are_in_it() -> None:
    assert [each for each in NETWORKS if expected_tensors(*each) is None] == [], AGAIN
    assert {name: [list(each.files), each.in_torch_cache] for name, each in known_published().items()} == {
        name: list(each.values()) for name, each in published().items()
    }, AGAIN


@pytest.mark.parametrize("architecture", ["small_cnn", "cifar10/Linf/Dai2021Parameterizing"])
def test_a_network_without_numbers_is_as_one_with_them(architecture: str) -> None:
    """The same tensors under several names, too."""
    dataset = ARCHITECTURES[architecture].datasets[0]
    real, quick = expected_of(build_model(architecture, dataset)), built(architecture, dataset)
    assert (real.tensors, real.groups) == (quick.tensors, quick.groups)


# --- as a run judges ---------------------------------------------------------------------------------------------


def without(name: str) -> Callable[[State], State]:
    return lambda state: {each: tensor for each, tensor in state.items() if each != name}


def also(**more: torch.Tensor) -> Callable[[State], State]:
    return lambda state: {**state, **more}


def twice(state: State) -> State:
    return {f"{holder}.{name}": tensor for holder in ("a", "b") for name, tensor in state.items()}


WRONG: dict[str, tuple[Callable[[State], State], str | None, str]] = {
    "a tensor is missing": (without("classifier.2.bias"), None, "the file lacks the tensor 'classifier.2.bias'"),
    "a tensor has another shape": (
        also(**{"classifier.2.bias": torch.zeros(7)}),
        None,
        r"tensor 'classifier.2.bias' in the file is F32 \(7,\), but the architecture has torch.float32 \(10,\) there",
    ),
    "whole numbers for weights": (
        also(**{"classifier.2.bias": torch.zeros(10, dtype=torch.int64)}),
        None,
        r"tensor 'classifier.2.bias' in the file is I64 \(10,\)",
    ),
    "a tensor too many": (also(head=torch.zeros(3, 3)), None, "a tensor 'head' that the architecture does not have"),
    "a key that names nothing": (dict, "ema", "holds no network of this architecture at weights_key 'ema'"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_it_is_told_what_is_first_wrong(tmp_path: Path, wrong: str) -> None:
    changed, key, said = WRONG[wrong]
    path = tmp_path / "weights.safetensors"
    save_file({name: tensor.clone() for name, tensor in changed(new().state_dict()).items()}, path)
    with pytest.raises(InvalidInput, match=said):
        check_contents(safetensors_contents(path, "the file"), "tiny_cnn", "digits", key)
    with pytest.raises(InvalidInput, match=said.replace("the file", path.name)):
        read_model("tiny_cnn", "digits", path, None, key)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_whatever_a_run_loads_is_let_through(tmp_path: Path, layout: str) -> None:
    """As scripts write it: with prefixes, in dictionaries, beside other things; as it is and as it is converted."""
    for path in saved(LAYOUTS[layout](new().state_dict()), tmp_path / "weights"):
        if path.suffix == "":
            continue
        read_model("tiny_cnn", "digits", path, None, None)
        check_contents(safetensors_contents(path), "tiny_cnn", "digits", None)


def test_what_only_its_numbers_can_tell_is_let_through(tmp_path: Path) -> None:
    """Two networks that fit may be one under two names."""
    path = tmp_path / "weights.safetensors"
    save_file({name: tensor.clone() for name, tensor in twice(new().state_dict()).items()}, path)
    check_contents(safetensors_contents(path), "tiny_cnn", "digits", None)


def test_what_the_table_does_not_know_is_let_through(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({"weight": torch.zeros(3, 3)}, path)
    check_contents(safetensors_contents(path), "one_of_tomorrow", "digits", None)


def test_the_architectures_whose_weights_they_may_be_are_named(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({name: tensor.clone() for name, tensor in new().state_dict().items()}, path)
    contents = safetensors_contents(path)
    assert architectures_that_fit(contents, "digits", None) == ["tiny_cnn"]
    assert architectures_that_fit(contents, "cifar10", None) == []
