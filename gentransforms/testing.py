"""Checks for those who write a generator or transform, and the fake generator that our own tests use."""

from __future__ import annotations

import contextlib
import copy
import pickle
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as TF

from gentransforms.errors import GeneratorError, GentransformsError
from gentransforms.generators.base import ImageGenerator
from gentransforms.generators.placement import with_index
from gentransforms.seeding import sample_noise
from gentransforms.wording import name_type

__all__ = ["FakeGenerator", "check_generator", "check_transform"]


class FakeGenerator(ImageGenerator):
    """A generator that costs nothing: it returns the source's mean colour with noise from the seed, and counts its calls.

    Args:
        size: side of its images, in pixels.
        preserves_geometry: the value of its attribute `preserves_geometry`.

    Attributes:
        calls: number of calls of `sample` so far.
        rows: number of images generated so far.

    Example:
        >>> import torch
        >>> generator = FakeGenerator(size=8)
        >>> _ = generator(torch.rand(5, 3, 8, 8), torch.arange(5))
        >>> generator.calls, generator.rows
        (1, 5)
    """

    def __init__(self, size: int = 16, preserves_geometry: bool = False) -> None:
        super().__init__()
        self.image_size, self.preserves_geometry = (size, size), preserves_geometry
        self.strength = torch.nn.Parameter(torch.tensor(0.1))
        self.calls = self.rows = self.encoded = 0

    def encode(self, images: Tensor, **inputs: Any) -> dict[str, Tensor]:
        """Return the mean colour as ``mean`` (B, 3, 1, 1)."""
        self.encoded += len(images)
        return {"mean": images.mean(dim=(2, 3), keepdim=True)}

    def sample(self, condition: Mapping[str, Tensor], seeds: Tensor) -> Tensor:
        """Return the mean colour plus noise: (B, 3, size, size)."""
        self.calls += 1
        self.rows += len(seeds)
        noise = sample_noise(seeds, (3, *self.image_size)).to(self.device)
        return (condition["mean"] + self.strength * noise).clamp(0, 1).float()


def check_generator(generator: ImageGenerator, *, images: Tensor | None = None, atol: float = 1e-4, **inputs: Any) -> None:
    """Check that a generator fulfils the contract of `ImageGenerator`.

    Checks shapes, dtype and range; that the same seeds give the same images and other seeds other ones; that an image does
    not depend on its batch, its position, torch's global random state, or how often its condition is used; that inputs are
    not modified; that deep copies and pickles give the same images; that an empty batch works; and that its fingerprint, by
    which a bank identifies it, can be computed, stays the same throughout, and is shared by its copies.

    Args:
        generator: the generator to check; it is put into eval mode.
        images: (B, 3, H, W) float32 in [0, 1], B at least 3; random images of the generator's size if None.
        atol: largest difference that counts as equal.
        inputs: whatever else its `encode` needs, one value per image.

    Raises:
        GeneratorError: naming the first check that fails.

    Example:
        >>> check_generator(FakeGenerator())
    """
    generator.eval()
    device = generator.device
    before_use: str | GentransformsError = _fingerprint(generator)  # if there is none, this is reported last
    if images is None:
        rng = torch.Generator().manual_seed(0)
        images = torch.rand(4, 3, *generator.image_size, generator=rng)
    images = images.to(device)
    count = len(images)
    _require(count >= 3, f"images has {count} rows: expected at least 3 to compare batches")
    seeds = torch.arange(1, count + 1)

    def run(rows: list[int], source: ImageGenerator = generator) -> Tensor:
        given = {name: v[rows] if isinstance(v, Tensor) else [v[i] for i in rows] for name, v in inputs.items()}
        passed = {"images": images[rows], "seeds": seeds[rows], **given}
        before = copy.deepcopy(passed)
        with torch.no_grad():
            made: Tensor = source(passed["images"], passed["seeds"], **given)
        for name, value in passed.items():
            _require(_same(value, before[name]), f"the input {name} were modified in place")
        return made

    everything = list(range(count))
    made = run(everything)
    _require(isinstance(made, Tensor), f"sample returned {name_type(made)}, expected a tensor")
    expected = (count, 3, *generator.image_size)
    _require(tuple(made.shape) == expected, f"sample returned shape {tuple(made.shape)}, expected {expected}")
    _require(made.dtype == torch.float32, f"sample returned dtype {made.dtype}, expected torch.float32")
    _require(with_index(made.device) == with_index(device), f"sample returned a tensor on {made.device}, expected {device}")
    _require(bool(made.isfinite().all()), "sample returned NaN or infinity")
    _require(
        bool((made >= 0).all() and (made <= 1).all()), f"sample returned values from {made.min():g} to {made.max():g}, expected [0, 1]"
    )
    with _random_state(987654321):  # a state that differs from what a generator leaves by calling manual_seed itself
        state = torch.get_rng_state()
        again = run(everything)
        _require(torch.equal(state, torch.get_rng_state()), "torch's global random state was used: draw noise from the seeds alone")
    _close(made, again, atol, "the same seeds gave other images")
    with torch.no_grad():
        given = {name: v[[0] * 3] if isinstance(v, Tensor) else [v[0]] * 3 for name, v in inputs.items()}
        condition = generator.encode(images[[0] * 3], **given)
        _require(
            isinstance(condition, Mapping) and all(isinstance(v, Tensor) and v.ndim for v in condition.values()),
            "encode did not return a mapping of tensors with leading B",
        )
        lengths = {name: len(value) for name, value in condition.items()}
        _require(set(lengths.values()) == {3}, f"encode of 3 images returned leading sizes {lengths}, expected 3")
        others = generator.sample(condition, torch.tensor([11, 12, 13]))
        _close(others, generator.sample(condition, torch.tensor([11, 12, 13])), atol, "sample changed its condition")
    _require((others[0] - others[1]).abs().max().item() > atol, "different seeds gave the same image")
    _close(made[:1], run([0]), atol, "an image alone differs from the same image in a batch")
    _close(made.flip(0), run(everything[::-1]), atol, "the order of the batch changes the images")
    _close(made, run(everything, copy.deepcopy(generator)), atol, "a deep copy makes other images")
    unpickled = pickle.loads(pickle.dumps(generator))
    _close(made, run(everything, unpickled), atol, "an unpickled copy makes other images")
    _require(tuple(run([]).shape) == (0, *expected[1:]), "an empty batch does not give an empty batch")
    _require(isinstance(before_use, str), f"it has no fingerprint, so it cannot fill a bank: {before_use}")
    after_use, of_a_copy = _fingerprint(generator), _fingerprint(unpickled)
    _require(before_use == after_use, "making images changed the fingerprint: keep counters out of config and buffers")
    _require(after_use == of_a_copy, "an unpickled copy has another fingerprint: config must not depend on the object's identity")


def _fingerprint(generator: ImageGenerator) -> str | GentransformsError:
    try:
        return generator.fingerprint()
    except GentransformsError as error:
        return error


def check_transform(transform: Callable[..., Any], *, size: tuple[int, int] = (20, 24)) -> None:
    """Check that a generative transform fulfils torchvision's contract for every kind of image.

    Tensors of 3, 4 and 5 dimensions, PIL and `tv_tensors.Image`; 1 and 3 channels; uint8 and floating; nested samples,
    whose labels pass; empty batches; channels_last, which stays, and other non-contiguous memory; nothing modified in place; the same
    result after the same `torch.manual_seed`.

    Args:
        transform: a `GenerativeAugment` or similar, with an output of the input's size.
        size: (h, w) of the test images.

    Raises:
        GeneratorError: naming the first check that fails.

    Example:
        >>> from gentransforms import GenerativeAugment
        >>> check_transform(GenerativeAugment(FakeGenerator(), p=0.5))
    """
    rng = torch.Generator().manual_seed(0)
    for lead in ((), (4,), (2, 2), (0,)):
        for channels in (1, 3):
            image = torch.rand(*lead, channels, *size, generator=rng)
            for dtype in (torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64):
                typed = (image * 255).to(dtype) if dtype == torch.uint8 else image.to(dtype)
                _check_same_kind(transform, typed)
                _check_same_kind(transform, tv_tensors.Image(typed))
    batch = torch.rand(4, 3, *size, generator=rng)
    expected = _seeded(transform, batch)
    last = _seeded(transform, batch.to(memory_format=torch.channels_last))
    _close(expected, last, 1e-4, "channels_last input changes the result")
    _require(last.is_contiguous(memory_format=torch.channels_last), "a channels_last batch came back in another memory layout")
    strided = torch.rand(8, 3, *size, generator=rng)
    strided[::2] = batch
    _close(expected, _seeded(transform, strided[::2]), 1e-4, "non-contiguous input changes the result")
    for channels in (1, 3):
        picture = TF.to_pil_image(torch.rand(channels, *size, generator=rng))
        result = _seeded(transform, picture)
        _require(type(result).__module__.startswith("PIL") and result.mode == picture.mode, f"PIL {picture.mode} gave {result!r}")
        _require(result.size == picture.size, f"PIL image of size {picture.size} gave {result.size}")
    label, extra = torch.tensor([1, 2, 3, 4]), object()
    nested = _seeded(transform, {"image": tv_tensors.Image(batch), "rest": (label, [extra, "text", 7])})
    _require(isinstance(nested, dict) and list(nested) == ["image", "rest"], "a nested sample came back with another structure")
    _require(isinstance(nested["rest"], tuple) and nested["rest"][0] is label, "labels of a nested sample did not pass through unchanged")
    _require(nested["rest"][1] == [extra, "text", 7], "entries of a nested sample did not pass through unchanged")
    pair = _seeded(lambda both: transform(*both), (batch, label))
    _require(isinstance(pair, tuple) and len(pair) == 2 and pair[1] is label, "(images, labels) did not come back as such")


def _seeded(transform: Callable[..., Any], image: Any) -> Any:
    with _random_state(0):
        return transform(image)


@contextlib.contextmanager
def _random_state(seed: int) -> Iterator[None]:
    """Seed torch for a block, on GPUs too if they are in use, and restore what was before."""
    # Not by `torch.manual_seed`: it seeds GPUs in any case, those that are first used later included.
    in_use: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    devices = list(range(torch.cuda.device_count())) if in_use else []
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(seed)
        if devices:
            torch.cuda.manual_seed_all(seed)
        yield


def _check_same_kind(transform: Callable[..., Any], image: Tensor) -> None:
    what = f"{type(image).__name__} {tuple(image.shape)} {image.dtype}"
    before = image.clone()
    result = _seeded(transform, image)
    for name in ("shape", "dtype", "device"):
        _require(getattr(result, name) == getattr(image, name), f"{what} came back with {name} {getattr(result, name)}")
    _require(type(result) is type(image), f"{what} came back as {type(result).__name__}")
    _require(torch.equal(image, before), f"{what} was modified in place")
    _require(torch.equal(result, _seeded(transform, image)), f"{what}: torch.manual_seed does not reproduce the result")


def _require(ok: bool, message: str) -> None:
    if not ok:
        raise GeneratorError(message)


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, list):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


def _close(a: Tensor, b: Tensor, atol: float, message: str) -> None:
    difference = (a - b).abs().max().item() if a.numel() else 0.0
    _require(difference <= atol, f"{message}: they differ by up to {difference:.2g}, expected at most {atol:g}")
