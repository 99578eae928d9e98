"""A share of a bank of the fair experiment: ``CONFIG GENERATOR I N VARIANTS DEVICE name=value…``. A program of its own (part 7)."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "ssl"))

import gentransforms as gt

BATCH = 500


def main() -> None:
    """Generate the share, on the device."""
    from config import load_settings
    from make_bank import make_bank

    config, generator, i, n, variants, device, *overrides = sys.argv[1:]
    made = gt.load_generator(generator).to(device)
    shard = (int(i), int(n))
    summary = make_bank(load_settings(config, overrides), made, int(variants), progress=False, batch_size=BATCH, shard=shard)
    print(f"{summary.images} images, {summary.images_per_second:.0f} a second")


if __name__ == "__main__":
    main()
