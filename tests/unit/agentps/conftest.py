"""A tiny model, posts that it can learn, and accelerate on the CPU."""

from __future__ import annotations

import pytest
from agentps_helpers import accelerating, questioned_run

from selftrain.agentps.dataset import example


@pytest.fixture
def cpu():
    with accelerating(cpu=True) as found:
        yield found


@pytest.fixture(scope="session")
def run_with_questions(tmp_path_factory):
    return questioned_run(tmp_path_factory.mktemp("questions"))


@pytest.fixture
def as_examples():
    return lambda posts, built: [example(post, built.questions) for post in posts]
