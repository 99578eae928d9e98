"""Loading of batches: small images are read into memory once, large ones are read and cropped by workers. Both resume exactly.

A batch is a dict. With images in memory: ``images`` uint8 (B, 3, S, S), everything else happens on the device. From files: ``first``
and ``second``, uint8 crops (B, 3, S, S), ``made1`` and ``made2`` (B,) bool: which of them are generated, and for an online
generator ``squares`` (B, 3, S', S'), the images it sees. Always ``labels`` (B,) int64, -1 without labels, and ``rows`` (B,).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from config import Settings
from crops import worker_crop
from data import Source, split_rows
from PIL import Image
from shared import warn_of_absent_classes
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

import gentransforms as gt

Sample = tuple[int, int]  # row and epoch: a sample's random numbers depend on these and the seed alone


class MemoryImages(Dataset[Any]):
    """Images (N, 3, S, S) uint8 and labels (N,) that are indexed a batch at a time."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, samples: list[Sample] | list[int]) -> dict[str, Tensor]:
        rows = torch.as_tensor(samples)
        rows = rows[:, 0] if rows.ndim == 2 else rows
        return {"images": self.images[rows], "labels": self.labels[rows], "rows": rows}


def load_into_memory(source: Source, rows: Tensor, size: int) -> tuple[MemoryImages, Tensor]:
    """Return the images as squares of `size` pixels, and their rows. A warning names images that cannot be read; they are left out."""
    images, kept, bad = [], [], []
    for row in rows.tolist():
        try:
            images.append(square(source.read(row), size))
            kept.append(row)
        except OSError as error:  # one bad image must not end the loop
            bad.append(str(error))
    if bad:
        warnings.warn(f"{len(bad)} of {len(rows)} images are left out: {'; '.join(bad[:3])}{' …' if len(bad) > 3 else ''}", stacklevel=2)
    if not kept:
        raise SystemExit(f"none of the {len(rows)} images of {source.name!r} can be read: {bad[0]}")
    remaining = torch.tensor(kept)
    return MemoryImages(torch.stack(images), read_labels(source)[remaining]), remaining


def read_labels(source: Source) -> Tensor:
    """Return the labels (N,), -1 where the source has none."""
    return torch.full((len(source),), -1) if source.labels is None else source.labels


def square(image: Image.Image, size: int) -> Tensor:
    """Return the centre square as uint8 (3, size, size)."""
    tensor = F.pil_to_tensor(image)
    if tensor.shape[-2:] == (size, size):
        return tensor
    return F.resize(F.center_crop(tensor, [min(tensor.shape[-2:])]), [size, size], v2.InterpolationMode.BICUBIC, antialias=True)


class FileViews(Dataset[Any]):
    """Crops of images that are read anew in every epoch, and of their variants in a bank.

    An image that cannot be read is replaced by the next one, with a warning; ten in a row raise an error.
    """

    def __init__(
        self,
        source: Source,
        rows: Tensor,
        settings: Settings,
        augment: gt.BankAugment | None = None,
        p: Callable[[int], float] | None = None,
        square_size: int | None = None,
    ) -> None:
        self.source, self.rows, self.labels = source, rows.tolist(), read_labels(source)[rows]
        self.seed, self.augment, self.p, self.square_size = settings.seed, augment, p, square_size
        self.both = settings.generative.both_views
        s, size = settings.augmentation, settings.data.image_size
        self.crops = [worker_crop(view, size, s.interpolation) for view in (s.view1, s.view2, s.generated or s.view2)]
        self.own_crop = s.generated is not None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, sample: Sample) -> dict[str, Any]:
        place, epoch = sample
        with torch.random.fork_rng(devices=[]):
            image, at = read_or_next(self.source, self.rows, place)
            out: dict[str, Any] = {"labels": self.labels[at], "rows": at}
            for view, name in enumerate(("first", "second")):
                shown, made = image, False
                if self.augment is not None and self.p is not None and (view == 1 or self.both):
                    set_seed(mix_seed(self.seed, epoch, place, view, 0))
                    (shown, _), mask = self.augment((image, self.source.keys[self.rows[at]]), p=self.p(epoch), return_mask=True)
                    made = bool(mask)
                set_seed(mix_seed(self.seed, epoch, place, view, 1))  # the crop is the same with and without a bank
                crop = self.crops[2 if made and self.own_crop else view]
                out[name] = F.to_image(crop(shown)).as_subclass(Tensor)
                out[f"made{view + 1}"] = made
            if self.square_size is not None:
                out["squares"] = square(image, self.square_size)
        return out


def read_or_next(source: Source, rows: list[int], place: int) -> tuple[Image.Image, int]:
    """Return the image at a place, and that place; if it cannot be read, warn and return the next one that can.

    Raises:
        OSError: if ten in a row cannot be read.
    """
    for skipped in range(10):
        at = (place + skipped) % len(rows)
        try:
            return source.read(rows[at]), at
        except OSError as error:
            if skipped == 9:
                raise
            warnings.warn(f"{error}; the next image takes its place", stacklevel=2)
    raise AssertionError("the tenth raises")


class WholeImages(Dataset[Any]):
    """Images for the probes: the shorter side is resized to 8/7 of the size and the centre cropped. Unreadable ones as above."""

    def __init__(self, source: Source, rows: Tensor, size: int) -> None:
        self.source, self.rows, self.labels = source, rows.tolist(), read_labels(source)[rows]
        bicubic = v2.InterpolationMode.BICUBIC
        self.transform = v2.Compose([v2.Resize(size * 8 // 7, bicubic, antialias=True), v2.CenterCrop(size), v2.PILToTensor()])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> dict[str, Any]:
        image, at = read_or_next(self.source, self.rows, place)
        return {"images": self.transform(image), "labels": self.labels[at], "rows": at}


def refuse_large_batch(count: int, batch_size: int, world: int = 1, holdout: int = 0) -> None:
    """Exit if `count` training images do not fill a batch on each of `world` devices, and name a batch size that fits.

    `holdout` is how many images are held out, of which there could be fewer.
    """
    if batch_size * world <= count:
        return
    devices = f" on each of {world} devices" if world > 1 else ""
    fits = min(64, 2 ** ((count // world).bit_length() - 1)) if count >= 2 * world else 0
    advice = f"for so few, give trainer.batch_size={fits} and more trainer.epochs" if fits else "more images are needed"
    fewer = f", or hold out fewer images than data.holdout={holdout}" if holdout else ""
    raise SystemExit(f"trainer.batch_size={batch_size}{devices}: expected no more than the {count} training images; {advice}{fewer}")


class EpochBatches:
    """Shuffled batches of (row, epoch), which depend on seed and epoch, starting with the current batch of the training.

    `done` returns how many batches a device has seen, so that a run can resume in the middle of an epoch. Every device gets
    its part of the same order; images that do not fill a batch on all devices are left out.
    """

    def __init__(self, count: int, batch_size: int, seed: int, done: Callable[[], int], rank: int = 0, world: int = 1) -> None:
        self.count, self.batch_size, self.seed, self.done, self.rank, self.world = count, batch_size, seed, done, rank, world
        refuse_large_batch(count, batch_size, world)

    def __len__(self) -> int:
        return self.count // (self.batch_size * self.world)

    def __iter__(self) -> Iterator[list[Sample]]:
        epoch, start = divmod(self.done(), len(self))
        order = torch.randperm(self.count, generator=torch.Generator().manual_seed(mix_seed(self.seed, epoch)))
        for i in range(start, len(self)):
            first = (i * self.world + self.rank) * self.batch_size
            yield [(row, epoch) for row in order[first : first + self.batch_size].tolist()]


class ResumableLoader(DataLoader[Any]):
    """A loader that Lightning regards as resumable, which it is: `EpochBatches` knows where to start."""

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: the position in the data is the number of batches, which the module saves."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Accept it."""


def train_loader(dataset: Dataset[Any], batches: EpochBatches, workers: int) -> ResumableLoader:
    """Return the loader of training batches; images in memory need no workers."""
    if isinstance(dataset, MemoryImages):
        return ResumableLoader(dataset, batch_sampler=batches, collate_fn=_as_is, pin_memory=torch.cuda.is_available())
    return ResumableLoader(
        dataset, batch_sampler=batches, num_workers=workers, collate_fn=default_collate,
        persistent_workers=False, pin_memory=torch.cuda.is_available(),
    )  # fmt: skip


def whole_loader(dataset: Dataset[Any], batch_size: int, workers: int) -> DataLoader[Any]:
    """Return the loader of unaugmented images, in order."""
    if isinstance(dataset, MemoryImages):
        return DataLoader(dataset, batch_size, collate_fn=_as_is, pin_memory=torch.cuda.is_available())
    return DataLoader(dataset, batch_size, num_workers=workers, pin_memory=torch.cuda.is_available())


def training_rows(source: Source, settings: Settings) -> tuple[Tensor, Tensor]:
    """Return the rows to train on and those held out."""
    return split_rows(len(source), settings.data.limit, settings.data.holdout)


def warn_of_lost_classes(source: Source, settings: Settings) -> None:
    """Warn if the images that are trained on, or those held out, lack classes though there are enough of them."""
    data, count = settings.data, len(source)
    if data.limit is not None:
        warn_of_absent_classes(source.labels, "data.limit", data.limit, lambda n: split_rows(count, n, data.holdout)[0])
    if data.holdout:
        warn_of_absent_classes(source.labels, "data.holdout", data.holdout, lambda n: split_rows(count, data.limit, n)[1])


def mix_seed(*numbers: int) -> int:
    """Mix small numbers into a seed of 31 bits; torch's CPU generator uses 32 bits."""
    mixed = 0
    for number in numbers:
        mixed = ((mixed ^ number) * 2_654_435_761 + 0x9E3779B9) % 2**32
        mixed ^= mixed >> 15
    return mixed % 2**31


def set_seed(number: int, device: torch.device | str = "cpu") -> None:
    """Seed torch's generators of the CPU and of a device.

    ``torch.manual_seed`` seeds all kinds of devices, whoever uses them, and at each call writes down the stack for every kind that
    is not in use.
    """
    torch.default_generator.manual_seed(number)
    if torch.device(device).type == "cuda":
        torch.cuda.manual_seed(number)


def _as_is(batch: Any) -> Any:
    return batch
