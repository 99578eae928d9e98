"""Generate the bank for the images that a recipe trains on.

    python examples/ssl/make_bank.py --config examples/ssl/configs/cifar10-small/simclr-icgan.yaml \
        --generator icgan-cifar10-32 data.train=train.parquet generative.bank=banks/cifar10

The bank covers exactly the rows that the settings select (data.limit, data.holdout), with the keys that training expects. For all
images of a folder or a Parquet file, `gentransforms generate` makes the same bank, on several machines if you like: either continues
what the other began. A bank that `generate` began has all images, whatever the settings select.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from arguments import positive
from config import Settings, load_settings
from data import Source, open_images
from loading import training_rows

import gentransforms as gt
from gentransforms.bank.format.manifest import has_manifest, read_manifest
from gentransforms.bank.generate.run import Summary, generate_bank
from gentransforms.errors import ConfigError
from gentransforms.sources import ImageSource

WHOLE = ("image folder", "parquet")  # what a manifest calls the sources that `gentransforms generate` opens for a folder and a file


class Rows:
    """Some images of a source as a map-style data set: (image, label), or the image alone."""

    def __init__(self, source: Source, rows: list[int]) -> None:
        self.source, self.rows = source, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> Any:
        row = self.rows[place]
        image = self.source.read(row)
        return image if self.source.labels is None else (image, int(self.source.labels[row]))


def make_bank(settings: Settings, generator: str | gt.ImageGenerator, variants: int, progress: bool = True, **options: Any) -> Summary:
    """Generate or complete the bank named in the settings."""
    if settings.generative.bank is None:
        raise SystemExit("generative.bank is not set: expected the folder for the bank")
    source = open_images(settings.data.train, settings.data.image_column, settings.data.label_column)
    rows = training_rows(source, settings)[0].tolist()
    labelled, all_rows = source.labels is not None, len(rows) == len(source)
    opened = open_whole(settings, all_rows, labelled) or gt.open_source(Rows(source, rows), key=[source.keys[row] for row in rows])
    return generate_bank(opened, settings.generative.bank, generator, variants=variants, progress=progress, **options)


def open_whole(settings: Settings, all_rows: bool, labelled: bool) -> ImageSource | None:
    """Return all images as `gentransforms generate` opens them, if the bank is one of these or a new one of all rows; else None.

    A bank that was begun with some rows, or by an earlier version of this script, is continued as it was begun. A new one is of
    `Rows`, too, if the command line would need options to open the file, or would not see the labels that the recipe sees.
    """
    data, bank = settings.data, Path(str(settings.generative.bank))
    begun = read_manifest(bank).get("source", {}).get("decides", {}).get("kind") if has_manifest(bank) else None
    if begun not in WHOLE and not (begun is None and all_rows):
        return None
    if not Path(data.train).exists():  # a data set of torchvision, which has no name for the command line
        return None
    columns = {"labels": data.label_column} if data.label_column else None
    options: dict[str, Any] = {} if Path(data.train).is_dir() else {"image_column": data.image_column, "columns": columns}
    try:
        whole = gt.open_source(data.train, **options)
    except ConfigError:
        if begun is not None:
            raise
        return None
    return whole if begun is not None or "labels" in whole.inputs or not labelled else None


def main() -> None:
    """Parse the command line and make the bank."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True, help="YAML file of settings")
    parser.add_argument("--generator", required=True, help="bundled name, folder or repository")
    parser.add_argument("--variants", type=positive, default=10, help="of each image")
    parser.add_argument("overrides", nargs="*", metavar="name=value", help="settings, for example data.limit=10000")
    args = parser.parse_args()
    try:
        summary = make_bank(load_settings(args.config, args.overrides), args.generator, args.variants)
    except gt.GentransformsError as error:
        raise SystemExit(str(error)) from error
    print(f"{summary.path}: {summary.images} images made, {len(summary.failed)} sources could not be read")


if __name__ == "__main__":
    main()
