"""How many training photographs a second are read, decoded and cropped: by processes and by one thread, from files and
from tar archives.

    python benchmarks/image_reading.py
    python benchmarks/image_reading.py --processes 1 2 4 8 16 --images 2000     # on a machine with a GPU

The photographs are made: JPEG files of 500 x 375 pixels, quality 90, smooth colours with fine noise. They are in the
page cache, so that disks play no part. Each way reads all of them through `gkl.training.batches`, in the order of an
epoch, with the augmentation 'resized_crop'. Ways take turns, and medians are compared; the first turn, which starts the
processes, is not timed. Where other programs use the same cores, compare the processor time per image. On CUDA, the
images a second of a training step of ResNet-18 at 224 pixels are measured too: what reading has to keep up with.
"""

from __future__ import annotations

import argparse
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from multiprocessing import active_children
from pathlib import Path
from statistics import median

import numpy as np
import psutil
import torch
from PIL import Image

from gkl.catalog.preprocessing import DEFAULT_PREPROCESSING
from gkl.data.decoding import usable_processes
from gkl.data.imagenet import decoder
from gkl.data.images import ImageFiles
from gkl.data.photographs import Photograph
from gkl.data.resized_crop import resized_crop
from gkl.data.shards import shard_members
from gkl.models import build_model
from gkl.spec import ResizedCropAugmentation
from gkl.training.batches import Batches

BATCH = 64
SHARDS = 4
CROP = resized_crop(ResizedCropAugmentation(kind="resized_crop"), 224)


def write_photographs(folder: Path, count: int) -> None:
    for number in range(count):
        stream = np.random.default_rng(number)
        coarse = Image.fromarray(stream.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC), np.float64)
        photograph = (smooth + stream.normal(0, 8, smooth.shape)).clip(0, 255).astype(np.uint8)
        path = folder / f"n{number % 10:08d}" / f"{number}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photograph).save(path, quality=90)


def write_shards(photographs: Path, folder: Path) -> None:
    folder.mkdir()
    paths = sorted(photographs.glob("*/*.JPEG"))
    for number in range(SHARDS):
        with tarfile.open(folder / f"{number}.tar", "w") as archive:
            for path in paths[number::SHARDS]:
                archive.add(path, path.relative_to(photographs))


class Way:
    """One way of reading, with its processes kept between turns."""

    def __init__(self, data: ImageFiles, processes: int, device: torch.device) -> None:
        self.data, self.processes = data, processes
        self.batches = Batches(data, batch_size=BATCH, device=device, crop=CROP, processes=processes)
        self.stream = torch.Generator().manual_seed(0)

    def turn(self) -> tuple[float, float]:
        """Read all photographs; returns images a second, and milliseconds of processor time per image."""
        started, before = time.perf_counter(), processor_time()
        images = sum(self._coming())
        return images / (time.perf_counter() - started), 1000 * (processor_time() - before) / images

    def _coming(self) -> Iterator[int]:
        order = self.batches.order(self.stream)
        if self.processes:
            for images, _, _ in self.batches.iterate(order):
                yield len(images)
            return
        # One thread, and nothing ahead.
        for index, seeds in zip(order.real, order.seeds or [], strict=True):
            pairs = zip(index.tolist(), seeds.tolist(), strict=True)
            yield len(torch.stack([CROP(self.data.photographs[i], seed) for i, seed in pairs]))


def processor_time() -> float:
    """Seconds that this process and those that decode have computed."""
    processes = [psutil.Process(), *(psutil.Process(child.pid) for child in active_children())]
    return float(sum(used.user + used.system for used in (process.cpu_times() for process in processes)))


def step_rate(device: torch.device, batch_size: int = 256, steps: int = 20) -> float:
    """Images a second of a training step of ResNet-18, forward and backward, in bfloat16, channels last."""
    model = build_model("imagenet/Linf/Salman2020Do_R18", "imagenet").to(device).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    x = torch.rand(batch_size, 3, 224, 224, device=device).contiguous(memory_format=torch.channels_last)
    y = torch.randint(0, 1000, (batch_size,), device=device)
    started = 0.0
    for step in range(steps + 5):
        if step == 5:
            torch.cuda.synchronize(device)
            started = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16):
            loss = torch.nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.cuda.synchronize(device)
    return batch_size * steps / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=640)
    parser.add_argument("--processes", type=int, nargs="+", help="default: 1, 2, 4 .. up to the cores")
    parser.add_argument("--turns", type=int, default=5)
    arguments = parser.parse_args()
    cores = usable_processes()
    counts = arguments.processes or [2**power for power in range(cores.bit_length())]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as directory:
        folder, shards = Path(directory) / "photographs", Path(directory) / "shards"
        write_photographs(folder, arguments.images)
        write_shards(folder, shards)
        files = sorted(folder.glob("*/*.JPEG"))
        size = sum(path.stat().st_size for path in files) / len(files)
        labels = torch.zeros(len(files), dtype=torch.int64)
        sources: dict[str, Sequence[Photograph]] = {"folder": files, "shards": shard_members(shards, ".JPEG")}
        ways = {
            (source, processes): Way(ImageFiles(found, labels, decoder(DEFAULT_PREPROCESSING)), processes, device)
            for source, found in sources.items()
            for processes in (0, *counts)
        }
        turns = [{key: way.turn() for key, way in ways.items()} for _ in range(arguments.turns + 1)][1:]
        for way in ways.values():
            way.batches.close()
    print(f"{len(files)} photographs of 500 x 375 pixels, {size / 1000:.0f} kB each; {cores} cores to use\n")
    print(
        "| read by | folder, images/s | shards, images/s | shards / folder | folder / one thread "
        "| folder, processor ms per image | shards, processor ms per image |"
    )
    print("|---|---|---|---|---|---|---|")
    rates, costs = ({key: median(turn[key][part] for turn in turns) for key in ways} for part in (0, 1))
    for processes in (0, *counts):
        by = "one thread" if not processes else "1 process" if processes == 1 else f"{processes} processes"
        in_folder, in_shards = rates["folder", processes], rates["shards", processes]
        ratios = f"{in_shards / in_folder:.2f} | {in_folder / rates['folder', 0]:.2f}"
        spent = f"{costs['folder', processes]:.2f} | {costs['shards', processes]:.2f}"
        print(f"| {by} | {in_folder:.0f} | {in_shards:.0f} | {ratios} | {spent} |")
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        print(f"\nA training step of ResNet-18 in bfloat16 takes {step_rate(device):.0f} images a second on {name}.")


if __name__ == "__main__":
    main()
