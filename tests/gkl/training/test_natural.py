"""Plain training against the same loop written with torch alone, in double precision."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gkl.errors import NonFiniteLoss
from gkl.models import build_model
from gkl.recipes.adversarial import digits_ce
from gkl.spec import TrainSpec
from gkl.training.network import Network
from gkl.training.optimizers import make_optimizer, set_rates
from gkl.training.tasks import NaturalTask, make_task

STEPS = 4


def spec(**changes: Any) -> TrainSpec:
    return TrainSpec.model_validate(digits_ce().model_dump(mode="json") | {"architecture": "tiny_cnn"} | changes)


def network() -> nn.Module:
    torch.manual_seed(0)
    return build_model("tiny_cnn", "digits").double()


def drawn(number: int, size: int = 24) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(number)
    x = torch.rand(size, 1, 8, 8, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, 10, (size,), generator=generator)


@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize("optimizer", [{"kind": "sgd", "learning_rate": 0.1}, {"kind": "adamw"}])
def test_steps_are_those_of_a_loop_of_torch(optimizer: dict[str, Any], views: int) -> None:
    s = spec(optimizer=optimizer, label_smoothing=0.1)
    mine, theirs = network(), network()
    ours = make_optimizer(mine, s.optimizer)
    task = make_task(s, mine, ours, torch.Generator().manual_seed(1))
    assert isinstance(task, NaturalTask)
    assert task.state() == {}
    reference = (
        torch.optim.SGD(theirs.parameters(), momentum=0.9, weight_decay=5e-4)
        if optimizer["kind"] == "sgd"
        else torch.optim.AdamW(theirs.parameters(), weight_decay=0.01)
    )
    for number in range(STEPS):
        rate = 0.05 / (number + 1)
        set_rates(ours, learning_rate=rate, momentum=0.9)
        reference.param_groups[0]["lr"] = rate
        x, y = drawn(number)
        outcome = task((x, x.flip(3))[:views], y, epoch=1)
        theirs.train()
        both, labels = torch.cat((x, x.flip(3))[:views]), y.repeat(views)
        logits = theirs(both)
        loss = F.cross_entropy(logits, labels, label_smoothing=0.1)
        reference.zero_grad()
        loss.backward()
        reference.step()
        assert outcome.images == 24 * views
        assert outcome.metrics["loss"] == pytest.approx(loss.item(), rel=1e-12)
        assert outcome.sums["clean_accuracy"] == (logits.argmax(1) == labels).sum()
        assert outcome.metrics.keys() == {"loss", "clean_accuracy"}
        for (name, a), b in zip(mine.state_dict().items(), theirs.state_dict().values(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13, msg=lambda text, name=name: f"{name}: {text}")


def test_held_out_images_are_classified_in_eval_mode() -> None:
    s = spec(selection={"num_images": 50}, batch_size=16)
    model = network()
    generator = torch.Generator()
    task = make_task(s, model, make_optimizer(model, s.optimizer), generator)
    x, y = drawn(0, 50)
    done: list[int] = []
    found = task.measure_held_out(Network(model.train(), s.compute, torch.device("cpu")), x, y, batch_done=done.append)
    with torch.no_grad():
        correct = (network().eval()(x).argmax(1) == y).double().mean().item()
    assert found == {"held_out_clean_accuracy": pytest.approx(correct)}
    assert done == [16, 32, 48, 50]


def test_a_loss_that_is_not_finite_changes_no_weight() -> None:
    model = network()
    with torch.no_grad():
        next(model.parameters()).fill_(torch.nan)
    before = {name: tensor.clone() for name, tensor in model.named_parameters()}
    task = make_task(spec(), model, make_optimizer(model, spec().optimizer), torch.Generator())
    with pytest.raises(NonFiniteLoss, match=r"^the loss became nan at step 1; usually"):
        task(drawn(0)[:1], drawn(0)[1], epoch=1, where="at step 1")
    assert all(torch.equal(before[name].nan_to_num(), p.nan_to_num()) for name, p in model.named_parameters())
