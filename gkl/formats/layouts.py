"""Finds a network in a file of weights: its dictionary, and the prefix of its tensors' names.

Scripts add prefixes to names (DataParallel, torch.compile, Lightning, `nn.Sequential(normalization, network)`), and
save a network together with an averaged one, an optimizer, a count of epochs. A network is wherever all of its names
are. If that holds at several places, the user has to choose; this module never does.

Free of torch: a worker uses it for the file that it loads, and the API for the file that a new job names.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from gkl.errors import InvalidInput
from gkl.formats.weights_contents import Contents, Described

# Parts that wrappers insert into names, at any depth.
_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
# Common names of the attribute that holds a network. Some files have them before only some of the tensors' names.
_HOLDERS = {"model", "net", "network", "backbone", "0", "1"}
_MAX_DEPTH = 12
_COUNTER = "num_batches_tracked"
# Single numbers that scripts save beside the weights and that are no part of a network.
_NOTES = re.compile(
    r"n_averaged|num_updates|decay|epochs?|(global_)?steps?|iter(ation)?s?|lr|loss|(best_?)?(acc|prec)(uracy)?@?\d?|best"
)
_STATISTICS = {"mean": "std", "means": "stds", "mu": "sigma", "pixel_mean": "pixel_std"}
_IN_FRONT = re.compile(r"\d+|.*(norm|prep|input|scal|standard).*", re.IGNORECASE)
_MOST_CHANNELS = 4


class Expected:
    """The tensors that a file must have to be weights of a network."""

    def __init__(self, tensors: Mapping[str, Described], same: Sequence[Sequence[str]]) -> None:
        """
        Args:
            tensors: name -> tensor, in the network's order.
            same: groups of two or more names that share one tensor.
        """
        self.tensors = tensors
        self.same = [list(names) for names in same]
        in_groups = {name for names in same for name in names}
        self.groups: list[list[str]] = [*self.same, *([name] for name in tensors if name not in in_groups)]
        """Each tensor's names; a file needs at least one of them."""
        # Files of old torch versions lack BatchNorm's count of batches, which no evaluation uses.
        self.required = [names for names in self.groups if not names[0].endswith(_COUNTER)]

    def first_missing(self, present: Collection[str]) -> str | None:
        return next((names[0] for names in self.required if not any(name in present for name in names)), None)


@dataclass(frozen=True)
class Place:
    """A place in a file that has all names of a network."""

    where: str
    """The dictionary's place in the file, such as 'state_dict'; '' for the file itself."""
    prefix: str
    """Prefix of each name, with its final dot; '' if there is none, or if only some names have it."""
    names: Mapping[str, str]
    """Name in the network -> name in the file."""
    label: str
    """The place as a spec's `weights_key` names it."""

    @property
    def spellings(self) -> set[str]:
        return {self.label, self.own_spelling, self.prefix.rstrip(".")} - {""}

    @property
    def own_spelling(self) -> str:
        """Dictionary and prefix, joined by a dot."""
        return ".".join(part for part in (self.where, self.prefix.rstrip(".")) if part)


def places(expected: Expected, file: Contents) -> list[Place]:
    """Find every place in the file that has the network's names, whatever the shapes."""
    found = []
    for where, described in file.containers.items():
        # Sorted, because a converted file has its names in another order.
        here = sorted(_places_in(expected, described), key=lambda each: each[0])
        for prefix, names in here:
            own = ".".join(part for part in (where, prefix.rstrip(".") if len(here) > 1 else "") if part)
            found.append(Place(where, prefix, names, own or "."))
    return found


def fitting_places(expected: Expected, file: Contents, weights_key: str | None) -> list[Place]:
    """Find the places in the file that have the network's names and shapes, of those that `weights_key` names.

    Args:
        expected: the network's tensors.
        file: the file's contents.
        weights_key: which network of the file is meant, as in a spec; None for any.

    Raises:
        InvalidInput: there is no such place; the message says the first difference.
    """
    found = places(expected, file)
    if not found:
        raise InvalidInput(why_nowhere(expected, file))
    meant = found
    if weights_key is not None:
        meant = [place for place in found if weights_key == place.label]
        meant = meant or [place for place in found if weights_key.rstrip(".") in place.spellings]
        if not meant:
            held = ", ".join(repr(place.label) for place in found)
            raise InvalidInput(
                f"{file.name} holds no network of this architecture at weights_key {weights_key!r}; it holds one at "
                f"{held:.300}"
            )
    differences = {
        number: first_difference(expected, place, file.containers[place.where], file.name)
        for number, place in enumerate(meant)
    }
    fitting = [place for number, place in enumerate(meant) if differences[number] is None]
    if not fitting:
        raise InvalidInput(str(differences[0]))
    return fitting


def _places_in(expected: Expected, names: Collection[str]) -> Iterator[tuple[str, dict[str, str]]]:
    as_written = {name: name for name in names}
    plain = {_unwrapped(name): name for name in expected.tensors}
    unwrapped = {_unwrapped(name): name for name in names}
    # If two names are equal without their wrappers, they may belong to two networks.
    is_clear = len(unwrapped) == len(names) and len(plain) == len(expected.tensors)
    attempts = [(as_written, {name: name for name in expected.tensors}, False)]
    if is_clear:
        attempts += [(unwrapped, plain, False), (unwrapped, plain, True)]
    for given, wanted, is_mixed in attempts:
        found = False
        for prefix in _prefixes(given, wanted):
            if is_mixed and not set(prefix.split(".")) <= _HOLDERS | {""}:
                continue
            present: dict[str, str] = {}
            for own, name in wanted.items():
                with_prefix, without = given.get(prefix + own), given.get(own) if is_mixed and prefix else None
                if with_prefix is not None and without is not None:
                    present = {}
                    break
                at = with_prefix or without
                if at is not None:
                    present[name] = at
            if present and expected.first_missing(present) is None:
                found = True
                yield "" if is_mixed else prefix, present
        if found:
            return


def _prefixes(given: Iterable[str], wanted: Collection[str]) -> list[str]:
    """Prefixes that turn a wanted name into one of the given names; the most frequent first."""
    counts: Counter[str] = Counter()
    for name in given:
        parts = name.split(".", _MAX_DEPTH)
        for number in range(len(parts)):
            rest = ".".join(parts[number:])
            if rest in wanted:
                counts[name[: len(name) - len(rest)]] += 1
    return [prefix for prefix, _ in counts.most_common()]


def _unwrapped(name: str) -> str:
    """
    >>> _unwrapped("_orig_mod.features.module.0.weight")
    'features.0.weight'
    """
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def first_difference(expected: Expected, place: Place, described: Mapping[str, Described], file: str) -> str | None:
    """Describe the first tensor whose shape or kind differs from the network's; None if all fit."""
    for name, at in place.names.items():
        wanted, given = expected.tensors[name], described[at]
        if not fits(name, wanted, given):
            return difference(at, wanted, given, file)
    return None


def difference(name: str, wanted: Described, given: Described, file: str) -> str:
    return (
        f"tensor {name!r:.100} in {file} is {given.dtype} {given.shape}, but the architecture has {wanted.dtype} "
        f"{wanted.shape} there; choose the architecture it was trained with"
    )


def fits(name: str, wanted: Described, given: Described) -> bool:
    # Averaging scripts turn BatchNorm's count of batches into a float, and old scripts save it with shape (1,).
    if wanted.is_whole:
        is_one = name.endswith(_COUNTER) and (wanted.shape, given.shape) == ((), (1,))
        return (given.is_floating or given.is_whole) and (given.shape == wanted.shape or is_one)
    return given[2:] == wanted[2:] and given.shape == wanted.shape


def why_nowhere(expected: Expected, file: Contents) -> str:
    """Say why no dictionary of the file has the network, for the dictionary that has most of its names."""
    best: tuple[int, str] = (-1, "")
    wanted = {_unwrapped(name) for name in expected.tensors}
    for described in file.containers.values():
        seen: dict[str, str] = {}
        for name in described:
            first = seen.setdefault(_unwrapped(name), name)
            if first != name and expected.first_missing(described) is not None and _unwrapped(name) in wanted:
                same = f"has {first!r:.100} and {name!r:.100}, which differ only in what wrappers put into names"
                return f"{file.name} {same}; save the network that is meant alone"
        for prefix in [*_prefixes(described, expected.tensors)[:1], ""]:
            present = {name for name in expected.tensors if prefix + name in described}
            sentence = _first_difference_behind(prefix, expected, described, file.name)
            best = max(best, (len(present), sentence), key=lambda each: each[0])
    return best[1]


def _first_difference_behind(prefix: str, expected: Expected, described: Mapping[str, Described], file: str) -> str:
    """Describe the first difference in the network's order, where the first one says most."""
    missing = expected.first_missing({name for name in expected.tensors if prefix + name in described})
    for name, wanted in expected.tensors.items():
        given = described.get(prefix + name)
        if name == missing:
            behind = f" behind {prefix!r:.60}" if prefix else ""
            return f"{file} lacks the tensor {missing!r}{behind}; was it made by another architecture?"
        if given is not None and not fits(name, wanted, given):
            return difference(prefix + name, wanted, given, file)
    return (
        f"{file} has some of the network's tensors both with and without {prefix!r:.60} before their names; save the "
        "network that is meant alone"
    )


@dataclass(frozen=True)
class Surroundings:
    """The other tensors in the dictionary that has a network."""

    normalization: tuple[str, str] | None
    """Names of mean and standard deviation of a normalization layer in front of the network."""
    surplus: list[str]
    """All others; they may be parts of the network that the architecture lacks."""


def surroundings(place: Place, others: Sequence[Place], described: Mapping[str, Described]) -> Surroundings:
    used = {at for each in (place, *others) if each.where == place.where for at in each.names.values()}
    rest = sorted(name for name in described if name not in used and not _is_note(name, place.prefix, described[name]))
    pairs = [pair for name in rest if (pair := _statistics(name, place.prefix, described)) is not None]
    if len(pairs) != 1:
        return Surroundings(None, rest)
    return Surroundings(pairs[0], [name for name in rest if name not in pairs[0]])


def _is_note(name: str, prefix: str, described: Described) -> bool:
    before, _, last = _unwrapped(name).rpartition(".")
    is_one = described.shape in ((), (1,))
    is_around = before == "" or _unwrapped(prefix).startswith(f"{before}.")
    return is_one and is_around and _NOTES.fullmatch(last) is not None


def _statistics(name: str, prefix: str, described: Mapping[str, Described]) -> tuple[str, str] | None:
    """If `name` is the mean of a normalization layer in front of the network: its name and the standard deviation's."""
    before, dot, last = name.rpartition(".")
    std = f"{before}{dot}{_STATISTICS.get(last, '')}"
    if last not in _STATISTICS or std not in described:
        return None
    for each in (described[name], described[std]):
        sizes = [size for size in each.shape if size != 1]
        if not each.is_floating or len(sizes) > 1 or (sizes and sizes[0] > _MOST_CHANNELS) or 0 in sizes:
            return None
    network, front = _unwrapped(prefix.rstrip(".")), _unwrapped(before)
    own, layer = network.rpartition("."), front.rpartition(".")
    if front in (network, own[0]):
        return name, std
    if layer[0] not in (network, own[0]) or not _IN_FRONT.fullmatch(layer[2]):
        return None
    is_behind = layer[2].isdecimal() and (own[0] != layer[0] or not own[2].isdecimal() or int(layer[2]) >= int(own[2]))
    return None if is_behind else (name, std)


def unseen_in_front(place: Place, described: Mapping[str, Described]) -> list[str]:
    """Modules before the network in an `nn.Sequential` that have no tensors, so that what they do is unknown."""
    parent, dot, own = _unwrapped(place.prefix.rstrip(".")).rpartition(".")
    if not own.isdecimal() or len(own) > 3:
        return []
    before = [f"{parent}{dot}{number}" for number in range(int(own))]
    names = [_unwrapped(name) for name in described]
    return [module for module in before if not any(name.startswith(f"{module}.") for name in names)]


def has_other_networks(place: Place, equals: Sequence[Place], file: Contents) -> bool:
    """Whether the file has other weights too, so that its sha256 alone does not identify the network."""
    own = {(each.where, at) for each in (place, *equals) for at in each.names.values()}
    # Vectors do not count: they may be the statistics of a normalization layer.
    return any(
        (where, name) not in own and each.is_floating and sum(size > 1 for size in each.shape) > 1
        for where, described in file.containers.items()
        for name, each in described.items()
    )


def refuse_surplus(place: Place, surplus: Sequence[str], file: str) -> None:
    """
    Raises:
        InvalidInput: there is a surplus tensor.
    """
    if surplus:
        key = place.own_spelling
        advice = f"; if it is no part of the network, set weights_key to {key!r}" if place.prefix and key else ""
        raise InvalidInput(f"{file} has a tensor {surplus[0]!r:.100} that the architecture does not have{advice}")


def checked_surroundings(
    expected: Expected, place: Place, file: Contents, weights_key: str | None
) -> tuple[Surroundings, list[str]]:
    """Return the other tensors around a network, and notes about them, each a sentence.

    Raises:
        InvalidInput: the file has other tensors there, which may be parts of the network that the architecture lacks.
    """
    described = file.containers[place.where]
    others = [
        each
        for each in places(expected, file)
        if each != place and first_difference(expected, each, file.containers[each.where], file.name) is None
    ]
    around = surroundings(place, others, described)
    is_named = weights_key is not None and place.prefix != "" and weights_key != place.where
    if not is_named:
        refuse_surplus(place, around.surplus, file.name)
        return around, []
    if not around.surplus:
        return around, []
    refuse_surplus(place, [name for name in around.surplus if name.startswith(place.prefix)], file.name)
    return around, [
        f"{len(around.surplus)} tensors beside it, such as {around.surplus[0]!r:.100}, are no part of the network, "
        f"as weights_key {weights_key!r} says"
    ]


def check_fits(expected: Expected, file: Contents, weights_key: str | None) -> None:
    """Check that a file has the network, by names and shapes alone. `load_weights` raises the same errors.

    Raises:
        InvalidInput: the file lacks the network, or has tensors beyond it; the message says the first difference.
    """
    found = fitting_places(expected, file, weights_key)
    # Several are allowed here: they may hold the same numbers.
    if len(found) == 1:
        checked_surroundings(expected, found[0], file, weights_key)
