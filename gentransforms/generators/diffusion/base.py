"""The base class of all diffusion generators: components of a diffusers pipeline, options, conditioning on prompts and images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gentransforms.errors import ConfigError, ImageError
from gentransforms.generators.diffusion import appearance, fit, noise, state
from gentransforms.generators.diffusion import foreground as subjects
from gentransforms.generators.diffusion.appearance import UNetInputs, select_rows, with_unconditional
from gentransforms.generators.diffusion.describe import describe_part, describe_pipeline, select_networks
from gentransforms.generators.diffusion.faster.deepcache import check_branch, run_unet
from gentransforms.generators.diffusion.faster.execution import (
    check_compile,
    check_uncompiled,
    fuse_projections,
    unfused_weights,
    uses_cuda_graphs,
)
from gentransforms.generators.diffusion.faster.steps import Step, check_guided, check_interval, plan_steps
from gentransforms.generators.diffusion.loading import rebuild, stock_defaults
from gentransforms.generators.diffusion.options import check_count, check_number, image_size, keyword_options, with_preset
from gentransforms.generators.diffusion.prompts.encoding import takes_prompts
from gentransforms.generators.diffusion.prompts.fields import PromptFields
from gentransforms.generators.diffusion.sampling import decode, denoise, draw, make_rngs
from gentransforms.generators.diffusion.schedulers import build_scheduler, check_scheduler, fresh
from gentransforms.images import to_device
from gentransforms.seeding import check_seeds
from gentransforms.wording import name_type

__all__ = ["DiffusionGenerator"]


class DiffusionGenerator(PromptFields):
    """Base class of the generators that use the components of a diffusers pipeline; see `StableDiffusionVariation` for the arguments."""

    unet: Any
    vae: Any
    image_encoder: Any
    execution_options = ("decode_batch_size", "channels_last", "compile", "fuse_qkv")
    _parts: frozenset[str] = frozenset()  # arguments of the constructor that are networks, not options

    def __init__(self, pipe: Any, options: Mapping[str, Any]) -> None:
        super().__init__()
        given = with_preset(options, self.option_names())
        self.pipe = rebuild(pipe)
        self.kind = appearance.find_kind(self.pipe)
        self.instance_feature = None if self.kind == "none" else "image_embeds"
        for name in sorted(self.pipe.components, key=lambda name: name != "unet"):  # first the UNet, whose dtype is the generator's
            if isinstance(self.pipe.components[name], nn.Module):
                self.add_module(name, self.pipe.components[name])
        state.check_networks(self._networks())
        fit.check_parts(self.pipe, self.kind)
        check_scheduler("scheduler", self.pipe.scheduler)
        steps, guidance = stock_defaults(pipe)
        self.num_inference_steps = check_count("num_inference_steps", given.get("num_inference_steps", steps))
        self.guidance_scale = check_number("guidance_scale", given.get("guidance_scale", guidance), 0)
        self.eta = check_number("eta", given.get("eta", 0.0), 0, 1)
        self.decode_batch_size = check_count("decode_batch_size", given.get("decode_batch_size"), none=True)
        self.scheduler = build_scheduler(given.get("scheduler"), self.pipe.scheduler)
        check_scheduler("scheduler", self.scheduler)
        sample_size = self.unet.config.sample_size
        own = [n * self._shrinks for n in (sample_size if isinstance(sample_size, list | tuple) else [sample_size] * 2)]
        self.guidance_interval = check_interval(given.get("guidance_interval"))
        self.cache_interval = check_count("cache_interval", given.get("cache_interval", 1))
        self.cache_branch = check_branch(self.unet, given.get("cache_branch", 0), self.cache_interval)
        self._check_guided_steps()
        self.image_size = image_size(given["image_size"] if given.get("image_size") is not None else tuple(own), self._shrinks)
        self._take_prompts(given.get("prompt") or "", given.get("negative_prompt"))
        self.noise_level = self._check_noise_level(given.get("noise_level", 0))
        self.foreground_bounds = self._check_foreground_bounds(given.get("foreground_bounds"))
        if given.get("ip_adapter_scale") is not None:
            if self.kind != "ip-adapter":
                raise ConfigError(f"ip_adapter_scale={given['ip_adapter_scale']!r}: this generator has no IP-Adapter; give ip_adapter=")
            state.set_ip_adapter_scale(self.pipe, given["ip_adapter_scale"])
        self.inputs = (
            *self.fields, *(["prompts"] if takes_prompts(self.pipe) else []), *(["noise_levels"] if self.kind == "unclip" else []),
            *(["foreground"] if self.noise_level == "foreground" else []),
        )  # fmt: skip
        # How it runs, which no attribute holds; the other options are read from attributes, as they are now.
        check_compile(given.get("compile", False))
        self.__dict__["_init_config"] = {name: given[name] for name in ("channels_last", "compile", "fuse_qkv") if given.get(name)}
        self._finish({"unet": self.unet})

    @classmethod
    def option_names(cls) -> frozenset[str]:
        """Return the names of the options, keyword arguments of the constructor."""
        return keyword_options(cls) - cls._parts

    @property
    def config(self) -> dict[str, Any]:
        """Everything besides the weights that determines the images: the options, and the configuration and state of every part.

        ``components`` holds configurations, vocabularies and image statistics by the name of the part. ``state``, if present,
        holds what was set in the networks by calls: active LoRAs and their scales, FreeU, tiling of the VAE.

        Raises:
            ConfigError: if a part holds something that cannot be described, such as an attention processor of unknown effect.
        """
        parts = {"components": describe_pipeline(self.pipe, self._described_parts())}
        found = state.read_state(self._networks())
        check_scheduler("scheduler", self.scheduler)
        return self._options() | self._found_compiled() | parts | ({"state": found} if found else {})

    def _options(self) -> dict[str, Any]:
        """Return the options as they are now, JSON-able: what `save_pretrained` writes, besides the scheduler."""
        options = {
            "num_inference_steps": self.num_inference_steps, "guidance_scale": self.guidance_scale, "eta": self.eta,
            "image_size": list(self.image_size), "prompt": self.prompt, "negative_prompt": self.negative_prompt,
            "decode_batch_size": self.decode_batch_size, **self._init_config,
        }  # fmt: skip
        if self.guided:
            options["guidance_interval"] = self.guidance_interval and list(self.guidance_interval)
        if self.cache_interval > 1:
            options |= {"cache_interval": self.cache_interval, "cache_branch": self.cache_branch}
        if self.kind == "unclip":
            options["noise_level"] = self.noise_level
        if self.noise_level == "foreground":
            options["foreground_bounds"] = list(self.foreground_bounds)
        if self.kind == "ip-adapter":
            options["ip_adapter_scale"] = state.ip_adapter_scale(self.unet)
        return {name: value for name, value in options.items() if value is not None}

    def _saved_scheduler(self) -> dict[str, Any]:
        """Return the option `scheduler` if it is not the pipeline's own; `config` has it among the components, wherever it came from."""
        own = describe_part(self.scheduler)
        return {} if own == describe_part(self.pipe.scheduler) else {"scheduler": own}

    def _described_parts(self) -> dict[str, Any]:
        """Return the parts that are not the pipeline's own and whose configuration affects the images."""
        return {"scheduler": self.scheduler}

    def _networks(self) -> dict[str, nn.Module]:
        """Return all networks by name, seen through torch.compile."""
        return select_networks(dict(self.named_children()))

    def _saved_weights(self) -> dict[str, Tensor]:
        return unfused_weights(self, self._networks())

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if isinstance(value, nn.Module) and name in getattr(vars(self).get("pipe"), "components", ()):
            setattr(self.pipe, name, value)  # one compiled, for example: encoding and saving go through the pipeline

    @property
    def notes(self) -> dict[str, str]:
        """The licence of the weights, and that no safety checker sees the images."""
        return super().notes | {"Safety checker": "none: the pipeline's own was left out, so generated images are not checked"}

    @property
    def guided(self) -> bool:
        """Whether classifier-free guidance is active: two rows per image go through the UNet instead of one."""
        return self.guidance_scale > 1 and not self._distilled

    def encode(
        self, images: Tensor, prompts: list[str] | None = None, noise_levels: Tensor | None = None, foreground: Any = None, **values: Any
    ) -> dict[str, Tensor]:
        """Return the condition of each image for the UNet.

        Args:
            images: (B, 3, H, W) floating in [0, 1], on the generator's device.
            prompts: one for each image, instead of the option `prompt`.
            noise_levels: (B,) int64, one for each image, instead of the option `noise_level` (unCLIP).
            foreground: for ``noise_level="foreground"``, masks of the subject, which is otherwise estimated: (B, H, W) or (B, 1, H, W),
                boolean, integers of which 0 is background, or floating in [0, 1]; or a list of B of any sizes. They show the whole
                images, and are cropped to the centre as these are.
            values: for each field of `prompt`, one value per image.

        Returns:
            ``image_embeds`` (B, D) or, for an IP-Adapter on hidden states, (B, T, D), where an image encoder is used;
            ``noise_levels`` (B,) int64 for unCLIP; ``prompt`` (B, T, D), and for SDXL ``pooled`` (B, D), where prompts are given.

        Raises:
            ImageError: if `images` has another shape or is not floating.
            MissingInputError: if the value of a field of the prompt is missing.
            ConfigError: if there is not one prompt, value or noise level per image, or it is not in range.
        """
        if not isinstance(images, Tensor) or images.ndim != 4 or not images.is_floating_point():
            found = f"{tuple(images.shape)} {images.dtype}" if isinstance(images, Tensor) else type(images).__name__
            raise ImageError(f"images is {found}: expected (B, 3, H, W) floating in [0, 1]; GenerativeAugment takes other kinds")
        self._check_noise(noise_levels, foreground, len(images))
        condition: dict[str, Tensor] = {}
        if self.kind != "none":
            side = self.image_encoder.config.image_size
            pixels = appearance.preprocess(images.float(), getattr(self.pipe, "feature_extractor", None), side)
            embeds, patches = appearance.embed_images(self.pipe, self.kind, pixels)
            condition["image_embeds"] = embeds.to(self.dtype)
        if self.kind == "unclip":
            condition["noise_levels"] = self._levels(noise_levels, foreground, patches)
        return condition | self._encode_prompts(prompts, values, len(images))

    def check_encode_inputs(self, inputs: Mapping[str, Any], count: int) -> None:
        """Check the noise levels and the masks of the subject, as `ImageGenerator.check_encode_inputs` says."""
        self._check_noise(inputs.get("noise_levels"), inputs.get("foreground"), count)

    def sample(self, condition: Mapping[str, Tensor], seeds: Tensor) -> Tensor:
        """Return new images (B, 3, *image_size) float32 in [0, 1]; NaN where a network overflowed.

        Args:
            condition: what `encode` returned, or rows of it.
            seeds: (B,) int64 on the CPU. Row i is drawn as by the stock pipeline with ``torch.Generator().manual_seed(seeds[i])``.
        """
        check_seeds(seeds, len(seeds))
        if not len(seeds):
            return torch.empty(0, 3, *self.image_size, device=self.device)
        rngs = make_rngs(seeds)
        inputs = self._unet_inputs(condition, rngs)
        scheduler = fresh(self.scheduler, self.num_inference_steps)
        latents, first = self._start(condition, rngs, scheduler)
        steps = self._plan(len(scheduler.timesteps), first)
        predict = self._prediction(inputs, self._per_call(condition, seeds), self._guidance_embedding(len(seeds)))
        latents = denoise(predict, scheduler, latents, rngs, steps, guidance_scale=self.guidance_scale, eta=self.eta)
        return decode(self.vae, latents, rngs, self.decode_batch_size)

    def _plan(self, count: int, first: int = 0) -> list[Step]:
        """Return what each step does, from `first` to the last of `count`."""
        return plan_steps(count, first=first, guided=self.guided, interval=self.guidance_interval, cache_interval=self.cache_interval)

    def _prediction(self, inputs: UNetInputs, extra: Any, timestep_cond: Tensor | None) -> Callable[[Tensor, Tensor, Step], Tensor]:
        """Return the function that predicts in each step of one `sample` call; its caches live as long as that call."""
        caching, branch = self.cache_interval > 1, self.cache_branch
        run = self._part(run_unet) if caching else self.unet
        # What else compiled the network may have done so with CUDA graphs.
        overwritten = uses_cuda_graphs(self._init_config.get("compile", False)) or bool(self._found_compiled())
        deep: Tensor | None = None

        def predict(noisy: Tensor, t: Tensor, step: Step) -> Tensor:
            nonlocal deep
            if overwritten:
                torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
            rows = inputs.last(len(noisy))
            residuals, middle = self._residuals(noisy, t, rows, extra, None if step.full else branch)
            made: Tensor
            if caching:
                known = None if step.full or deep is None else deep[-len(noisy) :]
                made, new = run(
                    self.unet, noisy, t, rows, branch=branch, timestep_cond=timestep_cond, residuals=residuals, middle=middle, deep=known
                )
                if step.full:
                    deep = new.clone() if overwritten else new
            else:
                control = {"down_block_additional_residuals": residuals, "mid_block_additional_residual": middle} if residuals else {}
                made = run(
                    noisy, t, encoder_hidden_states=rows.encoder_hidden_states, class_labels=rows.class_labels,
                    added_cond_kwargs=rows.added, timestep_cond=timestep_cond, **control, return_dict=False,
                )[0]  # fmt: skip
            return made.clone() if overwritten else made

        return predict

    def _start(self, condition: Mapping[str, Tensor], rngs: list[torch.Generator], scheduler: Any) -> tuple[Tensor, int]:
        """Return the initial latents (B, C, h, w), and how many timesteps to skip."""
        height, width = (n // self._shrinks for n in self.image_size)
        like = torch.empty(0, device=self.device, dtype=self.dtype)
        return draw(rngs, (self._latent_channels, height, width), like) * scheduler.init_noise_sigma, 0

    def _per_call(self, condition: Mapping[str, Tensor], seeds: Tensor) -> Any:
        """Return what a subclass computes once for all steps."""

    def _residuals(
        self, noisy: Tensor, t: Tensor, inputs: UNetInputs, extra: Any, branch: int | None
    ) -> tuple[Sequence[Tensor], Tensor | None]:
        """Return the residuals for the UNet's skip connections, up to `branch` if it is given, and for its middle block.

        `extra` is what `_per_call` returned.
        """
        return (), None

    def _unet_inputs(self, condition: Mapping[str, Tensor], rngs: list[torch.Generator]) -> UNetInputs:
        count = len(rngs)
        if self.kind == "variation":
            rows = condition["image_embeds"][:, None]
            return UNetInputs(with_unconditional(rows, None) if self.guided else rows)
        shared = self._shared()
        text = select_rows(condition, shared, "prompt", count)
        inputs = UNetInputs(with_unconditional(text, shared["negative"]) if self.guided else text)
        if self.kind == "unclip":
            labels = appearance.noise_embeds(self.pipe, condition["image_embeds"], condition["noise_levels"], rngs)
            inputs.class_labels = with_unconditional(labels, None) if self.guided else labels
        if "pooled" in shared:
            pooled = select_rows(condition, shared, "pooled", count)
            inputs.added["text_embeds"] = with_unconditional(pooled, shared["negative_pooled"]) if self.guided else pooled
            # SDXL's micro-conditioning: original size, crop, target size.
            sizes = torch.tensor([*self.image_size, 0, 0, *self.image_size], dtype=self.dtype)
            rows = sizes.to(self.device, non_blocking=True).expand(len(inputs.encoder_hidden_states), -1)
            inputs.added["time_ids"] = rows
        if self.kind == "ip-adapter":
            embeds = condition["image_embeds"]
            rows = with_unconditional(embeds, shared.get("negative_embeds")) if self.guided else embeds
            inputs.added["image_embeds"] = [rows[:, None]]  # one image for each sample
        return inputs

    def _guidance_embedding(self, count: int) -> Tensor | None:
        """Return the guidance scale as an additional condition (B, D), for networks distilled with guidance (latent consistency models)."""
        width = self.unet.config.time_cond_proj_dim
        if width is None:
            return None
        embedding: Tensor = self.pipe.get_guidance_scale_embedding(torch.tensor([self.guidance_scale - 1]), embedding_dim=width)
        return embedding.to(device=self.device, dtype=self.dtype, non_blocking=True).expand(count, width)

    def _levels(self, levels: Any, masks: Any, patches: Tensor) -> Tensor:
        """Return the noise level of each image, (B,) int64; patches (B, N, D) are the image encoder's."""
        count = len(patches)
        if levels is None and self.noise_level == "foreground":
            size = None if self.preserves_geometry else self.image_size
            shares = subjects.foreground_share(patches) if masks is None else subjects.mask_share(masks, count, self.device, size)
            return subjects.to_levels(shares, self.foreground_bounds)
        if levels is None:
            return torch.full((count,), self.noise_level, dtype=torch.int64, device=self.device)
        return to_device(noise.check_levels(levels, count, self._top_level).long(), self.device)

    def _check_noise(self, levels: Any, masks: Any, count: int) -> None:
        if masks is not None and self.noise_level != "foreground":
            raise ConfigError(f"foreground was given, and noise_level={self.noise_level!r}: masks count with noise_level='foreground' only")
        if levels is not None and self.kind != "unclip":
            raise ConfigError(f"noise_levels={levels!r}: only unCLIP generators take them")
        if levels is not None and masks is not None:
            raise ConfigError("noise_levels and foreground were both given, and either determines the noise: give only one of them")
        if levels is not None:
            noise.check_levels(levels, count, self._top_level)
        elif masks is not None:
            subjects.check_foreground(masks, count)

    def _check_noise_level(self, level: Any) -> Any:
        if self.kind == "unclip":
            return noise.check_level(level, self._top_level)
        if level in (0, None):
            return 0
        raise ConfigError(f"noise_level={level!r}: only unCLIP generators take one; this is {name_type(self.pipe)}")

    def _check_foreground_bounds(self, bounds: Any) -> tuple[float, ...]:
        if self.noise_level == "foreground":
            return subjects.check_bounds(subjects.BOUNDS if bounds is None else bounds, self._top_level)
        if bounds is not None:
            raise ConfigError(f"foreground_bounds={bounds!r} has no effect with noise_level={self.noise_level!r}: give 'foreground'")
        return subjects.BOUNDS

    @property
    def _top_level(self) -> int:
        return int(self.pipe.image_noising_scheduler.config.num_train_timesteps) - 1

    def _check_guided_steps(self) -> None:
        if self.guidance_interval is not None:
            why = "the network was distilled with guidance" if self._distilled else f"guidance_scale={self.guidance_scale:g}"
            count = len(fresh(self.scheduler, self.num_inference_steps).timesteps)
            check_guided(self.guidance_interval, None if self.guided else why, self._plan(count))

    @property
    def _distilled(self) -> bool:
        """Whether the UNet was distilled with guidance, and takes its scale as an input."""
        return self.unet.config.time_cond_proj_dim is not None

    @property
    def _shrinks(self) -> int:
        return int(self.pipe.vae_scale_factor)

    @property
    def _latent_channels(self) -> int:
        return int(self.unet.config.in_channels)

    def _finish(self, denoising: Mapping[str, nn.Module]) -> None:
        """Freeze all networks and convert them as requested; those that run in each step are also fused and compiled."""
        if mode := self._init_config.get("compile"):
            for name, network in denoising.items():
                check_uncompiled(name, network, mode)
        if self._init_config.get("fuse_qkv"):
            for name, network in denoising.items():
                fuse_projections(name, network)
        self.eval().requires_grad_(False)
        self._upcast_vae()
        fit.check_placement(self._networks())
        if self._init_config.get("channels_last"):
            self.to(memory_format=torch.channels_last)
        self._compile(denoising.values())

    def _upcast_vae(self) -> None:
        """Keep a VAE that overflows in float16 (SDXL's) in float32, as the stock pipeline does."""
        if type(self.pipe).__name__ != "StableDiffusionXLPipeline" or self.vae.dtype != torch.float16:
            return
        if getattr(self.vae.config, "force_upcast", False):
            self.vae.float()

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        super()._apply(fn, recurse)
        self._upcast_vae()
        return self
