"""``gentransforms generate``: fill a bank."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gentransforms.cli.augment import DEFAULT_GENERATOR, open_generator
from gentransforms.cli.options import Generator, Option, parse_options
from gentransforms.cli.plain import Failure, WrongCall, one_line

if TYPE_CHECKING:
    from gentransforms.bank.generate.plan import Estimate, Plan
    from gentransforms.bank.generate.run import Summary

__all__ = ["generate"]

_SHOWN = 100  # of the sources that failed, a line each


class _Format(StrEnum):
    jpeg, webp, png = "jpeg", "webp", "png"


class _Engine(StrEnum):
    local, ray = "local", "ray"


def generate(
    source: Annotated[str, typer.Argument(help="Folder of images, Parquet file(s), or Hugging Face data set.", show_default=False)],
    bank: Annotated[Path, typer.Argument(help="Directory of the bank; made if absent, resumed if it is one.", show_default=False)],
    generator: Generator = DEFAULT_GENERATOR,
    variants: Annotated[int, typer.Option(min=1, help="Images made of each source.")] = 10,
    base_seed: Annotated[int, typer.Option(help="Chooses the whole family of seeds.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Largest number of images generated at once; a setting of the bank.")] = 64,
    unit_size: Annotated[int, typer.Option(min=1, help="Sources made and written together; a setting of the bank.")] = 100,
    image_format: Annotated[_Format, typer.Option(help="How images are encoded.")] = _Format.jpeg,
    quality: Annotated[int, typer.Option(min=1, max=100, help="Of JPEG and WebP.")] = 90,
    min_similarity: Annotated[
        float | None,
        typer.Option(min=-1, max=1, help="Try variants again that are less like their source (cosine of the generator's features)."),
    ] = None,
    max_attempts: Annotated[int, typer.Option(min=1, help="How often a variant is tried before it is given up.")] = 5,
    shard: Annotated[str | None, typer.Option(metavar="I/N", help="Only every N-th unit, I from 0 to N-1: for a job array.")] = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Make units again whose sources could not all be read.")] = False,
    key: Annotated[str | None, typer.Option(help="Column that names the sources; the row number by default.")] = None,
    image_column: Annotated[str | None, typer.Option(help="Column of the images.")] = None,
    columns: Annotated[
        list[str] | None,
        typer.Option(metavar="INPUT=COLUMN", help="Where labels, masks or prompts stand, such as prompts=caption.", show_default=False),
    ] = None,
    split: Annotated[str | None, typer.Option(help="Of a Hugging Face data set; train by default.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Of torch on the CPU; a setting of the bank.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Threads that read and encode.")] = None,
    engine: Annotated[_Engine, typer.Option(help="This machine, or the actors of a Ray cluster.")] = _Engine.local,
    actors: Annotated[int | None, typer.Option(min=1, help="Ray actors.")] = None,
    gpus_per_actor: Annotated[float | None, typer.Option(min=0, help="GPUs of each Ray actor.")] = None,
    cpus_per_actor: Annotated[float | None, typer.Option(min=0, help="CPUs of each Ray actor.")] = None,
    device: Annotated[str | None, typer.Option(help="Where the generator runs; cuda where there is one, by default.")] = None,
    option: Option = None,
    plan: Annotated[bool, typer.Option("--plan", help="Only say what would be done, with bytes and hours from a timed sample.")] = False,
    seconds: Annotated[float, typer.Option(min=0, help="How long --plan times its sample.")] = 10.0,
    summary: Annotated[Path | None, typer.Option(help="JSON file to write, of what was done.", show_default=False)] = None,
    progress: Annotated[bool, typer.Option(help="Tell of it on the way: a bar on a terminal, else a line every 30 seconds.")] = True,
) -> None:
    """Make variants of every source image and keep them in a bank.

    Whatever stops it, the same command again goes on where it was. Ctrl-C finishes the unit in flight; a second Ctrl-C
    stops at once; both exit with 130. Exit code 1 if a source could not be read (the others are made), or if a unit is not
    there at the end.

    \b
    Examples:
      gentransforms generate photos bank --variants 10
      gentransforms generate train.parquet bank --generator ORG/NAME --plan
      gentransforms generate photos bank --shard $SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT
    """
    from gentransforms.bank.generate.run import generate_bank, plan_bank

    if summary is not None and (summary.is_dir() or not summary.parent.is_dir()):  # not after hours of work
        raise WrongCall(f"--summary {summary}: expected the name of a file in a folder that exists")
    loaded = open_generator(generator, device or _device(), parse_options(option), inputs=True)
    arguments: dict[str, Any] = {
        "variants": variants, "base_seed": base_seed, "batch_size": batch_size, "unit_size": unit_size, "image_format": image_format.value,
        "quality": quality, "min_similarity": min_similarity, "max_attempts": max_attempts, "shard": shard, "retry_failed": retry_failed,
        "key": key, "image_column": image_column, "columns": _pairs(columns), "split": split, "threads": threads, "workers": workers,
    }  # fmt: skip
    if plan:
        _print_plan(*plan_bank(source, bank, loaded, seconds=seconds, **arguments))
        return
    done = generate_bank(
        source, bank, loaded, progress=progress, engine=engine.value, actors=actors, gpus_per_actor=gpus_per_actor,
        cpus_per_actor=cpus_per_actor, **arguments,
    )  # fmt: skip
    if summary is not None:
        summary.write_text(json.dumps(done.to_dict(), indent=2) + "\n")
    _report(done)


def _print_plan(plan: Plan, estimate: Estimate) -> None:
    from gentransforms.bank.generate.progress import duration

    rate, size = estimate.images_per_second, estimate.bytes_per_image
    lines = {
        "sources": f"{plan.sources}",
        "images": f"{plan.images} ({plan.variants} of each source{'' if plan.images == plan.sources * plan.variants else ', this shard'})",
        "bytes": f"{_bytes(plan.images * size)} ({size:.0f} an image, of {estimate.images} made)",
        "rate": f"{rate:.1f} images/s",
        "units": f"{len(plan.units)}: {plan.done} done, {len(plan.left)} left",
        "time": f"{plan.images_left / rate / 3600:.2f} hours for the {plan.images_left} images left ({duration(plan.images_left / rate)})",
    }
    for name, text in lines.items():
        typer.echo(f"{name}: {text}")


def _report(done: Summary) -> None:
    typer.echo(
        f"{done.images} images made in {done.seconds:.1f} s, {done.images_per_second:.1f} images/s; "
        f"{done.units_done} of {done.units} units are there: {done.path}"
    )
    if done.retried:
        typer.echo(f"{done.retried} of them were tried more than once")
    if done.rejected:
        typer.echo(f"Warning: {len(done.rejected)} variants were given up; the first: {done.rejected[0]['reason']}", err=True)
    for entry in done.failed[:_SHOWN]:
        typer.echo(one_line(f"failed: {entry['key']}: {entry['reason']}"), err=True)
    if not done.complete:
        raise Failure(
            f"{done.units - done.units_done} of {done.units} units are not there, though nothing failed: {done.path} has to be one "
            "directory for all that fill it; on Ray nodes, for example, it is not shared; see to that and run the same command again"
        )
    if done.failed:
        more = f" ({len(done.failed) - _SHOWN} more are in the sidecars)" if len(done.failed) > _SHOWN else ""
        what = "1 source" if len(done.failed) == 1 else f"{len(done.failed)} sources"
        raise Failure(f"{what} could not be read{more}: mend them and run with --retry-failed, or leave them; the rest is made")


def _pairs(given: list[str] | None) -> dict[str, str] | None:
    pairs = {}
    for text in given or ():
        name, equals, column = text.partition("=")
        if not (name and equals and column):
            raise WrongCall(f"--columns {text}: expected INPUT=COLUMN, such as prompts=caption")
        pairs[name] = column
    return pairs or None


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _bytes(count: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} TB"
