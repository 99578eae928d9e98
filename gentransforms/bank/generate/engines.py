"""Engines: what generates the units of a bank, in this process or in the actors of a Ray cluster."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol, runtime_checkable

from gentransforms import errors
from gentransforms.bank.format.unit import Unit
from gentransforms.bank.generate.pipeline import Job, UnitReport, make_units
from gentransforms.errors import ConfigError, GentransformsError

__all__ = ["Engine", "Local", "Ray"]


@runtime_checkable
class Engine(Protocol):
    """Generates the units of a bank: pass any object with this method as ``engine=`` to `gentransforms.generate_bank`.

    An engine distributes units over threads, processes or machines; in each, ``gentransforms.bank.Local().make_units`` does the
    work. Units do not depend on each other, and writing one twice does no harm, so an engine may retry them.

    An engine that moves the generator to another kind of device has an attribute ``device``, such as ``"cuda"``; otherwise the
    generator runs where it is.

    Example:
        >>> import tempfile, torch
        >>> from gentransforms.testing import FakeGenerator
        >>> class Halves:
        ...     def make_units(self, job, units, *, on_images, stopped):
        ...         for half in (units[::2], units[1::2]):
        ...             yield from Local().make_units(job, half, on_images=on_images, stopped=stopped)
        >>> from gentransforms.bank.generate.run import generate_bank
        >>> generate_bank([torch.rand(3, 8, 8)] * 4, tempfile.mkdtemp(), FakeGenerator(), engine=Halves(), unit_size=1).images
        40
    """

    def make_units(
        self, job: Job, units: Sequence[Unit], *, on_images: Callable[[int], object], stopped: Callable[[], bool]
    ) -> Iterator[UnitReport]:
        """Generate and write units; yield a report for each unit when it is on disk.

        Args:
            job: everything needed to generate units; it can be pickled.
            units: the missing units.
            on_images: call this with the number of images generated since the last call, for the progress display.
            stopped: returns True after the user has pressed Ctrl-C; then start no further unit.
        """
        ...


@dataclass(frozen=True)
class Local:
    """Generate units in this process.

    Args:
        workers: number of threads that read, and of threads that encode; by default one per core, at most 8.

    Raises:
        ConfigError: if `workers` is neither a positive integer nor None.
    """

    workers: int | None = None

    def __post_init__(self) -> None:
        _check_number("workers", self.workers, whole=True)

    def make_units(
        self,
        job: Job,
        units: Sequence[Unit],
        *,
        on_images: Callable[[int], object] | None = None,
        stopped: Callable[[], bool] | None = None,
    ) -> Generator[UnitReport, None, None]:
        """Generate and write units; see `Engine.make_units`."""
        return make_units(job, units, workers=self.workers, on_images=on_images, stopped=stopped)


@dataclass(frozen=True)
class Ray:
    """Generate units in the actors of a Ray cluster: the one that is initialised, or else one that is joined or started.

    An actor or worker that dies is restarted, and its unit is generated again. The source and the directory of the bank must be
    reachable under the same paths on every node; relative paths are relative to the working directory of this process.

    Args:
        actors: number of actors, each with its own copy of the generator; by default as many as the cluster's GPUs or CPUs allow.
        gpus: GPUs of each actor; by default 1 for a generator on CUDA. If more than 0, the generator runs on CUDA in the actors,
            wherever it is in this process.
        cpus: CPUs of each actor that has no GPUs; by default the bank's number of threads.
        workers: number of threads that read, and of threads that encode, in each actor; by default one per core, at most 8.

    Raises:
        ConfigError: if a number is out of range, or both `gpus` and `cpus` are given.
    """

    actors: int | None = None
    gpus: float | None = None
    cpus: float | None = None
    workers: int | None = None

    def __post_init__(self) -> None:
        for name in ("actors", "workers"):
            _check_number(name, getattr(self, name), whole=True)
        for name in ("gpus", "cpus"):
            _check_number(name, getattr(self, name), whole=False)
        if self.gpus and self.cpus is not None:
            raise ConfigError(f"cpus={self.cpus!r}: Ray places actors by GPUs or by CPUs, and gpus={self.gpus!r} is given too: omit one")

    @property
    def device(self) -> str | None:
        """``"cuda"`` if the actors have GPUs; otherwise None, and the generator runs on the kind of device where it is."""
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
            ConfigError: if the cluster has too few GPUs or CPUs for the actors.
            GentransformsError: any error that an actor raises.
        """
        import ray
        import ray.data

        if not units:
            return
        if not ray.is_initialized():
            ray.init(log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
        gpus, cpus = self._choose_resources(job)
        count = self._count_actors(gpus, cpus)
        context = ray.data.DataContext.get_current()
        bars, context.enable_progress_bars = context.enable_progress_bars, False  # our own shows images
        logger = logging.getLogger("ray.data")
        level = logger.level
        logger.setLevel(logging.ERROR)
        try:
            rows = ray.data.from_items([{"start": unit.start, "stop": unit.stop} for unit in units], override_num_blocks=len(units))
            made = rows.map_batches(
                _UnitMaker,
                # Actors have other working directories, and paths may be relative to the one of this process.
                fn_constructor_args=([_share(job)], os.getcwd(), self.workers),  # noqa: PTH109
                batch_size=1,
                compute=ray.data.ActorPoolStrategy(size=min(count, len(units))),
                num_gpus=gpus or None,
                num_cpus=None if gpus else cpus,
            )
            for row in made.iter_rows():
                result = json.loads(row["json"])
                if "error" in result:
                    raise getattr(errors, result["error"], errors.GentransformsError)(result["text"])
                report = UnitReport(**result | {"unit": Unit(**result["unit"])})
                if on_images is not None:
                    on_images(report.images)
                yield report
                if stopped is not None and stopped():
                    return
        finally:
            context.enable_progress_bars = bars
            logger.setLevel(level)

    def _choose_resources(self, job: Job) -> tuple[float, float]:
        """Return the GPUs and CPUs of each actor; one of the two is 0."""
        gpus = (1.0 if job.device == "cuda" else 0.0) if self.gpus is None else self.gpus
        if gpus:
            return gpus, 0.0
        return 0.0, float(job.config.threads or 1) if self.cpus is None else self.cpus

    def _count_actors(self, gpus: float, cpus: float) -> int:
        import ray

        available: dict[str, float] = ray.cluster_resources()
        for name, need, total in (("GPUs", gpus, available.get("GPU", 0.0)), ("CPUs", cpus, available.get("CPU", 0.0))):
            if need * (self.actors or 1) > total:
                raise ConfigError(
                    f"actors={self.actors or 1}, {name.lower()}={need:g}: the Ray cluster has only {total:g} {name}: "
                    f"request fewer actors or fewer {name} for each, or add nodes"
                )
        if self.actors is not None:
            return self.actors
        per_actor, total = (gpus, available.get("GPU", 0.0)) if gpus else (cpus, available.get("CPU", 0.0))
        return max(1, int(total // per_actor)) if per_actor else 1


class _UnitMaker:
    """An actor: holds the job, with its generator on the actor's device."""

    def __init__(self, handle: Any, directory: str, workers: int | None) -> None:
        import ray

        with contextlib.suppress(OSError):  # a node without this directory needs absolute paths
            os.chdir(directory)
        self.job: Job = ray.get(handle[0])
        self.workers = workers
        self.job.generator.to(self.job.device)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        """Generate the units of a batch; return their reports, or an error of this library, as JSON."""
        units = [Unit(int(start), int(stop)) for start, stop in zip(batch["start"], batch["stop"], strict=True)]
        try:
            reports = [asdict(report) for report in make_units(self.job, units, workers=self.workers)]
        except GentransformsError as error:  # Ray would wrap it in an error of its own and retry
            known = next(kind.__name__ for kind in type(error).__mro__ if hasattr(errors, kind.__name__))
            reports = [{"error": known, "text": str(error)}]
        return {"json": [json.dumps(report) for report in reports]}


def _share(job: Job) -> Any:
    """Put the job into Ray's object store with its generator on the CPU, and then move that back."""
    import ray

    device = job.generator.device
    job.generator.to("cpu")
    try:
        return ray.put(job)
    finally:
        job.generator.to(device)


def _check_number(name: str, value: float | None, whole: bool) -> None:
    """Raise a ConfigError unless `value` is None, or a positive integer (`whole`), or a number that is not negative."""
    if value is None or (type(value) is int and value > 0):
        return
    if whole or isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
        raise ConfigError(f"{name}={value!r}: expected {'a positive integer' if whole else 'a number of 0 or more'}, or None")
