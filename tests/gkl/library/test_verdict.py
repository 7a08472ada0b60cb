"""What is shown of a verdict, and the certificate of somebody's own network."""

from __future__ import annotations

import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

import gkl
from gkl.data import ImageSet
from gkl.errors import InvalidInput
from gkl.evaluation import verify
from gkl.formats.tensor_files import load_tensors, save_tensors
from gkl.statistics.intervals import wilson_interval
from tests.commands import run
from tests.gkl.library.conftest import QUICK
from tests.specs import NO_FILES

pytestmark = pytest.mark.usefixtures("short_attacks")


@pytest.fixture
def verdict(model: nn.Module, data: ImageSet) -> gkl.Verdict:
    return gkl.evaluate(model.eval(), data, **QUICK)


def test_one_line_says_it(verdict: gkl.Verdict, model: nn.Module, data: ImageSet) -> None:
    found = verdict.measurement
    low, high = wilson_interval(found.robust_correct, 40)
    assert verdict.interval == (low, high)
    assert repr(verdict) == (
        f"Verdict: robust {2.5 * found.robust_correct:.2f} % (95 % interval {100 * low:.1f} to {100 * high:.1f}), "
        f"clean {2.5 * found.clean_correct:.2f} % on 40 points, Linf 0.1"
    )
    doubtful = gkl.evaluate(lambda x: 100 * model.eval()(x).softmax(1), data, **QUICK)
    assert repr(doubtful).endswith(f"; flags: {', '.join(flag.name for flag in doubtful.flags)}")
    clean = gkl.evaluate(model, data, **QUICK | {"protocol": "clean", "attacks": None})
    assert (clean.robust_accuracy, clean.interval) == (None, wilson_interval(found.clean_correct, 40))


def test_a_notebook_shows_a_table_and_the_closest_images(verdict: gkl.Verdict) -> None:
    tags: list[str] = []

    class Strict(HTMLParser):
        def handle_starttag(self, tag: str, attributes: object) -> None:
            tags.append(tag)

    shown = verdict._repr_html_()
    Strict().feed(shown)
    examples = min(6, len(verdict.measurement.index))
    assert examples > 0
    assert (tags.count("tr"), tags.count("figure"), tags.count("img")) == (3, examples, 2 * examples)
    assert len(shown) < 30_000
    norms = verdict.measurement.perturbation_norm[verdict.measurement.index[verdict.closest(6)]]
    assert norms.tolist() == sorted(norms.tolist())


def test_what_a_model_is_called_is_no_markup(model: nn.Module, data: ImageSet) -> None:
    model.__class__ = type("<b>Net</b>", (type(model),), {})
    verdict = gkl.evaluate(model, data, **QUICK, num_points=4)
    assert "&lt;b&gt;Net" in verdict._repr_html_()


def test_a_frame_has_a_row_for_each_point(verdict: gkl.Verdict) -> None:
    frame = verdict.to_frame()
    found = verdict.measurement
    assert len(frame) == 40
    assert frame.label.tolist() == found.labels.tolist()
    assert frame.prediction.tolist() == found.prediction.tolist()
    assert int(frame.broken_by.isna().sum()) == found.robust_correct
    assert int((frame.broken_by == "misclassified").sum()) == 40 - found.clean_correct
    for attack in found.attacks:
        assert int((frame.broken_by == attack.attack).sum()) == attack.broken
    broken = frame[frame.norm.notna()]
    assert broken.index.tolist() == found.index.tolist()
    assert broken.adversarial_prediction.tolist() == found.adversarial_prediction.tolist()
    assert (broken.norm <= 0.1 + 1e-6).all()
    assert frame[frame.norm.isna()].adversarial_prediction.isna().all()


def test_a_plot_is_drawn(verdict: gkl.Verdict, model: nn.Module, data: ImageSet, tmp_path: Path) -> None:
    figure = verdict.plot()
    assert isinstance(figure, Figure)
    figure.savefig(tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 5000
    bars, *examples = figure.get_axes()
    assert [label.get_text() for label in bars.get_yticklabels()] == ["clean", "APGD-CE", "APGD-DLR"]
    assert len(examples) == 2 * min(6, len(verdict.measurement.index))
    nothing = gkl.evaluate(model, data, **QUICK | {"protocol": "clean", "attacks": None})
    nothing.plot().savefig(tmp_path / "clean.png")


@pytest.mark.parametrize(("package", "what"), [("pandas", "to_frame"), ("matplotlib", "plot")])
def test_without_a_package_it_says_which(
    verdict: gkl.Verdict, monkeypatch: pytest.MonkeyPatch, package: str, what: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InvalidInput, match=f"needs {package}: pip install {package}"):
        getattr(verdict, what)()


# --- the certificate ---------------------------------------------------------------------------------------------


def test_a_certificate_of_ones_own_network_is_checked_as_far_as_it_can_be(verdict: gkl.Verdict, tmp_path: Path) -> None:
    path = verdict.save_certificate(tmp_path / "new" / "certificate.safetensors")
    found = verify(path, None, datasets_dir=NO_FILES)
    assert (found.holds, found.network_asked, found.data_known) == (True, False, False)
    assert found.robust_correct == verdict.measurement.robust_correct
    assert found.examples == len(verdict.measurement.index)
    done = run("verify", path)
    assert done.returncode == 0, done.stderr
    assert "It agrees with itself: norms, box and counts of" in done.stdout
    assert "answers were not checked" in " ".join(done.stdout.split())
    assert f"({verdict.measurement.robust_correct} of 40)" in done.stdout


def test_of_a_known_data_set_labels_and_images_are_compared(model: nn.Module, tmp_path: Path) -> None:
    verdict = gkl.evaluate(model, "digits", **QUICK, num_points=40)
    path = verdict.save_certificate(tmp_path / "certificate.safetensors")
    assert verify(path, None, datasets_dir=NO_FILES).data_known
    tensors, metadata = load_tensors(path)
    tensors["label"][3] = (tensors["label"][3] + 1) % 10
    save_tensors(path, tensors, metadata)
    found = verify(path, None, datasets_dir=NO_FILES)
    assert "point 3: its label is" in found.problems[0]


@pytest.mark.parametrize("harm", ["further", "outside", "norm", "count", "clean"])
def test_what_was_changed_in_it_is_told(verdict: gkl.Verdict, tmp_path: Path, harm: str) -> None:
    path = verdict.save_certificate(tmp_path / "certificate.safetensors")
    tensors, metadata = load_tensors(path)
    point = int(tensors["index"][0])
    if harm == "further":
        tensors["adversarial"][0] = 1 - tensors["adversarial"][0].round()
    if harm == "outside":
        tensors["adversarial"][0, 0, 0, 0] = 1.5
    if harm == "norm":
        tensors["perturbation_norm"][point] = 0.01
    if harm == "count":
        metadata["robust_correct"] += 1
    if harm == "clean":
        tensors["clean"][0] = 0
    save_tensors(path, tensors, metadata)
    found = verify(path, None, datasets_dir=NO_FILES)
    assert not found.holds
    assert "it was changed after it was written" in found.problems
    assert harm in ("count", "clean") or f"point {point}: " in found.problems[0]


def test_own_images_are_for_own_networks_alone(verdict: gkl.Verdict, tmp_path: Path) -> None:
    path = verdict.save_certificate(tmp_path / "certificate.safetensors")
    tensors, metadata = load_tensors(path)
    save_tensors(path, tensors, metadata | {"architecture": "tiny_cnn"})
    with pytest.raises(InvalidInput, match="there is no data set 'own'"):
        verify(path, None, datasets_dir=NO_FILES)


def test_two_networks_have_two_hashes(verdict: gkl.Verdict, model: nn.Module, data: ImageSet) -> None:
    with torch.no_grad():
        next(model.parameters()).add_(0.01)
    assert gkl.evaluate(model, data, **QUICK, num_points=2).model_sha256 != verdict.model_sha256
