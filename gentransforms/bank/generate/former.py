"""What a bank already has of a unit that a run generates: nothing of it is lost.

When a bank is extended, its units are renamed to ``former-unit-….arrow``, so that they are missing for everyone who reads the bank. A
run that generates a unit takes over the rows of its former one and generates only the rest. A run that generates a unit again, because
sources in it could not be read, takes over the rows of the sources that cannot be read now, and those of variants that are rejected now.
While it replaces the unit, it renames it in the same way, so that a kill at any moment leaves either a unit or a former one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gentransforms.bank.format.locking import explain_write_error, locked, sync_directory, write_json
from gentransforms.bank.format.manifest import MANIFEST, Facts, hash_manifest, read_manifest
from gentransforms.bank.format.unit import (
    FORMER,
    UNREAD,
    Row,
    Unit,
    is_done,
    is_unread,
    list_entries,
    list_units,
    read_sidecar,
    remove_former,
    set_aside,
)
from gentransforms.errors import BankError
from gentransforms.sources.arrow import arrow

__all__ = ["Former", "adopt_unit", "check_not_extended", "count_former_rows", "may_retry", "read_former", "retire_units"]


@dataclass
class Former:
    """The contents of a former unit; empty if there is none.

    Attributes:
        variants: number of variants that the bank had; 0 if there is no former unit.
        rows, failed, rejected: its contents, without variants that are lacking because their source could not be read.
        lacking: for each such source, the first of these variants.
        again: whether the whole unit is generated again, so that rows are taken over only where none could be made now.
        seen: SHA-256 of the unit that is generated again, as its sidecar has it.
    """

    variants: int = 0
    rows: list[Row] = field(default_factory=list)
    failed: list[dict[str, Any]] = field(default_factory=list)
    rejected: list[dict[str, Any]] = field(default_factory=list)
    lacking: dict[str | int, int] = field(default_factory=dict)
    again: bool = False
    seen: str = ""

    def known(self, facts: Facts, max_attempts: int) -> dict[str | int, tuple[int, set[int]]]:
        """Return, for each source whose rows are taken over, how many variants it has, and the seed numbers tried in vain for them."""
        if self.again:
            return {}
        tried: dict[str | int, set[int]] = {}
        attempts = [(row.key, row.variant, row.attempt) for row in self.rows]
        attempts += [(entry["key"], entry["variant"], max_attempts - 1) for entry in self.rejected]
        for key, variant, last in attempts:
            if variant < self.lacking.get(key, self.variants):
                tried.setdefault(key, set()).update(facts.seed_number(variant, attempt) for attempt in range(1, last + 1))
        return {key: (self.lacking.get(key, self.variants), numbers) for key, numbers in tried.items()}

    def merge(
        self, keys: Sequence[str | int], rows: list[Row], failed: list[dict[str, Any]], rejected: list[dict[str, Any]], variants: int
    ) -> None:
        """Add these contents to what a run made of the same unit, in order.

        A source that had rows, and cannot be read now, keeps them. The variants that it lacks become rejected ones that were not
        tried, from which `split_rejected` makes a failed source. A variant that had a row, and is rejected now, keeps it, too.
        """
        had_rows = {(row.key, row.variant) for row in self.rows}
        rejected[:] = [entry for entry in rejected if (entry["key"], entry["variant"]) not in had_rows]
        order = {key: i for i, key in enumerate(keys)}
        had = {row.key for row in self.rows} | {entry["key"] for entry in self.rejected}
        lost = [entry for entry in failed if entry["key"] in had]
        failed[:] = [entry for entry in failed if entry["key"] not in had]
        kept = {entry["key"] for entry in lost} if self.again else had
        there = {(row.key, row.variant) for row in rows} | {(entry["key"], entry["variant"]) for entry in rejected}
        rows += [row for row in self.rows if (row.key, row.variant) not in there]
        rejected += [entry for entry in self.rejected if entry["key"] in kept and (entry["key"], entry["variant"]) not in there]
        there = {(row.key, row.variant) for row in rows} | {(entry["key"], entry["variant"]) for entry in rejected}
        rejected += [
            {"key": entry["key"], "index": entry["index"], "variant": variant, "attempts": 0, "reason": UNREAD + entry["reason"]}
            for entry in lost
            for variant in range(variants)
            if (entry["key"], variant) not in there
        ]
        rejected.sort(key=lambda entry: (order[entry["key"]], entry["variant"]))
        rows.sort(key=lambda row: (order[row.key], row.variant))


def retire_units(directory: Path, facts: Facts) -> None:
    """Rename the units from before the bank was extended, and finish what killed runs have begun to rename or to remove."""
    earlier = facts.earlier
    if not earlier and not any(directory.glob(f"{FORMER}*")):
        return
    try:
        with locked(directory):
            for unit in list_units(directory) if earlier else ():
                if (read_sidecar(directory, unit) or {}).get("settings") in earlier:
                    set_aside(directory, unit)
            for unit in sorted({*list_units(directory, FORMER), *list_units(directory, FORMER, ".json")}):
                if is_done(directory, unit, facts.digest):
                    remove_former(directory, unit)
            for unit in list_units(directory, FORMER):
                if _lacks_sidecar(directory, unit, (*earlier, facts.digest)):
                    (directory / unit.sidecar).replace(directory / f"{FORMER}{unit.sidecar}")
    except OSError as error:
        raise explain_write_error(error, directory) from error


def count_former_rows(directory: Path, unit: Unit) -> int:
    """Return the number of rows of a former unit; 0 if there is none, or it is incomplete."""
    sidecar = _read_former_sidecar(directory, unit)
    return 0 if sidecar is None else int(sidecar.get("rows", 0))


def _has_failed(sidecar: Mapping[str, Any]) -> bool:
    """Return whether a unit lacks something because sources could not be read."""
    return bool(list_entries(sidecar, "failed") or any(map(is_unread, list_entries(sidecar, "rejected"))))


def may_retry(sidecar: Mapping[str, Any]) -> bool:
    """Return whether a retry takes a unit: it lacks something because of its sources, or has nothing, perhaps because of the generator."""
    return _has_failed(sidecar) or not sidecar.get("rows")


def adopt_unit(directory: Path, unit: Unit, facts: Facts) -> bool:
    """Take over a former unit that lacks nothing as it is; return whether there was one."""
    sidecar = _read_former_sidecar(directory, unit)
    if sidecar is None or facts.variants_at(sidecar.get("settings")) != facts.variants or _has_failed(sidecar):
        return False
    try:
        with locked(directory):
            check_not_extended(directory, facts)
            if not is_done(directory, unit, facts.digest):
                write_json(directory / unit.sidecar, {**sidecar, "settings": facts.digest})
                (directory / f"{FORMER}{unit.file}").replace(directory / unit.file)
                sync_directory(directory)
            remove_former(directory, unit)
    except OSError as error:
        raise explain_write_error(error, directory) from error
    return True


def read_former(directory: Path, unit: Unit, facts: Facts, prefix: str = FORMER) -> Former:
    """Return the contents of a former unit, or with an empty prefix of the unit itself; nothing if there is none, or it is damaged."""
    sidecar = _read_former_sidecar(directory, unit, prefix)
    variants = 0 if sidecar is None else facts.variants_at(sidecar.get("settings"))
    if sidecar is None or not variants:
        return Former()
    seen = "" if prefix else str(sidecar.get("sha256"))
    try:
        data = (directory / f"{prefix}{unit.file}").read_bytes()
    except FileNotFoundError:  # another process has removed it meanwhile
        return Former()
    if hashlib.sha256(data).hexdigest() != sidecar.get("sha256"):  # its rows would get a new checksum
        return Former(seen=seen)
    table = arrow().ipc.open_stream(data).read_all().to_pylist()
    rows = [Row(row["key"], row["variant"], row["seed"], row["attempt"], row["image"]["bytes"]) for row in table]
    former = Former(variants, rows, list_entries(sidecar, "failed"), again=not prefix, seen=seen)
    for entry in list_entries(sidecar, "rejected"):
        if is_unread(entry):
            former.lacking[entry["key"]] = min(entry["variant"], former.lacking.get(entry["key"], variants))
        else:
            former.rejected.append(entry)
    return former


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


def _lacks_sidecar(directory: Path, unit: Unit, digests: Collection[str]) -> bool:
    """Return whether the sidecar of a former unit still has its old name, because a run was killed between the two renames."""
    sidecar, former = (read_sidecar(directory, unit, prefix) or {} for prefix in ("", FORMER))
    checksum = sidecar.get("sha256")
    if (directory / unit.file).exists() or sidecar.get("settings") not in digests or checksum == former.get("sha256"):
        return False
    # Its sidecar may also be that of a new unit whose file did not appear.
    return bool(hashlib.sha256((directory / f"{FORMER}{unit.file}").read_bytes()).hexdigest() == checksum)


def _read_former_sidecar(directory: Path, unit: Unit, prefix: str = FORMER) -> dict[str, Any] | None:
    """Return the sidecar of a former unit whose Arrow file has the right size; None if there is none."""
    sidecar = read_sidecar(directory, unit, prefix)
    try:
        size = (directory / f"{prefix}{unit.file}").stat().st_size
    except OSError:
        return None
    return sidecar if sidecar is not None and sidecar.get("bytes") == size else None
