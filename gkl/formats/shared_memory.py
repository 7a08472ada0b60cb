"""Finds tensors that share memory: one parameter under several names, or views of one another."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeVar

from torch import Tensor, nn

_T = TypeVar("_T", bound=Tensor)


def sharing(tensors: Mapping[str, Tensor]) -> list[list[str]]:
    """Groups of two or more names whose tensors share one storage; each in the order of `tensors`."""
    groups: dict[tuple[str, int], list[str]] = {}
    for name, tensor in tensors.items():
        if tensor.numel():
            storage = tensor.untyped_storage()
            # On the meta device storages have no address.
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
    """Each tensor object once, in the order of its first occurrence, as `nn.Module.parameters` does."""
    return list({id(tensor): tensor for tensor in tensors}.values())


def overlapping_parameters(model: nn.Module) -> tuple[str, str] | None:
    """Names of a parameter and of another parameter or buffer that share memory but are two objects; None if none do.

    A parameter under several names is one object and does no harm: it stays one when the network is moved to another
    device or memory layout. Two objects that share memory would be separated then.
    """
    parameters = dict(model.named_parameters())
    found = sharing(parameters | dict(model.named_buffers()))
    return next(((names[0], names[1]) for names in found if names[0] in parameters), None)
