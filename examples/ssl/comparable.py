"""What the runs of a table may differ in: seeds of one arm in nothing but the seed, arms of one method in their views.

Settings are compared as ``settings.yaml`` in the folder of each run has them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from config import ProbeSettings, Settings
from learning_curves import TITLES
from shared import flatten, read_record
from train import FREE_WHEN_TRAINED, RECORDED

# What makes an arm.
VIEWS = ("augmentation", "generative")
# What changes no run, or is another in each. The path of a bank depends on the machine; how a run is measured, reproduce.py compares.
LEFT_OUT = {*FREE_WHEN_TRAINED, *RECORDED, "seed", "generative.bank", *(f"probe.{field.name}" for field in fields(ProbeSettings))}


def refuse_mixed_seeds(plan: list[tuple[str, str, int, Settings]], out: Path) -> None:
    """Exit if a finished run in a folder is another seed of a planned arm with other settings: their mean would mean nothing.

    The precision may differ, as ``auto`` stands for that of the machine.
    """
    for method, arm, seed, settings in plan:
        planned = flatten(settings)
        for folder in finished_seeds(out / f"{method}-{arm}-seed{seed}"):
            record = read_record(folder)
            changed = [name for name in record if name not in {*LEFT_OUT, "trainer.precision"} and _differs(planned, record, name)]
            if changed and folder.name != f"{method}-{arm}-seed{seed}":
                found = ", ".join(f"{name} ({record[name]!r}, now {planned.get(name)!r})" for name in changed)
                raise SystemExit(
                    f"{folder} holds a seed of the same arm with other {found}: the seeds of an arm need the same settings; choose "
                    "another --out, or write a configuration for another arm"
                )


def finished_seeds(folder: Path) -> list[Path]:
    """Return the folders of finished runs of the same arm beside ``METHOD-ARM-seedN``."""
    arm = folder.name.rpartition("-")[0]
    return sorted(path.parent for path in folder.parent.glob(f"{arm}-seed*/result.json"))


def refuse_another_bank(others: Iterable[Path], variants: Mapping[str, str]) -> None:
    """Exit if one of the finished runs was trained with another bank than that which `variants` describes."""
    for other in others:
        known = read_record(other).get("bank_sha256")
        if known is not None and known != variants["bank_sha256"]:
            raise SystemExit(
                f"{other} is a seed of the same arm, and was trained with another bank than that which is there now: the seeds of an arm "
                "need the same images; choose another --out, or name the bank that it had"
            )


def name_mixed_settings(runs: list[dict[str, Any]], over: str) -> str:
    """Return a sentence for each arm whose runs differ in more than their views from those of the arm `over`; empty if none does."""
    records: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for run in runs:
        if record := read_record(Path(run["folder"])):
            records.setdefault(run["method"], {}).setdefault(run["generator"], []).append(record)
    return "\n".join(
        f"{TITLES.get(method, method)} {arm} differs from {over} not in its views alone: {', '.join(found)}."
        for method, arms in records.items() if over in arms
        for arm in arms if arm != over and (found := list(_mixed(arms[arm], arms[over])))
    )  # fmt: skip


def _mixed(own: list[dict[str, Any]], others: list[dict[str, Any]]) -> Iterator[str]:
    for name in dict.fromkeys(name for record in (*own, *others) for name in record):
        if name in LEFT_OUT or name.partition(".")[0] in VIEWS:
            continue
        found = [" or ".join(sorted({repr(record[name]) for record in part if name in record})) for part in (own, others)]
        if found[0] != found[1] and all(found):
            yield f"{name} ({found[0]}, there {found[1]})"


def _differs(planned: dict[str, Any], record: dict[str, Any], name: str) -> bool:
    return name not in planned or planned[name] != record[name]
