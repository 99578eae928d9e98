"""``gentransforms bank``: inspect, verify and share banks."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import typer

from gentransforms.cli.audit import audit as audit_command
from gentransforms.cli.audit import select as select_command
from gentransforms.cli.plain import Failure, PathsExpanded, WrongCall, count
from gentransforms.paths import local_path

__all__ = ["app"]

app = PathsExpanded(rich_markup_mode=None, help="Inspect, verify and share banks.", no_args_is_help=True)

app.command()(audit_command)
app.command()(select_command)

_Bank = Annotated[Path, typer.Argument(help="Directory of the bank.", show_default=False)]
_Audited = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="Folder that `bank audit` wrote: its main figures go into the card.", show_default=False),
]


@app.command()
def info(
    bank: Annotated[str, typer.Argument(help="Directory of the bank, or data set on the Hub.", show_default=False)],
    revision: Annotated[str | None, typer.Option(help="Commit, tag or branch of a data set on the Hub.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the manifest and the state of the bank as JSON.")] = False,
) -> None:
    """Show what a bank holds and how it was made, even if it is unfinished.

    \b
    Example:
      gentransforms bank info bank
    """
    from gentransforms.bank.reader import Bank
    from gentransforms.hub.client import is_repository

    if not is_repository(bank):
        _check_exists(local_path(bank, "BANK"))
    opened = Bank.open(bank, revision=revision, partial=True)
    if as_json:
        state = {
            "path": str(opened.path), "complete": opened.missing_units == 0, "missing_units": opened.missing_units, "images": len(opened),
            "keys": len(opened.keys), "failed": len(opened.failed), "rejected": len(opened.rejected),
        }  # fmt: skip
        typer.echo(json.dumps({**opened.manifest, "state": state}, indent=2))
        return
    settings, generator, source, made = (opened.manifest[name] for name in ("settings", "generator", "source", "info"))
    quality = settings.get("quality")
    completeness = f"unfinished, {count(opened.missing_units, 'unit')} missing" if opened.missing_units else "complete"
    lines = {
        "bank": f"{opened.path} ({completeness})",
        "images": f"{len(opened)} of {count(len(opened.keys), 'key')}, {opened.image_size[0]} x {opened.image_size[1]} pixels",
        "sources": f"{source['count']}, with {count(settings['variants'], 'variant')} of each requested",
        "failed": f"{count(len(opened.failed), 'source')}, {count(len(opened.rejected), 'variant')} rejected",
        "generator": f"{generator['class']} {made.get('generator_name') or ''}".strip(),
        "fingerprint": generator["fingerprint"],
        "base seed": "unknown" if settings["base_seed"] is None else settings["base_seed"],
        "encoding": f"{settings['image_format']}" + ("" if quality is None else f", quality {quality}"),
        "created": made.get("created"),
    }
    if history := opened.manifest.get("history"):
        lines["history"] = "; ".join(
            f"{count(h['variants'], 'variant')} of {count(h['count'], 'source')} until {h['until']}" for h in history
        )
    for name, text in lines.items():
        typer.echo(f"{name}: {text}")


@app.command()
def verify(
    bank: _Bank,
    images: Annotated[bool, typer.Option(help="Decode every image as well.")] = True,
    threads: Annotated[int | None, typer.Option(min=1, help="Number of threads that decode; by default one per core, at most 8.")] = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Remove damaged units, so that generate makes them again, and rebuild a wrong index.")
    ] = False,
) -> None:
    """Check every file, row and image of a bank or an export; exit code 1 if anything is wrong.

    \b
    Example:
      gentransforms bank verify bank
    """
    from gentransforms.bank.verify.checker import verify_bank

    _check_exists(bank)
    with _progress() as advance:
        report = verify_bank(bank, images=images, threads=threads, repair=repair, on_progress=advance)
    typer.echo(str(report))
    if report.ok:
        return
    raise Failure(f"{bank}: {count(len(report.problems), 'problem')}: {report.advice}")


@app.command()
def export(
    bank: _Bank,
    output: Annotated[Path, typer.Argument(help="New directory for the Parquet files, the manifest and the card.", show_default=False)],
    shard_bytes: Annotated[int, typer.Option(min=1, help="Approximate size of a Parquet file.")] = 500_000_000,
    license: Annotated[str | None, typer.Option(help="Licence of the images for the card, such as cc-by-nc-4.0.")] = None,
    description: Annotated[str, typer.Option(help="Description for the card.", show_default=False)] = "",
    repo_id: Annotated[str | None, typer.Option(metavar="ORG/NAME", help="Its future repository on the Hub, for the card.")] = None,
    audit: _Audited = None,
) -> None:
    """Write a bank as an ordinary Hugging Face data set with a card, as the Hub holds it.

    \b
    Example:
      gentransforms bank export bank bank-for-the-hub --license cc-by-nc-4.0
    """
    from gentransforms.bank.reader import Bank
    from gentransforms.bank.share.export import export_bank

    _check_exists(bank)
    opened = Bank.open(bank)
    files = export_bank(opened, output, shard_bytes=shard_bytes, license=license, description=description, repo_id=repo_id, audit=audit)
    typer.echo(f"{count(len(opened), 'image')} in {count(files, 'Parquet file')}: {output}")


@app.command()
def push(
    bank: _Bank,
    repo_id: Annotated[
        str,
        typer.Argument(
            metavar="ORG/NAME",
            help="Data set repository, or the NAME of one of your own; created if it does not exist.",
            show_default=False,
        ),
    ],
    license: Annotated[str | None, typer.Option(help="Licence of the images for the card, such as cc-by-nc-4.0.")] = None,
    description: Annotated[str, typer.Option(help="Description for the card.", show_default=False)] = "",
    private: Annotated[
        bool,
        typer.Option(
            "--private",
            help="Create a private repository, and refuse a public one; otherwise the default of the account or organisation decides.",
        ),
    ] = False,
    revision: Annotated[str | None, typer.Option(help="Branch to upload to; by default main.")] = None,
    commit_message: Annotated[str | None, typer.Option(help="Message of the commit.")] = None,
    audit: _Audited = None,
) -> None:
    """Upload a bank to the Hugging Face Hub and print the address of the commit.

    Log in first with `hf auth login`, or set HF_TOKEN. The disk needs room for one Parquet file of about 500 MB. If the upload is
    interrupted, run the same command again: files that the Hub already has are not uploaded again. A card that was edited on the Hub
    is kept, with new figures and with the options given here.

    \b
    Example:
      gentransforms bank push bank ORG/NAME --license cc-by-nc-4.0
    """
    from gentransforms.bank.reader import Bank

    _check_exists(bank)
    opened = Bank.open(bank)
    address = opened.push_to_hub(
        repo_id, license=license, description=description, revision=revision, commit_message=commit_message,
        private=private or None,  # False would ask for a public one where the organisation's default is private
        **({} if audit is None else {"audit": audit}),
    )  # fmt: skip
    typer.echo(address)


@app.command("import")
def import_files(
    variants_folder: Annotated[Path, typer.Argument(help="Folder of the files <class>/<name>_<i>.JPEG.", show_default=False)],
    source: Annotated[Path, typer.Argument(help="Folder of the images that they were made from.", show_default=False)],
    bank: Annotated[Path, typer.Argument(help="Directory of the bank; created if it does not exist.", show_default=False)],
    variants: Annotated[int, typer.Option(min=1, help="Expected variants of each source.")] = 10,
    unit_size: Annotated[int, typer.Option(min=1, help="Sources per unit.")] = 100,
    workers: Annotated[int, typer.Option(min=1, help="Number of threads that read files.")] = 4,
) -> None:
    """Turn variants that were generated as files, in the layout of the paper's authors, into a bank.

    The file <class>/<name>_<i>.JPEG is variant i, counted from 0, of the image <class>/<name> in SOURCE. Files are copied
    unchanged. A file without a source image, a damaged file or one of another size is refused; missing variants are reported.

    \b
    Example:
      gentransforms bank import generated photos bank
    """
    from gentransforms.bank.importing import import_bank

    done = import_bank(variants_folder, source, bank, variants=variants, unit_size=unit_size, workers=workers)
    typer.echo(f"{count(done.images, 'image')} of {count(done.sources, 'source')} imported: {done.path}")
    if done.missing:
        shown = ", ".join(f"variant {variant} of {key}" for key, variant in done.examples)
        typer.echo(
            f"Warning: no file was found for {count(done.missing, 'variant')}, such as {shown}: recorded as rejected; "
            "once they exist, the same command adds them",
            err=True,
        )


def _check_exists(bank: Path) -> None:
    if not bank.is_dir():
        raise WrongCall(f"BANK {bank}: {'expected the directory of a bank' if bank.exists() else 'no such directory'}")


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[int, int], None] | None]:
    """Show progress if stderr is a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("checking"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("checking", total=None)
        yield lambda done, count: progress.update(task, completed=done, total=count)
