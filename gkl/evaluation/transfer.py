"""Tries adversarial examples of other networks on a new network, by forward passes only.

Masked gradients do not protect a network from examples that were made for other networks on the same images. Such
examples are in the certificates of a leaderboard.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from gkl.attacks.classifier import Classifier
from gkl.attacks.perturbation import is_allowed
from gkl.errors import InvalidInput
from gkl.files import sha256_of
from gkl.formats.safetensors_header import read_header
from gkl.spec import ThreatModel

_log = logging.getLogger(__name__)


class OtherExamples:
    """Certificates of other networks. Nothing in them is trusted, and their images are read only when needed."""

    def __init__(self, certificates: Sequence[Path], image_shape: tuple[int, ...]) -> None:
        """
        Args:
            certificates: files of evaluations on the same data. Files that cannot be used are skipped with a warning.
            image_shape: (channels, height, width) of the data.
        """
        self.files: dict[str, Path] = {}
        """The usable files by their sha256."""
        self.unusable: list[str] = []
        """Why each of the other files is skipped."""
        self.read: set[str] = set()
        """sha256 of the files that could be read when they were tried; a file may have been deleted by then."""
        for path in certificates:
            try:
                _check_fits(path, image_shape)
            except (InvalidInput, OSError) as error:
                _log.warning("a certificate of another network is not used: %s", error)
                self.unusable.append(str(error))
            else:
                self.files[sha256_of(path)] = path

    def perturb(self, own: Classifier, x: Tensor, y: Tensor, index: Tensor, threat_model: ThreatModel) -> Tensor:
        """For each point the first example inside ball and box that fools the network, or else the clean image.

        Args:
            own: the network.
            x: clean images (B, *) in [0, 1].
            y: their labels (B,).
            index: positions of these points among the test images (B,), in rising order, on the CPU.
            threat_model: norm and radius of the ball.
        """
        found = x.clone()
        standing = torch.arange(len(x))
        for sha256, path in self.files.items():
            try:
                rows, images = _examples(path, index[standing])
            except (SafetensorError, OSError) as error:
                _log.warning("a certificate of another network cannot be read: %s", error)
                continue
            self.read.add(sha256)
            if len(rows) == 0:
                continue
            at, images = standing[rows], images.to(x)
            # The file is not trusted: the network gets only images that are inside ball and box.
            allowed = is_allowed(images, x[at], threat_model)[0]
            at, images = at[allowed.cpu()], images[allowed]
            if len(at) == 0:
                continue
            is_fooled = own.predict(images) != y[at]
            broken = at[is_fooled.cpu()]
            found[broken] = images[is_fooled]
            standing = standing[~torch.isin(standing, broken)]
            if len(standing) == 0:
                break
        return found


def _check_fits(path: Path, image_shape: tuple[int, ...]) -> None:
    tensors = read_header(path)
    index, images = tensors.get("index"), tensors.get("adversarial")
    if index is None or images is None or index.dtype != "I64" or len(index.shape) != 1:
        raise InvalidInput(f"{path.name} is no certificate of an evaluation")
    if images.dtype != "F32" or images.shape != (*index.shape, *image_shape):
        raise InvalidInput(f"{path.name} holds images of shape {images.shape[1:]}; these have {image_shape}")


def _examples(path: Path, index: Tensor) -> tuple[Tensor, Tensor]:
    """The rows of `index` for which a certificate has examples (E,), and these examples (E, *)."""
    with safe_open(path, framework="pt") as file:
        theirs = file.get_tensor("index")
        rows = torch.isin(index, theirs).nonzero().squeeze(1)
        order = theirs.argsort()
        places = order[torch.searchsorted(theirs[order], index[rows])]
        images = file.get_slice("adversarial")
        kept = [images[place : place + 1] for place in places.tolist()]
        return (rows, torch.cat(kept)) if kept else (rows, torch.empty(0))
