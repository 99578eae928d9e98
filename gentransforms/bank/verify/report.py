"""What is said of a bank that was verified."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["BankReport", "Problem", "damaged_units"]

_SHOWN = 10  # of a kind

# What `repair` leaves alone: there is nothing to remove, or removing could destroy what is good.
_FOREIGN = ("settings", "plan", "keys")
_NOT_REPAIRED = ("missing", "manifest", "index", *_FOREIGN)


class Problem(NamedTuple):
    """One thing that is wrong.

    Attributes:
        unit: the name of the unit, or of an export's file; empty if it is the bank.
        kind: one word: manifest, missing, sidecar, settings, size, checksum, arrow, rows, order, duplicate, variant, seed, image,
            plan, keys or index.
        text: what was found, and what was expected.
    """

    unit: str
    kind: str
    text: str


@dataclass(frozen=True)
class BankReport:
    """What `verify_bank` found.

    Attributes:
        path: of the bank.
        units: how many were looked at; of an export, Parquet files.
        rows: in them.
        images: how many were decoded.
        partials: files that a killed process left behind; they do no harm.
        problems: everything that is wrong.
        removed: names of the units that `repair` removed.
        index_rebuilt: whether `repair` built the bank's index anew.
        exported: whether it is an export, made of Parquet files.

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
    exported: bool = False

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    @property
    def advice(self) -> str:
        """What to do about it; empty if nothing is wrong."""
        kinds = {problem.kind for problem in self.problems}
        if not kinds:
            return ""
        if self.exported:
            return "fetch what is damaged again, or export the bank again"
        if "manifest" in kinds:
            return "see to bank.json first, as it says above; --repair removes nothing without it"
        if kinds == {"index"}:
            return "build the index anew with --repair"
        steps = []
        if not kinds.isdisjoint(_FOREIGN):
            steps.append("units of other settings were put here (by another run, or with other threads): move them out, --repair does not")
        if set(damaged_units(self.problems)) - set(self.removed):
            steps.append("remove damaged units with --repair")
        return ", ".join([*steps, "then run generate again"]) if steps else "run generate again, which makes what is missing"

    def __str__(self) -> str:
        units = _count(self.units, "file" if self.exported else "unit")
        lines = [f"{self.path}: {units}, {_count(self.rows, 'row')}, {_count(self.images, 'image')} decoded"]
        if self.partials:
            lines.append(f"{_count(self.partials, 'unfinished file')} left behind, which does no harm")
        shown: Counter[str] = Counter()
        for problem in self.problems:
            shown[problem.kind] += 1
            if shown[problem.kind] <= _SHOWN:
                lines.append(": ".join(part for part in (problem.kind, problem.unit, problem.text) if part))
        lines += [f"{kind}: … and {count - _SHOWN:,} more" for kind, count in shown.items() if count > _SHOWN]
        lines.append(_count(len(self.problems), "problem") if self.problems else "no problem")
        if self.removed:
            lines.append(f"{_count(len(self.removed), 'unit')} removed: run generate with the settings of this bank again")
        if self.index_rebuilt:
            lines.append("the index was wrong, and was built anew")
        return "\n".join(lines)


def damaged_units(problems: Sequence[Problem]) -> list[str]:
    """Return the names of the units that `repair` removes, in order.

    Example:
        >>> damaged_units([Problem("unit-1", "size", "cut"), Problem("unit-0", "image", "no"), Problem("unit-0", "settings", "others")])
        ['unit-1']
    """
    if any(problem.kind == "manifest" for problem in problems):
        return []  # without it nobody can say what is damaged
    spared = {problem.unit for problem in problems if problem.kind in _NOT_REPAIRED}
    return sorted({problem.unit for problem in problems} - spared)


def _count(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'' if number == 1 else 's'}"
