"""torch's own optimizers, made from a spec.

Three methods of the classes in torch.optim import torch's compiler (`torch._dynamo`) even if nothing is compiled, which
costs about two seconds per run. Wrappers around these methods import it. The wrappers are made with `functools.wraps`,
which keeps the plain method in `__wrapped__`. The subclasses here use the plain methods.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from gkl.spec import AdamW, Optimizer, Sgd


def _without_compiler(method_of_torch: Any) -> Any:
    plain = method_of_torch
    # Not `inspect.unwrap`, which fails on the mock of torch that the documentation is built with.
    while "__wrapped__" in vars(plain):
        plain = plain.__wrapped__
    return torch.no_grad()(plain)


class PlainSgd(torch.optim.SGD):
    """`torch.optim.SGD` that does not import torch's compiler."""

    add_param_group = _without_compiler(torch.optim.Optimizer.add_param_group)
    zero_grad = _without_compiler(torch.optim.Optimizer.zero_grad)
    step = _without_compiler(torch.optim.SGD.step)


class PlainAdamW(torch.optim.AdamW):
    """`torch.optim.AdamW` that does not import torch's compiler."""

    add_param_group = _without_compiler(torch.optim.Optimizer.add_param_group)
    zero_grad = _without_compiler(torch.optim.Optimizer.zero_grad)
    step = _without_compiler(torch.optim.AdamW.step)


def make_optimizer(model: nn.Module, spec: Optimizer) -> torch.optim.Optimizer:
    """Make the optimizer of a spec. If the spec says so, BatchNorm's parameters get no weight decay."""
    normalization = {id(p) for m in model.modules() if isinstance(m, _BatchNorm) for p in m.parameters(recurse=False)}
    apart = normalization if not spec.decay_batch_norm else set()
    groups = [
        {"params": [p for p in model.parameters() if id(p) not in apart], "weight_decay": spec.weight_decay},
        {"params": [p for p in model.parameters() if id(p) in apart], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    match spec:
        case Sgd():
            return PlainSgd(groups, lr=spec.learning_rate, momentum=spec.momentum, nesterov=spec.nesterov)
        case AdamW():
            return PlainAdamW(groups, lr=spec.learning_rate, betas=spec.betas, eps=spec.eps)


def set_rates(optimizer: torch.optim.Optimizer, *, learning_rate: float, momentum: float) -> None:
    """Set learning rate and momentum for the next step. AdamW's momentum is its first beta."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
        if "momentum" in group:
            group["momentum"] = momentum
        else:
            group["betas"] = (momentum, group["betas"][1])


def optimizer_state(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """Return the optimizer's tensors for each parameter, by names such as 'momentum_buffer.conv1.weight'.

    A parameter that has not been updated yet has none.
    """
    return {
        f"{what}.{name}": tensor
        for name, parameter in model.named_parameters()
        for what, tensor in optimizer.state.get(parameter, {}).items()
        if tensor is not None
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module, saved: dict[str, Tensor]) -> None:
    """Load what `optimizer_state` returned."""
    parameters = dict(model.named_parameters())
    optimizer.state.clear()
    for key, tensor in saved.items():
        what, _, name = key.partition(".")
        parameter = parameters[name]
        # AdamW keeps its count of steps on the CPU. Other tensors get the device and the memory layout of their
        # parameter, because an update reads both together.
        kept = tensor if what == "step" else torch.empty_like(parameter, requires_grad=False).copy_(tensor)
        optimizer.state[parameter][what] = kept
