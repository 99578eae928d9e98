"""Read sources into batches at the generator's size, with several threads; a failure is recorded and does not stop the others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gentransforms.errors import BankError, SourceError
from gentransforms.generators.base import ImageGenerator
from gentransforms.images import centre, check_range, resize, to_float, to_rows
from gentransforms.sources import ImageSource, SourceSample
from gentransforms.sources.resemblance import mark

__all__ = ["BlockOfSources", "new_buffer", "read_block", "read_samples"]


class _Read(NamedTuple):
    """A sample without its image."""

    inputs: dict[str, Any]
    mark: bytes


@dataclass
class BlockOfSources:
    """Some sources that are being read into a tensor."""

    keys: Sequence[str | int]
    images: Tensor
    parts: list[Future[list[_Read | str]]]

    def wait(self) -> tuple[Tensor, dict[str, Any], list[str], list[bytes]]:
        """Return images (B, 3, h, w) in [0, 1], their inputs, the reason why each could not be read (or ""), and their marks.

        A failed source is replaced with a grey image, so that the batches of its neighbours stay the same.
        """
        samples = [sample for part in self.parts for sample in part.result()]
        good = next((s.inputs for s in samples if not isinstance(s, str)), {})
        filled = [good if isinstance(s, str) else s.inputs for s in samples]
        reasons = [s if isinstance(s, str) else "" for s in samples]
        marks = [b"" if isinstance(s, str) else s.mark for s in samples]
        return self.images, {name: _collate([inputs[name] for inputs in filled]) for name in good}, reasons, marks


def new_buffer(generator: ImageGenerator, count: int) -> Tensor:
    """Allocate memory for `count` sources at the generator's size, whatever torch's defaults are."""
    return torch.empty(count, 3, *generator.image_size, dtype=torch.float32, device="cpu")


def read_block(
    source: ImageSource, generator: ImageGenerator, places: range, readers: ThreadPoolExecutor, threads: int, buffer: Tensor
) -> BlockOfSources:
    """Start reading the sources at these places into the first rows of a buffer (B, 3, h, w) float32.

    Each of the `threads` reads one range of them.
    """
    images, size = buffer[: len(places)], -(-len(places) // threads)
    parts = [
        readers.submit(_read_part, source, generator, places[start : start + size], images[start : start + size])
        for start in range(0, len(places), size)
    ]
    return BlockOfSources(source.keys[places.start : places.stop], images, parts)


def read_samples(source: ImageSource, places: range) -> Iterator[SourceSample | SourceError]:
    """Yield the samples of a range of places, each as `ImageSource.read_range` yields it.

    Raises:
        BankError: if the source cannot be reached, because with a lost disk or network all further samples would fail; or if
            it yields fewer or more samples than requested.
    """
    samples, count = iter(source.read_range(places.start, places.stop)), 0
    while True:
        try:
            sample = next(samples, None)
        except OSError as error:
            key = source.keys[min(places.start + count, places.stop - 1)]
            raise BankError(
                f"the source {key!r} cannot be reached ({error.strerror or error}): fix that and run the same command again"
            ) from error
        if sample is None:
            break
        count += 1
        yield sample
    if count != len(places):
        raise BankError(
            f"{type(source).__name__}.read_range({places.start}, {places.stop}) yielded {count} samples: expected {len(places)}, "
            "with a SourceError in place of each that cannot be read"
        )


def _read_part(source: ImageSource, generator: ImageGenerator, places: range, slots: Tensor) -> list[_Read | str]:
    """Write sources at the generator's size into `slots`, (N, 3, h, w) in [0, 1]; return each sample, or why it cannot be read."""
    found: list[_Read | str] = []
    for sample in read_samples(source, places):
        if len(found) == len(places):
            continue  # too many samples: an error is raised at the end
        slot = slots[len(found)]
        error = sample if isinstance(sample, SourceError) else _fit(sample.image, generator, slot)
        if error is None and isinstance(sample, SourceSample):
            inputs = {name: value for name, value in sample.inputs.items() if name in generator.inputs}
            found.append(_Read(inputs, mark(sample.image.reshape(sample.image.shape[-3:])).tobytes()))
        else:
            slot.fill_(0.5)
            found.append(str(error) or type(error).__name__)
    return found


def _fit(image: Tensor, generator: ImageGenerator, slot: Tensor) -> Exception | None:
    """Write an image at the generator's size into `slot`; return an error if it is invalid."""
    try:
        rows = to_rows(image)
        if len(rows) != 1:
            return SourceError(f"{len(rows)} images of shape {tuple(image.shape)}: expected one, (C, H, W)")
        check_range(rows)
    except ValueError as error:
        return error
    if not generator.preserves_geometry:  # crop before the conversion to float, which quadruples the bytes
        rows = centre(rows, generator.image_size)
    if rows.dtype == torch.uint8 and rows.shape[-2:] == slot.shape[-2:]:
        slot.copy_(rows[0]).div_(255)  # as to_float does, without its copies
    else:
        slot.copy_(resize(to_float(rows), generator.image_size)[0])
    return None


def _collate(values: list[Any]) -> Any:
    """Return numbers, or tensors of the same shape, as one tensor; anything else as a list."""
    if all(isinstance(v, Tensor) for v in values) and len({v.shape for v in values}) == 1:
        return torch.stack(values)
    if all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
        return torch.tensor(values, device="cpu")
    return values
