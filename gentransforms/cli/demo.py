"""``gentransforms demo``: show what the transform does."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gentransforms.cli.augment import DEFAULT_GENERATOR, augment, open_generator, report
from gentransforms.cli.grid import check_output
from gentransforms.cli.options import Columns, Device, Generator, MaxBatchSize, Seed, WhiteLevel
from gentransforms.cli.photos import find_photos, read_photo, sample_photos

__all__ = ["demo"]


def demo(
    images: Annotated[
        Path | None, typer.Option(help="Folder of your own images, or of class folders; ten bundled photos by default.")
    ] = None,
    variants: Annotated[int, typer.Option(min=1, help="Variants of each image.")] = 7,
    p: Annotated[
        float, typer.Option(min=0, max=1, help="Probability that a variant is a generated image; otherwise it is the source.")
    ] = 1.0,
    output: Annotated[Path, typer.Option("--output", "-o", help="Picture to write: .png, .jpg or .webp.")] = Path("demo/augmentations.png"),
    generator: Generator = DEFAULT_GENERATOR,
    limit: Annotated[int, typer.Option(min=1, help="Maximum number of images to take: the first by name, of class folders in turn.")] = 16,
    max_batch_size: MaxBatchSize = 64,
    seed: Seed = 0,
    device: Device = "cpu",
    columns: Columns = False,
    white_level: WhiteLevel = None,
) -> None:
    """Draw sample photos, or a folder of your own, next to their generated variants.

    One row per source, starting with the source itself; with --columns, one column per source. Images of any size are shown as
    the generator sees them: the centre square, or the whole image if it keeps the layout, resized to its size. The default
    generator comes with the package and needs no network connection.

    \b
    Examples:
      gentransforms demo
      gentransforms demo --images photos --variants 5 --output photos.png
    """
    found = sample_photos() if images is None else find_photos(images)
    paths = found[:limit]
    check_output(output, paths)
    if len(paths) < len(found):
        typer.echo(f"took the first {len(paths)} of {len(found)} images{'' if images is None else f' in {images}'}; --limit takes more")
    photos = [read_photo(path, white_level) for path in paths]
    loaded = open_generator(generator, device)
    report(augment(loaded, photos, variants, p, seed, max_batch_size), loaded, output, columns)
