"""Generate units in this process: read, generate, encode and write concurrently, with bounded memory."""

from __future__ import annotations

import contextlib
import functools
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gentransforms.bank.config import BankConfig
from gentransforms.bank.format.images import Encoding
from gentransforms.bank.format.index import encode_marks
from gentransforms.bank.format.manifest import Facts
from gentransforms.bank.format.unit import Row, Unit, split_rejected, write_unit
from gentransforms.bank.generate.former import Former, adopt_unit, check_not_extended, read_former
from gentransforms.bank.generate.matching import check_marks, read_marks
from gentransforms.bank.generate.reading import BlockOfSources, new_buffer, read_block
from gentransforms.bank.generate.variants import NOT_FINITE, Made, make_block
from gentransforms.errors import GeneratorError
from gentransforms.generators.base import ImageGenerator
from gentransforms.sources.base import ImageSource

__all__ = ["Job", "UnitReport", "default_workers", "make_units"]

# Blocks of sources read ahead, batches waiting for the encoder, units waiting for the disk.
_AHEAD, _ENCODING, _WRITING = 2, 3, 2
# After this many sources without a single finite image, the generator is taken to be broken.
_ENOUGH = 8


@dataclass(frozen=True)
class Job:
    """Everything needed to generate units, in any process and on any machine. It can be pickled.

    Attributes:
        directory: directory of the bank.
        source: the source images.
        generator: the frozen generator, in eval mode.
        config: settings of the bank.
        device: type of the device on which the generator has to run, such as ``"cuda"``.
        facts: the facts of the bank's manifest.
        replace: whether existing units are written again.
    """

    directory: Path
    source: ImageSource
    generator: ImageGenerator
    config: BankConfig
    device: str
    facts: Facts
    replace: bool = False

    @property
    def encoding(self) -> Encoding:
        """How images are encoded."""
        return Encoding(self.config.image_format or "png", self.config.quality)


@dataclass
class UnitReport:
    """The result of generating a unit.

    Attributes:
        unit: the range of sources.
        written: whether it was written; False if another process wrote it in the meantime.
        images: number of its rows.
        bytes: total size of its encoded images.
        retried: number of variants that took more than one attempt.
        failed: sources that could not be read, and lack variants: dicts of ``key``, ``index`` and ``reason``.
        rejected: variants for which every attempt was rejected: dicts of ``key``, ``index``, ``variant``, ``attempts``, ``reason``.
    """

    unit: Unit
    written: bool = False
    images: int = 0
    bytes: int = 0
    retried: int = 0
    failed: list[dict[str, Any]] = field(default_factory=list)
    rejected: list[dict[str, Any]] = field(default_factory=list)


def make_units(
    job: Job,
    units: Sequence[Unit],
    *,
    workers: int | None = None,
    on_images: Callable[[int], object] | None = None,
    stopped: Callable[[], bool] | None = None,
) -> Generator[UnitReport, None, None]:
    """Generate and write units; yields a report for each unit when it is on disk.

    Args:
        job: the job to which the units belong.
        units: the units, in the order in which they are generated.
        workers: number of threads that read, and of those that encode; by default the number of cores, at most 8.
        on_images: called with the number of generated images after each batch.
        stopped: called before each unit; once it returns True, no further unit is started.

    Raises:
        BankError: if the disk is full, or memory runs out.
        GeneratorError: if the generator breaks its contract, or returns only NaN or infinity.
    """
    threads, workers = torch.get_num_threads(), workers or default_workers()
    guard = _Guard(job)
    held: list[tuple[Any, ...]] = []  # units are not written before the first image: the generator may be broken
    with _pool(workers, "read") as readers, _pool(workers, "encode") as encoders, _pool(1, "write") as writer:
        if job.config.threads is not None:
            torch.set_num_threads(job.config.threads)
        writing: deque[Future[UnitReport]] = deque()
        try:
            adopted = [unit for unit in units if job.facts.history and adopt_unit(job.directory, unit, job.facts)]
            for unit in adopted:
                yield UnitReport(unit, written=True)
            left = [unit for unit in units if unit not in adopted] if adopted else units
            for unit, blocks in _read_ahead(job, left, readers, workers):
                if stopped is not None and stopped():
                    break
                held.append((unit, *_make_unit(job, unit, blocks, encoders, workers, guard, on_images)))
                if guard.passed:
                    writing += [writer.submit(_write, job, *work) for work in held]
                    held = []
                while len(writing) > _WRITING or (writing and writing[0].done()):
                    yield writing.popleft().result()
            guard.check_retry([work[1] for work in held])
            writing += [writer.submit(_write, job, *work) for work in held]
            while writing:
                yield writing.popleft().result()
        except Exception:
            for future in writing:  # finished units are kept, whatever went wrong with the next one
                with contextlib.suppress(Exception):
                    future.result()
            raise
        finally:
            torch.set_num_threads(threads)


def _make_unit(
    job: Job,
    unit: Unit,
    blocks: Iterator[BlockOfSources],
    encoders: ThreadPoolExecutor,
    workers: int,
    guard: _Guard,
    on_images: Callable[[int], object] | None,
) -> tuple[Former, list[list[Made]], list[list[Future[list[bytes | None]]]], list[dict[str, Any]], list[bytes], float]:
    begun = time.perf_counter()
    former = read_former(job.directory, unit, job.facts)
    if job.replace and not former.variants:  # a retry loses nothing, whatever cannot be made now
        former = read_former(job.directory, unit, job.facts, prefix="")
    recorded = read_marks(job.directory, unit, job.facts, job.source.keys[unit.start : unit.stop])
    known_keys = former.known(job.facts, job.config.max_attempts)
    batches: list[list[Made]] = []
    encoded: list[list[Future[list[bytes | None]]]] = []
    failed: list[dict[str, Any]] = []
    marks: list[bytes] = []
    offset = 0
    for block in blocks:
        images, inputs, reasons, seen = block.wait()
        check_marks(job.directory, block.keys, seen, recorded)
        marks += [one or recorded.get(key, b"") for key, one in zip(block.keys, seen, strict=True)]
        places = range(unit.start + offset, unit.stop)
        failed += [{"key": key, "index": i, "reason": text} for key, i, text in zip(block.keys, places, reasons, strict=False) if text]
        if all(reasons):
            offset += len(block.keys)
            continue
        known = {i: known_keys[key] for i, key in enumerate(block.keys) if key in known_keys}
        for batch in make_block(job.generator, job.config, block.keys, images, inputs, stages=job.facts.stages(), known=known):
            kept = [made for made in batch if not reasons[made.source]]
            guard.check(kept, unit.start + offset)
            batches.append([replace(made, source=made.source + offset, image=None) for made in kept])
            # A few tasks for each thread: one task per image would cost a tenth of the encoding time.
            size = max(1, len(kept) // (4 * workers))
            images_of = [made.image for made in kept]
            encoded.append([encoders.submit(_encode, job.encoding, images_of[i : i + size]) for i in range(0, len(kept), size)])
            if len(encoded) > _ENCODING:  # bounds the memory of pixels waiting to be encoded
                for future in encoded[-_ENCODING - 1]:
                    future.result()
            if on_images is not None:
                on_images(sum(made.image is not None for made in kept))
        offset += len(block.keys)
    return former, batches, encoded, failed, marks, time.perf_counter() - begun


class _Guard:
    """Stop a run if the generator returns only NaN or infinity, before an empty bank is written."""

    def __init__(self, job: Job) -> None:
        self.job, self.passed = job, False
        self.sources: set[int] = set()

    def check(self, batch: Sequence[Made], start: int) -> None:
        """Check a batch; its first source has the index `start`."""
        if self.passed:
            return
        self.sources |= {start + made.source for made in batch}
        self.passed = any(made.image is not None or made.reason != NOT_FINITE for made in batch)
        if not self.passed and len(self.sources) >= _ENOUGH:
            raise self._error(f"the first {len(self.sources)} sources")

    def check_retry(self, formers: Sequence[Former]) -> None:
        """Check, at the end of a run of too few sources to tell, that those which have images in a unit that is tried again get some."""
        had = {row.key for former in formers if former.again for row in former.rows}
        if not self.passed and any(self.job.source.keys[place] in had for place in self.sources):
            count = len(self.sources)
            raise self._error(f"{count} {'source' if count == 1 else 'sources'}, although the bank has images of them")

    def _error(self, sources: str) -> GeneratorError:
        return GeneratorError(
            f"{type(self.job.generator).__name__} made NaN or infinity in every image of {sources}, "
            f"{self.job.config.max_attempts} attempts each: nothing was written for them. Check the weights and the dtype of the "
            "generator: some networks overflow in float16, but not in bfloat16 and float32"
        )


def _write(
    job: Job,
    unit: Unit,
    former: Former,
    batches: list[list[Made]],
    encoded: list[list[Future[list[bytes | None]]]],
    failed: list[dict[str, Any]],
    marks: list[bytes],
    seconds: float,
) -> UnitReport:
    keys = job.source.keys[unit.start : unit.stop]
    report = UnitReport(unit)
    rows: list[Row] = []
    rejected: list[dict[str, Any]] = []
    sources: dict[int, None] = {}  # those that have rows, in order
    images = (image for batch in encoded for future in batch for image in future.result())
    for made, image in zip((m for batch in batches for m in batch), images, strict=True):
        key = keys[made.source]
        if image is None:
            place = unit.start + made.source
            rejected.append({"key": key, "index": place, "variant": made.variant, "attempts": made.attempt, "reason": made.reason})
            continue
        report.retried += made.attempt > 0
        report.bytes += len(image)
        rows.append(Row(key, made.variant, made.seed, made.attempt, image))
        sources[made.source] = None
    report.images = len(rows)
    if job.facts.history or former.variants:  # several stages of variants, and what the unit had
        former.merge(keys, rows, failed, rejected, job.config.variants)
        had = {row.key for row in rows}
        sources = {i: None for i, key in enumerate(keys) if key in had}
    report.rejected, unread = split_rejected(rejected)
    report.failed = [*failed, *unread]
    facts = {
        "settings": job.facts.digest, "failed": failed, "rejected": rejected, "retried": report.retried,
        "seconds": round(seconds, 3), "marks": encode_marks([marks[i] for i in sorted(sources)]),
    }  # fmt: skip
    check = functools.partial(check_not_extended, job.directory, job.facts)
    report.written = write_unit(job.directory, unit, rows, job.source.key_type, facts, replaces=former.seen, check=check)
    return report


def _read_ahead(
    job: Job, units: Sequence[Unit], readers: ThreadPoolExecutor, threads: int
) -> Iterator[tuple[Unit, Iterator[BlockOfSources]]]:
    """Yield each unit with its blocks, while the following blocks, also of the next unit, are being read."""
    size = job.config.batch_size
    ranges = ((u, range(start, min(start + size, u.stop))) for u in units for start in range(u.start, u.stop, size))
    ahead: deque[tuple[Unit, BlockOfSources]] = deque()
    # Buffers are reused, because allocating memory of this size costs more than filling it.
    buffers: list[Tensor] = []

    def fill() -> None:
        while len(ahead) <= _AHEAD and (following := next(ranges, None)) is not None:
            unit, places = following
            buffer = buffers.pop() if buffers else new_buffer(job.generator, size)
            ahead.append((unit, read_block(job.source, job.generator, places, readers, threads, buffer)))

    def read_unit(unit: Unit) -> Iterator[BlockOfSources]:
        while ahead and ahead[0][0] == unit:
            block = ahead.popleft()[1]
            fill()
            yield block
            buffers.append(block.images if block.images._base is None else block.images._base)

    fill()
    for unit in units:
        yield unit, read_unit(unit)


def _encode(encoding: Encoding, images: Sequence[Tensor | None]) -> list[bytes | None]:
    return [None if image is None else encoding.encode(image) for image in images]


class _pool(ThreadPoolExecutor):
    """A pool of running threads in which torch starts no threads of its own; on exit, tasks that have not started are dropped."""

    def __init__(self, count: int, name: str) -> None:
        super().__init__(count, thread_name_prefix=f"gentransforms-{name}")
        ready = threading.Barrier(count + 1)
        try:
            for _ in range(count):
                self.submit(_single_threaded, ready)
            ready.wait()
        except BaseException:  # no more threads, or Ctrl-C: the threads that have started would wait forever
            ready.abort()
            self.shutdown(wait=False, cancel_futures=True)
            raise

    def __exit__(self, *_: object) -> bool | None:
        self.shutdown(wait=True, cancel_futures=True)
        return None


def default_workers() -> int:
    """Return the number of cores of this process, at most 8."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, 8)


def _single_threaded(ready: threading.Barrier) -> None:
    torch.get_num_threads()  # a thread copies the number of the process at first use; only then can it have its own
    torch.set_num_threads(1)
    ready.wait()
