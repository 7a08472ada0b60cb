"""Records where a result comes from: spec, code, versions, device, seed, and hashes of data and weights."""

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
    """Make the manifest of a result.

    `spec` is the spec of the job, or only its evaluation if a user's own network was measured. `commit` is the result
    of `git_commit()` at the start of the run, since the checkout may change during a long run.
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
    """Return the commit of the checkout that this code runs from, followed by '+changes' if files differ from it.

    In a container image, return the commit that the image was built from. Return None if the commit is unknown.
    """
    source = Path(gkl.__file__).parent
    # An installed package may lie inside the checkout of another project.
    if _git(source, "ls-files", "--error-unmatch", gkl.__file__) is None:
        return _built_from(source / "REVISION")
    commit = _git(source, "rev-parse", "HEAD")
    if commit is None:
        return None
    return commit + ("+changes" if _git(source, "status", "--porcelain", "--", str(source)) else "")


def _built_from(written: Path) -> str | None:
    """Return the commit in the file that docker/worker.Dockerfile writes; None if it is unknown."""
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
