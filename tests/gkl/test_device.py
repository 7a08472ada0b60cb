from __future__ import annotations

import pytest
import torch

from gkl.device import out_of_memory_explained, own_random_stream, select_device, set_tensor_float_32
from gkl.errors import InvalidInput, OutOfMemory


@pytest.mark.parametrize("name", ["cuda:99", "meta", "gpu", "cpu:x"])
def test_a_device_that_no_run_can_use_is_refused(name: str) -> None:
    with pytest.raises(InvalidInput, match=f"the device '{name}'"):
        select_device(name)


def test_too_little_memory_is_one_sentence() -> None:
    with pytest.raises(OutOfMemory, match="lower batch_size"), out_of_memory_explained():
        # More than any address space: the allocator's own refusal.
        torch.empty(2**60, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match="inf"), out_of_memory_explained():
        raise RuntimeError("inf")


def test_an_own_random_stream_depends_on_its_generator_and_leaves_the_global_one_alone() -> None:
    def drawn() -> float:
        with own_random_stream(torch.Generator().manual_seed(3)):
            return float(torch.rand(()))

    torch.manual_seed(1)
    expected = float(torch.rand(()))
    torch.manual_seed(1)
    first = drawn()
    assert float(torch.rand(())) == expected
    torch.manual_seed(2)
    assert drawn() == first


def test_float32_is_float32_unless_asked_otherwise() -> None:
    for allowed, precision in ((True, "tf32"), (False, "ieee")):
        set_tensor_float_32(allowed)
        assert torch.backends.cudnn.conv.fp32_precision == precision
        assert torch.backends.cuda.matmul.fp32_precision == precision
