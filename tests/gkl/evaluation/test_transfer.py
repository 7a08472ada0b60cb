"""Adversarial examples of other networks, tried on a new one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from benchmarks.belief_networks import Wrapped, digits, natural_base, plain_base
from gkl.attacks.classifier import Classifier
from gkl.attacks.perturbation import is_allowed
from gkl.data import unit_range
from gkl.evaluation import Blocks, Measurement, measure
from gkl.evaluation.transfer import OtherExamples
from gkl.files import sha256_of
from gkl.formats.tensor_files import save_tensors
from gkl.outcome import CheckOutcome
from gkl.spec import Evaluation, ThreatModel

pytestmark = [pytest.mark.system, pytest.mark.usefixtures("short_attacks")]

POINTS = 24
EVALUATION = Evaluation(protocol="standard", threat_model=ThreatModel(epsilon=0.2), batch_size=POINTS)


class Hidden(Wrapped):
    """Answers without a slope: in steps that no small move changes, and with no use to Square."""

    def forward(self, images: Tensor) -> Tensor:
        logits = self.net(images)
        answer = nn.functional.one_hot(logits.argmax(1), 10).to(logits)
        return answer + 1e-7 * logits.detach() + 0 * logits


def written(path: Path, verdict: Measurement) -> Path:
    tensors = {"index": verdict.index, "adversarial": verdict.adversarial}
    save_tensors(path, tensors, {})
    return path


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("certificates")
    quick = EVALUATION.model_copy(update={"protocol": "custom", "attacks": ("apgd-ce",)})
    return [
        written(folder / f"{name}.safetensors", measure(net, digits(POINTS), quick, num_classes=10))
        for name, net in (("plain", plain_base()), ("natural", natural_base()))
    ]


def transfer(verdict: Measurement) -> CheckOutcome:
    return next(check for check in verdict.checks if check.name == "transfer")


def test_a_network_without_slopes_falls_to_examples_of_others(others: list[Path]) -> None:
    data, net = digits(POINTS), Hidden(plain_base()).eval()
    alone = measure(net, data, EVALUATION, num_classes=10)
    assert "Transfer" not in {attack.attack for attack in alone.attacks}
    assert not transfer(alone).ran
    assert "no certificate" in transfer(alone).note
    found = measure(net, data, EVALUATION, num_classes=10, others=others)
    last = found.attacks[-1]
    assert (last.attack, last.points) == ("Transfer", alone.robust_correct)
    assert last.broken == transfer(found).value > 3
    assert found.robust_correct == alone.robust_correct - last.broken
    # Only those that were read: the first may break all.
    assert set(transfer(found).sources) <= set(map(sha256_of, others))
    assert transfer(found).sources
    assert "gap" in {flag.name for flag in found.flags}
    images = unit_range(data.images[found.index])
    assert is_allowed(found.adversarial, images, ThreatModel(epsilon=0.2))[0].all()
    own = Classifier(net, 10)
    assert torch.equal(own.predict(found.adversarial), found.adversarial_prediction)


def test_each_point_takes_the_first_example_that_holds(others: list[Path]) -> None:
    data = digits(POINTS)
    x, y, index = unit_range(data.images), data.labels, torch.arange(POINTS)
    own = Classifier(plain_base(), 10)
    given = OtherExamples(others, (1, 8, 8))
    found = given.perturb(own, x, y, index, ThreatModel(epsilon=0.2))
    moved = (found != x).flatten(1).any(1)
    assert moved.sum() > 10
    assert (own.predict(found) != y)[moved].all()
    assert is_allowed(found, x, ThreatModel(epsilon=0.2))[0].all()
    # A smaller ball takes none of them, and the points asked may be any.
    smaller = given.perturb(own, x, y, index, ThreatModel(epsilon=0.01))
    assert torch.equal(smaller, x)
    some = index[5::7]
    assert torch.equal(given.perturb(own, x[some], y[some], some, ThreatModel(epsilon=0.2)), found[some])


def test_files_that_cannot_be_used_are_left_out_and_named(others: list[Path], tmp_path: Path) -> None:
    text = tmp_path / "text.safetensors"
    text.write_text("nothing")
    wide = tmp_path / "wide.safetensors"
    save_tensors(wide, {"index": torch.zeros(1, dtype=torch.int64), "adversarial": torch.zeros(1, 3, 8, 8)}, {})
    given = OtherExamples([text, wide, *others, tmp_path / "missing.safetensors"], (1, 8, 8))
    assert list(given.files.values()) == others
    assert len(given.unusable) == 3
    assert "(3, 8, 8)" in given.unusable[1]


def test_a_file_that_goes_away_while_it_is_used_breaks_nothing(others: list[Path], tmp_path: Path) -> None:
    copied = tmp_path / "copy.safetensors"
    copied.write_bytes(others[0].read_bytes())
    given = OtherExamples([copied], (1, 8, 8))
    copied.unlink()
    x = torch.rand(3, 1, 8, 8)
    own = Classifier(plain_base(), 10)
    assert torch.equal(given.perturb(own, x, torch.zeros(3).long(), torch.arange(3), ThreatModel(epsilon=0.2)), x)
    assert given.read == set(), "what could not be read was not tried"


def test_a_run_that_goes_on_loses_no_example_and_tries_new_certificates(others: list[Path]) -> None:
    data, net, blocks = digits(POINTS), Hidden(plain_base()).eval(), Blocks(None, {})
    first = measure(net, data, EVALUATION, num_classes=10, blocks=blocks, others=others[:1])
    assert transfer(first).sources == (sha256_of(others[0]),)
    # The first network's entry was withdrawn meanwhile, or another came.
    without = measure(net, data, EVALUATION, num_classes=10, blocks=blocks)
    assert torch.equal(without.broken_by, first.broken_by)
    assert transfer(without) == transfer(first)
    both = measure(net, data, EVALUATION, num_classes=10, blocks=blocks, others=others[1:])
    assert set(transfer(both).sources) == set(map(sha256_of, others))
    assert both.robust_correct <= first.robust_correct
    assert torch.equal(both.adversarial[torch.isin(both.index, first.index)], first.adversarial)


def test_what_is_no_image_costs_a_file_nothing_but_its_own_rows(others: list[Path], tmp_path: Path) -> None:
    data = digits(POINTS)
    x, y, index = unit_range(data.images), data.labels, torch.arange(POINTS)
    wrong = x.clone()
    wrong[::2], wrong[1::2] = torch.nan, 1e30
    hostile = tmp_path / "hostile.safetensors"
    save_tensors(hostile, {"index": index, "adversarial": wrong}, {})
    own, ball = Classifier(plain_base(), 10), ThreatModel(epsilon=0.2)
    found = OtherExamples([hostile, *others], (1, 8, 8)).perturb(own, x, y, index, ball)
    assert torch.equal(found, OtherExamples(others, (1, 8, 8)).perturb(own, x, y, index, ball))
