"""A generator of your own in twenty lines. It needs no network, keeps the layout of the image, and passes the checks.

    python examples/custom_generator.py

The Fourier phase of a photo holds its shapes, the amplitude its texture and colours. This generator keeps the phase and
perturbs the amplitude. Objects stay where they are, so boxes and masks remain valid.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision import tv_tensors

import gentransforms as gt
from gentransforms.seeding import sample_noise
from gentransforms.testing import check_generator, check_transform


class FourierJitter(gt.ImageGenerator):
    """Random texture and colours, same shapes."""

    preserves_geometry = True

    def __init__(self, size: int = 64, strength: float = 0.3) -> None:
        super().__init__()
        self.image_size = (size, size)
        self.strength = strength

    def encode(self, images: Tensor) -> dict[str, Tensor]:
        """Return the spectrum (B, 3, H, W // 2 + 1), computed once however many variants follow."""
        # Some builds of torch refuse the FFT of an empty batch.
        return {"spectrum": torch.fft.rfft2(images) if len(images) else images + 0j}

    def sample(self, condition: dict[str, Tensor], seeds: Tensor) -> Tensor:
        """Return new images (B, 3, H, W)."""
        spectrum = condition["spectrum"]
        if not len(spectrum):
            return spectrum.real
        noise = sample_noise(seeds, spectrum.shape[1:]).to(spectrum.device)
        noise[..., 0, 0] *= 0.2  # perturb the mean colour less
        made = torch.fft.irfft2(spectrum * (self.strength * noise).exp(), s=self.image_size)
        return made.clamp(0, 1)


if __name__ == "__main__":
    generator = FourierJitter()
    check_generator(generator)
    augment = gt.GenerativeAugment(generator, p=0.5)
    check_transform(augment)

    # It preserves geometry, so boxes can be passed along with the images; they are returned unchanged.
    image = tv_tensors.Image(torch.rand(3, 48, 80))
    boxes = tv_tensors.BoundingBoxes([[10, 10, 30, 30]], format="XYXY", canvas_size=(48, 80))
    image, same_boxes = augment(image, boxes)
    assert image.shape == (3, 48, 80)
    assert same_boxes is boxes

    # It is saved and loaded like any other generator; to load it, its class must have been imported.
    generator.save_pretrained("fourier-jitter")
    again = gt.load_generator("fourier-jitter")
    assert isinstance(again, FourierJitter)
    assert again.fingerprint() == generator.fingerprint()
    print("all checks passed; saved in fourier-jitter/")
