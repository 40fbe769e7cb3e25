from collections.abc import Iterator

import pytest
from cv_core.random import seeded


@pytest.fixture(autouse=True)
def _fixed_draws(request: pytest.FixtureRequest) -> Iterator[None]:
    """Give each test draws of its own that are the same in every run and in every order."""
    with seeded(0, request.node.nodeid):
        yield
