"""``gentransforms preview``: show what the transform generates from your images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gentransforms.cli.augment import DEFAULT_GENERATOR, augment, open_generator, report
from gentransforms.cli.grid import check_output
from gentransforms.cli.options import Columns, Device, Generator, MaxBatchSize, Option, Seed, WhiteLevel, parse_options
from gentransforms.cli.photos import read_photo

__all__ = ["preview"]


def preview(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE", help="One or more image files.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="Picture to write: .png, .jpg or .webp.")] = Path("grid.png"),
    generator: Generator = DEFAULT_GENERATOR,
    variants: Annotated[int, typer.Option(min=1, help="Variants of each image.")] = 8,
    max_batch_size: MaxBatchSize = 64,
    seed: Seed = 0,
    device: Device = "cpu",
    option: Option = None,
    columns: Columns = False,
    white_level: WhiteLevel = None,
) -> None:
    """Draw your images next to their generated variants.

    One row per image, starting with the image itself; with --columns, one column per image. Images of any size are rotated
    according to their EXIF orientation, and shown as the generator sees them: the centre square, or the whole image if it keeps
    the layout, resized to its size.

    \b
    Example:
      gentransforms preview cat.jpg dog.jpg -o grid.png --variants 4
    """
    check_output(output, images)
    photos = [read_photo(path, white_level) for path in images]
    loaded = open_generator(generator, device, parse_options(option))
    report(augment(loaded, photos, variants, 1.0, seed, max_batch_size), loaded, output, columns)
