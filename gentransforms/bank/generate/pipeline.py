"""Generate units in this process: read, generate, encode and write concurrently, with bounded memory."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from gentransforms.bank.format.images import Encoding
from gentransforms.bank.format.unit import Unit
from gentransforms.bank.generate.former import adopt_unit
from gentransforms.bank.generate.guard import Guard, find_hopeless
from gentransforms.bank.generate.job import Job, UnitReport, Work
from gentransforms.bank.generate.matching import check_marks, read_marks
from gentransforms.bank.generate.reading import BlockOfSources, new_buffer, read_block
from gentransforms.bank.generate.variants import Made, make_block
from gentransforms.bank.generate.writing import read_unit_former, write_work

__all__ = ["default_workers", "make_units"]

# Blocks of sources read ahead, batches waiting for the encoder, units waiting for the disk.
_AHEAD, _ENCODING, _WRITING = 2, 3, 2


def make_units(
    job: Job,
    units: Sequence[Unit],
    *,
    workers: int | None = None,
    on_images: Callable[[int], object] | None = None,
    stopped: Callable[[], bool] | None = None,
    guard: Guard | None = None,
) -> Generator[UnitReport, None, None]:
    """Generate and write units; yields a report for each unit when it is on disk, or pending.

    Args:
        job: the job to which the units belong.
        units: the units, in the order in which they are generated.
        workers: number of threads that read, and of those that encode; by default the number of cores, at most 8.
        on_images: called with the number of generated images after each batch.
        stopped: called before each unit; once it returns True, no further unit is started.
        guard: that of earlier calls in this process, if it has made units of this run before.

    Raises:
        BankError: if the disk is full, or memory runs out.
        GeneratorError: if the generator breaks its contract, or returns only NaN or infinity.
    """
    threads, workers = torch.get_num_threads(), workers or default_workers()
    guard = guard or Guard(job)
    held: list[Work] = []  # units are not written before the first image: the generator may be broken
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
                held.append(_make_unit(job, unit, blocks, encoders, workers, guard, on_images))
                if guard.passed:
                    writing += [writer.submit(write_work, job, work) for work in held]
                    held = []
                while len(writing) > _WRITING or (writing and writing[0].done()):
                    yield writing.popleft().result()
            pending = [report for work in held if (report := guard.hold(work)) is not None]
            waiting = {report.unit for report in pending}
            writing += [writer.submit(write_work, job, work) for work in held if work.unit not in waiting]
            while writing:
                yield writing.popleft().result()
            yield from pending
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
    guard: Guard,
    on_images: Callable[[int], object] | None,
) -> Work:
    begun = time.perf_counter()
    former = read_unit_former(job, unit)
    recorded = read_marks(job.directory, unit, job.facts, job.source.keys[unit.start : unit.stop])
    hopeless = find_hopeless(former, job.source.keys[unit.start : unit.stop], unit.start)
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
            guard.check(kept, unit.start + offset, hopeless)
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
    return Work(unit, former, batches, encoded, failed, marks, time.perf_counter() - begun)


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
