"""What holds for every test: draws of its own, the same in every run and in every order."""

from collections.abc import Iterator

import pytest
from cv_core.random import seeded


@pytest.fixture(autouse=True)
def _fixed_draws(request: pytest.FixtureRequest) -> Iterator[None]:
    with seeded(0, request.node.nodeid):
        yield
