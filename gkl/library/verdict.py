"""The result of an evaluation: as a line, a table, pictures, a certificate."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from gkl.data import ImageSet, unit_range
from gkl.errors import InvalidInput
from gkl.evaluation.certificate import OWN, write_certificate
from gkl.evaluation.points import MISCLASSIFIED, STANDS, Measurement
from gkl.files import check_writable
from gkl.library.pictures import data_uri
from gkl.library.publishing import EntryText, publish
from gkl.outcome import AttackOutcome, Flag
from gkl.provenance import git_commit, make_manifest
from gkl.spec import Evaluation, format_epsilon
from gkl.statistics.intervals import wilson_interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

    from gkl.answers import EntryView

_SHOWN = 6


class Verdict:
    """What `gkl.evaluate` returns. Accuracies are in [0, 1].

    `measurement` has the outcome of each point, `evaluation` the options, and `data` the images that were attacked.
    """

    def __init__(
        self,
        measurement: Measurement,
        evaluation: Evaluation,
        data: ImageSet,
        *,
        dataset: str | None,
        model: str,
        model_sha256: str,
        num_classes: int,
        architecture: str = OWN,
        preprocessing: str | None = None,
    ) -> None:
        self.measurement, self.evaluation, self.data = measurement, evaluation, data
        self.dataset = dataset
        """Name of the data set; None for the caller's own images."""
        self.model = model
        """The network's name: of its class or function."""
        self.model_sha256 = model_sha256
        """sha256 of the network's parameters and buffers (names, shapes, numbers); after `gkl.train`, of the file."""
        self.num_classes = num_classes
        self.architecture = architecture
        """The network's name in the catalog, needed to check a certificate against the weights; else 'own'."""
        self.preprocessing = preprocessing
        """How ImageNet's photographs were resized and cropped; None for other images."""

    @property
    def num_points(self) -> int:
        """Number of points that were evaluated."""
        return self.measurement.num_points

    @property
    def clean_accuracy(self) -> float:
        """Share of the points whose clean image is classified correctly."""
        return self.measurement.clean_correct / self.num_points

    @property
    def robust_accuracy(self) -> float | None:
        """Share of the points that are classified correctly and that no attack broke; None without attacks."""
        return self.measurement.robust_correct / self.num_points if self.attacks else None

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % confidence interval of the robust accuracy, or of the clean accuracy without attacks."""
        found = self.measurement.robust_correct if self.attacks else self.measurement.clean_correct
        return wilson_interval(found, self.num_points)

    @property
    def attacks(self) -> list[AttackOutcome]:
        """The attacks in the order in which they ran, each with the number of points it broke."""
        return self.measurement.attacks

    @property
    def flags(self) -> list[Flag]:
        """Reasons not to trust the robust accuracy, found while it was measured."""
        return self.measurement.flags

    @property
    def unrankable(self) -> str | None:
        """Why the robust accuracy cannot be trusted, in a sentence or two; None if it can."""
        return self.measurement.unrankable

    def __repr__(self) -> str:
        clean, (low, high) = f"clean {100 * self.clean_accuracy:.2f} %", self.interval
        interval = f"(95 % interval {100 * low:.1f} to {100 * high:.1f})"
        if self.robust_accuracy is None:
            return f"Verdict: {clean} {interval} on {self.num_points} points{self._doubt()}"
        return (
            f"Verdict: robust {100 * self.robust_accuracy:.2f} % {interval}, {clean} on {self.num_points} points, "
            f"{self._threat()}{self._doubt()}"
        )

    def _threat(self) -> str:
        budget = self.evaluation.threat_model
        return "" if budget is None else f"{budget.norm} {format_epsilon(budget.epsilon)}"

    def _doubt(self) -> str:
        return f"; flags: {', '.join(flag.name for flag in self.flags)}" if self.flags else ""

    # --- in a notebook -------------------------------------------------------------------------------------------

    def _repr_html_(self) -> str:
        low, high = (f"{100 * bound:.1f}" for bound in self.interval)
        rows = [
            ("clean", f"{100 * self.clean_accuracy:.2f} %", f"{self.measurement.clean_correct} of {self.num_points}")
        ]
        survivors = self.measurement.clean_correct
        for attack in self.attacks:
            survivors -= attack.broken
            rows.append(
                (f"after {attack.attack}", f"{100 * survivors / self.num_points:.2f} %", f"{attack.broken} broken")
            )
        title = f"{html.escape(self.model)}: {self._headline()}, 95 % interval {low} to {high}"
        table = "".join(
            f"<tr><td>{html.escape(what)}</td><td style='text-align:right;padding:0 1em'>{share}</td>"
            f"<td>{note}</td></tr>"
            for what, share, note in rows
        )
        flags = "".join(f"<li><b>{flag.name}</b>: {html.escape(flag.sentence)}</li>" for flag in self.flags)
        return (
            f"<div><p><b>{title}</b></p><table>{table}</table>{f'<ul>{flags}</ul>' if flags else ''}"
            f"{self._closest_as_html()}</div>"
        )

    def _headline(self) -> str:
        if self.robust_accuracy is None:
            return f"clean {100 * self.clean_accuracy:.2f} %"
        return f"robust {100 * self.robust_accuracy:.2f} % under {self._threat()}"

    def _closest_as_html(self) -> str:
        figures = []
        for row in self.closest(_SHOWN):
            point = int(self.measurement.index[row])
            clean, adversarial = unit_range(self.data.images[point]), self.measurement.adversarial[row]
            caption = (
                f"{int(self.measurement.labels[point])} &rarr; {int(self.measurement.adversarial_prediction[row])} at "
                f"{float(self.measurement.perturbation_norm[point]):.3g}"
            )
            pictures = "".join(
                f"<img src='{data_uri(image)}' style='width:64px;margin-right:2px;image-rendering:pixelated' alt=''>"
                for image in (clean, adversarial)
            )
            figures.append(
                f"<figure style='display:inline-block;margin:4px 12px 4px 0'>{pictures}"
                f"<figcaption style='font-size:smaller'>point {point}: {caption}</figcaption></figure>"
            )
        if not figures:
            return ""
        return f"<p>Broken by the smallest perturbations, clean and adversarial image:</p>{''.join(figures)}"

    def closest(self, count: int) -> list[int]:
        """Return the row numbers in `measurement.adversarial` of the `count` smallest perturbations, smallest first."""
        norms = self.measurement.perturbation_norm[self.measurement.index]
        return norms.argsort(stable=True)[:count].tolist()

    # --- to work on with ----------------------------------------------------------------------------------------

    def to_frame(self) -> DataFrame:
        """Return a DataFrame with a row for each point; its index is named 'point'.

        Its columns are 'label'; 'prediction', the predicted class of the clean image; 'broken_by', the attack that
        broke the point, 'misclassified' if the clean image is, or None for a robust point; 'norm' of the perturbation;
        and 'adversarial_prediction', the predicted class of the adversarial example.

        Raises:
            InvalidInput: pandas is not installed.
        """
        try:
            import pandas  # noqa: PLC0415 - an optional dependency  # type: ignore[import-untyped]
        except ImportError as error:
            raise InvalidInput("a frame needs pandas: pip install pandas") from error
        found = self.measurement
        adversarial = torch.full((self.num_points,), -1)
        adversarial[found.index] = found.adversarial_prediction
        has_example = torch.zeros(self.num_points, dtype=torch.bool)
        has_example[found.index] = True
        frame = pandas.DataFrame(
            {
                "label": found.labels.numpy(),
                "prediction": found.prediction.numpy(),
                "broken_by": [self._broken_by(code) for code in found.broken_by.tolist()],
                "norm": found.perturbation_norm.numpy(),
                "adversarial_prediction": pandas.array(adversarial.numpy(), dtype="Int64"),
            }
        )
        frame.loc[~has_example.numpy(), "adversarial_prediction"] = pandas.NA
        frame.index.name = "point"
        return frame

    def _broken_by(self, code: int) -> str | None:
        if code == STANDS:
            return None
        return "misclassified" if code == MISCLASSIFIED else self.attacks[code].attack

    def plot(self, *, examples: int = _SHOWN) -> Figure:
        """Plot the share of points that survive each attack, and the images broken by the smallest perturbations.

        Args:
            examples: number of broken images to show.

        Raises:
            InvalidInput: matplotlib is not installed.
        """
        try:
            from matplotlib import pyplot  # noqa: PLC0415 - an optional dependency
        except ImportError as error:
            raise InvalidInput("a plot needs matplotlib: pip install matplotlib") from error
        rows = self.closest(examples)
        figure = pyplot.figure(figsize=(8, 3.2 + (2.8 if rows else 0)), layout="constrained")
        # Closed, because a notebook would show a figure that pyplot still holds a second time.
        pyplot.close(figure)
        above, *below = figure.subfigures(1 + bool(rows), 1, squeeze=False).flatten()
        axes = above.subplots()
        names, survivors = ["clean"], [self.measurement.clean_correct]
        for attack in self.attacks:
            names.append(attack.attack)
            survivors.append(survivors[-1] - attack.broken)
        bars = axes.barh(names, [100 * count / self.num_points for count in survivors], color="#3b6ea8")
        axes.bar_label(bars, [f"{100 * count / self.num_points:.1f} %" for count in survivors], padding=3)
        axes.invert_yaxis()
        axes.set_xlim(0, 112)
        axes.set_xlabel("surviving points, in %")
        axes.set_title(f"{self.model}: {self._headline()}")
        axes.spines[["top", "right"]].set_visible(False)
        for subfigure in below:
            self._draw_examples(subfigure, rows)
        return figure

    def _draw_examples(self, figure: Any, rows: Sequence[int]) -> None:
        found = self.measurement
        grid = figure.subplots(2, len(rows), squeeze=False)
        for column, row in enumerate(rows):
            point = int(found.index[row])
            label, answer = int(found.labels[point]), int(found.adversarial_prediction[row])
            pictures = (unit_range(self.data.images[point]), found.adversarial[row])
            titles = (f"{label}", f"{answer} at {float(found.perturbation_norm[point]):.3g}")
            for axes, picture, title in zip(grid[:, column], pictures, titles, strict=True):
                image = picture.permute(1, 2, 0).numpy()
                axes.imshow(image.squeeze(2) if image.shape[2] == 1 else image[..., :3], cmap="gray", vmin=0, vmax=1)
                axes.set_title(title, fontsize="small")
                axes.axis("off")

    def save_certificate(self, path: Path | str) -> Path:
        """Write a certificate: the outcome of each point, and the adversarial example of each broken one.

        `gklbench verify` checks its norms, pixel range, labels and counts. It cannot run a network that is not in the
        catalog, and says so; anyone who has the network can check the adversarial examples with it.

        Args:
            path: the file to write.

        Returns:
            The path.

        Raises:
            InvalidInput: nothing can be written there.
            NoSpaceLeft: the disk is full.
        """
        path = Path(path)
        check_writable(path.parent)
        sha256 = self.data.sha256()
        manifest = make_manifest(
            self.evaluation,
            commit=git_commit(),
            seed=self.evaluation.seed,
            device=self.measurement.device,
            dataset_sha256=sha256,
            weights_sha256=self.model_sha256,
            batch_size_used=self.measurement.batch_size_used,
            preprocessing=self.preprocessing,
        )
        write_certificate(
            path,
            self.measurement,
            self.evaluation,
            attacks=self.measurement.attack_titles,
            data=self.data,
            dataset=self.dataset or OWN,
            architecture=self.architecture,
            weights_sha256=self.model_sha256,
            dataset_sha256=sha256,
            manifest=manifest.model_dump(mode="json")
            | {"flags": [flag.model_dump(mode="json") for flag in self.flags]},
        )
        return path

    def publish(
        self,
        url: str,
        *,
        name: str,
        token: str | None = None,
        submitter: str | None = None,
        architecture: str = "",
        weights: Path | str | None = None,
        progress: bool = True,
        **publication: Any,
    ) -> EntryView:
        """Publish the verdict on a service's board, and wait until its entry is there.

        Without `weights` this sends the certificate. The service checks its norms, pixel range, labels and counts, but
        cannot run the network: the entry is *reported* and gets no rank. With `weights`, and an architecture that the
        service knows, the service repeats this evaluation itself, and the entry is *verified*.

        Args:
            url: address of the service, such as 'http://127.0.0.1:8000'.
            name: the network's name on the board.
            token: a token of `gklbench token create`, if the service asks for one.
            submitter: owner of the entry, if the service asks for no token; by default 'anonymous'.
            architecture: the network's architecture in your own words; with `weights` one of the service's names.
            weights: the file with the network's weights: safetensors, or a state dict of torch.save.
            progress: whether to show a progress bar; needs tqdm.
            publication: what the board shows about the network: `title`, `authors`, `link`, `venue`, `extra_data`,
                `synthetic_data`, `footnote`.

        Returns:
            The entry. Publishing the same network as the same submitter again returns the same entry.

        Raises:
            InvalidInput: the verdict is not about all test images of a data set, a field of `publication` cannot be
                used, or the service's job failed; the message says why.
            gkl.client.ClientError: the service refuses or cannot be reached.
        """
        text = EntryText(name, architecture, publication)
        return publish(self, url, token, text, weights=weights, submitter=submitter, progress=progress)
