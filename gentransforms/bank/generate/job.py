"""What an engine is given, a job, and what it returns: a report for each unit."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gentransforms.bank.config import BankConfig
from gentransforms.bank.format.images import Encoding
from gentransforms.bank.format.manifest import Facts
from gentransforms.bank.format.unit import Unit
from gentransforms.bank.generate.former import Former
from gentransforms.bank.generate.variants import Made
from gentransforms.generators.base import ImageGenerator
from gentransforms.sources.base import ImageSource

__all__ = ["Job", "UnitReport", "Work"]


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
        pending: set while the unit is not written, because all that was made until then is NaN or infinity. An engine passes such
            a report on as it is, pickled or not: the run writes the unit, or ends with an error, once it has enough of them.
    """

    unit: Unit
    written: bool = False
    images: int = 0
    bytes: int = 0
    retried: int = 0
    failed: list[dict[str, Any]] = field(default_factory=list)
    rejected: list[dict[str, Any]] = field(default_factory=list)
    pending: Work | None = field(default=None, repr=False)


@dataclass
class Work:
    """A unit that has been generated and is to be written.

    Attributes:
        unit: the range of sources.
        former: what the bank had of it; None if that is to be read when it is written.
        batches: its variants, without their pixels.
        encoded: their encoded images, in pieces; None if there is not one.
        failed: its sources that could not be read.
        marks: the mark of each of its sources.
        seconds: how long it took.
        suspects: indices of the sources of a pending unit that have nothing finite.
    """

    unit: Unit
    former: Former | None
    batches: list[list[Made]]
    encoded: list[list[Future[list[bytes | None]]]] | None
    failed: list[dict[str, Any]]
    marks: list[bytes]
    seconds: float
    suspects: tuple[int, ...] = ()
