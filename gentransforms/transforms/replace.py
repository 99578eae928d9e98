"""`ReplaceImages`, the base class of the transforms: which images are replaced, what is refused, how new images are put in place."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import PIL.Image
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten
from torchvision import tv_tensors
from torchvision.transforms import v2

from gentransforms.errors import ImageError
from gentransforms.images import Image, RangeCheck, from_float, part_seen, resize, restore, to_device, to_float, to_rows, to_size
from gentransforms.surroundings import isolate_thread
from gentransforms.transforms.arguments import check_output_size, check_p
from gentransforms.transforms.coordinates import find_coordinates
from gentransforms.transforms.doubt import name_doubt, name_two_valued, refuse_mask_modes
from gentransforms.transforms.drawing import draw_params
from gentransforms.transforms.one_by_one import ImageParams, split_params
from gentransforms.transforms.overlooked import count_overlooked
from gentransforms.transforms.samples import check_companions, describe_leaves, find_images
from gentransforms.transforms.traced import refuse_proxies, refuse_recording, refuse_vmap

__all__ = ["Origin", "ReplaceImages", "draw_selection"]


class Origin(NamedTuple):
    """Where new images come from: the name for messages, the image size (h, w), and whether the layout of an image is kept."""

    name: str
    image_size: tuple[int, int]
    preserves_geometry: bool


class ReplaceImages(v2.Transform):  # type: ignore[misc]  # torchvision has no annotations
    """Replace each image of a sample, with probability `p`, with a new one; a subclass says where the new images come from.

    A subclass implements `origin`, `make_params` (what is drawn) and `_make_images` (what is generated or read), and `_draw`
    if the draw depends on the whole sample. `GenerativeAugment` and `BankAugment` are its subclasses; theirs may override
    `make_params` and `transform`, as those of any `v2.Transform`.
    """

    _needs_transform_list: Callable[[list[Any]], list[bool]]
    _transformed_types = (tv_tensors.Image, v2._utils.is_pure_tensor, PIL.Image.Image)
    _sizes: tuple[str, ...] = ("input", "generator")
    _done: set[str]  # what is done once in a process, such as a warning

    def __init__(self, p: float, output_size: str | tuple[int, int]) -> None:
        super().__init__()
        self.p = check_p(p)
        self.output_size = check_output_size(output_size, self._sizes)
        self._check_range = RangeCheck()
        self._forget()

    @property
    @abstractmethod
    def origin(self) -> Origin:
        """Where the new images come from."""

    @abstractmethod
    def make_params(self, flat_inputs: list[Any], p: float | None = None) -> dict[str, Any]:
        """Draw what determines the new images: ``chosen`` (N,) bool on the CPU, and whatever else the subclass needs."""

    @abstractmethod
    def _make_images(self, rows: list[Tensor], params: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return which images are replaced, (N,) bool on the CPU, the new images, and which of these are finite (None: all).

        Args:
            rows: the images, each (n, C, H, W), N in total.
            params: what was drawn.
        """

    def _draw(self, sample: Any, images: list[Image], p: float) -> dict[str, Any]:
        return draw_params(self, images, p)

    def check_inputs(self, flat_inputs: list[Any]) -> None:
        """Raise if the sample holds something that would become wrong, such as boxes."""
        check_companions(flat_inputs, self.origin.name, self.origin.preserves_geometry, self.output_size)

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Apply drawn parameters to one image or batch.

        A subclass may override this, to blend the new image with the source for example. It is then called for each image of a
        sample, with the image's own part of the params: its rows of every tensor that `make_params` returned with a row for each
        image, and all else as it is. With the same image and params, ``super().transform`` returns what was generated for
        all images at once; with others, it generates.

        Raises:
            ImageError: if the image cannot be used, or the params are those of another number of images.
        """
        with isolate_thread():
            own = params if isinstance(params, ImageParams) else None
            found = own.find(inpt) if own is not None else None
            if found is None:
                outputs, replaced = self._replace([inpt], [to_rows(inpt)], params)
                found = outputs[0], replaced
            if own is not None:
                own.replaced = found[1]
            return found[0]

    # Inside the graph of a compiled model, the generator would be compiled with it, which takes minutes and gains nothing.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def forward(self, *inputs: Any, p: float | None = None, return_mask: bool = False) -> Any:
        """Return the sample with some of its images replaced.

        Args:
            inputs: the sample, or its parts.
            p: probability for this call; by default the transform's own.
            return_mask: return ``(sample, mask)``; the mask, (N,) bool on the CPU, says which of the sample's N images were
                replaced. (If a new image is not finite, the source is kept and still counts as replaced, because finding
                out would cost a device sync.)
        """
        p = self.p if p is None else check_p(p)
        sample = inputs if len(inputs) > 1 else inputs[0]
        flat, spec = tree_flatten(sample)
        self.check_inputs(flat)
        places, images = find_images(sample, flat, self._needs_transform_list(flat))
        if images:
            refuse_vmap(type(self).__name__)
            if p > 0:
                refuse_recording(type(self).__name__)
            with isolate_thread():  # before the getters are called, so that an unsupported image is what the message is about
                refuse_mask_modes(flat, places)
                rows = [to_rows(image) for image in images]
            self._warn_of_doubt(sample, flat, places)
            self._warn_of_overlooked(sample, flat, places)
            params = self._draw(sample, images, p)
            if getattr(self.transform, "__func__", None) is ReplaceImages.transform:
                with isolate_thread():
                    outputs, mask = self._replace(images, rows, params)
            else:
                outputs, mask = self._transform_each(images, rows, params)
            for i, output in zip(places, outputs, strict=True):
                flat[i] = output
            result = tree_unflatten(flat, spec)
        else:
            refuse_proxies(type(self).__name__, flat)
            self._warn_without_image(flat)
            result, mask = sample, torch.zeros(0, dtype=torch.bool, device="cpu")
        return (result, mask) if return_mask else result

    def _transform_each(self, images: list[Image], rows: list[Tensor], params: dict[str, Any]) -> tuple[list[Image], Tensor]:
        """As `_replace`, by a user's own `transform`."""
        with isolate_thread():
            check_count(params, rows)
            parts = split_params(images, [len(row) for row in rows], params, lambda: self._replace(images, rows, params))
        outputs = [self.transform(image, part) for image, part in zip(images, parts, strict=True)]
        with isolate_thread():
            return outputs, torch.cat([part.replaced for part in parts])

    def _replace(self, images: list[Image], rows: list[Tensor], params: dict[str, Any]) -> tuple[list[Image], Tensor]:
        check_count(params, rows)
        self._check_range(rows)
        chosen, made, finite = self._make_images(rows, params)
        parts = torch.split(chosen, [len(row) for row in rows])
        counts = [int(part.sum()) for part in parts]
        new = torch.split(made, counts)
        good = [None] * len(rows) if finite is None else torch.split(finite, counts)
        return [self._scatter(*piece) for piece in zip(images, rows, parts, new, good, strict=True)], chosen

    def _scatter(self, image: Image, rows: Tensor, chosen: Tensor, made: Tensor, finite: Tensor | None) -> Image:
        """Return `image` with its chosen rows replaced by those of `made` that are finite."""
        seen, size = self._frame(rows, len(made) > 0)
        if not len(made):
            kept = to_size(seen, size)
            return image if kept is rows else restore(kept, image)
        made = to_device(made, rows.device)
        if made.dtype == rows.dtype == torch.uint8 and rows.shape[1] == 3 and made.shape[-2:] == size:
            new = made
        else:
            new = from_float(resize(to_float(made), size), like=rows)
        if tuple(seen.shape[-2:]) != size and not rows.requires_grad and _all_finite(finite, rows.device):
            # What it costs to resize the sources of the new images is saved; gradients would lose sight of them.
            new = new if len(new) == len(rows) else merge(to_size(take(seen, ~chosen), size), chosen, new)
            return restore(new, image)
        base = to_size(seen, size)
        if finite is not None:
            new = torch.where(finite.to(rows.device)[:, None, None, None], new, take(base, chosen))
        return restore(scatter(base, chosen, new), image)

    def _frame(self, rows: Tensor, replaced: bool) -> tuple[Tensor, tuple[int, int]]:
        """Return the part of the rows that a kept image shows, as a view, and the size of the results; `replaced`: whether any are."""
        if self.output_size == "input":
            return rows, (rows.shape[-2], rows.shape[-1])
        _, image_size, preserves_geometry = self.origin
        size = image_size if isinstance(self.output_size, str) else self.output_size
        return part_seen(rows, image_size, preserves_geometry), (size[0], size[1])

    def _warn_without_image(self, flat: list[Any]) -> None:
        if flat and self._first_time("no image"):
            warnings.warn(
                f"{type(self).__name__} found no image in a sample and returned it as it was: it holds {describe_leaves(flat)}; expected "
                "a PIL image, a tensor or a tv_tensors.Image, alone or in tuples, lists and dicts",
                stacklevel=3,
            )

    def _warn_of_doubt(self, sample: Any, flat: list[Any], places: list[int]) -> None:
        if len(flat) < 2:
            return
        changes_layout = self.output_size != "input" or not self.origin.preserves_geometry
        if changes_layout and "places" not in self._done and (place := find_coordinates(sample)) is not None:
            self._done.add("places")
            warnings.warn(f"{type(self).__name__}: {self._doubt_of_coordinates(place)}", stacklevel=3)
        if "doubt" in self._done:
            return
        # What was taken for an image is said in any case, because it is replaced.
        left = changes_layout and not self._expects_maps()
        doubt = name_doubt(flat, places, left)
        if doubt is None and self._first_time("values"):  # of the first sample only
            doubt = name_two_valued(flat, places, left)
        if doubt is not None:
            self._done.add("doubt")
            warnings.warn(
                f"{type(self).__name__}: {doubt}; mark masks as tv_tensors.Mask and images as tv_tensors.Image, in batches too, because "
                "collating removes the mark",
                stacklevel=3,
            )

    def _expects_maps(self) -> bool:
        """Whether a sample holds masks or control maps that are no surprise."""
        return False

    def _doubt_of_coordinates(self, place: str) -> str:
        """Why an entry of a sample that is named as boxes or key points are may be wrong beside a new image."""
        if not self.origin.preserves_geometry:
            return (
                f"by its name, the entry {place} says where things are in an image; it stays as it is, and {self.origin.name} does not "
                "keep the layout of an image (preserves_geometry=False), so it would be wrong: use a generator that does, such as "
                "ControlNetVariation, or leave the entry out"
            )
        return (
            f"by its name, the entry {place} says where things are in an image; it stays as it is, and with "
            f'output_size={self.output_size!r} would be wrong if it counts pixels: use output_size="input" and a v2.Resize after it, and '
            "mark boxes as tv_tensors.BoundingBoxes, which v2.Resize resizes"
        )

    def _warn_of_overlooked(self, sample: Any, flat: list[Any], places: list[int]) -> None:
        if "overlooked" not in self._done and (count := count_overlooked(sample, flat, places)):
            self._done.add("overlooked")
            warnings.warn(
                f"{type(self).__name__}: the sample holds {count} plain tensors that may be images, and only the first was taken for one, "
                "as by torchvision; collate a list of samples before, as torch.utils.data.default_collate does, or make each image a "
                "tv_tensors.Image",
                stacklevel=3,
            )

    def _first_time(self, what: str) -> bool:
        """Return whether this is asked for the first time in this process, or in this copy."""
        first = what not in self._done
        self._done.add(what)
        return first

    def _forget(self) -> None:
        """Reset what was recorded in this process; pickles do not carry it."""
        self._done = set()

    def __getstate__(self) -> dict[str, Any]:
        state = dict(super().__getstate__())
        del state["_done"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._forget()


def draw_selection(count: int, p: float) -> Tensor:
    """Return which of `count` images are selected with probability `p`: (count,) bool, from torch's default CPU RNG.

    The same amount of numbers is drawn whatever p and the selection are, so that p does not shift the random stream. They
    are float32 and on the CPU whatever torch's defaults are.

    Example:
        >>> draw_selection(3, 1.0).tolist()
        [True, True, True]
    """
    return torch.rand(count, dtype=torch.float32, device=torch.device("cpu")) < p


def check_count(params: Mapping[str, Any], rows: Sequence[Tensor], name: str = "chosen") -> None:
    """Raise unless `params`, of which `name` holds the selection, were drawn for as many images as there are rows.

    Raises:
        ImageError: naming both numbers.

    Example:
        >>> check_count({"chosen": torch.ones(2, dtype=torch.bool)}, [torch.zeros(2, 3, 8, 8)])
    """
    drawn, count = len(params[name]), sum(map(len, rows))
    if drawn != count:
        raise ImageError(f"params are those of {drawn} images, and the batch has {count}: draw parameters for this batch")


def take(rows: Tensor, chosen: Tensor) -> Tensor:
    """Return the rows selected by `chosen`, (N,) bool on the CPU; without a copy if all are.

    Example:
        >>> import torch
        >>> take(torch.arange(3), torch.tensor([True, False, True])).tolist()
        [0, 2]
    """
    if bool(chosen.all()):
        return rows
    return rows[chosen.nonzero().squeeze(1).to(rows.device, non_blocking=True)]


def scatter(base: Tensor, chosen: Tensor, new: Tensor) -> Tensor:
    """Return `base` (N, C, h, w) with its chosen rows replaced by `new`, in the memory layout of `base`.

    Example:
        >>> import torch
        >>> scatter(torch.zeros(2, 1, 1, 1), torch.tensor([False, True]), torch.ones(1, 1, 1, 1)).flatten()
        tensor([0., 1.])
    """
    if len(new) < len(base):
        return base.index_copy(0, chosen.nonzero().squeeze(1).to(base.device, non_blocking=True), new)
    return new


def _all_finite(finite: Tensor | None, device: torch.device) -> bool:
    """Whether all new images are known to be finite, without waiting for an accelerator: from one to the CPU, they were waited for."""
    return finite is None or ("cpu" in (finite.device.type, device.type) and bool(finite.all()))


def merge(kept: Tensor, chosen: Tensor, new: Tensor) -> Tensor:
    """Return rows of which those selected by `chosen`, (N,) bool on the CPU, are `new`, and the others `kept`, each in its order.

    Example:
        >>> import torch
        >>> merge(torch.tensor([1, 3]), torch.tensor([True, False, True, False]), torch.tensor([0, 2])).tolist()
        [0, 1, 2, 3]
    """
    places = torch.cat([chosen.nonzero(), (~chosen).nonzero()]).squeeze(1).argsort()
    return torch.cat([new, kept])[places.to(new.device, non_blocking=True)]
