"""Default folders of data sets and weights: those of the service on this machine."""

from __future__ import annotations

import os
from pathlib import Path

DATASETS_DIR_VARIABLE, MODELS_DIR_VARIABLE = "GKLBENCH_DATASETS_DIR", "GKLBENCH_MODELS_DIR"


def datasets_folder(given: Path | str | None) -> Path:
    """The folder with the data sets, each in a subfolder of its name."""
    return _folder(given, DATASETS_DIR_VARIABLE, "datasets")


def models_folder(given: Path | str | None) -> Path:
    """The folder with RobustBench's weights, as <data set>/<threat model>/<model>.pt."""
    return _folder(given, MODELS_DIR_VARIABLE, "models")


def _folder(given: Path | str | None, variable: str, name: str) -> Path:
    chosen = given or os.environ.get(variable)
    return Path(chosen or Path(os.environ.get("GKLBENCH_DATA_DIR") or "gklbench-data") / name).expanduser()
