"""The same units on a Ray cluster: actors that hold the generator once, each making whole units."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Callable, Generator, Sequence
from dataclasses import asdict
from typing import Any

from gentransforms import errors
from gentransforms.bank.format.unit import Unit
from gentransforms.bank.generate.pipeline import Job, UnitReport, make_units
from gentransforms.errors import ConfigError, GentransformsError

__all__ = ["make_units_on_ray"]


class _UnitMaker:
    """What an actor holds: the job, its generator on the actor's device."""

    def __init__(self, handle: Any, directory: str) -> None:
        import ray

        with contextlib.suppress(OSError):  # a node without it needs absolute paths
            os.chdir(directory)
        self.job: Job = ray.get(handle[0])
        self.job.generator.to(self.job.settings["device"])

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        """Make the units of a batch; return a report of each as JSON, or an error of ours."""
        units = [Unit(int(start), int(stop)) for start, stop in zip(batch["start"], batch["stop"], strict=True)]
        try:
            reports = [asdict(report) for report in make_units(self.job, units)]
        except GentransformsError as error:  # Ray would wrap it into one of its own, and try again
            reports = [{"error": type(error).__name__, "text": str(error)}]
        return {"json": [json.dumps(report) for report in reports]}


def make_units_on_ray(
    job: Job,
    units: Sequence[Unit],
    *,
    actors: int | None = None,
    gpus: float | None = None,
    cpus: float | None = None,
    on_images: Callable[[int], object] | None = None,
    stopped: Callable[[], bool] | None = None,
) -> Generator[UnitReport, None, None]:
    """Make units on the actors of a Ray cluster; yields a report as each is on disk.

    A killed actor or worker is started again, and its unit made again: units are idempotent. Sources and the bank's
    directory must be reachable under the same paths on every node; relative ones are those of this process. Uses the Ray
    that is initialised, else joins or starts one.

    Args:
        job: what to make of what.
        units: those to make.
        actors: how many; one for each GPU of the cluster, or one for each machine with CPUs, by default.
        gpus: of each actor; 1 for a CUDA generator by default.
        cpus: of each actor; the bank's thread count by default.
        on_images: called with the number of images of each unit that is done.
        stopped: once it says True, no more reports are awaited.

    Raises:
        ConfigError: if the cluster has not what the actors need.
        GentransformsError: what `make_units` raises in an actor.
    """
    import ray
    import ray.data

    if not units:
        return
    if not ray.is_initialized():
        ray.init(log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False  # ours counts images
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    gpus = (1.0 if job.settings["device"] == "cuda" else 0.0) if gpus is None else gpus
    if gpus and cpus is not None:
        raise ConfigError(f"cpus_per_actor={cpus!r}: Ray's actors are placed by their GPUs or by their CPUs: leave it out")
    cpus = (0.0 if gpus else float(job.threads or 1)) if cpus is None else cpus
    count = _count(actors, gpus, cpus)
    handle = _shared(job)
    rows = ray.data.from_items([{"start": unit.start, "stop": unit.stop} for unit in units], override_num_blocks=len(units))
    made = rows.map_batches(
        _UnitMaker,
        # The nodes of a cluster run elsewhere, and paths may be relative to where the user is.
        fn_constructor_args=([handle], os.getcwd()),  # noqa: PTH109
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=count),
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


def _shared(job: Job) -> Any:
    """Put the job into Ray's store, its generator on the CPU; then bring that back to where it was."""
    import ray

    device = job.generator.device
    job.generator.to("cpu")
    try:
        return ray.put(job)
    finally:
        job.generator.to(device)


def _count(actors: int | None, gpus: float, cpus: float) -> int:
    import ray

    have: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    for name, need, there in (("GPUs", gpus, have.get("GPU", 0.0)), ("CPUs", cpus, have.get("CPU", 0.0))):
        if need * (actors or 1) > there:
            raise ConfigError(
                f"{actors or 1} actors with {need:g} {name} each: the Ray cluster has {there:g}: "
                f"ask for fewer actors, fewer {name} of each, or add nodes"
            )
    if actors is not None:
        return actors
    return max(1, int(have.get("GPU", 0.0) // gpus if gpus else have.get("CPU", 0.0) // cpus))
