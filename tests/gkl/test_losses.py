"""The losses against the formula written out pair by pair, and against autograd in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from gkl.losses import gkl_loss, kl_loss, soft_cross_entropy, weighted_mse


def pairwise_wmse(s: Tensor, t: Tensor, w: Tensor) -> Tensor:
    """The wMSE part as the paper prints it: B * C * C differences."""
    dt = t[:, :, None] - t[:, None, :]
    ds = s[:, :, None] - s[:, None, :]
    ww = w[:, :, None] * w[:, None, :]
    return 0.25 * (ww * (dt - ds) ** 2).sum() / ww.sum()


def logits(batch: int, classes: int, scale: float = 1.0, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    s, t, w = (torch.randn(batch, classes, dtype=torch.float64, generator=generator) for _ in range(3))
    return scale * s, scale * t, F.softmax(w, dim=1)


@pytest.mark.parametrize("classes", [2, 10, 100])
@pytest.mark.parametrize("scale", [1.0, 5.0, 50.0])
def test_weighted_mse_equals_the_pairwise_formula_with_its_gradients(classes: int, scale: float) -> None:
    s, t, w = logits(7, classes, scale)
    s.requires_grad_()
    t.requires_grad_()
    ours, reference = weighted_mse(s, t, w), pairwise_wmse(s, t, w)
    torch.testing.assert_close(ours, reference, rtol=1e-12, atol=0)
    for mine, theirs in zip(torch.autograd.grad(ours, (s, t)), torch.autograd.grad(reference, (s, t)), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("classes", [2, 10, 100, 1000])
def test_kl_and_the_decoupled_form_have_equal_gradients(classes: int) -> None:
    """arXiv 2305.13948, theorem 1: wMSE drives the target side and the cross-entropy the other."""
    s, t, _ = logits(4, classes, 5.0)
    s.requires_grad_()
    t.requires_grad_()
    p = F.softmax(t.detach(), dim=1)
    # Without breaking the asymmetry: the wMSE part sees a fixed s.
    decoupled = weighted_mse(s.detach(), t, p) + soft_cross_entropy(s, t)
    for mine, theirs in zip(
        torch.autograd.grad(decoupled, (s, t)), torch.autograd.grad(kl_loss(s, t), (s, t)), strict=True
    ):
        assert (mine - theirs).abs().max() <= 1e-12 * theirs.abs().max()


def test_gkl_is_the_weighted_sum_with_smoothed_weights() -> None:
    s, t, w = logits(6, 10)
    expected = (
        20.0 * pairwise_wmse(s, t, w**0.4)
        - 4.0 * (F.softmax(t / 2, dim=1) * F.log_softmax(s / 2, dim=1)).sum(dim=1).mean()
    )
    ours = gkl_loss(s, t, w, wmse_weight=20.0, ce_weight=4.0, gamma=0.4, temperature=2.0)
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("shift", [0.0, 1000.0])
def test_float32_stays_exact_under_a_common_offset(shift: float) -> None:
    s, t, w = logits(16, 100)
    exact = weighted_mse(s, t, w)
    ours = weighted_mse((s + shift).float(), (t + shift).float(), w.float())
    # The offset itself costs float32 the digits below 1000 * 2**-24; nothing more may be lost.
    assert abs(ours.item() - exact.item()) <= (1e-6 if shift == 0 else 1e-3) * exact.item()


def test_nearly_equal_sides_do_not_cancel() -> None:
    s, _, w = logits(16, 100)
    t = s + 1e-3 * torch.randn(s.shape, dtype=s.dtype, generator=torch.Generator().manual_seed(1))
    ours = weighted_mse(s.float(), t.float(), w.float()).item()
    assert ours == pytest.approx(pairwise_wmse(s.float().double(), t.float().double(), w).item(), rel=1e-4)


def test_zero_weights_and_equal_sides_give_zero_with_finite_gradients() -> None:
    s, t, _ = logits(1, 5)
    s.requires_grad_()
    loss = weighted_mse(s, t, torch.zeros_like(s))
    (gradient,) = torch.autograd.grad(loss, s)
    assert loss.item() == 0
    assert gradient.abs().max() == 0
    assert weighted_mse(t, t, torch.ones_like(t)).item() == 0


def test_kl_gradient_is_finite_where_probabilities_underflow() -> None:
    s = torch.tensor([[0.0, 500.0, -500.0]], requires_grad=True)
    t = torch.tensor([[500.0, 0.0, -500.0]], requires_grad=True)
    for gradient in torch.autograd.grad(kl_loss(s, t), (s, t)):
        assert gradient.isfinite().all()


def test_half_precision_is_computed_in_float32() -> None:
    s, t, w = (x.bfloat16() for x in logits(8, 10))
    loss = gkl_loss(s, t, w, wmse_weight=1.0, ce_weight=1.0)
    exact = gkl_loss(s.double(), t.double(), w.double(), wmse_weight=1.0, ce_weight=1.0)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=1e-5)


def test_weights_receive_no_gradient() -> None:
    s, t, w = logits(2, 3)
    w.requires_grad_()
    s.requires_grad_()
    gkl_loss(s, t, w, wmse_weight=1.0, ce_weight=1.0).backward()
    assert w.grad is None
