"""The proof of an evaluation, in one file that a stranger can check in seconds.

A safetensors file with what each point came to and the adversarial example of each broken one, and in its metadata
what was evaluated. The check needs the weights and the data, one pass over both, and nothing of the attacks.

A certificate proves that accuracies are no higher than it says: every example in it is a case where the model fails. It
cannot prove that no other example exists.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from gkl.attacks import perturbation
from gkl.attacks.classifier import Classifier
from gkl.attacks.perturbation import is_allowed, norm_tolerance
from gkl.catalog import DATASETS, recorded_preprocessing
from gkl.catalog.preprocessing import Preprocessing
from gkl.data import Images, ImageSet, unit_range
from gkl.errors import InvalidInput
from gkl.evaluation import checks
from gkl.evaluation.measurement import MISCLASSIFIED, Measurement
from gkl.formats.tensor_files import load_tensors, save_tensors
from gkl.outcome import CorruptionOutcome, Flag
from gkl.spec import Evaluation, format_epsilon

_FORMAT = "gkl-certificate-1"
OWN = "own"
"""The architecture of a network, or the name of images, that no registry knows: somebody's own."""
# Rounding differs between processors and batch sizes; answers closer than so many of float32's units in the last place
# of the largest logit may change sides.
_ROUNDING = 256 * 2.0**-23
_POINT_TENSORS = ("label", "prediction", "broken_by", "perturbation_norm")
_BROKEN_TENSORS = ("index", "adversarial", "adversarial_prediction")


@dataclass(frozen=True)
class Certificate:
    """A certificate as read; N points, of which M were broken."""

    tensors: Mapping[str, Tensor]
    evaluation: Evaluation
    dataset: str
    architecture: str
    weights_sha256: str
    dataset_sha256: str
    attacks: tuple[str, ...]
    clean_correct: int
    robust_correct: int | None
    answers_vary: bool
    corruptions: tuple[CorruptionOutcome, ...]
    manifest: Mapping[str, Any]
    contents_sha256: str
    """What the file says that its contents hash to."""
    actual_sha256: str

    @property
    def num_points(self) -> int:
        return len(self.tensors["label"])

    @property
    def preprocessing(self) -> Preprocessing | None:
        """How the images that it is about were prepared; None where they all have one size."""
        return recorded_preprocessing(self.dataset, self.manifest)

    @property
    def weights_key(self) -> str | None:
        """Which network of the file of weights it is about; None where there is no other, and in earlier versions."""
        key = self.manifest.get("weights_key")
        return key if isinstance(key, str) else None

    @property
    def flags(self) -> tuple[Flag, ...]:
        """What its owner's run had to say of a network that is in no registry; those of others are in their job."""
        return tuple(Flag.model_validate(flag) for flag in self.manifest.get("flags", ()))


@dataclass(frozen=True)
class Verification:
    """What a check found."""

    num_points: int
    clean_correct: int
    """Clean images that the model got right in this pass."""
    robust_correct: int | None
    """Those of them that no example in the certificate breaks: no more can be robust. None without attacks."""
    examples: int
    """Adversarial examples checked."""
    borderline: int
    """Examples and points whose answer lies within rounding of another class; accepted."""
    answers_vary: bool
    """The model is randomized or depends on the batch: the counts are those of this pass alone."""
    problems: list[str]
    """What is wrong, the first offending point first; empty if the certificate holds."""
    network_asked: bool = True
    """Whether the answers were compared with the network's; else they are those of the certificate."""
    data_known: bool = True
    """Whether labels and clean images were compared with a data set's; else they are those of the certificate."""

    @property
    def holds(self) -> bool:
        return not self.problems


def write_certificate(
    path: Path,
    measurement: Measurement,
    evaluation: Evaluation,
    *,
    data: ImageSet,
    dataset: str,
    architecture: str,
    weights_sha256: str,
    dataset_sha256: str,
    manifest: Mapping[str, Any],
    corruptions: Sequence[CorruptionOutcome] = (),
    corrupted_prediction: Tensor | None = None,
) -> None:
    """
    Raises:
        NoSpaceLeft: the disk is full.
    """
    tensors = {
        "label": measurement.labels,
        "prediction": measurement.prediction,
        "broken_by": measurement.broken_by,
        "perturbation_norm": measurement.perturbation_norm,
        "index": measurement.index,
        "adversarial": measurement.adversarial,
        "adversarial_prediction": measurement.adversarial_prediction,
        # Not needed by a check, which has the data: so that the file alone shows what it says.
        "clean": data.images[measurement.index],
    }
    if corrupted_prediction is not None:
        tensors["corrupted_prediction"] = corrupted_prediction
    metadata = {
        "format": _FORMAT,
        "dataset": dataset,
        "architecture": architecture,
        "weights_sha256": weights_sha256,
        "dataset_sha256": dataset_sha256,
        "evaluation": evaluation.model_dump(mode="json"),
        "attacks": [attack.attack for attack in measurement.attacks],
        "clean_correct": measurement.clean_correct,
        "robust_correct": measurement.robust_correct if measurement.attacks else None,
        "answers_vary": measurement.answers_vary,
        "corruptions": [outcome.model_dump() for outcome in corruptions],
        "manifest": dict(manifest),
    }
    save_tensors(path, tensors, metadata | {"contents_sha256": contents_sha256(tensors, metadata)})


def read_certificate(path: Path) -> Certificate:
    """
    Raises:
        InvalidInput: the file is missing, damaged, or no certificate.
    """
    tensors, metadata = load_tensors(path)
    if metadata.get("format") != _FORMAT:
        raise InvalidInput(f"{path.name} is no certificate of an evaluation")
    try:
        certificate = Certificate(
            tensors=tensors,
            evaluation=Evaluation.model_validate(metadata["evaluation"]),
            dataset=metadata["dataset"],
            architecture=metadata["architecture"],
            weights_sha256=metadata["weights_sha256"],
            dataset_sha256=metadata["dataset_sha256"],
            attacks=tuple(metadata["attacks"]),
            clean_correct=metadata["clean_correct"],
            robust_correct=metadata["robust_correct"],
            answers_vary=metadata["answers_vary"],
            corruptions=tuple(CorruptionOutcome.model_validate(each) for each in metadata["corruptions"]),
            manifest=metadata["manifest"],
            contents_sha256=metadata["contents_sha256"],
            actual_sha256=contents_sha256(tensors, metadata),
        )
        _check_shapes(certificate)
    except (KeyError, TypeError, ValidationError) as error:
        raise InvalidInput(f"{path.name} is a damaged certificate ({type(error).__name__}: {error})") from error
    return certificate


def _check_shapes(certificate: Certificate) -> None:
    # Own images are for own networks alone: those of a registry are for data sets that it knows.
    if certificate.dataset not in DATASETS and (certificate.dataset, certificate.architecture) != (OWN, OWN):
        raise TypeError(f"there is no data set {certificate.dataset!r}")
    recorded_preprocessing(certificate.dataset, certificate.manifest)
    _ = certificate.flags
    tensors = certificate.tensors
    points, broken = len(tensors["label"]), len(tensors["index"])
    for name in (*_POINT_TENSORS, *_BROKEN_TENSORS):
        is_float = name in ("perturbation_norm", "adversarial")
        if tensors[name].dim() != (4 if name == "adversarial" else 1) or tensors[name].is_floating_point() != is_float:
            raise TypeError(f"the tensor {name!r} is {tensors[name].dtype} {tuple(tensors[name].shape)}")
        if len(tensors[name]) != (points if name in _POINT_TENSORS else broken):
            raise TypeError(f"the tensor {name!r} has {len(tensors[name])} rows")
    if points == 0 or (broken and (int(tensors["index"].min()) < 0 or int(tensors["index"].max()) >= points)):
        raise TypeError("an adversarial example belongs to no point")
    if tensors["index"].unique().numel() != broken:
        raise TypeError("a point has two adversarial examples")


def compare_with_record(logits: Tensor, recorded: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compare a model's answers with those that a certificate has of the same images.

    Args:
        logits: (B, C) float32.
        recorded: classes (B,); -1 where the model answered NaN.

    Returns:
        The predicted classes (B,), -1 where the answer is NaN; which differ from the record; and which are so close to
        the recorded class that rounding explains it.
    """
    is_nan = logits.isnan().any(1)
    found: Tensor = logits.argmax(1).masked_fill(is_nan, -1)
    own = logits.gather(1, recorded.clamp(min=0, max=logits.shape[1] - 1)[:, None]).squeeze(1)
    close = (logits.amax(1) - own) <= _ROUNDING * logits.abs().amax(1).clamp_min(1e-30)
    close &= ~is_nan & (recorded >= 0) & (recorded < logits.shape[1])
    return found, found != recorded, close


class _Checker:
    """Collects problems, the first offending points first."""

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
        # Of recorded answers none can vary.
        self.varies = certificate.answers_vary and model is not None
        self.at_points: list[tuple[int, str]] = []
        self.borderline = 0

    @torch.no_grad()
    def answers(self, x: Tensor, recorded: Tensor, points: Tensor, what: str) -> Tensor:
        """Predictions (B,) for allowed images (B, *), compared with the recorded ones; those without a network."""
        if self.model is None:
            return recorded
        self.on_call()
        logits: Tensor = self.model(x.to(self.device, self.dtype)).float().cpu()
        found, changed, close = compare_with_record(logits, recorded)
        self.borderline += int((changed & close).sum())
        if not self.varies:
            for i in (changed & ~close).nonzero().squeeze(1).tolist():
                self.at_points.append(
                    (
                        int(points[i]),
                        f"the model answers {int(found[i])} to its {what} image, the certificate says "
                        f"{int(recorded[i])}",
                    )
                )
            # In favour of the record where the difference is rounding.
            found = found.where(~close, recorded)
        return found


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
    """Check labels, norms, box and predictions with one pass of the model, which knows nothing of the attacks.

    Args:
        certificate: what is claimed.
        model: the network with the weights it is about, in evaluation mode; without it the recorded answers stand.
        data: the N clean images it is about; without them its own labels stand, and the clean images that it shows.
        weights_sha256: hash of those weights' file, to be compared where there is one.
        batch_size: images at once.
        device: where the model is.
        corrupted: corruption and severity -> those images, for a certificate about corruptions.
        on_call: called before every pass of the model; may raise to stop.
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
    """What a certificate tells of its data itself: all labels, and the clean images of the broken points.

    Raises:
        InvalidInput: it shows no clean images, as those of earlier versions.
    """
    tensors = certificate.tensors
    if "clean" not in tensors or tensors["clean"].shape != tensors["adversarial"].shape:
        raise InvalidInput("the certificate does not show the clean images that it is about; the data is needed")
    images = torch.zeros((certificate.num_points, *tensors["clean"].shape[1:]), dtype=tensors["clean"].dtype)
    images[tensors["index"]] = tensors["clean"]
    return ImageSet(images, tensors["label"])


def _check_clean_images(checker: _Checker, data: ImageSet) -> list[str]:
    """Those that the file shows beside the adversarial ones, older files none; returns what is wrong with all."""
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
    """A certificate that says its model's answers vary is checked less strictly, so that has to be true."""
    if not checker.certificate.answers_vary or checker.model is None:
        return []
    classifier = Classifier(checker.model, DATASETS[checker.certificate.dataset].num_classes, checker.on_call)
    # The block on which it was found.
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
    """Which of the examples in these rows are allowed and misclassified; bool (B,)."""
    certificate = checker.certificate
    tensors, threat_model = certificate.tensors, certificate.evaluation.threat_model
    index, adversarial = tensors["index"][rows], tensors["adversarial"][rows]
    clean = unit_range(data.images[index])
    if threat_model is None:
        checker.at_points += [(int(i), "it has an adversarial example without a threat model") for i in index]
        return torch.zeros(len(rows), dtype=torch.bool)
    allowed, size = is_allowed(adversarial, clean, threat_model)
    limit = threat_model.epsilon + norm_tolerance(threat_model, math.prod(clean.shape[1:]))
    for i in (~allowed).nonzero().squeeze(1).tolist():
        if size[i] <= limit:
            what = f"its adversarial image has values from {adversarial[i].min():g} to {adversarial[i].max():g}"
        else:
            what = (
                f"its adversarial image is {size[i]:.6g} away in {threat_model.norm}, further than epsilon "
                f"{format_epsilon(threat_model.epsilon)}"
            )
        checker.at_points.append((int(index[i]), what))
    recorded = tensors["perturbation_norm"][index]
    for i in (~((recorded - size).abs() <= 1e-9 + 1e-6 * size) & allowed).nonzero().squeeze(1).tolist():
        what = f"its perturbation's norm is {size[i]:.6g}, the certificate says {recorded[i]:.6g}"
        checker.at_points.append((int(index[i]), what))
    found = checker.answers(adversarial, tensors["adversarial_prediction"][rows], index, "adversarial")
    right = found == data.labels[index]
    if not checker.varies:
        for i in (right & allowed).nonzero().squeeze(1).tolist():
            checker.at_points.append((int(index[i]), "the model gets its adversarial image right"))
    return allowed & ~right


def _check_point_table(checker: _Checker, correct: Tensor) -> None:
    """The table of all points against the examples; a point is broken if and only if it has one."""
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
    """Every recorded answer to a corrupted image, and the counts; returns what is wrong."""
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


def contents_sha256(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> str:
    """Over all tensors and all metadata but this hash itself."""
    rest = {key: value for key, value in metadata.items() if key != "contents_sha256"}
    digest = hashlib.sha256(json.dumps(rest, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        if tensor.numel():
            digest.update(memoryview(tensor.view(torch.uint8).numpy()))  # type: ignore[arg-type]
    return digest.hexdigest()
