"""Convert between what torchvision v2 accepts and (N, 3, H, W) float32 in [0, 1]."""

from __future__ import annotations

import math
from collections.abc import Sequence

import PIL.Image
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as TF

from gentransforms.errors import ImageError

__all__ = [
    "Image",
    "RangeCheck",
    "as_seen",
    "centre",
    "check_range",
    "count_images",
    "fit",
    "from_float",
    "part_seen",
    "resize",
    "restore",
    "same_aspect_ratio",
    "to_device",
    "to_float",
    "to_rows",
    "to_size",
]  # fmt: skip

Image = Tensor | PIL.Image.Image
_DTYPES = (torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64)
_TOLERANCE = 1e-3  # half precision and interpolation overshoot by less; a normalised image by far more
_OVERSHOOT = 0.5  # the most that bicubic and Lanczos resampling overshoot; a normalised image usually exceeds it
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as PIL and torchvision


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor of any shape and dtype on `device`, without waiting for the copy where that is safe.

    A copy to the CPU is waited for: its memory holds something else until the copy has arrived. So are copies to MPS, for which
    torch gives no guarantee.

    Example:
        >>> import torch
        >>> to_device(torch.zeros(2), torch.device("cpu"))
        tensor([0., 0.])
    """
    return tensor.to(device, non_blocking=device.type not in ("cpu", "mps"))


def to_rows(image: Image) -> Tensor:
    """Return the images in `image` as rows (N, C, H, W), with C 1 or 3 and dtype and device unchanged; a view where possible.

    Args:
        image: PIL image in mode RGB or L, or a tensor (…, C, H, W), uint8 or floating.

    Raises:
        ImageError: for another mode, shape or dtype, naming the conversion to use.

    Example:
        >>> import torch
        >>> to_rows(torch.zeros(2, 5, 3, 8, 8)).shape
        torch.Size([10, 3, 8, 8])
    """
    if isinstance(image, PIL.Image.Image):
        if image.mode not in ("RGB", "L"):
            other = _TRANSPARENT if image.has_transparency_data else "use image.convert('RGB')"
            advice = _MODE_ADVICE.get(image.mode.split(";")[0], other)
            raise ImageError(f"PIL image in mode {image.mode!r}: expected 'RGB' or 'L'; {advice}")
        if 0 in image.size:
            raise ImageError(f"PIL image of size {image.size}: expected at least 1 x 1 pixel")
        pixels: Tensor = TF.pil_to_tensor(image)
        return pixels[None]
    tensor = image.as_subclass(Tensor)
    shape = tuple(tensor.shape)
    if tensor.ndim < 3:
        raise ImageError(
            f"image tensor of shape {shape}: expected (…, C, H, W); for a grey image (H, W) use image.unsqueeze(0); the first plain "
            "tensor of a sample is taken as its image: put the image first, or make it a tv_tensors.Image"
        )
    if tensor.shape[-3] not in (1, 3):
        raise ImageError(f"image tensor of shape {shape}: expected 1 or 3 channels in dimension -3{_channel_advice(shape)}")
    if 0 in shape[-2:]:
        raise ImageError(f"image tensor of shape {shape}: expected at least 1 x 1 pixel")
    if tensor.dtype not in _DTYPES:
        raise ImageError(f"image tensor of dtype {tensor.dtype}: expected uint8, or floating in [0, 1]; {_dtype_advice(tensor.dtype)}")
    return tensor.flatten(0, -4) if tensor.ndim > 3 else tensor[None]


def count_images(images: Sequence[Image]) -> int:
    """Return the total number of images, counting batches by their leading dimensions; converts nothing.

    Example:
        >>> import torch
        >>> count_images([torch.zeros(3, 8, 8), torch.zeros(2, 5, 3, 8, 8)])
        11
    """
    return sum(1 if isinstance(image, PIL.Image.Image) else image.shape[:-3].numel() for image in images)


def check_range(rows: Tensor) -> None:
    """Raise if a floating image holds NaN, infinity or values outside [0, 1]; takes one pass and one device sync.

    Raises:
        ImageError: naming the range found.

    Example:
        >>> import torch
        >>> check_range(torch.tensor([2.0]).expand(1, 3, 4, 4))
        Traceback (most recent call last):
        ...
        gentransforms.errors.ImageError: floating image with values from 2 to 2: expected the range [0, 1]; use image / 255
    """
    if rows.dtype == torch.uint8 or rows.numel() == 0 or rows.is_meta:
        return
    low, high = torch.stack(rows.detach().aminmax()).tolist()
    if low >= -_TOLERANCE and high <= 1 + _TOLERANCE:
        return
    if not math.isfinite(low) or not math.isfinite(high):
        what = "NaN" if low != low else "infinite"
        raise ImageError(f"floating image with {what} values: expected finite values in [0, 1]; fix or drop it before this transform")
    if low >= -_OVERSHOOT and high <= 1 + _OVERSHOOT:
        advice = "bicubic and Lanczos interpolation overshoot: use image.clamp(0, 1) after them; v2.Normalize belongs after this transform"
    elif low < 0 and high > 10 and low > -128 and high < 383:
        advice = "values up to 255 that interpolation overshot: use (image / 255).clamp(0, 1)"
    elif low < 0:
        advice = "v2.Normalize belongs after this transform"
    elif high <= 255:
        advice = "use image / 255"
    else:
        advice = "divide by the largest value its format allows, such as 65535 for 16 bits"
    raise ImageError(f"floating image with values from {low:g} to {high:g}: expected the range [0, 1]; {advice}")


class RangeCheck:
    """Check the range of images: on the CPU at every call, on another device only at the first, because it costs a sync.

    Copies and pickles start over.

    Example:
        >>> import torch
        >>> RangeCheck()([torch.rand(2, 3, 4, 4)])
    """

    def __init__(self) -> None:
        self._seen: set[str] = set()

    def __call__(self, images: Sequence[Tensor]) -> None:
        """Raise `ImageError` if floating images (N, C, H, W) leave [0, 1]."""
        for rows in images:
            if rows.device.type == "cpu" or str(rows.device) not in self._seen:
                check_range(rows)
        self._seen |= {str(rows.device) for rows in images if rows.device.type != "cpu" and rows.is_floating_point() and len(rows)}

    def __reduce__(self) -> tuple[type[RangeCheck], tuple[()]]:
        return RangeCheck, ()


def to_float(rows: Tensor) -> Tensor:
    """Return rows (N, C, H, W) of any allowed dtype as (N, 3, H, W) float32 in [0, 1].

    Example:
        >>> import torch
        >>> to_float(torch.full((1, 1, 2, 2), 255, dtype=torch.uint8)).amin().item()
        1.0
    """
    unit = rows.to(torch.float32)
    unit = unit / 255 if rows.dtype == torch.uint8 else unit.clamp(0, 1)
    return unit.expand(-1, 3, -1, -1) if unit.shape[1] == 1 else unit


def from_float(images: Tensor, like: Tensor) -> Tensor:
    """Return images (N, 3, H, W) in [0, 1] with the dtype, device and channel count of `like` (…, C, H, W).

    Example:
        >>> import torch
        >>> from_float(torch.ones(1, 3, 2, 2), torch.zeros(1, 1, 2, 2, dtype=torch.uint8)).flatten().tolist()
        [255, 255, 255, 255]
    """
    if like.shape[-3] == 1:
        # Python numbers, not a tensor of them: making one on an accelerator waits for the device.
        red, green, blue = images.unbind(dim=1)
        images = (_LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue).unsqueeze(1)
    if like.dtype == torch.uint8:
        images = (images * 255).round().clamp(0, 255)  # NaN has no uint8: the caller keeps the source there
    # Between devices go as few bytes as either dtype needs.
    if like.dtype.itemsize < images.dtype.itemsize:
        images = images.to(like.dtype)
    return images.to(like.device).to(like.dtype)


def same_aspect_ratio(size: tuple[int, int], other: tuple[int, int]) -> bool:
    """Return whether two (height, width) have the same aspect ratio, up to 1/16: tools that make control maps round sides to
    multiples of 64. A transposed size is another.

    Example:
        >>> same_aspect_ratio((512, 704), (375, 500)), same_aspect_ratio((375, 500), (500, 375)), same_aspect_ratio((97, 100), (100, 97))
        (True, False, False)
    """
    one, two = size[0] * other[1], size[1] * other[0]
    turned = abs(size[0] * other[0] - size[1] * other[1])
    return size == other or (abs(one - two) * 16 < max(one, two) and abs(one - two) <= turned)


def resize(images: Tensor, size: Sequence[int]) -> Tensor:
    """Resize floating images (N, C, H, W) to `size` (h, w): bilinear, antialiased; returns the input itself if it has that size.

    Example:
        >>> import torch
        >>> resize(torch.rand(1, 3, 8, 6), (4, 4)).shape
        torch.Size([1, 3, 4, 4])
    """
    if tuple(images.shape[-2:]) == tuple(size):
        return images
    if images.shape[0] == 0:
        return images.new_empty(0, images.shape[1], *size)
    return F.interpolate(images, size=tuple(size), mode="bilinear", antialias=True)


def fit(images: Tensor, size: Sequence[int], preserves_geometry: bool) -> Tensor:
    """Return images (N, C, H, W) as a generator of that size sees them: (N, C, *size).

    If the generator keeps geometry, the whole image is resized; otherwise its centre rectangle with the generator's aspect
    ratio (the centre square, for square generators).

    Example:
        >>> import torch
        >>> fit(torch.rand(1, 3, 8, 6), (4, 4), preserves_geometry=False).shape
        torch.Size([1, 3, 4, 4])
    """
    return resize(part_seen(images, size, preserves_geometry), size)


def as_seen(rows: Tensor, size: Sequence[int], preserves_geometry: bool) -> Tensor:
    """Return rows (N, C, H, W) of any allowed dtype as a generator of that size sees them: (N, 3, *size) float32 in [0, 1].

    As `fit` of `to_float`, but what is cut off is not converted.

    Example:
        >>> import torch
        >>> as_seen(torch.zeros(1, 1, 8, 6, dtype=torch.uint8), (4, 4), preserves_geometry=False).shape
        torch.Size([1, 3, 4, 4])
    """
    return resize(to_float(part_seen(rows, size, preserves_geometry)), size)


def part_seen(rows: Tensor, size: Sequence[int], preserves_geometry: bool) -> Tensor:
    """Return the part of rows (N, C, H, W) that a generator of that size sees, and a generated image shows, as a view.

    That is the whole image, the input itself, if the generator keeps geometry; otherwise the rectangle of `centre`.

    Example:
        >>> import torch
        >>> part_seen(torch.zeros(2, 3, 8, 6), (16, 16), preserves_geometry=False).shape
        torch.Size([2, 3, 6, 6])
    """
    if preserves_geometry:
        return rows
    cut = centre(rows, size)
    return rows if cut.shape == rows.shape else cut


def centre(images: Tensor, shape: Sequence[int]) -> Tensor:
    """Return the largest centre rectangle of images (N, C, H, W) with the aspect ratio of `shape` (h, w), as a view.

    Example:
        >>> import torch
        >>> centre(torch.rand(1, 3, 8, 6), (32, 32)).shape
        torch.Size([1, 3, 6, 6])
    """
    height, width = images.shape[-2:]
    scale = min(height / shape[0], width / shape[1])
    crop_h, crop_w = max(1, round(shape[0] * scale)), max(1, round(shape[1] * scale))
    top, left = (height - crop_h) // 2, (width - crop_w) // 2
    return images[..., top : top + crop_h, left : left + crop_w]


def to_size(rows: Tensor, size: Sequence[int]) -> Tensor:
    """Return rows (N, C, H, W) of any allowed dtype at `size` (h, w), in their own dtype; the input itself if it has that size.

    Example:
        >>> import torch
        >>> to_size(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), (4, 4)).shape
        torch.Size([2, 3, 4, 4])
    """
    return rows if tuple(rows.shape[-2:]) == tuple(size) else from_float(resize(to_float(rows), size), like=rows)


def restore(rows: Tensor, like: Image) -> Image:
    """Return rows (N, C, H, W) in the form of `like`: a PIL image, or a tensor with its type, leading dimensions and memory format.

    For a tensor subclass, such as `tv_tensors.Image`, the result has the same class and attributes.

    Example:
        >>> import torch
        >>> from torchvision import tv_tensors
        >>> type(restore(torch.zeros(1, 3, 4, 4), tv_tensors.Image(torch.zeros(3, 8, 8)))).__name__
        'Image'
    """
    if isinstance(like, PIL.Image.Image):
        picture: PIL.Image.Image = TF.to_pil_image(rows[0])
        return picture
    if _is_channels_last(like.as_subclass(Tensor)):
        rows = rows.contiguous(memory_format=torch.channels_last)
    tensor: Tensor = rows.reshape(*like.shape[:-3], *rows.shape[-3:])
    if type(like) is not Tensor:
        tensor = tensor.as_subclass(type(like))
        tensor.__dict__.update(like.__dict__)
    return tensor


def _is_channels_last(image: Tensor) -> bool:
    rows = image.flatten(0, -4) if image.ndim > 3 else image[None]
    return not image.is_contiguous() and rows.is_contiguous(memory_format=torch.channels_last)


_SIXTEEN_BITS = "PIL.Image.fromarray((numpy.asarray(image) // 257).astype('uint8'))"
_TRANSPARENT = (
    "use gentransforms.sources.decode.rgb_image(image), which puts it on white, as banks and previews do; image.convert('RGB') would show "
    "what is stored under the transparent parts, mostly black"
)
# By mode, without what follows its semicolon. PIL would clip the values of these when converting, or cannot convert them.
_MODE_ADVICE = {
    "I": f"for 16-bit values use {_SIXTEEN_BITS}, because convert() would clip them",
    "F": "scale its values; for [0, 1] use PIL.Image.fromarray((numpy.asarray(image) * 255).round().astype('uint8'))",
}


def _channel_advice(shape: tuple[int, ...]) -> str:
    channels, last = shape[-3], shape[-1]
    if channels not in (2, 4) and last in (2, 4):
        return f"; it looks like (H, W, C) with an alpha channel: use image[..., :{last - 1}].movedim(-1, -3)"
    if channels not in (2, 4) and last in (1, 3):
        return "; it looks like (H, W, C): use image.movedim(-1, -3)"
    advice = []
    if channels in (2, 4):
        advice.append(f"; to leave out an alpha channel use image[..., :{channels - 1}, :, :]")
    if len(shape) == 3:
        advice.append("; for grey images (N, H, W) use image.unsqueeze(-3)")
    return "".join(advice)


def _dtype_advice(dtype: torch.dtype) -> str:
    if dtype == torch.bool:
        return "use image.to(torch.uint8) * 255"
    if dtype.is_complex:
        return "use image.abs(), scaled to [0, 1]"
    return "for values up to 255 use image.to(torch.uint8), for 16-bit values image / 65535"
