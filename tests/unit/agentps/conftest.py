"""A tiny model, posts that it can learn, and accelerate on the CPU."""

from __future__ import annotations

import pytest
from agentps_helpers import accelerating

from selftrain.agentps.dataset import example


@pytest.fixture
def cpu():
    with accelerating(cpu=True) as found:
        yield found


@pytest.fixture
def as_examples():
    return lambda posts, built: [example(post, built.questions) for post in posts]
