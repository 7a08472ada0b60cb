"""From a spec and a file of weights to a proven outcome, also after a death in the middle."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from gkl.data import load_test
from gkl.errors import InvalidInput, InvalidVerdict, Stopped
from gkl.evaluation import Shard, evaluate, evaluate_shard, verify
from gkl.evaluation.certificate import read_certificate
from gkl.files import sha256_of
from gkl.formats.tensor_files import load_tensors
from gkl.models import build_model
from gkl.outcome import AttackFinished, BlockSaved, EvaluationOutcome, Event, Progress, ProvisionalVerdict
from gkl.run_context import RunContext
from gkl.spec import EvaluateSpec, Evaluation, ThreatModel
from tests.gkl.evaluation.short_attacks import attacks_shortened
from tests.specs import NO_FILES


def spec_for(weights: Path, **evaluation: object) -> EvaluateSpec:
    return EvaluateSpec(
        name="test",
        dataset="digits",
        architecture="tiny_cnn",
        weights=sha256_of(weights),
        evaluation=Evaluation(**{"threat_model": ThreatModel(epsilon=0.2), **evaluation}),  # type: ignore[arg-type]
    )


def quick_spec(weights: Path, **evaluation: object) -> EvaluateSpec:
    short = {"protocol": "custom", "attacks": ("apgd-ce",), "num_points": 45, "batch_size": 16}
    return spec_for(weights, **{**short, **evaluation})


def run(spec: EvaluateSpec, weights: Path, directory: Path, events: list[Event] | None = None) -> EvaluationOutcome:
    report = (lambda _: None) if events is None else events.append
    return evaluate(spec, weights, RunContext(directory=directory, datasets_dir=NO_FILES, report=report, device="cpu"))


def points(directory: Path) -> dict[str, torch.Tensor]:
    tensors = dict(read_certificate(directory / "certificate.safetensors").tensors)
    tensors["perturbation_norm"] = tensors["perturbation_norm"].nan_to_num(-1)
    return tensors


def assert_same_points(one: Path, other: Path) -> None:
    expected = points(one)
    for name, tensor in points(other).items():
        assert torch.equal(tensor, expected[name]), name


@dataclass(frozen=True)
class StandardRun:
    """An evaluation by the standard protocol, from which the next tests only read."""

    directory: Path
    outcome: EvaluationOutcome
    events: list[Event]


@pytest.fixture(scope="module")
def standard(robust_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> StandardRun:
    directory, events = tmp_path_factory.mktemp("standard"), list[Event]()
    spec = spec_for(robust_weights, num_points=60, batch_size=32)
    with attacks_shortened():
        return StandardRun(directory, run(spec, robust_weights, directory, events), events)


def test_the_standard_verdict_and_all_it_reports_on_the_way(robust_weights: Path, standard: StandardRun) -> None:
    outcome, events = standard.outcome, standard.events
    assert [a.attack for a in outcome.attacks] == ["APGD-CE", "APGD-T", "FAB-T", "Square", "Repair"]
    assert [e.outcome for e in events if isinstance(e, AttackFinished)] == outcome.attacks
    # Each sees what those before it have left.
    left = [outcome.clean_correct, *(a.survivors for a in outcome.attacks)]
    assert [a.points for a in outcome.attacks] == left[:-1]
    assert outcome.robust_correct == left[-1]
    assert outcome.flags == []
    manifest = outcome.manifest
    assert manifest.dataset_sha256 == load_test("digits", NO_FILES).first(60).sha256()
    assert manifest.weights_sha256 == sha256_of(robust_weights)
    assert (manifest.dtype, manifest.batch_size_used, manifest.seed) == ("float32", 32, 0)
    assert manifest.packages["pyautoattack"]
    # Every part was told of, once, and is there.
    files = [e.file for e in events if isinstance(e, BlockSaved)]
    assert len(files) == len(set(files))
    assert {p.name for p in standard.directory.glob("block-*")} == set(files)
    fractions = [e.fraction for e in events if isinstance(e, Progress)]
    assert fractions == sorted(fractions)
    assert len(fractions) > 4


def test_the_provisional_verdict_is_an_upper_bound_after_apgd_t(robust_weights: Path, standard: StandardRun) -> None:
    outcome, events = standard.outcome, standard.events
    (position,) = [i for i, e in enumerate(events) if isinstance(e, ProvisionalVerdict)]
    provisional = events[position]
    assert isinstance(provisional, ProvisionalVerdict)
    assert [a.attack for a in provisional.outcome.attacks] == ["APGD-CE", "APGD-T"]
    assert provisional.outcome.attacks == outcome.attacks[:2]
    assert provisional.outcome.robust_correct == outcome.attacks[1].survivors
    before = [e.outcome.attack for e in events[:position] if isinstance(e, AttackFinished)]
    assert before == ["APGD-CE", "APGD-T"]
    # It is proven like a final one.
    found = verify(standard.directory / "provisional.safetensors", robust_weights, datasets_dir=NO_FILES, device="cpu")
    assert found.holds
    assert found.robust_correct == provisional.outcome.robust_correct


_RUN = """
import sys
from pathlib import Path
from gkl.evaluation import evaluate
from gkl.run_context import RunContext
from gkl.spec import JOB_SPEC
spec = JOB_SPEC.validate_json(Path(sys.argv[1]).read_text())
weights, directory, none = Path(sys.argv[2]), Path(sys.argv[3]), Path("/nonexistent")
evaluate(spec, weights, RunContext(directory=directory, datasets_dir=none, device="cpu"))
"""


@pytest.mark.long
def test_killed_in_the_middle_it_goes_on_and_ends_with_the_same_points(robust_weights: Path, tmp_path: Path) -> None:
    """Within the first attack, and within the second, whose blocks take seconds: it cannot be at its end by then."""
    spec = quick_spec(robust_weights, attacks=("apgd-ce", "apgd-t"))
    whole = run(spec, robust_weights, tmp_path / "whole")
    (tmp_path / "spec.json").write_text(spec.model_dump_json())
    directory = tmp_path / "killed"
    arguments = [sys.executable, "-c", _RUN, str(tmp_path / "spec.json"), str(robust_weights), str(directory)]
    # Clean images, the checks and APGD-CE make 7 parts of three blocks.
    for parts in (5, 8):
        with subprocess.Popen(arguments, stderr=subprocess.DEVNULL) as process:
            # A machine with much else to do takes long over importing torch.
            deadline = time.monotonic() + 120
            while process.poll() is None and len(list(directory.glob("block-*"))) < parts:
                assert time.monotonic() < deadline
                time.sleep(0.002)
            os.kill(process.pid, signal.SIGKILL)
        assert not (directory / "certificate.safetensors").exists(), "it was killed before the end"
    left = {path.name: path.stat().st_mtime_ns for path in directory.glob("block-*")}
    resumed = run(spec, robust_weights, directory)
    assert resumed.robust_correct == whole.robust_correct
    assert_same_points(tmp_path / "whole", directory)
    assert {name: (directory / name).stat().st_mtime_ns for name in left} == left, "no part was run twice"


@pytest.mark.usefixtures("short_attacks")
def test_one_shard_and_three_give_the_same_certificate(robust_weights: Path, tmp_path: Path) -> None:
    spec = quick_spec(robust_weights, attacks=("apgd-ce", "apgd-dlr"))
    whole = run(spec, robust_weights, tmp_path / "one")
    for index in range(3):
        evaluate_shard(
            spec,
            robust_weights,
            RunContext(directory=tmp_path / "three", datasets_dir=NO_FILES, device="cpu"),
            Shard(index, 3),
        )
    merged = run(spec, robust_weights, tmp_path / "three")
    assert_same_points(tmp_path / "one", tmp_path / "three")
    assert (merged.clean_correct, merged.robust_correct) == (whole.clean_correct, whole.robust_correct)


@pytest.mark.parametrize(("index", "count"), [(3, 3), (-1, 3), (0, 0)])
def test_a_shard_that_is_none_is_refused(index: int, count: int) -> None:
    with pytest.raises(InvalidInput, match="there is no shard"):
        Shard(index, count)


@pytest.mark.usefixtures("short_attacks")
def test_another_evaluation_in_the_same_directory_is_refused(robust_weights: Path, tmp_path: Path) -> None:
    run(quick_spec(robust_weights, num_points=16), robust_weights, tmp_path)
    with pytest.raises(InvalidInput, match=r"parts of another evaluation: its seed is 0, not 1; choose another"):
        run(quick_spec(robust_weights, num_points=16, seed=1), robust_weights, tmp_path)


def test_it_stops_at_the_next_call_of_the_model(robust_weights: Path, tmp_path: Path) -> None:
    calls = iter(range(1_000_000))
    with pytest.raises(Stopped):
        evaluate(
            quick_spec(robust_weights),
            robust_weights,
            RunContext(directory=tmp_path, datasets_dir=NO_FILES, should_stop=lambda: next(calls) >= 90, device="cpu"),
        )
    assert next(calls) == 91
    assert not (tmp_path / "certificate.safetensors").exists()


def test_a_verdict_whose_certificate_does_not_hold_is_not_reported(robust_weights: Path, tmp_path: Path) -> None:
    """As after a flipped bit in a part: an example of another point in this one's place."""
    spec = quick_spec(robust_weights, num_points=30)
    run(spec, robust_weights, tmp_path)
    part = sorted(tmp_path.glob("block-*"))[2]
    tensors, metadata = load_tensors(part)
    tensors["adversarial"] = tensors["adversarial"].flip(0)
    save_file(tensors, part, {"gklbench": json.dumps(metadata)})
    with pytest.raises(InvalidVerdict, match=r"did not survive its own check \(point \d+: its adversarial image is"):
        run(spec, robust_weights, tmp_path)


def test_clean_images_alone(robust_weights: Path, tmp_path: Path) -> None:
    outcome = run(spec_for(robust_weights, protocol="clean", threat_model=None), robust_weights, tmp_path)
    assert (outcome.num_points, outcome.robust_correct, outcome.attacks) == (360, None, [])
    found = verify(tmp_path / "certificate.safetensors", robust_weights, datasets_dir=NO_FILES, device="cpu")
    assert (found.holds, found.clean_correct, found.robust_correct) == (True, outcome.clean_correct, None)


@pytest.mark.usefixtures("short_attacks")
def test_weights_in_half_precision_are_evaluated_in_single(robust_weights: Path, tmp_path: Path) -> None:
    tensors, _ = load_tensors(robust_weights)
    half = tmp_path / "half.safetensors"
    save_file({n: t.half() if t.is_floating_point() else t for n, t in tensors.items()}, half)
    outcome = run(quick_spec(half, num_points=30), half, tmp_path / "out")
    assert outcome.manifest.dtype == "float32"
    assert verify(tmp_path / "out" / "certificate.safetensors", half, datasets_dir=NO_FILES, device="cpu").holds


def test_other_weights_than_the_spec_names_are_refused(robust_weights: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    other.write_bytes(robust_weights.read_bytes() + b" ")
    with pytest.raises(InvalidInput, match="the spec asks for weights"):
        run(spec_for(robust_weights), other, tmp_path)


def weights_with(tmp_path: Path, **changes: torch.Tensor | None) -> Path:
    tensors = dict(build_model("tiny_cnn", "digits").state_dict())
    for key, tensor in changes.items():
        name = key.replace("__", ".")
        if tensor is None:
            del tensors[name]
        else:
            tensors[name] = tensor
    path = tmp_path / "weights.safetensors"
    save_file(tensors, path)
    return path


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"classifier__2__bias": None}, "lacks the tensor 'classifier.2.bias'"),
        ({"classifier__2__bias": torch.zeros(11)}, r"\(11,\), but the architecture has .* \(10,\)"),
        ({"classifier__2__bias": torch.zeros(10, dtype=torch.int64)}, r"I64 \(10,\)"),
        ({"classifier__2__bias": torch.full((10,), torch.nan)}, "NaN or infinite values"),
        ({"surplus": torch.zeros(1)}, "'surplus' that the architecture does not have"),
        (
            {
                "classifier__0__weight": torch.zeros(32, 64),
                "classifier__0__bias": torch.ones(32),
                "classifier__2__weight": torch.full((10, 32), 3e38),
            },
            "NaN or infinite logits",
        ),
    ],
)
def test_unusable_weights_are_refused_before_any_attack(
    changes: dict[str, torch.Tensor | None], says: str, tmp_path: Path
) -> None:
    path = weights_with(tmp_path, **changes)
    events: list[Event] = []
    with pytest.raises(InvalidInput, match=says):
        run(spec_for(path), path, tmp_path / "out", events)
    assert not any(isinstance(event, AttackFinished) for event in events)
