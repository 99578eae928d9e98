"""The time of canny on 64 images of 256 pixels beside one call of the full-size SD 2.1 UNet: ``python -m benchmarks.canny``.

The UNet runs on 4 rows, whose time counts 16-fold: 64 rows of float32 are many GB.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from benchmarks import full_size
from benchmarks.gpu import median_seconds
from gentransforms.generators.diffusion.conditions import canny_edges, canny_magnitude


@torch.no_grad()
def main() -> None:
    """Measure and print."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    smooth = F.avg_pool2d(torch.rand(64, 3, 256, 256, device=device), 5, 1, 2)  # with edges at many scales, as photos have
    photos = ((smooth - smooth.mean()) * 4 + 0.5).clamp(0, 1)
    low, high = torch.full((64,), 0.3), torch.full((64,), 0.6)
    edges = median_seconds(lambda: canny_edges(canny_magnitude(photos), low, high), device, 0.1)
    unet = full_size.build("unclip-large", device).unet
    latents, text, labels = (torch.rand(shape, device=device) for shape in ((4, 4, 32, 32), (4, 77, 1024), (4, 2048)))
    call = 16 * median_seconds(lambda: unet(latents, 1, text, class_labels=labels), device, 0.1)
    print(f"canny {edges:.2f} s, UNet call {call:.2f} s: {edges / call:.1%}")


if __name__ == "__main__":
    main()
