"""The data sets, architectures and attacks that a spec may name. Free of torch.

The API and the pages list these records. `gkl.data`, `gkl.models` and `gkl.attacks` contain the code for each name.
"""

from gkl.catalog.architectures import (
    ARCHITECTURES,
    LOSS_TITLES,
    Architecture,
    image_shape,
    named_so,
    num_parameters,
    preprocessing_for,
    recorded_preprocessing,
)
from gkl.catalog.attacks import (
    ATTACK_TITLES,
    BEYOND_AUTOATTACK,
    WITHOUT_GRADIENTS,
    AnyAttackName,
    AttackName,
    attack_name,
)
from gkl.catalog.datasets import CORRUPTED_DATASETS, CORRUPTIONS, DATASETS, Dataset, Norm, unknown_name_message

__all__ = [
    "ARCHITECTURES",
    "ATTACK_TITLES",
    "BEYOND_AUTOATTACK",
    "CORRUPTED_DATASETS",
    "CORRUPTIONS",
    "DATASETS",
    "LOSS_TITLES",
    "WITHOUT_GRADIENTS",
    "AnyAttackName",
    "Architecture",
    "AttackName",
    "Dataset",
    "Norm",
    "attack_name",
    "image_shape",
    "named_so",
    "num_parameters",
    "preprocessing_for",
    "recorded_preprocessing",
    "unknown_name_message",
]
