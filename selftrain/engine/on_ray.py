"""Stages on a Ray cluster, by Ray Data: one task reads blocks, a pool of actors works on them.

The task waits for the actors most of the time, so it takes no core of theirs. Ray Data schedules, holds the
reader back where workers do not keep up, and repeats elsewhere what was lost with a worker or a node. An
object of its dataset holds one block, which travels from reader to worker: the driver sees results alone.
"""

from __future__ import annotations

import logging
import os
import pickle
import re
import socket
import traceback
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from selftrain.engine.mapping import Block, Rescue, Result, Source, Stage
from selftrain.errors import EngineError

if TYPE_CHECKING:
    import pyarrow as pa

LOCAL = "local"
"""In place of a cluster's address: one is started on this machine, and ends with the command."""
_COLUMN = "pickled"
_SETTINGS = {
    # Ray's own log, in its session's folder, has the rest; what matters to a user is raised
    "RAY_DATA_LOG_LEVEL": "CRITICAL",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is reported to anybody
}
_SETTINGS_FRAME = b"\4"
_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + _SETTINGS_FRAME + bytes(5)
"""With what gRPC begins, on both sides: HTTP/2, and a frame of settings."""
_WITHOUT_RESULT = 30 * 60.0  # seconds; a block whose workers die again and again would be tried for ever
_KNOCK_SECONDS = 5.0
_TRIES = 2  # of a block whose worker died, and then of each of its items
_DIED = f"{_TRIES} workers died of it alone: of too little memory, as a rule"
_WHOLE = -1
_Work = tuple[int, int]
"""A block's place, and that of an item in it, or `_WHOLE`."""
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_DEATHS = 3  # of workers in a row that die while they load the model, before Ray gives up


@dataclass(frozen=True)
class OnRay:
    """The workers of a Ray cluster.

    selftrain of this version, the model and the posts' pictures must be found under the same paths on every
    node: a shared disk, or copies. What is read, a manifest, lies on the machine of the command.
    """

    # of the cluster, as ``ray start --head`` prints it; "auto": the one that this machine belongs to;
    # `LOCAL`: a new one of this machine's cores
    address: str = "auto"
    workers: int | None = None  # at most so many at once; None: as many as the cluster has room for
    cpus: float = 1.0  # cores of a worker, the threads of its model
    gpus: float = 0.0  # GPUs of a worker, .25 where four share one

    @contextmanager
    def map(
        self,
        source: Source[Block],
        stage: Stage[Block, Result],
        rescue: Rescue[Block, Result] | None = None,
    ) -> Iterator[Iterator[Result]]:
        """See `Engine.map`; EngineError: no Ray, no cluster, no node with room, or Ray gave up on a block."""
        with self._connected():
            results = self._results(source, stage, rescue)
            try:
                yield results
            finally:
                results.close()

    @contextmanager
    def _connected(self) -> Iterator[None]:
        for name, level in _SETTINGS.items():
            os.environ.setdefault(name, level)
        try:
            import ray
            import ray.data
        except ImportError as error:
            raise EngineError("Ray is not installed: pip install 'selftrain[ray]'") from error
        joined = ray.is_initialized()
        if not joined:
            local = {"include_dashboard": False} if self.address == LOCAL else {}
            try:
                _knock(self.address)
                ray.init(self.address, log_to_driver=False, logging_level=logging.ERROR, **local)
            except (OSError, ValueError, OverflowError, RuntimeError) as error:
                reason = str(error).rstrip(".")
                raise EngineError(
                    f"no Ray cluster answers at {self.address!r}: {reason}. Start one (ray start --head),"
                    " give its address, and its token with RAY_AUTH_MODE=token, or"
                    f" {LOCAL!r} for this machine's cores"
                ) from error
        try:
            yield
        finally:
            if not joined:
                ray.shutdown()

    def _room(self) -> int:
        """Return how many workers the cluster holds now, at least one: Ray would wait without a word."""
        import ray

        nodes = [one["Resources"] for one in ray.nodes() if one["Alive"]]
        room = 0
        for one in nodes:
            cores, cards = one.get("CPU", 0), one.get("GPU", 0)
            room += int(min(cores / self.cpus, cards / self.gpus if self.gpus else cores))
        if not room:
            found = "; ".join(f"{one.get('CPU', 0):g} CPUs, {one.get('GPU', 0):g} GPUs" for one in nodes)
            raise EngineError(
                f"a worker takes {self.cpus:g} CPUs and {self.gpus:g} GPUs, and no node of the cluster has as"
                f" many ({found}): ask for less, or add a node"
            )
        return room

    def _results(
        self, source: Source[Block], stage: Stage[Block, Result], rescue: Rescue[Block, Result] | None
    ) -> Generator[Result]:
        from ray import data

        watch, room = _new_watch(), self._room()
        context = data.DataContext.get_current().copy()
        context.execution_options.preserve_order = True
        context.target_max_block_size = context.target_min_block_size = 1  # an object for every block
        context.max_consecutive_actor_init_deaths = _DEATHS
        context.execution_no_progress_timeout_s = _WITHOUT_RESULT
        context.enable_progress_bars = context.print_on_execution_start = False
        with data.DataContext.current(context):
            mapped = data.read_datasource(
                _datasource(source, watch), override_num_blocks=1, num_cpus=0
            ).map_batches(
                _Worker, fn_constructor_args=(stage, rescue, watch), batch_size=1, batch_format="pyarrow",
                num_cpus=self.cpus, num_gpus=self.gpus or None,
                # none goes while it waits: the next one would have to load the model again
                compute=data.ActorPoolStrategy(
                    min_size=min(room, self.workers or room), max_size=self.workers
                ),
            )  # fmt: skip
        yield from _told(mapped, watch)


def _told(mapped: Any, watch: _Watch) -> Generator[Any]:  # noqa: ANN401 -- of Ray's type
    """Yield what is made, or raise what was raised over there."""
    import ray.data

    # closed while there is a connection: Ray ends a process whose threads outlive that
    found = iter(mapped.iter_batches(batch_size=1, batch_format="pyarrow", prefetch_batches=0))
    try:
        with closing(found) as batches:
            for batch in batches:
                made = _unpacked(batch)
                if isinstance(made, _Raised):
                    # other workers may have paid for what they are waiting for: that is kept first
                    watch.end()
                    deque(batches, maxlen=0)
                    raise made.error
                yield made
    except (ray.exceptions.RayError, ray.data.exceptions.ExecutionTimeoutError) as error:
        raise EngineError(
            f"Ray gave up: {_words(error)}. What was finished is kept; the same command goes on, where"
            " workers have room (memory, GPU) for the model and a block of posts"
        ) from error


def _words(error: Exception) -> str:
    """Return what an error of Ray's says first, without the tracebacks of all processes on the way."""
    lines = [line.strip() for line in _COLOURS.sub("", str(error)).splitlines()]
    told = [line for line in lines if re.match(r"[\w.]+(Error|Exception): ", line)]
    return (told or lines or [type(error).__name__])[0].rstrip(".")


def _knock(address: str) -> None:
    """Open and close a connection to a cluster: where nobody answers, Ray tries for more than a minute.

    Raises:
        OSError, ValueError, OverflowError: Nobody answers there, not in Ray's protocol, or it is no address.
    """
    from ray._private.services import canonicalize_bootstrap_address

    if address == LOCAL:
        return
    client = "ray://"  # of Ray's other protocol, whose port is another one
    found = address if address.startswith(client) else canonicalize_bootstrap_address(address)
    host, _, port = (found or "").removeprefix(client).rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_KNOCK_SECONDS) as line:
            if os.environ.get("RAY_USE_TLS", "0").lower() in ("0", "false"):
                line.sendall(_GREETING)
                if line.recv(9, socket.MSG_WAITALL)[3:4] != _SETTINGS_FRAME:
                    raise ConnectionError("what answers there is no Ray")
    except OSError as error:
        raise ConnectionError(f"{host}:{port}: {error.strerror or error}") from error


class _Notes:
    """What reader, workers and driver of a stage tell each other: an actor."""

    def __init__(self) -> None:
        self._ending = False
        self._begun = Counter[_Work]()

    def end(self) -> None:
        """From now on no block is begun."""
        self._ending = True

    def ending(self) -> bool:
        return self._ending

    def begin(self, work: _Work) -> int:
        """Return how often it was begun before."""
        self._begun[work] += 1
        return self._begun[work] - 1

    def finish(self, work: _Work) -> None:
        """Forget an item, or a block and its items."""
        place, item = work
        for one in [one for one in self._begun if one == work or (item == _WHOLE and one[0] == place)]:
            del self._begun[one]


class _Watch:
    """A handle of `_Notes`, to be sent to other processes."""

    def __init__(self, notes: Any) -> None:  # noqa: ANN401 -- an actor's handle
        self._notes = notes

    def end(self) -> None:
        self._ask(self._notes.end)

    def ending(self) -> bool:
        return bool(self._ask(self._notes.ending))

    def tries(self, place: int, item: int = _WHOLE) -> int:
        return int(self._ask(self._notes.begin, (place, item)))

    def finish(self, place: int, item: int = _WHOLE) -> None:
        self._notes.finish.remote((place, item))  # in order with the calls that wait

    @staticmethod
    def _ask(method: Any, *words: object) -> Any:  # noqa: ANN401 -- of an actor
        import ray

        return ray.get(method.remote(*words))


def _new_watch() -> _Watch:
    """Return what lies on the command's own node, without which the stage cannot go on anyhow."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    # killed, it begins anew and knows nothing: at worst a block is tried more often, or begun in vain
    always = {"max_restarts": -1, "max_task_retries": -1}
    return _Watch(ray.remote(num_cpus=0, scheduling_strategy=here, **always)(_Notes).remote())


def _datasource(source: Source[Block], watch: _Watch) -> Any:  # noqa: ANN401 -- of Ray's type
    """Return the blocks of `source` as Ray Data reads them: by one task, in order, as they are asked for."""
    from ray.data.block import BlockMetadata
    from ray.data.datasource import Datasource, ReadTask

    class Blocks(Datasource):  # type: ignore[misc]
        supports_distributed_reads = False  # what is read lies where the command was given

        def estimate_inmemory_data_size(self) -> None:
            return None

        def get_read_tasks(self, *_: object, **__: object) -> list[Any]:
            return [ReadTask(lambda: _read(source, watch), BlockMetadata(None, None, None, None))]

    return Blocks()


def _read(source: Source[Any], watch: _Watch) -> Iterator[pa.Table]:
    """Yield the blocks, each with its place."""
    try:
        for place, block in enumerate(source()):
            if watch.ending():
                return
            yield _packed((place, block))
    except Exception as error:
        yield _packed((_WHOLE, _Raised(error)))


class _Raised:
    """An exception on its way to the driver as a value, behind the results before it."""

    def __init__(self, error: Exception) -> None:
        self.error = error
        error.add_note(f"on a worker: {traceback.format_exc()}")


class _Worker:
    """What an actor of the pool does with blocks."""

    def __init__(self, stage: Stage[Any, Any], rescue: Rescue[Any, Any] | None, watch: _Watch) -> None:
        self._rescue, self._watch = rescue, watch
        try:
            self._work: Callable[[Any], Any] = stage()
        except Exception as error:  # a model that cannot be opened is told as it would be in process
            raised = _Raised(error)
            self._work = lambda _: raised

    def __call__(self, batch: pa.Table) -> pa.Table:
        place, block = _unpacked(batch)
        if isinstance(block, _Raised):
            return _packed(block)
        if self._watch.ending():
            return _packed(None)
        try:
            return _packed(self._done(place, block))
        except Exception as error:
            return _packed(_Raised(error))
        finally:
            self._watch.finish(place)

    def _done(self, place: int, block: object) -> object:
        """Return a block's result; of one whose workers died before, by its items."""
        if self._rescue is None or self._watch.tries(place) < _TRIES:
            return self._work(block)
        found = []
        for item, alone in enumerate(self._rescue.split(block)):
            tries = self._watch.tries(place, item)
            found.append(self._rescue.lost(alone, _DIED) if tries >= _TRIES else self._work(alone))
            self._watch.finish(place, item)
        return self._rescue.join(found)


def _packed(value: object) -> pa.Table:
    """Return a table of one row: what crosses between our own processes has no other form in Arrow."""
    import pyarrow as pa

    return pa.table({_COLUMN: pa.array([pickle.dumps(value)], pa.large_binary())})


def _unpacked(table: pa.Table) -> Any:  # noqa: ANN401 -- whatever was packed
    return pickle.loads(table[_COLUMN][0].as_py())
