"""Engines: what generates the units of a bank; the one that does so in this process."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from gentransforms.bank.format.unit import Unit
from gentransforms.bank.generate.job import Job, UnitReport
from gentransforms.bank.generate.pipeline import make_units
from gentransforms.errors import ConfigError

__all__ = ["Engine", "Local", "check_number"]


@runtime_checkable
class Engine(Protocol):
    """Generates the units of a bank: pass any object with this method as ``engine=`` to `gentransforms.generate_bank`.

    An engine distributes units over threads, processes or machines; in each, ``gentransforms.bank.Local().make_units`` does the
    work. Units do not depend on each other, and writing one twice does no harm, so an engine may retry them. It passes the reports
    on as they are: a unit of nothing but NaN or infinity is `pending`, and the run decides about it.

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
        """Generate and write units; yield a report for each unit when it is on disk, or pending.

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
        check_number("workers", self.workers, whole=True)

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


def check_number(name: str, value: float | None, whole: bool) -> None:
    """Raise a ConfigError unless `value` is None, or a positive integer (`whole`), or a number that is not negative."""
    if value is None or (type(value) is int and value > 0):
        return
    if whole or isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
        raise ConfigError(f"{name}={value!r}: expected {'a positive integer' if whole else 'a number of 0 or more'}, or None")
