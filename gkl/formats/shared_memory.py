"""Tensors that lie in the same memory: one parameter under several names, or views of one another."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeVar

from torch import Tensor, nn

_T = TypeVar("_T", bound=Tensor)


def sharing(tensors: Mapping[str, Tensor]) -> list[list[str]]:
    """Groups of names whose tensors lie in one storage, of two names or more; each in the order of `tensors`."""
    groups: dict[tuple[str, int], list[str]] = {}
    for name, tensor in tensors.items():
        if tensor.numel():
            storage = tensor.untyped_storage()
            # On the meta device, where networks are built without numbers, no storage has an address.
            at = storage._cdata if tensor.device.type == "meta" else storage.data_ptr()
            groups.setdefault((str(tensor.device), at), []).append(name)
    return [names for names in groups.values() if len(names) > 1]


def aliases(tensors: Mapping[str, Tensor]) -> list[list[str]]:
    """Groups of names that are one tensor: the same numbers in the same memory, in the same order."""
    groups = []
    for names in sharing(tensors):
        same: dict[tuple[object, ...], list[str]] = {}
        for name in names:
            tensor = tensors[name]
            where = (tensor.storage_offset(), tensor.dtype, tuple(tensor.shape), tensor.stride())
            same.setdefault(where, []).append(name)
        groups += [each for each in same.values() if len(each) > 1]
    return groups


def once(tensors: Iterable[_T]) -> list[_T]:
    """Each tensor once, however often it comes; compared as objects, as `nn.Module.parameters` does."""
    return list({id(tensor): tensor for tensor in tensors}.values())


def overlapping_parameters(model: nn.Module) -> tuple[str, str] | None:
    """Names of a parameter and another parameter or buffer that are two objects in one memory; None if there are none.

    A parameter under several names is one object, and fine: moving the network to a device or another memory layout
    keeps it one. Two objects become two memories then.
    """
    parameters = dict(model.named_parameters())
    found = sharing(parameters | dict(model.named_buffers()))
    return next(((names[0], names[1]) for names in found if names[0] in parameters), None)
