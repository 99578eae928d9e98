"""What a user passes as a generator: an error that says what to do with a pipeline, a function or a class."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import nn

from gentransforms.errors import ConfigError
from gentransforms.generators.base import ImageGenerator

__all__ = ["check_is_generator"]


def check_is_generator(generator: object, or_name: bool = False) -> None:
    """Raise unless `generator` is an `ImageGenerator`, or may be the name of one.

    Args:
        generator: what the user passed.
        or_name: whether a name, folder or repository will do.

    Raises:
        ConfigError: otherwise, saying what to pass instead.

    Example:
        >>> check_is_generator("icgan-cifar10-32", or_name=True)
        >>> check_is_generator(lambda images: images)
        Traceback (most recent call last):
        ...
        gentransforms.errors.ConfigError: generator=function: expected an ImageGenerator; write a subclass whose encode and sample ...
    """
    if isinstance(generator, ImageGenerator) or (or_name and isinstance(generator, str | Path)):
        return
    if isinstance(original := getattr(generator, "_orig_mod", None), ImageGenerator):
        raise ConfigError(
            f"generator=torch.compile({type(original).__name__}): expected the ImageGenerator itself; compile its networks in place, and "
            "pass it as it is: for network in generator.children(): network.compile()"
        )
    # A pipeline's repr is its whole configuration, and a module's all of its layers.
    brief = isinstance(generator, str | int | float | Path | None)
    found = f"class {generator.__name__}" if isinstance(generator, type) else repr(generator) if brief else type(generator).__name__
    raise ConfigError(
        f"generator={found}: expected an ImageGenerator{', or its name, folder or repository' if or_name else ''}{_hint(generator)}"
    )


def _hint(generator: object) -> str:
    if isinstance(generator, str | Path):
        return "; GenerativeAugment.from_pretrained takes a name or a folder"
    if isinstance(generator, type):
        return "; build one of the class" if issubclass(generator, ImageGenerator) else ""
    if isinstance(getattr(generator, "components", None), Mapping):  # a pipeline of diffusers, without importing it
        return "; wrap the pipeline: PipelineVariation.from_pipeline(pipe)"
    if callable(generator) or isinstance(generator, nn.Module):
        return "; write a subclass whose encode and sample call it, as docs/generators.md shows"
    return ""
