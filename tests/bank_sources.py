"""Sources and generators for the tests of banks, in a module of their own, so that other processes find them."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from small_generators import Flat
from torch import Tensor

from gentransforms.errors import SourceError
from gentransforms.sources.base import ImageSource, SourceSample, read_each
from gentransforms.testing import FakeGenerator


class OneByOne(ImageSource):
    """A source whose samples are read one by one, by `read`."""

    def read(self, index: int) -> SourceSample:
        raise NotImplementedError

    def read_range(self, start: int, stop: int) -> Iterator[SourceSample | SourceError]:
        return read_each(self.read, start, stop)


def read(source: ImageSource, index: int) -> SourceSample:
    """One sample of a source; its error is raised."""
    (sample,) = source.read_range(index, index + 1)
    if isinstance(sample, SourceError):
        raise sample
    return sample


def is_reader() -> bool:
    """Whether this is a thread that reads units: the samples that are compared when a run begins are read in the main thread."""
    return threading.current_thread() is not threading.main_thread()


class Photos(OneByOne):
    """Images of one flat grey each, ``(index mod 256)``; some cannot be read."""

    def __init__(
        self, count: int = 10, broken: Sequence[int] = (), size: int = 16, names: str = "photo-{:06d}.jpg", inputs: Any = ()
    ) -> None:
        super().__init__([names.format(i) for i in range(count)], inputs=tuple(inputs), description={"kind": "photos"})
        self.broken, self.size = set(broken), size

    def read(self, index: int) -> SourceSample:
        if index in self.broken:
            raise SourceError("truncated: the file ends in the middle of the image")
        image = torch.full((3, self.size, self.size), index % 256, dtype=torch.uint8, device="cpu")
        known = {"labels": index % 7, "prompts": f"a photo of number {index}", "masks": torch.full((4, 4), index % 5)}
        return SourceSample(image, {name: known[name] for name in self.inputs})


class Noise(Photos):
    """Images of noise, which have one mean colour; the image at each place is that of number `order[place]`."""

    def __init__(self, order: Sequence[int], size: int = 16, broken: Sequence[int] = ()) -> None:
        super().__init__(len(order), broken, size=size)
        self.order = list(order)

    def read(self, index: int) -> SourceSample:
        super().read(index)
        rng = torch.Generator().manual_seed(self.order[index])
        return SourceSample(torch.randint(0, 256, (3, self.size, self.size), generator=rng, dtype=torch.uint8, device="cpu"))


class Slow(FakeGenerator):
    """Takes its time, so that there is something to interrupt; how much of it is no part of its config."""

    seconds = 0.0

    @classmethod
    def by(cls, seconds: float) -> Slow:
        """One that takes that long for a batch."""
        slow = cls()
        slow.seconds = seconds
        return slow

    def sample(self, condition: Mapping[str, Tensor], seeds: Tensor) -> Tensor:
        time.sleep(self.seconds)
        return super().sample(condition, seeds)


class Batches(Flat):
    """Notes the size of each batch it encodes and samples."""

    @property
    def encoded(self) -> list[int]:
        return [len(images) for images in self.images]

    @property
    def sampled(self) -> list[int]:
        return [len(seeds) for seeds in self.seeds]


class Deadly(Photos):
    """Kills the process that reads a certain image in a reader thread, as a run does once it has begun, the first time."""

    def __init__(self, count: int, at: int, flag: str, broken: Sequence[int] = ()) -> None:
        super().__init__(count, broken)
        self.at, self.flag = at, flag

    def read(self, index: int) -> SourceSample:
        if index == self.at and is_reader():
            with contextlib.suppress(FileExistsError):
                os.close(os.open(self.flag, os.O_CREAT | os.O_EXCL))
                os.kill(os.getpid(), signal.SIGKILL)
        return super().read(index)


class Poisoned(Photos):
    """Kills each process that reads a certain image in a reader thread, and notes it in a file."""

    def __init__(self, count: int, at: int, log: str) -> None:
        super().__init__(count)
        self.at, self.log = at, log

    def read(self, index: int) -> SourceSample:
        if index == self.at and is_reader():
            with Path(self.log).open("a", encoding="utf-8") as file:
                file.write("x")
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read(index)


class Noting(Slow):
    """Leaves a file in its directory for each unit of four sources that it begins, sources one by one."""

    directory = ""
    sources = 0

    def encode(self, images: Tensor, **inputs: Any) -> dict[str, Tensor]:
        if self.sources % 4 == 0:
            os.close(os.open(f"{self.directory}/{os.getpid()}-{self.sources}", os.O_CREAT | os.O_EXCL))
        self.sources += len(images)
        return super().encode(images, **inputs)


class Black(FakeGenerator):
    """Makes NaN, which a screen shows black."""

    def sample(self, condition: Mapping[str, Tensor], seeds: Tensor) -> Tensor:
        return super().sample(condition, seeds) * float("nan")


class Breaking(FakeGenerator):
    """Makes one image too few."""

    def sample(self, condition: Mapping[str, Tensor], seeds: Tensor) -> Tensor:
        return super().sample(condition, seeds)[:-1]


def structured_photos(count: int) -> list[Tensor]:
    """Random images (3, 32, 32) with structure at every scale, as CIFAR-10's have."""
    rng = torch.Generator().manual_seed(0)
    images = torch.zeros(count, 3, 32, 32)
    for size in (2, 4, 8, 16, 32):
        drawn = torch.randn(count, 3, size, size, generator=rng) + 2 * torch.randn(count, 1, size, size, generator=rng)
        images += torch.nn.functional.interpolate(drawn, (32, 32), mode="bilinear") * 12 / (size / 2) ** 0.5
    return list((images + 128).clamp(0, 255).to(torch.uint8))
