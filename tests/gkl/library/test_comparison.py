"""Two networks on the same points."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import gkl
from gkl.data import ImageSet, load_test
from gkl.errors import InvalidInput
from gkl.evaluation import evaluate
from gkl.evaluation.points import STANDS
from gkl.files import sha256_of
from gkl.formats.tensor_files import load_tensors, save_tensors
from gkl.run_context import RunContext
from gkl.spec import EvaluateSpec, Evaluation, ThreatModel
from tests.gkl.evaluation.short_attacks import attacks_shortened
from tests.gkl.library.conftest import QUICK, trained_model
from tests.specs import NO_FILES

pytestmark = pytest.mark.usefixtures("short_attacks")


class _Leaning(nn.Module):
    """Towards class 0, which it leaves less easily."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x) + 6 * nn.functional.one_hot(torch.zeros(len(x), dtype=torch.long), 10)


Pair = tuple[gkl.Verdict, gkl.Verdict]


@pytest.fixture(scope="module")
def verdicts() -> Pair:
    data = load_test("digits", NO_FILES, 40)
    with attacks_shortened():
        good, bad = (gkl.evaluate(m, data, **QUICK) for m in (_Leaning(trained_model()), trained_model().eval()))
    return good, bad


def test_the_table_is_counted_point_by_point(verdicts: Pair) -> None:
    first, second = verdicts
    found = gkl.compare(first, second)
    pairs = [
        (a == STANDS, b == STANDS)
        for a, b in zip(first.measurement.broken_by.tolist(), second.measurement.broken_by.tolist(), strict=True)
    ]
    counts = found.counts
    assert (counts.both, counts.only_first) == (pairs.count((True, True)), pairs.count((True, False)))
    assert (counts.only_second, counts.neither) == (pairs.count((False, True)), pairs.count((False, False)))
    assert counts.only_first > counts.only_second
    assert first.robust_accuracy is not None
    assert second.robust_accuracy is not None
    assert found.difference == pytest.approx(first.robust_accuracy - second.robust_accuracy)
    low, high = found.interval
    assert repr(found) == (
        f"_Leaning withstands attacks on {counts.only_first - counts.only_second} more of 40 points than TinyCNN: "
        f"{100 * found.difference:+.1f} points (95 % paired interval {100 * low:+.1f} to {100 * high:+.1f}), "
        f"exact McNemar p = {found.p_value:.2g}"
    )
    turned = gkl.compare(second, first)
    assert turned.difference == -found.difference
    assert " fewer of 40 points than _Leaning: -" in repr(turned)


def test_a_frame_has_the_points_on_which_they_differ(verdicts: Pair) -> None:
    found = gkl.compare(*verdicts, names=("good", "bad"))
    frame = found.to_frame()
    assert len(frame) == found.counts.only_first + found.counts.only_second
    frames = [verdict.to_frame() for verdict in verdicts]
    for point, row in frame.iterrows():
        for of, whole in zip("ab", frames, strict=True):
            assert (row[f"prediction_{of}"], row.label) == (whole.prediction[point], whole.label[point])
            assert str(row[f"broken_by_{of}"]) == str(whole.broken_by[point])
        assert row.stands == ("good" if isinstance(row.broken_by_b, str) else "bad")
        assert isinstance(row.broken_by_a, str) != isinstance(row.broken_by_b, str)
    assert frame.index.name == "point"


def test_a_network_is_as_good_as_itself(verdicts: Pair) -> None:
    found = gkl.compare(verdicts[0], verdicts[0])
    assert repr(found).startswith(
        "the first _Leaning withstands attacks on as many of 40 points as the second _Leaning: +0.0 points"
    )
    assert (found.p_value, found.difference, len(found.to_frame())) == (1.0, 0.0, 0)


def test_certificates_are_compared_like_verdicts(verdicts: Pair, tmp_path: Path) -> None:
    paths = [verdict.save_certificate(tmp_path / f"{i}.safetensors") for i, verdict in enumerate(verdicts)]
    names = ("one", "two")
    expected = gkl.compare(*verdicts, names=names)
    for a, b in (paths, [str(paths[0]), verdicts[1]]):
        found = gkl.compare(a, b, names=names)
        assert repr(found) == repr(expected)
        assert found.to_frame().equals(expected.to_frame())
    assert gkl.compare(*paths).names == ("0", "1")


def test_a_job_of_a_service_is_called_by_its_name(model: nn.Module, tmp_path: Path) -> None:
    weights = tmp_path / "weights.safetensors"
    save_tensors(weights, model.state_dict(), {})
    evaluation = Evaluation(
        protocol="custom",
        attacks=("apgd-ce", "apgd-dlr"),
        threat_model=ThreatModel(epsilon=0.1),
        num_points=40,
        batch_size=20,
    )
    sha256 = sha256_of(weights)
    spec = EvaluateSpec(name="Ada's", dataset="digits", architecture="tiny_cnn", weights=sha256, evaluation=evaluation)
    evaluate(spec, weights, RunContext(directory=tmp_path, datasets_dir=NO_FILES))
    verdict = gkl.evaluate(model, "digits", **QUICK, num_points=40)
    found = gkl.compare(tmp_path / "certificate.safetensors", verdict)
    assert found.names == ("Ada's", "TinyCNN")
    assert found.counts.only_first == found.counts.only_second == 0


def test_other_protocols_are_told(model: nn.Module, data: ImageSet, verdicts: Pair) -> None:
    less = gkl.evaluate(model.eval(), data, **QUICK | {"attacks": ["apgd-ce"]})
    assert repr(gkl.compare(verdicts[1], less)).endswith(
        "; by different protocols: custom (apgd-ce, apgd-dlr) and custom (apgd-ce)"
    )


def test_clean_verdicts_are_compared_too(model: nn.Module, data: ImageSet) -> None:
    clean = QUICK | {"protocol": "clean", "attacks": None}
    found = gkl.compare(gkl.evaluate(model, data, **clean), gkl.evaluate(_Leaning(model), data, **clean))
    assert repr(found).startswith("TinyCNN classifies ")


def test_a_notebook_shows_the_table(verdicts: Pair) -> None:
    found = gkl.compare(*verdicts, names=("<b>good</b>", "bad"))
    shown = found._repr_html_()
    assert "<b>good" not in shown.replace("<b>&lt;", "")
    counts = found.counts
    assert [int(number) for number in re.findall(r"<td [^>]*>(\d+)</td>", shown)] == [
        *(counts.both, counts.only_first, counts.only_second, counts.neither)
    ]


def test_what_is_not_the_same_is_refused(model: nn.Module, data: ImageSet, verdicts: Pair, tmp_path: Path) -> None:
    def other(images: object = data, **options: object) -> gkl.Verdict:
        return gkl.evaluate(model.eval(), images, **QUICK | options)  # type: ignore[arg-type]

    labels = data.labels.clone()
    labels[:3] = (labels[:3] + 1) % 10
    darker = ImageSet(data.images * 0.9, data.labels)
    first = verdicts[0]
    for another, says in [
        (other(num_points=20), "one is about 40 points, the other about 20"),
        (other(ImageSet(data.images, labels)), "the labels of 3 of 40 points differ"),
        (other(darker), "about different images with the same labels"),
        (other(epsilon=0.2), "measured under Linf 0.1 and under Linf 0.2; compare"),
        (other(norm="L2"), "under Linf 0.1 and under L2 0.1"),
        (other(protocol="clean", attacks=None), "under Linf 0.1 and under no attack"),
        (tmp_path / "none.safetensors", "none.safetensors"),
        (7, "a int cannot be compared; give verdicts, or paths of certificates"),
    ]:
        with pytest.raises(InvalidInput, match=re.escape(says)):
            gkl.compare(first, another)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="two texts"):
        gkl.compare(first, first, names=("one",))  # type: ignore[arg-type]


def test_a_changed_certificate_is_refused(verdicts: Pair, tmp_path: Path) -> None:
    path = verdicts[0].save_certificate(tmp_path / "certificate.safetensors")
    tensors, metadata = load_tensors(path)
    tensors["broken_by"][:] = STANDS
    save_tensors(path, tensors, metadata)
    with pytest.raises(InvalidInput, match="changed after it was written"):
        gkl.compare(path, verdicts[1])


def test_without_pandas_it_says_so(verdicts: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    found = gkl.compare(*verdicts)
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(InvalidInput, match="pip install pandas"):
        found.to_frame()
