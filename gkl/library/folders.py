"""Where files are by default: where the service on this machine has them."""

from __future__ import annotations

import os
from pathlib import Path

DATASETS_DIR_VARIABLE, MODELS_DIR_VARIABLE = "GKLBENCH_DATASETS_DIR", "GKLBENCH_MODELS_DIR"


def datasets_folder(given: Path | str | None) -> Path:
    """Data sets, each in a folder of its name."""
    return _folder(given, DATASETS_DIR_VARIABLE, "datasets")


def models_folder(given: Path | str | None) -> Path:
    """RobustBench's weights, as <data set>/<threat model>/<model>.pt."""
    return _folder(given, MODELS_DIR_VARIABLE, "models")


def _folder(given: Path | str | None, variable: str, name: str) -> Path:
    chosen = given or os.environ.get(variable)
    return Path(chosen or Path(os.environ.get("GKLBENCH_DATA_DIR") or "gklbench-data") / name).expanduser()
