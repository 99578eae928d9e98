"""Which files of an earlier save newly written ones replace, so that no loader takes the old weights for the new."""

from __future__ import annotations

import fnmatch
import glob
import re
from collections.abc import Iterable

__all__ = ["replaced_files", "replaced_patterns"]

# A file of weights, one of its shards, or the index of these.
_WEIGHTS = re.compile(r"(?P<stem>.+?)(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?")


def replaced_patterns(written: Iterable[str]) -> list[str]:
    """Return patterns of the weights that others replace: the same weights in one file, in shards, and with an index.

    diffusers prefers an index to a file, and transformers a file to an index, so one that stays behind would be loaded. Weights of another
    name in the same folder, such as those of a variant (``model.fp16.safetensors``), and the top folder are left alone.

    Args:
        written: names of files, relative to their top folder, with slashes.

    Example:
        >>> replaced_patterns(["unet/model.safetensors", "config.json"])
        ['unet/model-?????-of-?????.safetensors', 'unet/model.safetensors', 'unet/model.safetensors.index.json']
    """
    found = (_WEIGHTS.fullmatch(name) for name in written if "/" in name)
    stems = {glob.escape(match["stem"]) for match in found if match}
    endings = ("-?????-of-?????.safetensors", ".safetensors", ".safetensors.index.json")
    return sorted(stem + ending for stem in stems for ending in endings)


def replaced_files(written: Iterable[str], there: Iterable[str]) -> list[str]:
    """Return those of the files `there` that weights among those `written` replace, and that were not written themselves.

    Example:
        >>> replaced_files(["unet/model.safetensors"], ["unet/model.safetensors", "unet/model.safetensors.index.json", "unet/notes.txt"])
        ['unet/model.safetensors.index.json']
    """
    new = set(written)
    patterns = replaced_patterns(new)
    return sorted(name for name in set(there) - new if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns))
