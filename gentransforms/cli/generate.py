"""``gentransforms generate``: fill a bank."""

from __future__ import annotations

import json
from enum import Enum, StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gentransforms.bank.config import BankConfig
from gentransforms.cli.augment import DEFAULT_GENERATOR, open_generator
from gentransforms.cli.options import Generator, Option, WhiteLevel, parse_columns, parse_options, with_settings
from gentransforms.cli.plain import Failure, WrongCall, count, one_line

if TYPE_CHECKING:
    from gentransforms.bank import Engine
    from gentransforms.bank.generate.plan import Estimate, Plan
    from gentransforms.bank.generate.run import Summary

__all__ = ["generate"]

_SHOWN = 100  # this many failed sources are printed, a line each


class _Engine(StrEnum):
    local, ray = "local", "ray"


@with_settings
def generate(
    source: Annotated[str, typer.Argument(help="Folder of images, Parquet or tar files, or Hugging Face data set.", show_default=False)],
    bank: Annotated[Path, typer.Argument(help="Directory of the bank; created, or resumed if it exists.", show_default=False)],
    generator: Generator = DEFAULT_GENERATOR,
    device: Annotated[str | None, typer.Option(help="Where the generator runs; by default cuda if available.")] = None,
    option: Option = None,
    key: Annotated[str | None, typer.Option(help="Column with the sources' keys; by default the row number.")] = None,
    image_column: Annotated[str | None, typer.Option(help="Column with the images.")] = None,
    columns: Annotated[
        list[str] | None,
        typer.Option(metavar="INPUT=COLUMN", help="Column with labels, masks or prompts, such as prompts=caption.", show_default=False),
    ] = None,
    split: Annotated[str | None, typer.Option(help="Split of the data set; by default train.")] = None,
    config: Annotated[str | None, typer.Option(help="Configuration of a Hugging Face data set that has several.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a data set on the Hub.")] = None,
    token: Annotated[
        str | None,
        typer.Option(help="Token for a private data set on the Hub; HF_TOKEN or hf auth login do not show it to other users."),
    ] = None,
    white_level: WhiteLevel = None,
    shard: Annotated[
        str | None, typer.Option(metavar="I/N", help="Generate only every N-th unit, with I from 0 to N-1: for job arrays.")
    ] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Generate units with unreadable sources or without images again.")
    ] = False,
    extend: Annotated[bool, typer.Option("--extend", help="Add variants, or new sources, to an existing bank.")] = False,
    engine: Annotated[_Engine, typer.Option(help="Run in this process, or in the actors of a Ray cluster.")] = _Engine.local,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Number of threads that read and encode; by default one per core, at most 8.")
    ] = None,
    actors: Annotated[int | None, typer.Option(min=1, help="Number of Ray actors.")] = None,
    gpus: Annotated[float | None, typer.Option(min=0, help="GPUs of each Ray actor.")] = None,
    cpus: Annotated[float | None, typer.Option(min=0, help="CPUs of each Ray actor.")] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Write nothing; estimate bytes and hours from a timed sample instead.")] = False,
    seconds: Annotated[
        float | None, typer.Option(min=0, help="For how many seconds --plan times its sample; 10 by default.", show_default=False)
    ] = None,
    summary: Annotated[Path | None, typer.Option(help="Write a summary of the run to this JSON file.", show_default=False)] = None,
    progress: Annotated[bool, typer.Option(help="Show progress: a bar on a terminal, else a line every 30 seconds.")] = True,
    **settings: Any,
) -> None:
    """Generate variants of every source image and store them in a bank.

    If it is interrupted, run the same command again to resume. Ctrl-C finishes the current unit first; a second Ctrl-C stops
    at once; both exit with code 130. The exit code is 1 if a source could not be read (the others are still generated), if
    no image could be generated, or if a unit is missing at the end.

    \b
    Examples:
      gentransforms generate photos bank --variants 10
      gentransforms generate train.parquet bank --generator ORG/NAME --plan
      gentransforms generate photos bank --shard $SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT
    """
    from gentransforms.bank.generate.run import generate_bank, plan_bank
    from gentransforms.sources import open_source

    if summary is not None and (summary.is_dir() or not summary.parent.is_dir()):  # not after hours of work
        raise WrongCall(f"--summary {summary}: expected the name of a file in a folder that exists")
    if plan and summary is not None:
        raise WrongCall("--summary: --plan makes no images to summarise: omit one of the two")
    if seconds is not None and not plan:
        raise WrongCall("--seconds: this is an option of --plan: add --plan, or omit it")
    chosen = _open_engine(engine.value, workers=workers, actors=actors, gpus=gpus, cpus=cpus)
    parsed = parse_columns(columns)
    loaded = open_generator(generator, device or _device(), parse_options(option), inputs=True)
    opened = open_source(
        source, key=key, image_column=image_column, columns=parsed, split=split, config=config, revision=revision, token=token,
        white_level=white_level,
    )  # fmt: skip
    built = BankConfig(**{name: value.value if isinstance(value, Enum) else value for name, value in settings.items()})
    how: dict[str, Any] = {"shard": shard, "engine": chosen, "retry_failed": retry_failed, "extend": extend}
    if plan:
        _print_plan(*plan_bank(opened, bank, loaded, built, **(how if seconds is None else how | {"seconds": seconds})))
        return
    done = generate_bank(opened, bank, loaded, built, progress=progress, **how)
    if summary is not None:
        summary.write_text(json.dumps(done.to_dict(), indent=2) + "\n")
    _report(done)


def _open_engine(name: str, workers: int | None, **of_ray: float | None) -> Engine:
    from gentransforms.bank import Local, Ray

    if name == "ray":
        return Ray(workers=workers, **of_ray)  # type: ignore[arg-type]
    given = [option for option, value in of_ray.items() if value is not None]
    if given:
        raise WrongCall(f"--{given[0]}: this is an option of the Ray engine: add --engine ray, or omit it")
    return Local(workers)


def _print_plan(plan: Plan, estimate: Estimate) -> None:
    from gentransforms.bank.generate.progress import duration

    rate, size = estimate.images_per_second, estimate.bytes_per_image
    lines = {
        "sources": f"{plan.sources}",
        "images": f"{plan.images} ({plan.variants} of each source{'' if plan.images == plan.sources * plan.variants else ', this shard'})",
        "bytes": f"{_bytes(plan.images * size)} ({size:.0f} per image, measured on {estimate.images})",
        "rate": f"{rate:.1f} images/s",
        "units": f"{len(plan.units)}: {plan.done} done, {len(plan.left)} left",
        "time": f"{plan.images_left / rate / 3600:.2f} hours for the {plan.images_left} images left ({duration(plan.images_left / rate)})",
    }
    for name, text in lines.items():
        typer.echo(f"{name}: {text}")


def _report(done: Summary) -> None:
    typer.echo(
        f"{count(done.images, 'image')} generated in {done.seconds:.1f} s, {done.images_per_second:.1f} images/s; "
        f"{done.units_done} of {count(done.units, 'unit')} complete: {done.path}"
    )
    if done.retried:
        typer.echo(f"more than one attempt: {count(done.retried, 'image')}")
    if done.rejected:
        typer.echo(f"Warning: {count(len(done.rejected), 'variant')} rejected; the first: {done.rejected[0]['reason']}", err=True)
    for entry in done.failed[:_SHOWN]:
        typer.echo(one_line(f"failed: {entry['key']}: {entry['reason']}"), err=True)
    if done.units_done < done.units:
        raise Failure(
            f"{done.units - done.units_done} of {count(done.units, 'unit')} missing, although nothing failed: {done.path} must be the "
            "same directory for all processes that fill it; make sure that it is on a file system that all nodes (of Ray, for example) "
            "share, and run the same command again"
        )
    if done.units and not done.rows:
        what = "every source" if done.failed and not done.rejected else "every variant" if done.rejected else "everything"
        raise Failure(f"no image could be generated in {count(done.units, 'unit')}, because {what} failed{_first_reason(done)}")
    if done.failed:
        more = f" (the other {len(done.failed) - _SHOWN} are listed in the sidecars)" if len(done.failed) > _SHOWN else ""
        what = count(len(done.failed), "source")
        raise Failure(f"{what} could not be read{more}: fix and run with --retry-failed, or ignore this; all others are done")


def _first_reason(done: Summary) -> str:
    entries = done.rejected or done.failed
    return f"; the first: {entries[0]['key']}: {entries[0]['reason']}" if entries else ""


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _bytes(size: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.2f} TB"
