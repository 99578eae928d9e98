"""The prompts of a diffusion generator: checked, with fields that are inputs, and encoded for each image."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from gentransforms.errors import ConfigError
from gentransforms.generators.diffusion.prompts.encoding import check_prompts, encode_prompts, takes_prompts
from gentransforms.generators.diffusion.prompts.shared import SharedConditions
from gentransforms.generators.diffusion.prompts.templates import INPUTS, fill_templates, has_fields, template_fields
from gentransforms.wording import name_type

__all__ = ["PromptFields"]

_TAKEN = {*INPUTS, "masks", "noise_levels", "foreground"}


class PromptFields(SharedConditions):
    """Base of the generators whose prompt may have fields, such as ``"a {label}"``: inputs with one value per image.

    Assigning `prompt` changes `inputs` along with it.
    """

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields of `prompt`; none in a text without, whose braces are meant as such."""
        return _fields_of(self.prompt)

    @property
    def required_inputs(self) -> tuple[str, ...]:
        """The fields of the prompt."""
        return self.fields

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "prompt" and "inputs" in vars(self):
            others = [other for other in self.inputs if other not in self.fields]
            self.inputs = (*_fields_of(value), *others)
        super().__setattr__(name, value)

    def _take_prompts(self, prompt: str, negative_prompt: str | None) -> None:
        """Set the prompts that all images share.

        Raises:
            ConfigError: if one is no string, a field has no name of its own, or the pipeline takes none.
        """
        for name, value in {"prompt": prompt, "negative_prompt": negative_prompt or ""}.items():
            if not isinstance(value, str):
                raise ConfigError(f"{name}={value!r}: expected a string; one prompt per image goes to encode(images, prompts=…)")
        if has_fields(negative_prompt or ""):
            warnings.warn(
                f"negative_prompt={negative_prompt!r}: its braces are taken literally, since one text holds for every image here; "
                "prompt may have fields, and with PipelineVariation negative_prompt too",
                stacklevel=5,
            )
        _fields_of(prompt)  # refuses what cannot be one
        if (prompt or negative_prompt) and not takes_prompts(self.pipe):
            raise ConfigError(f"prompt={prompt!r}: {name_type(self.pipe)} has no text encoder and takes no prompt")
        self.prompt, self.negative_prompt = prompt, negative_prompt

    def _encode_prompts(self, prompts: list[str] | None, values: Mapping[str, Any], count: int) -> dict[str, Tensor]:
        """Return the encoded prompts of `count` images; none where all share one, see `_shared`.

        Args:
            prompts: one for each image, or None for the option `prompt`.
            values: for each field of that, one value per image.

        Raises:
            MissingInputError: if the value of a field is missing.
            ConfigError: if there is not one prompt or value per image, or nothing to give it to.
        """
        if unknown := sorted(values.keys() - set(self.fields)):
            raise ConfigError(f"{unknown[0]}={values[unknown[0]]!r}: no field of prompt={self.prompt!r}")
        if prompts is None:
            prompts = fill_templates({"prompt": self.prompt}, values, count).get("prompt")
        if prompts is None:
            return {}
        if not takes_prompts(self.pipe):
            raise ConfigError(f"prompts={prompts!r}: {name_type(self.pipe)} has no text encoder and takes none")
        texts = encode_prompts(self.pipe, check_prompts(prompts, count), None, False)
        return {name: rows.to(self.dtype) for name, rows in texts.items()}


def _fields_of(prompt: str) -> tuple[str, ...]:
    return template_fields(prompt, taken=_TAKEN) if has_fields(prompt) else ()
