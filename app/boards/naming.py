"""The names of entries: their ids, the families of architectures, the series of venues."""

from __future__ import annotations

import itertools
import re

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.db.tables import Entry, Evaluation, Model
from gkl.catalog import ARCHITECTURES, named_so, num_parameters
from gkl.spec import PUBLISHED_WEIGHTS


def slug_of_measured(session: Session, model: Model, name: str, evaluation: Evaluation) -> str:
    """A model id for a measured entry. Published weights of RobustBench's zoo keep their id there if it is free."""
    is_published = evaluation.manifest.get("spec", {}).get("weights") == PUBLISHED_WEIGHTS
    text = model.architecture.rpartition("/")[2] if is_published else model.name
    return free_slug(session, model.dataset, name, text, model.weights_sha256)


def free_slug(session: Session, dataset: str, name: str, text: str, weights_sha256: str) -> str:
    """A free model id on a board, made from a network's name."""
    slug = re.sub(r"[^A-Za-z0-9.-]+", "_", text).strip("._-")[:120] or "model"
    return slug if _is_free(session, dataset, name, slug) else _another(session, dataset, name, slug, weights_sha256)


def another_slug(session: Session, entry: Entry, slug: str) -> str:
    """A new model id for an entry that must give up its own."""
    weights = entry.model or entry.report
    return _another(session, entry.dataset, entry.board, slug, weights.weights_sha256 if weights else "")


def _another(session: Session, dataset: str, name: str, slug: str, weights_sha256: str) -> str:
    """A free model id on a board, made different by a part of the weights' sha256."""
    slug = f"{slug[:120]}_{weights_sha256[:12]}"
    numbers = (slug if number == 1 else f"{slug}_{number}" for number in itertools.count(1))
    return next(each for each in numbers if _is_free(session, dataset, name, each))


def _is_free(session: Session, dataset: str, name: str, slug: str) -> bool:
    taken = select(Entry.id).where(Entry.dataset == dataset, Entry.board == name, Entry.slug == slug)
    return session.scalar(taken) is None


_YEAR = re.compile(r"\b(?:19|20)\d\d\b")
_TAG = re.compile(r"<[^<>]*>")
# A longer name comes before a name that it contains.
_FAMILIES = "WideResNet PreActResNet ResNeXt ResNeSt ResNet ConvNeXt DenseNet EfficientNet BinaryNet XCiT DeiT Swin ViT"
_KNOWN_FAMILIES = (*_FAMILIES.split(), "SmallCNN", "TinyCNN", "CNN", "VGG")


def series_and_year(venue: str) -> tuple[str, int | None]:
    """The name of a venue and its year.

    >>> series_and_year("NeurIPS 2021"), series_and_year("GitHub,<br>Sep 2019"), series_and_year("N/A")
    (('NeurIPS', 2021), ('GitHub', 2019), ('N/A', None))
    """
    text = _TAG.sub(" ", venue)
    year = _YEAR.search(text)
    series = re.split(r",|\b(?:19|20)\d\d\b", text)[0].strip()
    return series, int(year[0]) if year else None


def architecture_family(architecture: str) -> str:
    """The family of an architecture.

    >>> architecture_family("WideResNet-28-10"), architecture_family("ResNet-152 + WideResNet-70-16")
    ('WideResNet', 'mixture')
    >>> architecture_family("MeanSparse RaWideResNet-70-16"), architecture_family("XCiT-L12")
    ('WideResNet', 'XCiT')
    """
    if "+" in architecture:
        return "mixture"
    lowered = architecture.lower()
    return next((family for family in _KNOWN_FAMILIES if family.lower() in lowered), "other")


def zoo_name(dataset: str, board: str, slug: str) -> str | None:
    """The name, as used in a spec, of the zoo's network with this model id on this board; None if there is none.

    >>> zoo_name("cifar10", "Linf", "Carmon2019Unlabeled"), zoo_name("cifar10", "Linf-4-255", "Carmon2019Unlabeled")
    ('cifar10/Linf/Carmon2019Unlabeled', None)
    """
    name = f"{dataset}/{board}/{slug}"
    return name if name in ARCHITECTURES else None


def imported_parameters(dataset: str, board: str, slug: str, architecture: str) -> int | None:
    """The number of parameters of a network that RobustBench describes: by its model id, else by its architecture.

    None if the name does not identify a network.
    """
    known = zoo_name(dataset, board, slug) or named_so(architecture, dataset)
    return None if known is None else num_parameters(known, dataset)
