"""Jobs run here in their order, shares are one, and what an engine needs is told."""

import pytest

from actkit.core.engines import engine as engines
from actkit.core.engines.engine import as_done, run_jobs, run_shares
from actkit.core.engines.settings import Ray
from actkit.core.errors import EngineError


def test_local_jobs_run_one_after_the_other() -> None:
    begun: list[int] = []

    def job(item: int) -> int:
        begun.append(item)
        return 10 * item

    done = as_done(job, [3, 1, 2])
    assert next(done) == (0, 30) and begun == [3]
    assert list(done) == [(1, 10), (2, 20)]
    assert run_jobs(job, []) == []


def test_the_local_engine_has_one_share() -> None:
    assert run_shares(lambda rank, world: (rank, world)) == [(0, 1)]


def test_what_an_engine_needs_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "find_spec", lambda _: None)
    for engine in ("ray", Ray(2)):
        with pytest.raises(EngineError, match=r"ray and it is not installed; run: pip install ray"):
            run_jobs(abs, [1], engine)
    with pytest.raises(EngineError, match="must be one of local, ray, got 'slurm'"):
        run_shares(divmod, "slurm")
    for wrong in ({"num": 0}, {"num_cpus": 0}, {"num_gpus": -1}):
        with pytest.raises(EngineError, match="at least one worker with more than 0 CPUs, got"):
            Ray(**wrong)
