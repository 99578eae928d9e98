"""Read one unit of a bank: map its file, reach into its images, decode them."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import PIL.Image
import torch
from torch import Tensor
from torchvision.io import ImageReadMode

from gentransforms.errors import BankError
from gentransforms.sources.arrow import arrow

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["ADVICE", "Images", "decode_rgb", "map_file"]

# What to do about a damaged unit.
ADVICE = "`gentransforms bank verify` says what is damaged, and with --repair lets generate make it again"


def map_file(path: str | Path, schema: pa.Schema) -> list[pa.RecordBatch]:
    """Return the rows of a unit, memory-mapped: nothing but the file's structure is read.

    The mapping lives as long as the batches do; the file itself is closed, so that a bank of any number of units needs
    no file descriptors.

    Raises:
        BankError: if the file cannot be read, or is not the Arrow stream of a unit.
    """
    pa = arrow()
    try:
        with pa.memory_map(str(path)) as file, pa.ipc.open_stream(file) as stream:
            if not stream.schema.equals(schema, check_metadata=False):
                found = ", ".join(f"{field.name}: {field.type}" for field in stream.schema)
                raise BankError(f"{path}: holds columns {found}, not those of this bank: {ADVICE}")
            return [batch for batch in stream if batch.num_rows]
    except (pa.ArrowException, OSError, EOFError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BankError(f"{path}: cannot be read as an Arrow stream ({reason}): {ADVICE}") from error


class Images:
    """The encoded images of the rows of many batches, numbered through.

    Args:
        batches: each with the name of the file it is from.
    """

    def __init__(self, batches: Sequence[tuple[str, pa.RecordBatch]]) -> None:
        self._files = [name for name, _ in batches]
        counts = [batch.num_rows for _, batch in batches]
        self._starts = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).astype(np.int64)
        self._offsets: list[npt.NDArray[np.int32]] = []
        self._data: list[memoryview] = []
        for _, batch in batches:
            column = batch.column("image").field("bytes")
            _, offsets, data = column.buffers()
            view = np.frombuffer(offsets, np.int32)[column.offset : column.offset + len(column) + 1]
            self._offsets.append(view)
            self._data.append(memoryview(data if data is not None else b""))

    def __len__(self) -> int:
        return int(self._starts[-1])

    def read(self, rows: npt.NDArray[np.int64]) -> list[bytearray]:
        """Return the bytes of those rows, each a copy of its own."""
        segments = np.searchsorted(self._starts, rows, side="right") - 1
        places = rows - self._starts[segments]
        found = []
        for segment, place in zip(segments.tolist(), places.tolist(), strict=True):
            offsets = self._offsets[segment]
            found.append(bytearray(self._data[segment][offsets[place] : offsets[place + 1]]))
        return found

    def one(self, row: int) -> bytearray:
        """Return the bytes of one row, a copy of its own."""
        return self.read(np.asarray([row], dtype=np.int64))[0]

    def file_of(self, row: int) -> str:
        """Return the name of the file that holds a row."""
        return self._files[int(np.searchsorted(self._starts, row, side="right")) - 1]


def decode_rgb(data: bytearray) -> Tensor:
    """Return an encoded image as uint8 (3, H, W).

    Raises:
        BankError: with the decoder's reason.
    """
    if not data:
        raise BankError("no bytes")
    if _DECODE is not None:
        # What it cannot decode, it says in a page of text; Pillow has the last word.
        with contextlib.suppress(RuntimeError):
            image: Tensor = _DECODE(torch.frombuffer(data, dtype=torch.uint8), ImageReadMode.RGB.value, False)
            return image
    try:
        with PIL.Image.open(io.BytesIO(data)) as picture:
            pixels = np.array(picture.convert("RGB"))
    except (OSError, ValueError, SyntaxError, EOFError, PIL.Image.DecompressionBombError) as error:
        raise BankError(str(error).splitlines()[0] if str(error) else type(error).__name__) from error
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _torchvision_decoder() -> Any:
    """Return torchvision's decoder, or None where there is none.

    It gives the pixels that Pillow gives, in two thirds of the time for a JPEG. The operator itself, because its public
    wrapper warns at each call, since 0.29, that it will go one day.
    """
    try:
        return torch.ops.image.decode_image.default
    except (AttributeError, RuntimeError):
        return None


_DECODE = _torchvision_decoder()
