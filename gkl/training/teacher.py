"""The network that a student learns from: loaded, checked, frozen, and measured on the data set's test images."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from gkl.catalog import DATASETS
from gkl.data import Images, ImageSet, unit_range
from gkl.errors import InvalidInput
from gkl.files import sha256_of
from gkl.models.weights import read_model, weights_sha256
from gkl.outcome import TeacherOutcome
from gkl.run_context import RunContext
from gkl.spec import PUBLISHED_WEIGHTS, Compute, DistillSpec, TeacherWeights
from gkl.training.network import Network

_log = logging.getLogger(__name__)

# Logits of a whole data set are kept while they need no more memory than this.
_KEPT_BYTES = 1 << 30
_BATCH = 500


class Teacher:
    """A frozen network in evaluation mode: images (B, C, H, W) in [0, 1] -> logits (B, classes) in float32.

    A gradient passes through it to the images, where one is asked for; its own weights never get one.
    """

    def __init__(
        self, model: nn.Module, compute: Compute, device: torch.device, *, weights_key: str | None = None
    ) -> None:
        self.model = model.to(device).eval().requires_grad_(False)
        if compute.channels_last:
            self.model = self.model.to(memory_format=torch.channels_last)
        self.network = Network(self.model, compute, device)
        self.weights_key = weights_key
        """Which network of its file it is, where the file holds several."""
        self._kept: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        return self.network(x)

    @torch.no_grad()
    def logits(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        """Logits of clean images, without a gradient.

        Args:
            x: (B, C, H, W) in [0, 1].
            rows: (B,) int64, which training images these are, unaugmented; then what `keep` computed is used.
        """
        if self._kept is not None and rows is not None:
            return self._kept[rows.to(self._kept.device)]
        return self(x)

    @torch.no_grad()
    def keep(self, data: Images, *, batch_size: int, device: torch.device, images_done: Callable[[int], None]) -> None:
        """Compute the logits of all training images once, if they fit in memory: without augmentation they are the same
        in every epoch.
        """
        first = self(unit_range(data.take(torch.arange(1)).to(device)))
        if not isinstance(data, ImageSet) or len(data) * first.shape[1] * first.element_size() > _KEPT_BYTES:
            return
        found = []
        for rows in torch.arange(len(data)).split(min(_BATCH, batch_size)):
            found.append(self(unit_range(data.take(rows).to(device))))
            images_done(int(rows[-1]) + 1)
        self._kept = torch.cat(found)


def load_teacher(
    spec: DistillSpec, file: Path | None, context: RunContext, device: torch.device, *, converted: Path | None = None
) -> Teacher:
    """Load the teacher that a spec names, and check that it is a classifier of the data set's images.

    Args:
        spec: with a teacher of kind 'weights'; the service puts it in the place of a job or an entry.
        file: the teacher's weights; None for those that RobustBench publishes.
        context: its `models_dir` has published weights.
        device: where to compute.
        converted: what an earlier run converted the file to, to be read in its place.

    Raises:
        InvalidInput: the file is missing, is not the one that the spec names, or holds another network; or the
            network's output has not one number for each class.
    """
    teacher = spec.teacher
    if not isinstance(teacher, TeacherWeights):
        what = "none" if teacher is None else f"that of {teacher.kind} {getattr(teacher, teacher.kind)}"
        raise InvalidInput(
            f"the teacher is {what}, which only a service can find; name its architecture and the sha256 of its weights"
        )
    if teacher.weights is None:
        raise InvalidInput(
            f"the spec leaves open which {teacher.architecture} is the teacher; name the file with its weights "
            "(--teacher, or teacher=... in Python)"
        )
    if teacher.weights == PUBLISHED_WEIGHTS:
        if file is not None:
            raise InvalidInput("the spec's teacher has its published weights; leave the teacher's file out")
    elif file is None:
        raise InvalidInput(
            f"the teacher's weights are the file with sha256 {teacher.weights}; name where it is (--teacher, or "
            "teacher=... in Python)"
        )
    elif (sha256 := sha256_of(file)) != teacher.weights:
        raise InvalidInput(
            f"the spec names a teacher whose weights have sha256 {teacher.weights}, and {file} has {sha256}; give the "
            "file that the spec names"
        )
    described = DATASETS[spec.dataset]
    read = converted or file
    found = read_model(teacher.architecture, spec.dataset, read, context.models_dir, teacher.weights_key)
    loaded = Teacher(found.network, spec.compute, device, weights_key=found.weights_key)
    with torch.no_grad():
        logits = loaded(torch.full((2, *described.image_shape), 0.5, device=device))
    if logits.shape != (2, described.num_classes):
        raise InvalidInput(
            f"the teacher answers an image of {spec.dataset} with {tuple(logits.shape)[1:]} numbers instead of one for "
            f"each of the {described.num_classes} classes; choose another teacher"
        )
    return loaded


def measured(
    teacher: Teacher,
    spec: TeacherWeights,
    test: ImageSet,
    *,
    batch_size: int,
    file: Path | None,
    context: RunContext,
    device: torch.device,
) -> TeacherOutcome:
    """The teacher's accuracy on the data set's test images, for the record: nothing is chosen by it.

    Raises:
        Stopped: the context asked for it.
    """
    correct = done = 0
    at_once = min(_BATCH, batch_size)
    for images, labels in zip(test.images.split(at_once), test.labels.split(at_once), strict=True):
        context.tell(0.0, "preparing the teacher")
        predicted = teacher.logits(unit_range(images.to(device))).argmax(1).cpu()
        correct, done = correct + int((predicted == labels).sum()), done + len(labels)
    sha256 = weights_sha256(spec.architecture, file, context.models_dir)
    _log.info(
        "the teacher %s classifies %d of %d test images correctly (%.2f %%)",
        spec.architecture,
        correct,
        done,
        100 * correct / done,
    )
    return TeacherOutcome(
        architecture=spec.architecture,
        weights_sha256=sha256,
        weights_key=teacher.weights_key,
        clean_accuracy=correct / done,
        num_points=done,
    )
