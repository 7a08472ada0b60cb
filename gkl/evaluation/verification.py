"""The check of a certificate: labels, norms, box and predictions, with one pass of the network over its images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gkl.attacks import perturbation
from gkl.attacks.classifier import Classifier
from gkl.catalog import DATASETS
from gkl.data import Images, ImageSet, unit_range
from gkl.errors import InvalidInput
from gkl.evaluation import checks
from gkl.evaluation.certificate import Certificate
from gkl.evaluation.judge import compare_with_record, judge
from gkl.evaluation.points import MISCLASSIFIED


@dataclass(frozen=True)
class Verification:
    """The result of a check."""

    num_points: int
    clean_correct: int
    """Clean images that the model classified correctly in this pass."""
    robust_correct: int | None
    """Those of them that no example in the certificate breaks: no more can be robust. None without attacks."""
    examples: int
    """How many adversarial examples were checked."""
    borderline: int
    """Accepted predictions of clean or adversarial images that differ from the recorded ones by rounding alone."""
    answers_vary: bool
    """Whether the model is randomized or depends on the batch; the counts then hold for this pass only."""
    problems: list[str]
    """What is wrong, in the order of the points; empty if the certificate holds."""
    network_asked: bool = True
    """Whether the network was run; if not, the predictions are those of the certificate."""
    data_known: bool = True
    """Whether labels and clean images were compared with a data set; if not, they are those of the certificate."""

    @property
    def holds(self) -> bool:
        return not self.problems


class _Checker:
    """Runs the network on the certificate's images and collects problems."""

    def __init__(
        self,
        certificate: Certificate,
        model: nn.Module | None,
        batch_size: int,
        device: torch.device,
        on_call: Callable[[], None],
    ) -> None:
        self.certificate, self.model = certificate, model
        self.batch_size, self.device, self.on_call = batch_size, device, on_call
        parameters = () if model is None else model.parameters()
        weight = next((p for p in parameters if p.is_floating_point()), torch.zeros(()))
        self.dtype = weight.dtype
        # Without a model there are only the recorded answers, which do not vary.
        self.varies = certificate.answers_vary and model is not None
        self.at_points: list[tuple[int, str]] = []
        self.borderline = 0

    @torch.no_grad()
    def answers(self, x: Tensor, recorded: Tensor, points: Tensor, what: str) -> Tensor:
        """Predictions (B,) for images (B, *), compared with the recorded ones; without a network, the recorded ones."""
        if self.model is None:
            return recorded
        self.on_call()
        logits: Tensor = self.model(x.to(self.device, self.dtype)).float().cpu()
        compared = compare_with_record(logits, recorded)
        self.borderline += compared.borderline
        if self.varies:
            return compared.found
        self.at_points += [(int(points[i]), difference) for i, difference in compared.differences(what)]
        return compared.in_favour


@torch.no_grad()
def verify_certificate(
    certificate: Certificate,
    model: nn.Module | None,
    data: ImageSet | None,
    *,
    weights_sha256: str | None = None,
    batch_size: int = 200,
    device: torch.device | None = None,
    corrupted: Callable[[str, int], Images] | None = None,
    on_call: Callable[[], None] = lambda: None,
) -> Verification:
    """Check labels, norms, box and predictions with one pass of the model, without running an attack.

    Args:
        certificate: the certificate to check.
        model: the network that it is about, in evaluation mode; without it, the recorded predictions are accepted.
        data: the N clean images that it is about; without them, its own labels and clean images are accepted.
        weights_sha256: sha256 of the network's file of weights, which is compared if given.
        batch_size: images at once.
        device: where the model is.
        corrupted: corruption and severity -> the corrupted images, for a certificate about corruptions.
        on_call: called before every pass of the model; may raise to stop.

    Raises:
        InvalidInput: the data has another shape or number of points; or there is no data, and the certificate contains
            no clean images.
    """
    tensors = certificate.tensors
    points = certificate.num_points
    data_known = data is not None
    if data is None:
        data = _shown(certificate)
    if data.images.shape[1:] != tensors["adversarial"].shape[1:] or len(data) != points:
        raise InvalidInput(
            f"the certificate is about {points} images of shape {tuple(tensors['adversarial'].shape[1:])}, the data "
            f"has {len(data)} of shape {tuple(data.images.shape[1:])}"
        )
    checker = _Checker(certificate, model, batch_size, device or torch.device("cpu"), on_call)
    everywhere = torch.arange(points)
    for i in (tensors["label"] != data.labels).nonzero().squeeze(1).tolist():
        checker.at_points.append((i, f"its label is {int(data.labels[i])}, the certificate says {tensors['label'][i]}"))
    clean = torch.cat(
        [
            checker.answers(unit_range(data.images[part]), tensors["prediction"][part], part, "clean")
            for part in everywhere.split(batch_size)
        ]
    )
    correct = clean == data.labels
    standing = correct.clone()
    examples = len(tensors["index"])
    for rows in torch.arange(examples).split(batch_size):
        standing[tensors["index"][rows]] &= ~_breaks(checker, data, rows)
    are_shown = _check_clean_images(checker, data)
    _check_point_table(checker, correct)
    problems = [f"point {point}: {what}" for point, what in sorted(checker.at_points)]
    problems += are_shown
    problems += _check_variation(checker, data)
    problems += _check_corruptions(checker, data, corrupted)
    if weights_sha256 not in (None, certificate.weights_sha256):
        problems.append(f"these weights have sha256 {weights_sha256}, it is about {certificate.weights_sha256}")
    if data_known and data.sha256() != certificate.dataset_sha256:
        problems.append(f"this data has sha256 {data.sha256()}, it is about {certificate.dataset_sha256}")
    clean_correct, robust_correct = int(correct.sum()), int(standing.sum()) if certificate.attacks else None
    if not problems and not checker.varies:
        claimed = (certificate.clean_correct, certificate.robust_correct)
        if claimed != (clean_correct, robust_correct):
            problems.append(f"it claims {claimed} clean and robust points, and shows {(clean_correct, robust_correct)}")
    if certificate.actual_sha256 != certificate.contents_sha256:
        problems.append("it was changed after it was written")
    return Verification(
        points,
        clean_correct,
        robust_correct,
        examples,
        checker.borderline,
        certificate.answers_vary,
        problems,
        network_asked=model is not None,
        data_known=data_known,
    )


def _shown(certificate: Certificate) -> ImageSet:
    """The data that a certificate contains: all labels, and the clean images of the broken points; others are zeros.

    Raises:
        InvalidInput: it contains no clean images, like certificates of earlier versions.
    """
    tensors = certificate.tensors
    if "clean" not in tensors or tensors["clean"].shape != tensors["adversarial"].shape:
        raise InvalidInput("the certificate does not show the clean images that it is about; the data is needed")
    images = torch.zeros((certificate.num_points, *tensors["clean"].shape[1:]), dtype=tensors["clean"].dtype)
    images[tensors["index"]] = tensors["clean"]
    return ImageSet(images, tensors["label"])


def _check_clean_images(checker: _Checker, data: ImageSet) -> list[str]:
    """Compare the clean images in the file, if there are any, with the data; returns what is wrong with all of them."""
    tensors = checker.certificate.tensors
    if "clean" not in tensors:
        return []
    expected = data.images[tensors["index"]]
    if tensors["clean"].dtype != expected.dtype or tensors["clean"].shape != expected.shape:
        return ["the clean images that it shows have another form than the data's"]
    for i in (tensors["clean"] != expected).flatten(1).any(1).nonzero().squeeze(1).tolist():
        checker.at_points.append((int(tensors["index"][i]), "the clean image it shows is another than the data's"))
    return []


def _check_variation(checker: _Checker, data: ImageSet) -> list[str]:
    """Check a claim that the model's answers vary: such a certificate is checked less strictly, so it must be true."""
    if not checker.certificate.answers_vary or checker.model is None:
        return []
    classifier = Classifier(checker.model, DATASETS[checker.certificate.dataset].num_classes, checker.on_call)
    # The first block, on which the evaluation found it.
    size = min(checker.certificate.evaluation.batch_size, len(data))
    x, y = unit_range(data.images[:size]).to(checker.device), data.labels[:size].to(checker.device)
    threat_model = checker.certificate.evaluation.threat_model
    looked_at = [x] if threat_model is None else [x, perturbation.noise_at_the_border(x, threat_model)]
    if any(checks.answers_differ(classifier, images, y) is not None for images in looked_at):
        return []
    if checks.batch_dependence(classifier, x) is not None:
        return []
    return ["it says that the model's answers vary, and they do not"]


def _breaks(checker: _Checker, data: ImageSet, rows: Tensor) -> Tensor:
    """Whether the examples in these rows are allowed and misclassified: bool (B,)."""
    certificate = checker.certificate
    tensors, threat_model = certificate.tensors, certificate.evaluation.threat_model
    index, adversarial = tensors["index"][rows], tensors["adversarial"][rows]
    clean = unit_range(data.images[index])
    if threat_model is None:
        checker.at_points += [(int(i), "it has an adversarial example without a threat model") for i in index]
        return torch.zeros(len(rows), dtype=torch.bool)
    found = checker.answers(adversarial, tensors["adversarial_prediction"][rows], index, "adversarial")
    judged = judge(adversarial, clean, data.labels[index], found, threat_model)
    for i, fault in judged.faults(adversarial, threat_model, must_fool=not checker.varies):
        checker.at_points.append((int(index[i]), fault))
    recorded, size = tensors["perturbation_norm"][index], judged.size
    for i in (~((recorded - size).abs() <= 1e-9 + 1e-6 * size) & judged.allowed).nonzero().squeeze(1).tolist():
        what = f"its perturbation's norm is {size[i]:.6g}, the certificate says {recorded[i]:.6g}"
        checker.at_points.append((int(index[i]), what))
    return judged.breaks


def _check_point_table(checker: _Checker, correct: Tensor) -> None:
    """Check the table of all points: a point is listed as broken if and only if it has an adversarial example."""
    certificate, tensors = checker.certificate, checker.certificate.tensors
    broken_by = tensors["broken_by"]
    has_example = torch.zeros(certificate.num_points, dtype=torch.bool)
    has_example[tensors["index"]] = True
    for i in (~has_example & ~tensors["perturbation_norm"].isnan()).nonzero().squeeze(1).tolist():
        checker.at_points.append((i, "it has a perturbation's norm without an adversarial example"))
    wrong = ((broken_by >= 0) != has_example) | (broken_by >= len(certificate.attacks)) | (broken_by < MISCLASSIFIED)
    for i in wrong.nonzero().squeeze(1).tolist():
        claim = certificate.attacks[broken_by[i]] if 0 <= broken_by[i] < len(certificate.attacks) else "no attack"
        checker.at_points.append((i, f"it says that {claim} broke it, which does not fit its adversarial examples"))
    if not checker.varies:
        for i in ((broken_by == MISCLASSIFIED) == correct).nonzero().squeeze(1).tolist():
            checker.at_points.append((i, "it is listed on the wrong side of what the model gets right when clean"))


def _check_corruptions(checker: _Checker, data: ImageSet, corrupted: Callable[[str, int], Images] | None) -> list[str]:
    """Check the recorded predictions for corrupted images, and the counts; returns what is wrong."""
    certificate = checker.certificate
    if not certificate.corruptions:
        return []
    recorded = certificate.tensors.get("corrupted_prediction")
    if recorded is None or recorded.shape != (len(certificate.corruptions), certificate.num_points):
        return ["it lacks the answers to the corrupted images"]
    if corrupted is None:
        return ["the corrupted images are needed to check it"]
    problems = []
    for outcome, answers in zip(certificate.corruptions, recorded, strict=True):
        images = corrupted(outcome.corruption, outcome.severity)
        name = f"{outcome.corruption}, severity {outcome.severity}"
        if images.sha256() != outcome.data_sha256:
            problems.append(f"{name}: this data is not the one that it is about")
        before = len(checker.at_points)
        for part in torch.arange(len(data)).split(checker.batch_size):
            checker.answers(unit_range(images.take(part)), answers[part], part, name)
        problems += [f"point {point}: {what}" for point, what in sorted(checker.at_points[before:])]
        if int((answers == data.labels).sum()) != outcome.correct or outcome.points != len(data):
            problems.append(f"{name}: it claims {outcome.correct} correct points, its answers show another number")
    return problems
