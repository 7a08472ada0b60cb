"""torch's own optimizers, made from a spec.

The classes of torch.optim import torch's compiler (`torch._dynamo`) when they are made and at every step, whether
anything is compiled or not: about two seconds of each run. What imports it are wrappers around three methods, put on
with `functools.wraps`, which leaves the plain method within reach. The subclasses here use the plain methods.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from gkl.spec import AdamW, Optimizer, Sgd


def _without_compiler(method_of_torch: Any) -> Any:
    plain = method_of_torch
    # Not `inspect.unwrap`: it refuses the stand-in for torch with which the documentation is built.
    while "__wrapped__" in vars(plain):
        plain = plain.__wrapped__
    return torch.no_grad()(plain)


class PlainSgd(torch.optim.SGD):
    """`torch.optim.SGD` that leaves torch's compiler alone."""

    add_param_group = _without_compiler(torch.optim.Optimizer.add_param_group)
    zero_grad = _without_compiler(torch.optim.Optimizer.zero_grad)
    step = _without_compiler(torch.optim.SGD.step)


class PlainAdamW(torch.optim.AdamW):
    """`torch.optim.AdamW` that leaves torch's compiler alone."""

    add_param_group = _without_compiler(torch.optim.Optimizer.add_param_group)
    zero_grad = _without_compiler(torch.optim.Optimizer.zero_grad)
    step = _without_compiler(torch.optim.AdamW.step)


def make_optimizer(model: nn.Module, spec: Optimizer) -> torch.optim.Optimizer:
    """The optimizer of a spec, whose weight decay leaves BatchNorm alone if the spec says so."""
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
    """Set what a schedule moves, for the next step. The momentum of AdamW is its first beta."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
        if "momentum" in group:
            group["momentum"] = momentum
        else:
            group["betas"] = (momentum, group["betas"][1])


def optimizer_state(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """What the optimizer keeps of each parameter, as `<what>.<parameter>`: 'momentum_buffer.conv1.weight'.

    A parameter that has not been updated yet has nothing.
    """
    return {
        f"{what}.{name}": tensor
        for name, parameter in model.named_parameters()
        for what, tensor in optimizer.state.get(parameter, {}).items()
        if tensor is not None
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module, saved: dict[str, Tensor]) -> None:
    """Put back what `optimizer_state` gave."""
    parameters = dict(model.named_parameters())
    optimizer.state.clear()
    for key, tensor in saved.items():
        what, _, name = key.partition(".")
        parameter = parameters[name]
        # AdamW keeps the count of steps on the CPU. Other tensors take the parameter's memory layout: an update reads
        # both.
        kept = tensor if what == "step" else torch.empty_like(parameter, requires_grad=False).copy_(tensor)
        optimizer.state[parameter][what] = kept
