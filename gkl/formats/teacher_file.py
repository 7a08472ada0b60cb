"""Fills in a distillation's teacher from the file with its weights. Free of torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gkl.errors import InvalidInput
from gkl.files import sha256_of
from gkl.formats.safetensors_header import read_metadata


def with_teacher_file(spec: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """The spec, as JSON, of a distillation with the file's sha256 in the teacher, unless it names one. A file from a
    training of this project also names the teacher's architecture.

    Raises:
        InvalidInput: the spec is not of a distillation; there is no such file; or the spec names another file, or a job
            or an entry, as the teacher.
    """
    if spec.get("kind") != "distill":
        raise InvalidInput("only a distillation has a teacher; leave the teacher's file out")
    if not file.is_file():
        raise InvalidInput(f"there is no file {file}; name the weights of the teacher")
    given = spec.get("teacher") or {}
    if not isinstance(given, Mapping):
        raise InvalidInput('the spec\'s teacher is no object; write it as {"architecture": "..."}, or leave it out')
    teacher = dict(given)
    if {"job", "entry"} & teacher.keys():
        raise InvalidInput("the spec's teacher is a job or an entry of a service; leave the teacher's file out")
    sha256 = sha256_of(file)
    if teacher.get("weights") not in (None, sha256):
        raise InvalidInput(f"the spec names other weights of the teacher than {file}; remove teacher.weights from it")
    teacher["weights"] = sha256
    if "architecture" not in teacher:
        try:
            teacher["architecture"] = read_metadata(file)["architecture"]
        except (InvalidInput, KeyError) as error:
            raise InvalidInput(
                f"{file} does not name the architecture of its network; name it in teacher.architecture"
            ) from error
    return {**spec, "teacher": teacher}
