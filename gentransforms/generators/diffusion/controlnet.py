"""ControlNet: new images that keep the source's layout, its edges, depth or segmentation."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gentransforms.errors import ConfigError
from gentransforms.generators.diffusion import conditions, loading
from gentransforms.generators.diffusion.appearance import UNetInputs
from gentransforms.generators.diffusion.options import check_number
from gentransforms.generators.diffusion.pretrained import PretrainedDiffusion
from gentransforms.generators.diffusion.sampling import draw, scale_latents, to_latents
from gentransforms.hub import models as hub
from gentransforms.images import fit

__all__ = ["ControlNetVariation"]

_NAMED = ("canny", "depth", "segmentation")
DEPTH_MODEL = "depth-anything/Depth-Anything-V2-Small-hf"


class ControlNetVariation(PretrainedDiffusion):
    """New images with the layout of the source: boxes, masks and key points stay right.

    One or several ControlNets hold the layout. The appearance comes from a prompt, or one prompt per image; from the source
    image's embedding, where the base has an IP-Adapter, or is unCLIP or sd-image-variations; and, with `strength`, from the
    source's own latents. Bases: Stable Diffusion, Stable Diffusion XL, and those of `StableDiffusionVariation`.

    Args:
        pipe: a diffusers pipeline; its networks are shared, frozen and put into eval mode.
        controlnet: a ``ControlNetModel``, or a list of them; None for those of the pipeline.

    Keyword Args:
        condition: ``"canny"``, ``"depth"``, ``"segmentation"``, or a function from images (B, 3, H, W) floating in [0, 1], at
            the generator's size, to control maps likewise; a list for several ControlNets.
        depth_estimator: (model, image processor) of transformers, for ``"depth"``.
        conditioning_scale: weight of each ControlNet, one number or a list; 1, or 0.8 with `strength`.
        canny_thresholds: (low, high), each a number or a range (from, to), drawn for each image by its seed. Of the gradient
            of Sobel's filter on [0, 1]: OpenCV's divided by 255.
        palette: (K, 3) colours from 0 to 255 for ``"segmentation"``; those of ADE20K by default.
        strength: from 0 to 1: start from the source's latents with this share of the steps, instead of from noise.
        options: those of `StableDiffusionVariation`.

    Raises:
        WeightsError: if the pipeline is of another kind, or lacks a component.
        ConfigError: if an option is unknown or out of its range, or conditions and ControlNets differ in number.

    Attributes:
        inputs: ``masks`` with ``"segmentation"``: classes (B, H, W) or (B, 1, H, W), integers, 255 unlabelled; ``prompts``,
            one string for each image, where there is a text encoder; ``noise_levels`` (B,) int64 (unCLIP).

    Example:
        >>> import torch
        >>> generator = ControlNetVariation.from_pretrained(  # folders or repositories
        ...     base_folder, controlnet=controlnet_folder, condition="canny", prompt="a photo", num_inference_steps=2
        ... )
        >>> generator(torch.rand(2, 3, 40, 40), torch.tensor([1, 2])).shape
        torch.Size([2, 3, 32, 32])

    Source: Zhang et al., "Adding Conditional Control to Text-to-Image Diffusion Models" (ICCV 2023); for `strength`, Meng et
    al., "SDEdit" (ICLR 2022).
    """

    preserves_geometry = True
    palette: Tensor
    _options = PretrainedDiffusion._options | {"condition", "conditioning_scale", "canny_thresholds", "palette", "strength"}

    def __init__(self, pipe: Any, *, controlnet: Any = None, depth_estimator: tuple[nn.Module, Any] | None = None, **options: Any) -> None:
        nets = _as_list(self._parts_of(pipe).get("controlnet") if controlnet is None else controlnet)
        if not nets:
            raise ConfigError("controlnet is missing: give a ControlNetModel, or a list of them")
        super().__init__(pipe, **options)
        given = self._init_config
        chosen = given.get("condition", "canny")
        self.conditions: list[Any] = list(chosen) if isinstance(chosen, list | tuple) else [chosen]
        for condition in self.conditions:
            if condition not in _NAMED and not callable(condition):
                raise ConfigError(f"condition={condition!r}: expected one of {', '.join(_NAMED)}, a function, or a list of these")
        if len(nets) != len(self.conditions):
            raise ConfigError(f"condition={chosen!r}: {len(self.conditions)} conditions for {len(nets)} ControlNets, expected one for each")
        strength = given.get("strength")
        self.strength = None if strength is None else check_number("strength", strength, 0, 1)
        if strength is not None and int(self.num_inference_steps * strength) < 1:
            raise ConfigError(f"strength={strength!r}: no step is left of {self.num_inference_steps}; raise it, or num_inference_steps")
        scale = given.get("conditioning_scale", 1.0 if strength is None else 0.8)
        scales = scale if isinstance(scale, list | tuple) else [scale] * len(nets)
        self.scales = [check_number("conditioning_scale", s, 0) for s in scales]
        if len(self.scales) != len(nets):
            raise ConfigError(f"conditioning_scale={scale!r}: expected one number for each of {len(nets)} ControlNets")
        self.thresholds = conditions.check_thresholds(given.get("canny_thresholds", (100 / 255, 200 / 255)))
        self.register_buffer("palette", _palette(given.get("palette")).to(self.device), persistent=False)
        self.controlnets = nn.ModuleList(nets)
        model, processor = depth_estimator or (None, None)
        self.depth_estimator: Any = model
        self.depth_processor: Any = processor
        if "depth" in self.conditions and self.depth_estimator is None:
            raise ConfigError("condition='depth': give depth_estimator=(model, image processor), or depth_model= to from_pretrained")
        if "segmentation" in self.conditions:
            self.inputs = ("masks", *self.inputs)
        self._finish(list(self.controlnets))

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, *, controlnet: Any = None, depth_model: Any = None, **options: Any) -> Any:
        """Load a base and its ControlNets; returned in eval mode.

        Args:
            name_or_path: repository or folder of the base, of a whole ControlNet pipeline, or written by `save_pretrained`.
            controlnet: repository or folder of a ``ControlNetModel``, or a list; not needed where they come with the base.
            depth_model: repository or folder of a transformers depth-estimation model, for ``condition="depth"``; Depth
                Anything V2 small by default.
            options: those of `StableDiffusionVariation.from_pretrained` and of the class.

        Raises:
            WeightsError: if a file is missing, damaged or of another kind.
            ConfigError: if an option is unknown or out of its range.
        """
        return super().from_pretrained(name_or_path, controlnet=controlnet, depth_model=depth_model, **options)

    def encode(  # type: ignore[override]
        self, images: Tensor, masks: Any = None, prompts: list[str] | None = None, noise_levels: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Return the control maps of each image, and what else the UNet is told of it.

        Args:
            images: (B, 3, H, W) floating in [0, 1]; the whole image is brought to the generator's size.
            masks: classes, for ``"segmentation"``: (B, H, W) or (B, 1, H, W) integers, or a list of B of any sizes.
            prompts: one for each image, instead of the option `prompt`.
            noise_levels: (B,) int64, instead of the option `noise_level` (unCLIP).

        Returns:
            For the i-th ControlNet ``control_i`` (B, 1 or 3, h, w), or ``magnitude_i`` (B, 1, h, w) where each variant draws
            its thresholds; with `strength` ``latents`` and ``latents_std`` (B, C, h/8, w/8); and what
            `StableDiffusionVariation.encode` returns.

        Raises:
            MissingInputError: if masks are needed and not given.
            ConfigError: if masks, prompts or levels are not one for each image, or out of range.
            GeneratorError: if a function of the user's returns something else than control maps.
        """
        condition = super().encode(images, prompts, noise_levels)
        images = fit(images.float(), self.image_size, True)
        for i, kind in enumerate(self.conditions):
            if kind == "canny":
                magnitude = conditions.canny_magnitude(images)
                if self._drawn_thresholds:
                    condition[f"magnitude_{i}"] = magnitude
                else:
                    condition[f"control_{i}"] = self._edges(magnitude, torch.zeros(len(images), dtype=torch.int64))
            elif kind == "depth":
                condition[f"control_{i}"] = conditions.depth_maps(self.depth_estimator, self.depth_processor, images)
            elif kind == "segmentation":
                condition[f"control_{i}"] = conditions.colour_masks(masks, self.palette, self.image_size, len(images))
            else:
                condition[f"control_{i}"] = conditions.run_callable(kind, images)
        if self.strength is not None and len(images):
            condition |= to_latents(self.vae, images)
        return condition

    def _start(self, condition: Mapping[str, Tensor], rngs: list[torch.Generator], scheduler: Any) -> tuple[Tensor, int]:
        if self.strength is None:
            return super()._start(condition, rngs, scheduler)
        latents = condition["latents"]
        if "latents_std" in condition:
            latents = latents + condition["latents_std"] * draw(rngs, latents.shape[1:], latents)
        latents = scale_latents(self.vae, latents).to(self.dtype)
        steps = self.num_inference_steps
        first = (steps - min(int(steps * self.strength), steps)) * scheduler.order
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(first)
        noise, t = draw(rngs, latents.shape[1:], latents), scheduler.timesteps[first : first + 1]
        return scheduler.add_noise(latents, noise, t.repeat(len(rngs))), first

    def _per_call(self, condition: Mapping[str, Tensor], seeds: Tensor) -> list[Tensor]:
        """The control maps as each ControlNet embeds them, once for all steps: rows as in the UNet's batch."""
        embedded = []
        nets: list[Any] = list(self.controlnets)
        for i, net in enumerate(nets):
            maps = condition[f"control_{i}"] if f"control_{i}" in condition else self._edges(condition[f"magnitude_{i}"], seeds)
            rows = net.controlnet_cond_embedding(maps.to(self.dtype).expand(-1, 3, -1, -1))
            embedded.append(torch.cat([rows, rows]) if self.guided else rows)
        return embedded

    def _per_step(self, noisy: Tensor, t: Tensor, inputs: UNetInputs, extra: list[Tensor]) -> dict[str, Any]:
        down: list[Tensor] = []
        mid: Any = None
        nets: list[Any] = list(self.controlnets)
        for net, scale, embedded in zip(nets, self.scales, extra, strict=True):
            added = {name: value for name, value in inputs.added.items() if name != "image_embeds"}
            embedding = net.controlnet_cond_embedding
            net.controlnet_cond_embedding = nn.Identity()  # the maps were embedded before the first step
            try:
                residuals, middle = net(
                    noisy, t, encoder_hidden_states=inputs.encoder_hidden_states, controlnet_cond=embedded, conditioning_scale=scale,
                    class_labels=inputs.class_labels if net.config.class_embed_type else None, added_cond_kwargs=added, return_dict=False,
                )  # fmt: skip
            finally:
                net.controlnet_cond_embedding = embedding
            down = [a + b for a, b in zip(down, residuals, strict=True)] if down else list(residuals)
            mid = middle if mid is None else mid + middle
        return {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}

    def _edges(self, magnitude: Tensor, seeds: Tensor) -> Tensor:
        return conditions.canny_edges(magnitude, *conditions.draw_thresholds(self.thresholds, seeds))

    @property
    def required_inputs(self) -> tuple[str, ...]:
        """``masks``, with ``"segmentation"``."""
        return ("masks",) if "segmentation" in self.conditions else ()

    @property
    def _drawn_thresholds(self) -> bool:
        return any(low < high for low, high in self.thresholds)

    @classmethod
    def _part_options(cls) -> frozenset[str]:
        return frozenset({"controlnet", "depth_model"})

    @classmethod
    def _load_parts(
        cls, source: hub.Source, base: str, dtype: torch.dtype, options: dict[str, Any], elsewhere: Mapping[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        from diffusers import ControlNetModel

        options = dict(options)
        given, depth = options.pop("controlnet", None), options.pop("depth_model", None)
        own, saved_depth = options.pop("saved_controlnets", 0), options.pop("saved_depth", False)
        parts: dict[str, Any] = {}
        if given is not None:
            parts["controlnet"] = [
                net if isinstance(net, nn.Module) else loading.load_part(ControlNetModel, hub.Source(net, **elsewhere), dtype)
                for net in _as_list(given)
            ]
        elif own:
            parts["controlnet"] = [loading.load_part(ControlNetModel, source, dtype, _folder(i)) for i in range(own)]
        elif "ControlNet" not in base:
            raise ConfigError(f"controlnet is missing: {source} holds a {base}; give the repository or folder of a ControlNetModel")
        chosen = options.get("condition", "canny")
        if "depth" in (chosen if isinstance(chosen, list | tuple) else [chosen]):
            where, folder = (source, "depth_estimator") if saved_depth and depth is None else (None, None)
            parts["depth_estimator"] = _load_depth(where or hub.Source(depth or DEPTH_MODEL, **elsewhere), dtype, folder)
        return parts, options

    @classmethod
    def _pipeline_parts(cls, base: str, parts: Mapping[str, Any]) -> dict[str, Any]:
        return {"controlnet": parts["controlnet"]} if "ControlNet" in base and "controlnet" in parts else {}

    @classmethod
    def _parts_of(cls, pipe: Any) -> dict[str, Any]:
        found = getattr(pipe, "controlnet", None)
        return {} if found is None else {"controlnet": list(getattr(found, "nets", [found]))}

    def _saved_extra(self) -> dict[str, Any]:
        return {"saved_controlnets": len(self.controlnets), "saved_depth": self.depth_estimator is not None}

    def _save_parts(self, directory: Path, dtype: torch.dtype | None) -> None:
        networks: dict[str, Any] = {_folder(i): net for i, net in enumerate(self.controlnets)}
        if self.depth_estimator is not None:
            networks["depth_estimator"] = self.depth_estimator
            self.depth_processor.save_pretrained(directory / "depth_estimator")
        for folder, network in networks.items():
            (network if dtype is None else copy.deepcopy(network).to(dtype)).save_pretrained(directory / folder, safe_serialization=True)


def _as_list(nets: Any) -> list[Any]:
    if nets is None:
        return []
    nets = getattr(nets, "nets", nets)  # diffusers' MultiControlNetModel
    return list(nets) if isinstance(nets, list | tuple | nn.ModuleList) else [nets]


def _folder(i: int) -> str:
    return f"controlnet_{i}" if i else "controlnet"


def _palette(colours: Any) -> Tensor:
    if colours is None:
        return conditions.ADE20K.clone()
    try:
        palette = torch.as_tensor(colours)
        if palette.ndim == 2 and palette.shape[1] == 3 and len(palette) and 0 <= int(palette.min()) <= int(palette.max()) <= 255:
            return palette.to(torch.uint8)
    except (TypeError, ValueError, RuntimeError):
        pass
    raise ConfigError(f"palette={colours!r}: expected (K, 3) colours from 0 to 255, one for each class")


def _load_depth(source: hub.Source, dtype: torch.dtype, folder: str | None) -> tuple[nn.Module, Any]:
    from transformers import AutoImageProcessor, AutoModelForDepthEstimation

    model = loading.load_part(AutoModelForDepthEstimation, source, dtype, folder)
    return model, loading.load_processor(AutoImageProcessor, source, folder)
