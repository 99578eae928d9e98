"""Read the files of a bank: map them, reach into their images, decode these."""

from __future__ import annotations

import contextlib
import functools
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import PIL.Image
import torch
from torch import Tensor
from torchvision.io import ImageReadMode

from gentransforms.bank.format.lookup import Lookup, Numbers, view_numbers
from gentransforms.bank.format.unit import ADVICE
from gentransforms.errors import BankError
from gentransforms.sources.arrow import arrow

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["MAPPED_AT_ONCE", "Images", "MappedFile", "decode_rgb", "map_file"]

# Linux allows a process 65,530 mappings; a bank may have more files than that.
MAPPED_AT_ONCE = 64


def map_file(path: str | Path, schema: pa.Schema) -> list[pa.RecordBatch]:
    """Return the rows of a file, memory-mapped: nothing but the file's structure is read.

    The mapping lives as long as the batches do; the file itself is closed, so that no file descriptor is kept.

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


class MappedFile:
    """The rows of one file, numbered from 0: keys, variants and encoded images as views of mapped memory.

    Args:
        batches: of the file.
    """

    def __init__(self, batches: Sequence[pa.RecordBatch]) -> None:
        self._starts = np.cumsum([0, *(batch.num_rows for batch in batches)], dtype=np.int64).tolist()
        self._keys = [_view_column(batch.column("key")) for batch in batches]
        self._variants = [view_numbers(batch.column("variant"), np.int32) for batch in batches]
        self._images = [_view_column(batch.column("image").field("bytes")) for batch in batches]

    def __len__(self) -> int:
        return int(self._starts[-1])

    def image(self, row: int) -> bytearray:
        """Return the bytes of an image, a copy of its own."""
        segment, place = self._find(row)
        offsets, data = self._images[segment]
        return bytearray(data[offsets[place] : offsets[place + 1]])

    def holds(self, row: int, key: bytes | int, variant: int) -> bool:
        """Whether a row is of this key, a str as UTF-8, and variant."""
        segment, place = self._find(row)
        offsets, data = self._keys[segment]
        there = (bytes(data[offsets[place] : offsets[place + 1]]) if isinstance(key, bytes) else offsets[place]) == key
        return bool(there and self._variants[segment][place] == variant)

    def _find(self, row: int) -> tuple[int, int]:
        segment = 0
        while row >= self._starts[segment + 1]:  # there are few: of 16 MB each
            segment += 1
        return segment, row - self._starts[segment]


class Images:
    """The encoded images of all rows of a bank, whose files are mapped when they are read, at most 64 at a time.

    Safe in threads and after a fork: the files that are mapped stand in a `functools.lru_cache`, which holds no lock while
    one is opened.

    Args:
        lookup: of the bank.
        load: maps the file of a number.
    """

    def __init__(self, lookup: Lookup, load: Callable[[int], list[pa.RecordBatch]]) -> None:
        self._lookup = lookup
        # Not a method: it would keep this object, and what it maps, until the garbage collector comes.
        self._file = functools.lru_cache(MAPPED_AT_ONCE)(lambda number: MappedFile(load(number)))

    def read(self, rows: Numbers) -> list[bytearray]:
        """Return the bytes of those rows, each a copy of its own.

        Raises:
            BankError: if a file is not the one that the bank was opened with.
        """
        lookup = self._lookup
        files, keys = lookup.locate(rows)
        found = [bytearray()] * len(rows)
        for i in np.argsort(files, kind="stable").tolist():
            number, row, key = int(files[i]), int(rows[i]), lookup.raw_key(int(keys[i]))
            file, place = self._file(number), row - int(lookup.file_starts[number])
            if not file.holds(place, key, int(lookup.variants[row])):
                raise BankError(
                    f"{lookup.files[number]}: row {place} is not variant {lookup.variants[row]} of key {lookup.key(int(keys[i]))!r}: it "
                    f"was replaced after the bank was opened, or after its index was written; open the bank again; {ADVICE}"
                )
            found[i] = file.image(place)
        return found


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


def _view_column(column: pa.Array) -> tuple[npt.NDArray[Any], memoryview]:
    """Return a column of str or bytes as offsets and data; one of int as its numbers, and nothing."""
    if column.type == arrow().int64():
        return view_numbers(column, np.int64), memoryview(b"")
    _, offsets, data = column.buffers()
    view = np.frombuffer(offsets, np.int32)[column.offset : column.offset + len(column) + 1]
    return view, memoryview(data if data is not None else b"")


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
