"""Stop a run whose generator makes nothing but NaN or infinity, before a bank without images is written."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace

from gentransforms.bank.generate.former import Former
from gentransforms.bank.generate.job import Job, UnitReport, Work
from gentransforms.bank.generate.variants import NOT_FINITE, Made
from gentransforms.bank.generate.writing import read_unit_former, write_work
from gentransforms.errors import GeneratorError

__all__ = ["Guard", "settle"]

# After this many sources without a single finite image, the generator is taken to be broken.
_ENOUGH = 8


class Guard:
    """Watches the variants of a process until one of them is proof that the generator works.

    Units are written from then on. If there is no proof by the end of a call of `make_units`, which may have been for a single
    unit, its units are pending: only `settle` sees those of all calls, threads, processes and machines.

    Args:
        job: the job of the run.

    Attributes:
        passed: whether there was proof.
    """

    def __init__(self, job: Job) -> None:
        self.job, self.passed = job, False
        self.sources: set[int] = set()  # those with nothing finite

    def check(self, batch: Sequence[Made], start: int, hopeless: Collection[int] = ()) -> None:
        """Check a batch; its first source has the index `start`. The `hopeless` sources, by index, prove nothing by NaN.

        Raises:
            GeneratorError: if the batch makes enough sources with nothing finite.
        """
        if self.passed:
            return
        self.sources |= {start + made.source for made in batch} - set(hopeless)
        self.passed = any(made.image is not None or made.reason != NOT_FINITE for made in batch)
        if not self.passed and len(self.sources) >= _ENOUGH:
            raise _broken(self.job, f"the first {len(self.sources)} sources")

    def hold(self, work: Work) -> UnitReport | None:
        """Return the report of a unit that has to wait for proof; None if it can be written."""
        suspects = tuple(i for i in range(work.unit.start, work.unit.stop) if i in self.sources)
        if self.passed or not suspects:
            return None
        return UnitReport(work.unit, pending=replace(work, former=None, encoded=None, suspects=suspects))


def find_hopeless(former: Former, keys: Sequence[str | int], start: int) -> set[int]:
    """Return the indices of those sources of a unit that is generated again which had nothing but NaN before: it is theirs, then."""
    if not former.again:
        return set()
    bad = {entry["key"] for entry in former.rejected if entry.get("reason") == NOT_FINITE} - {row.key for row in former.rows}
    return {start + i for i, key in enumerate(keys) if key in bad}


def settle(job: Job, reports: Iterable[UnitReport]) -> Iterator[UnitReport]:
    """Yield the reports of an engine; write the units that are pending, once another one shows that the generator works.

    Args:
        job: the job of the run.
        reports: the reports of a run, from whatever calls of `make_units` in whatever processes.

    Raises:
        GeneratorError: if many sources have nothing finite, and no unit has an image; or if at the end that is so of few, of which
            some have images in the bank. Then no pending unit is written.
        BankError: as `write_work`.
    """
    held: list[Work] = []
    proof = False
    for report in reports:
        if report.pending is None:
            proof = proof or report.images > 0 or any(entry.get("reason") != NOT_FINITE for entry in report.rejected)
            yield report
        else:
            held.append(report.pending)
        if not proof and (count := sum(len(work.suspects) for work in held)) >= _ENOUGH:
            raise _broken(job, f"the first {count} sources")
        while proof and held:
            yield write_work(job, held.pop(0))
    suspects = [job.source.keys[i] for work in held for i in work.suspects]
    formers = (read_unit_former(job, work.unit) for work in held)
    had = {row.key for former in formers if former.again for row in former.rows}
    if not had.isdisjoint(suspects):
        count = len(suspects)
        raise _broken(job, f"{count} {'source' if count == 1 else 'sources'}, although the bank has images of them")
    for work in held:  # too few to tell
        yield write_work(job, work)


def _broken(job: Job, sources: str) -> GeneratorError:
    return GeneratorError(
        f"{type(job.generator).__name__} made NaN or infinity in every image of {sources}, "
        f"{job.config.max_attempts} attempts each: nothing was written for them. Check the weights and the dtype of the "
        "generator: some networks overflow in float16, but not in bfloat16 and float32"
    )
