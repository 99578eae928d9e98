"""Read and restore a pipeline's settings besides its components: configuration flags, attributes, image processors, watermarker."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from gentransforms.errors import ConfigError
from gentransforms.generators.diffusion.describe import describe_pipeline

__all__ = ["Notes", "check_watermark", "describe", "describe_processor", "read_settings", "restore_settings", "watched"]

# They decide only about warnings.
_SILENT = {"requires_safety_checker"}
# What a call reads of a tokenizer beside its vocabulary.
_TOKENIZER = ("chat_template", "padding_side", "truncation_side")
# Entries of a processor's settings that name versions, classes and places.
_NAMES = re.compile("^_|_type$|_class$|version|name_or_path|auto_map|^(device|return_tensors|disable_grouping)$")
_PLAIN = bool | int | float | str | None


@dataclass
class Notes:
    """Plain attributes of a pipeline that its own calls were seen to change, such as a count of them: no settings, then.

    One that was set between calls is a setting again.

    Args:
        changed: for each, its value before the first of these calls, which stays in the fingerprint, so that it does not move, and
            the value that the last call left. An attribute that is not there has the value ``...``.
    """

    changed: dict[str, tuple[Any, Any]] = field(default_factory=dict)

    def apply(self, attributes: Mapping[str, Any]) -> dict[str, Any]:
        """Return attributes as they were before these calls; as they are where something else has set them since."""
        found = dict(attributes)
        for name, (first, left) in self.changed.items():
            if found.get(name, ...) == left:
                found[name] = first
        return {name: value for name, value in found.items() if value is not ...}

    def add(self, before: Mapping[str, Any], after: Mapping[str, Any], new: bool = True) -> None:
        """Note what a call changed.

        Args:
            before: the attributes before the call.
            after: those after it.
            new: whether attributes are noted that no call changed before.
        """
        for name in before.keys() | after.keys() | self.changed.keys():
            old, now = before.get(name, ...), after.get(name, ...)
            if name in self.changed and self.changed[name][1] == old:
                self.changed[name] = (self.changed[name][0], now)
            elif new and old != now:
                self.changed[name] = (old, now)
            else:
                self.changed.pop(name, None)


@contextlib.contextmanager
def watched(pipe: Any, notes: Notes) -> Iterator[None]:
    """Add to `notes` what the pipeline changes of its plain attributes inside the context.

    A call that fails may leave half a change, which could change images, so that none is added for it.
    """
    before = _attributes(pipe)
    try:
        yield
    except BaseException:
        notes.add(before, _attributes(pipe), new=False)
        raise
    notes.add(before, _attributes(pipe))


def describe(pipe: Any, notes: Notes) -> dict[str, Any]:
    """Describe everything but the weights that determines a pipeline's images: its components, and what `read_settings` finds."""
    described = describe_pipeline(pipe, {})
    for name, part in pipe.components.items():
        if found := describe_processor(part):
            described[name] = described.get(name, {}) | {"settings": found}
    return described | {"pipeline": described["pipeline"] | read_settings(pipe, notes)}


def describe_processor(part: Any) -> dict[str, Any]:
    """Return what a pipeline's call reads of an image processor, or of a tokenizer beside its vocabulary; empty for other parts.

    Places, versions and names of classes and files are left out, and so is what is None.
    """
    if hasattr(part, "get_vocab"):
        found = {name: getattr(part, name, None) for name in _TOKENIZER}
    elif hasattr(part, "config") or not hasattr(part, "to_dict"):
        return {}
    else:
        found = {name: value for name, value in part.to_dict().items() if not _NAMES.search(str(name))}
        for name in ("tokenizer", "image_processor", "chat_template"):  # inside a processor of texts and images
            inner = getattr(part, name, None)
            if inner is not None:
                found[name] = inner if name == "chat_template" else describe_processor(inner)
    plain: dict[str, Any] = _without_none(found)
    return plain


def _without_none(value: Any) -> Any:
    """Return settings of a processor in types that JSON can store, as they are after saving and loading too."""
    if isinstance(value, Mapping) or hasattr(value, "keys"):
        pairs = {str(name): _without_none(value[name]) for name in value.keys()}  # noqa: SIM118
        return {name: inner for name, inner in pairs.items() if inner is not None and not _NAMES.search(name)}
    if isinstance(value, list | tuple):
        return [_without_none(inner) for inner in value]
    if isinstance(value, Enum):
        return value.value
    return value if isinstance(value, _PLAIN) else type(value).__name__


def read_settings(pipe: Any, notes: Notes | None = None) -> dict[str, Any]:
    """Return a pipeline's settings besides its components, in types that JSON can store.

    Args:
        pipe: a diffusers pipeline.
        notes: what its calls were seen to change.

    Returns:
        ``flags``, the entries of its configuration that name no component; ``attributes``, its plain ones; ``processors``, the
        configurations of image processors; ``watermark``, the class of the watermarker, None without one. Empty ones are left out.
    """
    parts, own = pipe.components, vars(pipe)
    flags = {name: _plain(value) for name, value in pipe.config.items() if name not in parts and name not in _SILENT and name[0] != "_"}
    attributes, public = (notes or Notes()).apply(_attributes(pipe)), _public_of(pipe)
    processors = {name: _public(value.config) for name, value in public.items() if isinstance(getattr(value, "config", None), Mapping)}
    found: dict[str, Any] = {"flags": flags, "attributes": _plain(attributes), "processors": processors}
    found = {name: value for name, value in found.items() if value}
    if "watermark" in own:
        found["watermark"] = None if pipe.watermark is None else type(pipe.watermark).__name__
    return found


def _public_of(pipe: Any) -> dict[str, Any]:
    # The pipeline's call keeps its own notes under names that begin with an underscore.
    parts = pipe.components
    return {name: value for name, value in vars(pipe).items() if name not in parts and name[0] != "_" and name != "watermark"}


def _attributes(pipe: Any) -> dict[str, Any]:
    return {name: _plain(value) for name, value in _public_of(pipe).items() if _is_plain(value)}


def restore_settings(pipe: Any, saved: Mapping[str, Any]) -> None:
    """Set in a pipeline, as it was loaded, what `read_settings` found in the saved one; the watermarker is not touched."""
    now = read_settings(pipe)
    for name, value in _changed(now, saved, "attributes"):
        setattr(pipe, name, tuple(value) if isinstance(getattr(pipe, name), tuple) else value)
    if flags := dict(_changed(now, saved, "flags")):
        pipe.register_to_config(**flags)
    for name, config in _changed(now, saved, "processors"):
        getattr(pipe, name).register_to_config(**config)


def check_watermark(pipe: Any, saved: Mapping[str, Any]) -> None:
    """Check that a pipeline has the watermarker of the saved one.

    Raises:
        ConfigError: naming both watermarkers.
    """
    now = read_settings(pipe).get("watermark")
    if "watermark" in saved and saved["watermark"] != now:
        raise ConfigError(
            f"it was saved with the watermarker {saved['watermark']}, and the installed diffusers gives it {now or 'none'}: install "
            "invisible-watermark, or give watermarker=None, with which it makes other images"
        )


def _changed(now: Mapping[str, Any], saved: Mapping[str, Any], kind: str) -> list[tuple[str, Any]]:
    here = now.get(kind, {})
    return [(name, value) for name, value in saved.get(kind, {}).items() if name in here and json.dumps(here[name]) != json.dumps(value)]


def _public(config: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _plain(value) for name, value in config.items() if name[0] != "_"}


def _is_plain(value: Any) -> bool:
    return all(map(_is_plain, value)) if isinstance(value, list | tuple) else isinstance(value, _PLAIN)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value if isinstance(value, _PLAIN) else type(value).__name__
