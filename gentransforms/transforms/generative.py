"""`GenerativeAugment`: a generator as a torchvision v2 transform."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gentransforms.errors import ConfigError
from gentransforms.generators.base import ImageGenerator
from gentransforms.generators.held import HoldsGenerator
from gentransforms.generators.maps import MAPS
from gentransforms.generators.registry import load_generator
from gentransforms.images import Image, as_seen, count_images, to_device
from gentransforms.seeding import check_seeds, seed_uniforms
from gentransforms.surroundings import isolate_thread
from gentransforms.transforms.drawing import asked_of, draw_params
from gentransforms.transforms.getters import gather, per_image_inputs, per_image_seeds
from gentransforms.transforms.replace import Origin, ReplaceImages, draw_selection, take

__all__ = ["GenerativeAugment"]

SeedsGetter = Callable[[Any], Any]
InputsGetter = Callable[[Any], Mapping[str, Any]]


class GenerativeAugment(HoldsGenerator, ReplaceImages):
    """Replace each image, with probability `p`, with a newly generated image of the same content.

    Accepts what torchvision v2 accepts: a tensor (…, C, H, W), C 1 or 3, uint8 or floating in [0, 1], a PIL image (RGB or
    L) or `tv_tensors.Image`, alone or nested in tuples, lists and dicts. Returns the same structure, types, dtype,
    device and channels. Each image of a batch is selected on its own; the time taken is proportional to `p`.

    Args:
        generator: generates the images. It is frozen (eval mode, no gradients), so pass a copy if you train it. It is an
            attribute, not a submodule, so that nothing that walks, saves or wraps a model touches it.
        p: probability of replacement, for each image.
        seeds_getter: maps the sample to one seed per image (int, list, or (N,) int64 tensor). The selection then also
            follows from the seed, and no random numbers are drawn: any image can be generated again outside its batch. With
            the same seeds in every epoch, the same images are replaced with the same variants in every epoch. Persistent workers
            see a new epoch in shared memory only: see "Seeds" in the documentation.
        inputs_getter: maps the sample to a dict with one value per image, for the names in ``generator.inputs``.
        max_batch_size: largest number of images generated at once.
        output_size: ``"input"``, ``"generator"`` or (h, w). Generators that keep geometry see the whole image resized;
            others see its centre square, which ``"input"`` stretches back to the image's size.

    Raises:
        ConfigError: if an argument, or what a getter returns, is not as described.
        ImageError: if an image has an unsupported type or range, or comes with a video, or with `tv_tensors` boxes, masks or
            key points that the generator would invalidate; plain ones give a warning.
        GeneratorError: if the generator breaks its contract.
        DeviceError: with a CUDA generator in a forked process.

    Example:
        >>> import torch
        >>> from torchvision.transforms import v2
        >>> augment = GenerativeAugment.from_pretrained("icgan-cifar10-32", p=0.5)
        >>> view = v2.Compose([augment, v2.RandomHorizontalFlip()])
        >>> view(torch.rand(8, 3, 32, 32)).shape
        torch.Size([8, 3, 32, 32])

    Source: Ayromlou et al., "Can Generative Models Improve Self-Supervised Representation Learning?" (AAAI 2025).
    """

    def __init__(
        self,
        generator: ImageGenerator,
        p: float = 0.5,
        *,
        seeds_getter: SeedsGetter | None = None,
        inputs_getter: InputsGetter | None = None,
        max_batch_size: int | None = None,
        output_size: str | tuple[int, int] = "input",
    ) -> None:
        super().__init__(p, output_size)
        for name, getter in {"seeds_getter": seeds_getter, "inputs_getter": inputs_getter}.items():
            if getter is not None and not callable(getter):
                raise ConfigError(f"{name}={getter!r}: expected a function of the sample, or None")
        self.seeds_getter: SeedsGetter | None = seeds_getter
        self.inputs_getter: InputsGetter | None = inputs_getter
        self._hold(generator, max_batch_size)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        p: float = 0.5,
        *,
        seeds_getter: SeedsGetter | None = None,
        inputs_getter: InputsGetter | None = None,
        max_batch_size: int | None = None,
        output_size: str | tuple[int, int] = "input",
        **options: Any,
    ) -> GenerativeAugment:
        """Load a generator by name, folder or repository, and return the transform.

        `options` are passed to `gentransforms.load_generator`: revision, device, dtype, and the generator's own, such as
        ``truncation`` of `ICGAN`.
        """
        generator = load_generator(name_or_path, **options)
        return cls(
            generator, p, seeds_getter=seeds_getter, inputs_getter=inputs_getter,
            max_batch_size=max_batch_size, output_size=output_size,
        )  # fmt: skip

    @property
    def origin(self) -> Origin:
        """The generator's name, its image size (h, w), and whether it keeps the layout of an image."""
        generator = self.generator
        return Origin(type(generator).__name__, generator.image_size, generator.preserves_geometry)

    def make_params(self, flat_inputs: list[Any], p: float | None = None) -> dict[str, Any]:
        """Draw the selection and a seed for every image. In a call with a `seeds_getter`, both follow from its seeds.

        A subclass may override this, with or without the argument `p`, and change what ``super().make_params`` returns.

        Returns:
            ``chosen`` (N,) bool and ``seeds`` (N,) int64, both on the CPU, and an empty dict of ``inputs``.
        """
        p, seeds = asked_of(self, p)
        if seeds is not None:
            with isolate_thread():
                seeds = check_seeds(seeds, count_images(flat_inputs)).clone()  # which a subclass may change
                return {"chosen": seed_uniforms(seeds) < p, "seeds": seeds, "inputs": {}}
        count = count_images(flat_inputs)
        chosen = draw_selection(count, p)
        seeds = torch.randint(2**63 - 1, (count,), dtype=torch.int64, device=torch.device("cpu"))
        return {"chosen": chosen, "seeds": seeds, "inputs": {}}

    def __repr__(self) -> str:
        # One line, as for torchvision's transforms: the generator's layers would bury the rest of a Compose.
        name, (height, width), _ = self.origin
        return (
            f"{type(self).__name__}({name} {height}x{width}, p={self.p}, "
            f"output_size={self.output_size!r}, max_batch_size={self.max_batch_size})"
        )

    def _draw(self, sample: Any, images: list[Image], p: float) -> dict[str, Any]:
        seeds = None
        if self.seeds_getter is not None:
            given = self.seeds_getter(sample)
            with isolate_thread():
                seeds = per_image_seeds(given, images)
        params = draw_params(self, images, p, seeds)
        if self.inputs_getter is not None:
            values = self.inputs_getter(sample)
            with isolate_thread():
                params["inputs"] = per_image_inputs(values, images, self.generator.inputs)
            if self._first_time("inputs"):
                self._warn_of_unused(values)
        return params

    def _expects_maps(self) -> bool:
        # Those that the generator is given.
        return self.inputs_getter is not None and any(name in MAPS for name in self.generator.inputs)

    def _warn_of_unused(self, values: Mapping[str, Any]) -> None:
        """Warn of a getter that gives a generator nothing of what it takes, or a misspelt name; others may be another generator's."""
        wanted = self.generator.inputs
        missing = [name for name in wanted if name not in values]
        close = {name: found[0] for name in values if name not in wanted and (found := get_close_matches(str(name), missing, 1, 0.8))}
        if not missing or not values or not (close or len(missing) == len(wanted)):
            return
        hint = "".join(f"; {given!r} may mean {meant!r}" for given, meant in close.items())
        warnings.warn(
            f"inputs_getter returned {', '.join(map(repr, list(values)[:6]))}: {type(self.generator).__name__} takes "
            f"{', '.join(map(repr, wanted))}, and ignores others{hint}",
            stacklevel=4,
        )

    def _make_images(self, rows: list[Tensor], params: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor | None]:
        _, image_size, preserves_geometry = self.origin
        chosen = params["chosen"]
        sources = [take(row, part) for row, part in zip(rows, torch.split(chosen, [len(row) for row in rows]), strict=True)]
        views = [as_seen(source, image_size, preserves_geometry) for source in sources if len(source)]
        if not views:
            return chosen, torch.empty(0, 3, *image_size, dtype=torch.float32), None
        batch = views[0] if len(views) == 1 else torch.cat([to_device(view, self.generator.device) for view in views])
        made, finite = self._generate(batch, params["seeds"][chosen], {name: gather(v, chosen) for name, v in params["inputs"].items()})
        return chosen, made, finite
