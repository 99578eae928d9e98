"""What a bank of ImageNet costs with each generator: ``python -m benchmarks.bank_costs``, a minute on a CPU.

H100-hours from counted operations and measured rates, as in `benchmarks.costs`: a source is encoded once, however many variants
follow. Bytes from JPEGs that are really encoded: of noise of two kinds, and of one photo where there is one. Natural images differ
from all three.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms.v2 import functional as TF

import gentransforms as gt
from benchmarks.bank_generators import smooth_images
from benchmarks.costs import counted, generators, hours
from gentransforms.bank.format.images import Encoding

SOURCES, VARIANTS = 1_281_167, 10  # the training images of ImageNet-1k
SIDES, QUALITY, COUNT = (224, 256, 512, 1024), 90, 8


def main() -> None:
    """Measure, count and print two Markdown tables."""
    sizes = {side: (_kilobytes(smooth_images(COUNT, side)), _kilobytes(fine_images(COUNT, side))) for side in SIDES}
    print(f"kB of a JPEG of quality {QUALITY}:\n\n| pixels | smooth | fine | one photo |\n|---|---:|---:|---:|")
    for side, (smooth, fine) in sizes.items():
        print(f"| {side} | {smooth:.0f} | {fine:.0f} | {_of_photo(side)} |")
    print(f"| 32, the bundled generator's own | {_of_bundled():.1f} | | |\n")
    print("| generator | TFLOP a source | TFLOP a variant | H100-hours | pixels | TB |\n|---|---:|---:|---:|---:|---:|")
    for name, generator, side, rate in generators():
        encoding, making = counted(generator, side)
        time = hours(SOURCES * (encoding + VARIANTS * making), rate)
        smooth, fine = (SOURCES * VARIANTS * size / 1e9 for size in sizes[side])
        print(f"| {name} | {encoding:.2f} | {making:.2f} | {time} | {side} | {smooth:.1f} to {fine:.1f} |", flush=True)


def fine_images(count: int, side: int) -> Tensor:
    """Noise (count, 3, side, side) in [0, 1] with the 1/f spectrum that photos have on average: detail of every size, everywhere."""
    rng = torch.Generator().manual_seed(0)
    y, x = torch.fft.fftfreq(side)[:, None], torch.fft.fftfreq(side)[None]
    spectrum = torch.fft.fft2(torch.randn(count, 3, side, side, generator=rng)) / (x**2 + y**2).sqrt().clamp(min=1 / side)
    noise = torch.fft.ifft2(spectrum).real
    noise = (noise - noise.mean((2, 3), keepdim=True)) / noise.std((2, 3), keepdim=True)
    # Mostly grey, as photos are: the channels share nine tenths.
    return ((0.9 * noise[:, :1] + 0.1 * noise) * 0.22 + 0.45).clamp(0, 1)


def _kilobytes(images: Tensor) -> float:
    encoding = Encoding("jpeg", QUALITY)
    return sum(len(encoding.encode(image)) for image in images) / len(images) / 1000


def _of_photo(side: int) -> str:
    """The only photo on the machine: matplotlib's sample of 512 x 600 pixels, reduced and cropped, never enlarged."""
    try:
        import matplotlib
    except ImportError:
        return "not here"
    photo = decode_image(str(Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"), ImageReadMode.RGB)
    if side > min(photo.shape[-2:]):
        return ""
    return f"{_kilobytes(TF.center_crop(TF.resize(photo, [side], antialias=True), [side])[None]):.0f}"


def _of_bundled() -> float:
    """Ten variants of each of the library's ten sample pictures."""
    with tempfile.TemporaryDirectory() as folder:
        samples = Path(gt.__file__).parent / "samples"
        made = gt.generate_bank(samples, Path(folder) / "bank", "icgan-cifar10-32", image_format="jpeg", quality=QUALITY, progress=False)
        return made.bytes / made.images / 1000


if __name__ == "__main__":
    main()
