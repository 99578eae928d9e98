"""The generated images of planned runs: there before the first run begins, and the same for all seeds of an arm."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from comparable import finished_seeds, refuse_another_bank
from config import Settings
from data import Source
from generative import choose_variants, describe_generator, describe_variants, load_online, open_bank
from loading import training_rows


def refuse_missing_variants(plan: Sequence[tuple[str, str, int, Settings]], sources: Sequence[Source], out: Path) -> None:
    """Exit if an unfinished run could not begin for want of its bank or generator: hours later, when its turn comes, is too late.

    Args:
        plan: method, arm, seed and settings of each run.
        sources: its training images.
        out: holds the folders of the runs.
    """
    described: dict[tuple[object, ...], dict[str, str]] = {}
    for (method, arm, seed, settings), source in zip(plan, sources, strict=True):
        folder, s, data = out / f"{method}-{arm}-seed{seed}", settings.generative, settings.data
        if (folder / "result.json").exists() or s.source == "none":
            continue
        what = (s.bank, s.revision, s.select, s.scores, s.weights, s.generator, s.truncation, id(source), data.limit, data.holdout)
        if what not in described:
            described[what] = describe_planned(settings, source)
        refuse_another_bank(finished_seeds(folder), described[what])


def describe_planned(settings: Settings, source: Source) -> dict[str, str]:
    """Return what a run would record of its bank or generator; exit if it is not there, or is of other images."""
    s = settings.generative
    if s.source == "bank":
        keys = [source.keys[row] for row in training_rows(source, settings)[0].tolist()]
        return describe_variants(choose_variants(open_bank(settings, keys), s)[0], s)
    return describe_generator(load_online(s)) if s.source == "online" else {}
