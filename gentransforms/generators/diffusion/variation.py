"""Stable Diffusion image variation: new images of what an image shows, from its embedding."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from torch import nn

from gentransforms.errors import WeightsError
from gentransforms.generators.diffusion.faster.execution import CompileMode
from gentransforms.generators.diffusion.options import Preset, SchedulerName, given
from gentransforms.generators.diffusion.pretrained import PretrainedDiffusion
from gentransforms.wording import name_type

if TYPE_CHECKING:
    from diffusers import SchedulerMixin

V = TypeVar("V", bound="StableDiffusionVariation")

__all__ = ["StableDiffusionVariation"]


class StableDiffusionVariation(PretrainedDiffusion):
    """Image variation by Stable Diffusion, conditioned on an embedding of the source image.

    There are three ways of conditioning, recognised by what is loaded: unCLIP (``StableUnCLIPImg2ImgPipeline``),
    sd-image-variations (``StableDiffusionImageVariationPipeline``), and an IP-Adapter on Stable Diffusion 1.5 or XL. Load
    with `from_pretrained`, or take a pipeline with `from_pipeline`. Options that are not given keep the
    repository's own settings and the stock pipeline's defaults. Row i of `sample` equals the stock pipeline's image for seed i.

    Args:
        pipe: a diffusers pipeline of one of these kinds; its networks are shared, frozen and put into eval mode.

    Keyword Args:
        preset: ``"paper"`` (Ayromlou et al.: DDIM with trailing timesteps and zero terminal SNR, 10 steps, guidance 10, no
            noise, empty prompt) or ``"fast"`` (DPM-Solver++, 4 steps, no guidance); explicit options take precedence.
        num_inference_steps: number of denoising steps; the stock pipeline's by default.
        guidance_scale: scale of classifier-free guidance, the stock pipeline's by default; 1 or below disables it and halves the work.
        guidance_interval: (low, high), as fractions of the steps from the noisiest, 0, to the last, 1: guidance is applied only from
            low to high (approximate); in all steps by default.
        cache_interval: run the whole UNet only every so many steps; the steps between reuse its deep features (DeepCache, approximate).
            1, the default, disables this.
        cache_branch: the deepest skip connection that the steps between compute anew; 0 by default, which is the least work.
        scheduler: ``"ddim"``, ``"dpm++"``, ``"unipc"``, ``"euler"``, ``"lcm"``, or a diffusers scheduler; the repository's own
            by default.
        eta: noise of DDIM, from 0 to 1.
        image_size: size of the generated images in pixels, a side or (height, width); the repository's by default.
        prompt: text for images without a prompt of their own. Its fields, as in ``"a {label}"``, become inputs, with one value
            per image.
        negative_prompt: text that guidance steers away from.
        noise_level: noise on the image embedding (unCLIP), from 0 to 999; more noise gives more variety. ``"foreground"``: 0, 100, 200,
            300 or 400 for each image, higher where the subject fills more of it (GenView).
        foreground_bounds: with ``"foreground"``, the shares of foreground at which the noise level rises by another 100; by default
            (0.2, 0.4, 0.6, 0.8), which makes five equal bins.
        ip_adapter_scale: weight of the image relative to the text (IP-Adapter); a number, or a dict of blocks as in diffusers.
        decode_batch_size: how many images the VAE decodes at once; all by default.
        channels_last: memory format of the networks (exact up to rounding).
        fuse_qkv: one matrix product for queries, keys and values in the networks that run in each step (exact up to rounding).
        compile: run these networks through ``torch.compile`` (exact up to rounding): ``"regional"`` compiles only their repeated
            blocks, which is quick; ``"full"`` or True, the whole networks; ``"max-autotune"`` and ``"reduce-overhead"`` are torch's
            modes.

    Raises:
        WeightsError: if the pipeline is of another kind, or lacks a component.
        ConfigError: if an option is unknown or out of its range.

    Attributes:
        inputs: the fields of `prompt`; ``prompts``, one string for each image, where there is a text encoder; ``noise_levels`` (B,)
            int64 (unCLIP);
            ``foreground``, masks of the subject, with ``noise_level="foreground"``.

    Example:
        >>> import torch
        >>> generator = StableDiffusionVariation.from_pretrained(unclip_folder, num_inference_steps=2)  # a folder or repository
        >>> generator(torch.rand(2, 3, 40, 40), torch.tensor([1, 2])).shape
        torch.Size([2, 3, 32, 32])

    Source: Ramesh et al., "Hierarchical Text-Conditional Image Generation with CLIP Latents" (2022); Rombach et al., "High-Resolution
    Image Synthesis with Latent Diffusion Models" (CVPR 2022); Ye et al., "IP-Adapter" (2023).
    """

    preserves_geometry = False

    def __init__(
        self,
        pipe: Any,
        *,
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
        super().__init__(pipe, given(locals(), self.option_names()))
        if self.kind == "none":
            raise WeightsError(
                f"{name_type(self.pipe)} does not see the source image: give ip_adapter=(repo, subfolder, weight_name), or use "
                "ControlNetVariation, or PipelineVariation for image-to-image; StableUnCLIPImg2ImgPipeline and "
                "StableDiffusionImageVariationPipeline see it by themselves"
            )

    @classmethod
    def from_pipeline(
        cls: type[V],
        pipe: Any,
        *,
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

        Whatever was set in the pipeline stays in effect: its scheduler, LoRAs and their scales, the scale of an IP-Adapter, FreeU, tiling.

        Args:
            pipe: a pipeline of Stable Diffusion, with its IP-Adapter or LoRA loaded where one is wanted.
            preset: ``"paper"`` (Ayromlou et al.: DDIM with trailing timesteps and zero terminal SNR, 10 steps, guidance 10, no
                noise, empty prompt) or ``"fast"`` (DPM-Solver++, 4 steps, no guidance); explicit options take precedence.
            num_inference_steps: number of denoising steps; the stock pipeline's by default.
            guidance_scale: scale of classifier-free guidance, the stock pipeline's by default; 1 or below disables it and halves the work.
            guidance_interval: (low, high), as fractions of the steps from the noisiest, 0, to the last, 1: guidance is applied only
                from low to high (approximate); in all steps by default.
            cache_interval: run the whole UNet only every so many steps; the steps between reuse its deep features (DeepCache,
                approximate). 1, the default, disables this.
            cache_branch: the deepest skip connection that the steps between compute anew; 0 by default, which is the least work.
            scheduler: ``"ddim"``, ``"dpm++"``, ``"unipc"``, ``"euler"``, ``"lcm"``, or a diffusers scheduler; the repository's own
                by default.
            eta: noise of DDIM, from 0 to 1.
            image_size: size of the generated images in pixels, a side or (height, width); the repository's by default.
            prompt: text for images without a prompt of their own. Its fields, as in ``"a {label}"``, become inputs, with one value
                per image.
            negative_prompt: text that guidance steers away from.
            noise_level: noise on the image embedding (unCLIP), from 0 to 999; more noise gives more variety. ``"foreground"``: 0, 100,
                200, 300 or 400 for each image, higher where the subject fills more of it (GenView).
            foreground_bounds: with ``"foreground"``, the shares of foreground at which the noise level rises by another 100; by default
                (0.2, 0.4, 0.6, 0.8), which makes five equal bins.
            ip_adapter_scale: weight of the image relative to the text (IP-Adapter); a number, or a dict of blocks as in diffusers.
            decode_batch_size: how many images the VAE decodes at once; all by default.
            channels_last: memory format of the networks (exact up to rounding).
            fuse_qkv: one matrix product for queries, keys and values in the networks that run in each step (exact up to rounding).
            compile: run these networks through ``torch.compile`` (exact up to rounding): ``"regional"`` compiles only their repeated
                blocks, which is quick; ``"full"`` or True, the whole networks; ``"max-autotune"`` and ``"reduce-overhead"`` are torch's
                modes.

        Raises:
            WeightsError: if the pipeline is of a kind that the class cannot take, or its parts do not fit each other.
            ConfigError: if an option is out of its range, or the pipeline holds what no fingerprint can cover.
        """
        return cls._of_pipeline(pipe, given(locals(), cls.option_names()))

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls: type[V],
        name_or_path: str | Path,
        *,
        revision: str | None = None,
        device: torch.device | str | int | None = None,
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
        """Load a repository or folder in diffusers layout, or one written by `save_pretrained`, in eval mode.

        Options that are not given are those of the saved generator, or else the class's defaults.

        Args:
            name_or_path: a folder, or a Hub repository ``"organisation/name"``.
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
            preset: ``"paper"`` (Ayromlou et al.: DDIM with trailing timesteps and zero terminal SNR, 10 steps, guidance 10, no
                noise, empty prompt) or ``"fast"`` (DPM-Solver++, 4 steps, no guidance); explicit options take precedence.
            num_inference_steps: number of denoising steps; the stock pipeline's by default.
            guidance_scale: scale of classifier-free guidance, the stock pipeline's by default; 1 or below disables it and halves the work.
            guidance_interval: (low, high), as fractions of the steps from the noisiest, 0, to the last, 1: guidance is applied only
                from low to high (approximate); in all steps by default.
            cache_interval: run the whole UNet only every so many steps; the steps between reuse its deep features (DeepCache,
                approximate). 1, the default, disables this.
            cache_branch: the deepest skip connection that the steps between compute anew; 0 by default, which is the least work.
            scheduler: ``"ddim"``, ``"dpm++"``, ``"unipc"``, ``"euler"``, ``"lcm"``, or a diffusers scheduler; the repository's own
                by default.
            eta: noise of DDIM, from 0 to 1.
            image_size: size of the generated images in pixels, a side or (height, width); the repository's by default.
            prompt: text for images without a prompt of their own. Its fields, as in ``"a {label}"``, become inputs, with one value
                per image.
            negative_prompt: text that guidance steers away from.
            noise_level: noise on the image embedding (unCLIP), from 0 to 999; more noise gives more variety. ``"foreground"``: 0, 100,
                200, 300 or 400 for each image, higher where the subject fills more of it (GenView).
            foreground_bounds: with ``"foreground"``, the shares of foreground at which the noise level rises by another 100; by default
                (0.2, 0.4, 0.6, 0.8), which makes five equal bins.
            ip_adapter_scale: weight of the image relative to the text (IP-Adapter); a number, or a dict of blocks as in diffusers.
            decode_batch_size: how many images the VAE decodes at once; all by default.
            channels_last: memory format of the networks (exact up to rounding).
            fuse_qkv: one matrix product for queries, keys and values in the networks that run in each step (exact up to rounding).
            compile: run these networks through ``torch.compile`` (exact up to rounding): ``"regional"`` compiles only their repeated
                blocks, which is quick; ``"full"`` or True, the whole networks; ``"max-autotune"`` and ``"reduce-overhead"`` are torch's
                modes.

        Raises:
            WeightsError: if a file is missing, damaged or of another kind, or parts do not fit each other.
            ConfigError: if an option is out of its range.
        """
        return cls._load(name_or_path, locals(), given(locals(), cls.option_names()))
