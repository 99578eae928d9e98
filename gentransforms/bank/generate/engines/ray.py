"""The engine for Ray clusters: actors that hold the generator once, and generate whole units."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Callable, Generator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from gentransforms import errors
from gentransforms.bank.format.unit import Unit
from gentransforms.bank.generate.engines.local import check_number
from gentransforms.bank.generate.pipeline import Job, UnitReport, make_units
from gentransforms.errors import ConfigError, GentransformsError

__all__ = ["Ray"]


@dataclass(frozen=True)
class Ray:
    """Generate units on the actors of a Ray cluster: the one that is initialised, else one that is joined or started.

    An actor or worker that dies is started again, and its unit generated again. The source and the bank's directory must be
    reachable under the same paths on every node; relative ones are those of this process.

    Args:
        actors: how many, each of which holds the generator once; by default as many as the cluster's GPUs or CPUs allow.
        gpus: of each actor; by default 1 for a generator on CUDA. With more than 0 the generator runs on CUDA there, wherever
            it is here.
        cpus: of each actor that has no GPUs; by default the bank's threads.
        workers: threads that read, and as many that encode, in each actor; by default as many as it has cores, at most 8.

    Raises:
        ConfigError: if a number is out of range, or both `gpus` and `cpus` are given.
    """

    actors: int | None = None
    gpus: float | None = None
    cpus: float | None = None
    workers: int | None = None

    def __post_init__(self) -> None:
        for name in ("actors", "workers"):
            check_number(name, getattr(self, name), whole=True)
        for name in ("gpus", "cpus"):
            check_number(name, getattr(self, name), whole=False)
        if self.gpus and self.cpus is not None:
            raise ConfigError(f"cpus={self.cpus!r}: Ray's actors are placed by their GPUs or by their CPUs: leave it out")

    @property
    def device(self) -> str | None:
        """``"cuda"`` if the actors have GPUs; None if the generator runs where it is."""
        return "cuda" if self.gpus else None

    def make_units(
        self,
        job: Job,
        units: Sequence[Unit],
        *,
        on_images: Callable[[int], object] | None = None,
        stopped: Callable[[], bool] | None = None,
    ) -> Generator[UnitReport, None, None]:
        """Generate and write units; see `gentransforms.bank.Engine`.

        Raises:
            ConfigError: if the cluster lacks what the actors need.
            GentransformsError: whatever an actor raised.
        """
        import ray
        import ray.data

        if not units:
            return
        if not ray.is_initialized():
            ray.init(log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
        gpus, cpus = self._resources(job)
        count = self._count(gpus, cpus)
        context = ray.data.DataContext.get_current()
        bars, context.enable_progress_bars = context.enable_progress_bars, False  # ours counts images
        logger = logging.getLogger("ray.data")
        level = logger.level
        logger.setLevel(logging.ERROR)
        try:
            rows = ray.data.from_items([{"start": unit.start, "stop": unit.stop} for unit in units], override_num_blocks=len(units))
            made = rows.map_batches(
                _UnitMaker,
                # The nodes of a cluster run elsewhere, and paths may be relative to where the user is.
                fn_constructor_args=([_share(job)], os.getcwd(), self.workers),  # noqa: PTH109
                batch_size=1,
                compute=ray.data.ActorPoolStrategy(size=min(count, len(units))),
                num_gpus=gpus or None,
                num_cpus=None if gpus else cpus,
            )
            for row in made.iter_rows():
                told = json.loads(row["json"])
                if "error" in told:
                    raise getattr(errors, told["error"], errors.GentransformsError)(told["text"])
                report = UnitReport(**told | {"unit": Unit(**told["unit"])})
                if on_images is not None:
                    on_images(report.images)
                yield report
                if stopped is not None and stopped():
                    return
        finally:
            context.enable_progress_bars = bars
            logger.setLevel(level)

    def _resources(self, job: Job) -> tuple[float, float]:
        """Return GPUs and CPUs of each actor; one of the two is 0."""
        gpus = (1.0 if job.device == "cuda" else 0.0) if self.gpus is None else self.gpus
        if gpus:
            return gpus, 0.0
        return 0.0, float(job.config.threads or 1) if self.cpus is None else self.cpus

    def _count(self, gpus: float, cpus: float) -> int:
        import ray

        have: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        for name, need, there in (("GPUs", gpus, have.get("GPU", 0.0)), ("CPUs", cpus, have.get("CPU", 0.0))):
            if need * (self.actors or 1) > there:
                raise ConfigError(
                    f"{self.actors or 1} actors with {need:g} {name} each: the Ray cluster has {there:g}: "
                    f"ask for fewer actors, fewer {name} of each, or add nodes"
                )
        if self.actors is not None:
            return self.actors
        per_actor, there = (gpus, have.get("GPU", 0.0)) if gpus else (cpus, have.get("CPU", 0.0))
        return max(1, int(there // per_actor)) if per_actor else 1


class _UnitMaker:
    """What an actor holds: the job, its generator on the actor's device."""

    def __init__(self, handle: Any, directory: str, workers: int | None) -> None:
        import ray

        with contextlib.suppress(OSError):  # a node without it needs absolute paths
            os.chdir(directory)
        self.job: Job = ray.get(handle[0])
        self.workers = workers
        self.job.generator.to(self.job.device)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        """Generate the units of a batch; return a report of each as JSON, or an error of ours."""
        units = [Unit(int(start), int(stop)) for start, stop in zip(batch["start"], batch["stop"], strict=True)]
        try:
            reports = [asdict(report) for report in make_units(self.job, units, workers=self.workers)]
        except GentransformsError as error:  # Ray would wrap it into one of its own, and try again
            reports = [{"error": type(error).__name__, "text": str(error)}]
        return {"json": [json.dumps(report) for report in reports]}


def _share(job: Job) -> Any:
    """Put the job into Ray's store, its generator on the CPU; then bring that back to where it was."""
    import ray

    device = job.generator.device
    job.generator.to("cpu")
    try:
        return ray.put(job)
    finally:
        job.generator.to(device)
