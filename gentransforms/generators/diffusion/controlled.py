"""What ControlNets add to a diffusion generator: control maps of images, and residuals for the UNet from these maps."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gentransforms.errors import ConfigError
from gentransforms.generators.diffusion import conditions, loading
from gentransforms.generators.diffusion.appearance import UNetInputs
from gentransforms.generators.diffusion.conditions import Thresholds
from gentransforms.generators.diffusion.describe import select_networks
from gentransforms.generators.diffusion.faster.deepcache import control_residuals
from gentransforms.generators.diffusion.pretrained import PretrainedDiffusion
from gentransforms.generators.diffusion.sampling import draw, scale_latents, to_latents
from gentransforms.hub import models as hub
from gentransforms.images import fit
from gentransforms.wording import with_article

__all__ = ["DEPTH_MODEL", "ControlledDiffusion", "as_list", "folder_name"]

DEPTH_MODEL = "depth-anything/Depth-Anything-V2-Small-hf"


class ControlledDiffusion(PretrainedDiffusion):
    """The base of `ControlNetVariation`, whose constructor sets the attributes: how control maps are made, used, loaded and saved."""

    palette: Tensor
    controlnets: nn.ModuleList
    conditions: list[Any]
    thresholds: Thresholds
    scales: list[float]
    strength: float | None
    depth_estimator: Any
    depth_processor: Any

    def encode(  # type: ignore[override]
        self,
        images: Tensor,
        masks: Any = None,
        prompts: list[str] | None = None,
        noise_levels: Tensor | None = None,
        control_maps: Any = None,
        foreground: Any = None,
        **values: Any,
    ) -> dict[str, Tensor]:
        """Return the control maps of each image, and its other conditions for the UNet.

        Args:
            images: (B, 3, H, W) floating in [0, 1]; the whole image is resized to the generator's size.
            masks: classes, for ``"segmentation"``: (B, H, W) or (B, 1, H, W) integers, or a list of B of any sizes, also PIL images.
            prompts: one for each image, instead of the option `prompt`.
            noise_levels: (B,) int64, instead of the option `noise_level` (unCLIP).
            control_maps: for ``"maps"``: (B, 1 or 3, H, W) uint8, or floating in [0, 1]; or a list of B of any sizes, also PIL
                images.
            foreground: masks of the subject, for ``noise_level="foreground"`` (unCLIP), as in `StableDiffusionVariation.encode`.
            values: for each field of `prompt`, one value per image.

        Returns:
            For the i-th ControlNet ``control_i`` (B, 1 or 3, h, w), or ``magnitude_i`` (B, 1, h, w) where each variant draws
            its thresholds; with `strength` ``latents`` and ``latents_std`` (B, C, h/8, w/8); and what
            `StableDiffusionVariation.encode` returns.

        Raises:
            MissingInputError: if masks, control maps or values of the prompt's fields are needed and not given.
            ConfigError: if masks, control maps, prompts or levels are not one for each image, or out of range.
            GeneratorError: if a condition function returns anything other than control maps.
        """
        condition = super().encode(images, prompts, noise_levels, foreground, **values)
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
            elif kind == "maps":
                condition[f"control_{i}"] = conditions.given_maps(control_maps, self.image_size, len(images)).to(images)
            else:
                condition[f"control_{i}"] = conditions.run_callable(kind, images)
        if self.strength is not None and len(images):
            condition |= to_latents(self.vae, images)
        return condition

    def check_encode_inputs(self, inputs: Mapping[str, Any], count: int) -> None:
        """Check masks, control maps and what determines the noise, as `ImageGenerator.check_encode_inputs` says."""
        super().check_encode_inputs(inputs, count)
        if "segmentation" in self.conditions:
            conditions.check_masks(inputs.get("masks"), len(self.palette), count)
        if "maps" in self.conditions:
            conditions.check_maps(inputs.get("control_maps"), count)

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
        """Return the control maps as each ControlNet embeds them, once for all steps, with rows as in the UNet's batch."""
        embedded = []
        nets: list[Any] = list(self.controlnets)
        for i, net in enumerate(nets):
            maps = condition[f"control_{i}"] if f"control_{i}" in condition else self._edges(condition[f"magnitude_{i}"], seeds)
            maps = maps.to(self.dtype).expand(-1, 3, -1, -1)
            rows = net.controlnet_cond_embedding(maps.flip(1) if _takes_bgr(net) else maps)
            embedded.append(torch.cat([rows, rows]) if self.guided else rows)
        return embedded

    def _residuals(
        self, noisy: Tensor, t: Tensor, inputs: UNetInputs, extra: list[Tensor], branch: int | None
    ) -> tuple[Sequence[Tensor], Tensor | None]:
        down: list[Tensor] = []
        mid: Tensor | None = None
        nets: list[Any] = list(self.controlnets)
        for net, scale, rows in zip(nets, self.scales, extra, strict=True):
            embedded = rows[-len(noisy) :]
            if branch is None:
                residuals, middle = _run_controlnet(net, noisy, t, inputs, embedded, scale)
                mid = middle if mid is None else mid + middle
            else:
                residuals = self._part(control_residuals)(net, noisy, t, inputs, embedded, scale=scale, branch=branch)
            down = [a + b for a, b in zip(down, residuals, strict=True)] if down else list(residuals)
        return down, mid

    def _edges(self, magnitude: Tensor, seeds: Tensor) -> Tensor:
        return conditions.canny_edges(magnitude, *conditions.draw_thresholds(self.thresholds, seeds))

    def _options(self) -> dict[str, Any]:
        named = [conditions.describe(condition) for condition in self.conditions]
        options = super()._options() | {
            "condition": named if len(named) > 1 else named[0],
            "conditioning_scale": list(self.scales), "canny_thresholds": [list(pair) for pair in self.thresholds],
        }  # fmt: skip
        if "segmentation" in self.conditions and not torch.equal(self.palette.cpu(), conditions.ADE20K):
            options["palette"] = self.palette.tolist()
        return options if self.strength is None else options | {"strength": self.strength}

    def _described_parts(self) -> dict[str, Any]:
        parts = super()._described_parts() | {folder_name(i): net for i, net in enumerate(self.controlnets)}
        return parts | {"depth_estimator": self.depth_estimator, "depth_processor": self.depth_processor}

    def _networks(self) -> dict[str, nn.Module]:
        own = {name: network for name, network in super()._networks().items() if name != "controlnets"}
        return own | select_networks(
            {folder_name(i): net for i, net in enumerate(self.controlnets)} if "controlnets" in self._modules else {}
        )

    def _denoising_networks(self) -> list[nn.Module]:
        return [self.unet, *self.controlnets]

    @property
    def required_inputs(self) -> tuple[str, ...]:
        """``masks``, with ``"segmentation"``; ``control_maps``, with ``"maps"``; and the fields of the prompt."""
        needed = {"masks": "segmentation", "control_maps": "maps"}
        return (*(name for name, condition in needed.items() if condition in self.conditions), *super().required_inputs)

    @property
    def _drawn_thresholds(self) -> bool:
        return any(low < high for low, high in self.thresholds)

    @classmethod
    def _load_parts(
        cls, source: hub.Source, base: str, dtype: torch.dtype, options: dict[str, Any], elsewhere: Mapping[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        from diffusers import ControlNetModel

        options, elsewhere = dict(options), dict(elsewhere)
        variant = elsewhere.pop("variant", None)
        given_nets, depth = options.pop("controlnet", None), options.pop("depth_model", None)
        own, saved_depth = options.pop("saved_controlnets", 0), options.pop("saved_depth", False)
        parts: dict[str, Any] = {}
        if given_nets is not None:
            parts["controlnet"] = [
                net
                if isinstance(net, nn.Module)
                else loading.load_part(ControlNetModel, hub.Source(net, **elsewhere), dtype, variant=variant)
                for net in as_list(given_nets)
            ]
        elif own:
            parts["controlnet"] = [loading.load_part(ControlNetModel, source, dtype, folder_name(i), variant) for i in range(own)]
        elif "ControlNet" not in base:
            raise ConfigError(
                f"controlnet is missing: {source} holds {with_article(base)}; give the repository or folder of a ControlNetModel"
            )
        chosen = options.get("condition", "canny")
        kinds = list(chosen) if isinstance(chosen, list | tuple) else [chosen]
        for kind in kinds:
            if isinstance(kind, dict):
                raise ConfigError(
                    f"{source} was saved with the function {kind.get('function')!r} (version {kind.get('version')!r}) as its condition, "
                    "whose code is not in the folder: give it again, condition=…"
                )
        if "depth" in kinds:
            where, folder = (source, "depth_estimator") if saved_depth and depth is None else (None, None)
            parts["depth_estimator"] = _load_depth(where or hub.Source(depth or DEPTH_MODEL, **elsewhere), dtype, folder, variant)
        return parts, options

    @classmethod
    def _other_parts(cls, given: Mapping[str, Any], parts: Mapping[str, Any]) -> dict[str, Any]:
        depth = given.get("depth_model") or (given.get("depth_estimator") or [None])[0]
        if depth is None and "depth_estimator" in parts:
            depth = DEPTH_MODEL
        nets = given.get("controlnet")
        return {"the ControlNet": getattr(nets, "nets", nets), "the depth model": depth}

    @classmethod
    def _pipeline_class(cls, base: str) -> str:
        # As a stock ControlNet pipeline loads it: the others rewrite old configurations of its scheduler.
        rewriting = ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline")
        return "StableDiffusionControlNetPipeline" if base in rewriting else base

    @classmethod
    def _pipeline_parts(cls, base: str, parts: Mapping[str, Any]) -> dict[str, Any]:
        return {"controlnet": parts["controlnet"]} if "ControlNet" in cls._pipeline_class(base) and "controlnet" in parts else {}

    @classmethod
    def _find_parts(cls, pipe: Any) -> dict[str, Any]:
        found = getattr(pipe, "controlnet", None)
        return {} if found is None else {"controlnet": list(getattr(found, "nets", [found]))}

    def _saved_extra(self) -> dict[str, Any]:
        return {"saved_controlnets": len(self.controlnets), "saved_depth": self.depth_estimator is not None}

    def _save_parts(self, directory: Path, dtype: torch.dtype | None) -> None:
        networks: dict[str, Any] = {folder_name(i): net for i, net in enumerate(self.controlnets)}
        if self.depth_estimator is not None:
            networks["depth_estimator"] = self.depth_estimator
            self.depth_processor.save_pretrained(directory / "depth_estimator")
        for folder, network in networks.items():
            (network if dtype is None else copy.deepcopy(network).to(dtype)).save_pretrained(directory / folder, safe_serialization=True)


def _run_controlnet(net: Any, noisy: Tensor, t: Tensor, inputs: UNetInputs, embedded: Tensor, scale: float) -> Any:
    """Return what a ControlNet adds to the skip connections and the middle of a UNet, from control maps that it has embedded before."""
    added = {name: value for name, value in inputs.added.items() if name != "image_embeds"}
    if _takes_bgr(net):
        embedded = embedded.flip(1)  # the network flips the channels of what it is given, here the embedded map
    embedding = net.controlnet_cond_embedding
    net.controlnet_cond_embedding = nn.Identity()
    try:
        return net(
            noisy, t, encoder_hidden_states=inputs.encoder_hidden_states, controlnet_cond=embedded, conditioning_scale=scale,
            class_labels=inputs.class_labels if net.config.class_embed_type else None, added_cond_kwargs=added, return_dict=False,
        )  # fmt: skip
    finally:
        net.controlnet_cond_embedding = embedding


def _takes_bgr(net: Any) -> bool:
    return str(net.config.controlnet_conditioning_channel_order) == "bgr"


def as_list(nets: Any) -> list[Any]:
    """Return ControlNets as a list, whether one, several or those of a pipeline; an empty list for None."""
    if nets is None:
        return []
    nets = getattr(nets, "nets", nets)  # diffusers' MultiControlNetModel
    return list(nets) if isinstance(nets, list | tuple | nn.ModuleList) else [nets]


def folder_name(i: int) -> str:
    """Return the folder that the i-th ControlNet is saved in, which also names it in messages."""
    return f"controlnet_{i}" if i else "controlnet"


def _load_depth(source: hub.Source, dtype: torch.dtype, folder: str | None, variant: str | None) -> tuple[nn.Module, Any]:
    from transformers import AutoImageProcessor, AutoModelForDepthEstimation

    model = loading.load_part(AutoModelForDepthEstimation, source, dtype, folder, variant)
    return model, loading.load_processor(AutoImageProcessor, source, folder)
