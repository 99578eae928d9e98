"""Former units: those of a bank from before it was extended, whose images a run takes over.

When a bank is extended, its units are renamed to ``former-unit-….arrow``, so that they are missing for everyone who reads the bank. A
run that generates a unit takes over the rows of its former one and generates only the rest.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gentransforms.bank.format.locking import explain_write_error, locked, sync_directory, write_json
from gentransforms.bank.format.manifest import MANIFEST, Facts, hash_manifest, read_manifest
from gentransforms.bank.format.unit import FORMER, Row, Unit, is_done, list_entries, list_units, read_sidecar
from gentransforms.errors import BankError
from gentransforms.sources.arrow import arrow

__all__ = ["Former", "adopt_unit", "check_not_extended", "count_former_rows", "read_former", "remove_former", "retire_units"]


@dataclass
class Former:
    """The contents of a former unit; empty if there is none."""

    variants: int = 0
    rows: list[Row] = field(default_factory=list)
    failed: list[dict[str, Any]] = field(default_factory=list)
    rejected: list[dict[str, Any]] = field(default_factory=list)

    def tried(self, facts: Facts, max_attempts: int) -> dict[str | int, set[int]]:
        """Return, for each source that was read, the seed numbers that second and later attempts at its variants took."""
        found: dict[str | int, set[int]] = {}
        attempts = [(row.key, row.variant, row.attempt) for row in self.rows]
        attempts += [(entry["key"], entry["variant"], max_attempts - 1) for entry in self.rejected]
        for key, variant, last in attempts:
            found.setdefault(key, set()).update(facts.seed_number(variant, attempt) for attempt in range(1, last + 1))
        return found

    def merge(
        self, keys: Sequence[str | int], rows: list[Row], failed: list[dict[str, Any]], rejected: list[dict[str, Any]], variants: int
    ) -> None:
        """Add these contents to what a run made of the same unit, in order.

        A source that could be read then, and cannot be read now, keeps its images; the variants that it lacks count as rejected.
        """
        order = {key: i for i, key in enumerate(keys)}
        had = {row.key for row in self.rows} | {entry["key"] for entry in self.rejected}
        lost = [entry for entry in failed if entry["key"] in had]
        failed[:] = [entry for entry in failed if entry["key"] not in had]
        rejected += self.rejected
        rejected += [
            {"key": e["key"], "index": e["index"], "variant": v, "attempts": 0, "reason": f"its source could not be read: {e['reason']}"}
            for e in lost
            for v in range(self.variants, variants)
        ]
        rejected.sort(key=lambda entry: (order[entry["key"]], entry["variant"]))
        rows += self.rows
        rows.sort(key=lambda row: (order[row.key], row.variant))


def retire_units(directory: Path, facts: Facts) -> None:
    """Rename the units from before the bank was extended, and remove former units that have been taken over already."""
    earlier = {before.digest for before in facts.history}
    if not earlier:
        return
    try:
        with locked(directory):
            for unit in list_units(directory):
                if (read_sidecar(directory, unit) or {}).get("settings") in earlier:
                    for name in (unit.file, unit.sidecar):  # the Arrow file first: a unit exists if its Arrow file does
                        (directory / name).replace(directory / f"{FORMER}{name}")
            for unit in list_units(directory, FORMER):
                if is_done(directory, unit, facts.digest):
                    remove_former(directory, unit)
    except OSError as error:
        raise explain_write_error(error, directory) from error


def count_former_rows(directory: Path, unit: Unit) -> int:
    """Return the number of rows of a former unit; 0 if there is none, or it is incomplete."""
    sidecar = _read_former_sidecar(directory, unit)
    return 0 if sidecar is None else int(sidecar.get("rows", 0))


def adopt_unit(directory: Path, unit: Unit, facts: Facts) -> bool:
    """Take over a former unit that lacks nothing as it is; return whether there was one."""
    sidecar = _read_former_sidecar(directory, unit)
    if sidecar is None or facts.variants_at(sidecar.get("settings")) != facts.variants or list_entries(sidecar, "failed"):
        return False
    try:
        with locked(directory):
            check_not_extended(directory, facts)
            if not is_done(directory, unit, facts.digest):
                write_json(directory / unit.sidecar, {**sidecar, "settings": facts.digest})
                (directory / f"{FORMER}{unit.file}").replace(directory / unit.file)
                sync_directory(directory)
    except OSError as error:
        raise explain_write_error(error, directory) from error
    remove_former(directory, unit)
    return True


def read_former(directory: Path, unit: Unit, facts: Facts, prefix: str = FORMER) -> Former:
    """Return the contents of a former unit, or with an empty prefix of the unit itself; nothing if there is none, or it is damaged."""
    sidecar = _read_former_sidecar(directory, unit, prefix)
    variants = 0 if sidecar is None else facts.variants_at(sidecar.get("settings"))
    if sidecar is None or not variants:
        return Former()
    try:
        data = (directory / f"{prefix}{unit.file}").read_bytes()
    except FileNotFoundError:  # another process has removed it meanwhile
        return Former()
    if hashlib.sha256(data).hexdigest() != sidecar.get("sha256"):  # its rows would get a new checksum
        return Former()
    table = arrow().ipc.open_stream(data).read_all().to_pylist()
    rows = [Row(row["key"], row["variant"], row["seed"], row["attempt"], row["image"]["bytes"]) for row in table]
    return Former(variants, rows, list_entries(sidecar, "failed"), list_entries(sidecar, "rejected"))


def remove_former(directory: Path, unit: Unit) -> None:
    """Remove the two files of a former unit, if they exist."""
    for name in (unit.file, unit.sidecar):
        with contextlib.suppress(OSError):
            (directory / f"{FORMER}{name}").unlink()


def check_not_extended(directory: Path, facts: Facts) -> None:
    """Check, with the bank's lock held, that nobody has extended the bank since this run began.

    Raises:
        BankError: if another process has: its units may be newer than those of this run.
    """
    if hash_manifest(read_manifest(directory)) != facts.digest:
        raise BankError(
            f"{directory}: another process has extended the bank meanwhile, so this run wrote nothing more: run it again with the "
            f"settings and sources that {MANIFEST} has now"
        )


def _read_former_sidecar(directory: Path, unit: Unit, prefix: str = FORMER) -> dict[str, Any] | None:
    """Return the sidecar of a former unit whose Arrow file has the right size; None if there is none."""
    sidecar = read_sidecar(directory, unit, prefix)
    try:
        size = (directory / f"{prefix}{unit.file}").stat().st_size
    except OSError:
        return None
    return sidecar if sidecar is not None and sidecar.get("bytes") == size else None
