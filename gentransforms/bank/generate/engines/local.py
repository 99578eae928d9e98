"""What an engine is, and the engine that generates units in this process."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from gentransforms.bank.format.unit import Unit
from gentransforms.bank.generate.pipeline import Job, UnitReport, make_units
from gentransforms.errors import ConfigError

__all__ = ["Engine", "Local", "check_number"]


@runtime_checkable
class Engine(Protocol):
    """What generates the units of a bank: pass any object with this method as ``engine=`` of `gentransforms.generate_bank`.

    An engine distributes units over threads, processes or machines; in each, ``gentransforms.bank.Local().make_units`` does the
    work. Units do not depend on each other, and writing one twice does no harm, so an engine may try one again.

    An engine that moves the generator to another kind of device has an attribute ``device``, such as ``"cuda"``; else the
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
        """Generate and write units; yield the report of each when it is on disk.

        Args:
            job: what to generate from what; it can be pickled.
            units: those that are missing.
            on_images: to be called with the number of images generated, every now and then, for the progress display.
            stopped: returns True once the user has pressed Ctrl-C: then begin no further unit.
        """
        ...


@dataclass(frozen=True)
class Local:
    """Generate units in this process.

    Args:
        workers: threads that read, and as many that encode; by default as many as this process has cores, at most 8.

    Raises:
        ConfigError: if `workers` is not a positive integer or None.
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
    """Raise a ConfigError unless `value` is None or a number: positive and whole, or not negative."""
    if value is None or (type(value) is int and value > 0):
        return
    if whole or isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
        raise ConfigError(f"{name}={value!r}: expected {'a positive integer' if whole else 'a number from 0'} or None")
