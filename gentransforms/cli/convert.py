"""``gentransforms convert``: convert weights released by others into the format of this library."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from gentransforms.cli.plain import Failure, PathsExpanded, WrongCall

__all__ = ["app"]

app = PathsExpanded(rich_markup_mode=None, help="Convert released weights into a folder that load_generator reads.", no_args_is_help=True)


@app.callback()
def _families() -> None:
    """Convert released weights into a folder that load_generator reads."""


@app.command()
def icgan(
    source: Annotated[
        Path, typer.Argument(metavar="SRC", help="Folder with state_dict_best*.pth and G_ema_best*.pth.", show_default=False)
    ],
    destination: Annotated[
        Path, typer.Argument(metavar="DST", help="Folder to write: new, empty, or the result of an earlier conversion.", show_default=False)
    ],
    features: Annotated[
        Path | None,
        typer.Option(
            help="SwAV or torchvision ResNet-50 checkpoint, .pth or .safetensors. "
            "Without it (the default) the generator cannot encode photos and only samples from given features.",
        ),
    ] = None,
) -> None:
    """Convert a released IC-GAN of Casanova et al. (NeurIPS 2021).

    \b
    Example:
      gentransforms convert icgan icgan_biggan_imagenet_res256 icgan-256 --features swav.pth.tar
    """
    if not source.is_dir():
        raise WrongCall(f"SRC {source}: {'expected a folder' if source.exists() else 'no such folder'}")
    if not any(source.glob("state_dict_best*.pth")):
        raise WrongCall(f"SRC {source}: no state_dict_best*.pth in this folder: expected the folder of a released IC-GAN")
    if features is not None and not features.is_file():
        raise WrongCall(f"--features {features}: {'expected a file' if features.exists() else 'no such file'}")
    from gentransforms.errors import GentransformsError  # after what needs no torch
    from gentransforms.generators.icgan.convert import convert_icgan
    from gentransforms.hub import models as hub

    _check_destination(destination)
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=destination.parent):  # before the weights are read: it may not be writable
            pass
        generator = convert_icgan(source, destination, features=features)
    except GentransformsError as error:
        raise Failure(str(error)) from error
    except OSError as error:
        raise Failure(f"DST {destination}: could not be written: {error.strerror or error}") from error
    size = (destination / hub.WEIGHTS_FILE).stat().st_size / 1e6
    height, width = generator.image_size
    encodes = "encodes photos" if features is not None else "only samples from given features (see --features)"
    typer.echo(f"wrote {destination}: {type(generator).__name__}, {height} x {width} pixels, {size:.1f} MB, {encodes}")


def _check_destination(destination: Path) -> None:
    from gentransforms.errors import WeightsError
    from gentransforms.generators.destination import check_folder
    from gentransforms.hub import models as hub

    if destination.exists() and not destination.is_dir():
        raise WrongCall(f"DST {destination}: expected a folder to write, but this is a file")
    if not destination.exists() or not any(destination.iterdir()):
        return
    try:
        found = hub.own_config(hub.Source(destination))
    except WeightsError:  # a file of that name which is something else
        found = None
    if found is None or found.get("class") != "ICGAN":
        raise WrongCall(f"DST {destination}: this folder holds other files: choose a new or empty one")
    try:
        check_folder(destination, "ICGAN")
    except WeightsError as error:
        raise WrongCall(f"DST {error}") from error
