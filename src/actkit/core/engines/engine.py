"""Engines: where jobs that do not depend on each other run, here or on a Ray cluster."""

from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from typing import TypeVar

from actkit.core.engines.settings import Ray
from actkit.core.errors import EngineError
from actkit.core.progress import track

T = TypeVar("T")
R = TypeVar("R")


def run_jobs(
    fn: Callable[[T], R], items: Sequence[T], engine: str | Ray = "local", what: str = "working"
) -> list[R]:
    """Return `fn` of every item, in the order of the items; see `as_done`.

    Example:
        >>> run_jobs(abs, [3, -1, -2])
        [3, 1, 2]
    """
    done = dict(as_done(fn, items, engine, what))
    return [done[index] for index in range(len(items))]


def as_done(
    fn: Callable[[T], R], items: Sequence[T], engine: str | Ray = "local", what: str = "working"
) -> Iterator[tuple[int, R]]:
    """Yield each item's index and `fn` of it, as soon as it is done.

    Args:
        fn: A function of one item; on Ray it and the items are pickled, a `Model` in them as what
            it was opened from.
        items: What the jobs are.
        engine: "local" for one after the other in this process; "ray", or `Ray` with settings:
            each idle worker takes the next one, and the job of a worker that died is run again.
        what: A few words in front of the bar.

    Raises:
        EngineError: An unknown engine, Ray is not installed, the cluster has no room, or a worker
            died too often. What `fn` raises is raised as it is.
    """
    ray = _ray(engine)
    if ray is None:
        return ((index, fn(item)) for index, item in enumerate(track(items, what)))
    from actkit.core.engines import on_ray

    return on_ray.as_done(fn, items, ray, what)


def run_shares(
    fn: Callable[[int, int], R], engine: str | Ray = "local", what: str = "working"
) -> list[R]:
    """Return `fn(rank, world)` of every rank: one piece of work in as many shares as workers.

    The local engine has one share. Errors are those of `as_done`.
    """
    ray = _ray(engine)
    if ray is None:
        return [fn(0, 1)]
    from actkit.core.engines import on_ray

    return on_ray.run_shares(fn, ray, what)


def check_engine(engine: str | Ray) -> None:
    """Refuse an engine before long work begins.

    Raises:
        EngineError: It is unknown, or Ray is not installed.
    """
    _ray(engine)


def _ray(engine: str | Ray) -> Ray | None:
    """Return the settings of the engine `ray`, None for the local one."""
    if engine == "local":
        return None
    if not (engine == "ray" or isinstance(engine, Ray)):
        raise EngineError(f"engine must be one of local, ray, got {engine!r}")
    if find_spec("ray") is None:
        raise EngineError("engine ray needs ray and it is not installed; run: pip install ray")
    return engine if isinstance(engine, Ray) else Ray()
