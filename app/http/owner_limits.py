"""The owner's limits on what jobs may request."""

from __future__ import annotations

from collections.abc import Iterator

from app.accounts.principals import Principal
from app.core.errors import Forbidden, Unprocessable
from app.core.settings import Settings
from gkl.answers import Scope
from gkl.catalog import DATASETS
from gkl.spec import BaseTrainSpec, Evaluation, SentSpec, named_weights


def check_spec(settings: Settings, spec: SentSpec) -> None:
    """Check a spec against the owner's limits.

    Raises:
        Unprocessable: it exceeds a limit; the message names the field.
    """
    for field, asked, limit in _amounts(settings, spec):
        if asked > limit:
            raise Unprocessable(f"{field}: the service's owner allows at most {limit}, not {asked}")
    allowed = settings.allowed_architectures
    named = named_weights(spec)
    for field, architecture in (
        ("architecture", spec.architecture),
        ("teacher.architecture", spec.architecture if named is None else named.architecture),
    ):
        if allowed and architecture not in allowed:
            raise Unprocessable(
                f"{field}: the service's owner allows only {', '.join(sorted(allowed))}, not {architecture}"
            )


def _amounts(settings: Settings, spec: SentSpec) -> Iterator[tuple[str, int, int]]:
    """Yield each limited field, its value, and its limit."""
    if isinstance(spec, BaseTrainSpec):
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
    """Check that the sender may use a priority.

    Raises:
        Forbidden: it is above 0, and the sender is not an admin.
    """
    if priority > 0 and not sender.may(Scope.ADMIN):
        raise Forbidden("only admins may set a priority above 0, since it delays others' jobs; set 0 or less")
