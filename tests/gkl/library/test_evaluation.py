"""`gkl.evaluate`: the service's verdict for any classifier, and a sentence for what is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import gkl
from gkl.data import ImageSet
from gkl.errors import InvalidInput, OutOfMemory
from gkl.evaluation import measure
from gkl.spec import Evaluation, ThreatModel
from tests.gkl.library.conftest import QUICK

pytestmark = pytest.mark.usefixtures("short_attacks")


def test_it_is_the_services_verdict(model: nn.Module, data: ImageSet) -> None:
    evaluation = Evaluation(
        protocol="custom",
        attacks=("apgd-ce", "apgd-dlr"),
        threat_model=ThreatModel(norm="L2", epsilon=0.5),
        batch_size=20,
        seed=3,
    )
    expected = measure(model, data, evaluation, num_classes=10)
    verdict = gkl.evaluate(model, data, **QUICK | {"norm": "L2", "epsilon": 0.5, "seed": 3})
    assert torch.equal(verdict.measurement.broken_by, expected.broken_by)
    assert torch.equal(verdict.measurement.adversarial, expected.adversarial)
    assert 0 < expected.robust_correct < expected.clean_correct
    assert verdict.robust_accuracy == expected.robust_correct / 40
    assert verdict.clean_accuracy == expected.clean_correct / 40
    assert model.training


def test_every_form_of_the_same_images_has_the_same_verdict(model: nn.Module, data: ImageSet) -> None:
    images = data.images
    floats = images.float() / (255 if images.dtype == torch.uint8 else 1)
    forms: list[Any] = ["digits", (floats.numpy().transpose(0, 2, 3, 1), data.labels.tolist()), (floats, data.labels)]
    found = [gkl.evaluate(model, form, **QUICK, num_points=20) for form in forms]
    assert len({tuple(verdict.measurement.broken_by.tolist()) for verdict in found}) == 1
    assert [verdict.dataset for verdict in found] == ["digits", None, None]


def test_a_named_data_set_has_its_usual_budget(model: nn.Module) -> None:
    verdict = gkl.evaluate(model, "digits", **QUICK | {"epsilon": None}, num_points=4)
    assert verdict.evaluation.threat_model == ThreatModel(norm="Linf", epsilon=0.2)


def test_a_normalization_in_front_is_the_networks_own(model: nn.Module, data: ImageSet) -> None:
    class Normalizing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Tensor) -> Tensor:
            answer: Tensor = self.model((x - 0.3) / 0.5)
            return answer

    outside = gkl.evaluate(model, data, **QUICK, mean=(0.3,), std=0.5)
    inside = gkl.evaluate(Normalizing(), data, **QUICK)
    assert torch.equal(outside.measurement.broken_by, inside.measurement.broken_by)
    assert torch.equal(outside.measurement.adversarial, inside.measurement.adversarial)
    half = gkl.evaluate(model.bfloat16(), data, **QUICK, mean=0.3, std=0.5, num_points=4)
    assert half.num_points == 4


def test_a_function_is_a_model_too(model: nn.Module, data: ImageSet) -> None:
    def answers(x: Tensor) -> Tensor:
        logits: Tensor = model.eval()(x)
        return logits

    verdict = gkl.evaluate(answers, data, **QUICK)
    assert verdict.model == "answers"
    assert torch.equal(verdict.measurement.broken_by, gkl.evaluate(model, data, **QUICK).measurement.broken_by)


@pytest.mark.parametrize("num_classes", [None, 10])
@pytest.mark.parametrize(
    "spoil",
    [
        lambda logits: (logits, logits),
        lambda logits: {"logits": logits},
        lambda logits: None,
        lambda logits: logits.detach().numpy(),
        lambda logits: logits[:, :1],
        lambda logits: logits[0],
        lambda logits: logits[:1],
        lambda logits: logits.argmax(1),
        lambda logits: logits.softmax(1).round().long(),
        lambda logits: logits * torch.nan,
        lambda logits: 1 // 0,
    ],
)
def test_an_answer_that_is_no_logits_is_one_sentence(
    model: nn.Module, data: ImageSet, spoil: Any, num_classes: int | None
) -> None:
    with pytest.raises(InvalidInput) as refused:
        gkl.evaluate(lambda x: spoil(model(x)), data, **QUICK, num_classes=num_classes)
    assert "\n" not in str(refused.value)
    assert str(refused.value).startswith("the model")


def test_labels_of_more_classes_than_the_model_has(model: nn.Module, data: ImageSet) -> None:
    with pytest.raises(InvalidInput, match="labels must be whole numbers from 0 to 4 for 5 classes"):
        gkl.evaluate(lambda x: model(x)[:, :5], data, **QUICK)


def test_the_callers_images_and_streams_are_left_alone(model: nn.Module, data: ImageSet) -> None:
    def writes(x: Tensor) -> Tensor:
        answer: Tensor = model(x.clone())
        with torch.no_grad():
            x.numpy()[...] = 0
        np.random.seed(0)
        return answer

    images, before = data.images.float() / 255, data.images.float() / 255
    np.random.seed(9)
    expected = np.random.rand()
    np.random.seed(9)
    with pytest.raises(InvalidInput, match="writes into the images that it is given"):
        gkl.evaluate(writes, (images, data.labels), **QUICK)
    assert torch.equal(images, before)
    assert np.random.rand() == expected


def test_interrupted_the_same_call_goes_on(model: nn.Module, data: ImageSet, tmp_path: Path) -> None:
    whole = gkl.evaluate(model, data, **QUICK)
    parts = tmp_path / "parts"
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def interrupt(module: nn.Module, given: object, answer: object) -> None:
        if len(list(parts.glob("*"))) >= 4:
            raise KeyboardInterrupt

    handle = model.register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        gkl.evaluate(model, data, **QUICK, output=parts)
    handle.remove()
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    left = {path.name: path.stat().st_mtime_ns for path in parts.iterdir()}
    assert len(left) == 4
    resumed = gkl.evaluate(model, data, **QUICK, output=parts)
    assert torch.equal(resumed.measurement.adversarial, whole.measurement.adversarial)
    assert {name: (parts / name).stat().st_mtime_ns for name in left} == left
    with torch.no_grad():
        next(model.parameters()).add_(1)
    with pytest.raises(InvalidInput, match="holds parts of another evaluation: its model_sha256 is"):
        gkl.evaluate(model, data, **QUICK, output=parts)


def test_how_the_model_came_is_told_and_what_stands_in_front_has_no_mode(model: nn.Module, data: ImageSet) -> None:
    def flags(**options: Any) -> set[str]:
        return {flag.name for flag in gkl.evaluate(model, data, **QUICK | {"num_points": 10} | options).flags}

    normalized = {"mean": 0.0, "std": 1.0}
    assert ["training_mode" in flags(**each) for each in ({}, {"num_classes": 10}, normalized)] == [True] * 3
    model.eval()
    assert ["training_mode" in flags(**each) for each in ({}, {"num_classes": 10}, normalized)] == [False] * 3


def test_too_little_memory_is_no_fault_of_the_models(model: nn.Module, data: ImageSet) -> None:
    def hungry(x: Tensor) -> Tensor:
        raise MemoryError

    with pytest.raises(OutOfMemory):
        gkl.evaluate(hungry, data, **QUICK)


def test_parts_of_models_that_look_alike_are_not_mixed_up(model: nn.Module, data: ImageSet, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="a model without parameters cannot be told from another"):
        gkl.evaluate(model.forward, data, **QUICK, output=tmp_path / "parts")
    assert not (tmp_path / "parts").exists()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"norm": "L7"}, "norm: input should be 'Linf', 'L2' or 'L1'"),
        ({"epsilon": None}, "say how large a perturbation may be, such as epsilon='8/255'"),
        ({"epsilon": "8/0"}, "epsilon: write it as a number such as 0.15 or a fraction such as '8/255'"),
        ({"protocol": "standart"}, "protocol: input should be 'standard'"),
        ({"protocol": "corruptions", "attacks": None}, "send such an evaluation to the service"),
        ({"attacks": ["pgd"]}, "attacks: input should be 'apgd-ce'"),
        ({"attacks": None}, "the protocol 'custom' needs attacks"),
        ({"batch_size": 0}, "batch_size: input should be greater than or equal to 1"),
        ({"num_points": 50}, "num_points is 50, and there are 40 images"),
        ({"num_points": 0}, "num_points is 0; take at least 1"),
        ({"mean": 0.5}, "a normalization needs both mean and std"),
        ({"mean": 0.5, "std": 0}, "mean and std are finite, and std above 0"),
        ({"mean": (0.5, 0.5), "std": 1}, "one number, or one for each of the 1 channels"),
        ({"mean": 127.5, "std": 127.5}, "in units of pixels in [0, 1]; divide them by 255"),
        ({"mean": "imagenet", "std": 1}, "mean and std are numbers"),
        ({"device": "cuda:7"}, "the device 'cuda:7' cannot be used here"),
        ({"output": "/proc/nowhere"}, "nothing can be written to /proc/nowhere"),
        ({"model": nn.Linear}, "the model is the class Linear; give a network that can be called"),
        ({"model": "resnet18"}, "the model is a str; give a network that can be called"),
    ],
)
def test_an_option_that_cannot_be_used_is_named(
    model: nn.Module, data: ImageSet, changes: dict[str, Any], says: str
) -> None:
    options: dict[str, Any] = QUICK | changes
    with pytest.raises(InvalidInput) as refused:
        gkl.evaluate(options.pop("model", model), data, **options)
    assert says in str(refused.value)


def test_a_bar_is_shown(model: nn.Module, data: ImageSet, capsys: pytest.CaptureFixture[str]) -> None:
    gkl.evaluate(model, data, **QUICK | {"progress": True}, num_points=10)
    assert "APGD-CE" in capsys.readouterr().err
    gkl.evaluate(model, data, **QUICK, num_points=10)
    assert capsys.readouterr().err == ""


def test_names_load_on_use() -> None:
    assert {"evaluate", "Verdict"} <= set(dir(gkl))
    with pytest.raises(AttributeError, match="no attribute 'evaluat'"):
        _ = gkl.evaluat  # type: ignore[attr-defined]
