"""Use any diffusers pipeline that takes an image as a generator, with one seed per image."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from gentransforms.containers import as_plain
from gentransforms.errors import ConfigError, ImageError
from gentransforms.generators.diffusion import conditions
from gentransforms.generators.diffusion.describe import describe_part, select_networks
from gentransforms.generators.diffusion.faster.execution import CompileMode
from gentransforms.generators.diffusion.options import image_size as checked_size
from gentransforms.generators.diffusion.prompts.encoding import check_prompts
from gentransforms.generators.diffusion.prompts.templates import fill_templates, template_fields
from gentransforms.generators.part_licenses import own_source, read_own_license
from gentransforms.generators.pipelines import adapters, calls, control, pretrained, priors, settings, sizes, texts
from gentransforms.generators.pipelines.execution.caching import check_cache
from gentransforms.generators.pipelines.execution.compiling import check_compiling
from gentransforms.generators.pipelines.kinds.classes import check_kind
from gentransforms.generators.pipelines.kinds.roles import find_roles
from gentransforms.generators.pipelines.kinds.supported import check_supported, needs_a_mask
from gentransforms.generators.pipelines.networks import PipelineNetworks
from gentransforms.generators.pipelines.safeguards import describe_safeguards
from gentransforms.generators.pipelines.strength import check_strength
from gentransforms.images import fit
from gentransforms.surroundings import isolate_loading
from gentransforms.wording import name_type

__all__ = ["PipelineVariation"]

P = TypeVar("P", bound="PipelineVariation")
Condition = str | Callable[[Tensor], Tensor]
_OWN = ("prompt", "image_size", "preserves_geometry", "condition", "cache", "compile", "offload")


class PipelineVariation(PipelineNetworks):
    """Generate variants with any diffusers pipeline that takes an image: image-to-image, Kandinsky, editing models.

    Images come from the pipeline's own ``__call__``, with one random generator per image, seeded with its seed. For the models that
    they support, `StableDiffusionVariation` and `ControlNetVariation` are faster. The first batch starts with a test: two sources
    are generated separately and together, in both orders. If an image depends on the rest of its batch, the pipeline runs one
    source or one image at a time from then on, and says so in a warning.

    Args:
        pipe: a diffusers pipeline; its networks are frozen and set to eval mode.
        prior: the pipeline that computes image embeddings, such as ``KandinskyV22PriorPipeline`` or ``FluxPriorReduxPipeline``.
        prompt: the default prompt. Its fields, as in ``"a photo of a {label}"``, become inputs of the generator, with one value
            per image; so do those of other texts, such as ``negative_prompt`` and ``prompt_2``.
        image_size: output size in pixels: a side or (height, width); by default the pipeline's own.
        preserves_geometry: set it to True only if you know that the layout of the source is kept, as with a low `strength`.
        condition: for pipelines that take a control map: ``"depth"``, ``"canny"``, ``"maps"`` for maps given along with the images,
            or a function from images (B, 3, H, W) in [0, 1] to control maps of the same kind, with an attribute ``version``.
        depth_estimator: (model, image processor) of transformers, for ``"depth"``.
        cache: (approximate) a diffusers cache that reuses transformer outputs between steps: ``"FirstBlockCache"``, ``{"name":
            "TaylorSeerCache", "cache_interval": 3}`` or a configuration object of diffusers. Each call starts with an empty cache.
            Caches that decide for a whole batch at once (first block, Sea) run one image at a time.
        compile: (exact up to rounding) compile the denoising networks (UNet, transformer, ControlNet) with ``torch.compile``:
            ``"regional"`` compiles only their repeated blocks, which is quick; ``"full"`` or True compiles them as a whole;
            ``"max-autotune"`` and ``"reduce-overhead"`` are torch's modes, with CUDA graphs.
        offload: ``"model"`` keeps networks on the CPU and moves each to the accelerator for its turn; ``"sequential"`` does so layer
            by layer, which takes the least memory and by far the most time. The same as diffusers' ``enable_model_cpu_offload`` and
            ``enable_sequential_cpu_offload``. Images change by rounding at most.
        options: arguments of the pipeline's ``__call__``, such as ``strength``, ``num_inference_steps`` and ``guidance_scale``.

    Raises:
        WeightsError: if the pipeline takes no image, or needs a prior and has none.
        ConfigError: if the pipeline's ``__call__`` has no such option, a value is out of range, or `strength` leaves no step.

    Attributes:
        inputs: ``prompts``, one string per image, and the fields of `prompt` and of other texts, if the pipeline takes them;
            ``control_maps`` with ``condition="maps"``.
        together: what one call may contain: ``"sources"``, any batch; ``"variants"``, variants of one source; or ``"nothing"``, a
            single image. None until the first batch has been tested.

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
        check_kind(type(pipe))
        calls.check_call_options(pipe, options, _OWN)
        texts.check_shared(options)
        self.roles = find_roles(type(pipe), prior is not None, options, needs_a_mask(pipe))
        check_supported(pipe, options)
        adapters.check_adapters(pipe)
        estimator, processor = depth_estimator or (None, None)
        control.check_condition(condition, self.roles.control is not None, type(pipe).__name__, estimator)
        self.pipe, self.prior, self.condition = pipe, prior, condition
        self.depth_processor: Any = processor
        networks = select_networks(pipe.components) | {
            f"prior_{n}": part for n, part in select_networks(prior.components if prior else {}).items()
        }
        for name in sorted(networks, key=lambda name: name not in ("unet", "transformer")):  # first the one whose dtype is the generator's
            self.add_module(name, networks[name])
        self._own_depth = estimator is not None
        if "depth_estimator" not in networks:  # some pipelines have one of their own
            self.add_module("depth_estimator", estimator)
        self._check_prompt(prompt)
        self.prompt = prompt
        of_options = [field for name, text in texts.shared_templates(options).items() for field in template_fields(text, name)]
        self.fields = tuple(dict.fromkeys((*template_fields(prompt), *of_options)))
        self.inputs = (*self.required_inputs, *(["prompts"] if self.takes_prompt else []))
        if not isinstance(preserves_geometry, bool):
            raise ConfigError(f"preserves_geometry={preserves_geometry!r}: expected True or False")
        self.preserves_geometry = preserves_geometry
        self.image_size = checked_size(image_size if image_size is not None else sizes.own_size(pipe), sizes.multiple_of(pipe))
        self.options = calls.take_options(pipe, options)
        check_strength(pipe, self.options)
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
        """Wrap a loaded diffusers pipeline; generator and pipeline share the networks, which are frozen.

        Quantised components, LoRAs, a compiled transformer and offloading hooks work as they do in the pipeline.

        Args:
            pipe: the pipeline.
            prior: the pipeline that computes image embeddings, for Kandinsky's decoders and FLUX Redux.
            prompt: the default prompt, which may have fields.
            image_size: output size in pixels.
            preserves_geometry: set it to True only if you know that the layout of the source is kept.
            condition: for pipelines that take a control map: ``"depth"``, ``"canny"``, ``"maps"`` or a function.
            depth_estimator: (model, image processor) of transformers, for ``"depth"``.
            cache: (approximate) a diffusers cache that reuses transformer outputs between steps.
            compile: (exact up to rounding) ``"regional"``, ``"full"``, ``"max-autotune"`` or ``"reduce-overhead"``.
            offload: ``"model"`` or ``"sequential"``: keep networks on the CPU until their turn on the accelerator.
            options: arguments of the pipeline's ``__call__``.

        Raises:
            WeightsError: if the pipeline takes no image, or needs a prior and has none.
            ConfigError: if the pipeline's ``__call__`` has no such option, or a component was changed in a way that the fingerprint
                cannot cover.
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
        generator._remember_card(own_source(pipe))
        parts = {"the prior": prior, "the depth model": generator.depth_estimator if generator._own_depth else None}
        generator._part_licenses = {what: read_own_license(part).name for what, part in parts.items() if part is not None}
        return generator

    @classmethod
    @isolate_loading()
    def from_pretrained(
        cls: type[P],
        name_or_path: str | Path,
        *,
        revision: str | None = None,
        device: torch.device | str | int | None = None,
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

        A text-to-image repository is loaded as the image-to-image pipeline that diffusers has for the same components. No code from
        the repository is run, and pickled files are read only as weights.

        Args:
            name_or_path: a folder, a Hub repository ``"organisation/name"``, or a checkpoint file.
            revision: commit, tag or branch of that repository.
            device: device to load to; the CPU by default, with `offload` the accelerator.
            dtype: dtype of the weights; float32 by default.
            token: access token for private repositories.
            cache_dir: where downloads are kept.
            local_files_only: use only files that are already downloaded.
            variant: variant of the weight files, such as ``"fp16"``.
            config: for a single file: a folder or repository in diffusers layout that provides configurations and tokenizers.
            safety_checker: None removes it; by default the repository's own. Images that it blacks out count as failed.
            watermarker: None removes it; by default as in diffusers.
            lora: repository, folder or file of a LoRA, or a mapping of them to scales; merged into the weights.
            quantization_config: a ``PipelineQuantizationConfig`` of diffusers.
            prior: repository or folder of the prior pipeline, for Kandinsky's decoders and FLUX Redux.
            depth_model: repository or folder of a transformers depth-estimation model, for ``condition="depth"``.
            options: options of the class, and arguments of the pipeline's ``__call__``.

        Raises:
            WeightsError: if a file is missing, damaged or of another kind, or the repository has no pipeline that takes an image.
            ConfigError: if the pipeline's ``__call__`` has no such option.
        """
        given = {name: as_plain(value) for name, value in locals().items() if name not in ("cls", "name_or_path")}
        generator: P = pretrained.load(cls, name_or_path, given)
        return generator

    @property
    def config(self) -> dict[str, Any]:
        """Everything but the weights that determines the images: options, and configuration and state of every component.

        Raises:
            ConfigError: if a component was changed in a way that cannot be described, such as a replaced ``forward``.
        """
        found = self._read_state()
        parts = {"components": settings.describe(self.pipe, self._notes)}
        if self.prior is not None:
            parts["prior_components"] = settings.describe(self.prior, self._prior_notes)
        if self._own_depth:
            own = {name: describe_part(getattr(self, name)) for name in ("depth_estimator", "depth_processor")}
            own["depth_processor"]["settings"] = settings.describe_processor(self.depth_processor)
            parts["components"] |= own
        return self._own_options() | parts | ({"state": found} if found else {})

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
        """The fields of the prompt and of other texts, and ``control_maps`` with ``condition="maps"``."""
        return (*self.fields, *(["control_maps"] if self.condition == "maps" else []))

    def encode(self, images: Tensor, prompts: list[str] | None = None, control_maps: Any = None, **values: Any) -> dict[str, Tensor]:
        """Return the condition of each image: the pipeline's inputs, without random numbers.

        Args:
            images: (B, 3, H, W) floating in [0, 1].
            prompts: one prompt per image, instead of the option `prompt`.
            control_maps: for ``condition="maps"``: (B, 1 or 3, H, W) uint8, or floating in [0, 1]; or a list of B of any sizes. They
                show the whole images, and are cropped to the centre as these are.
            values: for each field of `prompt` and of other texts, one value per image.

        Returns:
            A dict with ``images`` (B, 3, h, w) float32 at the generator's size, if the pipeline takes images; ``control``
            (B, 3 or 1, h, w), if it takes a control map; the embeddings of the prior, if it has one; and ``prompts`` (B, L) uint8, the
            UTF-8 bytes of each prompt, padded with zeros, if prompts differ between images, and the same for other texts with fields,
            under the names of their options.

        Raises:
            ImageError: if `images` has another shape or is not floating.
            MissingInputError: if the value of a field is missing.
            ConfigError: unless there is one prompt or value per image.
        """
        if not isinstance(images, Tensor) or images.ndim != 4 or not images.is_floating_point():
            found = f"{tuple(images.shape)} {images.dtype}" if isinstance(images, Tensor) else type(images).__name__
            raise ImageError(f"images is {found}: expected (B, 3, H, W) floating in [0, 1]; GenerativeAugment takes other kinds")
        return self._encode(images, self._texts_of(prompts, values, len(images)), control_maps)

    def check_encode_inputs(self, inputs: Mapping[str, Any], count: int) -> None:
        """Check the control maps, as `ImageGenerator.check_encode_inputs` says."""
        if self.condition == "maps":
            conditions.check_maps(inputs.get("control_maps"), count)

    def _encode(self, images: Tensor, filled: Mapping[str, list[str]], control_maps: Any) -> dict[str, Tensor]:
        lines = filled.get("prompt")
        self._hook()
        condition: dict[str, Tensor] = {}
        if self.prior is not None:
            given = (lines or [self._plain_prompt] * len(images)) if self.takes_prompt else []
            try:
                with settings.watched(self.prior, self._prior_notes):
                    condition |= priors.embed(self.prior, images, given, self.image_size)
            finally:
                self._rest()
        adapted = adapters.sees_by_adapter(self.pipe)
        if self.roles.source or self.roles.control or adapted:
            seen = fit(images.float(), self.image_size, self.preserves_geometry)
            if adapted or (self.roles.source and not (self.prior is not None and not self.roles.decoder)):
                condition["images"] = seen
            if self.roles.control:
                estimator, processor = self.depth_estimator, self.depth_processor
                maps = control.control_maps(self.condition, seen, estimator, processor, control_maps, self.preserves_geometry)
                condition["control"] = control.with_channels(self.pipe, maps)
        if lines is not None and self._prompt_to_pipe:
            condition["prompts"] = texts.to_bytes(lines).to(self.device)
        return condition | {name: texts.to_bytes(rows).to(self.device) for name, rows in filled.items() if name != "prompt"}

    def _texts_of(self, prompts: list[str] | None, values: Mapping[str, Any], count: int) -> dict[str, list[str]]:
        """Return the texts of each image by the options that hold them; those that are the same for all are left out."""
        if prompts is not None and not self.takes_prompt:
            raise ConfigError(f"prompts={prompts!r}: {name_type(self.prior or self.pipe)} takes no prompt here")
        templates = {"prompt": self.prompt} | texts.shared_templates(self.options)
        if unknown := sorted(values.keys() - set(self.fields)):
            held = ", ".join(f"{name}={text!r}" for name, text in templates.items())
            raise ConfigError(f"{unknown[0]}={values[unknown[0]]!r}: no field of {held}")
        if prompts is None:
            return fill_templates(templates, values, count)
        del templates["prompt"]
        return {"prompt": check_prompts(prompts, count)} | fill_templates(templates, values, count)

    def save_pretrained(self, directory: str | Path, *, dtype: torch.dtype | None = None, card: Mapping[str, Any] | None = None) -> None:
        """Write the pipeline in diffusers layout, its prior in a subfolder, ``config.json`` with the options, and a model card.

        Args:
            directory: created if it does not exist.
            dtype: must be None; to change the dtype, load with another `dtype` and save.
            card: as in `ImageGenerator.save_pretrained`.

        Raises:
            ConfigError: if an option cannot be written as JSON, or a network has an unmerged LoRA, an IP-Adapter, attention processors of
                its own or quantised weights.
            WeightsError: as in `ImageGenerator.save_pretrained`.
        """
        with self._lifted():
            pretrained.save(self, directory, dtype, card)

    def _describe_saved(self, dtype: torch.dtype | None, card: Mapping[str, Any] | None) -> str:
        with self._lifted():
            return pretrained.describe(self, dtype, card)

    @property
    def notes(self) -> dict[str, str]:
        """The licence of the weights, and whether safety checker and watermarker are active or were removed."""
        return super().notes | describe_safeguards(self.pipe)
