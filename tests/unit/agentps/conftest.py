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
def run_with_questions(made_once):
    return made_once("questions", questioned_run) / "run"


@pytest.fixture
def as_examples():
    return lambda posts, built: [example(post, built.questions) for post in posts]
