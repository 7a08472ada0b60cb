"""What the attacks see of a model: float32 in, float32 logits out, never more images at once than fit."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gkl.device import is_out_of_memory
from gkl.errors import GklError, InvalidInput, Stopped

NO_CLASS = -1
"""The predicted class where a model answers NaN; no label has it, so such an answer is wrong."""


class Classifier(nn.Module):
    """A model at the boundary to the attacks.

    Casts images to the number format of the weights and logits to float32: in half precision ties make DLR NaN and
    Square's infinities overflow. Splits a batch that does not fit into the device's memory; the attack and its random
    streams are unaffected, so the verdict equals the verdict of the whole block.
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
            result: number format of the logits that it returns.
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
        """Most images the model is given at once; None for as many as come."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, height, width) float32 in [0, 1] -> logits (B, C) float32."""
        self.on_call()
        if self.largest is None or len(x) <= self.largest:
            return self._logits(x)
        parts = x.split(self.largest)
        if torch.is_grad_enabled() and x.requires_grad:
            # Each part is computed again when its gradient is taken, so that only one part's layers are held.
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
            # Computing a part again ends by an exception of torch's own as soon as it has what it needs.
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
            InvalidInput: what the model returned is no tensor of logits (B, C).
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
        """Give the model half as many images at once as before; returns how many, or None if it was one."""
        before = min(self.largest or block_size, block_size)
        if before <= 1:
            return None
        self.largest = before // 2
        return self.largest

    @torch.no_grad()
    def first_logits(self, x: Tensor, what: str = "test images") -> Tensor:
        """Logits (B, C) of clean or merely noisy images, refused where no attack could judge by them.

        Raises:
            InvalidInput: another shape than (B, C), NaN or infinity.
        """
        before = x.clone()
        logits: Tensor = self(x)
        # NumPy may have written there without torch's notice.
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
        """Predicted classes (B,) int64 of allowed images; `NO_CLASS` where the model answers NaN."""
        return predicted_classes(self(x))


def predicted_classes(logits: Tensor) -> Tensor:
    """Logits (B, C) -> classes (B,) int64; `NO_CLASS` where a logit is NaN: argmax would call that class 0."""
    return logits.argmax(1).masked_fill(logits.isnan().any(1), NO_CLASS)


def margin_and_gradient(
    answer: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, other: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """By how much the label's logit is above another class's, where that leads, and which class it is.

    Args:
        answer: images -> logits (B, C).
        x: images (B, *).
        y: labels (B,).
        other: classes (B,); by default the best one beside the label.

    Returns:
        The margins (B,), their gradients by the images (B, *), zero where there are none, and the classes (B,).
    """
    x = x.detach().clone().requires_grad_(True)
    with torch.enable_grad():
        logits = answer(x)
        if other is None:
            other = logits.detach().nan_to_num().scatter(1, y[:, None], -torch.inf).argmax(1)
        margin = (logits.gather(1, y[:, None]) - logits.gather(1, other[:, None])).squeeze(1)
    return margin.detach(), gradient_or_zero(margin.sum(), x), other


def gradient_or_zero(of: Tensor, at: Tensor) -> Tensor:
    """A number's gradient by images (B, *): zero where the answer does not depend on the images.

    The graph stays, for further gradients.
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
