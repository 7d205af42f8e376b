"""Jobs on the actors of a Ray cluster; imported only where Ray is used.

The jobs go to every actor once, pickled without any network's tensors; then indices go there and
results come back. An actor that dies is begun again by Ray and repeats the job it was at.
"""

import io
import logging
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import ray
import torch
from ray import cloudpickle
from ray.exceptions import RayError, RayTaskError

from actkit.core.engines.settings import Ray, Travels
from actkit.core.errors import EngineError, InputError
from actkit.core.progress import track

T = TypeVar("T")
R = TypeVar("R")


def as_done(
    fn: Callable[[T], R], items: Sequence[T], engine: Ray, what: str
) -> Iterator[tuple[int, R]]:
    """Yield each item's index and `fn` of it as soon as it is done; see `core.engines`."""
    if not items:
        return
    pickled = _pickled((fn, items))
    settings = {
        "num_cpus": engine.num_cpus,
        "num_gpus": engine.num_gpus,
        "max_restarts": engine.num_restarts,
        "max_task_retries": -1,
    }
    with _connected():
        num = min(engine.num or len(items), _room(engine), len(items))
        worker, jobs = ray.remote(**settings)(_Worker), ray.put(pickled)
        actors = [worker.remote(max(1, int(engine.num_cpus))) for _ in range(num)]
        try:
            yield from track(_dispatched(actors, jobs, len(items)), what, len(items))
        finally:
            for actor in actors:
                ray.kill(actor)


def run_shares(fn: Callable[[int, int], R], engine: Ray, what: str) -> list[R]:
    """Return `fn(rank, world)` of every rank, the world being the number of workers."""
    with _connected():
        world = engine.num or _room(engine)
        done = dict(as_done(partial(_share, fn, world), range(world), engine, what))
    return [done[rank] for rank in range(world)]


def _share(fn: Callable[[int, int], R], world: int, rank: int) -> R:
    return fn(rank, world)


class _Worker:
    """An actor; it opens what the jobs need when it begins the first of them."""

    def __init__(self, num_threads: int) -> None:
        self._jobs: tuple[Callable[[Any], Any], Sequence[Any]] | None = None
        torch.set_num_threads(num_threads)

    def run(self, jobs: bytes, index: int) -> bytes:
        """Return the pickled result; arrays in Ray's own pickles could not be merged into."""
        if self._jobs is None:
            self._jobs = pickle.loads(jobs)
        fn, items = self._jobs
        result: bytes = cloudpickle.dumps(fn(items[index]))
        return result


def _dispatched(actors: Sequence[Any], jobs: Any, num_jobs: int) -> Iterator[tuple[int, Any]]:
    """Give each idle actor the next job; an actor without one gives up its place."""
    todo = iter(range(num_jobs))
    running: dict[Any, tuple[Any, int]] = {}

    def give(actor: Any) -> None:
        index = next(todo, None)
        if index is None:
            ray.kill(actor)  # one that lost its machine may be waiting for the place
        else:
            running[actor.run.remote(jobs, index)] = (actor, index)

    for actor in actors:
        give(actor)
    while running:
        (done,), _ = ray.wait(list(running))
        actor, index = running.pop(done)
        yield index, pickle.loads(_result(done, index))
        give(actor)


def _result(done: Any, index: int) -> bytes:
    try:
        result: bytes = ray.get(done)
        return result
    except RayTaskError as error:
        raise error.cause from error
    except RayError as error:
        reason = " ".join(str(error).split())
        raise EngineError(f"a worker must live through job {index}: {reason}") from error


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """Pickles a network as what opens it again; refuses what can be read only once."""

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, Travels) and not isinstance(obj, type):
            return obj.travels_as()
        if isinstance(obj, Iterator):
            raise InputError(
                "every worker reads the data from their beginning: pass a list, Samples or a "
                f"function that opens them, got {type(obj).__name__}"
            )
        return super().reducer_override(obj)


def _pickled(value: Any) -> bytes:
    file = io.BytesIO()
    try:
        _Pickler(file).dump(value)
    except (TypeError, AttributeError, pickle.PicklingError) as error:
        raise EngineError(f"what goes to the workers must be picklable: {error}") from error
    return file.getvalue()


def _room(engine: Ray) -> int:
    """Return how many workers the cluster's machines can hold at once."""
    need = {"CPU": engine.num_cpus, "GPU": engine.num_gpus}
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    room = sum(
        int(min(has.get(kind, 0) // num for kind, num in need.items() if num)) for has in machines
    )
    if not room:
        raise EngineError(
            f"a worker needs {engine.num_cpus} CPUs and {engine.num_gpus} GPUs of one machine, "
            f"no machine of the cluster's {len(machines)} has them"
        )
    return room


@contextmanager
def _connected() -> Iterator[None]:
    """Connect to $RAY_ADDRESS, a cluster on this machine, or a new one, which ends with the work.

    A connection of the user's own is used and left as it is.
    """
    started = not ray.is_initialized()
    if started:
        ray.init(logging_level=logging.WARNING, log_to_driver=False)
    try:
        yield
    finally:
        if started:
            ray.shutdown()
