"""`selftrain serve` is asked whatever its OpenAPI description allows, and what it does not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from attack_helpers import serve

pytestmark = [
    pytest.mark.integration,
    pytest.mark.attack("serve: whatever its description allows, or does not"),
]

SCHEMATHESIS = Path(sys.executable).with_name("schemathesis")


@pytest.fixture
def server(tmp_path):
    server = serve(tmp_path)
    yield server
    server.serves()
    server.end()


@pytest.mark.parametrize("examples", [30, pytest.param(2000, marks=pytest.mark.slow)])
def test_it_answers_as_described(server, examples, tmp_path):
    """The answer's form and status are those of the description; what is not described is refused."""
    done = subprocess.run(
        [
            SCHEMATHESIS, "run", f"http://127.0.0.1:{server.port}/openapi.json",
            f"--max-examples={examples}", "--seed=1",
        ],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-20_000:]
    assert "Operations:       5 selected / 5 total" in done.stdout
