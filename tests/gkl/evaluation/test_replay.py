"""One network's adversarial examples on another: counted as a direct computation counts them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from gkl.data import load_test, unit_range
from gkl.errors import InvalidInput, InvalidVerdict, Stopped
from gkl.evaluation import evaluate, measure_transfer, verify
from gkl.evaluation.certificate import contents_sha256, read_certificate
from gkl.files import sha256_of
from gkl.formats.tensor_files import load_tensors, save_tensors
from gkl.models import load_model
from gkl.outcome import Progress, TransferOutcome
from gkl.run_context import RunContext
from gkl.spec import AttackName, EvaluateSpec, Evaluation, ThreatModel, TransferSpec
from tests.examples import weakened
from tests.specs import NO_FILES


def evaluated(
    weights: Path, directory: Path, *, attacks: tuple[AttackName, ...] = ("apgd-ce", "square"), epsilon: float = 0.2
) -> Path:
    evaluation = Evaluation(
        protocol="custom",
        attacks=attacks,
        threat_model=ThreatModel(epsilon=epsilon),
        num_points=80,
        batch_size=80,
    )
    spec = EvaluateSpec(
        name="a", dataset="digits", architecture="tiny_cnn", weights=sha256_of(weights), evaluation=evaluation
    )
    evaluate(spec, weights, RunContext(directory=directory, datasets_dir=NO_FILES, device="cpu"))
    return directory / "certificate.safetensors"


@pytest.fixture(scope="module")
def robust(robust_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The certificate of the robust network."""
    return evaluated(robust_weights, tmp_path_factory.mktemp("robust"))


@pytest.fixture(scope="module")
def plain(plain_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The certificate of the other one, for a larger budget."""
    return evaluated(plain_weights, tmp_path_factory.mktemp("plain"), attacks=("square",), epsilon=0.25)


def replayed(source: Path, certificate: Path, weights: Path, directory: Path, **options: object) -> TransferOutcome:
    spec = TransferSpec(
        name="a against b",
        source_name="a",
        source=sha256_of(source),
        dataset="digits",
        architecture="tiny_cnn",
        weights=sha256_of(weights),
    )
    context = RunContext(directory=directory, datasets_dir=NO_FILES, device="cpu", **options)  # type: ignore[arg-type]
    return measure_transfer(spec, source, certificate, weights, context, batch_size=7)


def counted(source: Path, weights: Path) -> dict[str, tuple[int, int, int]]:
    """Examples, those whose clean image is right, and those that break: of each attack, in double precision."""
    model = load_model("tiny_cnn", "digits", weights, None).eval().double()
    certificate, data = read_certificate(source), load_test("digits", NO_FILES, 80)
    found: dict[str, list[int]] = {}
    for index, image in zip(certificate.tensors["index"].tolist(), certificate.tensors["adversarial"], strict=True):
        attack = certificate.attacks[int(certificate.tensors["broken_by"][index])]
        with torch.no_grad():
            clean, adversarial = model(torch.stack([unit_range(data.images[index]), image]).double()).argmax(1).tolist()
        label = int(data.labels[index])
        row = found.setdefault(attack, [0, 0, 0])
        row[0] += 1
        row[1] += clean == label
        row[2] += clean == label and adversarial != label
    return {attack: (a, b, c) for attack, (a, b, c) in found.items()}


def test_it_counts_as_a_direct_computation_does(
    robust: Path, plain: Path, robust_weights: Path, plain_weights: Path, tmp_path: Path
) -> None:
    expected = counted(robust, plain_weights)
    stages = []
    outcome = replayed(
        robust,
        plain,
        plain_weights,
        tmp_path,
        report=lambda event: stages.append((event.stage, event.fraction)) if isinstance(event, Progress) else None,
    )
    assert {each.attack: (each.examples, each.clean_correct, each.broken) for each in outcome.attacks} == expected
    total = [sum(column) for column in zip(*expected.values(), strict=True)]
    assert [outcome.examples, outcome.clean_correct, outcome.broken] == total
    assert 0 < outcome.broken < outcome.clean_correct <= outcome.examples
    assert outcome.share == outcome.broken / outcome.clean_correct
    assert outcome.interval[0] < outcome.share < outcome.interval[1]
    fractions = [fraction for _, fraction in stages]
    assert fractions == sorted(fractions)
    # The other order is another question.
    assert replayed(plain, plain, plain_weights, tmp_path / "own").share == 1.0


def test_what_breaks_a_point_that_stood_joins_the_certificate(
    robust: Path, plain: Path, plain_weights: Path, tmp_path: Path
) -> None:
    whole = read_certificate(plain)
    weak, _ = weakened(plain, tmp_path, len(whole.tensors["index"]) // 2)
    before, labels = load_file(weak), whole.tensors["label"]
    outcome = replayed(robust, weak, plain_weights, tmp_path / "run")
    model = load_model("tiny_cnn", "digits", plain_weights, None).eval()
    theirs = load_file(robust)
    with torch.no_grad():
        fooled = model(theirs["adversarial"]).argmax(1) != labels[theirs["index"]]
    lost = theirs["index"][fooled & (before["broken_by"][theirs["index"]] == -1)]
    assert len(lost) > 0
    known = read_certificate(weak)
    assert known.robust_correct is not None
    assert (outcome.merged.broken, outcome.merged.robust_correct) == (len(lost), known.robust_correct - len(lost))
    assert (outcome.merged.examples, outcome.merged.base_sha256) == (outcome.broken, sha256_of(weak))
    assert outcome.merged.certificate is not None
    merged = read_certificate(tmp_path / "run" / outcome.merged.certificate)
    assert merged.attacks == ("Square", "transfer from a")
    assert merged.tensors["broken_by"][lost].unique().tolist() == [1]
    checked = verify(tmp_path / "run" / outcome.merged.certificate, plain_weights, datasets_dir=NO_FILES, device="cpu")
    assert (checked.problems, checked.robust_correct) == ([], outcome.merged.robust_correct)
    # Once more, with what is known now: the same counts, and nothing new.
    again = replayed(robust, tmp_path / "run" / "merged.safetensors", plain_weights, tmp_path / "again")
    assert (again.broken, again.merged.broken, again.merged.certificate) == (outcome.broken, 0, None)
    assert list((tmp_path / "again").iterdir()) == []


def test_a_network_that_lost_nothing_has_nothing_to_replay(
    robust: Path, plain: Path, plain_weights: Path, tmp_path: Path
) -> None:
    count = len(load_file(robust)["index"])
    none, _ = weakened(robust, tmp_path, count)
    outcome = replayed(none, plain, plain_weights, tmp_path / "run")
    assert (outcome.examples, outcome.clean_correct, outcome.broken, outcome.share) == (0, 0, 0, None)
    assert outcome.attacks == ()


def test_an_answer_that_is_no_number_breaks(
    robust: Path, plain: Path, plain_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """argmax of NaN is class 0, whose points would count as robust."""
    images = load_file(robust)["adversarial"]
    theirs = read_certificate(robust)
    zeros = theirs.tensors["index"][theirs.tensors["label"][theirs.tensors["index"]] == 0]
    right = zeros[read_certificate(plain).tensors["prediction"][zeros] == 0]
    assert len(right) > 0
    chosen = {image.numpy().tobytes() for image in images[torch.isin(theirs.tensors["index"], right)]}

    def load_with_nan(*args: object) -> torch.nn.Module:
        model = load_model(*args)  # type: ignore[arg-type]

        def spoil(_: torch.nn.Module, given: tuple[torch.Tensor], logits: torch.Tensor) -> torch.Tensor:
            is_chosen = torch.tensor([image.numpy().tobytes() in chosen for image in given[0]])
            return logits.masked_fill(is_chosen[:, None], torch.nan)

        model.register_forward_hook(spoil)
        return model

    monkeypatch.setattr("gkl.evaluation.examples.load_model", load_with_nan)
    outcome = replayed(robust, plain, plain_weights, tmp_path)
    honest = counted(robust, plain_weights)
    model = load_model("tiny_cnn", "digits", plain_weights, None).eval()
    with torch.no_grad():
        withstood = model(images[torch.isin(theirs.tensors["index"], right)]).argmax(1) == 0
    assert outcome.broken == sum(broken for _, _, broken in honest.values()) + int(withstood.sum())


def forged(path: Path, directory: Path, **changes: object) -> Path:
    tensors, metadata = load_tensors(path)
    metadata |= {name: value for name, value in changes.items() if name in metadata}
    tensors |= {name: value for name, value in changes.items() if name in tensors}  # type: ignore[misc]
    metadata["contents_sha256"] = contents_sha256(tensors, metadata)
    save_tensors(directory / "forged", tensors, metadata)
    return directory / "forged"


def test_what_does_not_fit_is_refused_in_a_sentence(
    robust: Path, plain: Path, robust_weights: Path, plain_weights: Path, tmp_path: Path
) -> None:
    other_images = forged(robust, tmp_path, dataset_sha256="0" * 64)
    with pytest.raises(InvalidInput, match="measured on different images"):
        replayed(other_images, plain, plain_weights, tmp_path / "run")
    with pytest.raises(InvalidInput, match=r"the examples go up to epsilon 0\.25 in Linf, .* attacked up to 0\.2 only"):
        replayed(plain, robust, robust_weights, tmp_path / "run")
    with pytest.raises(InvalidInput, match="about other weights"):
        replayed(robust, plain, robust_weights, tmp_path / "run")
    images = load_file(robust)["adversarial"]
    images[1, 0, 0, 0] = 1.5
    index = int(load_file(robust)["index"][1])
    with pytest.raises(InvalidInput, match=rf"point {index}: its adversarial image is .* away in Linf"):
        replayed(forged(robust, tmp_path, adversarial=images), plain, plain_weights, tmp_path / "run")
    predictions = load_file(plain)["prediction"]
    predictions[int(load_file(robust)["index"][0])] += 1
    with pytest.raises(InvalidVerdict, match=r"the model answers \d to its clean image, and its certificate says"):
        replayed(robust, forged(plain, tmp_path, prediction=predictions), plain_weights, tmp_path / "run")
    assert list((tmp_path / "run").iterdir()) == []


def test_it_stops_when_asked(robust: Path, plain: Path, plain_weights: Path, tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        replayed(robust, plain, plain_weights, tmp_path, should_stop=lambda: True)
