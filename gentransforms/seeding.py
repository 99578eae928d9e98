"""Seeds: one number per generated image, which alone determines everything random about it."""

from __future__ import annotations

import hashlib
import json
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from gentransforms.errors import ConfigError
from gentransforms.wording import name_type

__all__ = ["check_seeds", "derive_seeds", "sample_noise", "sample_truncated_noise", "seed_uniforms"]


_FARTHEST = 5.5  # beyond it, the smallest of 2^24 uniform numbers would be mapped to the bound itself, however far that is


def derive_seeds(base_seed: int, keys: Sequence[str | int], variants: Sequence[int]) -> Tensor:
    """Return one seed for each (key, variant) pair: (N,) int64, from 0 to 2^63 - 1.

    A seed is the first 63 bits of BLAKE2b (RFC 7693) over the JSON text ``[base_seed, key, variant]``, so it depends on
    these three values alone and can be computed in any language. The keys ``"1"`` and ``1`` differ.

    Args:
        base_seed: selects the whole family of seeds.
        keys: names of the source images, each str or int.
        variants: variant number of each source, paired with `keys`.

    Raises:
        ConfigError: if the lengths differ, or a value is neither int nor, for keys, str.

    Example:
        >>> derive_seeds(0, ["cat.jpg", "cat.jpg", 7], [0, 1, 0]).tolist()
        [2759295887014369787, 6040139011649288081, 63233464462989666]
    """
    if isinstance(keys, str | bytes):
        raise ConfigError(f"keys={keys!r}: expected a list of keys; for a single key pass [{keys!r}]")
    if len(keys) != len(variants):
        raise ConfigError(f"keys has {len(keys)} entries and variants has {len(variants)}: expected equal lengths, paired")
    base = _integer("base_seed", base_seed)
    pairs = [
        (key if isinstance(key, str) else _integer("keys", key), _integer("variants", v)) for key, v in zip(keys, variants, strict=True)
    ]
    texts = (json.dumps([base, key, variant], separators=(",", ":")) for key, variant in pairs)
    digests = (hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts)
    return torch.tensor([int.from_bytes(digest, "big") >> 1 for digest in digests], dtype=torch.int64, device="cpu")


def sample_noise(seeds: Tensor, shape: Sequence[int]) -> Tensor:
    """Draw standard normal noise, row i from seed i alone: (B, *shape) float32 on the CPU.

    Args:
        seeds: (B,) int64 on the CPU.
        shape: of one row.

    Raises:
        ConfigError: if `seeds` is not (B,) int64 on the CPU.

    Example:
        >>> import torch
        >>> a, b = sample_noise(torch.tensor([1, 2]), (3,)), sample_noise(torch.tensor([2]), (3,))
        >>> torch.equal(a[1], b[0])
        True
    """
    return _rows(torch.randn, seeds, shape)


def sample_truncated_noise(seeds: Tensor, shape: Sequence[int], bound: float) -> Tensor:
    """Draw normal noise truncated to [-bound, bound], row i from seed i alone: (B, *shape) float32 on the CPU.

    By inversion: uniform numbers between the normal distribution's values at the bounds are passed through its inverse.

    Raises:
        ConfigError: if `seeds` is not (B,) int64 on the CPU, or `bound` is not positive and finite.

    Example:
        >>> import torch
        >>> bool(sample_truncated_noise(torch.tensor([1]), (1000,), 1.4).abs().max() <= 1.4)
        True
    """
    if not 0 < bound < math.inf:
        raise ConfigError(f"bound={bound!r}: expected a positive, finite number")
    bound = min(bound, _FARTHEST)
    high = math.erf(bound / math.sqrt(2))
    uniform = _rows(torch.rand, seeds, shape)
    return torch.erfinv(uniform.mul_(2 * high).sub_(high)).mul_(math.sqrt(2)).clamp_(-bound, bound)


def seed_uniforms(seeds: Tensor) -> Tensor:
    """Return a number in [0, 1) for each seed, unrelated to the noise drawn from it: (B,) float64.

    Uses the SplitMix64 finaliser (Steele et al., OOPSLA 2014): the result is the same on every device and in every batch.

    Example:
        >>> import torch
        >>> seed_uniforms(torch.tensor([0, 1, 2])).round(decimals=3).tolist()
        [0.883, 0.567, 0.591]
    """
    # int64 arithmetic wraps around, as the algorithm requires; only the shifts need masks to make them logical.
    x = seeds + -7046029254386353131
    x = (x ^ (x >> 30 & (1 << 34) - 1)) * -4658895280553007687
    x = (x ^ (x >> 27 & (1 << 37) - 1)) * -7723592293110705685
    x = x ^ (x >> 31 & (1 << 33) - 1)
    return (x >> 11 & (1 << 53) - 1).double() / (1 << 53)


def check_seeds(seeds: object, count: int) -> Tensor:
    """Return `seeds` if it is (count,) int64 on the CPU.

    Raises:
        ConfigError: otherwise, with what was found.

    Example:
        >>> import torch
        >>> check_seeds(torch.tensor([3, 4]), 2)
        tensor([3, 4])
    """
    if not isinstance(seeds, Tensor):
        raise ConfigError(f"seeds is {name_type(seeds)}: expected a tensor, for example torch.tensor([0, 1])")
    if seeds.dtype != torch.int64:
        raise ConfigError(f"seeds has dtype {seeds.dtype}: expected torch.int64")
    if seeds.shape != (count,):
        raise ConfigError(f"seeds has shape {tuple(seeds.shape)}: expected ({count},), one seed per image")
    if seeds.device.type != "cpu":
        raise ConfigError(f"seeds is on {seeds.device}: expected the CPU, where the noise is drawn; pass seeds.cpu()")
    return seeds


def _rows(draw: Callable[..., Tensor], seeds: Tensor, shape: Sequence[int]) -> Tensor:
    check_seeds(seeds, len(seeds) if isinstance(seeds, Tensor) and seeds.ndim else 0)
    kind: dict[str, Any] = {"dtype": torch.float32, "device": torch.device("cpu")}  # whatever torch's defaults are set to
    out: Tensor = torch.empty((len(seeds), *shape), **kind)
    rng = torch.Generator("cpu")
    # A loop, because a generator holds one state: a row's noise must not depend on the rows beside it.
    for row, seed in zip(out, seeds.tolist(), strict=True):
        rng.manual_seed(seed)
        draw(tuple(shape), generator=rng, out=row, **kind)
    return out


def _integer(name: str, value: object) -> int:
    # NumPy's bool is not a bool, and older NumPy accepts it as an index with a warning.
    if isinstance(value, bool) or type(value).__name__ in ("bool_", "bool"):
        raise ConfigError(f"{name}: {value!r} is a bool, expected an int" + (" or str" if name == "keys" else ""))
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        expected = "int or str" if name == "keys" else "int"
        raise ConfigError(f"{name}: {value!r} is {name_type(value)}, expected {expected}") from None
