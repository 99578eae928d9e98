"""Small banks for the tests, written unit by unit, with images that are known in closed form.

In a module of their own, so that DataLoader workers and pickle find them.
"""

from __future__ import annotations

import functools
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2 import functional as TF

import gentransforms as gt
from gentransforms.bank.format.index import MARK, encode_marks
from gentransforms.bank.format.manifest import FORMAT, FORMAT_VERSION, create_manifest, hash_keys, hash_manifest
from gentransforms.bank.format.seal import SEAL
from gentransforms.bank.format.unit import Row, Unit, plan_units, write_unit

SIZE = (4, 6)
KEYS = [f"{'cats' if i % 2 else 'dogs'}/{i:03d}.jpg" for i in range(10)]
BASE_SEED = 5


def pixels(position: int, variant: int, size: tuple[int, int] = SIZE) -> Tensor:
    """The image of a source and variant: red says which source, green which variant, blue is the column."""
    image = torch.empty(3, *size, dtype=torch.uint8)
    image[0], image[1] = position % 256, variant
    image[2] = torch.arange(size[1], dtype=torch.uint8)
    return image


def encoded(image: Tensor, image_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    TF.to_pil_image(image).save(buffer, image_format, **options)
    return buffer.getvalue()


@functools.lru_cache(4096)
def png(position: int, variant: int, size: tuple[int, int] = SIZE) -> bytes:
    return encoded(pixels(position, variant, size), "PNG")


@functools.lru_cache(4096)
def grey_jpeg(position: int, variant: int, size: tuple[int, int] = SIZE) -> bytes:
    """A JPEG of one grey, ``20 * variant + 2 * position``, which JPEG keeps to within 2."""
    return encoded(torch.full((3, *size), 20 * variant + 2 * position, dtype=torch.uint8), "JPEG", quality=95)


def manifest_of(
    keys: Sequence[str | int], variants: int = 3, unit_size: int = 4, size: tuple[int, int] = SIZE, preserves_geometry: bool = False
) -> dict[str, Any]:
    settings = {
        "variants": variants, "base_seed": BASE_SEED, "batch_size": 2, "unit_size": unit_size, "image_format": "png", "quality": None,
        "min_similarity": None, "max_attempts": 5, "threads": 1,
    }  # fmt: skip
    generator = {
        "class": "Painter", "fingerprint": "0" * 32, "config": {}, "preserves_geometry": preserves_geometry, "image_size": list(size),
    }  # fmt: skip
    source = {
        "count": len(keys), "keys": hash_keys(keys), "key_type": "str" if isinstance(next(iter(keys), ""), str) else "int", "inputs": [],
        "decides": {},
    }  # fmt: skip
    return {
        "format": FORMAT, "format_version": FORMAT_VERSION, "settings": settings, "generator": generator, "source": source,
        "device": "cpu", "encoder": "torchvision", "info": {"created": "now"},
    }  # fmt: skip


def rows_of_unit(
    unit: Unit, keys: Sequence[str | int], variants: int, image: Callable[[int, int], bytes] = png, skip: Sequence[Any] = ()
) -> list[Row]:
    """The rows of a unit; `skip` holds keys, and pairs of key and variant, that have none."""
    rows = []
    for position in range(unit.start, unit.stop):
        key = keys[position]
        if key in skip:
            continue
        seeds = gt.derive_seeds(BASE_SEED, [key] * variants, list(range(variants))).tolist()
        rows += [Row(key, v, seeds[v], 0, image(position, v)) for v in range(variants) if (key, v) not in skip]
    return rows


def make_bank(
    path: Path,
    keys: Sequence[str | int] = KEYS,
    variants: int = 3,
    unit_size: int = 4,
    size: tuple[int, int] = SIZE,
    image: Callable[[int, int], bytes] | None = None,
    failed: Mapping[Any, str] | None = None,
    rejected: Mapping[tuple[Any, int], str] | None = None,
    only: Sequence[int] | None = None,
    change: Callable[[Unit, list[Row]], list[Row]] | None = None,
    preserves_geometry: bool = False,
    indexed: bool = True,
    marked: bool = False,
) -> Path:
    """Write a bank and return its path.

    `failed` sources and `rejected` variants have no rows, `only` says which units there are, and `change` may spoil rows. If it is
    `marked`, its sources are of one grey each, ten levels apart.
    """
    failed, rejected = failed or {}, rejected or {}
    manifest = manifest_of(keys, variants, unit_size, size, preserves_geometry)
    create_manifest(path, manifest)
    key_type = manifest["source"]["key_type"]
    painted = image or functools.partial(_png_of_size, size)
    for number, unit in enumerate(plan_units(len(keys), unit_size)):
        if only is not None and number not in only:
            continue
        rows = rows_of_unit(unit, keys, variants, painted, [*failed, *rejected])
        own = {keys[i]: {"index": i} if indexed else {} for i in range(unit.start, unit.stop)}
        facts = {
            "settings": hash_manifest(manifest),
            "failed": [{"key": key, "reason": text, **own[key]} for key, text in failed.items() if key in own],
            "rejected": [
                {"key": key, "variant": v, "attempts": 5, "reason": text, **own[key]} for (key, v), text in rejected.items() if key in own
            ],
            "retried": 0,
        }
        if marked:
            there = dict.fromkeys(row.key for row in rows)
            facts["marks"] = encode_marks([bytes([10 * i] * MARK) for i in range(unit.start, unit.stop) if keys[i] in there])
        assert write_unit(path, unit, rows if change is None else change(unit, rows), key_type, facts)
    return path


def _png_of_size(size: tuple[int, int], position: int, variant: int) -> bytes:
    return png(position, variant, size)


def edit_json(path: Path, **changes: Any) -> None:
    """Change entries of a JSON file as a hand would; a value of None removes the entry."""
    value = json.loads(path.read_text())
    value.update({SEAL: None} | changes)
    path.write_text(json.dumps({name: entry for name, entry in value.items() if entry is not None}))


class Rows(Dataset[Any]):
    """A data set that reads the rows of an open bank, one by one; each with its number and the process that read it."""

    def __init__(self, bank: Any) -> None:
        self.bank = bank

    def __len__(self) -> int:
        return len(self.bank.keys) * self.bank.variants

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        key, variant = divmod(index, self.bank.variants)
        return self.bank.read([self.bank.keys[key]], [variant])[0], index
