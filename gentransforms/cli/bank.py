"""``gentransforms bank``: look at banks, check them, share them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from gentransforms.cli.plain import Failure

__all__ = ["app"]

app = typer.Typer(rich_markup_mode=None, help="Look at banks, check them, share them.", no_args_is_help=True)

_Bank = Annotated[Path, typer.Argument(help="Directory of the bank.", show_default=False)]


@app.command()
def info(
    bank: Annotated[str, typer.Argument(help="Directory of the bank, or data set on the Hub.", show_default=False)],
    revision: Annotated[str | None, typer.Option(help="Of a data set on the Hub.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole manifest.")] = False,
) -> None:
    """Say what a bank holds and how it was made; an unfinished one too.

    \b
    Example:
      gentransforms bank info bank
    """
    from gentransforms.bank.reader import Bank

    opened = Bank.open(bank, revision=revision, partial=True)
    if as_json:
        typer.echo(json.dumps(opened.manifest, indent=2))
        return
    settings, made = opened.settings, opened.manifest["info"]
    sources = settings["source"]["count"]
    whole = "whole" if opened.missing_units == 0 else f"unfinished, {opened.missing_units} units are missing"
    lines = {
        "bank": f"{opened.path} ({whole})",
        "images": f"{len(opened)} of {len(opened.keys)} keys, {opened.image_size[0]} x {opened.image_size[1]} pixels",
        "sources": f"{sources}, {settings['variants']} variants of each asked for",
        "failed": f"{len(opened.failed)} sources, {len(opened.rejected)} variants rejected",
        "generator": f"{settings['generator']['class']} {made.get('generator_name') or ''}".strip(),
        "fingerprint": settings["generator"]["fingerprint"],
        "base seed": settings["base_seed"],
        "encoding": f"{settings['image_format']}, quality {settings['quality']}",
        "created": made.get("created"),
    }
    for name, text in lines.items():
        typer.echo(f"{name}: {text}")


@app.command()
def verify(
    bank: _Bank,
    images: Annotated[bool, typer.Option(help="Decode every image, too.")] = True,
    repair: Annotated[bool, typer.Option("--repair", help="Remove damaged units, so that generate makes them again.")] = False,
) -> None:
    """Check every file, row and image of a bank; exit code 1 if something is wrong.

    \b
    Example:
      gentransforms bank verify bank
    """
    from gentransforms.bank.verify import verify_bank

    report = verify_bank(bank, images=images, repair=repair)
    typer.echo(str(report))
    if not report.ok:
        advice = (
            "run generate again, which makes them anew" if report.removed else "remove damaged units with --repair, then run generate again"
        )
        raise Failure(f"{bank}: {len(report.problems)} problems: {advice}")


@app.command()
def export(
    bank: _Bank,
    output: Annotated[Path, typer.Argument(help="New directory, for Parquet files, manifest and card.", show_default=False)],
    license: Annotated[str | None, typer.Option(help="Of the images, for the card, such as cc-by-nc-4.0.")] = None,
    description: Annotated[str, typer.Option(help="For the card.")] = "",
) -> None:
    """Write a bank as the Hub holds it: an ordinary Hugging Face data set, with a card.

    \b
    Example:
      gentransforms bank export bank bank-for-the-hub --license cc-by-nc-4.0
    """
    from gentransforms.bank.export import export_bank
    from gentransforms.bank.reader import Bank

    opened = Bank.open(bank)
    count = export_bank(opened, output, license=license, description=description)
    typer.echo(f"{len(opened)} images in {count} Parquet files: {output}")


@app.command()
def push(
    bank: _Bank,
    repo_id: Annotated[str, typer.Argument(metavar="ORG/NAME", help="Data set repository; made if absent.", show_default=False)],
    license: Annotated[str | None, typer.Option(help="Of the images, for the card, such as cc-by-nc-4.0.")] = None,
    description: Annotated[str, typer.Option(help="For the card.")] = "",
    private: Annotated[bool, typer.Option("--private", help="Make a private repository.")] = False,
) -> None:
    """Share a bank on the Hugging Face Hub.

    \b
    Example:
      gentransforms bank push bank ORG/NAME --license cc-by-nc-4.0
    """
    from gentransforms.bank.reader import Bank

    typer.echo(Bank.open(bank).push_to_hub(repo_id, license=license, description=description, private=private))


@app.command("import")
def import_files(
    variants_folder: Annotated[Path, typer.Argument(help="Holds the files <class>/<name>_<i>.JPEG.", show_default=False)],
    source: Annotated[Path, typer.Argument(help="Folder of the images they were made of.", show_default=False)],
    bank: Annotated[Path, typer.Argument(help="Directory of the bank; made if absent.", show_default=False)],
    variants: Annotated[int, typer.Option(min=1, help="How many each source should have.")] = 10,
    unit_size: Annotated[int, typer.Option(min=1, help="Sources written together.")] = 100,
    workers: Annotated[int, typer.Option(min=1, help="Threads that read.")] = 4,
) -> None:
    """Take variants that were generated as files, in the layout of the paper's authors, as a bank.

    The file <class>/<name>_<i>.JPEG is variant i, from 0, of the image <class>/<name> of SOURCE. Files are copied unchanged.
    A file without its image, a damaged one or one of another size is refused; a variant without a file is told.

    \b
    Example:
      gentransforms bank import generated photos bank
    """
    from gentransforms.bank.authors import import_bank

    done = import_bank(variants_folder, source, bank, variants=variants, unit_size=unit_size, workers=workers)
    typer.echo(f"{done.images} images of {done.sources} sources are in {done.path}")
    if done.missing:
        shown = ", ".join(f"variant {variant} of {key}" for key, variant in done.examples)
        typer.echo(f"Warning: {done.missing} variants have no file, such as {shown}: they are recorded as rejected", err=True)
