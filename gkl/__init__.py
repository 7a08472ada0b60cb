"""The engine: losses, training and evaluation, usable as a library without a server.

>>> import gkl
>>> gkl.evaluate  # doctest: +ELLIPSIS
<function evaluate at ...>

Importing this package does not import torch. Its names and submodules import torch when they are used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gkl.library.comparison import Comparison, compare
    from gkl.library.evaluation import evaluate
    from gkl.library.networks import load_model, load_weights
    from gkl.library.training import Training, train
    from gkl.library.verdict import Verdict

__version__ = "0.2.0"
__all__ = [
    "Comparison",
    "Training",
    "Verdict",
    "__version__",
    "compare",
    "evaluate",
    "load_model",
    "load_weights",
    "train",
]

# The module of each public name, imported on first use.
_PLACES = {
    "Comparison": "gkl.library.comparison",
    "Training": "gkl.library.training",
    "Verdict": "gkl.library.verdict",
    "compare": "gkl.library.comparison",
    "evaluate": "gkl.library.evaluation",
    "load_model": "gkl.library.networks",
    "load_weights": "gkl.library.networks",
    "train": "gkl.library.training",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'gkl' has no attribute {name!r}")
    found = getattr(import_module(_PLACES[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_PLACES})
