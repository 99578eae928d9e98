"""What `demo` and `preview` share: open a generator and run photos through the transform."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from gentransforms.cli.grid import draw_grid, write_picture
from gentransforms.cli.plain import WrongCall
from gentransforms.errors import ConfigError, WeightsError

if TYPE_CHECKING:
    import PIL.Image
    from torch import Tensor

    from gentransforms.generators.base import ImageGenerator

__all__ = ["DEFAULT_GENERATOR", "Augmented", "augment", "open_generator", "report"]

DEFAULT_GENERATOR = "icgan-cifar10-32"


@dataclass(frozen=True)
class Augmented:
    """Photos as the generator saw them, (N, 3, H, W) uint8, and what was made of each, (N, V, 3, H, W) uint8."""

    sources: Tensor
    variants: Tensor
    made: int
    kept: int
    seconds: float


def open_generator(name: str, device: str, options: Mapping[str, Any] | None = None, inputs: bool = False) -> ImageGenerator:
    """Return the generator of that name, folder or repository, on `device`, with its options.

    Args:
        name: bundled name, folder or repository.
        device: where it runs.
        options: of its ``from_pretrained``.
        inputs: whether it may need labels, masks or prompts beside each image.

    Raises:
        WrongCall: if there is no such device, no generator of that name, or it needs more than photos.
        WeightsError: if there is one and it cannot be loaded.
    """
    import torch

    from gentransforms.generators.registry import check_option_names, find_class
    from gentransforms.hub import models as hub

    options = dict(options or {})
    if isinstance(options.get("dtype"), str):  # the one option whose value no JSON can hold
        options["dtype"] = getattr(torch, options["dtype"], options["dtype"])
    try:
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch was built without that kind of device
        raise WrongCall(f"--device {device}: not a device of this machine ({str(error).splitlines()[0]})") from error
    try:
        source = hub.Source(name)
        kind = find_class(source, options)
    except WeightsError as error:
        if _unreachable(error):
            raise
        raise WrongCall(f"--generator {error}; `gentransforms list` prints the known names") from error
    try:
        check_option_names(kind, options)
        generator = kind.from_pretrained(name, device=device, **options)
    except ConfigError as error:
        if not options:
            raise
        raise WrongCall(f"--option: {error}") from error
    generator.name_or_path = name
    if (needed := generator.required_inputs) and not inputs:
        raise WrongCall(f"--generator {name}: it needs {', '.join(needed)} beside each image: use it from Python")
    return generator


def augment(generator: ImageGenerator, photos: Sequence[PIL.Image.Image], variants: int, p: float, seed: int, size: int) -> Augmented:
    """Return `variants` variants of each photo, made by the transform in one batch.

    Args:
        generator: makes the images.
        photos: RGB, of any sizes.
        variants: of each photo.
        p: probability that a variant is a new image, rather than the photo itself.
        seed: of torch's random state, from which the transform draws.
        size: the transform's max_batch_size.
    """
    import torch
    from torchvision.transforms import v2

    from gentransforms.images import fit, rows_of, to_unit
    from gentransforms.transforms.generative import GenerativeAugment

    transform = GenerativeAugment(generator, p, max_batch_size=size, output_size="generator")
    view = v2.Compose([transform, v2.ToDtype(torch.uint8, scale=True)])
    sources = torch.cat([fit(to_unit(rows_of(photo)), generator.image_size, generator.preserves_geometry) for photo in photos])
    batch = sources.repeat_interleave(variants, dim=0)
    made = 0
    with _progress(len(batch) if p == 1 else None) as advance:

        def count(_module: object, _args: object, images: Tensor) -> None:
            nonlocal made
            made += len(images)
            advance(len(images))

        hook = generator.register_forward_hook(count)
        torch.manual_seed(seed)
        start = time.perf_counter()
        try:
            images = view(batch)
        finally:
            hook.remove()
        seconds = time.perf_counter() - start
    rows = images.unflatten(0, (len(photos), variants))
    return Augmented((sources * 255).round().to(torch.uint8), rows, made, transform.nonfinite_count, seconds)


def report(result: Augmented, generator: ImageGenerator, output: Path) -> None:
    """Write the grid to `output`, then say how fast it went and where it is."""
    write_picture(draw_grid(result.sources, result.variants), output)
    if result.kept:
        typer.echo(f"Warning: {result.kept} generated images were not finite, and show their source instead", err=True)
    count, columns = result.variants.shape[:2]
    speed = f"{result.made} images made in {result.seconds:.2f} s, {result.made / result.seconds:.1f} images/s"
    typer.echo(f"{count} sources x {columns} variants: {speed} ({type(generator).__name__} on {generator.device})")
    typer.echo(f"wrote {output}")


@contextlib.contextmanager
def _progress(total: int | None) -> Iterator[Callable[[int], object]]:
    """Draw progress on a terminal, and nowhere else; `total` is None where the coins decide it."""
    if not sys.stderr.isatty():
        yield lambda _count: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("generating"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("generating", total=total)
        yield lambda count: progress.advance(task, count)


def _unreachable(error: WeightsError) -> bool:
    """Whether the Hub gave no answer about the name, which may well be right."""
    cause = error.__cause__
    if cause is None or isinstance(cause, ValueError):
        return False
    response = getattr(cause, "response", None)
    return response is None or response.status_code >= 500
