"""Checks whether gradient attacks see a network as it is, on points that its author cannot know in advance.

AutoAttack's accuracy is reliable only if the network's gradients describe its output, its number format does not hide
changes, and it keeps no state. Each check computes the same quantity in two ways, which must agree. Every run draws its
points with a new seed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gkl.attacks.classifier import Classifier, margin_and_gradient
from gkl.attacks.perturbation import dual_norm, into_ball, noise_at_the_border, unit
from gkl.outcome import CheckName, CheckOutcome, Flag
from gkl.spec import ThreatModel

# With the fewest points, a single one is 5 % of them, which is not above the limit.
MOST_POINTS, FEWEST_POINTS = 64, 20
_DIRECTIONS = 4
# Noise that moves a probe away from exact ties, such as equal pixels under max-pooling, where no derivative exists.
_OFF_TIES = 1e-3
_FINE_STEPS = (1e-5, 1e-6)
_MISLEADING = 0.5
_SLOPE_LEFT = 0.1
_POINTS_LIMIT = 0.05
_COARSE_UNITS, _COARSE_UNITS_OF_HALF = 100.0, 10.0
_TIES_LIMIT = 0.3
_CLIFF = 100.0
_FEWEST_STANDING = 4
_SAME_ANSWER = 1e-4


@dataclass(frozen=True)
class Copies:
    """Copies of the network, made before its first call."""

    fresh: Classifier | None
    """In its own number format; None if the network cannot be copied."""
    precise: Classifier | None
    """In float64, with float64 logits; None if the network cannot be copied."""
    reason: str
    """Why they are None."""


def copies_of(model: nn.Module, num_classes: int, on_call: Callable[[], None]) -> Copies:
    """Copy a network in evaluation mode, once as it is and once in float64.

    Args:
        model: the network.
        num_classes: C.
        on_call: called before every pass of a copy.
    """
    try:
        fresh = copy.deepcopy(model).eval().requires_grad_(False)
        doubled = copy.deepcopy(model).double().eval().requires_grad_(False)
    except Exception as error:  # noqa: BLE001 - a stranger's module may raise anything from its own copying
        return Copies(None, None, f"the network cannot be copied ({type(error).__name__}: {error})")
    own = Classifier(fresh, num_classes, on_call)
    return Copies(own, Classifier(doubled, num_classes, on_call, result=torch.float64), "")


def number_of_points(points: int) -> int:
    """How many of an evaluation's points are checked: few, so that small evaluations do not take twice as long."""
    return min(MOST_POINTS, max(FEWEST_POINTS, points // 4), points)


def centered(logits: Tensor) -> Tensor:
    """Logits (B, C) in float64, shifted to mean 0 over the classes and scaled to length 1.

    Without the shift, a large constant added to all logits would hide every difference between two answers.
    """
    shifted = logits.double() - logits.double().mean(1, keepdim=True)
    scaled: Tensor = shifted / shifted.norm(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    return scaled


def distance(a: Tensor, b: Tensor) -> float:
    """The largest distance between two centered answers (B, C) to the same images; infinite if one contains NaN."""
    found = (centered(a) - centered(b)).norm(dim=1)
    return float(found.nan_to_num(nan=torch.inf).max())


def same_answer(dtype: torch.dtype) -> float:
    """The largest distance at which two answers count as equal; half precision rounds differently in other batches."""
    return max(_SAME_ANSWER, 8 * torch.finfo(dtype).eps)


class Probes:
    """P images for the checks: in turn a clean one, one with noise of norm epsilon, and two iterates of an attack."""

    def __init__(
        self, classifier: Classifier, x: Tensor, y: Tensor, threat_model: ThreatModel, generator: torch.Generator
    ) -> None:
        """
        Args:
            classifier: the network in its own format.
            x: P clean images (P, channels, height, width) in [0, 1].
            y: their labels (P,).
            threat_model: its norm and epsilon bound the noise and the iterates.
            generator: on the CPU; all random numbers are drawn from it.
        """
        self.clean, self.labels, self.threat_model, self.generator = x, y, threat_model, generator
        kinds = torch.arange(len(x), device=x.device) % 4
        noisy = noise_at_the_border(x, threat_model, generator)
        early, late = _ascended(classifier, x, y, threat_model)
        chosen = torch.where(_rows(kinds == 1, x), noisy, x)
        chosen = torch.where(_rows(kinds == 2, x), early, chosen)
        chosen = torch.where(_rows(kinds == 3, x), late, chosen)
        moved = _OFF_TIES * (2 * torch.rand(x.shape, generator=generator) - 1).to(x)
        self.images = (chosen + moved).clamp(0, 1)


def gradient_checks(own: Classifier, precise: Classifier, probes: Probes) -> tuple[list[CheckOutcome], list[Flag]]:
    """Compare autograd's gradient of the margin with central differences in float64, and the logits of both formats.

    The margin of a point is the label's logit minus the highest logit of any other class at that point.
    """
    x, y = probes.images, probes.labels
    with torch.no_grad():
        exact = precise(x)
        answers = own(x)
    other = exact.scatter(1, y[:, None], -torch.inf).argmax(1)
    gradient = margin_and_gradient(own, x, y, other)[1]
    zero = float((gradient.flatten(1) == 0).all(1).double().mean())
    wrong, lost = _against_differences(precise, gradient.double(), probes, other)
    points = len(x)
    checks = [
        CheckOutcome(name="wrong_gradients", value=wrong, limit=_POINTS_LIMIT, points=points),
        CheckOutcome(name="lost_slope", value=lost, limit=_POINTS_LIMIT, points=points),
        CheckOutcome(name="zero_gradients", value=zero, limit=_POINTS_LIMIT, points=points),
        *_format_checks(own, answers, exact, probes, other),
    ]
    sentences: dict[CheckName, str] = {
        "wrong_gradients": f"At {wrong:.0%} of {points} points the gradient differs from what the answers do when the "
        "image moves.",
        "lost_slope": f"At {lost:.0%} of {points} points the gradient is nearly flat while the answers change.",
        "zero_gradients": f"At {zero:.0%} of {points} points, perturbed ones among them, the gradient is exactly zero.",
    }
    flags = [
        Flag(name=check.name, sentence=sentences[check.name], value=check.value)
        for check in checks
        if check.name in sentences and _exceeds(check)
    ]
    coarse = [check for check in checks if check.name in ("coarse", "ties") and _exceeds(check)]
    if coarse:
        said = (
            f"its margins are {coarse[0].value:.0f} units of its number format away from those in float64"
            if coarse[0].name == "coarse"
            else f"{coarse[0].value:.0%} of nearby images get an identical answer"
        )
        flags.append(Flag(name="coarse", sentence=f"The network's answers are coarse: {said}.", value=coarse[0].value))
    return checks, flags


def border_distances(precise: Classifier, probes: Probes) -> Tensor:
    """Distances of clean points to the decision border, by linearization, in multiples of epsilon: (P,) float64.

    NaN where the network misclassifies the point or the gradient is zero.
    """
    x, y, threat_model = probes.clean, probes.labels, probes.threat_model
    margin, gradient, _ = margin_and_gradient(precise, x, y)
    steepness = dual_norm(gradient.double(), threat_model.norm)
    is_told = (margin > 0) & (steepness > 0)
    far: Tensor = (margin / steepness / threat_model.epsilon).where(is_told, torch.nan)
    return far.cpu()


def cliff_check(far: Tensor, pixels: int, threat_model: ThreatModel) -> tuple[CheckOutcome, Flag | None]:
    """Check whether the borders lie farther away than any image can; `far` (P,) comes from `border_distances`."""
    far = far[~far.isnan()]
    if len(far) == 0:
        note = "the network gets none of the points right, or its gradient is zero at all of them"
        return CheckOutcome(name="cliff", note=note), None
    # Epsilon may be small, so that a border may be many epsilons away. But two images are never farther apart than the
    # box is wide.
    width = {"Linf": 1.0, "L2": pixels**0.5, "L1": float(pixels)}[threat_model.norm]
    limit = max(_CLIFF, width / threat_model.epsilon)
    found = CheckOutcome(name="cliff", value=min(float(far.median()), 1e300), limit=limit, points=len(far))
    if not _exceeds(found):
        return found, None
    sentence = (
        f"By its gradients the median border lies {found.value:.3g} budgets away, further than any image is from "
        "another: the gradients do not describe the decisions."
    )
    return found, Flag(name="cliff", sentence=sentence, value=found.value)


def near_cliff_check(far: Tensor, standing: Tensor) -> tuple[CheckOutcome, Flag | None]:
    """Check whether the borders lie much nearer than they can, given that no attack broke the points.

    Args:
        far: distances from `border_distances` (P,).
        standing: which of these points no attack broke (P,) bool.
    """
    far = far[standing & ~far.isnan()]
    if len(far) < _FEWEST_STANDING:
        note = f"fewer than {_FEWEST_STANDING} of the points looked at stand after all attacks"
        return CheckOutcome(name="near_cliff", note=note), None
    nearer = 1 / far.median().clamp_min(1e-300)
    found = CheckOutcome(name="near_cliff", value=float(nearer), limit=_CLIFF, points=len(far))
    if not _exceeds(found):
        return found, None
    sentence = (
        f"By its gradients the median border of points that no attack broke lies at {1 / nearer:.2g} of the budget: "
        "the gradients do not describe the decisions."
    )
    return found, Flag(name="cliff", sentence=sentence, value=found.value)


def two_faces_check(own: Classifier, fresh: Classifier, x: Tensor) -> tuple[CheckOutcome, Flag | None]:
    """Check whether the network's answers depend on whether a gradient is computed."""
    with torch.no_grad():
        plain = own(x)
    with torch.enable_grad():
        wanted = own(x.clone().requires_grad_(True)).detach()
        unasked = own(x).detach()
    # Use the copy: a network may cache tensors, and autograd refuses those that were made in inference mode.
    with torch.inference_mode():
        served = fresh(x.clone()).clone()
    value = max(distance(plain, other) for other in (wanted, unasked, served))
    found = CheckOutcome(name="two_faces", value=min(value, 1e300), limit=same_answer(own.dtype), points=len(x))
    if not _exceeds(found):
        return found, None
    sentence = f"The network answers otherwise when a gradient is wanted of it (distance {value:.2g})."
    return found, Flag(name="two_faces", sentence=sentence, value=found.value)


def drift(own: Classifier, fresh: Classifier, x: Tensor, threat_model: ThreatModel, seed: int) -> float:
    """How far the attacked network's answers to new images near x (B, *) differ from those of an unattacked copy."""
    generator = torch.Generator().manual_seed(seed)
    # The noise has various sizes: a network may answer from memory only near images that it has seen.
    size = torch.rand((len(x), *([1] * (x.dim() - 1))), generator=generator).to(x)
    new = x + size * (noise_at_the_border(x, threat_model, generator) - x)
    with torch.no_grad():
        return min(distance(own(new), fresh(new)), 1e300)


def remembers(check: CheckOutcome) -> Flag | None:
    """The flag for the check of `drift_check`, if its value exceeds the limit."""
    if not _exceeds(check):
        return None
    sentence = (
        "After an attack the network answers new images otherwise than a copy that was not attacked "
        f"(distance {check.value:.2g})."
    )
    return Flag(name="remembers", sentence=sentence, value=check.value)


def drift_check(values: list[float | None], dtype: torch.dtype) -> CheckOutcome:
    """The check of the largest drift over all attacks and blocks; a value is None where it was not measured."""
    seen = [value for value in values if value is not None]
    if not seen:
        return CheckOutcome(name="remembers", note="no attack ran, or the network cannot be copied")
    return CheckOutcome(name="remembers", value=max(seen), limit=same_answer(dtype), points=len(seen))


def not_run(names: tuple[CheckName, ...], reason: str) -> list[CheckOutcome]:
    """Outcomes of checks that did not run."""
    return [CheckOutcome(name=name, note=reason) for name in names]


def _exceeds(check: CheckOutcome) -> bool:
    return check.value is not None and check.limit is not None and check.value > check.limit


def _rows(chosen: Tensor, x: Tensor) -> Tensor:
    return chosen.reshape(-1, *([1] * (x.dim() - 1)))


def _ascended(classifier: Classifier, x: Tensor, y: Tensor, threat_model: ThreatModel) -> tuple[Tensor, Tensor]:
    """Iterates 4 and 10 of an attack on the margin with steps of a quarter of epsilon, inside ball and box."""
    at, kept = x.clone(), []
    for step in range(1, 11):
        gradient = margin_and_gradient(classifier, at, y)[1].nan_to_num(0.0, 0.0, 0.0)
        at = into_ball(at - 0.25 * threat_model.epsilon * unit(gradient, threat_model.norm), x, threat_model)
        if step in (4, 10):
            kept.append(at.clone())
    return kept[0], kept[1]


def _against_differences(precise: Classifier, gradient: Tensor, probes: Probes, other: Tensor) -> tuple[float, float]:
    """Shares of points with a misleading gradient and with a lost slope.

    A gradient counts as right where it agrees with central differences at one of several step sizes: a surrogate
    gradient of rounding is right for steps as large as epsilon and wrong for small ones.
    """
    x, y = probes.images.double(), probes.labels
    directions = 2.0 * torch.randint(0, 2, (_DIRECTIONS, *x.shape), generator=probes.generator, dtype=torch.int8) - 1.0
    slopes = torch.stack([(gradient * v.to(gradient)).flatten(1).sum(1) for v in directions], 1)
    one = directions[0, :1].flatten(1)
    norm = {"Linf": 1.0, "L2": float(one.norm()), "L1": float(one.abs().sum())}[probes.threat_model.norm]
    budget = probes.threat_model.epsilon / norm

    def differences(step: float, rows: Tensor) -> Tensor:
        """Central differences of the margin along each direction: (R, directions) for R rows."""
        columns = []
        for v in directions:
            moved = step * v[rows.cpu()].to(x)
            values = []
            for sign in (1, -1):
                with torch.no_grad():
                    logits = precise(x[rows] + sign * moved)
                a = logits.gather(1, y[rows, None]) - logits.gather(1, other[rows, None])
                values.append(a.squeeze(1))
            columns.append((values[0] - values[1]) / (2 * step))
        return torch.stack(columns, 1)

    def agrees(found: Tensor, rows: Tensor) -> Tensor:
        own = slopes[rows]
        size = torch.maximum(own.norm(dim=1), found.norm(dim=1))
        # Where both are zero, they agree. Comparisons with NaN are false, so NaN never agrees.
        close: Tensor = ((own - found).norm(dim=1) <= _MISLEADING * size) | (size < 1e-30)
        return close

    everywhere = torch.arange(len(x), device=x.device)
    nearby = differences(budget / 16, everywhere)
    # A gradient of zeros is counted by another check, zero_gradients.
    is_zero = (gradient.flatten(1) == 0).all(1)
    lost = (slopes.norm(dim=1) < _SLOPE_LEFT * nearby.norm(dim=1)) & ~is_zero
    right = agrees(nearby, everywhere) | is_zero
    for step in (*_FINE_STEPS, budget / 4):
        rows = (~right).nonzero().squeeze(1)
        if len(rows) == 0:
            break
        right[rows] = agrees(differences(step, rows), rows)
    return float((~right).double().mean()), float(lost.double().mean())


def _format_checks(
    own: Classifier, answers: Tensor, exact: Tensor, probes: Probes, other: Tensor
) -> list[CheckOutcome]:
    y = probes.labels

    def margins(logits: Tensor) -> Tensor:
        return (logits.double().gather(1, y[:, None]) - logits.double().gather(1, other[:, None])).squeeze(1)

    spread = exact.std(1, correction=0).clamp_min(torch.finfo(torch.float64).tiny)
    off = ((margins(answers) - margins(exact)).abs() / spread).nan_to_num(nan=torch.inf)
    # Attacks see the logits in float32 at best.
    unit = max(torch.finfo(own.dtype).eps, torch.finfo(torch.float32).eps)
    is_half = own.dtype in (torch.float16, torch.bfloat16)
    noise = _OFF_TIES * torch.randn(probes.images.shape, generator=probes.generator).to(probes.images)
    with torch.no_grad():
        nearby = own((probes.images + noise).clamp(0, 1))
    same = nearby.double() - answers.double()
    ties = (same == same[:, :1]).all(1).double().mean()
    return [
        CheckOutcome(
            name="coarse",
            value=min(float(off.median()) / unit, 1e300),
            limit=_COARSE_UNITS_OF_HALF if is_half else _COARSE_UNITS,
            points=len(y),
        ),
        CheckOutcome(name="ties", value=float(ties), limit=_TIES_LIMIT, points=len(y)),
    ]
