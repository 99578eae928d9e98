"""``gentransforms bank audit`` and ``gentransforms bank select``: measure a bank's variants, and choose among them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from gentransforms.cli.options import parse_columns
from gentransforms.cli.plain import Failure, WrongCall
from gentransforms.paths import local_path

__all__ = ["audit", "select"]


def audit(
    bank: Annotated[str, typer.Argument(help="Directory of the bank, or data set on the Hub.", show_default=False)],
    source: Annotated[str, typer.Argument(help="What the bank was made of, as for generate.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder for report.html, audit.json, scores.parquet and the cached features.")] = Path("audit"),
    encoder: Annotated[
        str,
        typer.Option(
            help="What images are compared by: auto (DINOv2-small if it is in the cache, else the generator's own), generator, "
            "torchvision:NAME, timm:NAME, or a transformers vision model by repository or folder."
        ),
    ] = "auto",
    label_column: Annotated[
        str | None, typer.Option(help='Column of the labels, or "folders" for class folders; none by default.', show_default=False)
    ] = None,
    attribute_column: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COLUMN",
            help="Column whose frequencies before and after are compared, such as age. Can be given several times.",
            show_default=False,
        ),
    ] = None,
    holdout: Annotated[
        str | None,
        typer.Option(help="Images that the generator was not trained on, at least as many as there are sources.", show_default=False),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=2, help="Only so many sources, evenly spaced.", show_default=False)] = None,
    key: Annotated[str | None, typer.Option(help="Column of the source's keys, as for generate.", show_default=False)] = None,
    image_column: Annotated[str | None, typer.Option(help="Column of the images, of the holdout too.", show_default=False)] = None,
    columns: Annotated[
        list[str] | None,
        typer.Option(metavar="INPUT=COLUMN", help="Column with labels, masks or prompts, as for generate.", show_default=False),
    ] = None,
    split: Annotated[str | None, typer.Option(help="Split of the source, where it has several.", show_default=False)] = None,
    holdout_split: Annotated[str | None, typer.Option(help="Split of the holdout, where it has several.", show_default=False)] = None,
    config: Annotated[
        str | None, typer.Option(help="Configuration of a source that has several, as for generate.", show_default=False)
    ] = None,
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit of a source on the Hub, as for generate.", show_default=False)
    ] = None,
    token: Annotated[
        str | None,
        typer.Option(
            help="Token for private data sets on the Hub; HF_TOKEN or hf auth login do not show it to other users.", show_default=False
        ),
    ] = None,
    white_level: Annotated[
        float | None,
        typer.Option(help="Value of white in grey images of more than 8 bits, as for generate; of the holdout too.", show_default=False),
    ] = None,
    device: Annotated[str | None, typer.Option(help="Where the encoder runs; CUDA where there is one.", show_default=False)] = None,
    fail_if: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CONDITION",
            help='Exit with 1 if this holds, such as "near_copies > 0.01". Can be given several times.',
            show_default=False,
        ),
    ] = None,
) -> None:
    """Measure the variants of a bank against their sources, and write a report.

    Features are cached in the folder: run an interrupted audit again to resume it. The exit code is 1 if a condition of
    --fail-if holds, which is named.

    \b
    Example:
      gentransforms bank audit bank photos --label-column folders --out audit --fail-if "near_copies > 0.01"
    """
    from gentransforms.audit.labels import open_labelled
    from gentransforms.audit.measures.needs import Given, check_counts
    from gentransforms.audit.report import find_jinja
    from gentransforms.audit.result import Audit
    from gentransforms.audit.run import audit_bank
    from gentransforms.audit.verdicts import give_verdicts
    from gentransforms.bank.reader import Bank
    from gentransforms.sources import open_source

    if holdout_split is not None and holdout is None:
        raise WrongCall("--holdout-split: this is an option of the holdout: add --holdout, or omit it")
    Audit.check_gates(fail_if or ())  # what no audit can answer is refused before anything is opened
    find_jinja()
    attributes = {name: name for name in attribute_column or ()}
    named = {"--label-column": label_column, **{f"--attribute-column {name}": name for name in attributes}}
    read: dict[str, Any] = {"image_column": image_column, "white_level": white_level}
    hub: dict[str, Any] = {"config": config, "revision": revision, "token": token}
    opened = open_labelled(source, named, key=key, columns=parse_columns(columns), split=split, **read, **hub)
    if holdout != source:  # other images, to which only a token may apply, if they are on the Hub
        hub = {"token": None if holdout is None or local_path(holdout, "--holdout").exists() else token}
    held_out = None if holdout is None else open_source(holdout, split=holdout_split, **read, **hub)
    audited = Bank.open(bank)
    sources, held = min(len(audited.keys), limit or len(audited.keys)), None if held_out is None else len(held_out)
    check_counts(sources, held)
    Audit.check_gates(fail_if or (), Given(sources, audited.variants, label_column is not None, held, attributes))
    found = audit_bank(
        audited, opened, encoder=encoder, labels=label_column, holdout=held_out, limit=limit, attributes=attributes or None, device=device,
        cache=out / "features",
    )  # fmt: skip
    report = found.save(out)
    typer.echo(str(found))
    typer.echo("")
    if found.about["own_encoder"]:
        typer.echo("The images are compared by the generator's own encoder, which flatters it: see --encoder.")
    for verdict in give_verdicts(found.measures):
        typer.echo(f"{verdict.mark + ':':8} {verdict.title}: {verdict.text}")
    typer.echo(f"report: {report}")
    failed = found.failed(fail_if or ())
    if failed:
        figures = ", ".join(f"{condition} ({_name(condition)} is {found.measures[_name(condition)].value:.4g})" for condition in failed)
        raise Failure(f"the audit fails: {figures}; see {report}")


def select(
    bank: Annotated[str, typer.Argument(help="Directory of the bank, or data set on the Hub.", show_default=False)],
    scores: Annotated[Path, typer.Option(help="scores.parquet of an audit of this bank.", show_default=False)],
    where: Annotated[str, typer.Option(help='Which variants to keep, such as "similarity >= 0.6 and not near_copy".', show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="The selection, a small file.")] = Path("selection.json"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output file if it exists.")] = False,
) -> None:
    """Choose variants of a bank by their scores, and write the selection to a file.

    \b
    Example:
      gentransforms bank select bank --scores audit/scores.parquet --where "similarity >= 0.6 and not near_copy"
    """
    from gentransforms.bank.reader import Bank

    if not scores.exists():
        raise WrongCall(f"--scores {scores}: no such file: expected scores.parquet, which `gentransforms bank audit` writes")
    if output.exists() and not overwrite:  # the selection that an earlier training names
        raise WrongCall(f"--output {output}: already exists: give another name, or --overwrite to replace it")
    opened = Bank.open(bank)
    chosen = opened.select(scores, where)
    assert chosen.selection is not None
    chosen.selection.save(output)
    without = len(opened.keys) - len(chosen.keys)
    left = "every source has some left" if not without else f"{without} source{'s have' if without > 1 else ' has'} none left"
    typer.echo(f"{len(chosen)} of {len(opened)} images are kept, of {len(chosen.keys)} sources; {left}")
    typer.echo(f'selection: {output}: open it with gentransforms.Bank.open("{bank}", selection="{output}")')


def _name(condition: str) -> str:
    from gentransforms.bank.selection import parse_comparison

    return parse_comparison(condition)[0]
