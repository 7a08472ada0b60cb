"""Finished parts of an evaluation, kept so that no part is ever run twice.

A part is one stage (the clean pass, an attack, a corruption) on one block of points. Its file is written completely or
not at all. An evaluation runs only the parts that it does not find. This is how an interrupted run is resumed, and how
the parts of several shards are merged.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from gkl.errors import InvalidInput
from gkl.formats.tensor_files import load_tensors, save_tensors
from gkl.outcome import BlockSaved, Event

_log = logging.getLogger(__name__)
_FORMAT = "gkl-evaluation-block-1"


@dataclass(frozen=True)
class Block:
    """The result of a finished part."""

    tensors: Mapping[str, Tensor]
    record: Mapping[str, Any]
    """JSON-compatible: seconds, counts, and which part it is."""


class Blocks:
    """The finished parts of one evaluation by number, in a directory, or in memory if there is none."""

    def __init__(
        self, directory: Path | None, origin: Mapping[str, Any], report: Callable[[Event], None] = lambda _: None
    ) -> None:
        """
        Args:
            directory: where the files are. This class must have written all of them; None keeps parts in memory.
            origin: what must not change between runs that share parts: the spec, and hashes of weights and data.
            report: called with an event for every file that is written.
        """
        self.directory, self.origin, self.report = directory, dict(origin), report
        self._in_memory: dict[int, Block] = {}

    def get(self, number: int) -> Block | None:
        """The part of this number, or None if it is missing or damaged.

        Raises:
            InvalidInput: the file is a part of another evaluation.
        """
        if self.directory is None:
            return self._in_memory.get(number)
        path = self._path(self.directory, number)
        if not path.exists():
            return None
        try:
            tensors, metadata = load_tensors(path)
        except InvalidInput as error:
            _log.warning("%s; this part is run again", error)
            return None
        if metadata.get("format") != _FORMAT:
            _log.warning("%s is no part of an evaluation of this version; this part is run again", path.name)
            return None
        for field, value in self.origin.items():
            found = metadata["origin"].get(field)
            if found != value:
                raise InvalidInput(
                    f"{self.directory} holds parts of another evaluation: its {field} is {found!r}, not {value!r}; "
                    "choose another directory, or remove this one"
                )
        return Block(tensors, metadata["record"])

    def put(self, number: int, block: Block) -> None:
        """Keep a finished part.

        Raises:
            NoSpaceLeft: the disk is full; all earlier parts are intact.
        """
        if self.directory is None:
            self._in_memory[number] = block
            return
        path = self._path(self.directory, number)
        metadata = {"format": _FORMAT, "origin": self.origin, "record": dict(block.record)}
        save_tensors(path, block.tensors, metadata)
        self.report(BlockSaved(file=path.name, number=number))

    @staticmethod
    def _path(directory: Path, number: int) -> Path:
        return directory / f"block-{number:06d}.safetensors"
