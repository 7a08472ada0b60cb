"""Divergences between two sets of logits, as functions of tensors without state.

`target_logits` are the logits of the natural image or the teacher (t in the papers), `logits` those of the adversarial
image or the student (s). Gradient flows to both sides unless the loss stops it; detach the target if it should be
fixed. Every loss takes O(B * C) time and memory, and computes in at least float32, also for half-precision logits.

References: Generalized Kullback-Leibler divergence, arXiv 2503.08038; its predecessor DKL/IKL,
arXiv 2305.13948; TRADES, arXiv 1901.08573; knowledge distillation, arXiv 1503.02531; DKD, arXiv 2203.08679.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


def kl_loss(logits: Tensor, target_logits: Tensor) -> Tensor:
    """KL divergence KL(softmax(target_logits) || softmax(logits)), mean over the batch; the robust part of TRADES.

    Unlike `torch.nn.functional.kl_div`, its gradient with respect to the target stays finite when a
    probability underflows to 0.

    Args:
        logits: (B, C), any real values.
        target_logits: (B, C).

    Returns:
        Scalar, at least 0; float32 for half-precision input.

    >>> kl_loss(torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 0.0]])).item()
    0.0
    """
    log_target = F.log_softmax(_at_least_float32(target_logits), dim=1)
    log_other = F.log_softmax(_at_least_float32(logits), dim=1)
    return (log_target.exp() * (log_target - log_other)).sum(dim=1).mean()


def kd_loss(logits: Tensor, target_logits: Tensor, *, temperature: float) -> Tensor:
    """Knowledge distillation: T^2 * KL(softmax(target_logits / T) || softmax(logits / T)), mean over the batch
    (Hinton et al., arXiv 1503.02531). The factor T^2 keeps the gradient's size when T changes.

    Args:
        logits: (B, C), the student's.
        target_logits: (B, C), the teacher's.
        temperature: T > 0.

    Returns:
        Scalar, at least 0; float32 for half-precision input.

    >>> kd_loss(torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0]]), temperature=4.0).item()
    0.0
    """
    other, target = _at_least_float32(logits), _at_least_float32(target_logits)
    return temperature**2 * kl_loss(other / temperature, target / temperature)


def dkd_loss(
    logits: Tensor,
    target_logits: Tensor,
    labels: Tensor,
    *,
    target_weight: float,
    non_target_weight: float,
    temperature: float,
) -> Tensor:
    """Decoupled knowledge distillation: T^2 * (target_weight * TCKD + non_target_weight * NCKD)
    (DKD, arXiv 2203.08679, equation 7).

    TCKD is the KL divergence between the two-way predictions (p_y, 1 - p_y); NCKD is the one between the predictions
    among the other classes, p_j / (1 - p_y). Each is averaged over the batch, at temperature T.

    Args:
        logits: (B, C), the student's.
        target_logits: (B, C), the teacher's.
        labels: (B,) int64.
        target_weight: alpha.
        non_target_weight: beta.
        temperature: T > 0.

    Returns:
        Scalar, at least 0 up to rounding; float32 for half-precision input.

    >>> s, t, y = torch.tensor([[2.0, 0.0, 1.0]]), torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([0])
    >>> nckd = dkd_loss(s, t, y, target_weight=0.0, non_target_weight=1.0, temperature=1.0)
    >>> f"{abs(nckd.item()):.4f}"  # the two are equal among the other classes
    '0.0000'
    """
    other = F.log_softmax(_at_least_float32(logits) / temperature, dim=1)
    target = F.log_softmax(_at_least_float32(target_logits) / temperature, dim=1)
    is_label = F.one_hot(labels, logits.shape[1]).bool()

    def parts(log_probabilities: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 2) log-probabilities of the label and of all others; (B, C) among the others, 0 at the label."""
        rest = log_probabilities.masked_fill(is_label, -torch.inf)
        log_rest = rest.logsumexp(dim=1, keepdim=True)
        two_way = torch.cat([log_probabilities[is_label][:, None], log_rest], dim=1)
        return two_way, (log_probabilities - log_rest).masked_fill(is_label, 0.0)

    (two_way, among), (target_two_way, target_among) = parts(other), parts(target)
    tckd = (target_two_way.exp() * (target_two_way - two_way)).sum(dim=1).mean()
    # At the label both logarithms are 0, so that its term is too.
    nckd = (target_among.exp() * (target_among - among)).sum(dim=1).mean()
    return temperature**2 * (target_weight * tckd + non_target_weight * nckd)


def dkl_loss(logits: Tensor, target_logits: Tensor) -> Tensor:
    """Decoupled KL divergence: same gradients as `kl_loss`, but another value (arXiv 2305.13948, theorem 1).

        1/(4B) sum_b sum_jk SG(p_bj p_bk) ((t_bj - t_bk) - SG(s_bj - s_bk))^2  -  1/B sum_b sum_j SG(p_bj) log q_bj

    with p = softmax(t), q = softmax(s) and SG the stop-gradient. Only the first term has a gradient with respect to t,
    only the second with respect to s.

    Args:
        logits: (B, C), any real values.
        target_logits: (B, C).

    Returns:
        Scalar; float32 for half-precision input.

    >>> s, t = torch.tensor([[0.0, 0.0]], requires_grad=True), torch.tensor([[1.0, 0.0]], requires_grad=True)
    >>> decoupled = torch.autograd.grad(dkl_loss(s, t), (s, t))
    >>> [torch.allclose(d, k) for d, k in zip(decoupled, torch.autograd.grad(kl_loss(s, t), (s, t)))]
    [True, True]
    """
    target, other = _at_least_float32(target_logits), _at_least_float32(logits)
    weights = F.softmax(target.detach(), dim=1)
    total: Tensor = _WeightedLoss.apply(other, target, weights, 1.0, 1.0, _Form("samples", decoupled=True))[0]
    return total


def ikl_loss(logits: Tensor, target_logits: Tensor, weights: Tensor, *, wmse_weight: float, ce_weight: float) -> Tensor:
    """Improved KL: DKL with class-wise weights and a wMSE term whose gradient reaches both sides (arXiv 2305.13948).

        wmse_weight/(4B) sum_b sum_jk w_bj w_bk ((t_bj - t_bk) - (s_bj - s_bk))^2
        - ce_weight/B sum_b sum_j SG(p_bj) log q_bj

    Args:
        logits: (B, C), adversarial image or student.
        target_logits: (B, C), natural image or teacher.
        weights: (B, C), the class prior's row of each sample's label, at least 0; gets no gradient.
        wmse_weight: weight of the wMSE term; alpha in the paper's text, `beta` in the authors' code.
        ce_weight: weight of the cross-entropy term; beta in the paper's text, `alpha` in the authors' code.

    Returns:
        Scalar; float32 for half-precision input.

    >>> s, t = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 0.0]])
    >>> f"{ikl_loss(s, t, torch.full((1, 2), 0.5), wmse_weight=8.0, ce_weight=0.0).item():.4f}"
    '1.0000'
    """
    other, target, w = _prepared(logits, target_logits, weights)
    total: Tensor = _WeightedLoss.apply(other, target, w, wmse_weight, ce_weight, _Form("samples"))[0]
    return total


def gkl_loss(
    logits: Tensor,
    target_logits: Tensor,
    weights: Tensor,
    *,
    wmse_weight: float,
    ce_weight: float,
    gamma: float = 1.0,
    temperature: float = 1.0,
) -> Tensor:
    """Generalized Kullback-Leibler loss: wmse_weight * wMSE + ce_weight * CE (arXiv 2503.08038), w = weights ** gamma:

        wMSE = 1/4 sum_b sum_jk w_bj w_bk ((t_bj - t_bk) - (s_bj - s_bk))^2  /  sum_b sum_jk w_bj w_bk
        CE   = - 1/B sum_b sum_j SG(softmax(t / T))_bj log_softmax(s / T)_bj,  without a factor T^2

    It equals `ikl_loss` if gamma = 1, temperature = 1 and the rows of `weights` sum to 1.

    Args:
        logits: (B, C), adversarial image or student.
        target_logits: (B, C), natural image or teacher; only the wMSE part passes gradient to it.
        weights: (B, C), the class prior's row of each sample's label, at least 0; gets no gradient. If all
            are 0, wMSE is 0.
        wmse_weight: weight of the wMSE part (`beta` in the authors' code).
        ce_weight: weight of the soft-label cross-entropy part (`alpha` in the authors' code).
        gamma: exponent of the weights, in [0, 1].
        temperature: T > 0 of the cross-entropy part; the wMSE part uses the raw logits.

    Returns:
        Scalar; float32 for half-precision input.

    >>> s, t = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 0.0]])
    >>> f"{gkl_loss(s, t, torch.full((1, 2), 0.5), wmse_weight=8.0, ce_weight=0.0).item():.4f}"
    '1.0000'
    """
    return gkl_loss_and_parts(
        logits,
        target_logits,
        weights,
        wmse_weight=wmse_weight,
        ce_weight=ce_weight,
        gamma=gamma,
        temperature=temperature,
    )[0]


def gkl_loss_and_parts(
    logits: Tensor,
    target_logits: Tensor,
    weights: Tensor,
    *,
    wmse_weight: float,
    ce_weight: float,
    gamma: float = 1.0,
    temperature: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """`gkl_loss` and its unweighted parts for logging: the scalars (loss, wMSE, CE). The parts carry no gradient.

    >>> sides = torch.zeros(1, 4)
    >>> loss, wmse, ce = gkl_loss_and_parts(sides, sides, torch.full((1, 4), 0.25), wmse_weight=1.0, ce_weight=2.0)
    >>> f"{loss.item():.4f}", wmse.item(), f"{ce.item():.4f}"  # log 4 twice and once
    ('2.7726', 0.0, '1.3863')
    """
    other, target, w = _prepared(logits, target_logits, weights)
    smoothed = w if gamma == 1.0 else w**gamma
    results: tuple[Tensor, Tensor, Tensor] = _WeightedLoss.apply(
        other, target, smoothed, wmse_weight, ce_weight, _Form("pairs", temperature)
    )
    return results


def _at_least_float32(logits: Tensor) -> Tensor:
    """Convert half-precision logits to float32: these losses sum small differences, which half precision would lose."""
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def _prepared(logits: Tensor, target_logits: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    other, target = _at_least_float32(logits), _at_least_float32(target_logits)
    return other, target, weights.to(target.dtype)


class _Form(NamedTuple):
    """Which of the losses to compute."""

    normalizer: Literal["samples", "pairs"]
    """Divisor of wMSE: B (DKL, IKL), or sum_b S_b^2 (GKL)."""
    temperature: float = 1.0
    decoupled: bool = False
    """True for DKL, whose wMSE has a gradient with respect to t only, and whose weights are softmax(t)."""


class _WeightedLoss(torch.autograd.Function):
    """wmse_weight * wMSE + ce_weight * CE of (B, C) logits in one pass, with its gradient in closed form.

    The papers write the wMSE term with B * C * C differences. With S_b = sum_j w_bj, d = t - s and
    dbar_b = sum_j w_bj d_bj / S_b it is

        1/4 sum_jk w_j w_k (d_j - d_k)^2 = 1/2 S sum_j w_j (d_j - dbar)^2,  with gradient  S w_j (d_j - dbar)

    with respect to d_j. The squares are not expanded, since the expanded form suffers from cancellation when the logits
    have a common offset. Operations are in place and the gradient is explicit, because the cost consists of launching
    small kernels and of new (B, C) buffers: as plain tensor operations under autograd the loss is slower than KL
    (`benchmarks/losses.py`).
    """

    @staticmethod
    def forward(  # noqa: PLR0917
        ctx: Any, s: Tensor, t: Tensor, w: Tensor, wmse_weight: float, ce_weight: float, form: _Form
    ) -> tuple[Tensor, Tensor, Tensor]:
        temperature, batch = form.temperature, len(s)
        # For a row of zeros all terms are 0, so that its divisor may be any positive number. This one is so large that
        # its inverse stays finite when it is multiplied by a loss weight.
        smallest = torch.finfo(w.dtype).tiny ** 0.5
        row_sum = w.sum(dim=1, keepdim=True).clamp_min_(smallest)
        # Subtracts an offset from each side first, since t and s may have very different offsets.
        centered = (t - t[:, :1]).sub_(s - s[:, :1])
        gradient = w * centered
        centered.sub_(gradient.sum(dim=1, keepdim=True).div_(row_sum))
        torch.mul(w, centered, out=gradient).mul_(row_sum)
        inverse: Tensor | float = 1 / batch
        if form.normalizer == "pairs":
            inverse = row_sum.square_().sum().clamp_min_(smallest).reciprocal_()
        wmse = centered.mul_(gradient).sum().mul_(inverse).mul_(0.5)
        # DKL's weights are its target.
        target = w if form.decoupled else F.softmax(t if temperature == 1.0 else t / temperature, dim=1)
        log_other = F.log_softmax(s if temperature == 1.0 else s / temperature, dim=1)
        # Reuses the buffer of the squares.
        ce = torch.mul(target, log_other, out=centered).sum().div_(-batch)
        ctx.save_for_backward(gradient, target, log_other)
        ctx.inverse, ctx.wmse_weight, ctx.scale_s = inverse, wmse_weight, ce_weight / (temperature * batch)
        ctx.decoupled = form.decoupled
        ctx.mark_non_differentiable(wmse, ce)
        return torch.add(wmse * wmse_weight, ce, alpha=ce_weight), wmse, ce

    @staticmethod
    def backward(
        ctx: Any, grad_loss: Tensor, *_: Tensor
    ) -> tuple[Tensor | None, Tensor | None, None, None, None, None]:
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            # With create_graph=True autograd would treat the gradient as a constant, and second derivatives would be
            # wrong.
            raise RuntimeError("the DKL, IKL and GKL losses have no second derivative; use create_graph=False")
        gradient, target, log_other = ctx.saved_tensors
        grad_s = grad_t = None
        if ctx.needs_input_grad[1] or not ctx.decoupled:
            grad_t = gradient * (grad_loss * ctx.wmse_weight * ctx.inverse)
        if ctx.needs_input_grad[0]:
            grad_s = log_other.exp().sub_(target).mul_(grad_loss * ctx.scale_s)
            if not ctx.decoupled:
                grad_s.sub_(grad_t)
        return grad_s, grad_t if ctx.needs_input_grad[1] else None, None, None, None, None
