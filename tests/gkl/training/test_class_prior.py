from __future__ import annotations

import torch
from torch.nn import functional as F

from gkl.training.class_prior import ClassPrior


def test_rows_are_the_mean_predictions_of_the_epoch_before() -> None:
    prior = ClassPrior(3, temperature=2.0, device=torch.device("cpu"))
    logits = torch.randn(10, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 0, 1, 0, 1, 0, 1, 0, 1])
    assert torch.equal(prior.of(labels), torch.full((10, 3), 1 / 3))

    prior.accumulate(logits[:4], labels[:4])
    prior.accumulate(logits[4:], labels[4:])
    assert torch.equal(prior.of(labels), torch.full((10, 3), 1 / 3)), "used only from the next epoch on"

    prior.finish_epoch()
    expected = F.softmax(logits / 2.0, dim=1)
    torch.testing.assert_close(prior.rows[0], expected[labels == 0].mean(0))
    torch.testing.assert_close(prior.rows[1], expected[labels == 1].mean(0))


def test_a_class_without_samples_keeps_its_row() -> None:
    prior = ClassPrior(3, temperature=1.0, device=torch.device("cpu"))
    prior.accumulate(torch.eye(3), torch.tensor([0, 1, 2]))
    prior.finish_epoch()
    before = prior.rows[2].clone()
    prior.accumulate(torch.randn(2, 3), torch.tensor([0, 1]))
    prior.finish_epoch()
    assert torch.equal(prior.rows[2], before)
    assert prior.rows.isfinite().all()
