"""Plan a run: count its units and images, and estimate bytes and hours from a timed sample."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from gentransforms.bank.format.manifest import MANIFEST, Facts
from gentransforms.bank.format.unit import Unit, is_done, read_sidecar
from gentransforms.bank.generate.former import count_former_rows, may_retry
from gentransforms.bank.generate.job import Job
from gentransforms.bank.generate.pipeline import default_workers
from gentransforms.bank.generate.reading import new_buffer, read_block
from gentransforms.bank.generate.variants import make_block
from gentransforms.errors import BankError, ConfigError, OtherBankError

__all__ = ["Estimate", "Plan", "estimate", "make_plan", "parse_shard"]

_MANY = 50_000  # units, each of two files in one directory


@dataclass(frozen=True)
class Plan:
    """The units of a bank that belong to this run, and which of them are still to be generated."""

    directory: Path
    sources: int
    variants: int
    units: tuple[Unit, ...]
    left: tuple[Unit, ...]
    kept: int = 0  # images of a bank that is extended, which the units still to be generated take over

    @property
    def done(self) -> int:
        """Number of units that are on disk."""
        return len(self.units) - len(self.left)

    @property
    def images_left(self) -> int:
        """Number of images still to be generated."""
        return self.variants * sum(unit.stop - unit.start for unit in self.left) - self.kept

    @property
    def images(self) -> int:
        """Number of images of all its units."""
        return self.variants * sum(unit.stop - unit.start for unit in self.units)


@dataclass(frozen=True)
class Estimate:
    """Estimates from a timed sample of real batches."""

    images: int
    images_per_second: float
    bytes_per_image: float


def make_plan(directory: Path, facts: Facts, shard: tuple[int, int] = (0, 1), retry_failed: bool = False) -> Plan:
    """Return the plan of a run; every n-th unit belongs to a shard. Warns about very many units.

    Args:
        directory: directory of the bank; need not exist.
        facts: the facts of its manifest.
        shard: (i, n).
        retry_failed: whether units with unreadable sources, and those without any image, count as left.

    Raises:
        OtherBankError: if an existing unit was made with other settings, naming it.
    """
    units = tuple(facts.units()[shard[0] :: shard[1]])
    left, kept, earlier = [], 0, facts.earlier
    for unit in units:
        sidecar = read_sidecar(directory, unit) if is_done(directory, unit) else None
        if sidecar is not None and sidecar.get("settings") in earlier:  # a plan of an extension that has not begun
            kept, sidecar = kept + sidecar.get("rows", 0), None
        elif sidecar is None and earlier:
            kept += count_former_rows(directory, unit)
        if sidecar is not None and sidecar.get("settings") != facts.digest:
            raise OtherBankError(
                f"{directory / unit.file}: was made with other settings than this bank's, perhaps on another machine: move it and "
                f"{unit.sidecar} away, and run the same command again; or, if {MANIFEST} was changed, put the right one back"
            )
        if sidecar is None or (retry_failed and may_retry(sidecar)):
            left.append(unit)
    if facts.count > _MANY * facts.unit_size and len(left) == len(units):  # while unit_size can still be changed
        warnings.warn(
            f"{directory}: {-(-facts.count // facts.unit_size):,} units of two files each: listing and copying so many files takes "
            f"long; with unit_size={-(-facts.count // _MANY)} there are at most {_MANY:,} units",
            stacklevel=4,
        )
    return Plan(directory, facts.count, facts.variants, units, tuple(left), kept)


def parse_shard(shard: str | tuple[int, int] | None) -> tuple[int, int]:
    """Parse ``"i/n"``, i from 0 to n - 1, into (i, n); None means a single shard.

    Raises:
        ConfigError: if it cannot be parsed.

    Example:
        >>> parse_shard("2/3")
        (2, 3)
    """
    if shard is None:
        return 0, 1
    parts = shard.split("/") if isinstance(shard, str) else list(shard)
    try:
        index, count = (int(part) for part in parts)
    except ValueError:
        index, count = -1, 0
    if not 0 <= index < count:
        raise ConfigError(f"shard={shard!r}: expected 'i/n' with i from 0 to n - 1, such as '0/4'")
    return index, count


def estimate(job: Job, plan: Plan, seconds: float = 10.0, workers: int | None = None) -> Estimate:
    """Time real batches of the first units that are left for about `seconds`; the first batch is for warm-up only.

    Args:
        job: the job to time.
        plan: its units.
        seconds: for how long to time.
        workers: number of threads that read and encode; by default one per core, at most 8.

    Raises:
        BankError: if no image could be generated from the sources tried.
        ConfigError: if there are no units, because there are fewer units than shards.
    """
    if not plan.units:
        raise ConfigError(
            f"{plan.directory}: shard has no units, because there are fewer units than shards: use fewer shards, or a smaller unit_size"
        )
    images = size = 0
    spent, threads = 0.0, torch.get_num_threads()
    if job.config.threads is not None:
        torch.set_num_threads(job.config.threads)
    try:
        batches = _sample(job, plan, workers or default_workers())
        next(batches, None)
        while not images or spent < seconds:
            begun = time.perf_counter()
            encoded = next(batches, None)
            if encoded is None:
                break
            spent += time.perf_counter() - begun
            images += len(encoded)
            size += sum(map(len, encoded))
    finally:
        torch.set_num_threads(threads)
    if not images:
        raise BankError(
            f"{plan.directory}: nothing could be timed, because none of the first sources could be read, or every attempt was rejected"
        )
    return Estimate(images, images / spent, size / images)


def _sample(job: Job, plan: Plan, workers: int) -> Iterator[list[bytes]]:
    """Yield the encoded images of batches; at least two, repeating the first sources if there are too few."""
    with ThreadPoolExecutor(workers) as pool:
        for unit in (plan.left or plan.units) * 2:
            for start in range(unit.start, unit.stop, job.config.batch_size):
                places = range(start, min(start + job.config.batch_size, unit.stop))
                block = read_block(job.source, job.generator, places, pool, workers, new_buffer(job.generator, len(places)))
                images, inputs, reasons, _ = block.wait()
                if all(reasons):
                    continue
                for batch in make_block(job.generator, job.config, block.keys, images, inputs):
                    yield list(pool.map(job.encoding.encode, [made.image for made in batch if made.image is not None]))
