"""Generated images: rows of an .npz that may be larger than memory."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.lib import format as npy

from gkl.data.synthetic import SyntheticImages
from gkl.errors import InvalidInput
from tests.data_files import pixels, write_npz


def opened(path: Path) -> SyntheticImages:
    return SyntheticImages(path, image_shape=(3, 32, 32), num_classes=10)


@pytest.mark.parametrize("compressed", [False, True])
def test_rows_are_those_of_the_arrays(compressed: bool, tmp_path: Path) -> None:
    arrays = write_npz(tmp_path / "some.npz", 50, compressed=compressed)
    synthetic = opened(tmp_path / "some.npz")
    assert len(synthetic) == 50
    index = torch.tensor([7, 49, 0, 7])
    images, labels = synthetic.take(index)
    assert torch.equal(images, torch.from_numpy(arrays["image"][index]).permute(0, 3, 1, 2))
    assert labels.tolist() == [7, 9, 0, 7]


@pytest.mark.parametrize("dtype", [">i8", ">u2", "<i4", "|i1"])
def test_labels_of_any_byte_order(dtype: str, tmp_path: Path) -> None:
    write_npz(tmp_path / "some.npz", 50, label=(np.arange(50) % 10).astype(dtype))
    _, labels = opened(tmp_path / "some.npz").take(torch.tensor([7, 49, 0]))
    assert (labels.tolist(), labels.dtype) == ([7, 9, 0], torch.int64)


def test_a_compressed_file_is_unpacked_once_and_has_the_same_hash(tmp_path: Path) -> None:
    write_npz(tmp_path / "a.npz", 20)
    write_npz(tmp_path / "b.npz", 20, compressed=True)
    assert opened(tmp_path / "a.npz").sha256() == opened(tmp_path / "b.npz").sha256()
    unpacked = tmp_path / "b.unpacked.npz"
    written = unpacked.stat().st_mtime_ns
    opened(tmp_path / "b.npz")
    assert unpacked.stat().st_mtime_ns == written
    # Another file under the old name is not mistaken for the one that was unpacked.
    write_npz(tmp_path / "b.npz", 30, compressed=True)
    assert len(opened(tmp_path / "b.npz")) == 30


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"label": None}, "no array 'label', only 'image'"),
        ({"image": None, "images": pixels(5, 32, 32, 3)}, "no array 'image', only 'label', 'images'"),
        ({"image": np.zeros((5, 32, 32, 3), np.float32)}, "'image' in .* is float32 .* must be uint8"),
        ({"image": pixels(5, 3, 32, 32)}, r"is uint8 \(5, 3, 32, 32\); it must be uint8 \(N, 32, 32, 3\)"),
        ({"label": np.zeros(5)}, "'label' in .* is float64"),
        ({"label": np.zeros(4, int)}, "one integer for each of the 5 images"),
        ({"label": np.array([0, 1, 2, 10, 4])}, "label 10 of image 3 in .* is not one of the classes 0 to 9"),
        ({"label": np.array([0, -1, 2, 3, 4])}, "label -1 of image 1"),
        ({"label": np.array(["a"] * 5, dtype=object)}, "not a plain array"),
        ({"image": np.asfortranarray(pixels(5, 32, 32, 3))}, "not a plain array in C order"),
    ],
)
def test_other_arrays_are_refused(changes: dict[str, object], said: str, tmp_path: Path) -> None:
    write_npz(tmp_path / "bad.npz", 5, **changes)
    with pytest.raises(InvalidInput, match=said):
        opened(tmp_path / "bad.npz")


def test_a_missing_and_a_truncated_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"no generated images at .*nothing\.npz"):
        opened(tmp_path / "nothing.npz")
    write_npz(tmp_path / "short.npz", 5)
    whole = (tmp_path / "short.npz").read_bytes()
    (tmp_path / "short.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InvalidInput, match=r"short\.npz cannot be read as \.npz"):
        opened(tmp_path / "short.npz")


@pytest.mark.parametrize("compressed", [False, True])
def test_damage_anywhere_is_a_sentence_or_harmless(compressed: bool, tmp_path: Path) -> None:
    """One bit flipped at a time, in headers, directory and content."""
    path = tmp_path / "damaged.npz"
    write_npz(path, 3, compressed=compressed)
    whole = path.read_bytes()
    places = np.random.default_rng(0).integers(0, len(whole), 60).tolist()
    for place in [*range(0, 160), *places, *range(len(whole) - 160, len(whole))]:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        path.with_suffix(".unpacked.npz").unlink(missing_ok=True)
        try:
            opened(path).take(torch.arange(3))
        except InvalidInput as error:
            assert "damaged" in str(error)


PEAK_MEMORY = r"""
import re, sys
from pathlib import Path
import torch
from gkl.data.synthetic import SyntheticImages
images = SyntheticImages(Path(sys.argv[1]), image_shape=(3, 32, 32), num_classes=10)
generator = torch.Generator().manual_seed(0)
for _ in range(40):
    images.take(torch.randint(len(images), (1638,), generator=generator))
# Not ru_maxrss, which a process inherits from the one that started it.
print(len(images), re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])
"""


@pytest.mark.long
@pytest.mark.parametrize("many", [200_000, pytest.param(1_000_000, marks=pytest.mark.long)])
def test_peak_memory_does_not_grow_with_the_file(tmp_path: Path, many: int) -> None:
    """A million images, 3 GB, as the 1M recipes use, or a fifth of that, against ten thousand; 40 batches of the 20M
    recipe each."""
    peaks = []
    for count in (10_000, many):
        path = tmp_path / f"{count}.npz"
        block = pixels(10_000, 32, 32, 3)
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
            with archive.open("image.npy", "w", force_zip64=True) as member:
                header = {"descr": "|u1", "fortran_order": False, "shape": (count, 32, 32, 3)}
                npy.write_array_header_1_0(member, header)
                for _ in range(count // len(block)):
                    member.write(block.data)
            with archive.open("label.npy", "w", force_zip64=True) as member:
                npy.write_array(member, np.arange(count) % 10)
        done = subprocess.run(
            [sys.executable, "-c", PEAK_MEMORY, str(path)], capture_output=True, text=True, check=True
        )
        path.unlink()
        length, kilobytes = map(int, done.stdout.split())
        assert length == count
        peaks.append(kilobytes * 1024)
    # The file is 600 MB or 3 GB larger; what a batch and a check of all labels hold is not.
    assert peaks[1] - peaks[0] < 30e6
