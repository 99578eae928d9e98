"""Any diffusers pipeline that takes an image, as a generator: its own call, under the contract of one seed for each image."""

from __future__ import annotations

import inspect
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from gentransforms.errors import ConfigError, ImageError, MissingInputError, WeightsError
from gentransforms.generators.base import ImageGenerator, _check_placement
from gentransforms.generators.card import model_card
from gentransforms.generators.diffusion import appearance, calls, saving, state
from gentransforms.generators.diffusion.describe import describe_pipeline, select_networks
from gentransforms.generators.diffusion.loading import load_any
from gentransforms.generators.diffusion.once import EncodeOnce
from gentransforms.generators.diffusion.options import image_size as checked_size
from gentransforms.generators.diffusion.pickling import drop_capturing_hooks
from gentransforms.generators.diffusion.prompts import check_prompts
from gentransforms.generators.diffusion.sampling import make_rngs
from gentransforms.hub import models as hub
from gentransforms.images import fit
from gentransforms.seeding import check_seeds
from gentransforms.surroundings import isolate_loading

__all__ = ["PipelineVariation"]

P = TypeVar("P", bound="PipelineVariation")
_PRIOR = "prior_pipeline"  # folder of a saved prior


class PipelineVariation(ImageGenerator):
    """Image variation by any diffusers pipeline that takes an image: image-to-image, Kandinsky, models that edit.

    The pipeline's own call makes the images, each with its own rng of its seed; `StableDiffusionVariation` and
    `ControlNetVariation` are faster for what they serve. At the first use two sources are made alone and together: if the
    images of this pipeline depend on what else is in the batch, it runs one image at a time from then on, and says so.

    Args:
        pipe: a diffusers pipeline; its networks are frozen and put into eval mode.
        prior: the pipeline that makes embeddings of images: ``KandinskyV22PriorPipeline``, ``FluxPriorReduxPipeline``.
        prompt: the text for images that come without their own; its fields, as in ``"a photo of a {label}"``, are inputs, one
            value for each image.
        image_size: of the images, in pixels: a side or (height, width); the pipeline's own by default.
        preserves_geometry: whether you know that the layout of the source is kept, as at a small `strength`.
        options: of the pipeline's call, such as ``strength``, ``num_inference_steps`` and ``guidance_scale``.

    Raises:
        WeightsError: if the pipeline takes no image, or lacks its prior.
        ConfigError: if the call takes no such option, or a value is out of its range.

    Attributes:
        inputs: ``prompts``, one string for each image, and the fields of `prompt`, where the pipeline takes a prompt.
        batched: whether several images go through one call; None until the first use.

    Example:
        >>> import torch
        >>> generator = PipelineVariation.from_pretrained(img2img_folder, prompt="a {label}", strength=0.5, num_inference_steps=4)
        >>> generator(torch.rand(2, 3, 32, 32), torch.tensor([1, 2]), label=["cat", "dog"]).shape
        torch.Size([2, 3, 32, 32])

    Source: Meng et al., "SDEdit" (ICLR 2022), for image-to-image.
    """

    def __init__(
        self,
        pipe: Any,
        *,
        prior: Any = None,
        prompt: str = "",
        image_size: int | tuple[int, int] | None = None,
        preserves_geometry: bool = False,
        **options: Any,
    ) -> None:
        super().__init__()
        if not calls.takes_image(type(pipe)) and prior is None:
            raise WeightsError(
                f"a {type(pipe).__name__} takes no image: use its image-to-image pipeline, "
                "diffusers.AutoPipelineForImage2Image.from_pipe(pipe), or give prior="
            )
        if calls.is_decoder_of_embeddings(pipe) and prior is None:
            raise WeightsError(f"a {type(pipe).__name__} needs the embedding of an image: give prior=, its prior pipeline, which makes it")
        calls.check_call_options(pipe, options)
        self.pipe, self.prior = pipe, prior
        networks = select_networks(pipe.components) | {
            f"prior_{n}": part for n, part in select_networks(prior.components if prior else {}).items()
        }
        for name in sorted(networks, key=lambda name: name not in ("unet", "transformer")):  # first the one whose dtype is the generator's
            self.add_module(name, networks[name])
        # With a prior, it is the prior that reads the prompt, if anything does.
        self.reads_prompts = prior is not None and hasattr(prior, "image_embedder") and getattr(prior, "text_encoder", None) is not None
        self.takes_prompt = self.reads_prompts if prior is not None else "prompt" in inspect.signature(type(pipe).__call__).parameters
        if not isinstance(prompt, str):
            raise ConfigError(f"prompt={prompt!r}: expected a string; one prompt per image goes to encode(images, prompts=…)")
        if prompt and not self.takes_prompt:
            raise ConfigError(f"prompt={prompt!r}: a {type(prior or pipe).__name__} takes no prompt here")
        self.prompt, self.fields = prompt, calls.template_fields(prompt)
        self.inputs = (*self.fields, *(["prompts"] if self.takes_prompt else []))
        self.preserves_geometry = preserves_geometry
        self.image_size = checked_size(image_size if image_size is not None else self._own_size(), self._multiple())
        self.options = {name: value for name, value in options.items() if value is not None}
        self.batched: bool | None = False if calls.one_source_at_a_time(pipe) else None
        self._once = EncodeOnce()
        self.__dict__["_init_config"] = {}
        self.eval().requires_grad_(False)
        self._read_state()

    @classmethod
    def from_pipeline(
        cls: type[P],
        pipe: Any,
        *,
        prior: Any = None,
        prompt: str = "",
        image_size: int | tuple[int, int] | None = None,
        preserves_geometry: bool = False,
        **options: Any,
    ) -> P:
        """Return a generator that calls a loaded diffusers pipeline; its networks are shared with it, and frozen.

        Offloading, quantised components, LoRAs and a compiled transformer work as they do in the pipeline.

        Args:
            pipe: the pipeline.
            prior: the pipeline that makes embeddings of images, for Kandinsky's decoders and FLUX Redux.
            prompt: the text for images that come without their own; a template of inputs.
            image_size: of the images, in pixels.
            preserves_geometry: whether you know that the layout of the source is kept.
            options: of the pipeline's call.

        Raises:
            WeightsError: if the pipeline takes no image, or lacks its prior.
            ConfigError: if the call takes no such option, or a part was changed in a way that no fingerprint can cover.
        """
        return cls(pipe, prior=prior, prompt=prompt, image_size=image_size, preserves_geometry=preserves_geometry, **options)

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
        safety_checker: Any = "repository",
        prior: str | Path | None = None,
        **options: Any,
    ) -> P:
        """Load a repository or folder in diffusers layout, or one written by `save_pretrained`; returned in eval mode.

        A repository of text-to-image is loaded as diffusers' image-to-image pipeline of the same parts. No code of the
        repository is run, and pickled weights are read as weights alone.

        Args:
            name_or_path: a folder, or a Hub repository ``"organisation/name"``.
            revision: commit, tag or branch of that repository.
            device: where to put it; the CPU by default.
            dtype: of its weights; float32 by default.
            token: for a private repository.
            cache_dir: where downloads are kept.
            local_files_only: use only what is downloaded already.
            variant: of the weight files, such as ``"fp16"``.
            safety_checker: None leaves it out; by default the repository's own, whose black images count as failed.
            prior: repository or folder of the pipeline that makes embeddings, for Kandinsky's decoders and FLUX Redux.
            options: those of the class, and of the pipeline's call.

        Raises:
            WeightsError: if a file is missing, damaged or of another kind, or no pipeline of diffusers takes an image there.
            ConfigError: if the call takes no such option.
        """
        place = _check_placement(device, dtype)
        elsewhere: dict[str, Any] = {"token": token, "cache_dir": cache_dir, "local_files_only": local_files_only}
        source = hub.Source(name_or_path, revision=revision, **elsewhere)
        saved = saving.saved_options(source, cls.__name__)
        options = saved.pop("options", {}) | {n: v for n, v in saved.items() if n not in ("prior", "state")} | options
        own_prior = prior is None and saved.get("prior")
        kind, width = {} if safety_checker == "repository" else {"safety_checker": safety_checker}, dtype or torch.float32
        pipe = load_any(source, width, variant, needs_image=prior is None and not own_prior, **kind)
        made = None
        if own_prior:
            made = load_any(source, width, variant, folder=_PRIOR)
        elif prior is not None:
            made = load_any(hub.Source(prior, **elsewhere), width, variant)
        try:
            generator = cls(pipe, prior=made, **options)
        except ConfigError as error:
            raise ConfigError(f"{source}: {error}") from error
        state.apply_state(generator._networks(), saved.get("state", {}))
        generator.name_or_path = str(name_or_path)
        return generator.to(device=place)

    @property
    def config(self) -> dict[str, Any]:
        """What decides the images beside the weights: options, the configuration of every part, and their state.

        Raises:
            ConfigError: if a part was changed in a way that cannot be described, such as a replaced ``forward``.
        """
        found = self._read_state()
        parts = {"components": describe_pipeline(self.pipe, {})}
        if self.prior is not None:
            parts["prior_components"] = describe_pipeline(self.prior, {})
        return self._own_options() | parts | ({"state": found} if found else {})

    def _read_state(self) -> dict[str, Any]:
        for name, pipe in {"": self.pipe, "prior_": self.prior}.items():
            if getattr(pipe, "scheduler", None) is not None:
                state.check_scheduler(f"{name}scheduler", pipe.scheduler)
        return state.read_state(self._networks(), strict=False)

    def _own_options(self) -> dict[str, Any]:
        options = {"prompt": self.prompt, "image_size": list(self.image_size), "preserves_geometry": self.preserves_geometry}
        return options | {"options": dict(self.options)}

    @property
    def required_inputs(self) -> tuple[str, ...]:
        """The fields of the prompt."""
        return self.fields

    @property
    def device(self) -> torch.device:
        """Where the pipeline computes: with offloading not where its weights are."""
        return torch.device(self.pipe._execution_device)

    def encode(self, images: Tensor, prompts: list[str] | None = None, **values: Any) -> dict[str, Tensor]:
        """Return what the pipeline is told of each image.

        Args:
            images: (B, 3, H, W) floating in [0, 1].
            prompts: one for each image, instead of the option `prompt`.
            values: of the fields of `prompt`: one value for each image.

        Returns:
            ``images`` (B, 3, h, w) at the generator's size, or with a prior its embeddings; ``prompts`` (B, L) uint8, the
            text of each image in UTF-8, padded with zeros, where there is one for each.

        Raises:
            ImageError: if `images` has another shape or is not floating.
            MissingInputError: if a field of the prompt is not given.
            ConfigError: if there is not one prompt or value for each image.
        """
        if not isinstance(images, Tensor) or images.ndim != 4 or not images.is_floating_point():
            found = f"{tuple(images.shape)} {images.dtype}" if isinstance(images, Tensor) else type(images).__name__
            raise ImageError(f"images is {found}: expected (B, 3, H, W) floating in [0, 1]; GenerativeAugment takes other kinds")
        if unknown := sorted(values.keys() - set(self.fields)):
            raise ConfigError(f"{unknown[0]}={values[unknown[0]]!r}: no field of prompt={self.prompt!r}")
        texts = None if prompts is None else check_prompts(prompts, len(images))
        if texts is None and self.fields:
            if lacking := [name for name in self.fields if name not in values]:
                raise MissingInputError(
                    f"{lacking[0]} is missing: prompt={self.prompt!r} needs it; give the transform "
                    f"inputs_getter=lambda sample: {{{lacking[0]!r}: …}} with one value per image"
                )
            texts = calls.fill_prompts(self.prompt, values, len(images))
        if self.prior is not None:
            return self._embed(images, texts or [self.prompt] * len(images))
        condition = {"images": fit(images.float(), self.image_size, self.preserves_geometry)}
        if texts is not None:
            condition["prompts"] = _to_bytes(texts).to(self.device)
        return condition

    def sample(self, condition: Mapping[str, Tensor], seeds: Tensor) -> Tensor:
        """Return new images (B, 3, *image_size) float32 in [0, 1]; NaN where a safety checker or an overflow left none.

        Args:
            condition: what `encode` returned, or rows of it.
            seeds: (B,) int64 on the CPU. Row i is what the pipeline's call makes with ``torch.Generator().manual_seed(seeds[i])``.
        """
        check_seeds(seeds, len(seeds))
        if not len(seeds):
            return torch.empty(0, 3, *self.image_size, device=self.device)
        if self.batched is None:
            self.batched = self._images_depend_on_nothing_else()
        if self.batched:
            return self._call(condition, seeds)
        together = calls.one_source_at_a_time(self.pipe)
        groups = _runs(condition, len(seeds)) if together else [slice(i, i + 1) for i in range(len(seeds))]
        made = [self._call({name: rows[group] for name, rows in condition.items()}, seeds[group]) for group in groups]
        return made[0] if len(made) == 1 else torch.cat(made)

    def _call(self, condition: Mapping[str, Tensor], seeds: Tensor) -> Tensor:
        arguments: dict[str, Any] = dict(self.options)
        together = calls.one_source_at_a_time(self.pipe)
        if "images" in condition:
            arguments["image"] = calls.to_pictures(condition["images"][:1])[0] if together else condition["images"].to(self.dtype)
        for name in ("image_embeds", "prompt_embeds", "pooled_prompt_embeds"):
            if name in condition:
                arguments[name] = condition[name].to(self.dtype)
        if "image_embeds" in condition:
            arguments["negative_image_embeds"] = self.prior.get_zero_embed(len(seeds), self.device).to(self.dtype)
        if self.takes_prompt and self.prior is None:
            texts = _from_bytes(condition["prompts"]) if "prompts" in condition else [self.prompt] * len(seeds)
            arguments["prompt"] = texts[0] if together else texts
        if together:
            arguments["num_images_per_prompt"] = len(seeds)
        with self._once.around(getattr(self.pipe, "vae", None)):
            return calls.call(self.pipe, make_rngs(seeds), self.image_size, arguments)

    def _embed(self, images: Tensor, texts: list[str]) -> dict[str, Tensor]:
        """Return what the prior makes of the images, and of the texts where it reads them, one after the other."""
        if hasattr(self.prior, "get_zero_embed"):
            encoder = self.prior.image_encoder
            pixels = appearance.preprocess(images.float(), self.prior.image_processor, encoder.config.image_size)
            if not len(images):
                return {"image_embeds": pixels.new_zeros(0, encoder.config.projection_dim)}
            return {"image_embeds": encoder(pixels.to(encoder.dtype)).image_embeds}
        pictures = calls.to_pictures(images if len(images) else torch.zeros(1, 3, *self.image_size))
        reads = [{"prompt": text} for text in texts or [""]] if self.reads_prompts else [{}] * len(pictures)
        made = [self.prior(picture, **text) for picture, text in zip(pictures, reads, strict=True)]
        return {name: torch.cat([output[name] for output in made])[: len(images)] for name in ("prompt_embeds", "pooled_prompt_embeds")}

    def _images_depend_on_nothing_else(self) -> bool:
        """Try two sources alone and together, in both orders; warn if their images differ."""
        images = torch.rand(2, 3, *self.image_size, generator=torch.Generator().manual_seed(0)).to(self.device)
        seeds, texts = torch.tensor([1, 2]), {"prompts": ["", "a"]} if self.takes_prompt and self.prior is None else {}
        condition = self.encode(images, **texts)

        def made(*rows: int) -> Tensor:
            return self._call({name: value[list(rows)] for name, value in condition.items()}, seeds[list(rows)])

        alone, reason = torch.cat([made(0), made(1)]), "its images depend on what else is in the batch"
        bound = 1e-3 if self.dtype == torch.float32 else 1e-2
        try:
            if all(torch.allclose(alone, found, atol=bound, rtol=0, equal_nan=True) for found in (made(0, 1), made(1, 0).flip(0))):
                return True
        except (ValueError, RuntimeError, TypeError) as error:
            reason = f"it takes no batch of sources ({str(error).splitlines()[0]})"
        warnings.warn(f"{type(self.pipe).__name__}: {reason}: it runs one image at a time", stacklevel=2)
        return False

    def save_pretrained(self, directory: str | Path, *, dtype: torch.dtype | None = None, card: Mapping[str, Any] | None = None) -> None:
        """Write the pipeline in diffusers layout, its prior beside it, ``config.json`` with the options, and a model card.

        Args:
            directory: made if absent.
            dtype: must be None: load with another `dtype`, then save.
            card: as in `ImageGenerator.save_pretrained`.

        Raises:
            ConfigError: if an option is not JSON-able, or a network holds a LoRA that is not merged, or quantised weights.
        """
        if dtype is not None:
            raise ConfigError(f"dtype={dtype}: load the generator with dtype={dtype} and save that; a pipeline is saved as it is")
        state.check_saveable(self._networks())
        config = {name: value for name, value in self.config.items() if "components" not in name} | {"prior": self.prior is not None}
        try:
            text = json.dumps(saving.describe(self, config), indent=2)
        except TypeError as error:
            raise ConfigError(
                f"options {self.options!r} cannot be written as JSON ({error}): use numbers, strings, lists, dicts"
            ) from error
        page, folder = model_card(self, card or {}), Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        self.pipe.save_pretrained(folder, safe_serialization=True)
        if self.prior is not None:
            self.prior.save_pretrained(folder / _PRIOR, safe_serialization=True)
        (folder / hub.CONFIG_FILE).write_text(text + "\n")
        (folder / hub.CARD_FILE).write_text(page)

    def _networks(self) -> dict[str, nn.Module]:
        return select_networks(dict(self.named_children()))

    def _own_size(self) -> tuple[int, int]:
        network: Any = getattr(self.pipe, "unet", None) or getattr(self.pipe, "transformer", None)
        side: Any = getattr(getattr(network, "config", None), "sample_size", None) or getattr(self.pipe, "default_sample_size", 128)
        scale: int = self._shrinks()
        height, width = side if isinstance(side, list | tuple) else (side, side)
        return int(height * scale), int(width * scale)

    def _multiple(self) -> int:
        return self._shrinks() * (2 if getattr(self.pipe, "transformer", None) is not None else 1)

    def _shrinks(self) -> int:
        found: Any = getattr(self.pipe, "vae_scale_factor", None) or getattr(self.pipe, "movq_scale_factor", None)
        return int(found or 8)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self._once.clear()
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    def __getstate__(self) -> dict[str, Any]:
        drop_capturing_hooks(self.modules())
        given: dict[str, Any] = super().__getstate__()  # type: ignore[no-untyped-call]
        return given | {"_once": EncodeOnce()}


def _runs(condition: Mapping[str, Tensor], count: int) -> list[slice]:
    """Return the ranges of neighbouring rows with the same condition: variants of one source."""
    starts = [i for i in range(count) if i == 0 or any(not torch.equal(rows[i], rows[i - 1]) for rows in condition.values())]
    return [slice(a, b) for a, b in zip(starts, [*starts[1:], count], strict=True)]


def _to_bytes(texts: list[str]) -> Tensor:
    coded = [text.encode() for text in texts]
    longest = max(map(len, coded), default=0)
    return torch.tensor([list(text.ljust(longest, b"\0")) for text in coded], dtype=torch.uint8).reshape(len(texts), longest)


def _from_bytes(rows: Tensor) -> list[str]:
    return [bytes(row.tolist()).rstrip(b"\0").decode() for row in rows.cpu()]
