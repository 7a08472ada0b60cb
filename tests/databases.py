"""Which of the two systems a test runs on, where it does not run on both."""

from __future__ import annotations

import pytest

either_database = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
"""For a test to which it is all the same, or that never gets as far: it is tried on one."""

postgresql_only = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
"""For one about its server or its locks of single rows, or to which only real processes matter."""
