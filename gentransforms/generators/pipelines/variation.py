"""Any diffusers pipeline that takes an image, as a generator: its own call, under the contract of one seed for each image."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from gentransforms.errors import ConfigError, ImageError, MissingInputError
from gentransforms.generators.diffusion import conditions, state
from gentransforms.generators.diffusion.describe import describe_part, select_networks
from gentransforms.generators.diffusion.faster.execution import CompileMode, unfused_weights
from gentransforms.generators.diffusion.options import image_size as checked_size
from gentransforms.generators.diffusion.prompts import check_prompts
from gentransforms.generators.identity import uncompiled
from gentransforms.generators.part_licenses import read_own_license
from gentransforms.generators.pipelines import calls, control, pretrained, priors, settings, sizes, texts
from gentransforms.generators.pipelines.caching import check_cache
from gentransforms.generators.pipelines.called import CalledPipeline
from gentransforms.generators.pipelines.compiling import check_compiling, check_denoiser, compile_denoiser, denoisers
from gentransforms.generators.pipelines.safeguards import describe_safeguards
from gentransforms.images import fit
from gentransforms.surroundings import isolate_loading
from gentransforms.wording import name_type

__all__ = ["PipelineVariation"]

P = TypeVar("P", bound="PipelineVariation")
Condition = str | Callable[[Tensor], Tensor]
_OWN = ("prompt", "image_size", "preserves_geometry", "condition", "cache", "compile", "offload")


class PipelineVariation(CalledPipeline):
    """Image variation by any diffusers pipeline that takes an image: image-to-image, Kandinsky, models that edit.

    The pipeline's own call makes the images, each with its own rng of its seed; `StableDiffusionVariation` and
    `ControlNetVariation` are faster for what they serve. Before the first batch two sources are made alone and together, in
    both orders: if the images of this pipeline depend on what else is in the batch, it runs one source or image at a time
    from then on, and says so.

    Args:
        pipe: a diffusers pipeline; its networks are frozen and put into eval mode.
        prior: the pipeline that makes embeddings of images: ``KandinskyV22PriorPipeline``, ``FluxPriorReduxPipeline``.
        prompt: the text for images that come without their own; its fields, as in ``"a photo of a {label}"``, are inputs, one
            value for each image.
        image_size: of the images, in pixels: a side or (height, width); the pipeline's own by default.
        preserves_geometry: whether you know that the layout of the source is kept, as at a small `strength`.
        condition: for pipelines that take a control map: ``"depth"``, ``"canny"``, ``"maps"`` for maps that come beside the
            images, or a function from images (B, 3, H, W) in [0, 1] to control maps likewise, with an attribute ``version``.
        depth_estimator: (model, image processor) of transformers, for ``"depth"``.
        cache: approximate: one of diffusers' caches between the steps of a transformer, ``"FirstBlockCache"``, ``{"name":
            "TaylorSeerCache", "cache_interval": 3}`` or diffusers' configuration of it. Each call starts without memory; caches that
            decide for a whole batch at once (first block, Sea) run one image at a time.
        compile: run what computes each step (UNet, transformer, ControlNet) through ``torch.compile``, exact up to rounding:
            ``"regional"``, its repeated blocks alone, which are soon compiled; ``"full"`` or True, the whole; ``"max-autotune"`` or
            ``"reduce-overhead"``, torch's modes, with CUDA graphs.
        offload: ``"model"`` lets whole networks wait on the CPU for their turn on the accelerator, ``"sequential"`` single layers,
            which takes the least memory and by far the longest; as diffusers' ``enable_model_cpu_offload`` and
            ``enable_sequential_cpu_offload`` do it. Images change by rounding at most.
        options: of the pipeline's call, such as ``strength``, ``num_inference_steps`` and ``guidance_scale``.

    Raises:
        WeightsError: if the pipeline takes no image, or lacks its prior.
        ConfigError: if the call takes no such option, or a value is out of its range.

    Attributes:
        inputs: ``prompts``, one string for each image, and the fields of `prompt`, where the pipeline takes a prompt;
            ``control_maps`` with ``condition="maps"``.
        together: what goes through one call: ``"sources"``, any batch; ``"variants"``, those of one source; or ``"nothing"``,
            one image. None until the first batch was tried.

    Example:
        >>> import torch
        >>> generator = PipelineVariation.from_pretrained(img2img_folder, prompt="a {label}", strength=0.5, num_inference_steps=4)
        >>> generator(torch.rand(2, 3, 32, 32), torch.tensor([1, 2]), label=["cat", "dog"]).shape
        torch.Size([2, 3, 32, 32])

    Source: Meng et al., "SDEdit" (ICLR 2022), for image-to-image.
    """

    execution_options = ("compile", "offload")

    def __init__(
        self,
        pipe: Any,
        *,
        prior: Any = None,
        prompt: str = "",
        image_size: int | tuple[int, int] | None = None,
        preserves_geometry: bool = False,
        condition: Condition | None = None,
        depth_estimator: tuple[nn.Module, Any] | None = None,
        cache: Any = None,
        compile: bool | CompileMode = False,
        offload: Literal["model", "sequential"] | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        calls.check_call_options(pipe, options, _OWN)
        self.roles = calls.find_roles(pipe, prior is not None, options)
        estimator, processor = depth_estimator or (None, None)
        control.check_condition(condition, self.roles.control is not None, type(pipe).__name__, estimator)
        self.pipe, self.prior, self.condition = pipe, prior, condition
        self.depth_processor: Any = processor
        networks = select_networks(pipe.components) | {
            f"prior_{n}": part for n, part in select_networks(prior.components if prior else {}).items()
        }
        for name in sorted(networks, key=lambda name: name not in ("unet", "transformer")):  # first the one whose dtype is the generator's
            self.add_module(name, networks[name])
        self.add_module("depth_estimator", estimator)
        self._check_prompt(prompt)
        self.prompt, self.fields = prompt, texts.template_fields(prompt)
        self.inputs = (*self.required_inputs, *(["prompts"] if self.takes_prompt else []))
        if not isinstance(preserves_geometry, bool):
            raise ConfigError(f"preserves_geometry={preserves_geometry!r}: expected True or False")
        self.preserves_geometry = preserves_geometry
        self.image_size = checked_size(image_size if image_size is not None else sizes.own_size(pipe), sizes.multiple_of(pipe))
        self.options = calls.without_defaults(pipe, options)
        self.cache = check_cache(pipe, cache, self.options)
        mode = check_compiling(pipe, compile, cache, offload)
        self._prepare()
        self.__dict__["_init_config"] = {"compile": mode} if mode else {}
        self.eval().requires_grad_(False)
        self._read_state()
        self._start_offloading(offload)
        self._compile(self._denoising_networks())

    def _check_prompt(self, prompt: Any) -> None:
        """Find out who reads the prompt, if anything does; raise unless `prompt` can be read."""
        by_prior = self.prior is not None and priors.reads_prompts(self.prior)
        self._prompt_to_pipe = self.roles.prompt and (self.prior is None or hasattr(self.prior, "get_zero_embed"))
        self.takes_prompt = by_prior or self._prompt_to_pipe
        if not isinstance(prompt, str):
            raise ConfigError(f"prompt={prompt!r}: expected a string; one prompt per image goes to encode(images, prompts=…)")
        if prompt and not self.takes_prompt:
            raise ConfigError(f"prompt={prompt!r}: {name_type(self.prior or self.pipe)} takes no prompt here")

    @classmethod
    def from_pipeline(
        cls: type[P],
        pipe: Any,
        *,
        prior: Any = None,
        prompt: str = "",
        image_size: int | tuple[int, int] | None = None,
        preserves_geometry: bool = False,
        condition: Condition | None = None,
        depth_estimator: tuple[nn.Module, Any] | None = None,
        cache: Any = None,
        compile: bool | CompileMode = False,
        offload: Literal["model", "sequential"] | None = None,
        **options: Any,
    ) -> P:
        """Return a generator that calls a loaded diffusers pipeline; its networks are shared with it, and frozen.

        Quantised components, LoRAs, a compiled transformer and hooks that offload work as they do in the pipeline.

        Args:
            pipe: the pipeline.
            prior: the pipeline that makes embeddings of images, for Kandinsky's decoders and FLUX Redux.
            prompt: the text for images that come without their own; a template of inputs.
            image_size: of the images, in pixels.
            preserves_geometry: whether you know that the layout of the source is kept.
            condition: for pipelines that take a control map: ``"depth"``, ``"canny"``, ``"maps"`` or a function.
            depth_estimator: (model, image processor) of transformers, for ``"depth"``.
            cache: approximate: one of diffusers' caches between the steps of a transformer.
            compile: ``"regional"``, ``"full"``, ``"max-autotune"`` or ``"reduce-overhead"``: exact up to rounding.
            offload: ``"model"`` or ``"sequential"``: networks wait on the CPU for their turn on the accelerator.
            options: of the pipeline's call.

        Raises:
            WeightsError: if the pipeline takes no image, or lacks its prior.
            ConfigError: if the call takes no such option, or a part was changed in a way that no fingerprint can cover.
        """
        given: dict[str, Any] = {
            "prompt": prompt,
            "image_size": image_size,
            "preserves_geometry": preserves_geometry,
            "condition": condition,
            "compile": compile,
            "offload": offload,
        }
        generator = cls(pipe, prior=prior, depth_estimator=depth_estimator, cache=cache, **given, **options)
        generator._set_license(read_own_license(pipe))
        parts = {"the prior": prior, "the depth model": generator.depth_estimator}
        generator._part_licenses = {what: read_own_license(part).name for what, part in parts.items() if part is not None}
        return generator

    @classmethod
    @isolate_loading()
    def from_pretrained(
        cls: type[P],
        name_or_path: str | Path,
        *,
        revision: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        variant: str | None = None,
        config: str | Path | None = None,
        safety_checker: Any = "repository",
        watermarker: Any = "repository",
        lora: Any = None,
        quantization_config: Any = None,
        prior: str | Path | None = None,
        depth_model: str | Path | None = None,
        **options: Any,
    ) -> P:
        """Load a repository, folder or single file of diffusers, or a folder written by `save_pretrained`; returned in eval mode.

        A repository of text-to-image is loaded as diffusers' image-to-image pipeline of the same parts. No code of the
        repository is run, and pickled files are read only as weights.

        Args:
            name_or_path: a folder, a Hub repository ``"organisation/name"``, or a checkpoint file.
            revision: commit, tag or branch of that repository.
            device: where to put it; the CPU by default, with `offload` the accelerator.
            dtype: of its weights; float32 by default.
            token: for a private repository.
            cache_dir: where downloads are kept.
            local_files_only: use only what is downloaded already.
            variant: of the weight files, such as ``"fp16"``.
            config: for a single file: a folder or repository in diffusers layout, whose configurations and tokenizers are used.
            safety_checker: None leaves it out; by default the repository's own, whose black images count as failed.
            watermarker: None leaves it out; by default as diffusers has it.
            lora: repository, folder or file of a LoRA, or a mapping from these to their scales; merged into the weights.
            quantization_config: a ``PipelineQuantizationConfig`` of diffusers.
            prior: repository or folder of the pipeline that makes embeddings, for Kandinsky's decoders and FLUX Redux.
            depth_model: repository or folder of a transformers depth-estimation model, for ``condition="depth"``.
            options: those of the class, and of the pipeline's call.

        Raises:
            WeightsError: if a file is missing, damaged or of another kind, or no pipeline of diffusers takes an image there.
            ConfigError: if the call takes no such option.
        """
        given = {name: value for name, value in locals().items() if name not in ("cls", "name_or_path")}
        generator: P = pretrained.load(cls, name_or_path, given)
        return generator

    @property
    def config(self) -> dict[str, Any]:
        """What decides the images beside the weights: options, the configuration of every part, and their state.

        Raises:
            ConfigError: if a part was changed in a way that cannot be described, such as a replaced ``forward``.
        """
        found = self._read_state()
        parts = {"components": settings.describe(self.pipe, self._notes)}
        if self.prior is not None:
            parts["prior_components"] = settings.describe(self.prior, self._prior_notes)
        if self.depth_estimator is not None:
            parts["components"] |= {name: describe_part(getattr(self, name)) for name in ("depth_estimator", "depth_processor")}
        return self._own_options() | parts | ({"state": found} if found else {})

    def _read_state(self) -> dict[str, Any]:
        for name, pipe in {"": self.pipe, "prior_": self.prior}.items():
            for part, network in select_networks(pipe.components if pipe is not None else {}).items():
                if network is not uncompiled(getattr(self, name + part, None)):
                    raise ConfigError(
                        f"{part} of the {type(pipe).__name__} was replaced after the generator was built: set it in the generator too, "
                        f"generator.{name}{part} = …, or build another"
                    )
            if getattr(pipe, "scheduler", None) is not None:
                state.check_scheduler(f"{name}scheduler", pipe.scheduler)
        return state.read_state(self._networks(), strict=False)

    def _own_options(self) -> dict[str, Any]:
        options = {"prompt": self.prompt, "image_size": list(self.image_size), "preserves_geometry": self.preserves_geometry}
        if self.cache is not None:
            options["cache"] = dict(self.cache)
        if self.condition is not None:
            options["condition"] = conditions.describe(self.condition)
        if self.offload is not None:
            options["offload"] = self.offload
        return options | self._init_config | self._found_compiled() | {"options": dict(self.options)}

    @property
    def required_inputs(self) -> tuple[str, ...]:
        """The fields of the prompt, and ``control_maps`` with ``condition="maps"``."""
        return (*self.fields, *(["control_maps"] if self.condition == "maps" else []))

    def encode(self, images: Tensor, prompts: list[str] | None = None, control_maps: Any = None, **values: Any) -> dict[str, Tensor]:
        """Return what the pipeline is told of each image.

        Args:
            images: (B, 3, H, W) floating in [0, 1].
            prompts: one for each image, instead of the option `prompt`.
            control_maps: for ``condition="maps"``: (B, 1 or 3, H, W) uint8, or floating in [0, 1]; or a list of B of any sizes.
            values: of the fields of `prompt`: one value for each image.

        Returns:
            ``images`` (B, 3, h, w) at the generator's size, where the pipeline sees them; ``control`` (B, 3, h, w), where it
            takes a control map; with a prior its embeddings; ``prompts`` (B, L) uint8, the text of each image in UTF-8,
            padded with zeros, where there is one for each.

        Raises:
            ImageError: if `images` has another shape or is not floating.
            MissingInputError: if a field of the prompt is not given.
            ConfigError: if there is not one prompt or value for each image.
        """
        if not isinstance(images, Tensor) or images.ndim != 4 or not images.is_floating_point():
            found = f"{tuple(images.shape)} {images.dtype}" if isinstance(images, Tensor) else type(images).__name__
            raise ImageError(f"images is {found}: expected (B, 3, H, W) floating in [0, 1]; GenerativeAugment takes other kinds")
        lines = self._prompts_of(prompts, values, len(images))
        self._hook()
        condition: dict[str, Tensor] = {}
        if self.prior is not None:
            given = (lines or [self._plain_prompt] * len(images)) if self.takes_prompt else []
            try:
                with settings.watched(self.prior, self._prior_notes):
                    condition |= priors.embed(self.prior, images, given, self.image_size)
            finally:
                self._rest()
        if self.roles.source or self.roles.control:
            seen = fit(images.float(), self.image_size, self.preserves_geometry)
            if self.roles.source and not (self.prior is not None and not self.roles.decoder):
                condition["images"] = seen
            if self.roles.control:
                estimator, processor = self.depth_estimator, self.depth_processor
                condition["control"] = control.control_maps(self.condition, seen, estimator, processor, control_maps)
        if lines is not None and self._prompt_to_pipe:
            condition["prompts"] = texts.to_bytes(lines).to(self.device)
        return condition

    def _prompts_of(self, prompts: list[str] | None, values: Mapping[str, Any], count: int) -> list[str] | None:
        """Return the prompt of each image; None where all have the same one."""
        if prompts is not None and not self.takes_prompt:
            raise ConfigError(f"prompts={prompts!r}: {name_type(self.prior or self.pipe)} takes no prompt here")
        if unknown := sorted(values.keys() - set(self.fields)):
            raise ConfigError(f"{unknown[0]}={values[unknown[0]]!r}: no field of prompt={self.prompt!r}")
        if prompts is not None:
            return check_prompts(prompts, count)
        if not self.fields:
            return None
        if lacking := [name for name in self.fields if name not in values]:
            raise MissingInputError(
                f"{lacking[0]} is missing: prompt={self.prompt!r} needs it; give the transform "
                f"inputs_getter=lambda sample: {{{lacking[0]!r}: …}} with one value per image"
            )
        return texts.fill_prompts(self.prompt, values, count)

    def save_pretrained(self, directory: str | Path, *, dtype: torch.dtype | None = None, card: Mapping[str, Any] | None = None) -> None:
        """Write the pipeline in diffusers layout, its prior beside it, ``config.json`` with the options, and a model card.

        Args:
            directory: made if absent.
            dtype: must be None: load with another `dtype`, then save.
            card: as in `ImageGenerator.save_pretrained`.

        Raises:
            ConfigError: if an option is not JSON-able, or a network holds a LoRA that is not merged, or quantised weights.
        """
        with self._lifted():
            pretrained.save(self, directory, dtype, card or {})

    @property
    def notes(self) -> dict[str, str]:
        """The licence of its weights; whether the pipeline's safety checker and watermarker work, or were left out."""
        return super().notes | describe_safeguards(self.pipe)

    def __setattr__(self, name: str, value: Any) -> None:
        pipe = self._owner(name)
        if pipe is not None:
            part = name.removeprefix("prior_") if pipe is self.prior else name
            if not isinstance(getattr(pipe, part), nn.Module):
                raise ConfigError(
                    f"{name} is no network: set it in the pipeline, generator.{'prior' if pipe is self.prior else 'pipe'}.{part}"
                )
            steps = part in denoisers(pipe) and pipe is self.pipe
            if steps and (mode := self._init_config.get("compile", False)):
                check_denoiser(part, value, mode)
            self._lift()
            setattr(pipe, part, value)  # whose call makes the images
            self._once.clear()
            if steps:
                self._compile([value])
        super().__setattr__(name, value)

    def _owner(self, name: str) -> Any:
        """Return the pipeline that has a component of this name; None if it is no component, or none is known yet."""
        own = vars(self)
        if "_once" not in own:
            return None
        if name in own["pipe"].components:
            return own["pipe"]
        found = own["prior"] is not None and name.startswith("prior_") and name.removeprefix("prior_") in own["prior"].components
        return own["prior"] if found else None

    def _saved_weights(self) -> dict[str, Tensor]:
        with self._lifted() if self.offload == "sequential" else contextlib.nullcontext():  # between calls the weights are elsewhere
            return unfused_weights(self, self._networks())

    def _networks(self) -> dict[str, nn.Module]:
        return select_networks(dict(self.named_children()))

    def _denoising_networks(self) -> list[nn.Module]:
        return [self.pipe.components[name] for name in denoisers(self.pipe)]

    def _compile(self, networks: Iterable[nn.Module]) -> None:
        if mode := self._init_config.get("compile", False):
            for network in networks:
                compile_denoiser(network, mode)
