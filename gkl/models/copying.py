"""Copies the tensors of a file into a network. Converts number formats, and checks tensors that have several names."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from gkl.errors import InvalidInput
from gkl.formats.layouts import Expected, Place
from gkl.formats.shared_memory import sharing


def copy_into(
    model: nn.Module, expected: Expected, place: Place, tensors: Mapping[str, Tensor], file: str
) -> list[str]:
    """Copy tensors into the network.

    Args:
        model: the network.
        expected: the tensors that the network has.
        place: their names in the file, where they have the right shapes.
        tensors: the file's tensors, by their names in the file.
        file: the file's name in messages.

    Returns:
        A sentence for everything that was done besides copying.

    Raises:
        InvalidInput: a tensor has NaN or infinite values, or values that the network's number format cannot hold; or
            two tensors of the file differ that are one tensor in the network.
    """
    state = model.state_dict()
    given, changes = {}, set()
    for name, at in place.names.items():
        tensor, wanted = tensors[at], state[name].dtype
        if wanted.is_floating_point and tensor.dtype != wanted:
            changes.add(f"weights in {tensor.dtype} were converted to {wanted}".replace("torch.", ""))
        given[name] = _converted(tensor, state[name], at, file)
    for names in expected.groups:
        present = [name for name in names if name in given]
        for name in present[1:]:
            if not torch.equal(given[name], given[present[0]]):
                raise InvalidInput(
                    f"{file} has different numbers in {place.names[present[0]]!r:.100} and "
                    f"{place.names[name]!r:.100}, which are one tensor in the architecture; save the network again"
                )
        for name in names:
            given[name] = given[present[0]] if present else state[name]
    model.load_state_dict(given)
    for names in sharing(state):
        # These tensors share memory, so that copying one may have overwritten another.
        wrong = next((name for name in names if not torch.equal(state[name], given[name])), None)
        if wrong is not None:
            raise InvalidInput(
                f"{file} has other numbers in {place.names.get(wrong, wrong)!r:.100} than in a tensor that shares its "
                "memory in the architecture; save the network again"
            )
    return sorted(changes)


def _converted(given: Tensor, wanted: Tensor, name: str, file: str) -> Tensor:
    if given.is_floating_point() and given.element_size() == 1:
        # torch cannot compute in float8.
        given = given.float()
    if given.is_floating_point() and not given.isfinite().all():
        raise InvalidInput(f"tensor {name!r:.100} in {file} has NaN or infinite values; the training diverged")
    if not wanted.is_floating_point() and given.is_floating_point():
        # Scripts that average weights average counters too. Rounded here, because torch would truncate 6.9999 to 6.
        whole = given.double().round()
        if not name.endswith("num_batches_tracked") and ((whole - given.double()).abs() > 1e-3).any():
            raise InvalidInput(
                f"tensor {name!r:.100} in {file} has fractions, but the architecture has whole numbers "
                f"({wanted.dtype}) there; save the network's own numbers"
            )
        given = whole
    converted = given.to(wanted.dtype).reshape(wanted.shape)
    if converted.is_floating_point() and not converted.isfinite().all():
        raise InvalidInput(
            f"tensor {name!r:.100} in {file} has values beyond {wanted.dtype}, the network's number format, in which "
            "they become NaN or infinite"
        )
    return converted
