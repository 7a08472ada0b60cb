"""Examples that somebody else found: taken where they hold, refused with the first that does not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from gkl.errors import InvalidInput, Stopped
from gkl.evaluation import evaluate, merge_examples, verify
from gkl.files import sha256_of
from gkl.run_context import RunContext
from gkl.spec import EvaluateSpec, Evaluation, ExternalSpec, ThreatModel
from tests.examples import saved, weakened
from tests.specs import NO_FILES

Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def certificate(robust_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("whole")
    evaluation = Evaluation(
        protocol="custom",
        attacks=("apgd-ce",),
        threat_model=ThreatModel(epsilon=0.2),
        num_points=60,
        batch_size=25,
    )
    spec = EvaluateSpec(
        name="a",
        dataset="digits",
        architecture="tiny_cnn",
        weights=sha256_of(robust_weights),
        evaluation=evaluation,
    )
    evaluate(spec, robust_weights, RunContext(directory=directory, datasets_dir=NO_FILES, device="cpu"))
    return directory / "certificate.safetensors"


def external(weights: Path) -> ExternalSpec:
    return ExternalSpec(
        name="Mine (Ada)",
        dataset="digits",
        architecture="tiny_cnn",
        weights=sha256_of(weights),
        examples="0" * 64,
    )


def test_what_breaks_standing_points_is_merged_and_verifies(
    certificate: Path, robust_weights: Path, tmp_path: Path
) -> None:
    weak, examples = weakened(certificate, tmp_path, 5)
    # In any order, with one of a point that is known to be broken.
    whole = load_file(certificate)
    examples["index"] = torch.cat([examples["index"].flip(0), whole["index"][:1]]).to(torch.int32)
    examples["adversarial"] = torch.cat([examples["adversarial"].flip(0), whole["adversarial"][:1]])
    outcome = merge_examples(
        external(robust_weights),
        weak,
        saved(tmp_path / "examples", examples),
        robust_weights,
        RunContext(directory=tmp_path / "run", datasets_dir=NO_FILES, device="cpu"),
        batch_size=4,
    )
    assert (outcome.examples, outcome.broken, outcome.base_sha256) == (6, 5, sha256_of(weak))
    assert outcome.certificate is not None
    merged = load_file(tmp_path / "run" / outcome.certificate)
    for name in ("index", "adversarial", "clean", "adversarial_prediction", "perturbation_norm"):
        assert torch.equal(merged[name].nan_to_num(), whole[name].nan_to_num()), name
    assert merged["broken_by"][examples["index"].long()].tolist() == [1, 1, 1, 1, 1, 0]
    checked = verify(tmp_path / "run" / outcome.certificate, robust_weights, datasets_dir=NO_FILES, device="cpu")
    assert checked.problems == []
    assert checked.robust_correct == outcome.robust_correct


def test_what_breaks_nothing_new_is_checked_and_leaves_no_file(
    certificate: Path, robust_weights: Path, tmp_path: Path
) -> None:
    whole = load_file(certificate)
    known = saved(tmp_path / "known", {name: whole[name][:3] for name in ("adversarial", "index")})
    outcome = merge_examples(
        external(robust_weights),
        certificate,
        known,
        robust_weights,
        RunContext(directory=tmp_path / "run", datasets_dir=NO_FILES, device="cpu"),
    )
    assert (outcome.examples, outcome.broken, outcome.certificate) == (3, 0, None)
    assert list((tmp_path / "run").iterdir()) == []


def changed(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Tensors], Tensors]:
    return lambda tensors: tensors | {name: change(tensors[name])}


def at_second(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    """One pixel of the second example."""

    def change(images: torch.Tensor) -> torch.Tensor:
        images[1, 0, 0, 0] = value
        return images

    return change


WRONG = {
    "too far": (changed("adversarial", at_second(0.9)), r"point {1}: .* away in Linf, further than epsilon 0\.2"),
    "outside": (changed("adversarial", at_second(-0.01)), r"point {1}: .*values from -0\.01 to .*, outside \[0, 1\]"),
    "nan": (changed("adversarial", at_second(float("nan"))), "point {1}: .*values that are no numbers"),
    "double": (changed("adversarial", torch.Tensor.double), "send float32 images"),
    "flat": (changed("adversarial", lambda t: t.flatten(1)), r"send float32 images in \[0, 1\], \(examples, 1, 8, 8\)"),
    "no points": (changed("index", lambda t: t + 60), "there is no point {0}60.*points are 0 to 59"),
    "negative": (changed("index", lambda t: -t - 1), "there is no point -"),
    "floats": (changed("index", torch.Tensor.float), "one whole number for each"),
    "fewer": (changed("index", lambda t: t[:-1]), "one whole number for each"),
    "twice": (changed("index", lambda t: t[:1].expand(3)), "point {0} has two examples"),
    "none": (lambda t: {name: tensor[:0] for name, tensor in t.items()}, "at least one"),
    "no index": (lambda t: {"adversarial": t["adversarial"]}, "lack the tensor 'index'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_hold_is_refused_with_the_first_point(
    certificate: Path, robust_weights: Path, tmp_path: Path, case: str
) -> None:
    change, says = WRONG[case]
    weak, examples = weakened(certificate, tmp_path, 3)
    first, second = examples["index"][:2].tolist()
    expected = says.replace("{0}60", str(first + 60)).replace("{0}", str(first)).replace("{1}", str(second))
    with pytest.raises(InvalidInput, match=expected):
        merge_examples(
            external(robust_weights),
            weak,
            saved(tmp_path / "examples", change(examples)),
            robust_weights,
            RunContext(directory=tmp_path / "run", datasets_dir=NO_FILES, device="cpu"),
        )
    assert list((tmp_path / "run").iterdir()) == []


def test_a_clean_image_is_no_example_where_the_model_is_right(
    certificate: Path, robust_weights: Path, tmp_path: Path
) -> None:
    weak, examples = weakened(certificate, tmp_path, 3)
    whole = load_file(certificate)
    examples["adversarial"][2] = whole["clean"][-1] / (255 if whole["clean"].dtype == torch.uint8 else 1)
    with pytest.raises(InvalidInput, match=f"point {int(examples['index'][2])}: the model gets its adversarial image"):
        merge_examples(
            external(robust_weights),
            weak,
            saved(tmp_path / "examples", examples),
            robust_weights,
            RunContext(directory=tmp_path / "run", datasets_dir=NO_FILES, device="cpu"),
        )


def test_other_weights_are_refused(
    certificate: Path, robust_weights: Path, plain_weights: Path, tmp_path: Path
) -> None:
    _, examples = weakened(certificate, tmp_path, 3)
    sent = saved(tmp_path / "examples", examples)
    with pytest.raises(InvalidInput, match="about other weights"):
        merge_examples(
            external(plain_weights),
            certificate,
            sent,
            plain_weights,
            RunContext(directory=tmp_path, datasets_dir=NO_FILES, device="cpu"),
        )


def test_it_stops_when_asked(certificate: Path, robust_weights: Path, tmp_path: Path) -> None:
    _, examples = weakened(certificate, tmp_path, 3)
    sent = saved(tmp_path / "examples", examples)
    with pytest.raises(Stopped):
        merge_examples(
            external(robust_weights),
            certificate,
            sent,
            robust_weights,
            RunContext(directory=tmp_path, datasets_dir=NO_FILES, device="cpu", should_stop=lambda: True),
        )


def test_a_certificate_shows_the_datas_own_images(certificate: Path, robust_weights: Path, tmp_path: Path) -> None:
    from gkl.evaluation.certificate import contents_sha256
    from gkl.formats.tensor_files import load_tensors, save_tensors

    tensors, metadata = load_tensors(certificate)
    tensors["clean"][2] = 1 - tensors["clean"][2]
    metadata["contents_sha256"] = contents_sha256(tensors, metadata)
    save_tensors(tmp_path / "c", tensors, metadata)
    checked = verify(tmp_path / "c", robust_weights, datasets_dir=NO_FILES, device="cpu")
    assert checked.problems == [
        f"point {int(tensors['index'][2])}: the clean image it shows is another than the data's"
    ]
