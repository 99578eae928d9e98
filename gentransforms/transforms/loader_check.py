"""Whether the loader of a folder of images reads its files as the bank did: upright, on white, with all their bits."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import PIL.Image
from torch.utils.data import Subset
from torchvision.datasets import DatasetFolder

from gentransforms.bank.reader import Bank
from gentransforms.images import to_rows
from gentransforms.sources.decode import exif_orientation, rgb_image
from gentransforms.sources.keyed import KeyedDataset
from gentransforms.sources.resemblance import mark
from gentransforms.transforms.source_check import image_in, random_state_kept

__all__ = ["check_loader"]

_MOST = 64  # files whose headers are read
_TOLERANCE = 3  # grey levels by which decoders differ


def check_loader(bank: Bank, dataset: KeyedDataset) -> None:
    """Compare what the loader of an `ImageFolder` makes of a file with what the bank was made from.

    Only the headers of up to 64 files are read, and files that are transparent, turned or have more than 8 bits are decoded, until one
    is read otherwise.

    Warns:
        UserWarning: if the loader reads it otherwise, and `rgb_image` as the bank did.
    """
    if bank.marks is None:
        return
    for place in np.unique(np.linspace(0, len(dataset) - 1, min(_MOST, len(dataset))).astype(int)).tolist():
        folder, index = _whole(dataset.dataset, place)
        if not isinstance(folder, DatasetFolder):
            return
        path = folder.samples[index][0]
        if not (how := _stored(path)):
            continue
        row = int(bank.find_keys([dataset.keys[place]])[0])
        try:
            with warnings.catch_warnings(), random_state_kept():
                warnings.simplefilter("ignore")  # of the file, which come again when it is used
                if row < 0 or not _alike(rgb_image(path), bank.marks[row]):
                    continue
                if _alike(folder.loader(path), bank.marks[row]) or _alike(image_in(dataset, place), bank.marks[row]):
                    continue
        except Exception:  # the loader is the user's, and so may be what a data set does about its errors
            continue
        warnings.warn(
            f"{bank.path}: {path} {how}, and this {type(folder).__name__} reads it otherwise than the bank did, so that real and "
            f"generated views differ, unless a transform of yours sees to it: give {type(folder).__name__}(…, "
            "loader=gentransforms.sources.decode.rgb_image)",
            stacklevel=5,
        )
        return


def _whole(dataset: Any, place: int) -> tuple[Any, int]:
    """Return the data set that a `Subset` is a part of, and the place of a sample there."""
    while isinstance(dataset, Subset):
        dataset, place = dataset.dataset, int(dataset.indices[place])
    return dataset, place


def _stored(path: str) -> str:
    """Return what a loader has to mind in a file, by its header; empty if there is nothing."""
    try:
        with PIL.Image.open(path) as image:
            if image.has_transparency_data:
                return "has transparent parts"
            if image.mode == "F" or image.mode.startswith("I"):
                return "has more than 8 bits"
            return "has an EXIF orientation" if exif_orientation(image) != 1 else ""
    except (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError):
        return ""


def _alike(image: Any, expected: np.ndarray[Any, np.dtype[np.uint8]]) -> bool:
    """Return whether an image has this mark; an image of another kind than the transform takes is refused when it is used."""
    seen = mark(to_rows(image)[0])
    return int(np.abs(seen.astype(np.int16) - expected).max()) <= _TOLERANCE
