"""The names of boards: from an evaluation to the board it ranks on, and back."""

from __future__ import annotations

import re
from typing import Literal, cast

from app.db.tables import CLEAN_BOARD
from gkl.catalog import DATASETS, Norm
from gkl.spec.common import ThreatModel, format_epsilon
from gkl.spec.evaluation import Evaluation

_LONGEST_BOARD = 50

BoardKind = Literal["attacks", "corruptions", "clean"]
"""What ranks on a board: accuracy under attacks, mean accuracy under common corruptions, or clean accuracy."""


def board_name(dataset: str, evaluation: Evaluation) -> str:
    """Name of the board on which a result ranks, unique within its data set: RobustBench's threat model.

    With the data set's default budget, the name is that of the norm. Any other budget has a board of its own, whose
    name contains the budget (`threat_model_of_board` reads it).

    >>> board_name("digits", Evaluation(threat_model=ThreatModel(norm="Linf", epsilon=0.2)))
    'Linf'
    >>> board_name("digits", Evaluation(threat_model=ThreatModel(norm="Linf", epsilon="8/255")))
    'Linf-8-255'
    >>> board_name("digits", Evaluation(threat_model=ThreatModel(norm="Linf", epsilon=9e-5)))
    'Linf-9e-05'
    >>> board_name("digits", Evaluation(protocol="clean"))
    'clean'
    """
    threat_model = evaluation.threat_model
    if threat_model is None:
        return evaluation.protocol
    if DATASETS[dataset].epsilon.get(threat_model.norm) == threat_model.epsilon:
        return threat_model.norm
    return f"{threat_model.norm}-{format_epsilon(threat_model.epsilon).replace('/', '-')}"


def threat_model_of_board(dataset: str, name: str) -> ThreatModel | None:
    """The threat model of a board; None for a board without attacks: 'corruptions', 'corruptions_3d' or 'clean'.

    >>> threat_model_of_board("cifar10", "Linf").epsilon == 8 / 255
    True
    >>> threat_model_of_board("digits", "Linf-8-255").epsilon == 8 / 255
    True
    >>> threat_model_of_board("digits", "Linf-9e-05").epsilon == 9e-5
    True
    """
    found = re.fullmatch(r"(Linf|L2|L1)(?:-([0-9]+(?:\.[0-9]+)?(?:e[+-]?[0-9]{1,3})?)(?:-([0-9]+))?)?", name)
    if found is None or len(name) > _LONGEST_BOARD:
        return None
    norm, numerator, denominator = cast("Norm", found[1]), found[2], found[3]
    epsilon = DATASETS[dataset].epsilon.get(norm) if numerator is None else float(numerator)
    if epsilon is None or float(denominator or 1) == 0:
        return None
    try:
        return ThreatModel(norm=norm, epsilon=epsilon / float(denominator or 1))
    except ValueError:
        # 0, too large for a number, or larger than the pixel range.
        return None


def kind_of_board(dataset: str, name: str) -> BoardKind:
    """What ranks on a board.

    >>> [kind_of_board("imagenet", name) for name in ("L2-0.5", "corruptions_3d", "clean")]
    ['attacks', 'corruptions', 'clean']
    """
    if name == CLEAN_BOARD:
        return "clean"
    return "corruptions" if threat_model_of_board(dataset, name) is None else "attacks"
