"""Decoding in processes of their own: the same images, errors as sentences, and no process is left over."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from gkl.catalog.preprocessing import DEFAULT_PREPROCESSING
from gkl.data.decoding import usable_processes
from gkl.data.imagenet import decoder
from gkl.data.images import ImageFiles
from gkl.data.resized_crop import resized_crop
from gkl.errors import DecodingEnded, InvalidInput
from gkl.spec import ResizedCropAugmentation
from gkl.training.batches import Batches
from tests.data_files import write_photograph

pytestmark = pytest.mark.system

CROP = resized_crop(ResizedCropAugmentation(kind="resized_crop"), 224)


def photographs(folder: Path, count: int = 10) -> ImageFiles:
    paths = [write_photograph(folder / f"{seed}.JPEG", 90, 70, seed=seed) for seed in range(count)]
    return ImageFiles(paths, torch.arange(count), decoder(DEFAULT_PREPROCESSING))


def batches(data: ImageFiles, processes: int) -> Batches:
    return Batches(data, batch_size=4, num_held_out=1, device=torch.device("cpu"), crop=CROP, processes=processes)


def test_processes_decode_what_this_process_decodes(tmp_path: Path) -> None:
    data = photographs(tmp_path)
    here, apart = batches(data, 0), batches(data, 2)
    stream = torch.Generator().manual_seed(0)
    global_stream = torch.random.get_rng_state()
    try:
        for first in (0, 1):
            order = here.order(stream)
            found = list(apart.iterate(order, first))
            assert len(found) == 3 - first
            for (images, labels, _), (expected, expected_labels, _) in zip(
                found, here.iterate(order, first), strict=True
            ):
                assert torch.equal(images, expected)
                assert torch.equal(labels, expected_labels)
        # Held-out images are not cropped at random.
        held_out, _ = apart.fetch(apart.held_out())
        assert torch.equal(held_out, data.take(torch.arange(1)))
        assert len(multiprocessing.active_children()) == 2
        assert torch.equal(torch.random.get_rng_state(), global_stream)
        # Images beyond a batch's first ones come from other processes.
        order = here.order(stream)
        coming = apart.iterate(order)
        next(coming)
        assert isinstance(data.photographs[9], Path)
        data.photographs[9].write_bytes(b"damaged")
        with pytest.raises(InvalidInput, match=r"^\S+/9.JPEG cannot be read as an image \(.*\); fetch it again$"):
            list(apart.iterate(order))
    finally:
        apart.close()
        here.close()
    assert not multiprocessing.active_children()


def test_processes_that_are_killed_are_a_sentence_and_the_others_end(tmp_path: Path) -> None:
    apart = batches(photographs(tmp_path), 1)
    coming = apart.iterate(apart.order(torch.Generator()))
    try:
        next(coming)
        (process,) = multiprocessing.active_children()
        os.kill(int(process.pid or 0), signal.SIGKILL)
        with pytest.raises(DecodingEnded, match="a process that decodes images was ended from outside"):
            list(apart.iterate(apart.order(torch.Generator())))
    finally:
        apart.close()
    assert not multiprocessing.active_children()


KILLED = """
import multiprocessing, sys, time
from pathlib import Path
import torch
from tests.gkl.data.test_decoding import batches, photographs

if __name__ == "__main__":
    apart = batches(photographs(Path(sys.argv[1])), 2)
    coming = apart.iterate(apart.order(torch.Generator()))
    next(coming)
    print(*(process.pid for process in multiprocessing.active_children()), flush=True)
    time.sleep(600)
"""


def test_a_run_that_is_killed_leaves_no_process(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    repository = Path(__file__).parents[3]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=repository, start_new_session=True) as run:
        assert run.stdout is not None
        pids = {int(pid) for pid in run.stdout.readline().split()}
        assert len(pids) == 2
        assert pids < of_group(run.pid)
        run.kill()
    deadline = time.monotonic() + 20
    while of_group(run.pid):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def of_group(group: int) -> set[int]:
    """The processes of a group that are alive."""
    found = set()
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):
            state, _, its_group, *_ = status.read_text().rpartition(")")[2].split()
            # One that nobody reaps stays as a zombie.
            if int(its_group) == group and state != "Z":
                found.add(int(status.parent.name))
    return found


def test_processes_are_as_many_as_the_cores_for_this_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gkl.data.decoding.cpu_count", lambda: 64)
    found = []
    for threads in ("", "4", "0", "many"):
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
        found.append(usable_processes())
    assert found == [16, 4, 16, 16]
