"""Call a pipeline with a whole batch if a test shows that its images do not depend on the batch, else one by one."""

from __future__ import annotations

import contextlib
import warnings
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gentransforms.errors import ConfigError
from gentransforms.generators.diffusion.prompts.templates import fill_prompts
from gentransforms.generators.diffusion.sampling import make_rngs
from gentransforms.generators.generate import is_out_of_memory
from gentransforms.generators.pipelines import adapters, calls, priors, settings, texts
from gentransforms.generators.pipelines.execution.caching import enabled_cache, per_batch
from gentransforms.generators.pipelines.execution.offloading import OffloadedGenerator
from gentransforms.generators.pipelines.kinds.roles import Roles
from gentransforms.generators.pipelines.once import EncodeOnce
from gentransforms.generators.pipelines.safeguards import unchecked
from gentransforms.generators.pipelines.trial import Undecided, check_repeatable, describe_setup, find_dependence, reads_alike
from gentransforms.seeding import check_seeds
from gentransforms.wording import name_type

__all__ = ["CalledPipeline"]


class CalledPipeline(OffloadedGenerator):
    """A generator whose images a pipeline's own call makes; `PipelineVariation` says what of.

    Attributes:
        together: what one call may contain: ``"sources"``, any batch; ``"variants"``, variants of one source; or ``"nothing"``, a
            single image. None until a batch has been tested, and again after a change of the pipeline that could change the answer.
    """

    roles: Roles
    options: dict[str, Any]
    cache: dict[str, Any] | None
    prompt: str
    fields: tuple[str, ...]
    takes_prompt: bool
    together: str | None = None
    _prompt_to_pipe: bool
    _pictures: bool  # whether it is given PIL images
    _forms_tried: bool = False  # whether it is known to read tensors as it reads PIL images, or not to
    _repeatable: bool = False  # whether it is known to make an image again
    _setup: tuple[str, ...] | None = None  # of the pipeline, when these were found out

    def _prepare(self) -> None:
        """Set what the calls go by, once the pipeline is known."""
        self._forget()
        self._once = EncodeOnce()
        self._notes, self._prior_notes = settings.Notes(), settings.Notes()

    @abstractmethod
    def _encode(self, images: Tensor, filled: Mapping[str, list[str]], control_maps: Any) -> dict[str, Tensor]:
        """Return the condition of each image, as `encode` does, from texts by the options that hold them; see there."""

    def _forget(self) -> None:
        """Forget what images have shown of the pipeline."""
        self.together = "nothing" if per_batch(self.cache) else None
        self._pictures = calls.one_source_at_a_time(self.pipe)
        self._forms_tried = self._repeatable = False

    def _follow_setup(self) -> None:
        """Forget what images have shown if the pipeline was set up in another way since, such as with an IP-Adapter."""
        now = describe_setup(self.pipe)
        if self._setup is not None and now != self._setup:
            adapters.check_adapters(self.pipe)
            self._forget()
        self._setup = now

    @property
    def _plain_prompt(self) -> str:
        return fill_prompts(self.prompt, {}, 1)[0]  # where braces are doubled

    def sample(self, condition: Mapping[str, Tensor], seeds: Tensor) -> Tensor:
        """Return new images (B, 3, *image_size) float32 in [0, 1]; NaN where a safety checker or an overflow left none.

        Args:
            condition: what `encode` returned, or rows of it.
            seeds: (B,) int64 on the CPU. Row i is what the pipeline's call makes with ``torch.Generator().manual_seed(seeds[i])``.

        Raises:
            GeneratorError: if the pipeline makes something else than images, or other ones with each call.
            WeightsError: if an IP-Adapter was loaded into it that its call cannot give the source.
        """
        check_seeds(seeds, len(seeds))
        if not len(seeds):
            return torch.empty(0, 3, *self.image_size, device=self.device)
        self._hook()
        self._follow_setup()
        if len(seeds) == 1:
            return self._call(condition, seeds) if self._repeatable else self._call_twice(condition, seeds)
        if self.together is None:
            self.together = self._try_together()
            self._repeatable = self._repeatable or self.together is not None
        if self.together in (None, "nothing") and not self._repeatable:  # as a cache has it, untried
            self._call_twice({name: rows[:1] for name, rows in condition.items()}, seeds[:1])
        if self.together == "sources" and not self._one_source(condition):
            return self._call(condition, seeds)
        groups = _runs(condition, len(seeds)) if self.together == "variants" else [slice(i, i + 1) for i in range(len(seeds))]
        made = [self._call({name: rows[group] for name, rows in condition.items()}, seeds[group], True) for group in groups]
        return made[0] if len(made) == 1 else torch.cat(made)

    def _call_twice(self, condition: Mapping[str, Tensor], seeds: Tensor) -> Tensor:
        """Return one image, the first of this pipeline, if the same one comes out again."""
        made = self._try_forms(condition, seeds)
        self._once.clear()  # what it encoded is tried, too
        check_repeatable(lambda: self._call(condition, seeds), made, type(self.pipe).__name__, self.dtype)
        self._repeatable = bool(made.isfinite().all())  # a black image of a safety checker shows nothing
        return made

    def _adapted(self, condition: Mapping[str, Tensor]) -> bool:
        return adapters.sees_by_adapter(self.pipe) and "images" in condition

    def _one_source(self, condition: Mapping[str, Tensor]) -> bool:
        """Return whether a call takes one source alone: given several, it would make all images of the first."""
        return self._pictures or self._adapted(condition)

    def _call(self, condition: Mapping[str, Tensor], seeds: Tensor, one_source: bool = False) -> Tensor:
        """Return what one call of the pipeline makes; with `one_source`, all rows are of one, and it is given once."""
        count = len(seeds)
        adapted = self._adapted(condition)
        one_source = one_source or self._pictures or adapted
        rows = {name: value[:1] if one_source else value for name, value in condition.items()}
        arguments: dict[str, Any] = texts.share(self.options, None if one_source else count)
        for role, name in ((self.roles.source, "images"), (self.roles.control, "control")):
            if role is not None and name in rows:
                arguments[role] = rows[name].to(self.device, self.dtype)
        if adapted:
            arguments["ip_adapter_image"] = adapters.adapter_pixels(self.pipe, rows["images"])
        for name in priors.EMBEDDINGS:
            if name in rows:
                arguments[name] = rows[name].to(self.dtype)
        if "image_embeds" in rows:
            try:
                nothing = priors.embed_nothing(self.prior, len(rows["image_embeds"]), self.device, self._once)
            finally:
                self._rest()
            arguments["negative_image_embeds"] = nothing.to(self.dtype)
        if self._prompt_to_pipe:
            lines = texts.from_bytes(rows["prompts"]) if "prompts" in rows else [self._plain_prompt] * (1 if one_source else count)
            arguments["prompt"] = lines[0] if one_source else lines
        for name in filter(texts.is_shared, rows):
            lines = texts.from_bytes(rows[name])
            arguments[name] = lines[0] if one_source else lines
        if one_source and count > 1:
            arguments["num_images_per_prompt"] = count
        try:
            return self._call_with(arguments, seeds)
        except (TypeError, LookupError, AttributeError, ValueError) as error:
            if self.cache is None or isinstance(error, ConfigError):
                raise
            raise ConfigError(
                f"cache={self.cache!r}: the installed diffusers cannot use it in {name_type(self.pipe)} with these options "
                f"({type(error).__name__}: {error}): use another, or none"
            ) from error

    def _call_with(self, arguments: dict[str, Any], seeds: Tensor) -> Tensor:
        """Call the pipeline with tensors, or with PIL images where it takes no tensors."""
        with settings.watched(self.pipe, self._notes), self._once.around(self.pipe), enabled_cache(self.pipe, self.cache):
            if self._pictures:
                return calls.call(self.pipe, make_rngs(seeds), self.image_size, self._as_pictures(arguments))
            try:
                with self._pixels_in_unit_range():
                    return calls.call(self.pipe, make_rngs(seeds), self.image_size, arguments)
            except (TypeError, ValueError, AttributeError) as error:  # perhaps it takes only PIL images
                if len(seeds) > 1 or not isinstance(arguments.get(self.roles.source or ""), Tensor):
                    raise
                try:
                    made = calls.call(self.pipe, make_rngs(seeds), self.image_size, self._as_pictures(arguments))
                except Exception as second:
                    if is_out_of_memory(second):
                        raise
                    raise error from None
                self._pictures = True
                return made

    def _try_forms(self, condition: Mapping[str, Tensor], seeds: Tensor) -> Tensor:
        """Return one image; find out whether the pipeline takes tensors, and reads them as it reads PIL images, or is given the latter.

        Some take tensors for pixels that are normalised already, as unCLIP's image encoder and the ControlNets of transformers do.
        """
        made = self._call(condition, seeds)
        shown = {"images", "control"} & condition.keys()
        if self._pictures or self._forms_tried or not shown or not made.isfinite().all():  # a black image shows nothing
            return made
        self._pictures = True
        try:
            other = self._call(condition, seeds)
        except Exception as error:  # whatever a pipeline raises that takes no PIL images
            if is_out_of_memory(error):
                raise
            other = None
        finally:
            self._pictures = False
        self._forms_tried = True
        if other is None or reads_alike(made, other, self.dtype):
            return made
        whole = {name: (rows * 255).round() / 255 if name in shown else rows for name, rows in condition.items()}
        if not reads_alike(self._call(whole, seeds), other, self.dtype):
            self._pictures = True
            return other
        return made

    def _as_pictures(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        roles = (role for role in (self.roles.source, self.roles.control) if role in arguments)
        return {**arguments, **{role: calls.to_pictures(arguments[role])[0] for role in roles if role is not None}}

    def _pixels_in_unit_range(self) -> contextlib.AbstractContextManager[None]:
        """Let the image processor of a depth estimator, to which a pipeline gives its source, take tensors in [0, 1]."""
        processor = getattr(self.pipe, "feature_extractor", None)
        if getattr(self.pipe, "depth_estimator", None) is None or processor is None:
            return contextlib.nullcontext()
        return priors.unit_range(processor)

    def _try_together(self) -> str | None:
        """Try two sources alone and together, in both orders, then two variants of one; return what goes together, and say so.

        None if the images say nothing, because some are not finite.
        """
        images = torch.randint(0, 256, (2, 3, *self.image_size), generator=torch.Generator().manual_seed(0)).to(self.device) / 255
        differ = [*(["prompt"] if self.takes_prompt else []), *texts.shared_templates(self.options)]
        maps = images.flip(0)[:, :1] if self.condition == "maps" else None  # grey, which every network takes
        condition = self._encode(images, {name: ["", "a"] for name in differ}, maps)
        seeds, name = torch.tensor([1, 2]), type(self.pipe).__name__

        def make_sources(rows: Sequence[int]) -> Tensor:
            return self._call({name: value[list(rows)] for name, value in condition.items()}, seeds[list(rows)])

        def make_variants(rows: Sequence[int]) -> Tensor:
            return self._call({name: value[[0] * len(rows)] for name, value in condition.items()}, seeds[list(rows)], True)

        reason = None
        try:
            with unchecked(self.pipe):
                self._try_forms({name: value[:1] for name, value in condition.items()}, seeds[:1])
                if not self._one_source(condition):
                    reason = find_dependence(make_sources, "sources", name, self.dtype)
                    if reason is None:
                        return "sources"
                alike = find_dependence(make_variants, "variants", name, self.dtype) is None
        except Undecided:
            reason = "the images of its trial are black or not finite, which says nothing of a batch"
            warnings.warn(f"{name}: {reason}: it runs one image at a time until they are", stacklevel=2)
            return None
        if alike:
            if reason is not None:
                warnings.warn(f"{name}: {reason}: it runs one source at a time, with all its variants", stacklevel=2)
            return "variants"
        reason = reason or "its images depend on what else is in the batch"
        warnings.warn(f"{name}: {reason}: it runs one image at a time", stacklevel=2)
        return "nothing"

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_once": EncodeOnce()}


def _runs(condition: Mapping[str, Tensor], count: int) -> list[slice]:
    """Return the ranges of neighbouring rows with the same condition: variants of one source."""
    starts = [i for i in range(count) if i == 0 or any(not torch.equal(rows[i], rows[i - 1]) for rows in condition.values())]
    return [slice(a, b) for a, b in zip(starts, [*starts[1:], count], strict=True)]
