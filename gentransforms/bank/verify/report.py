"""The report of a verification, and the repair that it suggests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from gentransforms.bank.format.locking import locked
from gentransforms.bank.format.unit import INDEX
from gentransforms.errors import BankError

__all__ = ["BankReport", "Problem", "damaged_units", "remove_index", "remove_units"]

_SHOWN = 10  # of a kind

# Kinds of problems that `repair` leaves alone: there is nothing to remove, or intact files could be lost.
_FOREIGN = ("settings", "plan", "keys")
_REPAIRS = {"copy": "restore bank.json or its copy", "index": "rebuild the index"}
_NOT_REPAIRED = ("missing", "manifest", "copy", "index", *_FOREIGN)


class Problem(NamedTuple):
    """One problem of a bank.

    Attributes:
        unit: name of the unit, or of the file of an export; empty for a problem of the whole bank.
        kind: one of manifest, copy, missing, sidecar, settings, size, checksum, arrow, rows, order, duplicate, variant, seed, image,
            plan, keys and index.
        text: what was found, and what was expected.
    """

    unit: str
    kind: str
    text: str


@dataclass(frozen=True)
class BankReport:
    """The result of `verify_bank`.

    Attributes:
        path: directory of the bank.
        units: number of units that were checked; of an export, number of Parquet files.
        rows: number of rows in them.
        images: number of images that were decoded.
        partials: number of unfinished files that killed processes left behind; they do no harm.
        problems: all problems that were found.
        removed: names of the units that `repair` removed.
        index_rebuilt: whether `repair` rebuilt the index of the bank.
        manifest_repaired: whether `repair` wrote ``bank.json`` from its copy, or the copy anew.
        exported: whether this is an export, which consists of Parquet files.

    Example:
        >>> print(BankReport("bank", units=1, rows=10, images=10, problems=[Problem("unit-0", "checksum", "it differs")]))
        bank: 1 unit, 10 rows, 10 images decoded
        checksum: unit-0: it differs
        1 problem
    """

    path: str
    units: int = 0
    rows: int = 0
    images: int = 0
    partials: int = 0
    problems: list[Problem] | tuple[Problem, ...] = ()
    removed: tuple[str, ...] = ()
    index_rebuilt: bool = False
    manifest_repaired: bool = False
    exported: bool = False
    command: str = "generate"

    @property
    def ok(self) -> bool:
        """Whether there are no problems."""
        return not self.problems

    @property
    def advice(self) -> str:
        """What to do about the problems; empty if there are none."""
        kinds = {problem.kind for problem in self.problems}
        if not kinds:
            return ""
        if self.exported:
            return "download the damaged files again, or export the bank again"
        if "manifest" in kinds:
            return "fix bank.json first, as described above; without it, --repair removes nothing"
        if kinds <= {"index", "copy"}:
            return " and ".join(text for kind, text in _REPAIRS.items() if kind in kinds) + " with --repair"
        steps = []
        if not kinds.isdisjoint(_FOREIGN):
            steps.append(
                "move units with other settings away (another run wrote them, or one with other threads), which --repair does not do"
            )
        if set(damaged_units(self.problems)) - set(self.removed):
            steps.append("remove damaged units with --repair")
        again = f"run {self.command} again"
        return ", ".join([*steps, f"then {again}"]) if steps else f"{again}, which makes the missing units"

    def __str__(self) -> str:
        units = _count(self.units, "file" if self.exported else "unit")
        lines = [f"{self.path}: {units}, {_count(self.rows, 'row')}, {_count(self.images, 'image')} decoded"]
        if self.partials:
            lines.append(f"{_count(self.partials, 'unfinished file')} left behind by a killed process; they do no harm")
        shown: Counter[str] = Counter()
        for problem in self.problems:
            shown[problem.kind] += 1
            if shown[problem.kind] <= _SHOWN:
                lines.append(": ".join(part for part in (problem.kind, problem.unit, problem.text) if part))
        lines += [f"{kind}: … and {count - _SHOWN:,} more" for kind, count in shown.items() if count > _SHOWN]
        lines.append(_count(len(self.problems), "problem") if self.problems else "no problem")
        if self.removed:
            lines.append(f"{_count(len(self.removed), 'unit')} removed: run {self.command} with the settings of this bank again")
        if self.index_rebuilt:
            lines.append("the index was wrong and has been rebuilt")
        if self.manifest_repaired:
            lines.append("bank.json and its copy differed; the damaged one has been written anew")
        return "\n".join(lines)


def damaged_units(problems: Sequence[Problem]) -> list[str]:
    """Return the names of the units that `repair` removes, in order.

    Example:
        >>> damaged_units([Problem("unit-1", "size", "cut"), Problem("unit-0", "image", "no"), Problem("unit-0", "settings", "others")])
        ['unit-1']
    """
    if any(problem.kind == "manifest" for problem in problems):
        return []  # without the manifest, it is unknown what is damaged
    spared = {problem.unit for problem in problems if problem.kind in _NOT_REPAIRED}
    return sorted({problem.unit for problem in problems} - spared)


def remove_units(directory: Path, names: Sequence[str], damaged: Callable[[str], bool]) -> tuple[str, ...]:
    """Remove the units that are still damaged; return their names.

    Args:
        directory: directory of the bank, which other processes may be filling.
        names: names of units that were found damaged, perhaps some time ago.
        damaged: called for each with the bank's lock held, so that no process can replace the unit meanwhile; returns whether it
            is still damaged.

    Raises:
        BankError: if files cannot be removed.

    Example:
        >>> import tempfile
        >>> remove_units(Path(tempfile.mkdtemp()), ["unit-000000000-000000002"], lambda name: False)
        ()
    """
    removed = []
    for name in names:
        try:
            with locked(directory):
                if not damaged(name):
                    continue
                (directory / INDEX).unlink(missing_ok=True)  # it describes the unit that is removed
                for suffix in (".arrow", ".json"):
                    (directory / f"{name}{suffix}").unlink(missing_ok=True)
                removed.append(name)
        except OSError as error:
            raise BankError(f"{directory / name}: cannot be removed: {error.strerror or error}: fix it and repair again") from error
    return tuple(removed)


def remove_index(directory: Path) -> None:
    """Remove the index of a bank, which can be opened without it.

    Raises:
        BankError: if it cannot be removed.
    """
    try:
        with locked(directory):
            (directory / INDEX).unlink(missing_ok=True)
    except OSError as error:
        raise BankError(f"{directory / INDEX}: cannot be removed: {error.strerror or error}: fix it and repair again") from error


def _count(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'' if number == 1 else 's'}"
