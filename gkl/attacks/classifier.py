"""The model as the attacks call it: float32 images in, float32 logits out, in batches that fit into memory."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gkl.device import is_out_of_memory
from gkl.errors import GklError, InvalidInput, Stopped

NO_CLASS = -1
"""The predicted class where a model returns NaN. It differs from every label, so such an answer is wrong."""


class Classifier(nn.Module):
    """A wrapper that adapts a model to the attacks.

    It casts images to the number format of the weights, and logits to float32: in half precision, ties make the DLR
    loss NaN and Square's infinities overflow. It splits a batch that does not fit into the device's memory. This
    affects neither the attack nor its random streams, so the verdict is that of the whole block.
    """

    def __init__(
        self,
        model: nn.Module,
        num_classes: int,
        on_call: Callable[[], None] = lambda: None,
        *,
        result: torch.dtype = torch.float32,
    ) -> None:
        """
        Args:
            model: images (B, channels, height, width) -> logits (B, C).
            num_classes: C.
            on_call: called before every pass.
            result: number format of the returned logits.
        """
        super().__init__()
        self.result = result
        self.model, self.num_classes, self.on_call = model, num_classes, on_call
        formats = {p.dtype for p in model.parameters() if p.is_floating_point()}
        if len(formats) > 1:
            raise InvalidInput(
                f"the model mixes number formats ({', '.join(sorted(map(str, formats)))}); convert it to one, "
                "for instance with model.float()"
            )
        self.dtype = formats.pop() if formats else torch.float32
        self.largest: int | None = None
        """The maximum number of images passed to the model at once; None for no limit."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, height, width) float32 in [0, 1] -> logits (B, C) float32."""
        self.on_call()
        if self.largest is None or len(x) <= self.largest:
            return self._logits(x)
        parts = x.split(self.largest)
        if torch.is_grad_enabled() and x.requires_grad:
            # Recompute each part in the backward pass, so that memory holds the activations of one part only.
            return torch.cat([checkpoint(self._logits, part, use_reentrant=False) for part in parts])
        return torch.cat([self._logits(part) for part in parts])

    def _logits(self, x: Tensor) -> Tensor:
        given = x.to(self.dtype)
        version = None if given.is_inference() else given._version
        try:
            logits = self.model(given)
        except (GklError, Stopped, MemoryError):
            raise
        except Exception as error:
            # torch.utils.checkpoint raises an exception of its own to end a recomputation early.
            is_torchs_own = type(error).__module__ == "torch.utils.checkpoint"
            if is_torchs_own or (isinstance(error, RuntimeError) and is_out_of_memory(error)):
                raise
            raise InvalidInput(
                f"the model raised {type(error).__name__} on images of shape {tuple(x.shape)}: {error}"
            ) from error
        if version is not None and given._version != version:
            raise InvalidInput("the model writes into the images that it is given; let it work on a copy (x.clone())")
        return self._checked(logits, len(x)).to(self.result)

    def _checked(self, logits: object, num_images: int) -> Tensor:
        """
        Raises:
            InvalidInput: the model did not return a floating-point tensor of shape (B, C).
        """
        wanted = f"it must return a tensor of logits of shape ({num_images}, {self.num_classes})"
        if not isinstance(logits, Tensor):
            raise InvalidInput(f"the model returned {_described(logits)}; {wanted}")
        if logits.shape != (num_images, self.num_classes):
            raise InvalidInput(
                f"the model's output has shape {tuple(logits.shape)} for {num_images} images of {self.num_classes} "
                f"classes; {wanted}"
            )
        if not logits.is_floating_point():
            raise InvalidInput(f"the model returned {logits.dtype}; {wanted} of a floating number format")
        return logits

    def halve(self, block_size: int) -> int | None:
        """Halve the number of images passed to the model at once; returns the new number, or None if it was 1."""
        before = min(self.largest or block_size, block_size)
        if before <= 1:
            return None
        self.largest = before // 2
        return self.largest

    @torch.no_grad()
    def first_logits(self, x: Tensor, what: str = "test images") -> Tensor:
        """Logits (B, C) of clean or noisy images, checked for problems that would mislead the attacks.

        Raises:
            InvalidInput: the logits have another shape, are NaN or infinite, or the model changed its input.
        """
        before = x.clone()
        logits: Tensor = self(x)
        # A write through NumPy does not change the version that `_logits` compares.
        if not torch.equal(before, x):
            raise InvalidInput("the model writes into the images that it is given; let it work on a copy (x.clone())")
        if not logits.isfinite().all():
            # argmax of NaN is 0: the points of class 0 would count as robust.
            raise InvalidInput(
                f"the model gives NaN or infinite logits on {what}; its training diverged, or it divides by zero"
            )
        return logits

    @torch.no_grad()
    def predict(self, x: Tensor) -> Tensor:
        """Predicted classes (B,) int64 of images (B, *); `NO_CLASS` where the model returns NaN."""
        return predicted_classes(self(x))


def predicted_classes(logits: Tensor) -> Tensor:
    """Logits (B, C) -> classes (B,) int64; `NO_CLASS` where a logit is NaN, since argmax would return some class."""
    return logits.argmax(1).masked_fill(logits.isnan().any(1), NO_CLASS)


def margin_and_gradient(
    answer: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, other: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The margin between the label's logit and another class's, its gradient by the images, and that class.

    Args:
        answer: images -> logits (B, C).
        x: images (B, *).
        y: labels (B,).
        other: the classes to compare with (B,); by default, the one with the highest logit besides the label.

    Returns:
        The margins (B,), their gradients by the images (B, *), and the classes (B,). A gradient is zero where the
        logits do not depend on the image.
    """
    x = x.detach().clone().requires_grad_(True)
    with torch.enable_grad():
        logits = answer(x)
        if other is None:
            other = logits.detach().nan_to_num().scatter(1, y[:, None], -torch.inf).argmax(1)
        margin = (logits.gather(1, y[:, None]) - logits.gather(1, other[:, None])).squeeze(1)
    return margin.detach(), gradient_or_zero(margin.sum(), x), other


def gradient_or_zero(of: Tensor, at: Tensor) -> Tensor:
    """The gradient of the scalar `of` by the images `at` (B, *); zero if it does not depend on them.

    The graph is kept, so that further gradients can be computed.
    """
    if not of.requires_grad:
        return torch.zeros_like(at)
    found: tuple[Tensor | None, ...] = torch.autograd.grad(of, at, retain_graph=True, allow_unused=True)
    return torch.zeros_like(at) if found[0] is None else found[0]


def _described(answer: object) -> str:
    if isinstance(answer, tuple | list):
        return f"a {type(answer).__name__} of {len(answer)}"
    if isinstance(answer, dict):
        return f"a dict with the keys {', '.join(map(repr, list(answer)[:5]))}" if answer else "an empty dict"
    return "None" if answer is None else f"a {type(answer).__module__}.{type(answer).__qualname__}"
