"""The record of where a result comes from."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import gkl
from gkl.outcome import Manifest
from gkl.spec import Spec

_PACKAGES = ("gklbench", "torch", "numpy", "torchvision", "robustbench", "pyautoattack", "scikit-learn", "safetensors")


def make_manifest(
    spec: Spec,
    *,
    commit: str | None,
    seed: int,
    device: str,
    dataset_sha256: str,
    weights_sha256: str,
    synthetic_sha256: str | None = None,
    weights_key: str | None = None,
    weights_notes: tuple[str, ...] = (),
    dtype: str | None = None,
    batch_size_used: int | None = None,
    preprocessing: str | None = None,
) -> Manifest:
    """`commit` is `git_commit()` of the run's start: a checkout may move on while a run of hours goes on.

    The spec is that of a job, or of the evaluation alone where somebody's own network was measured.
    """
    return Manifest(
        spec=spec.model_dump(mode="json"),
        git_commit=commit,
        packages={name: version(name) for name in _PACKAGES},
        python=platform.python_version(),
        device=device,
        seed=seed,
        dataset_sha256=dataset_sha256,
        synthetic_sha256=synthetic_sha256,
        weights_sha256=weights_sha256,
        weights_key=weights_key,
        weights_notes=weights_notes,
        dtype=dtype,
        batch_size_used=batch_size_used,
        preprocessing=preprocessing,
    )


def git_commit() -> str | None:
    """Commit of the checkout this code runs from, '+changes' appended if its files differ; elsewhere what an image was
    built from, if that was said."""
    source = Path(gkl.__file__).parent
    # Installed into an environment inside some other checkout, these files are none of that checkout's.
    if _git(source, "ls-files", "--error-unmatch", gkl.__file__) is None:
        return _built_from(source / "REVISION")
    commit = _git(source, "rev-parse", "HEAD")
    if commit is None:
        return None
    return commit + ("+changes" if _git(source, "status", "--porcelain", "--", str(source)) else "")


def _built_from(written: Path) -> str | None:
    """What docker/worker.Dockerfile wrote."""
    revision = written.read_text(encoding="ascii").strip() if written.is_file() else "unknown"
    return None if revision == "unknown" else revision


def _git(directory: Path, *arguments: str) -> str | None:
    try:
        finished = subprocess.run(
            ["git", "-C", str(directory), *arguments], capture_output=True, text=True, check=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return finished.stdout.strip()
