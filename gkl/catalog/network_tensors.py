"""Reads the names and shapes of every architecture's tensors from a table, without building networks. Free of torch.

`python -m gkl.models.tensor_table` writes the table from the networks themselves; a test compares the two.
"""

from __future__ import annotations

import json
import lzma
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from gkl.errors import InvalidInput
from gkl.formats.layouts import Expected, check_fits
from gkl.formats.weights_contents import Contents, Described

TABLE = Path(__file__).with_name("network_tensors.json.xz")


def expected_tensors(architecture: str, dataset: str) -> Expected | None:
    """Return the tensors that a file of weights for this network must have; None if the table lacks the network."""
    number = _table()["networks"].get(f"{architecture} {dataset}")
    return None if number is None else _layout(number)


def check_contents(contents: Contents, architecture: str, dataset: str, weights_key: str | None) -> None:
    """Check that a file with these contents can be loaded as weights of a network.

    A network that the table lacks is not checked.

    Raises:
        InvalidInput: the file cannot be loaded; the message says the first difference.
    """
    expected = expected_tensors(architecture, dataset)
    if expected is not None:
        check_fits(expected, contents, weights_key)


def architectures_that_fit(contents: Contents, dataset: str, weights_key: str | None) -> list[str]:
    """Return the architectures into which the file can be loaded for a data set, in the catalog's order."""
    answers: dict[int, bool] = {}
    found = []
    for name, number in _table()["networks"].items():
        architecture, _, built_for = name.rpartition(" ")
        if built_for != dataset:
            continue
        if number not in answers:
            answers[number] = _fits(_layout(number), contents, weights_key)
        if answers[number]:
            found.append(architecture)
    return found


@dataclass(frozen=True)
class Published:
    """Where RobustBench keeps the published weights of a zoo model."""

    files: tuple[str, ...]
    """Paths in RobustBench's folder of models; an ensemble has several."""
    in_torch_cache: str | None
    """The file's name if it is in torch's cache instead; None for models that are never kept there."""


def published() -> dict[str, Published]:
    """Return name of the architecture -> its published weights, for all models of the zoo."""
    return {
        name: Published(tuple(each["files"]), each["in_torch_cache"]) for name, each in _table()["published"].items()
    }


def _fits(expected: Expected, contents: Contents, weights_key: str | None) -> bool:
    try:
        check_fits(expected, contents, weights_key)
    except InvalidInput:
        return False
    return True


@cache
def _lines() -> list[bytes]:
    """Return the table's lines. Line 0 maps each network to a number n, and line n + 1 lists the network's tensors.

    The lines are kept as text, because parsed objects would take thirty times as much memory.
    """
    return lzma.decompress(TABLE.read_bytes()).splitlines()


@cache
def _table() -> dict[str, Any]:
    table: dict[str, Any] = json.loads(_lines()[0])
    return table


@lru_cache(maxsize=8)
def _layout(number: int) -> Expected:
    layout = json.loads(_lines()[1 + number])
    tensors = {name: Described.of_torch(f"torch.{dtype}", tuple(shape)) for name, dtype, shape in layout["tensors"]}
    return Expected(tensors, layout["same"])
