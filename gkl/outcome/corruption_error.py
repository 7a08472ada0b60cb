"""Mean corruption error (mCE) by its two definitions for ImageNet-C. Free of torch.

Both divide the error for each corruption by AlexNet's and differ in which AlexNet was measured on which images.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from statistics import fmean

from gkl.catalog import CORRUPTIONS
from gkl.outcome import CorruptionOutcome

# Mean over severities, on all 50,000 images: Table 1 of arXiv 1903.12261, with the further digits that its authors
# published.
_HENDRYCKS_ALEXNET = {
    "gaussian_noise": 0.886428,
    "shot_noise": 0.894468,
    "impulse_noise": 0.922640,
    "defocus_blur": 0.819880,
    "glass_blur": 0.826268,
    "motion_blur": 0.785948,
    "zoom_blur": 0.798360,
    "snow": 0.866816,
    "frost": 0.826572,
    "fog": 0.819324,
    "brightness": 0.564592,
    "contrast": 0.853204,
    "elastic_transform": 0.646056,
    "pixelate": 0.717840,
    "jpeg_compression": 0.606500,
}

# Mean over severities, on RobustBench's 5,000 images: the row 'AlexNet' of its repository's
# model_info/imagenet/corruptions/unaggregated_results.csv, by which `robustbench.eval.benchmark` divides.
_ROBUSTBENCH_ALEXNET = {
    "gaussian_noise": 0.88160,
    "shot_noise": 0.88832,
    "impulse_noise": 0.91724,
    "defocus_blur": 0.82204,
    "glass_blur": 0.83080,
    "motion_blur": 0.78724,
    "zoom_blur": 0.79572,
    "snow": 0.86800,
    "frost": 0.83148,
    "fog": 0.82364,
    "brightness": 0.55848,
    "contrast": 0.85432,
    "elastic_transform": 0.64804,
    "pixelate": 0.71856,
    "jpeg_compression": 0.60680,
}
assert _HENDRYCKS_ALEXNET.keys() == _ROBUSTBENCH_ALEXNET.keys() == set(CORRUPTIONS)


def mean_corruption_error(dataset: str, outcomes: Iterable[CorruptionOutcome]) -> float:
    """mCE of arXiv 1903.12261: each corruption's error is a mean over severities, and mCE is the mean of these errors.

    For ImageNet each corruption's error is first divided by AlexNet's, so that AlexNet has mCE 1. For CIFAR the
    literature has no such scale, and mCE is the plain mean error.
    """
    return _relative_to(_HENDRYCKS_ALEXNET if dataset == "imagenet" else dict.fromkeys(CORRUPTIONS, 1.0), outcomes)


def robustbench_mean_corruption_error(dataset: str, outcomes: Iterable[CorruptionOutcome]) -> float | None:
    """mCE as RobustBench's leaderboard computes it, relative to its own AlexNet; None for CIFAR, where it has none."""
    return _relative_to(_ROBUSTBENCH_ALEXNET, outcomes) if dataset == "imagenet" else None


def _relative_to(scale: Mapping[str, float], outcomes: Iterable[CorruptionOutcome]) -> float:
    errors: dict[str, list[float]] = {}
    for outcome in outcomes:
        errors.setdefault(outcome.corruption, []).append(1 - outcome.correct / outcome.points)
    return fmean(fmean(each) / scale[corruption] for corruption, each in errors.items())
