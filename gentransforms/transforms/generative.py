"""Generative augmentation as a torchvision v2 transform."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import PIL.Image
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten
from torchvision import tv_tensors
from torchvision.transforms import v2

from gentransforms.errors import ConfigError
from gentransforms.generators.base import ImageGenerator
from gentransforms.generators.registry import load_generator
from gentransforms.images import Image, count_of, fit, from_unit, resize, restore, rows_of, to_unit
from gentransforms.seeding import seed_uniforms
from gentransforms.transforms.frozen import FrozenGenerator
from gentransforms.transforms.getters import gather, per_image_inputs, per_image_seeds
from gentransforms.transforms.replace import check_companions, framed, images_in, output_size_of, probability, scatter, take

__all__ = ["GenerativeAugment"]

SeedsGetter = Callable[[Any], Any]
InputsGetter = Callable[[Any], Mapping[str, Any]]


class GenerativeAugment(FrozenGenerator, v2.Transform):  # type: ignore[misc]  # torchvision has no annotations
    """Replace each image, with probability `p`, by a new image of the same content.

    Takes what torchvision v2 takes: a tensor (…, C, H, W), C 1 or 3, uint8 or floating in [0, 1], a PIL image (RGB or
    L) or `tv_tensors.Image`, alone or nested in tuples, lists and dicts. Returns the same structure, types, dtype,
    device and channels. Each image of a batch has its own coin; time goes with `p`.

    Args:
        generator: makes the images; frozen, so pass a copy of one in training.
        p: probability, for each image.
        seeds_getter: from the sample to one seed per image (int, list, or (N,) int64 tensor). The coin then follows from
            the seed too, and nothing is drawn: an image can be made again out of any batch. Seeds that stay the same choose
            the same images and make the same variants in every epoch.
        inputs_getter: from the sample to a dict with one value per image, for the names in ``generator.inputs``.
        max_batch_size: largest number of images generated at once.
        output_size: ``"input"``, ``"generator"`` or (h, w). Generators that keep geometry see the whole image resized;
            others its centre square, which ``"input"`` stretches back to the image's size.

    Raises:
        ConfigError: if an argument, or what a getter returns, is not as described.
        ImageError: if an image is of another kind or range, or stands beside a video, or beside boxes, masks or key
            points that the generator would make wrong.
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

    _needs_transform_list: Callable[[list[Any]], list[bool]]
    _transformed_types = (tv_tensors.Image, v2._utils.is_pure_tensor, PIL.Image.Image)

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
        super().__init__()
        self.p = probability(p)
        for name, getter in {"seeds_getter": seeds_getter, "inputs_getter": inputs_getter}.items():
            if getter is not None and not callable(getter):
                raise ConfigError(f"{name}={getter!r}: expected a function of the sample, or None")
        self.seeds_getter: SeedsGetter | None = seeds_getter
        self.inputs_getter: InputsGetter | None = inputs_getter
        self.output_size = output_size_of(output_size)
        self._freeze(generator, max_batch_size)

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
        """Load a generator by name, folder or repository, and make the transform.

        `options` go to `gentransforms.load_generator`: revision, device, dtype, and the generator's own, such as
        ``truncation`` of `ICGAN`.
        """
        generator = load_generator(name_or_path, **options)
        return cls(
            generator, p, seeds_getter=seeds_getter, inputs_getter=inputs_getter,
            max_batch_size=max_batch_size, output_size=output_size,
        )  # fmt: skip

    def check_inputs(self, flat_inputs: list[Any]) -> None:
        """Refuse, by name, what would become wrong."""
        generator = self.generator
        check_companions(flat_inputs, type(generator).__name__, generator.preserves_geometry, self.output_size)

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw a coin and a seed for every image: ``chosen`` (N,) bool and ``seeds`` (N,) int64, on the CPU."""
        count = count_of(flat_inputs)
        # As many draws per image whatever p and the coins are, so that p does not shift the random stream.
        cpu = torch.device("cpu")  # also where torch.set_default_device says otherwise
        coins, seeds = torch.rand(count, device=cpu), torch.randint(2**63 - 1, (count,), device=cpu)
        return {"chosen": coins < self.p, "seeds": seeds, "inputs": {}}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Apply drawn parameters to one image or batch."""
        return self._apply_params([inpt], [rows_of(inpt)], params)[0]

    def forward(self, *inputs: Any) -> Any:
        """Transform a sample."""
        sample = inputs if len(inputs) > 1 else inputs[0]
        flat, spec = tree_flatten(sample)
        self.check_inputs(flat)
        places, images, rows = images_in(flat, self._needs_transform_list(flat))
        outputs = self._apply_params(images, rows, self._params(sample, images))
        for i, output in zip(places, outputs, strict=True):
            flat[i] = output
        return tree_unflatten(flat, spec)

    def __repr__(self) -> str:
        # One line, as for torchvision's own: the generator's layers would bury the rest of a Compose.
        height, width = self.generator.image_size
        return (
            f"{type(self).__name__}({type(self.generator).__name__} {height}x{width}, p={self.p}, "
            f"output_size={self.output_size!r}, max_batch_size={self.max_batch_size})"
        )

    def _params(self, sample: Any, images: list[Image]) -> dict[str, Any]:
        if self.seeds_getter is None:
            params = self.make_params(images)
        else:
            seeds = per_image_seeds(self.seeds_getter(sample), images)
            params = {"chosen": seed_uniforms(seeds) < self.p, "seeds": seeds, "inputs": {}}
        if self.inputs_getter is not None:
            params["inputs"] = per_image_inputs(self.inputs_getter(sample), images, self.generator.inputs)
        return params

    def _apply_params(self, images: list[Image], rows: list[Tensor], params: dict[str, Any]) -> list[Image]:
        self._check_range(rows)
        chosen = torch.split(params["chosen"], [len(row) for row in rows])
        sources = [take(row, coin) for row, coin in zip(rows, chosen, strict=True)]
        views = [fit(to_unit(s), self.generator.image_size, self.generator.preserves_geometry) for s in sources if len(s)]
        if not views:
            return [image if self.output_size == "input" else self._kept(row, image) for row, image in zip(rows, images, strict=True)]
        self._check_process()
        device = self.generator.device
        given = {name: gather(value, params["chosen"]) for name, value in params["inputs"].items()}
        batch = torch.cat([view.to(device, non_blocking=True) for view in views]) if len(views) > 1 else views[0]
        made, finite = self._generate(batch, params["seeds"][params["chosen"]], given)
        counts = [len(source) for source in sources]
        pieces = zip(rows, images, chosen, sources, torch.split(made, counts), torch.split(finite, counts), strict=True)
        return [self._scatter(*piece) for piece in pieces]

    def _scatter(self, rows: Tensor, image: Image, chosen: Tensor, source: Tensor, made: Tensor, finite: Tensor) -> Image:
        """Return `image` with its chosen rows replaced by what was made of them; where that is not finite, kept."""
        if not len(source) and self.output_size == "input":
            return image
        base = rows if self.output_size == "input" else self._resized(rows)
        if not len(source):
            return restore(base, image)
        kept = source if self.output_size == "input" else take(base, chosen)
        new = from_unit(resize(made, base.shape[-2:]), like=rows)
        new = torch.where(finite.to(rows.device)[:, None, None, None], new, kept)
        return scatter(base, image, chosen, new)

    def _resized(self, rows: Tensor) -> Tensor:
        size = self.generator.image_size if self.output_size == "generator" else self.output_size
        assert not isinstance(size, str)
        return framed(rows, size, self.generator.image_size, self.generator.preserves_geometry)

    def _kept(self, rows: Tensor, image: Image) -> Image:
        return restore(self._resized(rows), image)
