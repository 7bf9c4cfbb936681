"""Seeds of model tests: a few in every run, the others in `make test-long`."""

from typing import Any

import pytest


def seeds(few: int, many: int) -> list[Any]:
    """Parameters: the first few, and up to many that are marked as long."""
    return [*range(few), *(pytest.param(seed, marks=pytest.mark.long) for seed in range(few, many))]
