"""What the owner of the host lets jobs ask for."""

from __future__ import annotations

from collections.abc import Iterator

from app.accounts.principals import Principal
from app.core.errors import Forbidden, Unprocessable
from app.core.settings import Settings
from gkl.answers import Scope
from gkl.catalog import DATASETS
from gkl.spec import EvaluateSpec, Evaluation, TrainSpec


def check_spec(settings: Settings, spec: TrainSpec | EvaluateSpec) -> None:
    """
    Raises:
        Unprocessable: it asks for more than a job may here, with the field.
    """
    for field, asked, limit in _amounts(settings, spec):
        if asked > limit:
            raise Unprocessable(f"{field}: at most {limit} here, by decision of the service's owner; not {asked}")
    allowed = settings.allowed_architectures
    if allowed and spec.architecture not in allowed:
        raise Unprocessable(
            f"architecture: this service runs {', '.join(sorted(allowed))}, by decision of its owner; not "
            f"{spec.architecture}"
        )


def _amounts(settings: Settings, spec: TrainSpec | EvaluateSpec) -> Iterator[tuple[str, int, int]]:
    """Field, what is asked, and what may be."""
    if isinstance(spec, TrainSpec):
        yield "epochs", spec.epochs, settings.max_epochs
        yield "batch_size", spec.batch_size, settings.max_batch_size
        if spec.evaluation is None:
            return
    evaluation = spec.evaluation
    assert isinstance(evaluation, Evaluation)
    yield "evaluation.batch_size", evaluation.batch_size, settings.max_batch_size
    points = DATASETS[spec.dataset].num_test if evaluation.num_points is None else evaluation.num_points
    yield "evaluation.num_points", points, settings.max_points


def check_priority(sender: Principal, priority: int) -> None:
    """
    Raises:
        Forbidden: it would put others back, which only admins decide.
    """
    if priority > 0 and not sender.may(Scope.ADMIN):
        raise Forbidden("a priority above 0 puts others' jobs back, which is for admins; leave it at 0, or lower it")
