"""Evaluate weights as a spec says: measure, write a certificate, check it, and only then report the result."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gkl.catalog import DATASETS, preprocessing_for
from gkl.catalog.preprocessing import Preprocessing
from gkl.data import Images, ImageSet, load_corrupted, load_test
from gkl.device import out_of_memory_explained, select_device, set_tensor_float_32
from gkl.errors import InvalidInput, InvalidVerdict, Stopped
from gkl.evaluation.blocks import Blocks
from gkl.evaluation.certificate import OWN, read_certificate, write_certificate
from gkl.evaluation.corruptions import ALL, measure_corruptions
from gkl.evaluation.measurement import Shard, measure, measure_shard
from gkl.evaluation.points import Measurement
from gkl.evaluation.verification import Verification, verify_certificate
from gkl.files import check_writable, sha256_of
from gkl.models import LoadedModel, load_model, read_model, weights_sha256
from gkl.outcome import CorruptionOutcome, EvaluationOutcome, Event, Progress, ProvisionalVerdict
from gkl.outcome.corruption_error import mean_corruption_error, robustbench_mean_corruption_error
from gkl.provenance import git_commit, make_manifest
from gkl.run_context import RunContext
from gkl.spec import PUBLISHED_WEIGHTS, EvaluateSpec

_log = logging.getLogger(__name__)

CERTIFICATE_FILE = "certificate.safetensors"
_REPORT_SECONDS = 5.0
_PROVISIONAL_FILE = "provisional.safetensors"


@out_of_memory_explained()
def evaluate(
    spec: EvaluateSpec,
    weights: Path | None,
    context: RunContext,
    *,
    converted: Path | None = None,
    others: Sequence[Path] = (),
) -> EvaluationOutcome:
    """Measure the weights, write the certificate, check it, and return the outcome that it proves.

    Finished parts are kept in the context's directory. After an interruption, the same call continues from them and
    returns the same outcome for each point as an uninterrupted run. It also uses the parts of `evaluate_shard`.

    Args:
        spec: what to evaluate and how.
        weights: safetensors or state dict, whose sha256 must be the spec's; None for RobustBench's published ones.
        context: where finished parts and the certificate are written; its `report` is called with progress, every
            finished part and attack, and the provisional verdict.
        converted: a converted copy of the weights from `gkl.conversion`, which is read instead of them; the outcome
            still names the sha256 of the original.
        others: certificates of other networks on the same data, whose adversarial examples are tried at the end.

    Raises:
        InvalidInput: the weights are not those of the spec, or of another architecture, or give logits that are not
            finite; or the directory holds parts of another evaluation.
        InvalidVerdict: the certificate failed its check, so that no result may be recorded.
        NoSpaceLeft: the disk is full.
        OutOfMemory: the device has too little memory for a single image.
        Stopped: the context's `should_stop` said yes.
    """
    run = _prepared(spec, weights, context, converted)
    evaluation = spec.evaluation

    def tell_provisional(measurement: Measurement) -> None:
        outcome = run.proven(measurement, context.directory / _PROVISIONAL_FILE, run.model, [], None)
        context.report(ProvisionalVerdict(outcome=outcome))

    def report_part(event: Event) -> None:
        if isinstance(event, Progress):
            if evaluation.protocol == "corruptions":
                # The clean pass is the first of 76 passes.
                share = 1 / (len(ALL) + 1)
                event = event.model_copy(update={"fraction": event.fraction * share, "seconds_left": None})
            run.fraction = event.fraction
        context.report(event)

    measurement = measure(
        run.model,
        run.data,
        evaluation,
        num_classes=run.num_classes,
        blocks=run.blocks,
        report=report_part,
        should_stop=context.should_stop,
        provisional=tell_provisional,
        device=run.device,
        others=others,
    )
    corruptions: list[CorruptionOutcome] = []
    predictions = None
    if evaluation.protocol == "corruptions":
        corruptions, predictions = measure_corruptions(
            run.model,
            run.corrupted,
            run.data.labels,
            num_classes=run.num_classes,
            batch_size=measurement.batch_size_used,
            seed=evaluation.seed,
            blocks=run.blocks,
            # The clean pass and the checks have the lower numbers.
            first_part=2 * -(-len(run.data) // evaluation.batch_size),
            report=context.report,
            should_stop=context.should_stop,
            device=run.device,
        )
    # Check with a network freshly loaded from the file, as anyone else would, not with the one that was attacked.
    run.model = run.load_model()
    run.checking, run.fraction = "checking the certificate", 1.0
    context.report(Progress(stage=run.checking, fraction=run.fraction))
    return run.proven(measurement, context.directory / CERTIFICATE_FILE, run.model, corruptions, predictions)


@out_of_memory_explained()
def evaluate_shard(
    spec: EvaluateSpec,
    weights: Path | None,
    context: RunContext,
    shard: Shard,
    *,
    converted: Path | None = None,
) -> None:
    """Run one shard's blocks of an evaluation. `evaluate` merges the shards if it is called with the same directory.

    Arguments and errors are those of `evaluate`.

    Raises:
        InvalidInput: also for an evaluation on corruptions, which has no shards.
    """
    if spec.evaluation.protocol == "corruptions":
        raise InvalidInput("an evaluation on corruptions has no shards; start it without them")
    run = _prepared(spec, weights, context, converted)
    measure_shard(
        run.model,
        run.data,
        spec.evaluation,
        shard,
        num_classes=run.num_classes,
        blocks=run.blocks,
        report=context.report,
        should_stop=context.should_stop,
        device=run.device,
    )


@out_of_memory_explained()
def verify(
    certificate: Path,
    weights: Path | None,
    *,
    datasets_dir: Path,
    models_dir: Path | None = None,
    device: str | None = None,
    batch_size: int = 200,
    weights_key: str | None = None,
) -> Verification:
    """Check a certificate against weights and data.

    The certificate names the network in the file of weights. Certificates of earlier versions do not; for these,
    `weights_key` names it. A user's own network, which `gkl.evaluate` measured, cannot be loaded here: its recorded
    answers are accepted, and everything else is checked.

    Raises:
        InvalidInput: the file is not a certificate, or the weights or the data cannot be read.
    """
    claimed = read_certificate(certificate)
    if claimed.architecture == OWN:
        known = claimed.dataset != OWN
        data = load_test(claimed.dataset, datasets_dir, claimed.num_points, claimed.preprocessing) if known else None
        return verify_certificate(claimed, None, data)
    selected = select_device(device)
    set_tensor_float_32(False)
    key = claimed.weights_key or weights_key
    model = load_model(claimed.architecture, claimed.dataset, weights, models_dir, key)
    if claimed.num_points > DATASETS[claimed.dataset].num_test:
        raise InvalidInput(f"{certificate.name} is about {claimed.num_points} points, more than {claimed.dataset} has")
    data = load_test(claimed.dataset, datasets_dir, claimed.num_points, claimed.preprocessing)
    return verify_certificate(
        claimed,
        model.to(selected).eval(),
        data,
        weights_sha256=weights_sha256(claimed.architecture, weights, models_dir),
        batch_size=batch_size,
        device=selected,
        corrupted=lambda corruption, severity: load_corrupted(claimed.dataset, datasets_dir, corruption, severity),
    )


@dataclass
class _Prepared:
    """The checked inputs of an evaluation."""

    spec: EvaluateSpec
    to_read: Path | None
    """The file of weights; None for published ones."""
    context: RunContext
    commit: str | None
    sha256: str
    device: torch.device
    data: ImageSet
    blocks: Blocks
    model: nn.Module
    loaded: LoadedModel
    """The network and how its weights were read from their file."""
    checking: str = "checking the provisional verdict"
    fraction: float = 0.0
    """Share of the whole run that was done when the check began."""
    last_report: float = 0.0

    @property
    def num_classes(self) -> int:
        return DATASETS[self.spec.dataset].num_classes

    @property
    def preprocessing(self) -> Preprocessing | None:
        return preprocessing_for(self.spec.dataset, self.spec.architecture)

    def load_model(self) -> nn.Module:
        spec = self.spec
        model = load_model(spec.architecture, spec.dataset, self.to_read, self.context.models_dir, spec.weights_key)
        return model.to(self.device).eval()

    def on_check(self) -> None:
        """Called before every pass of a check: stops it on request, and reports progress every few seconds."""
        if self.context.should_stop():
            raise Stopped
        if time.monotonic() - self.last_report >= _REPORT_SECONDS:
            self.last_report = time.monotonic()
            self.context.report(Progress(stage=self.checking, fraction=self.fraction))

    def corrupted(self, corruption: str, severity: int) -> Images:
        return load_corrupted(self.spec.dataset, self.context.datasets_dir, corruption, severity)

    def proven(
        self,
        measurement: Measurement,
        path: Path,
        model: nn.Module,
        corruptions: list[CorruptionOutcome],
        corrupted_prediction: torch.Tensor | None,
    ) -> EvaluationOutcome:
        """Write the certificate, check it with the model, and return the outcome that it proves."""
        spec, dataset_sha256 = self.spec, self.data.sha256()
        manifest = make_manifest(
            spec,
            commit=self.commit,
            seed=spec.evaluation.seed,
            device=measurement.device,
            dataset_sha256=dataset_sha256,
            weights_sha256=self.sha256,
            weights_key=self.loaded.weights_key,
            weights_notes=self.loaded.notes,
            dtype=str(next(model.parameters()).dtype).removeprefix("torch."),
            batch_size_used=measurement.batch_size_used,
            preprocessing=None if self.preprocessing is None else self.preprocessing.name,
        )
        write_certificate(
            path,
            measurement,
            spec.evaluation,
            attacks=measurement.attack_titles,
            data=self.data,
            dataset=spec.dataset,
            architecture=spec.architecture,
            weights_sha256=self.sha256,
            dataset_sha256=dataset_sha256,
            manifest=manifest.model_dump(mode="json"),
            corruptions=corruptions,
            corrupted_prediction=corrupted_prediction,
        )
        verification = verify_certificate(
            read_certificate(path),
            model,
            self.data,
            weights_sha256=self.sha256,
            batch_size=measurement.batch_size_used,
            device=self.device,
            corrupted=self.corrupted,
            on_call=self.on_check,
        )
        if not verification.holds:
            raise InvalidVerdict(
                f"the certificate did not survive its own check ({verification.problems[0]}); no result was recorded, "
                "please report this"
            )
        if verification.borderline:
            _log.info("%d answers lie within rounding of another class", verification.borderline)
        attacks = measurement.attacks
        return EvaluationOutcome(
            num_points=measurement.num_points,
            clean_correct=measurement.clean_correct,
            robust_correct=measurement.robust_correct if attacks else None,
            attacks=attacks,
            corruptions=corruptions,
            mean_corruption_error=mean_corruption_error(spec.dataset, corruptions) if corruptions else None,
            robustbench_mean_corruption_error=(
                robustbench_mean_corruption_error(spec.dataset, corruptions) if corruptions else None
            ),
            flags=measurement.flags,
            checks=measurement.checks,
            checks_seed=measurement.checks_seed,
            answers_vary=measurement.answers_vary,
            certificate=path.name,
            seconds=measurement.seconds + sum(each.seconds for each in corruptions),
            manifest=manifest,
        )


def _prepared(spec: EvaluateSpec, weights: Path | None, context: RunContext, converted: Path | None) -> _Prepared:
    commit = git_commit()
    check_writable(context.directory)
    if weights is None and spec.weights != PUBLISHED_WEIGHTS:
        raise InvalidInput(f"the spec asks for weights {spec.weights}; name their file")
    if weights is not None:
        found = sha256_of(weights)
        if found != spec.weights:
            raise InvalidInput(f"the spec asks for weights {spec.weights}, but {weights.name} has sha256 {found}")
    selected = select_device(context.device)
    set_tensor_float_32(False)
    to_read = converted or weights
    loaded = read_model(spec.architecture, spec.dataset, to_read, context.models_dir, spec.weights_key)
    model = loaded.network.to(selected).eval()
    sha256 = weights_sha256(spec.architecture, weights, context.models_dir)
    preprocessing = preprocessing_for(spec.dataset, spec.architecture)
    data = load_test(spec.dataset, context.datasets_dir, spec.evaluation.num_points, preprocessing)
    origin: Mapping[str, Any] = {
        "dataset": spec.dataset,
        "architecture": spec.architecture,
        # These come before the hashes, since an error message names the first field that differs.
        # The number of shards does not change the result.
        **spec.evaluation.model_dump(mode="json", exclude={"shards"}),
        "weights_sha256": sha256,
        "dataset_sha256": data.sha256(),
        # Parts of earlier versions have no such field.
        **({} if loaded.weights_key is None else {"weights_key": loaded.weights_key}),
    }
    blocks = Blocks(context.directory, origin, context.report)
    return _Prepared(
        spec=spec,
        to_read=to_read,
        context=context,
        commit=commit,
        sha256=sha256,
        device=selected,
        data=data,
        blocks=blocks,
        model=model,
        loaded=loaded,
    )
