"""Divergences between two sets of logits, as functions of tensors. No device, no mode, no state.

`target_logits` is the side the paper calls natural image or teacher (t), `logits` the adversarial image or
student (s). Nothing is detached for the caller: gradient flows to both sides wherever the loss lets it, and
a caller that wants a fixed target detaches it.

References: Generalized Kullback-Leibler divergence, arXiv 2503.08038; its predecessor DKL/IKL,
arXiv 2305.13948; TRADES, arXiv 1901.08573.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def _at_least_float32(logits: Tensor) -> Tensor:
    """Half-precision logits lose the small differences that these losses are made of."""
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def kl_loss(logits: Tensor, target_logits: Tensor) -> Tensor:
    """KL(softmax(target_logits) || softmax(logits)), mean over the batch; the robust part of TRADES.

    Unlike `torch.nn.functional.kl_div` its gradient with respect to the target stays finite when a
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


def soft_cross_entropy(logits: Tensor, target_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """- mean_b sum_j SG(softmax(t / T))_j log_softmax(s / T)_j, without a factor T^2.

    Args:
        logits: (B, C).
        target_logits: (B, C); receives no gradient (SG is stop-gradient).
        temperature: T > 0.

    Returns:
        Scalar.

    >>> f"{soft_cross_entropy(torch.zeros(1, 4), torch.zeros(1, 4)).item():.4f}"  # log 4
    '1.3863'
    """
    target = F.softmax(_at_least_float32(target_logits).detach() / temperature, dim=1)
    return -(target * F.log_softmax(_at_least_float32(logits) / temperature, dim=1)).sum(dim=1).mean()


def weighted_mse(logits: Tensor, target_logits: Tensor, weights: Tensor) -> Tensor:
    """The wMSE part of GKL: mean squared difference of all logit differences, weighted by class pairs.

        1/4 sum_b sum_jk w_bj w_bk ((t_bj - t_bk) - (s_bj - s_bk))^2  /  sum_b sum_jk w_bj w_bk

    (arXiv 2503.08038, the wMSE term with both sides differentiable). Instead of the B * C * C tensor of
    pairs it uses, with S_b = sum_j w_bj, d = t - s and dbar_b = sum_j w_bj d_bj / S_b,

        sum_jk w_j w_k (d_j - d_k)^2 = 2 S sum_j w_j (d_j - dbar)^2,

    which is O(B * C). Each side is centered over the classes first and the squares are taken around dbar:
    expanding them instead cancels catastrophically when logits carry a common offset.

    Args:
        logits: (B, C).
        target_logits: (B, C).
        weights: (B, C), at least 0; receives no gradient. If all are 0 the loss is 0.

    Returns:
        Scalar, at least 0.

    >>> weighted_mse(torch.tensor([[0.0, 2.0]]), torch.zeros(1, 2), torch.full((1, 2), 0.5)).item()
    0.5
    """
    target, other = _at_least_float32(target_logits), _at_least_float32(logits)
    w = weights.detach().to(target.dtype)
    difference = (target - target.mean(dim=1, keepdim=True)) - (other - other.mean(dim=1, keepdim=True))
    # An all-zero row has no pairs: whatever it is divided by, its sum below is 0.
    row_sum = w.sum(dim=1, keepdim=True)
    tiny = torch.finfo(w.dtype).tiny
    center = (w * difference).sum(dim=1, keepdim=True) / row_sum.clamp_min(tiny)
    pairs = 2 * row_sum * w * (difference - center).square()
    return 0.25 * pairs.sum() / row_sum.square().sum().clamp_min(tiny)


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
    """Generalized Kullback-Leibler loss: wmse_weight * wMSE + ce_weight * CE (arXiv 2503.08038).

    With gamma = 1 and rows of `weights` that sum to 1 it is the IKL loss of arXiv 2305.13948.

    Args:
        logits: (B, C), adversarial image or student.
        target_logits: (B, C), natural image or teacher; the wMSE part passes gradient to it.
        weights: (B, C), the class prior's row of each sample's label, at least 0.
        wmse_weight: weight of the wMSE part (the authors' code calls it beta).
        ce_weight: weight of the soft-label cross-entropy part (alpha there).
        gamma: in [0, 1]; the weights are raised to it.
        temperature: T > 0 of the cross-entropy part; the wMSE part is on the raw logits.

    Returns:
        Scalar.

    >>> s, t = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 0.0]])
    >>> f"{gkl_loss(s, t, torch.full((1, 2), 0.5), wmse_weight=8.0, ce_weight=0.0).item():.4f}"
    '1.0000'
    """
    smoothed = weights if gamma == 1.0 else weights**gamma
    wmse = weighted_mse(logits, target_logits, smoothed)
    return wmse_weight * wmse + ce_weight * soft_cross_entropy(logits, target_logits, temperature)
