"""What the runs of a table may differ in: seeds of one arm in nothing but the seed, arms of one method in their views.

Settings are compared as ``settings.yaml`` in the folder of each run has them.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from config import ProbeSettings, Settings
from contents import CONTENTS, describe_contents, hash_keys, name_other_contents
from data import Source
from learning_curves import TITLES
from loading import load_into_memory, training_rows
from shared import flatten, name_changes, name_hash, read_record
from torch import Tensor
from train import FREE_WHEN_TRAINED, RECORDED
from trained import has_begun

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
                found = ", ".join(name_changes(changed, record, planned))
                raise SystemExit(
                    f"{folder} holds a seed of the same arm with other {found}: the seeds of an arm need the same settings; choose "
                    "another --out, or write a configuration for another arm"
                )


def finished_seeds(folder: Path) -> list[Path]:
    """Return the folders of finished runs of the same arm beside ``METHOD-ARM-seedN``."""
    arm = folder.name.rpartition("-")[0]
    return sorted(path.parent for path in folder.parent.glob(f"{arm}-seed*/result.json"))


def refuse_another_bank(others: Iterable[Path], variants: Mapping[str, str]) -> None:
    """Exit if one of the finished runs was trained with another bank or online generator than that which `variants` describes."""
    for other in others:
        record = read_record(other)
        for name, what in (("bank_sha256", "bank"), ("generator_fingerprint", "generator")):
            if name in record and name in variants and record[name] != variants[name]:
                raise SystemExit(
                    f"{other} is a seed of the same arm, and was trained with another {what} than that which is there now: the seeds of an "
                    f"arm need the same images; choose another --out, or name the {what} that it had"
                )


def refuse_other_images(plan: list[tuple[str, str, int, Settings]], sources: list[Source], out: Path) -> None:
    """Exit if a planned run has begun on other images than are there now, or a finished run beside it was trained on others.

    `sources` are the training images of the planned runs.
    """
    described: dict[tuple[Any, ...], dict[str, str]] = {}
    finished = sorted(path.parent for path in out.glob("*/result.json"))
    for (method, arm, seed, settings), source in zip(plan, sources, strict=True):
        data, own = settings.data, out / f"{method}-{arm}-seed{seed}"
        what = (id(source), data.limit, data.holdout)
        rows = training_rows(source, settings)[0]
        if what not in described:
            described[what] = describe_contents(source, rows) | {"keys_sha256": hash_keys([source.keys[row] for row in rows.tolist()])}
        for folder in dict.fromkeys([*([own] if has_begun(own) else []), *finished]):
            if changed := _name_other_images(read_record(folder), described[what], source, rows, settings):
                words = " and ".join(dict.fromkeys(map(name_hash, changed)))
                raise SystemExit(
                    f"{folder} was trained on other {words} than those of {data.train!r}: the runs of a table need the same; choose "
                    "another --out, or give data.train the images that it had"
                )


def _name_other_images(before: dict[str, Any], now: dict[str, str], source: Source, rows: Tensor, settings: Settings) -> list[str]:
    if changed := name_other_contents(before, now):
        return changed
    known = any(name in before and name in now for name in CONTENTS if name != "labels_sha256")
    if known or before.get("keys_sha256", now["keys_sha256"]) == now["keys_sha256"]:
        return []
    # Nothing but the keys can be compared: with images in memory, those of the images that could be read.
    if settings.data.in_memory and "readable_sha256" not in now:
        now["readable_sha256"] = hash_keys(_readable(source, rows, settings))
    return [] if before["keys_sha256"] == now.get("readable_sha256") else ["keys_sha256"]


def _readable(source: Source, rows: Tensor, settings: Settings) -> list[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the run has named the others
        return [source.keys[row] for row in load_into_memory(source, rows, settings.data.image_size)[1].tolist()]


def name_mixed_settings(runs: list[dict[str, Any]], over: str) -> str:
    """Return a sentence for each arm whose runs differ in more than their views from those of the arm `over`; empty if none does."""
    records: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for run in runs:
        if record := read_record(Path(run["folder"])):
            records.setdefault(run["method"], {}).setdefault(run["generator"], []).append(record)
    return "\n".join(
        f"{TITLES.get(method, method)} {arm} differs from {over} not in its views alone: {', '.join(found)}."
        for method, arms in records.items() if over in arms
        for arm in arms if arm != over and (found := dict.fromkeys(_mixed(arms[arm], arms[over])))
    )  # fmt: skip


def _mixed(own: list[dict[str, Any]], others: list[dict[str, Any]]) -> Iterator[str]:
    for name in dict.fromkeys(name for record in (*own, *others) for name in record):
        if name in LEFT_OUT - {"keys_sha256", *CONTENTS} or name.partition(".")[0] in VIEWS:
            continue
        found = [" or ".join(sorted({repr(record[name]) for record in part if name in record})) for part in (own, others)]
        if found[0] != found[1] and all(found):
            yield name_hash(name) if name.endswith("_sha256") else f"{name} ({found[0]}, there {found[1]})"


def _differs(planned: dict[str, Any], record: dict[str, Any], name: str) -> bool:
    return name not in planned or planned[name] != record[name]
