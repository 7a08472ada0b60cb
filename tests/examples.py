"""Adversarial examples to send: taken out of a certificate, which then knows less."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from gkl.data import load_test
from gkl.evaluation.certificate import read_certificate, write_certificate
from gkl.evaluation.points import STANDS, Points
from tests.specs import NO_FILES


def weakened(
    certificate: Path, directory: Path, count: int, datasets_dir: Path = NO_FILES
) -> tuple[Path, dict[str, torch.Tensor]]:
    """The certificate without the last `count` broken points, and the tensors of those examples."""
    known = read_certificate(certificate)
    tensors = dict(known.tensors)
    rest, taken = tensors["index"][:-count], tensors["index"][-count:]
    tensors["broken_by"][taken] = STANDS
    tensors["perturbation_norm"][taken] = torch.nan
    path = directory / "weak.safetensors"
    write_certificate(
        path,
        Points(
            labels=tensors["label"],
            prediction=tensors["prediction"],
            broken_by=tensors["broken_by"],
            perturbation_norm=tensors["perturbation_norm"],
            index=rest,
            adversarial=tensors["adversarial"][:-count],
            adversarial_prediction=tensors["adversarial_prediction"][:-count],
            answers_vary=False,
        ),
        known.evaluation,
        attacks=known.attacks,
        data=load_test(known.dataset, datasets_dir, known.num_points, known.preprocessing),
        dataset=known.dataset,
        architecture=known.architecture,
        weights_sha256=known.weights_sha256,
        dataset_sha256=known.dataset_sha256,
        manifest=known.manifest,
    )
    return path, {"adversarial": tensors["adversarial"][-count:].clone(), "index": taken.clone()}


def saved(path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return path
