"""`RandomGenerative`: a generator as a kornia augmentation, with replayable parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from kornia.augmentation import IntensityAugmentationBase2D
from torch import Tensor

from gentransforms.errors import ConfigError, ImageError
from gentransforms.generators.base import ImageGenerator
from gentransforms.generators.held import HoldsGenerator
from gentransforms.images import RangeCheck, as_seen, from_float, resize, restore, to_rows
from gentransforms.surroundings import isolate_thread
from gentransforms.transforms.arguments import check_p
from gentransforms.transforms.replace import check_count, draw_selection, scatter, take
from gentransforms.transforms.traced import refuse_proxies, refuse_recording, refuse_vmap

__all__ = ["RandomGenerative"]


class RandomGenerative(HoldsGenerator, IntensityAugmentationBase2D):
    """Replace each image, with probability `p`, with a newly generated image of the same content.

    Unlike kornia's own augmentations, it processes only the selected images. After a call, ``_params`` hold its selection
    (``batch_prob``) and seeds; passed as ``params=``, they reproduce the images.

    Args:
        generator: generates the images; held and frozen as by `gentransforms.GenerativeAugment`.
        p: probability of replacement, for each image.
        same_on_batch: use one selection and one seed for the whole batch; a container may set it, too.
        max_batch_size: largest number of images generated at once.
        keepdim: return (C, H, W) for (C, H, W), as in every kornia augmentation.

    Shape: (B, C, H, W) or (C, H, W), C 1 or 3, floating in [0, 1]; returns (B, C, H, W).

    Raises:
        ConfigError: if an argument is not as described, or the generator needs more than images, such as labels.
        ImageError: if values lie outside [0, 1], if there are neither 1 nor 3 channels, or if an `AugmentationSequential`
            passes masks, boxes or key points and the generator does not keep geometry. (kornia before 0.9 does not pass
            boxes and key points to augmentations of this kind, so there they cannot be refused.)

    Example:
        >>> import torch
        >>> from gentransforms.testing import FakeGenerator
        >>> augment = RandomGenerative(FakeGenerator(), p=0.5)
        >>> images = torch.rand(4, 3, 16, 16)
        >>> once = augment(images)
        >>> torch.equal(once, augment(images, params=augment._params))
        True
    """

    def __init__(
        self,
        generator: ImageGenerator,
        p: float = 0.5,
        *,
        same_on_batch: bool = False,
        max_batch_size: int | None = None,
        keepdim: bool = False,
    ) -> None:
        super().__init__(p=check_p(p), same_on_batch=same_on_batch, keepdim=keepdim)
        self._hold(generator, max_batch_size)
        if needed := generator.required_inputs:
            raise ConfigError(
                f"generator: {type(generator).__name__} needs {', '.join(needed)} for each image, which kornia does not pass: use "
                "GenerativeAugment(generator, inputs_getter=…)"
            )
        self._check_range = RangeCheck()

    # As in the torchvision transforms, the generator stays out of the graph of a compiled model.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def forward(self, input: Tensor, params: dict[str, Tensor] | None = None, **kwargs: Any) -> Tensor:
        """Return the batch (B, C, H, W) with the chosen images replaced."""
        refuse_proxies(type(self).__name__, [input])
        refuse_vmap(type(self).__name__)
        if self.p > 0:
            refuse_recording(type(self).__name__)
        with isolate_thread():
            output: Tensor = super().forward(input, params=params, **kwargs)
        return output

    def set_rng_device_and_dtype(self, device: torch.device, dtype: torch.dtype) -> None:
        """Keep the random numbers on the CPU: the selection is read without a device sync, and is the same on every device."""
        super().set_rng_device_and_dtype(torch.device("cpu"), dtype)

    def forward_parameters(self, batch_shape: tuple[int, ...]) -> dict[str, Tensor]:
        """Draw ``batch_prob`` (B,), the selection, and what `generate_parameters` draws, for all images, whatever p is."""
        # Implemented here because kornia before 0.9 draws parameters for the selected images only.
        cpu, count = torch.device("cpu"), batch_shape[0]
        drawn = min(count, 1) if self.same_on_batch else count
        chosen = draw_selection(drawn, self.p)
        if self.p_batch < 1:
            chosen = chosen & draw_selection(1, self.p_batch)
        if self.same_on_batch:
            chosen = chosen.repeat(count)
        params = self.generate_parameters(batch_shape)
        return {**params, "batch_prob": chosen.to(self.dtype), "forward_input_shape": torch.tensor(batch_shape, device=cpu)}

    def generate_parameters(self, batch_shape: tuple[int, ...]) -> dict[str, Tensor]:
        """Draw ``seeds`` (B,) int64. A subclass may add parameters of its own, for an `apply_transform` of its own."""
        count = batch_shape[0]
        drawn = min(count, 1) if self.same_on_batch else count
        seeds = torch.randint(2**63 - 1, (drawn,), dtype=torch.int64, device=torch.device("cpu"))
        return {"seeds": seeds.repeat(count) if self.same_on_batch else seeds}

    def transform_inputs(
        self, input: Tensor, params: dict[str, Tensor], flags: dict[str, Any], transform: Tensor | None = None, **kwargs: Any
    ) -> Tensor:
        """Pass the whole batch to `apply_transform`, which gathers; the base class would process all images and blend."""
        batch: Tensor = self.transform_tensor(input)
        self.validate_tensor(batch)
        output: Tensor = self.apply_transform(batch, params, flags, transform)
        if type(self).apply_non_transform is not IntensityAugmentationBase2D.apply_non_transform:  # a subclass has its own
            chosen = (params["batch_prob"].to(batch.device) > 0.5)[:, None, None, None]
            output = torch.where(chosen, output, self.apply_non_transform(batch, params, flags, transform))
        output = self.transform_output_tensor(output, tuple(input.shape))
        return output

    def apply_transform(
        self, input: Tensor, params: Mapping[str, Tensor], flags: Mapping[str, Any], transform: Tensor | None = None
    ) -> Tensor:
        """Return the batch (B, C, H, W) with the chosen images replaced."""
        rows = to_rows(input)
        self._check_range([rows])
        chosen = params["batch_prob"].cpu() > 0.5
        check_count(params, [rows], "batch_prob")
        if not chosen.any():
            return input
        source = take(rows, chosen)
        views = as_seen(source, self.generator.image_size, self.generator.preserves_geometry)
        made, finite = self._generate(views, params["seeds"].cpu()[chosen], {})
        new = from_float(resize(made, rows.shape[-2:]), like=rows)
        output = restore(scatter(rows, chosen, torch.where(finite.to(rows.device)[:, None, None, None], new, source)), input)
        assert isinstance(output, Tensor)
        return output

    def transform_masks(self, input: Any, *args: Any, **kwargs: Any) -> Any:
        """Return masks unchanged if the generator keeps geometry, in the shape that kornia's other augmentations of intensity return."""
        self._kept("mask", input)
        if not isinstance(input, Tensor):
            return input
        # kornia takes floating masks alone, but an index map is as good where nothing is computed.
        like = input if input.is_floating_point() else torch.empty_like(input, dtype=torch.float32)
        kept = super().transform_masks(like, *args, **kwargs)
        return kept if like is input else input.reshape(kept.shape)

    def transform_boxes(self, input: Any, *args: Any, **kwargs: Any) -> Any:
        """Return boxes unchanged if the generator keeps geometry."""
        return self._kept("bbox", input)

    def transform_keypoints(self, input: Any, *args: Any, **kwargs: Any) -> Any:
        """Return key points unchanged if the generator keeps geometry."""
        return self._kept("keypoints", input)

    def _kept(self, key: str, input: Any) -> Any:
        if not self.generator.preserves_geometry:
            raise ImageError(
                f"data key {key!r}: {type(self.generator).__name__} does not keep the layout of an image "
                "(preserves_geometry=False), so it would be wrong: use a generator that does, such as ControlNetVariation"
            )
        return input
