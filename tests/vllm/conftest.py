"""Real vLLM servers for the tests, one at a time: two cores cannot serve two models.

Tests that use a server are put in the order of the servers, so that each starts once. Nothing here skips: in
this tier an environment without vLLM is a failure, with the reason.
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from agents.vllm.command import ServeOptions, serve_command
from agents.vllm.interpreter import Interpreter, find_interpreter
from agents.vllm.launch import Ready, serving
from runs.bench.small_models import export_small_vlm, export_smollm2

ORDER = ("smollm2_server", "small_vlm_server", "alone")
HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Those that share a server stand together; the places of other folders' tests stay as they are."""
    mine = [at for at, item in enumerate(items) if HERE in item.path.parents]
    ranked = sorted((items[at] for at in mine), key=_rank)
    for at, item in zip(mine, ranked, strict=True):
        items[at] = item


def _rank(item: pytest.Item) -> int:
    used = [ORDER.index(name) for name in getattr(item, "fixturenames", ()) if name in ORDER]
    return max(used, default=-1)


@pytest.fixture(scope="session")
def interpreter() -> Interpreter:
    """The Python that has vLLM; an error, not a skip, where there is none."""
    return find_interpreter()


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the small models lie: kept in SELFTRAIN_CACHE if that is set."""
    cache = os.environ.get("SELFTRAIN_CACHE")
    return Path(cache) / "models" if cache else tmp_path_factory.mktemp("models")


@pytest.fixture(scope="session")
def smollm2(models: Path) -> Path:
    """A small language model as a folder."""
    return export_smollm2(models / "smollm2")


@pytest.fixture(scope="session")
def small_vlm(models: Path) -> Path:
    """A small vision-language model as a folder."""
    return export_small_vlm(models / "small-vlm")


class OneServer:
    """At most one server: whoever asks for another ends the one before."""

    def __init__(self, interpreter: Interpreter, logs: Path) -> None:
        self.interpreter, self.logs = interpreter, logs
        self.model: Path | None = None
        self.ready: Ready | None = None
        self.stack = ExitStack()

    def of(self, model: Path) -> Ready:
        """The server of a model, started unless it runs."""
        if self.model != model or self.ready is None:
            self.end()
            command = serve_command(self.interpreter, model, ServeOptions(max_model_len=4096))
            log = self.logs / f"{model.name}.log"
            _, self.ready = self.stack.enter_context(serving(command, log=log, report=print))
            self.model = model
        return self.ready

    def end(self) -> None:
        """End the one that runs, if any, and see that nothing of it is left."""
        below = psutil.Process().children(recursive=True) if self.ready else []
        self.model = self.ready = None
        self.stack.close()
        left = [process for process in below if process.is_running() and "VLLM" in process.name()]
        assert not left, f"left by a server that was stopped: {left}"


@pytest.fixture(scope="session")
def one_server(interpreter: Interpreter, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OneServer]:
    """What the fixtures below share."""
    one = OneServer(interpreter, tmp_path_factory.mktemp("logs"))
    yield one
    one.end()


@pytest.fixture
def smollm2_server(one_server: OneServer, smollm2: Path) -> Ready:
    """A server of the language model, which takes no images."""
    return one_server.of(smollm2)


@pytest.fixture
def small_vlm_server(one_server: OneServer, small_vlm: Path) -> Ready:
    """A server of the vision-language model, 16 images a prompt."""
    return one_server.of(small_vlm)


@pytest.fixture
def alone(one_server: OneServer) -> None:
    """No other server: the test starts its own."""
    one_server.end()


@pytest.fixture
def gone() -> Callable[[int], bool]:
    """Whether a process ends within half a minute; waits for the event."""

    def ends(pid: int) -> bool:
        try:
            handle = os.pidfd_open(pid)
        except ProcessLookupError:
            return True
        try:
            return bool(select.select([handle], [], [], 30.0)[0])
        finally:
            os.close(handle)

    return ends
