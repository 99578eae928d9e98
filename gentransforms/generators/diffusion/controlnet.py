"""ControlNet: new images that keep the source's layout, its edges, depth or segmentation."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from gentransforms.errors import ConfigError
from gentransforms.generators.diffusion import conditions, loading
from gentransforms.generators.diffusion.appearance import UNetInputs
from gentransforms.generators.diffusion.describe import select_networks
from gentransforms.generators.diffusion.faster.deepcache import control_residuals
from gentransforms.generators.diffusion.faster.execution import CompileMode
from gentransforms.generators.diffusion.fit import check_controlnets
from gentransforms.generators.diffusion.options import Preset, SchedulerName, check_number, given
from gentransforms.generators.diffusion.pretrained import PretrainedDiffusion
from gentransforms.generators.diffusion.sampling import draw, scale_latents, to_latents
from gentransforms.hub import models as hub
from gentransforms.images import fit

if TYPE_CHECKING:
    from diffusers import SchedulerMixin

__all__ = ["ControlNetVariation"]

Condition = Literal["canny", "depth", "segmentation", "maps"] | Callable[[Tensor], Tensor]
Threshold = float | tuple[float, float]
V = TypeVar("V", bound="ControlNetVariation")

_NAMED = ("canny", "depth", "segmentation", "maps")
DEPTH_MODEL = "depth-anything/Depth-Anything-V2-Small-hf"


class ControlNetVariation(PretrainedDiffusion):
    """New images with the layout of the source, so that boxes, masks and key points stay valid.

    One or several ControlNets hold the layout. The appearance comes from a prompt, or one prompt per image; from the source
    image's embedding, where the base has an IP-Adapter, or is unCLIP or sd-image-variations; and, with `strength`, from the
    source's own latents. Bases: Stable Diffusion, Stable Diffusion XL, and those of `StableDiffusionVariation`.

    Args:
        pipe: a diffusers pipeline; its networks are shared, frozen and put into eval mode.
        controlnet: a ``ControlNetModel``, or a list of them; None for those of the pipeline.

    Keyword Args:
        condition: ``"canny"``, ``"depth"``, ``"segmentation"``; ``"maps"`` for control maps that come beside the images; or a
            function from images (B, 3, H, W) floating in [0, 1], at the generator's size, to control maps likewise, with an
            attribute ``version``; a list for several ControlNets.
        depth_estimator: (model, image processor) of transformers, for ``"depth"``.
        conditioning_scale: weight of each ControlNet, one number or a list; 1, or 0.8 with `strength`.
        canny_thresholds: (low, high), each a number or a range (from, to), drawn for each image by its seed. Of the gradient
            of Sobel's filter on [0, 1]: OpenCV's divided by 255.
        palette: (K, 3) colours from 0 to 255 for ``"segmentation"``; those of ADE20K by default.
        strength: from 0 to 1: start from the source's latents with this share of the steps, instead of from noise.
        preset: ``"paper"`` (Ayromlou et al.: DDIM with trailing timesteps and zero terminal SNR, 10 steps, guidance 10, no
            noise, empty prompt) or ``"fast"`` (DPM-Solver++, 4 steps, no guidance); explicit options take precedence.
        num_inference_steps: number of denoising steps; the stock pipeline's by default.
        guidance_scale: scale of classifier-free guidance, the stock pipeline's by default; 1 or below disables it and halves the work.
        guidance_interval: (low, high), fractions of the steps from the noisiest, 0, to the last, 1: guidance only from low to high
            (approximate); everywhere by default.
        cache_interval: every how many steps the whole UNet runs; the other steps take its deep features from the last of these
            (DeepCache, approximate). 1 by default, which is off.
        cache_branch: the deepest skip connection that the other steps compute; 0, the least work, by default.
        scheduler: ``"ddim"``, ``"dpm++"``, ``"unipc"``, ``"euler"``, ``"lcm"``, or a diffusers scheduler; the repository's own
            by default.
        eta: noise of DDIM, from 0 to 1.
        image_size: size of the generated images in pixels, a side or (height, width); the repository's by default.
        prompt: text for images without a prompt of their own.
        negative_prompt: what guidance leads away from.
        noise_level: noise on the image embedding (unCLIP), from 0 to 999; more noise gives more variety. ``"foreground"``: for each
            image 0, 100, 200, 300 or 400, more where its subject fills more of it (GenView).
        foreground_bounds: with ``"foreground"``, the shares of foreground from which on there are 100 levels more; five equal bins by
            default, (0.2, 0.4, 0.6, 0.8).
        ip_adapter_scale: weight of the image against the text (IP-Adapter); a number, or a dict of blocks as in diffusers.
        decode_batch_size: how many images the VAE decodes at once; all by default.
        channels_last: memory format of the networks (exact up to rounding).
        fuse_qkv: one matrix product for queries, keys and values in the networks that run in each step (exact up to rounding).
        compile: run these networks through ``torch.compile`` (exact up to rounding): ``"regional"``, their repeated blocks alone,
            which are soon compiled; ``"full"`` or True, the whole; ``"max-autotune"`` or ``"reduce-overhead"``, torch's modes.

    Raises:
        WeightsError: if the pipeline is of another kind, or lacks a component.
        ConfigError: if an option is unknown or out of its range, or conditions and ControlNets differ in number.

    Attributes:
        inputs: ``masks`` with ``"segmentation"``: classes (B, H, W) or (B, 1, H, W), integers, 255 unlabelled;
            ``control_maps`` with ``"maps"``: (B, 1 or 3, H, W) uint8, or floating in [0, 1]; ``prompts``, one string for each
            image, where there is a text encoder; ``noise_levels`` (B,) int64 (unCLIP);
            ``foreground``, masks of the subject, with ``noise_level="foreground"``.

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
    _parts = frozenset({"controlnet", "depth_estimator"})
    _loaded_parts = frozenset({"controlnet", "depth_model"})

    def __init__(
        self,
        pipe: Any,
        *,
        controlnet: Any = None,
        condition: Condition | Sequence[Condition] = "canny",
        depth_estimator: tuple[nn.Module, Any] | None = None,
        conditioning_scale: float | Sequence[float] | None = None,
        canny_thresholds: tuple[Threshold, Threshold] = (100 / 255, 200 / 255),
        palette: Any = None,
        strength: float | None = None,
        preset: Preset | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        guidance_interval: tuple[float, float] | None = None,
        cache_interval: int = 1,
        cache_branch: int = 0,
        scheduler: SchedulerName | SchedulerMixin | dict[str, Any] | None = None,
        eta: float = 0.0,
        image_size: int | tuple[int, int] | None = None,
        prompt: str = "",
        negative_prompt: str | None = None,
        noise_level: int | Literal["foreground"] = 0,
        foreground_bounds: Sequence[float] | None = None,
        ip_adapter_scale: float | dict[str, Any] | None = None,
        decode_batch_size: int | None = None,
        channels_last: bool = False,
        fuse_qkv: bool = False,
        compile: bool | CompileMode = False,
    ) -> None:
        options = given(locals(), self.option_names())
        nets = _as_list(self._find_parts(pipe).get("controlnet") if controlnet is None else controlnet)
        if not nets:
            raise ConfigError("controlnet is missing: give a ControlNetModel, or a list of them")
        super().__init__(pipe, options)
        chosen = condition
        self.conditions: list[Any] = list(chosen) if isinstance(chosen, list | tuple) else [chosen]
        for name in self.conditions:
            if name not in _NAMED and not callable(name):
                raise ConfigError(f"condition={name!r}: expected one of {', '.join(_NAMED)}, a function, or a list of these")
        if len(nets) != len(self.conditions):
            raise ConfigError(f"condition={chosen!r}: {len(self.conditions)} conditions for {len(nets)} ControlNets, expected one for each")
        self.strength = None if strength is None else check_number("strength", strength, 0, 1)
        if strength is not None and int(self.num_inference_steps * strength) < 1:
            raise ConfigError(f"strength={strength!r}: no step is left of {self.num_inference_steps}; raise it, or num_inference_steps")
        scale = conditioning_scale if conditioning_scale is not None else 1.0 if strength is None else 0.8
        scales = scale if isinstance(scale, list | tuple) else [scale] * len(nets)
        self.scales = [check_number("conditioning_scale", s, 0) for s in scales]
        if len(self.scales) != len(nets):
            raise ConfigError(f"conditioning_scale={scale!r}: expected one number for each of {len(nets)} ControlNets")
        self.thresholds = conditions.check_thresholds(canny_thresholds)
        self.register_buffer("palette", _palette(palette).to(self.device), persistent=False)
        check_controlnets({_folder(i): net for i, net in enumerate(nets)}, self.unet)
        self.controlnets = nn.ModuleList(nets)
        model, processor = depth_estimator or (None, None)
        self.depth_estimator: Any = model
        self.depth_processor: Any = processor
        if "depth" in self.conditions and self.depth_estimator is None:
            raise ConfigError("condition='depth': give depth_estimator=(model, image processor), or depth_model= to from_pretrained")
        if self.conditions.count("maps") > 1:
            raise ConfigError(f"condition={chosen!r}: 'maps' stands in it twice, and images carry one control map: use it once")
        self.inputs = (*self.required_inputs, *self.inputs)
        self._finish({_folder(i): net for i, net in enumerate(self.controlnets)})

    @classmethod
    def from_pipeline(
        cls: type[V],
        pipe: Any,
        *,
        controlnet: Any = None,
        condition: Condition | Sequence[Condition] = "canny",
        depth_estimator: tuple[nn.Module, Any] | None = None,
        conditioning_scale: float | Sequence[float] | None = None,
        canny_thresholds: tuple[Threshold, Threshold] = (100 / 255, 200 / 255),
        palette: Any = None,
        strength: float | None = None,
        preset: Preset | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        guidance_interval: tuple[float, float] | None = None,
        cache_interval: int = 1,
        cache_branch: int = 0,
        scheduler: SchedulerName | SchedulerMixin | dict[str, Any] | None = None,
        eta: float = 0.0,
        image_size: int | tuple[int, int] | None = None,
        prompt: str = "",
        negative_prompt: str | None = None,
        noise_level: int | Literal["foreground"] = 0,
        foreground_bounds: Sequence[float] | None = None,
        ip_adapter_scale: float | dict[str, Any] | None = None,
        decode_batch_size: int | None = None,
        channels_last: bool = False,
        fuse_qkv: bool = False,
        compile: bool | CompileMode = False,
    ) -> V:
        """Return a generator on the components of a loaded diffusers pipeline; they are shared with it, and frozen.

        What was set in the pipeline holds: its scheduler, LoRAs and their scales, the scale of an IP-Adapter, FreeU, tiling.

        Args:
            pipe: a pipeline of Stable Diffusion, with or without its ControlNets.
            controlnet: a ``ControlNetModel``, or a list of them; None for those of the pipeline.
            condition: ``"canny"``, ``"depth"``, ``"segmentation"``, ``"maps"`` or a function; a list for several ControlNets.
            depth_estimator: (model, image processor) of transformers, for ``"depth"``.
            conditioning_scale: weight of each ControlNet, one number or a list; 1, or 0.8 with `strength`.
            canny_thresholds: (low, high), each a number or a range (from, to), drawn for each image by its seed.
            palette: (K, 3) colours from 0 to 255 for ``"segmentation"``; those of ADE20K by default.
            strength: from 0 to 1: start from the source's latents with this share of the steps, instead of from noise.
            preset: ``"paper"`` (Ayromlou et al.: DDIM with trailing timesteps and zero terminal SNR, 10 steps, guidance 10, no
                noise, empty prompt) or ``"fast"`` (DPM-Solver++, 4 steps, no guidance); explicit options take precedence.
            num_inference_steps: number of denoising steps; the stock pipeline's by default.
            guidance_scale: scale of classifier-free guidance, the stock pipeline's by default; 1 or below disables it and halves the work.
            guidance_interval: (low, high), fractions of the steps from the noisiest, 0, to the last, 1: guidance only from low to high
                (approximate); everywhere by default.
            cache_interval: every how many steps the whole UNet runs; the other steps take its deep features from the last of these
                (DeepCache, approximate). 1 by default, which is off.
            cache_branch: the deepest skip connection that the other steps compute; 0, the least work, by default.
            scheduler: ``"ddim"``, ``"dpm++"``, ``"unipc"``, ``"euler"``, ``"lcm"``, or a diffusers scheduler; the repository's own
                by default.
            eta: noise of DDIM, from 0 to 1.
            image_size: size of the generated images in pixels, a side or (height, width); the repository's by default.
            prompt: text for images without a prompt of their own.
            negative_prompt: what guidance leads away from.
            noise_level: noise on the image embedding (unCLIP), from 0 to 999; more noise gives more variety. ``"foreground"``: for each
                image 0, 100, 200, 300 or 400, more where its subject fills more of it (GenView).
            foreground_bounds: with ``"foreground"``, the shares of foreground from which on there are 100 levels more; five equal bins by
                default, (0.2, 0.4, 0.6, 0.8).
            ip_adapter_scale: weight of the image against the text (IP-Adapter); a number, or a dict of blocks as in diffusers.
            decode_batch_size: how many images the VAE decodes at once; all by default.
            channels_last: memory format of the networks (exact up to rounding).
            fuse_qkv: one matrix product for queries, keys and values in the networks that run in each step (exact up to rounding).
            compile: run these networks through ``torch.compile`` (exact up to rounding): ``"regional"``, their repeated blocks alone,
                which are soon compiled; ``"full"`` or True, the whole; ``"max-autotune"`` or ``"reduce-overhead"``, torch's modes.

        Raises:
            WeightsError: if the pipeline is of a kind that the class cannot take, or its parts do not fit each other.
            ConfigError: if an option is out of its range, or the pipeline holds what no fingerprint can cover.
        """
        return cls(pipe, **given(locals(), cls.option_names() | cls._parts))

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls: type[V],
        name_or_path: str | Path,
        *,
        controlnet: Any = None,
        condition: Condition | Sequence[Condition] | None = None,
        depth_model: str | Path | None = None,
        conditioning_scale: float | Sequence[float] | None = None,
        canny_thresholds: tuple[Threshold, Threshold] | None = None,
        palette: Any = None,
        strength: float | None = None,
        revision: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        variant: str | None = None,
        vae: str | Path | nn.Module | None = None,
        lora: str | Path | Sequence[str] | None = None,
        ip_adapter: Sequence[str] | None = None,
        preset: Preset | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        guidance_interval: tuple[float, float] | None = None,
        cache_interval: int | None = None,
        cache_branch: int | None = None,
        scheduler: SchedulerName | SchedulerMixin | dict[str, Any] | None = None,
        eta: float | None = None,
        image_size: int | tuple[int, int] | None = None,
        prompt: str | None = None,
        negative_prompt: str | None = None,
        noise_level: int | Literal["foreground"] | None = None,
        foreground_bounds: Sequence[float] | None = None,
        ip_adapter_scale: float | dict[str, Any] | None = None,
        decode_batch_size: int | None = None,
        channels_last: bool | None = None,
        fuse_qkv: bool | None = None,
        compile: bool | CompileMode | None = None,
    ) -> V:
        """Load a base and its ControlNets; returned in eval mode.

        An option that is not given is that of the saved generator, else the class's default.

        Args:
            name_or_path: repository or folder of the base, of a whole ControlNet pipeline, or written by `save_pretrained`.
            revision: commit, tag or branch of that repository.
            device: device to load it to; the CPU by default.
            dtype: dtype of its weights; float32 by default, float16 with ``preset="paper"``.
            token: token for a private repository.
            cache_dir: directory for downloads.
            local_files_only: use only files that have been downloaded already.
            variant: variant of the weight files, such as ``"fp16"``; a part that has no such file is loaded from its plain one.
            vae: ``"tiny"``, or the repository, folder or module of an ``AutoencoderKL`` or ``AutoencoderTiny``.
            lora: repository, folder or file of a LoRA, or (repo, weight_name); merged into the weights. Needs ``peft``.
            ip_adapter: (repo, subfolder, weight_name), and a fourth entry where the image encoder has a folder of its own.
            controlnet: repository or folder of a ``ControlNetModel``, or a list; not needed where they come with the base.
            condition: ``"canny"``, ``"depth"``, ``"segmentation"``, ``"maps"`` or a function; a list for several ControlNets.
            depth_model: repository or folder of a transformers depth-estimation model, for ``condition="depth"``; Depth
                Anything V2 small by default.
            conditioning_scale: weight of each ControlNet, one number or a list; 1, or 0.8 with `strength`.
            canny_thresholds: (low, high), each a number or a range (from, to), drawn for each image by its seed.
            palette: (K, 3) colours from 0 to 255 for ``"segmentation"``; those of ADE20K by default.
            strength: from 0 to 1: start from the source's latents with this share of the steps, instead of from noise.
            preset: ``"paper"`` (Ayromlou et al.: DDIM with trailing timesteps and zero terminal SNR, 10 steps, guidance 10, no
                noise, empty prompt) or ``"fast"`` (DPM-Solver++, 4 steps, no guidance); explicit options take precedence.
            num_inference_steps: number of denoising steps; the stock pipeline's by default.
            guidance_scale: scale of classifier-free guidance, the stock pipeline's by default; 1 or below disables it and halves the work.
            guidance_interval: (low, high), fractions of the steps from the noisiest, 0, to the last, 1: guidance only from low to high
                (approximate); everywhere by default.
            cache_interval: every how many steps the whole UNet runs; the other steps take its deep features from the last of these
                (DeepCache, approximate). 1 by default, which is off.
            cache_branch: the deepest skip connection that the other steps compute; 0, the least work, by default.
            scheduler: ``"ddim"``, ``"dpm++"``, ``"unipc"``, ``"euler"``, ``"lcm"``, or a diffusers scheduler; the repository's own
                by default.
            eta: noise of DDIM, from 0 to 1.
            image_size: size of the generated images in pixels, a side or (height, width); the repository's by default.
            prompt: text for images without a prompt of their own.
            negative_prompt: what guidance leads away from.
            noise_level: noise on the image embedding (unCLIP), from 0 to 999; more noise gives more variety. ``"foreground"``: for each
                image 0, 100, 200, 300 or 400, more where its subject fills more of it (GenView).
            foreground_bounds: with ``"foreground"``, the shares of foreground from which on there are 100 levels more; five equal bins by
                default, (0.2, 0.4, 0.6, 0.8).
            ip_adapter_scale: weight of the image against the text (IP-Adapter); a number, or a dict of blocks as in diffusers.
            decode_batch_size: how many images the VAE decodes at once; all by default.
            channels_last: memory format of the networks (exact up to rounding).
            fuse_qkv: one matrix product for queries, keys and values in the networks that run in each step (exact up to rounding).
            compile: run these networks through ``torch.compile`` (exact up to rounding): ``"regional"``, their repeated blocks alone,
                which are soon compiled; ``"full"`` or True, the whole; ``"max-autotune"`` or ``"reduce-overhead"``, torch's modes.

        Raises:
            WeightsError: if a file is missing, damaged or of another kind, or parts do not fit each other.
            ConfigError: if an option is out of its range.
        """
        return cls._load(name_or_path, locals(), given(locals(), cls.option_names()))

    def encode(  # type: ignore[override]
        self,
        images: Tensor,
        masks: Any = None,
        prompts: list[str] | None = None,
        noise_levels: Tensor | None = None,
        control_maps: Any = None,
        foreground: Any = None,
    ) -> dict[str, Tensor]:
        """Return the control maps of each image, and what else the UNet is told of it.

        Args:
            images: (B, 3, H, W) floating in [0, 1]; the whole image is brought to the generator's size.
            masks: classes, for ``"segmentation"``: (B, H, W) or (B, 1, H, W) integers, or a list of B of any sizes.
            prompts: one for each image, instead of the option `prompt`.
            noise_levels: (B,) int64, instead of the option `noise_level` (unCLIP).
            control_maps: for ``"maps"``: (B, 1 or 3, H, W) uint8, or floating in [0, 1]; or a list of B of any sizes.
            foreground: masks of the subject, for ``noise_level="foreground"`` (unCLIP), as in `StableDiffusionVariation.encode`.

        Returns:
            For the i-th ControlNet ``control_i`` (B, 1 or 3, h, w), or ``magnitude_i`` (B, 1, h, w) where each variant draws
            its thresholds; with `strength` ``latents`` and ``latents_std`` (B, C, h/8, w/8); and what
            `StableDiffusionVariation.encode` returns.

        Raises:
            MissingInputError: if masks or control maps are needed and not given.
            ConfigError: if masks, control maps, prompts or levels are not one for each image, or out of range.
            GeneratorError: if a function of the user's returns something else than control maps.
        """
        condition = super().encode(images, prompts, noise_levels, foreground)
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
        parts = super()._described_parts() | {_folder(i): net for i, net in enumerate(self.controlnets)}
        return parts | {"depth_estimator": self.depth_estimator, "depth_processor": self.depth_processor}

    def _networks(self) -> dict[str, nn.Module]:
        own = {name: network for name, network in super()._networks().items() if name != "controlnets"}
        return own | select_networks({_folder(i): net for i, net in enumerate(self.controlnets)} if "controlnets" in self._modules else {})

    def _denoising_networks(self) -> list[nn.Module]:
        return [self.unet, *self.controlnets]

    @property
    def required_inputs(self) -> tuple[str, ...]:
        """``masks``, with ``"segmentation"``; ``control_maps``, with ``"maps"``."""
        needed = {"masks": "segmentation", "control_maps": "maps"}
        return tuple(name for name, condition in needed.items() if condition in self.conditions)

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
                for net in _as_list(given_nets)
            ]
        elif own:
            parts["controlnet"] = [loading.load_part(ControlNetModel, source, dtype, _folder(i), variant) for i in range(own)]
        elif "ControlNet" not in base:
            raise ConfigError(f"controlnet is missing: {source} holds a {base}; give the repository or folder of a ControlNetModel")
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
        networks: dict[str, Any] = {_folder(i): net for i, net in enumerate(self.controlnets)}
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


def _load_depth(source: hub.Source, dtype: torch.dtype, folder: str | None, variant: str | None) -> tuple[nn.Module, Any]:
    from transformers import AutoImageProcessor, AutoModelForDepthEstimation

    model = loading.load_part(AutoModelForDepthEstimation, source, dtype, folder, variant)
    return model, loading.load_processor(AutoImageProcessor, source, folder)
