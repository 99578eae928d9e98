"""The conditions that all images of a generator share: its prompts, encoded once and again when they or their encoders change."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from gentransforms.generators.diffusion import appearance
from gentransforms.generators.diffusion.faster.compiled import CompiledGenerator
from gentransforms.generators.diffusion.prompts.encoding import encode_prompts
from gentransforms.generators.diffusion.prompts.stamps import Stamp, describe_tokenizer, make_stamp, same

__all__ = ["SharedConditions"]

_PREFIX = "_shared_"


class SharedConditions(CompiledGenerator):
    """Base of the generators that condition on one prompt for all images.

    What the text encoders make of it is kept in buffers, which move with the generator and are not saved, beside a stamp of what it was
    made from. `fingerprint`, which reads every weight, discards it, so that images made afterwards are those of the fingerprint
    whatever was done to the weights before.
    """

    pipe: Any
    kind: str
    prompt: str
    negative_prompt: str | None

    _shared_stamp: Stamp | None

    def __init__(self) -> None:
        super().__init__()
        self._shared_stamp = None

    @property
    @abstractmethod
    def guided(self) -> bool:
        """Whether a negative prompt is needed too."""

    def _shared(self) -> dict[str, Tensor]:
        """Return the conditions that do not depend on the image, one row each."""
        now = self._stamp()
        if not same(self._shared_stamp, now):
            self._forget_shared()
            found = encode_prompts(self.pipe, [self.prompt], self.negative_prompt, self.guided)
            negative = appearance.negative_embeds(self.pipe, self.kind) if self.guided else None
            if negative is not None:
                found["negative_embeds"] = negative
            for name, value in found.items():
                self.register_buffer(_PREFIX + name, value.detach().to(self.dtype), persistent=False)
            self._shared_stamp = now
        return {name.removeprefix(_PREFIX): self._buffers[name] for name in self._shared_names()}  # type: ignore[misc]

    def _stamp(self) -> Stamp:
        """Return what `_shared` depends on, as it is now."""
        pipe = self.pipe
        parts = [getattr(pipe, name, None) for name in ("text_encoder", "text_encoder_2")]
        if self.guided and self.kind == "ip-adapter" and appearance.on_hidden_states(pipe):
            parts.append(pipe.image_encoder)
        tokenizers = [describe_tokenizer(getattr(pipe, name, None)) for name in ("tokenizer", "tokenizer_2")]
        zeros = bool(pipe.config.get("force_zeros_for_empty_prompt", False))
        return make_stamp(parts, (self.prompt, self.negative_prompt, self.guided, self.dtype, zeros, tokenizers))

    def _shared_names(self) -> list[str]:
        return [name for name in self._buffers if name.startswith(_PREFIX)]

    def _forget_shared(self) -> None:
        self._shared_stamp = None
        for name in self._shared_names():
            delattr(self, name)

    def fingerprint(self) -> str:
        """Return 32 hexadecimal digits that identify this generator, as `ImageGenerator.fingerprint` does."""
        self._forget_shared()
        return super().fingerprint()

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        # A move to another device changes the stamp and not the values; one to another dtype and back changes the values alone.
        old = self._shared_stamp
        before = None if old is None else self._stamp()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if before is not None:
            after = self._stamp()
            if same(old, before) and _dtypes(before) == _dtypes(after):
                self._shared_stamp = after
            else:
                self._forget_shared()
        return self

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        # A stamp is of these weights: a copy makes its own, if this one holds.
        state["_shared_stamp"] = self._shared_stamp is not None and same(self._shared_stamp, self._stamp())
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._shared_stamp = self._stamp() if state["_shared_stamp"] else None


def _dtypes(stamp: Stamp) -> list[torch.dtype]:
    return [version[0] for version in stamp.versions]
