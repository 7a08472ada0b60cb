"""Images for HTML pages."""

from __future__ import annotations

import base64
import io

from PIL import Image
from torch import Tensor


def data_uri(image: Tensor) -> str:
    """An image (channels, height, width) in [0, 1] as a PNG in a data: URI; at most its first three channels."""
    pixels = (image[: 3 if image.shape[0] >= 3 else 1] * 255).round().byte().permute(1, 2, 0).numpy()
    drawn = Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels)
    buffer = io.BytesIO()
    drawn.save(buffer, "png")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
