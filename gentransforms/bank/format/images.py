"""The images of a bank: encoded, read from memory-mapped files, and decoded."""

from __future__ import annotations

import contextlib
import functools
import io
import struct
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import PIL.Image
import torch
import torchvision.io  # noqa: F401  # registers the operators
from torch import Tensor
from torchvision.io import ImageReadMode

from gentransforms.bank.format.damage import REPLACED, Damage
from gentransforms.bank.format.lookup import Lookup, Numbers
from gentransforms.bank.format.png import find_png_damage, has_16_bits, is_png
from gentransforms.errors import BankError
from gentransforms.sources.arrow import arrow

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["MAPPED_AT_ONCE", "Encoding", "Images", "decode_rgb", "map_file", "to_uint8"]

# Linux allows a process 65,530 mappings, and a bank may have more files.
MAPPED_AT_ONCE = 64
_NOT_8_BITS = "more than 8 bits a channel"
_local = threading.local()
_INT64, _INT32, _TWO_INT32 = struct.Struct("<q"), struct.Struct("<i"), struct.Struct("<ii")


def map_file(path: str | Path, schema: pa.Schema) -> list[pa.RecordBatch]:
    """Return the rows of a file, memory-mapped: only the structure of the file is read.

    The mapping lasts as long as the batches; the file itself is closed, so that no file descriptor is kept.

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
    """The rows of one file, numbered from 0, read from mapped memory; the setup of pyarrow takes ten times as long."""

    def __init__(self, data: memoryview, layouts: Sequence[_Layout]) -> None:
        self._data, self._layouts = data, layouts

    def image(self, row: int) -> bytearray:
        """Return a copy of an encoded image."""
        layout, row = self._find(row)
        return bytearray(self._item(layout.images, layout.image_data, row))

    def holds(self, row: int, key: bytes | int, variant: int) -> bool:
        """Return whether a row has this key (a str as UTF-8) and this variant."""
        layout, row = self._find(row)
        if isinstance(key, int):
            (found,) = _INT64.unpack_from(self._data, layout.keys + 8 * row)
        else:
            found = bytes(self._item(layout.keys, layout.key_data, row))
        return bool(found == key and _INT32.unpack_from(self._data, layout.variants + 4 * row) == (variant,))

    def _find(self, row: int) -> tuple[_Layout, int]:
        for layout in self._layouts:  # few, of 16 MB each
            if row < layout.rows:
                return layout, row
            row -= layout.rows
        raise IndexError(row)

    def _item(self, offsets: int, data: int, row: int) -> memoryview:
        start, stop = _TWO_INT32.unpack_from(self._data, offsets + 4 * row)
        return self._data[data + start : data + stop]


class Images:
    """The encoded images of all rows of a bank. Files are mapped when they are read, at most 64 at a time.

    Safe in threads and after a fork: the mapped files are kept in a `functools.lru_cache`, which holds no lock while a file is
    opened.

    Args:
        lookup: the lookup of the bank.
        schema: the schema of its files.
        find_file: returns the path of a file by its number.
    """

    def __init__(self, lookup: Lookup, schema: pa.Schema, find_file: Callable[[int], Path]) -> None:
        self._lookup, self._schema, self.find_file = lookup, schema, find_file
        layouts: dict[int, list[_Layout]] = {}

        # Not a method, which would keep this object and its mappings alive until the garbage collector runs.
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
        path = self.find_file(number)
        return _parse(_map_indexed(path, self._lookup, number), path, self._schema)

    def read(self, rows: Numbers) -> list[bytearray]:
        """Return the encoded images of these rows, each as its own copy.

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
                fault = f"row {place} is not variant {lookup.variants[row]} of key {lookup.key(int(keys[i]))!r}"
                raise Damage(f"{self.find_file(number)}: {fault}", REPLACED)
            found[i] = file.image(place)
        return found


@dataclass(frozen=True)
class Encoding:
    """How a bank's images are encoded.

    Args:
        image_format: ``"jpeg"``, ``"webp"`` or ``"png"``.
        quality: quality of JPEG and WebP, from 1 to 100; None for PNG, which is lossless.

    Example:
        >>> import torch
        >>> Encoding("png").encode(torch.zeros(3, 8, 8))[1:4]
        b'PNG'
    """

    image_format: str
    quality: int | None = None

    @property
    def encoder(self) -> str:
        """The library that encodes, ``"torchvision"`` or ``"pillow"``: their bytes differ, so the manifest names it."""
        return "pillow" if _operator(self.image_format) is None else "torchvision"

    def encode(self, image: Tensor) -> bytes:
        """Encode an image (3, H, W) on the CPU, uint8 or floating in [0, 1]; thread-safe."""
        pixels, operator = to_uint8(image), _operator(self.image_format)
        if operator is not None:
            encoded: Tensor = operator(torch.from_numpy(pixels), *_OPERATORS[self.image_format][1](self.quality))
            return encoded.numpy().tobytes()
        picture = PIL.Image.merge("RGB", [PIL.Image.fromarray(plane) for plane in pixels])
        buffer = io.BytesIO()
        picture.save(buffer, self.image_format, **({} if self.quality is None else {"quality": self.quality}))
        return buffer.getvalue()


def to_uint8(image: Tensor) -> Any:
    """Convert an image (C, H, W) on the CPU, uint8 or floating in [0, 1], to a uint8 NumPy array, rounded as in `GenerativeAugment`.

    The array belongs to this thread and is valid until its next call, because allocating memory costs more than the
    arithmetic. NumPy is used because torch would start threads of its own in each encoder thread.

    Example:
        >>> import torch
        >>> to_uint8(torch.full((1, 1, 2), 0.5)).tolist()
        [[[128, 128]]]
    """
    array = image.numpy()
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array)
    if getattr(_local, "shape", None) != array.shape:
        _local.shape, _local.floats, _local.bytes = array.shape, np.empty(array.shape, np.float32), np.empty(array.shape, np.uint8)
    floats, pixels = _local.floats, _local.bytes
    np.multiply(array, np.float32(255), out=floats, casting="same_kind")
    np.rint(floats, out=floats)
    np.clip(floats, 0, 255, out=floats)
    np.copyto(pixels, floats, casting="unsafe")
    return pixels


def decode_rgb(data: bytearray, *, thorough: bool = False) -> Tensor:
    """Return an encoded image as uint8 (3, H, W).

    Args:
        data: the encoded image.
        thorough: whether PNGs are decoded by Pillow, which takes up to 1.6 times as long. A PNG that was not written by an encoder,
            but made up so that its checksums are right and its pixels wrong, would end the process otherwise.

    Raises:
        BankError: with the decoder's reason, or if it has more than 8 bits a channel.
    """
    if not data:
        raise BankError("no bytes")
    image: Tensor | None = None
    png = is_png(data)
    if png and (damage := find_png_damage(data)):
        raise BankError(damage)
    if png and has_16_bits(data):
        raise BankError(_NOT_8_BITS)
    if _DECODE is not None and not (png and thorough):
        # It explains in a page of text what it cannot decode; Pillow then gives the reason in a line.
        with contextlib.suppress(RuntimeError):
            image = _DECODE(torch.frombuffer(data, dtype=torch.uint8), ImageReadMode.RGB.value, False)
    if image is not None:
        if image.dtype != torch.uint8:
            raise BankError(_NOT_8_BITS)
        return image
    try:
        with PIL.Image.open(io.BytesIO(data)) as picture:
            if picture.mode == "F" or picture.mode.startswith("I"):
                raise BankError(_NOT_8_BITS)
            pixels = np.array(picture.convert("RGB"))
    except BankError:
        raise
    except Exception as error:  # Pillow's decoders raise all kinds of errors on damaged files
        raise BankError(str(error).splitlines()[0] if str(error) else type(error).__name__) from error
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _map_indexed(path: Path, lookup: Lookup, number: int) -> pa.Buffer:
    """Map a file after checking that it has the size that the index says.

    Raises:
        BankError: if it has another size, or cannot be read.
    """
    whole, expected = _map_bytes(path), int(lookup.file_sizes[number])
    if whole.size != expected:
        raise Damage(f"{path}: has {whole.size:,} bytes, expected {expected:,}", REPLACED)
    return whole


def _map_bytes(path: str | Path) -> pa.Buffer:
    pa = arrow()
    try:
        with pa.memory_map(str(path)) as file:
            return file.read_buffer()
    except (pa.ArrowException, OSError) as error:
        raise Damage(f"{path}: cannot be read ({_first_line(error)})") from error


def _parse(whole: pa.Buffer, path: str | Path, schema: pa.Schema) -> list[pa.RecordBatch]:
    """Return the rows of a mapped file as views of it."""
    pa = arrow()
    try:
        with pa.ipc.open_stream(whole) as stream:
            if not stream.schema.equals(schema, check_metadata=False):
                found = ", ".join(f"{field.name}: {field.type}" for field in stream.schema)
                raise Damage(f"{path}: has the columns {found}, which are not those of this bank")
            return [batch for batch in stream if batch.num_rows]
    except (pa.ArrowException, OSError, EOFError) as error:
        raise Damage(f"{path}: cannot be read as an Arrow stream ({_first_line(error)})") from error


def _find_columns(whole: pa.Buffer, batch: pa.RecordBatch) -> _Layout:
    def place(buffer: pa.Buffer | None) -> int:
        return 0 if buffer is None else int(buffer.address - whole.address)

    keys, variants = batch.column("key").buffers(), batch.column("variant").buffers()
    images = batch.column("image").field("bytes").buffers()
    return _Layout(batch.num_rows, place(keys[1]), place(keys[-1]), place(variants[1]), place(images[1]), place(images[2]))


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


# torchvision's operators release the GIL while they work, which Pillow's encoders do not. The operators are called directly,
# because since 0.29 their public wrappers warn at each call that they are deprecated.
_OPERATORS: dict[str, Any] = {"jpeg": ("encode_jpeg", lambda quality: (quality,)), "png": ("encode_png", lambda _quality: (6,))}


def _operator(image_format: str) -> Any:
    """Return torchvision's operator, or None if there is none, in which case Pillow encodes."""
    try:
        return getattr(torch.ops.image, _OPERATORS[image_format][0]).default
    except (KeyError, AttributeError, RuntimeError):
        return None


def _torchvision_decoder() -> Any:
    """Return torchvision's decoder, or None if there is none.

    It returns the same pixels as Pillow, in two thirds of the time for a JPEG. The operator is called directly, because since 0.29
    its public wrapper warns at each call that it is deprecated.
    """
    try:
        return torch.ops.image.decode_image.default
    except (AttributeError, RuntimeError):
        return None


_DECODE = _torchvision_decoder()
