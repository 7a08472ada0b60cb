"""Trainings on image files: crops from their own seeds, so that a resumed run equals an uninterrupted one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gkl.data import load_train
from gkl.data.images import ImageFiles
from gkl.errors import DecodingEnded, Stopped
from gkl.outcome import CheckpointSaved, EpochFinished, Event
from gkl.recipes.adversarial import digits_ce
from gkl.run_context import RunContext
from gkl.spec import TrainSpec
from gkl.training import train, trainer
from gkl.training.batches import Batches
from tests.data_files import write_imagenet_shards, write_imagenet_training_images, write_photograph

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def datasets_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("datasets")
    photographs = [write_photograph(directory / f"{seed}.JPEG", 250, 240, seed=seed) for seed in range(10)]
    write_imagenet_training_images(directory, photographs)
    return directory


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first 24 training images, and a network that is quick."""

    def few(dataset: str, datasets_dir: Path) -> ImageFiles:
        data = load_train(dataset, datasets_dir)
        assert isinstance(data, ImageFiles)
        return data.subset(torch.arange(24))

    def network(architecture: str, dataset: str) -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 4, 16, 16), nn.ReLU(), nn.AvgPool2d(14), nn.Flatten(), nn.Linear(4, 1000))

    monkeypatch.setattr(trainer, "load_train", few)
    monkeypatch.setattr(trainer, "build_model", network)


def short(**changes: Any) -> TrainSpec:
    base = digits_ce().model_dump(mode="json") | {"evaluation": None, "dataset": "imagenet", "epochs": 2}
    base |= {"architecture": "imagenet/Linf/Salman2020Do_R18", "batch_size": 8, "selection": {"num_images": 4}}
    return TrainSpec.model_validate(base | {"augmentation": {"kind": "resized_crop"}} | changes)


def run(
    spec: TrainSpec, directory: Path, datasets_dir: Path, *, processes: int = 0, **options: Any
) -> tuple[str, list[dict[str, Any]]]:
    """sha256 of the weights, and each epoch's figures."""
    events: list[Event] = []
    context = RunContext(
        directory=directory,
        datasets_dir=datasets_dir,
        report=events.append,
        device="cpu",
        decoding_processes=processes,
        **options,
    )
    sha256 = train(spec, context).manifest.weights_sha256
    return sha256, [e.model_dump(exclude={"seconds"}) for e in events if isinstance(e, EpochFinished)]


def stop_at(call: int) -> Callable[[], bool]:
    calls = iter(range(call))
    return lambda: next(calls, None) is None


# Three steps and a batch of held-out images are an epoch.
@pytest.mark.parametrize("call", [0, 2, 6])
def test_a_resumed_run_equals_an_uninterrupted_one(call: int, tmp_path: Path, datasets_dir: Path) -> None:
    whole, epochs = run(short(), tmp_path / "whole", datasets_dir)
    with pytest.raises(Stopped):
        run(short(), tmp_path / "stopped", datasets_dir, should_stop=stop_at(call))
    resumed, again = run(short(), tmp_path / "stopped", datasets_dir)
    assert resumed == whole
    assert again == epochs[-len(again) :]


def test_processes_and_shards_change_nothing(tmp_path: Path, datasets_dir: Path) -> None:
    whole = run(short(), tmp_path / "whole", datasets_dir)
    sharded = tmp_path / "sharded"
    (sharded / "imagenet").mkdir(parents=True)
    (sharded / "imagenet" / "train").symlink_to(datasets_dir / "imagenet" / "train")
    write_imagenet_shards(sharded, 2)
    # The checkpoint of a run on the folder is resumed on the shards: the data is the same.
    with pytest.raises(Stopped):
        run(short(), tmp_path / "again", datasets_dir, processes=2, should_stop=stop_at(2))
    again, epochs = run(short(), tmp_path / "again", sharded, processes=1)
    assert (again, epochs) == whole
    plain, _ = run(short(augmentation=None), tmp_path / "plain", datasets_dir)
    assert plain != again


def test_without_crops_nothing_more_is_drawn(datasets_dir: Path) -> None:
    data = load_train("imagenet", datasets_dir)

    def crop(photograph: object, seed: int) -> Tensor:
        raise NotImplementedError

    streams = [torch.Generator().manual_seed(0) for _ in range(2)]
    plain, cropped = (
        Batches(data, batch_size=300, device=torch.device("cpu"), crop=each).order(stream)
        for each, stream in zip((None, crop), streams, strict=True)
    )
    assert [index.tolist() for index in plain.real] == [index.tolist() for index in cropped.real]
    assert plain.seeds is None
    assert cropped.seeds is not None
    assert [len(seeds) for seeds in cropped.seeds] == [300, 300, 300, 100]
    assert len(torch.cat(cropped.seeds).unique()) == 1000
    expected = torch.Generator().manual_seed(0)
    torch.randperm(1000, generator=expected)
    assert torch.equal(streams[0].get_state(), expected.get_state())


def test_a_signal_that_ends_the_decoding_processes_too_is_a_stop(
    tmp_path: Path, datasets_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A supervisor's SIGTERM reaches them all; without a stop, lost processes are an error."""
    whole, _ = run(short(), tmp_path / "whole", datasets_dir)
    iterate = Batches.iterate
    is_stop = stopping = False

    def ended(self: Batches, *arguments: Any, **options: Any) -> Iterator[tuple[Tensor, Tensor]]:
        yield next(iterate(self, *arguments, **options))
        nonlocal stopping
        stopping = is_stop
        raise DecodingEnded("a process was ended")

    events: list[Event] = []
    for error in (DecodingEnded, Stopped):
        is_stop = error is Stopped
        context = RunContext(
            directory=tmp_path / "ended",
            datasets_dir=datasets_dir,
            report=events.append,
            should_stop=lambda: stopping,
            device="cpu",
            decoding_processes=0,
        )
        with monkeypatch.context() as patched, pytest.raises(error):
            patched.setattr(Batches, "iterate", ended)
            train(short(), context)
    assert [e.step for e in events if isinstance(e, CheckpointSaved)] == [1]
    resumed, _ = run(short(), tmp_path / "ended", datasets_dir)
    assert resumed == whole
