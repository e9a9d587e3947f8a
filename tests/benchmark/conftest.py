"""The world in which a benchmark takes no time."""

import pytest
from world import World


@pytest.fixture
def world() -> World:
    return World()
