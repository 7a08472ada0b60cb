"""Files of weights as this field's scripts write them: each loads as what it is, or is refused with the reason."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from gkl.conversion import convert
from gkl.errors import InvalidInput
from gkl.formats.weights_file import convert_state_dict
from gkl.models import LoadedModel, build_model, load_weights, read_model, registry

PIXELS = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(2))
State = Mapping[str, Tensor]


def new(seed: int = 1) -> nn.Module:
    torch.manual_seed(seed)
    network = build_model("tiny_cnn", "digits")
    # So that its statistics are its own too.
    network.train()(PIXELS)
    return network.eval()


def behind(prefix: str, state: State) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


def mixed(state: State) -> dict[str, Tensor]:
    return {("module." if number % 2 else "") + name: tensor for number, (name, tensor) in enumerate(state.items())}


def optimizer(network: nn.Module) -> dict[str, Any]:
    made = torch.optim.Adam(network.parameters())
    network(PIXELS).sum().backward()
    made.step()
    return made.state_dict()


def saved(content: Any, path: Path) -> list[Path]:
    """As torch.save writes it, its conversion, and where it can be safetensors."""
    torch.save(content, path)
    converted = path.with_suffix(".converted")
    convert_state_dict(path, converted)
    files = [path, converted]
    if isinstance(content, dict) and all(isinstance(value, Tensor) for value in content.values()):
        files.append(path.with_suffix(".safetensors"))
        save_file({name: tensor.clone() for name, tensor in content.items()}, files[-1])
    return files


def read(path: Path, key: str | None = None) -> LoadedModel:
    loaded = read_model("tiny_cnn", "digits", path, None, key)
    loaded.network.eval()
    return loaded


LAYOUTS: dict[str, Callable[[State], Any]] = {
    "plain": dict,
    "DataParallel": lambda s: {"net": behind("module.", s)},
    "compiled, distributed": lambda s: behind("_orig_mod.module.", s),
    "the other way round": lambda s: behind("module._orig_mod.", s),
    "part of a sequence": lambda s: {"model_state_dict": behind("module.0.", s)},
    "Lightning": lambda s: {"state_dict": behind("model.", s), "epoch": 1, "global_step": 7, "callbacks": {"a": {}}},
    "Lightning, compiled": lambda s: {"state_dict": behind("model._orig_mod.", s)},
    "FSDP": lambda s: behind("_fsdp_wrapped_module.", s),
    "any name": lambda s: {"robust_network": {"weights": behind("student.backbone.", s)}},
    "last": lambda s: {"last": dict(s), "best_acc": 51.2},
    "ema": lambda s: {"ema": dict(s)},
    "averaged": lambda s: {"n_averaged": torch.tensor(7), **behind("module.", s)},
    "a tuple": lambda s: (dict(s), {"epoch": 3}),
    "a list": lambda s: [3, dict(s)],
    "numbered": lambda s: {0: {"note": "x"}, 1: dict(s)},
    "ordered": lambda s: OrderedDict(behind("net.", s)),
    "mixed": mixed,
    "mixed within": lambda s: behind("model.", mixed(s)),
    "a part that is parallel": lambda s: {k.replace("features.", "features.module."): t for k, t in s.items()},
    "a holder before some": lambda s: {("model." if "classifier" in k else "") + k: t for k, t in s.items()},
    "numbers beside": lambda s: {**s, "epoch": 3, "best_acc": torch.tensor(0.5), "args": {"lr": 0.1}, "name": "x"},
    "parameters": lambda s: {k: nn.Parameter(t) if t.is_floating_point() else t for k, t in s.items()},
    "twice the same": lambda s: {"state_dict": dict(s), "model": dict(s)},
    "equal copies": lambda s: {"state_dict": dict(s), "ema": {k: t.clone() for k, t in s.items()}},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_it_loads(layout: str, tmp_path: Path) -> None:
    network = new()
    for path in saved(LAYOUTS[layout](network.state_dict()), tmp_path / "m.pt"):
        loaded = read(path)
        assert torch.equal(loaded.network(PIXELS), network(PIXELS)), path
        assert (loaded.weights_key, loaded.notes) == (None, ())


def test_optimizers_are_no_networks(tmp_path: Path) -> None:
    network = new()
    network.zero_grad()
    content = {"net": network.state_dict(), "optimizer": optimizer(network), "optimizer_states": [optimizer(network)]}
    sizes = []
    for path in saved(content, tmp_path / "m.pt"):
        loaded = read(path)
        assert torch.equal(loaded.network(PIXELS), network(PIXELS))
        assert loaded.weights_key is None
        sizes.append(path.stat().st_size)
    # Their states are not carried along.
    assert sizes[1] < sizes[0] / 3


TWO: dict[str, tuple[Callable[[State, State], Any], str, str]] = {
    "timm": (lambda a, b: {"state_dict": dict(a), "state_dict_ema": dict(b)}, "state_dict", "state_dict_ema"),
    "nested": (lambda a, b: {"state": {"net": dict(a), "ema": behind("module.", b)}}, "state.net", "state.ema"),
    "by prefix": (lambda a, b: behind("model.", b) | behind("ema_model.module.", a), "ema_model.module", "model"),
    "by prefix in a dictionary": (
        lambda a, b: {"state_dict": behind("model.", b) | behind("ema.", a), "epoch": 3},
        "state_dict.ema",
        "state_dict.model",
    ),
    "plain and prefix": (lambda a, b: {**a, **behind("ema.", b)}, ".", "ema"),
    "a list": (lambda a, b: [dict(a), dict(b)], "0", "1"),
    "a sequence": (lambda a, b: behind("0.", a) | behind("1.", b), "0", "1"),
    "one mixed": (lambda a, b: {"a": mixed(a), "b": dict(b)}, "a", "b"),
    "one in half precision": (
        lambda a, b: {"a": dict(a), "b": {k: t.half() if t.is_floating_point() else t for k, t in b.items()}},
        "a",
        "b",
    ),
    "one place twice": (lambda a, b: {"a": {"b": dict(a)}, "a.b": dict(b)}, "a.b", "a.b (2)"),
}


@pytest.mark.parametrize("layout", TWO)
def test_two_networks_are_a_question(layout: str, tmp_path: Path) -> None:
    wrap, first_key, second_key = TWO[layout]
    first, second = new(1), new(2)
    for path in saved(wrap(first.state_dict(), second.state_dict()), tmp_path / "m.pt"):
        with pytest.raises(InvalidInput) as refused:
            read(path)
        assert str(refused.value) == (
            f"{path.name} holds 2 networks that fit the architecture, at {first_key!r}, {second_key!r}; choose one "
            "with weights_key"
        )
        for network, key in ((first, first_key), (second, second_key)):
            loaded = read(path, key)
            torch.testing.assert_close(loaded.network(PIXELS), network(PIXELS), rtol=2e-2, atol=2e-2)
            assert loaded.weights_key == key
            assert f"the file's network at {key!r} was loaded" in loaded.notes
        assert not torch.allclose(first(PIXELS), second(PIXELS), rtol=2e-2, atol=2e-2)
        with pytest.raises(InvalidInput, match=r"no network of this architecture at weights_key 'best'; it holds one"):
            read(path, "best")


def test_three_are_listed(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    torch.save({key: new(seed).state_dict() for seed, key in enumerate(("net", "ema", "swa"))}, path)
    with pytest.raises(InvalidInput, match="3 networks that fit the architecture, at 'net', 'ema', 'swa'"):
        read(path)


def test_a_key_may_be_said_where_there_is_no_question(tmp_path: Path) -> None:
    network, path = new(), tmp_path / "m.pt"
    torch.save({"state_dict": behind("module.", network.state_dict())}, path)
    for key in ("state_dict", "state_dict.module", "module", "module."):
        loaded = read(path, key)
        assert torch.equal(loaded.network(PIXELS), network(PIXELS))
        # The same model, with the key or without.
        assert loaded.weights_key is None


def test_a_teacher_of_another_architecture_is_no_question_but_is_told(tmp_path: Path) -> None:
    network, teacher = new(), build_model("small_cnn", "digits")
    for path in saved({"teacher": teacher.state_dict(), "student": network.state_dict()}, tmp_path / "m.pt"):
        loaded = read(path)
        assert torch.equal(loaded.network(PIXELS), network(PIXELS))
        assert loaded.weights_key == "student"
        assert read_model("small_cnn", "digits", path, None).weights_key == "teacher"


def test_what_may_be_part_of_the_network_is_not_left_out(tmp_path: Path) -> None:
    state = new().state_dict()
    for extra in ({"head.weight": torch.zeros(10, 10)}, {"temperature": torch.ones(())}, {"prior": torch.ones(10, 10)}):
        for path in saved({**state, **extra}, tmp_path / "m.pt"):
            with pytest.raises(
                InvalidInput, match=rf"has a tensor '{next(iter(extra))}' that the architecture does not"
            ):
                read(path)
    for path in saved({**behind("model.", state), "criterion.weight": torch.ones(10)}, tmp_path / "m.pt"):
        with pytest.raises(
            InvalidInput, match=r"'criterion\.weight' .*; if it is no part .* set weights_key to 'model'"
        ):
            read(path)
        assert "'criterion.weight', are no part of the network" in read(path, "model").notes[0]
    path = tmp_path / "n.pt"
    torch.save(behind("model.", {**state, "more.weight": torch.ones(3, 3)}), path)
    with pytest.raises(InvalidInput, match=r"'model\.more\.weight' that the architecture does not have"):
        read(path, "model")


def test_a_smaller_network_within_a_larger_one_is_not_taken_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its layers have the names of the whole."""

    class Linear(nn.Linear):
        def __init__(self) -> None:
            super().__init__(64, 10)

    monkeypatch.setitem(registry._BUILDERS, "tiny_cnn", lambda num_classes, image_shape: Linear())
    path = tmp_path / "m.pt"
    torch.save(nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)).state_dict(), path)
    with pytest.raises(InvalidInput, match=r"has a tensor '0\.bias' that the architecture does not have"):
        read(path)
    torch.save(nn.Sequential(nn.Linear(64, 10), nn.Linear(64, 10)).state_dict(), path)
    with pytest.raises(InvalidInput, match="holds 2 networks that fit the architecture, at '0', '1'"):
        read(path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda s: {}, "holds no state dict"),
        (lambda s: {"state_dict": {}}, "holds no state dict"),
        (lambda s: {k: t for k, t in s.items() if k != "features.3.weight"}, r"lacks the tensor 'features\.3\.weight'"),
        (
            lambda s: behind("net.", {k: t for k, t in s.items() if k != "features.3.weight"}),
            r"lacks the tensor 'features\.3\.weight' behind 'net\.'; was it made by another architecture",
        ),
        (
            lambda s: dict(s) | {"features.0.weight": torch.ones(8, 3, 3, 3)},
            r"is torch\.float32 \(8, 3, 3, 3\), but the",
        ),
        (
            lambda s: dict(s) | {"features.0.weight": torch.ones(8, 1, 3, 3).int()},
            r"is torch\.int32 \(8, 1, 3, 3\), but the",
        ),
        (
            lambda s: {"module." + k: t for k, t in s.items() if "0" in k} | {k: t for k, t in s.items() if "4" in k},
            "lacks the tensor",
        ),
        (
            lambda s: (
                {k: t for k, t in s.items() if k != "features.3.weight"}
                | {
                    "features.module.0.weight": torch.zeros(8, 1, 3, 3),
                    "module.features.3.weight": s["features.3.weight"],
                }
            ),
            r"has 'features\.0\.weight' and 'features\.module\.0\.weight', which differ only in what wrappers",
        ),
        (lambda s: dict(s) | {"features.0.weight": torch.full((8, 1, 3, 3), torch.nan)}, "has NaN or infinite values"),
        (
            lambda s: {k: t.to_sparse() if t.dim() == 2 else t for k, t in s.items()},
            "it holds sparse tensors; save tensor",
        ),
    ],
)
def test_others_are_refused_with_the_reason(change: Callable[[State], Any], says: str, tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    torch.save(change(new().state_dict()), path)
    with pytest.raises(InvalidInput, match=says):
        read(path)


def test_a_dictionary_in_itself_ends(tmp_path: Path) -> None:
    network, path = new(), tmp_path / "m.pt"
    content: dict[str, Any] = {"net": network.state_dict()}
    content["again"] = content
    torch.save(content, path)
    assert torch.equal(read(path).network(PIXELS), network(PIXELS))
    laughs: list[Any] = [network.state_dict()]
    for _ in range(7):
        laughs = [laughs] * 10
    torch.save(laughs, path)
    with pytest.raises(InvalidInput, match="more than 10000 dictionaries and lists"):
        read(path)


# --- numbers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn])
def test_other_formats_are_converted_and_told(dtype: torch.dtype, tmp_path: Path) -> None:
    network = new()
    state = {k: t.to(dtype) if t.is_floating_point() else t for k, t in network.state_dict().items()}
    for path in saved(state, tmp_path / "m.pt"):
        loaded = read(path)
        for name, tensor in loaded.network.state_dict().items():
            assert torch.equal(tensor, state[name].to(tensor.dtype))
        assert loaded.notes == (f"weights in {str(dtype).removeprefix('torch.')} were converted to float32",)


def test_values_beyond_float32_are_no_divergence(tmp_path: Path) -> None:
    state = {k: t.double() if t.is_floating_point() else t for k, t in new().state_dict().items()}
    state["features.0.weight"][0, 0, 0, 0] = 1e300
    path = tmp_path / "m.pt"
    torch.save(state, path)
    with pytest.raises(InvalidInput, match=r"has values beyond torch\.float32"):
        read(path)


def test_counters_that_were_averaged(tmp_path: Path) -> None:
    """Every entry, as the GKL authors' script has it; and a count in a list of one, as old files have it."""
    network = new()
    averaged = {"module." + k: 0.9 * t + 0.1 * (t + 5) for k, t in network.state_dict().items()}
    averaged = {
        k: t if "num_batches" in k else network.state_dict()[k.removeprefix("module.")] for k, t in averaged.items()
    }
    assert averaged["module.features.1.num_batches_tracked"].is_floating_point()
    for path in saved(averaged, tmp_path / "m.pt"):
        loaded = read(path).network
        assert torch.equal(loaded(PIXELS), network(PIXELS))
        assert int(loaded.state_dict()["features.1.num_batches_tracked"]) == 2
    in_lists = {k: t.reshape(1) if "num_batches" in k else t for k, t in network.state_dict().items()}
    for path in saved(in_lists, tmp_path / "n.pt"):
        assert torch.equal(read(path).network(PIXELS), network(PIXELS))


class WithIndex(nn.Module):
    """A buffer of whole numbers that is used, as Swin's."""

    index: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("index", torch.arange(64).flip(0))
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.flatten(1)[:, self.index])


def test_an_averaged_index_is_rounded_not_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry._BUILDERS, "tiny_cnn", lambda num_classes, image_shape: WithIndex())
    network, path = WithIndex(), tmp_path / "m.pt"
    averaged = {k: t.float() if k == "index" else t for k, t in network.state_dict().items()}
    for _ in range(20):
        # Some come out below the whole number.
        averaged["index"] = 0.9 * averaged["index"] + 0.1 * network.index
    assert not torch.equal(averaged["index"].long(), network.index)
    torch.save(averaged, path)
    assert torch.equal(read(path).network(PIXELS), network(PIXELS))
    torch.save(network.state_dict() | {"index": network.index + 0.4}, path)
    with pytest.raises(InvalidInput, match=r"'index' in m\.pt has fractions, but the architecture has whole numbers"):
        read(path)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.first, self.second, self.head = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 10)
        self.second.weight = self.first.weight
        self.head.register_parameter("scale", self.scale)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x.flatten(1)).relu()).relu() * self.scale)


class InOneMemory(Tied):
    def __init__(self) -> None:
        super().__init__()
        self.head.weight = nn.Parameter(self.first.weight.data[:10])


@pytest.mark.parametrize("without", [(), ("second.weight",), ("first.weight", "scale"), ("head.scale",)])
def test_a_tied_network_loads_from_once_or_from_each(
    without: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(registry._BUILDERS, "tiny_cnn", lambda num_classes, image_shape: Tied())
    network = Tied()
    state = behind("module.", {k: t for k, t in network.state_dict().items() if k not in without})
    for path in saved(state, tmp_path / "m.pt"):
        loaded = read(path).network
        assert torch.equal(loaded(PIXELS), network(PIXELS))
        assert isinstance(loaded, Tied)
        assert loaded.first.weight is loaded.second.weight


def test_a_tied_network_refuses_two_numbers_for_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry._BUILDERS, "tiny_cnn", lambda num_classes, image_shape: Tied())
    state = Tied().state_dict()
    for path in saved({**state, "second.weight": state["first.weight"] + 1e-3}, tmp_path / "m.pt"):
        with pytest.raises(
            InvalidInput, match=r"different numbers in 'first\.weight' and 'second\.weight', which are one"
        ):
            read(path)
    torch.save({k: t for k, t in state.items() if k not in ("first.weight", "second.weight")}, tmp_path / "n.pt")
    with pytest.raises(InvalidInput, match=r"lacks the tensor 'first\.weight'"):
        read(tmp_path / "n.pt")


def test_overlapping_memory_is_loaded_where_the_numbers_agree(tmp_path: Path) -> None:
    network, path = InOneMemory(), tmp_path / "m.pt"
    torch.save(network.state_dict(), path)
    other = InOneMemory()
    load_weights(other, path)
    assert torch.equal(other(PIXELS), network(PIXELS))
    torch.save(dict(network.state_dict()) | {"head.weight": torch.zeros(10, 64)}, path)
    with pytest.raises(InvalidInput, match="than in a tensor that shares its memory in the architecture"):
        load_weights(InOneMemory(), path)


def test_many_names_for_one_tensor_grow_no_conversion(tmp_path: Path) -> None:
    path, target = tmp_path / "m.pt", tmp_path / "m.converted"
    large = torch.rand(1000, 1000)
    torch.save({f"{number}.weight": large for number in range(200)}, path)
    # In a process of its own, whose files may be twice as large as what it reads.
    convert(path, target)
    assert target.stat().st_size < 2 * path.stat().st_size


# --- normalization -----------------------------------------------------------------------------------------------


class Plain(nn.Module):
    """No normalization of its own, so that what a file has can be put in front."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).relu().flatten(1))


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> Plain:
    monkeypatch.setitem(registry._BUILDERS, "tiny_cnn", lambda num_classes, image_shape: Plain())
    return Plain()


MEAN, STD = torch.tensor([0.3]), torch.tensor([0.25])


@pytest.mark.parametrize(
    ("front", "prefix"),
    [
        ({"0.mean": MEAN, "0.std": STD}, "1."),
        ({"module.0.mean": MEAN, "module.0.std": STD}, "module.1."),
        ({"normalize.mean": MEAN.view(1, 1, 1, 1), "normalize.std": STD.view(1, 1, 1, 1)}, "model."),
        ({"normalizer.mu": MEAN, "normalizer.sigma": STD}, ""),
        ({"mean": MEAN.view(1, 1, 1), "std": STD.view(1, 1, 1)}, ""),
        ({"module.mean": MEAN[0], "module.std": STD[0]}, "module."),
        ({"0.pixel_mean": MEAN.double(), "0.pixel_std": STD.double()}, "1.module."),
    ],
)
def test_a_files_normalization_is_put_in_front(
    front: dict[str, Tensor], prefix: str, plain: Plain, tmp_path: Path
) -> None:
    for path in saved({"net": front | behind(prefix, plain.state_dict())}, tmp_path / "m.pt"):
        loaded = read(path)
        torch.testing.assert_close(loaded.network(PIXELS), plain((PIXELS - 0.3) / 0.25))
        assert loaded.notes == ("the file's normalization (mean 0.3, std 0.25) was put in front of the network",)
        with pytest.raises(InvalidInput, match=r"normalization layer .* in front .*; load it with load_model"):
            load_weights(Plain(), path)


def test_a_normalization_that_does_nothing_is_none(plain: Plain, tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    torch.save({"0.mean": torch.zeros(1), "0.std": torch.ones(1)} | behind("1.", plain.state_dict()), path)
    loaded = read(path)
    assert isinstance(loaded.network, Plain)
    assert loaded.notes == ()


def test_a_network_that_normalizes_by_itself(tmp_path: Path) -> None:
    """TinyCNN's (x - 0.5) * 2 is mean 0.5 and std 0.5."""
    network, path = new(), tmp_path / "m.pt"
    half = torch.tensor([0.5])
    torch.save({"0.mean": half, "0.std": half} | behind("1.", network.state_dict()), path)
    loaded = read(path)
    assert torch.equal(loaded.network(PIXELS), network(PIXELS))
    assert loaded.notes == ("the file's normalization (mean 0.5, std 0.5) is already part of the architecture",)
    torch.save({"0.mean": MEAN, "0.std": STD} | behind("1.", network.state_dict()), path)
    with pytest.raises(InvalidInput, match=r"itself normalizes its images with other numbers \(mean 0\.5, std 0\.5\)"):
        read(path)


@pytest.mark.parametrize(
    ("front", "says"),
    [
        ({"0.mean": MEAN * 255, "0.std": STD * 255}, "not for images with values in"),
        ({"0.mean": MEAN, "0.std": STD * 0}, "does not divide by positive numbers"),
        ({"0.mean": MEAN * torch.nan, "0.std": STD}, "does not divide by positive numbers"),
        ({"0.mean": torch.rand(3), "0.std": torch.rand(3) * 0.5 + 0.1}, "is not for images of 1 channels"),
        ({"0.mean": MEAN}, r"has a tensor '0\.mean' that the architecture does not have"),
        ({"2.mean": MEAN, "2.std": STD}, r"has a tensor '2\.mean' that the architecture does not have"),
        ({"0.mean": torch.rand(10), "0.std": torch.rand(10)}, r"has a tensor '0\.mean' that the architecture"),
        ({"0.mean": MEAN, "0.std": STD, "norm.mean": MEAN, "norm.std": STD}, r"has a tensor '0\.mean' that"),
    ],
)
def test_other_normalizations_are_refused(front: dict[str, Tensor], says: str, plain: Plain, tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    torch.save(front | behind("1.", plain.state_dict()), path)
    with pytest.raises(InvalidInput, match=says):
        read(path)


def test_a_part_of_a_sequence_tells_what_it_does_not_know(tmp_path: Path) -> None:
    network, path = new(), tmp_path / "m.pt"
    torch.save(behind("module.1.", network.state_dict()), path)
    loaded = read(path)
    assert torch.equal(loaded.network(PIXELS), network(PIXELS))
    assert loaded.notes == (
        "the network is part 'module.1' of a sequence; the file has no tensors of '0' before it, so that whatever "
        "that part does to images is left out",
    )
