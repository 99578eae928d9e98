"""What a reader needs of a bank's manifest, checked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gentransforms.bank.format.manifest import hash_settings
from gentransforms.bank.format.unit import Unit, plan_units
from gentransforms.errors import BankError

__all__ = ["Facts", "facts_of"]


@dataclass(frozen=True)
class Facts:
    """The settings that a reader needs.

    Attributes:
        count: of sources.
        unit_size: sources in a unit.
        variants: asked for, of each source.
        key_type: ``"str"`` or ``"int"``.
        base_seed: of all seeds; None for images that others made, whose seeds are not known.
        image_size: (h, w) of every image.
        keys_digest: of the list of sources.
        generator: name of the class that made the images.
        preserves_geometry: whether it keeps the layout of an image.
        digest: of all settings; each sidecar repeats it.
    """

    count: int
    unit_size: int
    variants: int
    key_type: str
    base_seed: int | None
    image_size: tuple[int, int]
    keys_digest: str
    generator: str
    preserves_geometry: bool
    digest: str

    def units(self) -> list[Unit]:
        """Return the units of the finished bank."""
        return plan_units(self.count, self.unit_size)


def facts_of(manifest: Mapping[str, Any], where: str) -> Facts:
    """Return the facts of a manifest.

    Raises:
        BankError: naming the setting that is missing or of another type.
    """
    settings = manifest["settings"]

    def get(*path: str, kind: type, least: float = 0) -> Any:
        value: Any = settings
        for name in path:
            value = value.get(name) if isinstance(value, Mapping) else None
        if type(value) is not kind or (type(value) is int and value < least):
            raise BankError(f"{where}: settings {'.'.join(path)} is {value!r}: the file was changed by hand; put the original back")
        return value

    size, key_type = get("image_size", kind=list), get("source", "key_type", kind=str)
    if len(size) != 2 or not all(type(n) is int and n > 0 for n in size):
        raise BankError(f"{where}: settings image_size is {size!r}: expected [height, width]; put the original file back")
    if key_type not in ("str", "int"):
        raise BankError(f"{where}: settings source.key_type is {key_type!r}: expected 'str' or 'int'; put the original file back")
    return Facts(
        count=get("source", "count", kind=int),
        unit_size=get("unit_size", kind=int, least=1),
        variants=get("variants", kind=int, least=1),
        key_type=key_type,
        base_seed=None if settings.get("base_seed", 0) is None else get("base_seed", kind=int, least=-math.inf),
        image_size=(size[0], size[1]),
        keys_digest=get("source", "keys", kind=str),
        generator=get("generator", "class", kind=str),
        preserves_geometry=get("generator", "preserves_geometry", kind=bool),
        digest=hash_settings(settings),
    )
