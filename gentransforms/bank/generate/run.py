"""Fill a bank: plan, make what is left, report. The same call again resumes."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gentransforms.bank.format.locking import remove_partials
from gentransforms.bank.format.manifest import MANIFEST
from gentransforms.bank.format.unit import read_sidecar
from gentransforms.bank.generate.encode import Encoding
from gentransforms.bank.generate.pipeline import Job, UnitReport, make_units
from gentransforms.bank.generate.plan import Estimate, Plan, estimate, make_plan, parse_shard
from gentransforms.bank.generate.progress import Progress
from gentransforms.bank.generate.settings import enter_directory, settings_of
from gentransforms.bank.generate.stopping import stoppable
from gentransforms.bank.generate.variants import Recipe
from gentransforms.errors import ConfigError, MissingInputError
from gentransforms.generators.base import ImageGenerator
from gentransforms.generators.registry import load_generator
from gentransforms.sources import open_source

__all__ = ["Summary", "generate_bank", "plan_bank"]

ENGINES = ("local", "ray")
# Arguments that say how a run goes on, not what it makes.
_OF_THE_RUN = ("progress", "engine", "actors", "gpus_per_actor", "cpus_per_actor")


@dataclass(frozen=True)
class Summary:
    """What a run of `generate_bank` did, and how the bank (or its shard of it) stands.

    Attributes:
        path: of the bank.
        units, units_done: of the bank or shard: in all, and on disk.
        images: made in this run.
        retried: of these, tried more than once.
        seconds, images_per_second, bytes: of this run.
        failed: sources of the bank or shard that could not be read: dicts of ``key`` and ``reason``.
        rejected: variants of which every attempt was refused: dicts of ``key``, ``variant``, ``attempts``, ``reason``.
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

    @property
    def complete(self) -> bool:
        """Whether all units are on disk."""
        return self.units_done == self.units

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON-able values."""
        return dataclasses.asdict(self) | {"complete": self.complete, "failed": list(self.failed), "rejected": list(self.rejected)}


def generate_bank(
    source: Any,
    path: str | Path,
    generator: ImageGenerator | str | Path,
    *,
    variants: int = 10,
    base_seed: int = 0,
    batch_size: int = 64,
    unit_size: int = 100,
    image_format: str = "jpeg",
    quality: int = 90,
    min_similarity: float | None = None,
    max_attempts: int = 5,
    shard: str | tuple[int, int] | None = None,
    retry_failed: bool = False,
    key: Any = None,
    image_column: str | None = None,
    columns: Mapping[str, str] | None = None,
    split: str | None = None,
    inputs_getter: Callable[[Any], Mapping[str, Any]] | None = None,
    threads: int | None = None,
    workers: int | None = None,
    progress: bool = True,
    engine: str = "local",
    actors: int | None = None,
    gpus_per_actor: float | None = None,
    cpus_per_actor: float | None = None,
) -> Summary:
    """Make `variants` images of every source image and keep them in the directory `path`, a bank.

    Whatever stops a run (Ctrl-C, a kill, a full disk), the same call again finishes it: at most the unit in flight is lost.
    Any number of processes or machines may work on one bank, each with its `shard`. Every image is a function of source,
    generator, base seed and the settings in ``bank.json``; a call with other settings is refused.

    Args:
        source: a folder of images (keys: relative paths), a Parquet file or a folder of them, a Hugging Face data set (its
            name, a saved folder, or the object), or any map-style data set.
        path: of the bank; made if absent.
        generator: or its name, folder or repository, then loaded on CUDA where there is one.
        variants: images of each source.
        base_seed: chooses the whole family of seeds, by `gentransforms.derive_seeds`.
        batch_size: largest number of images generated at once; a setting of the bank.
        unit_size: sources whose variants are made and written together; a setting of the bank.
        image_format: ``"jpeg"``, ``"webp"`` or ``"png"``.
        quality: of JPEG and WebP, from 1 to 100.
        min_similarity: try a variant again whose instance feature has a smaller cosine with its source's.
        max_attempts: how often at most; then the variant is recorded as rejected. Images with NaN or infinity are tried again too.
        shard: ``"i/n"``, i from 0: only every n-th unit.
        retry_failed: make units again that hold sources which could not be read.
        key: a column, a function of the index or a list that names the sources; see `gentransforms.with_keys`.
        image_column: of a Parquet file or Hugging Face data set.
        columns: where the generator's inputs stand, such as ``{"prompts": "caption"}``.
        split: of a Hugging Face data set given by name.
        inputs_getter: of a map-style data set, from a sample to the generator's inputs: ``lambda sample: {"labels": sample[1]}``.
        threads: of torch on the CPU; a setting of the bank. Taken from the bank, or torch's own number at first.
        workers: threads that read, and as many that encode, in each process; by default as many as it has cores, at most 8.
        progress: tell of it on stderr.
        engine: ``"local"`` or ``"ray"``: the same units on the actors of a Ray cluster.
        actors: number of Ray actors, each of which holds the generator once.
        gpus_per_actor: of each; by default 1 for a CUDA generator. With more than 0 the generator runs on CUDA there, wherever it
            is here.
        cpus_per_actor: of each, where it has no GPUs; by default the bank's threads.

    Returns:
        what was done, with the sources that failed.

    Raises:
        ConfigError: if an argument is not as described, or the source holds nothing.
        BankError: if a bank of other settings is there, the disk is full or memory runs out.
        MissingInputError: if the generator needs labels, masks or prompts that the source does not carry.
        KeyboardInterrupt: after Ctrl-C, once the unit in flight is written; at a second Ctrl-C at once.

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
    if engine not in ENGINES:
        raise ConfigError(f"engine={engine!r}: expected 'local' or 'ray'")
    job, info = _prepare(
        source, path, generator, variants=variants, base_seed=base_seed, batch_size=batch_size, unit_size=unit_size,
        image_format=image_format, quality=quality, min_similarity=min_similarity, max_attempts=max_attempts, shard=shard,
        retry_failed=retry_failed, key=key, image_column=image_column, columns=columns, split=split, inputs_getter=inputs_getter,
        threads=threads, workers=workers, device="cuda" if engine == "ray" and gpus_per_actor else None,
    )  # fmt: skip
    part = parse_shard(shard)
    manifest = enter_directory(job.directory, job.settings, info, job.source, ("threads",) if threads is None else ())
    job = dataclasses.replace(job, settings=manifest["settings"])
    plan = make_plan(job.directory, job.settings, part, retry_failed)
    remove_partials(job.directory)
    reports: list[UnitReport] = []
    with Progress(plan, progress) as shown, stoppable(shown.say) as stopped:
        begun = time.perf_counter()
        if engine == "ray":
            from gentransforms.bank.generate.ray import make_units_on_ray

            made = make_units_on_ray(
                job, plan.left, actors=actors, gpus=gpus_per_actor, cpus=cpus_per_actor, on_images=shown.on_images, stopped=stopped
            )
        else:
            made = make_units(job, plan.left, on_images=shown.on_images, stopped=stopped)
        with contextlib.closing(made):
            for report in made:
                reports.append(report)
                shown.on_unit(report)
        seconds = time.perf_counter() - begun
        if stopped() and len(reports) < len(plan.left):
            raise KeyboardInterrupt
    return _summary(job.directory, plan, reports, seconds)


def plan_bank(
    source: Any, path: str | Path, generator: ImageGenerator | str | Path, *, seconds: float = 10.0, **arguments: Any
) -> tuple[Plan, Estimate]:
    """Return what `generate_bank` with the same arguments would do, and an estimate from a timed sample of real batches.

    Writes nothing. The settings of a bank that is there already are compared, as `generate_bank` does.

    Args:
        source: as for `generate_bank`.
        path: of the bank.
        generator: as for `generate_bank`.
        seconds: how long to time.
        arguments: what else `generate_bank` would be called with.

    Raises:
        ConfigError, BankError, MissingInputError: as `generate_bank`.

    Example:
        >>> import torch
        >>> from gentransforms.testing import FakeGenerator
        >>> plan, estimate = plan_bank([torch.rand(3, 16, 16)] * 9, "no-such-bank", FakeGenerator(), seconds=0.01)
        >>> plan.images, plan.done, estimate.images_per_second > 0
        (90, 0, True)
    """
    known = {name: p.default for name, p in inspect.signature(generate_bank).parameters.items() if p.default is not p.empty}
    unknown = sorted(arguments.keys() - known.keys())
    if unknown:
        raise ConfigError(f"unknown argument {unknown[0]!r}: expected one of {', '.join(known)}")
    given = {name: value for name, value in (known | arguments).items() if name not in _OF_THE_RUN}
    job, info = _prepare(source, path, generator, **given)
    if (job.directory / MANIFEST).exists():
        free = ("threads",) if given["threads"] is None else ()
        manifest = enter_directory(job.directory, job.settings, info, job.source, free)
        job = dataclasses.replace(job, settings=manifest["settings"])
    plan = make_plan(job.directory, job.settings, parse_shard(given["shard"]), given["retry_failed"])
    return plan, estimate(job, plan, seconds)


def _prepare(
    source: Any, path: str | Path, generator: ImageGenerator | str | Path, *, variants: int, base_seed: int, batch_size: int,
    unit_size: int,
    image_format: str, quality: int, min_similarity: float | None, max_attempts: int,
    shard: str | tuple[int, int] | None, retry_failed: bool,
    key: Any, image_column: str | None, columns: Mapping[str, str] | None, split: str | None,
    inputs_getter: Callable[[Any], Mapping[str, Any]] | None, threads: int | None, workers: int | None,
    device: str | None = None,
) -> tuple[Job, dict[str, Any]]:  # fmt: skip
    """Check everything before anything is written; `device` is where the generator will run, if not where it is."""
    directory = Path(path)
    parse_shard(shard)  # a wrong one is refused before the source is opened
    recipe = Recipe(base_seed, variants, batch_size, max_attempts, min_similarity)
    encoding = Encoding(image_format, quality)
    loaded = _load(generator)
    opened = open_source(source, key=key, image_column=image_column, columns=columns, split=split, inputs_getter=inputs_getter)
    opened = opened.select(loaded.inputs)
    missing = [name for name in loaded.required_inputs if name not in opened.inputs]
    if missing:
        raise MissingInputError(
            f"{', '.join(missing)} are missing: {type(loaded).__name__} needs them, and the source carries "
            f"{', '.join(opened.inputs) or 'none of its inputs'}: name their columns with columns={{{missing[0]!r}: …}}"
        )
    if min_similarity is not None and loaded.instance_feature is None:
        raise ConfigError(
            f"min_similarity={min_similarity!r}: {type(loaded).__name__} has no instance feature to compare by; "
            "set the attribute instance_feature to an entry of its condition, or leave min_similarity out"
        )
    settings = settings_of(opened, loaded, recipe, encoding, unit_size, _threads(threads), device or loaded.device.type)
    job = Job(directory, opened, loaded, recipe, encoding, settings, _workers(workers), replace=retry_failed)
    return job, {"source": dict(opened.description), "generator_name": loaded.name_or_path}


def _load(generator: ImageGenerator | str | Path) -> ImageGenerator:
    if not isinstance(generator, ImageGenerator):
        if not isinstance(generator, str | Path):
            raise ConfigError(f"generator={generator!r}: expected an ImageGenerator, or its name, folder or repository")
        name = str(generator)
        generator = load_generator(generator, device="cuda" if torch.cuda.is_available() else "cpu")
        generator.name_or_path = name
    return generator.eval().requires_grad_(False)


def _threads(threads: int | None) -> int:
    if threads is None:
        return torch.get_num_threads()
    if type(threads) is not int or threads < 1:
        raise ConfigError(f"threads={threads!r}: expected a positive integer or None")
    return threads


def _workers(workers: int | None) -> int | None:
    if workers is not None and (type(workers) is not int or workers < 1):
        raise ConfigError(f"workers={workers!r}: expected a positive integer or None")
    return workers


def _summary(directory: Path, plan: Plan, reports: Sequence[UnitReport], seconds: float) -> Summary:
    images = sum(report.images for report in reports)
    there = [unit for unit in plan.units if (directory / unit.file).exists()]
    sidecars = [sidecar for unit in there if (sidecar := read_sidecar(directory, unit)) is not None]
    return Summary(
        path=str(directory),
        units=len(plan.units),
        units_done=len(sidecars),
        images=images,
        retried=sum(report.retried for report in reports),
        bytes=sum(report.bytes for report in reports),
        seconds=round(seconds, 3),
        images_per_second=round(images / max(seconds, 1e-9), 2),
        failed=tuple(entry for sidecar in sidecars for entry in sidecar.get("failed", [])),
        rejected=tuple(entry for sidecar in sidecars for entry in sidecar.get("rejected", [])),
    )
