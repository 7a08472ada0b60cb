"""The losses against the formula written out pair by pair, and against autograd in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from gkl.losses import dkl_loss, gkl_loss, gkl_loss_and_parts, ikl_loss, kl_loss

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]

OURS: dict[str, Loss] = {
    "kl": lambda s, t, w: kl_loss(s, t),
    "dkl": lambda s, t, w: dkl_loss(s, t),
    "ikl": lambda s, t, w: ikl_loss(s, t, w, wmse_weight=20.0, ce_weight=4.0),
    "gkl": lambda s, t, w: gkl_loss(s, t, w, wmse_weight=20.0, ce_weight=4.0, gamma=0.4, temperature=2.0),
}


def pairs(s: Tensor, t: Tensor, w: Tensor) -> Tensor:
    """Per sample, sum_jk w_j w_k ((t_j - t_k) - (s_j - s_k))^2 as the papers print it: B * C * C differences."""
    dt = t[:, :, None] - t[:, None, :]
    ds = s[:, :, None] - s[:, None, :]
    return (w[:, :, None] * w[:, None, :] * (dt - ds) ** 2).sum(dim=(1, 2))


def soft_ce(s: Tensor, t: Tensor, temperature: float = 1.0) -> Tensor:
    p = F.softmax(t.detach() / temperature, dim=1)
    return -(p * F.log_softmax(s / temperature, dim=1)).sum(dim=1).mean()


def pairwise_gkl(s: Tensor, t: Tensor, w: Tensor) -> Tensor:
    smoothed = w**0.4
    normalizer = (smoothed[:, :, None] * smoothed[:, None, :]).sum()
    return 20.0 * 0.25 * pairs(s, t, smoothed).sum() / normalizer + 4.0 * soft_ce(s, t, 2.0)


PAIRWISE: dict[str, Loss] = {
    "kl": lambda s, t, w: (F.softmax(t, 1) * (F.log_softmax(t, 1) - F.log_softmax(s, 1))).sum(1).mean(),
    "dkl": lambda s, t, w: 0.25 * pairs(s.detach(), t, F.softmax(t.detach(), dim=1)).mean() + soft_ce(s, t),
    "ikl": lambda s, t, w: 20.0 * 0.25 * pairs(s, t, w).mean() + 4.0 * soft_ce(s, t),
    "gkl": pairwise_gkl,
}


def logits(batch: int, classes: int, scale: float = 1.0, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    s, t, w = (torch.randn(batch, classes, dtype=torch.float64, generator=generator) for _ in range(3))
    return (scale * s).requires_grad_(), (scale * t).requires_grad_(), F.softmax(w, dim=1)


def assert_equal_gradients(ours: Tensor, reference: Tensor, sides: tuple[Tensor, Tensor], relative: float) -> None:
    """Relative to the largest gradient of the batch, which autograd itself knows no better than that."""
    for mine, theirs in zip(torch.autograd.grad(ours, sides), torch.autograd.grad(reference, sides), strict=True):
        assert (mine - theirs).abs().max() <= relative * theirs.abs().max()


@pytest.mark.parametrize("classes", [2, 10, 100, 1000])
@pytest.mark.parametrize("scale", [1.0, 5.0, 50.0])
def test_kl_and_the_decoupled_form_have_equal_gradients(classes: int, scale: float) -> None:
    """arXiv 2305.13948, theorem 1: wMSE drives the target side and the cross-entropy the other."""
    s, t, _ = logits(64, classes, scale)
    assert_equal_gradients(dkl_loss(s, t), kl_loss(s, t), (s, t), 1e-12)


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("classes", [2, 10, 100])
@pytest.mark.parametrize("scale", [1.0, 5.0, 50.0])
@pytest.mark.parametrize("batch", [1, 7])
def test_a_loss_equals_the_pairwise_formula_with_its_gradients(
    name: str, classes: int, scale: float, batch: int
) -> None:
    s, t, w = logits(batch, classes, scale)
    ours, reference = OURS[name](s, t, w), PAIRWISE[name](s, t, w)
    torch.testing.assert_close(ours, reference, rtol=1e-12, atol=1e-14)
    # A single sample whose softmax is saturated has gradients near 0, of which float64 knows few digits.
    for mine, theirs in zip(torch.autograd.grad(ours, (s, t)), torch.autograd.grad(reference, (s, t)), strict=True):
        assert (mine - theirs).abs().max() <= 1e-11 * theirs.abs().max() + 1e-14 * scale**2


@pytest.mark.parametrize("name", OURS)
def test_a_loss_passes_gradcheck(name: str) -> None:
    """Against finite differences, which know no stop-gradient: on the sides of a loss that have none."""
    s, t, w = logits(3, 5)
    if name == "kl":
        assert torch.autograd.gradcheck(kl_loss, (s, t))
    elif name == "dkl":
        # Both sides stop somewhere; by theorem 1 its gradient is that of KL.
        assert_equal_gradients(dkl_loss(s, t), kl_loss(s, t), (s, t), 1e-12)
    else:
        assert torch.autograd.gradcheck(lambda s: OURS[name](s, t.detach(), w), s)
        # Without the cross-entropy no gradient is stopped, and both sides can be checked.
        assert torch.autograd.gradcheck(
            lambda s, t: gkl_loss(s, t, w, wmse_weight=1.0, ce_weight=0.0, gamma=0.4), (s, t)
        )


def test_gkl_with_gamma_one_is_ikl() -> None:
    s, t, w = logits(6, 10)
    ikl = ikl_loss(s, t, w, wmse_weight=20.0, ce_weight=4.0)
    gkl = gkl_loss(s, t, w, wmse_weight=20.0, ce_weight=4.0)
    torch.testing.assert_close(gkl, ikl, rtol=1e-12, atol=0)


def test_gkl_is_the_weighted_sum_of_its_parts() -> None:
    s, t, w = logits(6, 10)
    options = {"wmse_weight": 12.0, "ce_weight": 5.0, "gamma": 0.3, "temperature": 4.0}
    whole, wmse, ce = gkl_loss_and_parts(s, t, w, **options)
    torch.testing.assert_close(whole, 12.0 * wmse + 5.0 * ce, rtol=1e-12, atol=0)
    torch.testing.assert_close(ce, soft_ce(s, t, 4.0), rtol=1e-12, atol=0)
    assert whole.requires_grad
    assert not wmse.requires_grad
    assert not ce.requires_grad


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("shift", [(0.0, 0.0), (1000.0, 1000.0), (1000.0, 0.0), (0.0, -100_000.0)])
def test_float32_stays_exact_under_common_offsets(name: str, shift: tuple[float, float]) -> None:
    """Value and gradients, against float64 on what float32 keeps of the shifted logits."""
    s, t, w = (x.detach() for x in logits(16, 100))
    s32, t32 = (s + shift[0]).float().requires_grad_(), (t + shift[1]).float().requires_grad_()
    s64, t64 = s32.detach().double().requires_grad_(), t32.detach().double().requires_grad_()
    ours, exact = OURS[name](s32, t32, w.float()), PAIRWISE[name](s64, t64, w)
    assert ours.item() == pytest.approx(exact.item(), rel=3e-6)
    gradients = torch.autograd.grad(ours, (s32, t32)), torch.autograd.grad(exact, (s64, t64))
    for mine, theirs in zip(*gradients, strict=True):
        assert (mine - theirs).abs().max() <= 3e-6 * theirs.abs().max()


@pytest.mark.parametrize("name", ["dkl", "ikl", "gkl"])
def test_nearly_equal_sides_do_not_cancel(name: str) -> None:
    s, _, w = (x.detach() for x in logits(16, 100))
    t = s + 1e-3 * torch.randn(s.shape, dtype=s.dtype, generator=torch.Generator().manual_seed(1))
    s32, t32 = s.float().requires_grad_(), t.float().requires_grad_()
    s64, t64 = s32.detach().double().requires_grad_(), t32.detach().double().requires_grad_()
    # The target side's gradient comes from the small differences alone.
    (ours,) = torch.autograd.grad(OURS[name](s32, t32, w.float()), t32)
    (exact,) = torch.autograd.grad(PAIRWISE[name](s64, t64, w), t64)
    assert (ours - exact).abs().max() <= 1e-3 * exact.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rows", [1, 5])
def test_zero_weights_give_the_cross_entropy_alone(rows: int, dtype: torch.dtype) -> None:
    s, t, _ = (x.detach().to(dtype).requires_grad_() for x in logits(rows, 5))
    loss = gkl_loss(s, t, torch.zeros_like(s), wmse_weight=1000.0, ce_weight=4.0)
    torch.testing.assert_close(loss, 4.0 * soft_ce(s, t))
    for mine, theirs in zip(
        torch.autograd.grad(loss, (s, t)),
        (torch.autograd.grad(4.0 * soft_ce(s, t), s)[0], torch.zeros_like(t)),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs)


def test_equal_sides_have_no_squared_error() -> None:
    _, t, _ = logits(3, 5)
    assert gkl_loss(t, t, torch.ones_like(t), wmse_weight=1.0, ce_weight=0.0).item() == 0


@pytest.mark.parametrize("name", ["ikl", "gkl"])
def test_a_class_absent_from_the_prior_is_a_weight_of_zero(name: str) -> None:
    """One column of the prior 0, and one sample whose whole row is: both are pairs that do not count."""
    s, t, w = logits(6, 10)
    w[:, 3] = 0
    w[2] = 0
    ours, reference = OURS[name](s, t, w), PAIRWISE[name](s, t, w)
    torch.testing.assert_close(ours, reference, rtol=1e-12, atol=0)
    assert_equal_gradients(ours, reference, (s, t), 1e-11)


@pytest.mark.parametrize("name", OURS)
def test_gradients_are_finite_where_probabilities_underflow(name: str) -> None:
    s = torch.tensor([[0.0, 500.0, -500.0]], requires_grad=True)
    t = torch.tensor([[500.0, 0.0, -500.0]], requires_grad=True)
    for gradient in torch.autograd.grad(OURS[name](s, t, torch.tensor([[0.8, 0.2, 0.0]])), (s, t)):
        assert gradient.isfinite().all()


@pytest.mark.parametrize("name", OURS)
def test_half_precision_is_computed_in_float32_under_autocast_too(name: str) -> None:
    s, t, w = (x.detach().bfloat16() for x in logits(8, 10))
    with torch.autocast("cpu", torch.bfloat16):
        loss = OURS[name](s, t, w)
        assert OURS[name](s.float(), t.float(), w.float()) == loss
    assert loss.dtype == torch.float32
    exact = OURS[name](s.double(), t.double(), w.double())
    assert loss.item() == pytest.approx(exact.item(), rel=1e-5)


@pytest.mark.parametrize("name", OURS)
def test_a_loss_compiles_without_a_graph_break(name: str) -> None:
    """`fullgraph` makes a break an error; the code generator, which needs a C++ compiler, plays no part in it."""
    s, t, w = logits(4, 10)
    compiled = torch.compile(OURS[name], fullgraph=True, backend="aot_eager")
    ours, eager = compiled(s, t, w), OURS[name](s, t, w)
    torch.testing.assert_close(ours, eager, rtol=1e-12, atol=0)
    assert_equal_gradients(ours, eager, (s, t), 1e-12)


def test_weights_receive_no_gradient() -> None:
    s, t, w = logits(2, 3)
    w.requires_grad_()
    gkl_loss(s, t, w, wmse_weight=1.0, ce_weight=1.0).backward()
    assert w.grad is None


@pytest.mark.parametrize("name", ["dkl", "ikl", "gkl"])
def test_a_detached_target_leaves_the_other_sides_gradient_as_it_was(name: str) -> None:
    """Distillation: the teacher gives no gradient, and the student's is the same."""
    s, t, w = logits(5, 10)
    (both,) = torch.autograd.grad(OURS[name](s, t, w), s)
    (alone,) = torch.autograd.grad(OURS[name](s, t.detach(), w), s)
    assert torch.equal(both, alone)


@pytest.mark.parametrize("name", ["dkl", "ikl", "gkl"])
def test_a_second_derivative_is_an_error_and_not_a_wrong_number(name: str) -> None:
    s, t, w = logits(2, 3)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(OURS[name](s, t, w), s, create_graph=True)


@pytest.mark.parametrize("name", OURS)
def test_the_arguments_are_left_as_they_were(name: str) -> None:
    s, t, w = logits(4, 6)
    before = [x.detach().clone() for x in (s, t, w)]
    OURS[name](s, t, w).backward()
    assert all(torch.equal(x, kept) for x, kept in zip((s, t, w), before, strict=True))
