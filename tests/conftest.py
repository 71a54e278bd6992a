"""What all tiers share: where the public data sets lie, and why the gpu tier is skipped."""

from __future__ import annotations

import gc
import inspect
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# an example that takes long says that the machine is busy
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

CHECKOUT = Path(__file__).parents[1]

# torch and transformers leave a million objects for good: to walk them again and again is a tenth of the time
gc.set_threshold(700, 10, 200)

# Ray's workers give way to every other process by default: beside other tests they would wait for minutes
os.environ.setdefault("RAY_worker_niceness", "0")

# A shell starts what it puts into the background with Ctrl-C ignored, nohup with SIGHUP ignored; every child
# inherits that, and a test that interrupts one would wait for ever.
for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of public data sets: SELFTRAIN_DATA, or ../shared/data beside the checkout."""
    folder = Path(os.environ.get("SELFTRAIN_DATA") or CHECKOUT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no data sets: {folder} is not a folder; set SELFTRAIN_DATA to where they lie")
    return folder


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what is slow unless asked for, and the gpu tier where there is no accelerator, and say why.

    Imports torch for that tier alone.
    """
    if "slow" not in config.getoption("markexpr"):
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(pytest.mark.skip(reason="minutes of work: ask for it with -m slow"))
    gpu_items = [item for item in items if item.get_closest_marker("gpu")]
    if not gpu_items:
        return
    import torch

    if torch.cuda.is_available():
        return
    built_for = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "a CPU build"
    reason = f"needs a CUDA device: torch {torch.__version__} is {built_for} and sees none"
    for item in gpu_items:
        item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], object]], Path]:
    """A function from a name and what fills a folder to that folder, filled by the first worker that asks."""
    from filelock import FileLock

    place = tmp_path_factory.getbasetemp()
    place = place.parent if "PYTEST_XDIST_WORKER" in os.environ else place

    def made(name: str, fill: Callable[[Path], object]) -> Path:
        home = place / name
        with FileLock(place / f"{name}.lock"):
            if not (done := place / f"{name}.done").exists():
                shutil.rmtree(home, ignore_errors=True)  # of one who failed at it
                home.mkdir()
                fill(home)
                done.touch()
        return home

    return made


@pytest.fixture(scope="session")
def quickstart_cache(made_once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    """A cache of features for tests that run the quickstart, whose posts are the same everywhere."""
    return made_once("quickstart-cache", lambda _: None)


@pytest.fixture(scope="session")
def small_run(made_once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    """The folder of a real finished run: 120 drawn posts, two rounds of ten candidates, offline agents.

    Its posts lie beside it in ``data``, its features in ``cache``. All workers share it: copy it before
    changing it.
    """
    return made_once("small", _small_run) / "run"


def _small_run(home: Path) -> None:
    from selftrain.data.drawn import draw_posts
    from selftrain.runs import start

    draw_posts(home / "data", 120)
    recipe = home / "small.toml"
    recipe.write_text(
        'seed = 1\n[data]\nmanifest = "data/manifest.jsonl"\ntask = "data/task.toml"\ntrain_share = 0.5\n'
        "validation_share = 0.3\ntest_share = 0.2\nlabelled = 20\n"
        '[backbone]\ncache = "cache"\n[classifier]\nepochs = 20\n[selection]\nk = 10\n[rounds]\nmax = 2\n'
    )
    rounds = list(start(recipe, home / "run").rounds())
    assert [finished.number for finished in rounds] == [0, 1, 2]


@pytest.fixture(scope="module")
def storage() -> Iterator[dict[str, str]]:
    """The environment variables by which boto3 reaches an S3 server of our own."""
    from object_storage import object_storage

    with object_storage() as named:
        yield named


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a test that is a coroutine function, which may leave nothing behind on its loop."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    from chat_stub import run

    run(
        pyfuncitem.obj(
            **{name: pyfuncitem.funcargs[name] for name in inspect.signature(pyfuncitem.obj).parameters}
        )
    )
    return True
