"""Write a generated unit, together with what the bank already had of it."""

from __future__ import annotations

import functools
import itertools

from gentransforms.bank.format.index import encode_marks
from gentransforms.bank.format.unit import Row, Unit, split_rejected, write_unit
from gentransforms.bank.generate.former import Former, check_not_extended, read_former
from gentransforms.bank.generate.job import Job, UnitReport, Work

__all__ = ["read_unit_former", "write_work"]


def read_unit_former(job: Job, unit: Unit) -> Former:
    """Return what the bank has of a unit before it is generated."""
    former = read_former(job.directory, unit, job.facts)
    if job.replace and not former.variants:  # a retry loses nothing, whatever cannot be made now
        former = read_former(job.directory, unit, job.facts, prefix="")
    return former


def write_work(job: Job, work: Work) -> UnitReport:
    """Write a unit and return its report; waits for its images to be encoded.

    Raises:
        BankError: if the disk is full or cannot be written, or another process has extended the bank.
    """
    unit, failed = work.unit, work.failed
    former = read_unit_former(job, unit) if work.former is None else work.former
    keys = job.source.keys[unit.start : unit.stop]
    report = UnitReport(unit)
    rows: list[Row] = []
    rejected = []
    sources: dict[int, None] = {}  # those that have rows, in order
    made_in_order = [made for batch in work.batches for made in batch]
    pieces = (image for batch in work.encoded or () for future in batch for image in future.result())
    images = itertools.repeat(None, len(made_in_order)) if work.encoded is None else pieces
    for made, image in zip(made_in_order, images, strict=True):
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
        "seconds": round(work.seconds, 3), "marks": encode_marks([work.marks[i] for i in sorted(sources)]),
    }  # fmt: skip
    check = functools.partial(check_not_extended, job.directory, job.facts)
    report.written = write_unit(job.directory, unit, rows, job.source.key_type, facts, replaces=former.seen, check=check)
    return report
