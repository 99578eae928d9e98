"""The engine that generates the units of a bank in the actors of a Ray cluster."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gentransforms import errors
from gentransforms.bank.format.unit import Unit
from gentransforms.bank.generate.actor import FAILED, UnitMaker, decode
from gentransforms.bank.generate.board import DEATHS, GIVEN_UP, MAKE, Board, Span
from gentransforms.bank.generate.engines import check_number
from gentransforms.bank.generate.job import Job, UnitReport
from gentransforms.errors import BankError, ConfigError, GentransformsError

__all__ = ["Ray"]

# A run ends early if more units by this number are given up than completed: then the fault is not in single images.
_HOPELESS = 3
_NAMED = 5  # units that an error names


@dataclass(frozen=True)
class Ray:
    """Generate units in the actors of a Ray cluster: the one that is initialised, or else one that is joined or started.

    An actor or worker that dies is restarted, and its unit is generated again. A unit that kills three is given up: all others are
    generated, and an error names it. A node that dies does no harm. After Ctrl-C, each actor finishes its unit.

    The source and the directory of the bank must be reachable under the same paths on every node; relative paths are relative to
    the working directory of this process.

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
            check_number(name, getattr(self, name), whole=True)
        for name in ("gpus", "cpus"):
            check_number(name, getattr(self, name), whole=False)
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
            BankError: at the end, if units killed their workers again and again, naming them; or if the cluster is lost.
            ConfigError: if the cluster has too few GPUs or CPUs for the actors.
            GentransformsError: any error that an actor raises.
        """
        import ray

        if not units:
            return
        if not ray.is_initialized():
            ray.init(log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
        gpus, cpus = self._choose_resources(job)
        count = min(self._count_actors(gpus, cpus), len(units))
        stopped = stopped or bool  # never
        done, received, given_up = 0, set[Unit](), list[Unit]()
        awaited: set[Unit] | None = None  # once the run stops: the units in progress
        with (
            _post_board() as board,
            _relay(stopped, board),
            _explain_ray(job.directory),
            contextlib.closing(self._answers(job, units, board, count, gpus, cpus)) as answers,
        ):
            for kind, place, content in answers:
                unit = Unit(*place)
                received.add(unit)
                if kind == FAILED:
                    name, text = content
                    raise getattr(errors, name, GentransformsError)(text)
                if kind == GIVEN_UP:
                    given_up.append(unit)
                if kind == MAKE:
                    done += 1
                    if on_images is not None:
                        on_images(content.images)
                    yield content
                if awaited is None and (stopped() or len(given_up) >= done + _HOPELESS):
                    awaited = {Unit(*place) for place in ray.get(board.stop.remote())}
                if awaited is not None and awaited <= received:
                    break  # Ray drops the others, which have not begun
        left = len(units) - done - len(given_up)
        others = f"{left} others did not begin, because this befell so many" if left else "all others are done"
        if given_up and stopped():
            warnings.warn(_describe(job, sorted(given_up), "the run was stopped"), stacklevel=2)
        elif given_up:
            raise BankError(_describe(job, sorted(given_up), others))

    def _answers(
        self, job: Job, units: Sequence[Unit], board: Any, count: int, gpus: float, cpus: float
    ) -> Generator[tuple[str, Span, Any], None, None]:
        """Yield the answers of the actors, one for each unit, in whatever order."""
        import ray.data

        context = ray.data.DataContext.get_current()
        bars, context.enable_progress_bars = context.enable_progress_bars, False  # our own shows images
        logger = logging.getLogger("ray.data")
        level = logger.level
        logger.setLevel(logging.ERROR)
        try:
            rows = ray.data.from_items([{"start": unit.start, "stop": unit.stop} for unit in units], override_num_blocks=len(units))
            made = rows.map_batches(
                UnitMaker,
                # Actors have other working directories, and paths may be relative to the one of this process.
                fn_constructor_args=([_share(job)], os.getcwd(), self.workers, board),  # noqa: PTH109
                batch_size=1,
                compute=ray.data.ActorPoolStrategy(size=count),
                num_gpus=gpus or None,
                num_cpus=None if gpus else cpus,
            )
            for row in made.iter_rows():
                yield decode(row["answer"])
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


@contextlib.contextmanager
def _post_board() -> Iterator[Any]:
    """Yield a board for the actors, on the node of this process, which a run does not outlive."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    board = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1, scheduling_strategy=here)(Board).remote()
    try:
        yield board
    finally:
        with contextlib.suppress(Exception):  # the cluster may be gone
            ray.kill(board)


@contextlib.contextmanager
def _relay(stopped: Callable[[], bool], board: Any, every: float = 0.2) -> Iterator[None]:
    """Tell the board as soon as the run is to stop: this process may wait long for the next report."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(every):
            if stopped():
                board.stop.remote()
                return

    thread = threading.Thread(target=watch, name="gentransforms-relay", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@contextlib.contextmanager
def _explain_ray(directory: Path) -> Iterator[None]:
    """Turn an error about a cluster that has lost too much into one that says what to do."""
    from ray import exceptions

    lost = (exceptions.RayActorError, exceptions.WorkerCrashedError, exceptions.NodeDiedError, exceptions.ObjectLostError,
            exceptions.LocalRayletDiedError)  # fmt: skip
    try:
        yield
    except lost as error:
        first = next(iter(str(error).strip().splitlines()), "")
        raise BankError(
            f"{directory}: the Ray cluster lost actors or nodes more often than it restarts them ({type(error).__name__}: {first}): "
            "see Ray's logs for the reason, and run the same command again to resume; completed units are intact"
        ) from error


def _describe(job: Job, units: Sequence[Unit], others: str) -> str:
    """Return the message about units that were given up."""
    keys = job.source.keys
    named = ", ".join(f"{unit.name} (sources {keys[unit.start]!r} to {keys[unit.stop - 1]!r})" for unit in units[:_NAMED])
    more = f" and {len(units) - _NAMED} more" if len(units) > _NAMED else ""
    return (
        f"{job.directory}: given up, because each killed its worker {DEATHS} times: {named}{more}; {others}. An image that crashes its "
        "decoder does so, or too little memory: run the same command with the engine 'local' to see which it is. Replace such an image "
        "by an intact copy, or by an empty file, which counts as failed; for memory, have fewer actors on a node. Then run the same "
        "command again: it makes only what is missing"
    )


def _share(job: Job) -> Any:
    """Put the job into Ray's object store with its generator on the CPU, and then move that back."""
    import ray

    device = job.generator.device
    job.generator.to("cpu")
    try:
        return ray.put(job)
    finally:
        job.generator.to(device)
