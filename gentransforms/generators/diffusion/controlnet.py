"""ControlNet: new images that keep the source's layout, its edges, depth or segmentation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from gentransforms.errors import ConfigError
from gentransforms.generators.diffusion import conditions
from gentransforms.generators.diffusion.controlled import ControlledDiffusion, as_list, folder_name
from gentransforms.generators.diffusion.faster.execution import CompileMode
from gentransforms.generators.diffusion.fit import check_controlnets
from gentransforms.generators.diffusion.options import Preset, SchedulerName, check_number, given

if TYPE_CHECKING:
    from diffusers import SchedulerMixin

__all__ = ["ControlNetVariation"]

Condition = Literal["canny", "depth", "segmentation", "maps"] | Callable[[Tensor], Tensor]
Threshold = float | tuple[float, float]
V = TypeVar("V", bound="ControlNetVariation")

_NAMED = ("canny", "depth", "segmentation", "maps")


class ControlNetVariation(ControlledDiffusion):
    """New images with the layout of the source, so that boxes, masks and key points stay valid.

    One or several ControlNets hold the layout. The appearance comes from a prompt, or one prompt per image; from the source
    image's embedding, where the base has an IP-Adapter, or is unCLIP or sd-image-variations; and, with `strength`, from the
    source's own latents. Bases: Stable Diffusion, Stable Diffusion XL, and those of `StableDiffusionVariation`.

    Args:
        pipe: a diffusers pipeline; its networks are shared, frozen and put into eval mode.
        controlnet: a ``ControlNetModel``, or a list of them; None for those of the pipeline.

    Keyword Args:
        condition: ``"canny"``, ``"depth"``, ``"segmentation"``; ``"maps"`` for control maps passed along with the images; or a function
            from images (B, 3, H, W) floating in [0, 1], at the generator's size, to control maps of the same shape, with an attribute
            ``version``; a list for several ControlNets.
        depth_estimator: (model, image processor) of transformers, for ``"depth"``.
        conditioning_scale: weight of each ControlNet, one number or a list; 1, or 0.8 with `strength`.
        canny_thresholds: (low, high), each a number, or a range (from, to) from which each image draws by its seed. In OpenCV's units
            divided by 255: they apply to the Sobel gradient of images in [0, 1].
        palette: (K, 3) colours from 0 to 255 for ``"segmentation"``; those of ADE20K by default.
        strength: from 0 to 1: start from the source's noised latents and run this share of the steps, instead of starting from noise.
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
        ConfigError: if an option is unknown or out of its range, or conditions and ControlNets differ in number.

    Attributes:
        inputs: ``masks`` with ``"segmentation"``: classes (B, H, W) or (B, 1, H, W), integers, 255 unlabelled;
            ``control_maps`` with ``"maps"``: (B, 1 or 3, H, W) uint8, or floating in [0, 1]; the fields of `prompt`; ``prompts``, one
            string for each image, where there is a text encoder; ``noise_levels`` (B,) int64 (unCLIP);
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
        nets = as_list(self._find_parts(pipe).get("controlnet") if controlnet is None else controlnet)
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
            advice = "raise it, or num_inference_steps" if strength else "raise it"
            raise ConfigError(f"strength={strength!r}: no step is left of {self.num_inference_steps}; {advice}")
        scale = conditioning_scale if conditioning_scale is not None else 1.0 if strength is None else 0.8
        scales = scale if isinstance(scale, list | tuple) else [scale] * len(nets)
        self.scales = [check_number("conditioning_scale", s, 0) for s in scales]
        if len(self.scales) != len(nets):
            raise ConfigError(f"conditioning_scale={scale!r}: expected one number for each of {len(nets)} ControlNets")
        self.thresholds = conditions.check_thresholds(canny_thresholds)
        self.register_buffer("palette", _palette(palette).to(self.device), persistent=False)
        check_controlnets({folder_name(i): net for i, net in enumerate(nets)}, self.unet)
        self.controlnets = nn.ModuleList(nets)
        model, processor = depth_estimator or (None, None)
        self.depth_estimator: Any = model
        self.depth_processor: Any = processor
        if "depth" in self.conditions and self.depth_estimator is None:
            raise ConfigError("condition='depth': give depth_estimator=(model, image processor), or depth_model= to from_pretrained")
        if self.conditions.count("maps") > 1:
            raise ConfigError(f"condition={chosen!r}: 'maps' is in it twice, but an image has only one control map: use it once")
        self.inputs = tuple(dict.fromkeys((*self.required_inputs, *self.inputs)))
        self._finish({folder_name(i): net for i, net in enumerate(self.controlnets)})

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

        Whatever was set in the pipeline stays in effect: its scheduler, LoRAs and their scales, the scale of an IP-Adapter, FreeU, tiling.

        Args:
            pipe: a pipeline of Stable Diffusion, with or without its ControlNets.
            controlnet: a ``ControlNetModel``, or a list of them; None for those of the pipeline.
            condition: ``"canny"``, ``"depth"``, ``"segmentation"``, ``"maps"`` or a function; a list for several ControlNets.
            depth_estimator: (model, image processor) of transformers, for ``"depth"``.
            conditioning_scale: weight of each ControlNet, one number or a list; 1, or 0.8 with `strength`.
            canny_thresholds: (low, high), each a number, or a range (from, to) from which each image draws by its seed.
            palette: (K, 3) colours from 0 to 255 for ``"segmentation"``; those of ADE20K by default.
            strength: from 0 to 1: start from the source's noised latents and run this share of the steps, instead of starting from
                noise.
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
        return cls._of_pipeline(pipe, given(locals(), cls.option_names() | cls._parts))

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
        """Load a base and its ControlNets; returned in eval mode.

        Options that are not given are those of the saved generator, or else the class's defaults.

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
            canny_thresholds: (low, high), each a number, or a range (from, to) from which each image draws by its seed.
            palette: (K, 3) colours from 0 to 255 for ``"segmentation"``; those of ADE20K by default.
            strength: from 0 to 1: start from the source's noised latents and run this share of the steps, instead of starting from
                noise.
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
