"""AutoAttack with fewer steps, for tests of what is done with attacks rather than of how strong they are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from pyautoattack import AutoAttack


@contextmanager
def attacks_shortened(steps: int = 25, queries: int = 250) -> Iterator[None]:
    """Evaluations of this process take so many steps of APGD and FAB, and queries of Square, for 100 and 5000."""

    class ShortAutoAttack(AutoAttack):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            for attack in (self.apgd, self.apgd_targeted):
                attack.n_iter = attack.n_iter_orig = steps
            self.fab.n_iter = steps
            self.square.n_queries = queries

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gkl.attacks.autoattack.AutoAttack", ShortAutoAttack)
        yield
