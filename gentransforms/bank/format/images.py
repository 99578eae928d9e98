"""Read the files of a bank: map them, reach into their images, decode these."""

from __future__ import annotations

import contextlib
import functools
import io
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import PIL.Image
import torch
from torch import Tensor
from torchvision.io import ImageReadMode

from gentransforms.bank.format.lookup import Lookup, Numbers
from gentransforms.bank.format.unit import ADVICE
from gentransforms.errors import BankError
from gentransforms.sources.arrow import arrow

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["MAPPED_AT_ONCE", "Images", "decode_rgb", "map_file"]

# Linux allows a process 65,530 mappings; a bank may have more files than that.
MAPPED_AT_ONCE = 64
_INT64, _INT32, _TWO_INT32 = struct.Struct("<q"), struct.Struct("<i"), struct.Struct("<ii")


def map_file(path: str | Path, schema: pa.Schema) -> list[pa.RecordBatch]:
    """Return the rows of a file, memory-mapped: nothing but the file's structure is read.

    The mapping lives as long as the batches do; the file itself is closed, so that no file descriptor is kept.

    Raises:
        BankError: if the file cannot be read, or is not the Arrow stream of a unit.
    """
    return _parse(_map_bytes(path), path, schema)


class _Layout(NamedTuple):
    """Where the columns of a record batch begin in their file, in bytes."""

    rows: int
    keys: int  # of int keys; of the offsets of str keys
    key_data: int
    variants: int
    images: int  # their offsets
    image_data: int


class _MappedFile:
    """The rows of one file, numbered from 0, read from mapped memory without pyarrow, which takes ten times as long to set up."""

    def __init__(self, data: memoryview, layouts: Sequence[_Layout]) -> None:
        self._data, self._layouts = data, layouts

    def image(self, row: int) -> bytearray:
        """Return the bytes of an image, a copy of its own."""
        layout, row = self._find(row)
        return bytearray(self._item(layout.images, layout.image_data, row))

    def holds(self, row: int, key: bytes | int, variant: int) -> bool:
        """Whether a row is of this key, a str as UTF-8, and variant."""
        layout, row = self._find(row)
        if isinstance(key, int):
            (found,) = _INT64.unpack_from(self._data, layout.keys + 8 * row)
        else:
            found = bytes(self._item(layout.keys, layout.key_data, row))
        return bool(found == key and _INT32.unpack_from(self._data, layout.variants + 4 * row) == (variant,))

    def _find(self, row: int) -> tuple[_Layout, int]:
        for layout in self._layouts:  # there are few: of 16 MB each
            if row < layout.rows:
                return layout, row
            row -= layout.rows
        raise IndexError(row)

    def _item(self, offsets: int, data: int, row: int) -> memoryview:
        start, stop = _TWO_INT32.unpack_from(self._data, offsets + 4 * row)
        return self._data[data + start : data + stop]


class Images:
    """The encoded images of all rows of a bank, whose files are mapped when they are read, at most 64 at a time.

    Safe in threads and after a fork: the files that are mapped stand in a `functools.lru_cache`, which holds no lock while
    one is opened.

    Args:
        lookup: of the bank.
        schema: of its files.
        find_file: returns the path of the file of a number.
    """

    def __init__(self, lookup: Lookup, schema: pa.Schema, find_file: Callable[[int], Path]) -> None:
        self._lookup, self._schema, self._find_file = lookup, schema, find_file
        layouts: dict[int, list[_Layout]] = {}

        # Not a method: it would keep this object, and what it maps, until the garbage collector comes.
        @functools.lru_cache(MAPPED_AT_ONCE)
        def open_file(number: int) -> _MappedFile:
            path = find_file(number)
            whole = _map_indexed(path, lookup, number)
            if number not in layouts:
                layouts[number] = [_find_columns(whole, batch) for batch in _parse(whole, path, schema)]
            return _MappedFile(memoryview(whole), layouts[number])

        self._open_file = open_file

    def read_batches(self, number: int) -> list[pa.RecordBatch]:
        """Return all rows of a file, memory-mapped.

        Raises:
            BankError: if the file is not the one that the bank was opened with.
        """
        path = self._find_file(number)
        return _parse(_map_indexed(path, self._lookup, number), path, self._schema)

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
            file, place = self._open_file(number), row - int(lookup.file_starts[number])
            if not file.holds(place, key, int(lookup.variants[row])):
                raise BankError(
                    f"{lookup.files[number]}: row {place} is not variant {lookup.variants[row]} of key {lookup.key(int(keys[i]))!r}: if "
                    f"generate has replaced it since the bank was opened, open the bank again; otherwise it is damaged: {ADVICE}"
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


def _map_indexed(path: Path, lookup: Lookup, number: int) -> pa.Buffer:
    """Map the file of a number, if it has the size that the index says."""
    whole, expected = _map_bytes(path), int(lookup.file_sizes[number])
    if whole.size != expected:
        raise BankError(
            f"{path}: has {whole.size:,} bytes, expected {expected:,}: if generate has replaced it since the bank was opened, open the "
            f"bank again; otherwise it is damaged: {ADVICE}"
        )
    return whole


def _map_bytes(path: str | Path) -> pa.Buffer:
    pa = arrow()
    try:
        with pa.memory_map(str(path)) as file:
            return file.read_buffer()
    except (pa.ArrowException, OSError) as error:
        raise BankError(f"{path}: cannot be read ({_first_line(error)}): {ADVICE}") from error


def _parse(whole: pa.Buffer, path: str | Path, schema: pa.Schema) -> list[pa.RecordBatch]:
    """Return the rows of a file that is mapped, as views of it."""
    pa = arrow()
    try:
        with pa.ipc.open_stream(whole) as stream:
            if not stream.schema.equals(schema, check_metadata=False):
                found = ", ".join(f"{field.name}: {field.type}" for field in stream.schema)
                raise BankError(f"{path}: holds columns {found}, not those of this bank: {ADVICE}")
            return [batch for batch in stream if batch.num_rows]
    except (pa.ArrowException, OSError, EOFError) as error:
        raise BankError(f"{path}: cannot be read as an Arrow stream ({_first_line(error)}): {ADVICE}") from error


def _find_columns(whole: pa.Buffer, batch: pa.RecordBatch) -> _Layout:
    def place(buffer: pa.Buffer | None) -> int:
        return 0 if buffer is None else int(buffer.address - whole.address)

    keys, variants = batch.column("key").buffers(), batch.column("variant").buffers()
    images = batch.column("image").field("bytes").buffers()
    return _Layout(batch.num_rows, place(keys[1]), place(keys[-1]), place(variants[1]), place(images[1]), place(images[2]))


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


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
