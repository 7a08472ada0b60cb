"""What a teacher's file adds to a spec, and when it is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from gkl.errors import InvalidInput
from gkl.files import sha256_of
from gkl.formats.teacher_file import with_teacher_file
from gkl.formats.tensor_files import save_tensors


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "weights.safetensors"
    save_tensors(path, {"w": torch.zeros(2)}, {"architecture": "small_cnn", "dataset": "digits"})
    return path


@pytest.mark.parametrize("teacher", [None, {}, {"architecture": "small_cnn"}, {"kind": "weights", "weights": None}])
def test_the_file_names_hash_and_architecture(file: Path, teacher: Any) -> None:
    found = with_teacher_file({"kind": "distill", "teacher": teacher, "epochs": 3}, file)
    assert found["teacher"]["weights"] == sha256_of(file)
    assert found["teacher"]["architecture"] == "small_cnn"
    assert found["epochs"] == 3


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ({"kind": "train"}, "only a distillation has a teacher"),
        ({"kind": "distill", "teacher": {"job": 3}}, "is a job or an entry of a service"),
        ({"kind": "distill", "teacher": {"architecture": "x", "weights": "0" * 64}}, "names other weights"),
        ({"kind": "distill", "teacher": "small_cnn"}, "is no object"),
    ],
)
def test_a_file_that_does_not_fit_the_spec_is_refused(file: Path, spec: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        with_teacher_file(spec, file)


def test_a_file_without_a_name_needs_the_architecture_in_the_spec(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save({"w": torch.zeros(2)}, path)
    with pytest.raises(InvalidInput, match=r"name it in teacher\.architecture"):
        with_teacher_file({"kind": "distill"}, path)
    named = with_teacher_file({"kind": "distill", "teacher": {"architecture": "small_cnn"}}, path)
    assert named["teacher"]["weights"] == sha256_of(path)
    with pytest.raises(InvalidInput, match="there is no file"):
        with_teacher_file({"kind": "distill"}, tmp_path / "absent")
