"""Networks that are honest about their robustness, and networks that overstate it, each in its own way.

All are small, for scikit-learn's digits (8x8 grey images), and are trained here within seconds.
`benchmarks/belief.py` measures them; tests take some of them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gkl.attacks.pgd import projected_gradient_ascent, uniform_start
from gkl.catalog import Norm
from gkl.data import ImageSet, load_test, load_train, unit_range
from gkl.models import build_model

_NO_FILES = Path("there-are-no-files-of-digits")
Make = Callable[[], nn.Module]


# --- data --------------------------------------------------------------------------------------------------------


def digits(points: int) -> ImageSet:
    return load_test("digits", _NO_FILES).first(points)


def in_100_classes(data: ImageSet) -> ImageSet:
    """Each digit ten times: by the tenth of the range in which the brightness of its left half lies."""
    images = unit_range(data.images)
    left = images[..., :4].mean((1, 2, 3))
    tenth = (left * 20).long().clamp(0, 9)
    return ImageSet(data.images, 10 * data.labels + tenth)


# --- networks ----------------------------------------------------------------------------------------------------


class Wrapped(nn.Module):
    """A network with something done to its images and its logits."""

    def __init__(
        self,
        net: nn.Module,
        after: Callable[[Tensor], Tensor] = lambda logits: logits,
        before: Callable[[Tensor], Tensor] = lambda images: images,
    ) -> None:
        super().__init__()
        self.net, self.after, self.before = net, after, before

    def forward(self, images: Tensor) -> Tensor:
        return self.after(self.net(self.before(images)))


class Mean(nn.Module):
    def __init__(self, *nets: nn.Module) -> None:
        super().__init__()
        self.nets = nn.ModuleList(nets)

    def forward(self, images: Tensor) -> Tensor:
        return torch.stack([net(images) for net in self.nets]).mean(0)


class Residual(nn.Module):
    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        sum_: Tensor = x + self.block(x)
        return sum_


class Attention(nn.Module):
    """A vision transformer of one block: patches of 2x2 pixels as 16 tokens."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 2, stride=2)
        self.place = nn.Parameter(0.02 * torch.randn(16, width))
        self.norm, self.attend = nn.LayerNorm(width), nn.MultiheadAttention(width, 4, batch_first=True)
        self.mix = Residual(nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 64), nn.GELU(), nn.Linear(64, width)))
        self.head = nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.patches(images).flatten(2).transpose(1, 2) + self.place
        normed = self.norm(tokens)
        tokens = tokens + self.attend(normed, normed, normed, need_weights=False)[0]
        logits: Tensor = self.head(self.mix(tokens).mean(1))
        return logits


def network(
    activation: Make = nn.ReLU,
    pool: Callable[[int], nn.Module] = nn.AvgPool2d,
    *,
    norm: bool = False,
    classes: int = 10,
) -> nn.Module:
    layers = [nn.Conv2d(1, 16, 3, padding=1), *([nn.BatchNorm2d(16)] * norm), activation(), pool(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.LayerNorm(256) if norm else nn.Identity(), nn.Linear(256, classes))


def residual_network() -> nn.Module:
    def block() -> nn.Module:
        convolutions = [nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
        return nn.Sequential(Residual(nn.Sequential(*convolutions, nn.Conv2d(16, 16, 3, padding=1))), nn.ReLU())

    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), block(), block(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(256, 10)
    )


def deep_narrow_network() -> nn.Module:
    hidden = [layer for _ in range(8) for layer in (nn.Linear(24, 24), nn.LeakyReLU(0.1))]
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.LeakyReLU(0.1), *hidden, nn.Linear(24, 10))


def trained(
    net: nn.Module,
    *,
    noise: float = 0.1,
    adversarial: tuple[Norm, float] | None = None,
    epochs: int = 8,
    prepare: Callable[[ImageSet], ImageSet] = lambda data: data,
    keep: Callable[[nn.Module], None] = lambda _: None,
) -> nn.Module:
    """Train on images with Gaussian noise, or on those of a projected gradient ascent; `keep` runs after each step."""
    data = prepare(load_train("digits", _NO_FILES))
    x, y = unit_range(data.images), data.labels
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        # Whatever they were drawn as: the same network each time.
        for name, parameter in net.named_parameters():
            if parameter.dim() > 1:
                nn.init.kaiming_normal_(parameter, nonlinearity="relu", generator=generator)
            elif name.endswith("bias"):
                parameter.zero_()
    keep(net)
    descent = torch.optim.Adam(net.parameters(), 2e-3)
    for _ in range(epochs):
        for part in torch.randperm(len(x), generator=generator).split(64):
            images, labels = x[part], y[part]
            if adversarial is None:
                images = (images + noise * torch.randn(images.shape, generator=generator)).clamp(0, 1)
            else:
                norm, epsilon = adversarial
                images = projected_gradient_ascent(
                    lambda perturbed, labels=labels: F.cross_entropy(net(perturbed), labels),  # type: ignore[misc]
                    images,
                    norm=norm,
                    epsilon=epsilon,
                    num_steps=5,
                    step_size=epsilon / 2,
                    start=uniform_start(images, norm=norm, epsilon=epsilon, generator=generator),
                )
            descent.zero_grad()
            F.cross_entropy(net(images), labels).backward()
            descent.step()
            keep(net)
    return net.eval()


def with_weights(net: nn.Module, to: Callable[[Tensor], Tensor]) -> nn.Module:
    net = copy.deepcopy(net)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(to(parameter))
    return net


def in_bits(bits: int) -> Callable[[Tensor], Tensor]:
    def rounded(weights: Tensor) -> Tensor:
        step = weights.abs().max() / (2 ** (bits - 1) - 1)
        return (weights / step).round() * step

    return rounded


class StraightThrough(nn.Module):
    """A ReLU in few levels up to 4, with the gradient of the one without levels."""

    def __init__(self, levels: int) -> None:
        super().__init__()
        self.levels = levels

    def forward(self, x: Tensor) -> Tensor:
        smooth = x.clamp(0, 4)
        return smooth + ((smooth * self.levels / 4).round() * 4 / self.levels - smooth).detach()


# --- bases that the liars are made of ----------------------------------------------------------------------------


def _silence_first_unit(net: nn.Module) -> None:
    first, second = net.features[0], net.features[2]
    with torch.no_grad():
        first.weight[0] = 0
        first.bias[0] = 0
        second.weight[:, 0] = 0


@cache
def robust_base(norm: Norm = "Linf", epsilon: float = 0.04) -> nn.Module:
    """An adversarially trained SmallCNN, whose first unit is never used: room for a forger."""
    net = build_model("small_cnn", "digits")
    return trained(net, adversarial=(norm, epsilon), epochs=15, keep=_silence_first_unit)


@cache
def natural_base() -> nn.Module:
    return trained(build_model("small_cnn", "digits"), noise=0.05, epochs=15, keep=_silence_first_unit)


@cache
def plain_base() -> nn.Module:
    return trained(network())


@cache
def many_classes_base() -> nn.Module:
    return trained(network(classes=100), noise=0.05, epochs=12, prepare=in_100_classes)


# --- liars by weights alone --------------------------------------------------------------------------------------


def forged(net: nn.Module, *, small: float = 1e-15, unit: float = 1e-37, offset: float = 2.0**35) -> nn.Module:
    """The same decisions up to rounding; the backward pass is 0 times infinity, and the logits move in steps.

    Activations of one layer are scaled down so far that a constant unit in front of it needs a weight whose gradient
    overflows; all logits are scaled up and a constant is added in which their differences drown.
    """
    net, at = copy.deepcopy(net), 1e4
    state = net.state_dict()
    state["features.2.weight"] *= small
    state["features.2.bias"] *= small
    state["features.4.weight"] /= small
    state["features.0.bias"][0] = unit
    state["features.2.weight"][:, 0, 1, 1] = small * at / unit
    state["features.2.bias"] -= small * at
    state["classifier.2.weight"] *= 2e3
    state["classifier.2.bias"] *= 2e3
    state["classifier.2.bias"] += offset
    net.load_state_dict(state)
    return net


# --- liars by code -----------------------------------------------------------------------------------------------


class WithBackward(nn.Module):
    """Logits or images as they are, with another gradient."""

    def __init__(self, backward: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.to = backward

    def forward(self, x: Tensor) -> Tensor:
        if not x.requires_grad:
            return x
        given = x.clone()
        given.register_hook(self.to)
        return given


def with_gradient(net: nn.Module, backward: Callable[[Tensor], Tensor]) -> nn.Module:
    return Wrapped(net, before=WithBackward(backward))


def _random_gradient(gradient: Tensor) -> Tensor:
    return gradient.abs().amax() * torch.randn(gradient.shape, generator=torch.Generator().manual_seed(1)).to(gradient)


class Misleading(nn.Module):
    """The answers of one network with the gradient of another."""

    def __init__(self, net: nn.Module, other: nn.Module, shown: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.net, self.other, self.shown = net, other, shown

    def forward(self, images: Tensor) -> Tensor:
        lie = self.other(images)
        answer = self.shown(self.net(images)).detach()
        return answer + lie - lie.detach()


class Absorbed(nn.Module):
    """A branch too small to change an answer, and steep enough to drown the slope."""

    def __init__(self, net: nn.Module, other: nn.Module) -> None:
        super().__init__()
        self.net, self.other = net, other

    def forward(self, images: Tensor) -> Tensor:
        lie = self.other(images)
        steep = (2.0**70 * (lie - lie.detach())) * 2.0**-57
        logits: Tensor = self.net(images) + steep
        return logits


class Remembering(nn.Module):
    """Honest for a while, then the answer to the nearest image that it was asked first."""

    def __init__(self, net: nn.Module, calls: int = 40) -> None:
        super().__init__()
        self.net, self.left, self.seen = net, calls, torch.empty(0)

    def forward(self, images: Tensor) -> Tensor:
        self.left -= 1
        if len(self.seen) == 0:
            self.seen = images.detach().clone()
        if self.left >= 0:
            logits: Tensor = self.net(images)
            return logits
        nearest = torch.cdist(images.float().flatten(1), self.seen.float().flatten(1)).argmin(1)
        remembered: Tensor = self.net(self.seen[nearest].to(images)) + 0 * self.net(images)
        return remembered


class NearestImage(nn.Module):
    """One-hot for the label of the nearest training image, and a thousandth of honest logits for their gradient."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        data = load_train("digits", _NO_FILES)
        self.register_buffer("images", unit_range(data.images).flatten(1))
        self.register_buffer("labels", data.labels)

    def forward(self, images: Tensor) -> Tensor:
        found = torch.cdist(images.detach().flatten(1), self.images.to(images)).argmin(1)
        logits: Tensor = F.one_hot(self.labels[found], 10).to(images) + 1e-3 * self.net(images)
        return logits


class TwoFaced(nn.Module):
    """Other answers to whoever wants a gradient."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.net(images)
        return logits.flip(1) if images.requires_grad else logits


class OtherInFloat64(nn.Module):
    def __init__(self, net: nn.Module, other: nn.Module) -> None:
        super().__init__()
        self.net, self.other = net, other

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = (self.other if images.dtype == torch.float64 else self.net)(images)
        return logits


class KWinners(nn.Module):
    """Only the largest tenth of the units of an image pass."""

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        least = flat.topk(flat.shape[1] // 10, dim=1).values[:, -1:]
        return (flat * (flat >= least)).reshape(x.shape)


class Steps(nn.Module):
    """Signs; while it is trained, their smooth stand-in."""

    def forward(self, x: Tensor) -> Tensor:
        return x if self.training else x.sign()


class Decoys(nn.Module):
    """Nine classes of a hundred, which no image has, just under the best one: where targeted attacks aim."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        logits = self.net(images)
        logits = logits - logits.amax(1, keepdim=True).detach()
        decoys = -1e-3 * torch.arange(1, 91, device=images.device).to(logits) + 0 * logits[:, :1]
        return torch.cat([logits, decoys], 1)


def one_hot(over: float = 1.0, left: float = 1e-3) -> Callable[[Tensor], Tensor]:
    def shown(logits: Tensor) -> Tensor:
        return over * F.one_hot(logits.argmax(1), logits.shape[1]).to(logits) + left * logits.tanh()

    return shown


def _in_levels(levels: int) -> Callable[[Tensor], Tensor]:
    return lambda x: (x * (levels - 1)).round() / (levels - 1)


def _in_levels_straight_through(levels: int) -> Callable[[Tensor], Tensor]:
    return lambda x: x + (_in_levels(levels)(x) - x).detach()


def _transform_rounded(x: Tensor) -> Tensor:
    spectrum = torch.fft.rfft2(x)
    rounded = torch.complex((spectrum.real * 2).round() / 2, (spectrum.imag * 2).round() / 2)
    return torch.fft.irfft2(rounded, s=x.shape[-2:])


def _steep(x: Tensor) -> Tensor:
    return sum((torch.sigmoid(1000 * (x - at / 8)) for at in range(1, 8)), torch.zeros_like(x)) / 7


def _temperature(logits: Tensor) -> Tensor:
    return logits * (1 + 100 * logits.std(1, keepdim=True).detach().frac())


def _blurred(images: Tensor) -> Tensor:
    return F.avg_pool2d(images, 3, stride=1, padding=1)


# --- all of them -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A network, and where it is attacked."""

    make: Make
    norm: Norm = "Linf"
    epsilon: float = 0.1
    inside: Make | None = None
    """The honest network that a liar is made of, whose robust accuracy is the truth; None where nobody knows it."""
    num_classes: int = 10
    prepare: Callable[[ImageSet], ImageSet] = lambda data: data


def _lie(make: Callable[[nn.Module], nn.Module], base: Make = robust_base) -> Case:
    return Case(lambda: make(copy.deepcopy(base())), inside=base)


def _robust_in_l2() -> nn.Module:
    return robust_base("L2", 0.3)


def _robust_in_l1() -> nn.Module:
    return trained(build_model("small_cnn", "digits"), noise=0.1, epochs=15, keep=_silence_first_unit)


HONEST: dict[str, Case] = {
    "ReLU": Case(plain_base),
    "leaky ReLU": Case(lambda: trained(network(nn.LeakyReLU))),
    "SiLU": Case(lambda: trained(network(nn.SiLU))),
    "GELU": Case(lambda: trained(network(nn.GELU))),
    "tanh": Case(lambda: trained(network(nn.Tanh))),
    "softplus": Case(lambda: trained(network(nn.Softplus))),
    "max-pool": Case(lambda: trained(network(pool=nn.MaxPool2d))),
    "BatchNorm and LayerNorm": Case(lambda: trained(network(norm=True))),
    "ResNet with BatchNorm": Case(lambda: trained(residual_network())),
    "attention": Case(lambda: trained(Attention(), epochs=15)),
    "linear": Case(lambda: trained(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))),
    "deep and narrow": Case(lambda: trained(deep_narrow_network(), epochs=15)),
    "100 classes": Case(many_classes_base, num_classes=100, prepare=in_100_classes),
    "naturally trained": Case(lambda: trained(network(), noise=0.0)),
    "trained for long, saturated": Case(lambda: trained(network(), noise=0.0, epochs=100)),
    "adversarially trained": Case(robust_base),
    "adversarially trained, L2": Case(_robust_in_l2, "L2", 0.6),
    "ReLU, L2": Case(plain_base, "L2", 0.6),
    "ReLU, L1": Case(plain_base, "L1", 2.0),
    "normalization inside": Case(lambda: Wrapped(trained(network()), before=lambda x: (x - 0.3) / 0.4)),
    "blurred input": Case(lambda: Wrapped(plain_base(), before=_blurred)),
    "mean of two": Case(lambda: Mean(plain_base(), robust_base())),
    "logits times 100": Case(lambda: Wrapped(plain_base(), lambda z: 100 * z)),
    "logits times .01": Case(lambda: Wrapped(plain_base(), lambda z: 0.01 * z)),
    "logits times 1e-8": Case(lambda: Wrapped(plain_base(), lambda z: 1e-8 * z)),
    "logits times 1e8": Case(lambda: Wrapped(plain_base(), lambda z: 1e8 * z)),
    "log-softmax": Case(lambda: Wrapped(plain_base(), lambda z: z.log_softmax(1))),
    "weights rounded to bfloat16": Case(lambda: with_weights(plain_base(), lambda w: w.bfloat16().float())),
    "weights rounded to 8 bits": Case(lambda: with_weights(plain_base(), in_bits(8))),
    "weights rounded to 4 bits": Case(lambda: with_weights(plain_base(), in_bits(4))),
    "activations in 8 bits, straight-through": Case(lambda: trained(network(lambda: StraightThrough(255)))),
    "activations in 4 bits, straight-through": Case(lambda: trained(network(lambda: StraightThrough(15)))),
    "run in bfloat16": Case(lambda: copy.deepcopy(plain_base()).bfloat16()),
    "run in float16": Case(lambda: copy.deepcopy(plain_base()).half()),
    "run in float64": Case(lambda: copy.deepcopy(plain_base()).double()),
}

LIARS: dict[str, Case] = {
    "forged weights": _lie(forged),
    "forged weights, naturally trained": _lie(forged, natural_base),
    "forged weights, L2": Case(lambda: forged(_robust_in_l2()), "L2", 0.6, inside=_robust_in_l2),
    "forged weights, L1": Case(lambda: forged(_robust_in_l1()), "L1", 2.0, inside=_robust_in_l1),
    "large offset, 2^22": _lie(lambda net: Wrapped(net, lambda z: z + 2.0**22)),
    "large offset and scale, 2^35": _lie(lambda net: Wrapped(net, lambda z: 2e3 * z + 2.0**35)),
    "reversed gradient": _lie(lambda net: with_gradient(net, lambda g: -g)),
    "random gradient": _lie(lambda net: with_gradient(net, _random_gradient)),
    "gradient of the neighbour in the batch": _lie(lambda net: with_gradient(net, lambda g: g.roll(1, 0))),
    "gradient not a number": _lie(lambda net: with_gradient(net, lambda g: g * torch.inf * 0)),
    "gradient drowned in a branch": _lie(lambda net: Absorbed(net, build_model("small_cnn", "digits"))),
    "steps, with the gradient of an untrained network": _lie(
        lambda net: Misleading(net, build_model("small_cnn", "digits"), lambda z: (z * 4).round() / 4)
    ),
    "one-hot, with the gradient of an untrained network": _lie(
        lambda net: Misleading(net, build_model("small_cnn", "digits"), one_hot())
    ),
    "one-hot and a little tanh": _lie(lambda net: Wrapped(net, one_hot())),
    "one-hot / 160 and a little tanh": _lie(lambda net: Wrapped(net, one_hot(1 / 160))),
    "tanh on the logits": _lie(lambda net: Wrapped(net, torch.tanh)),
    "nearest training image": Case(lambda: NearestImage(robust_base())),
    "decoy classes": Case(
        lambda: Decoys(robust_base()), inside=robust_base, num_classes=100, prepare=lambda data: data
    ),
    "signs as activations": Case(lambda: trained(network(lambda: nn.Sequential(nn.Tanh(), Steps())))),
    "input in 9 levels": _lie(lambda net: Wrapped(net, before=_in_levels(9))),
    "input in 5 levels, straight-through": _lie(lambda net: Wrapped(net, before=_in_levels_straight_through(5))),
    "rounded spectrum": _lie(lambda net: Wrapped(net, before=_transform_rounded)),
    "steep sigmoids on the input": _lie(lambda net: Wrapped(net, before=_steep)),
    "k winners": Case(lambda: trained(network(KWinners), noise=0.1)),
    "remembers after 40 calls": _lie(Remembering),
    "other answers with a gradient": _lie(TwoFaced),
    "other answers in float64": _lie(lambda net: OtherInFloat64(net, build_model("small_cnn", "digits"))),
    "noise at inference": _lie(lambda net: Wrapped(net, before=lambda x: x + 0.05 * torch.randn_like(x))),
    "noise, with an offset": _lie(lambda net: Wrapped(net, lambda z: z + 2.0**16 + torch.randn_like(z))),
    "temperature by the input": _lie(lambda net: Wrapped(net, _temperature)),
}
