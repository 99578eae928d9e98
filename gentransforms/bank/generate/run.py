"""Fill a bank: open the source, resolve the settings, plan, generate the missing units, report. The same call again resumes."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

import torch

from gentransforms.bank.config import BankConfig, BankSettings, build_config
from gentransforms.bank.format.description import describe_bank, describe_generator, describe_source
from gentransforms.bank.format.images import Encoding
from gentransforms.bank.format.index import write_index
from gentransforms.bank.format.locking import remove_partials
from gentransforms.bank.format.manifest import MANIFEST, Facts, has_manifest
from gentransforms.bank.format.unit import list_entries, read_sidecar, split_rejected
from gentransforms.bank.generate.begin import begin_bank, compare_bank
from gentransforms.bank.generate.engines import Engine, Local
from gentransforms.bank.generate.former import retire_units
from gentransforms.bank.generate.guard import settle
from gentransforms.bank.generate.job import Job, UnitReport
from gentransforms.bank.generate.matching import arrange_source
from gentransforms.bank.generate.on_ray import Ray
from gentransforms.bank.generate.plan import Estimate, Plan, estimate, make_plan, parse_shard
from gentransforms.bank.generate.progress import Progress, stoppable
from gentransforms.errors import ConfigError, MissingInputError
from gentransforms.generators.base import ImageGenerator
from gentransforms.generators.expected import check_is_generator
from gentransforms.generators.registry import load_generator
from gentransforms.paths import local_path
from gentransforms.sources import ImageSource, open_source
from gentransforms.surroundings import isolate

__all__ = ["Summary", "generate_bank", "plan_bank"]


@dataclass(frozen=True)
class Summary:
    """What a run of `generate_bank` did, and the state of the bank (or its shard).

    Attributes:
        path: directory of the bank.
        units, units_done: number of units of the bank or shard, in total and on disk.
        images: number of images generated in this run.
        retried: how many of these took more than one attempt.
        seconds, images_per_second, bytes: figures for this run.
        failed: sources of the bank or shard that could not be read, and lack variants: dicts of ``key`` and ``reason``.
        rejected: variants for which every attempt was rejected: dicts of ``key``, ``variant``, ``attempts``, ``reason``.
        rows: number of images in the bank or shard now.
    """

    path: str
    units: int
    units_done: int
    images: int
    retried: int
    bytes: int
    seconds: float
    images_per_second: float
    failed: tuple[dict[str, Any], ...]
    rejected: tuple[dict[str, Any], ...]
    rows: int

    @property
    def complete(self) -> bool:
        """Whether all units are on disk and hold at least one image."""
        return self.units_done == self.units and (self.rows > 0 or not self.units)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON-able values."""
        return dataclasses.asdict(self) | {"complete": self.complete, "failed": list(self.failed), "rejected": list(self.rejected)}


@isolate()
def generate_bank(
    source: Any,
    path: str | Path,
    generator: ImageGenerator | str | Path,
    config: BankConfig | None = None,
    *,
    shard: str | tuple[int, int] | None = None,
    engine: str | Engine = "local",
    retry_failed: bool = False,
    extend: bool = False,
    progress: bool = True,
    **settings: Unpack[BankSettings],
) -> Summary:
    """Generate variants of every source image and store them in a bank, the directory `path`.

    If a run is interrupted (by Ctrl-C, a kill, a full disk), repeat the call to resume it; little more than the current unit is
    lost. Any number of processes or machines may work on one bank, each with its own `shard`. Every image is a function of
    source, generator, base seed and the other settings in ``bank.json``; a call with other settings is refused.

    Args:
        source: a folder of images, a Parquet file or a folder of them, a Hugging Face data set, or any map-style data set; or
            the result of `gentransforms.open_source`, which has options for keys, columns and splits.
        path: directory of the bank; created if it does not exist.
        generator: a generator, or its name, folder or repository, which is then loaded to CUDA if available.
        config: settings of the bank; by default those of `BankConfig`.
        shard: ``"i/n"``, i from 0 to n - 1: generate only every n-th unit.
        engine: ``"local"`` or ``"ray"``; `gentransforms.bank.Local` or `gentransforms.bank.Ray` with options of your own; or any
            `gentransforms.bank.Engine`.
        retry_failed: whether units with unreadable sources, and units without any image, are generated again. A source that has
            images keeps them, even if it cannot be read now, or its variants are rejected now.
        extend: whether to extend an existing bank that has fewer `variants`, or fewer sources with the same keys. Its images stay
            unchanged. Without `extend`, such a call is refused.
        progress: whether to show progress on stderr.
        settings: fields of `BankConfig` by name, such as ``variants=10``; they override those of `config`.

    Returns:
        A summary of the run, with the failed sources.

    Raises:
        ConfigError: if an argument or setting is not as described, or the source is empty.
        BankError: if there is a bank with other settings, the disk is full, or memory runs out.
        GeneratorError: if the generator breaks its contract, or returns only NaN or infinity.
        MissingInputError: if the generator needs labels, masks or prompts that the source does not have.
        KeyboardInterrupt: after Ctrl-C, once the current unit is written; after a second Ctrl-C, at once.

    Example:
        >>> import tempfile, torch
        >>> from gentransforms.testing import FakeGenerator
        >>> photos = [torch.rand(3, 16, 16) for _ in range(3)]  # any map-style data set
        >>> folder = tempfile.mkdtemp()
        >>> generate_bank(photos, folder, FakeGenerator(), variants=2, progress=False).images
        6
        >>> generate_bank(photos, folder, FakeGenerator(), variants=2, progress=False).images  # nothing is left to do
        0
    """
    run = _open_run(source, path, generator, config, settings, shard, engine, extend)
    manifest = begin_bank(run.directory, run.describe, run.source, extend)
    facts = Facts.read(manifest, str(run.directory / MANIFEST))
    retire_units(run.directory, facts)
    plan = make_plan(run.directory, facts, run.shard, retry_failed)
    remove_partials(run.directory)
    reports: list[UnitReport] = []
    with contextlib.ExitStack() as stack:
        shown = stack.enter_context(Progress(plan, progress))
        if plan.kept:
            shown.say(f"extending a bank of {plan.kept} images by {plan.images_left}: {run.directory}")
        stopped = stack.enter_context(stoppable(shown.say))
        begun = time.perf_counter()
        job = run.job(manifest, facts, retry_failed)
        made = run.engine.make_units(job, plan.left, on_images=shown.on_images, stopped=stopped)
        stack.callback(getattr(made, "close", lambda: None))  # ends the threads of a generator, whatever happened
        for report in settle(job, made):
            reports.append(report)
            shown.on_unit(report)
        seconds = time.perf_counter() - begun
        if stopped() and len(reports) < len(plan.left):
            raise KeyboardInterrupt
    write_index(run.directory)  # if the bank is complete now
    return _summary(run.directory, plan, reports, seconds)


def plan_bank(
    source: Any,
    path: str | Path,
    generator: ImageGenerator | str | Path,
    config: BankConfig | None = None,
    *,
    shard: str | tuple[int, int] | None = None,
    engine: str | Engine = "local",
    retry_failed: bool = False,
    extend: bool = False,
    seconds: float = 10.0,
    **settings: Unpack[BankSettings],
) -> tuple[Plan, Estimate]:
    """Return what `generate_bank` with the same arguments would do, and an estimate from a timed sample of real batches.

    Writes nothing. The settings are compared with those of an existing bank, as in `generate_bank`. Batches are timed in this
    process, whatever the engine.

    Args:
        source: as for `generate_bank`, like all other arguments except `seconds`.
        path: directory of the bank; need not exist.
        generator: a generator, or its name, folder or repository.
        config: settings of the bank.
        shard: ``"i/n"``, i from 0 to n - 1.
        engine: where units would be generated.
        retry_failed: whether units with unreadable sources, and units without any image, count as left.
        extend: whether an existing bank would be extended.
        seconds: how long to time.
        settings: fields of `BankConfig` by name.

    Raises:
        ConfigError, BankError, MissingInputError: as `generate_bank`.

    Example:
        >>> import torch
        >>> from gentransforms.testing import FakeGenerator
        >>> plan, estimate = plan_bank([torch.rand(3, 16, 16)] * 9, "no-such-bank", FakeGenerator(), seconds=0.01)
        >>> plan.images, plan.done, estimate.images_per_second > 0
        (90, 0, True)
    """
    run = _open_run(source, path, generator, config, settings, shard, engine, extend)
    begun = has_manifest(run.directory)
    manifest = compare_bank(run.directory, run.describe, run.source, extend)[0] if begun else run.describe(None)
    facts = Facts.read(manifest, str(run.directory / MANIFEST))
    plan = make_plan(run.directory, facts, run.shard, retry_failed)
    return plan, estimate(run.job(manifest, facts, retry_failed), plan, seconds, workers=getattr(run.engine, "workers", None))


@dataclass(frozen=True)
class _Run:
    """One call of `generate_bank` or `plan_bank`, its arguments checked and opened."""

    directory: Path
    source: ImageSource
    generator: ImageGenerator
    config: BankConfig
    shard: tuple[int, int]
    engine: Engine
    device: str
    described: tuple[dict[str, Any], dict[str, Any]]  # the generator and the source

    def describe(self, settings: Mapping[str, Any] | None) -> dict[str, Any]:
        """Return the manifest of this call; what it leaves open is taken from the `settings` of an existing bank, if there is one."""
        config = self.config if settings is None else self.config.fill_from(settings)
        threads = torch.get_num_threads() if self.device == "cpu" else None
        config = config.resolve(self.generator.image_size, threads)
        encoder = Encoding(str(config.image_format)).encoder
        execution = {name: value for name, value in self.generator.config.items() if name in self.generator.execution_options}
        info = {"source": dict(self.source.description), "generator_name": self.generator.name_or_path, "execution": execution}
        info["generator_notes"] = dict(self.generator.notes)
        return describe_bank(config, *self.described, device=self.device, encoder=encoder, info=info)

    def job(self, manifest: Mapping[str, Any], facts: Facts, retry_failed: bool) -> Job:
        """Return what an engine needs to generate units of the bank."""
        config = BankConfig(**manifest["settings"])
        return Job(self.directory, self.source, self.generator, config, self.device, facts, replace=retry_failed)


def _open_run(
    source: Any,
    path: str | Path,
    generator: ImageGenerator | str | Path,
    config: BankConfig | None,
    settings: Mapping[str, Any],
    shard: str | tuple[int, int] | None,
    engine: str | Engine,
    extend: bool,
) -> _Run:
    """Check all arguments before anything is written, quick checks first."""
    directory = local_path(path, "path")
    part, chosen, built = parse_shard(shard), _open_engine(engine), build_config(config, settings)
    loaded = _load(generator)
    opened = arrange_source(open_source(source).select(loaded.inputs), directory, extend)
    missing = [name for name in loaded.required_inputs if name not in opened.inputs]
    if missing:
        raise MissingInputError(
            f"{', '.join(missing)} are missing: {type(loaded).__name__} needs them, and the source has "
            f"{', '.join(opened.inputs) or 'none of its inputs'}: name their columns with open_source(…, columns={{{missing[0]!r}: …}})"
        )
    if built.min_similarity is not None and loaded.instance_feature is None:
        raise ConfigError(
            f"min_similarity={built.min_similarity!r}: {type(loaded).__name__} has no instance feature to compare by: "
            "set its attribute instance_feature to the name of an entry of its condition, or omit min_similarity"
        )
    device = getattr(chosen, "device", None) or loaded.device.type
    described = describe_generator(loaded), describe_source(opened)
    return _Run(directory, opened, loaded, built, part, chosen, device, described)


def _open_engine(engine: str | Engine) -> Engine:
    if isinstance(engine, str) and engine in ("local", "ray"):
        return Local() if engine == "local" else Ray()
    if isinstance(engine, str | type) or not isinstance(engine, Engine):
        raise ConfigError(
            f"engine={engine!r}: expected 'local', 'ray', gentransforms.bank.Local(…), gentransforms.bank.Ray(…), or an object with "
            "make_units(job, units, *, on_images, stopped)"
        )
    return engine


def _load(generator: ImageGenerator | str | Path) -> ImageGenerator:
    if not isinstance(generator, ImageGenerator):
        check_is_generator(generator, or_name=True)
        name = str(generator)
        generator = load_generator(generator, device="cuda" if torch.cuda.is_available() else "cpu")
        generator.name_or_path = name
    return generator.eval().requires_grad_(False)


def _summary(directory: Path, plan: Plan, reports: Sequence[UnitReport], seconds: float) -> Summary:
    images = sum(report.images for report in reports)
    there = [unit for unit in plan.units if (directory / unit.file).exists()]
    sidecars = [sidecar for unit in there if (sidecar := read_sidecar(directory, unit)) is not None]
    split = [split_rejected(list_entries(sidecar, "rejected")) for sidecar in sidecars]
    return Summary(
        path=str(directory),
        units=len(plan.units),
        units_done=len(sidecars),
        images=images,
        retried=sum(report.retried for report in reports),
        bytes=sum(report.bytes for report in reports),
        seconds=round(seconds, 3),
        images_per_second=round(images / max(seconds, 1e-9), 2),
        failed=tuple(e for sidecar, (_, unread) in zip(sidecars, split, strict=True) for e in (*list_entries(sidecar, "failed"), *unread)),
        rejected=tuple(entry for tried, _ in split for entry in tried),
        rows=sum(sidecar.get("rows", 0) for sidecar in sidecars),
    )
