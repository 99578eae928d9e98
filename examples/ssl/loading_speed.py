"""Images per second that the workers read and crop, with and without a bank: an upper limit for the training.

    python examples/ssl/loading_speed.py --config examples/ssl/configs/imagenet/simclr-icgan.yaml --out loading.json \
        data.train=data/imagenet/train generative.bank=banks/imagenet-icgan data.workers=2

Measures the loader alone, without a network. With a bank, the workers decode its images in addition, which costs no time as long
as they keep up: if a worker reads R images per second and a step of B images takes S seconds, B / (R S) workers are enough.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

from arguments import positive
from config import Settings, load_settings
from data import open_images
from loading import EpochBatches, train_loader
from train import training_data


def images_per_second(settings: Settings, batches: int) -> float:
    """Return the rate of the training loader after its first batch, which includes the start of the workers."""
    source = open_images(settings.data.train, settings.data.image_column, settings.data.label_column)
    dataset, _, keys = training_data(source, settings)
    order = EpochBatches(len(keys), settings.trainer.batch_size, settings.seed, lambda: 0)
    loader = iter(train_loader(dataset, order, settings.data.workers))
    next(loader)
    began = time.perf_counter()
    count = 0
    for _, _batch in zip(range(batches), loader, strict=False):
        count += settings.trainer.batch_size
    return count / (time.perf_counter() - began)


def main() -> None:
    """Parse the command line, measure and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True, help="YAML file of settings with a bank and images in files")
    parser.add_argument("--batches", type=positive, default=20, help="timed in every round")
    parser.add_argument("--rounds", type=positive, default=3)
    parser.add_argument("--out", type=Path, required=True, help="JSON file of the report")
    parser.add_argument("overrides", nargs="*", metavar="name=value", help="settings, for example data.workers=4")
    args = parser.parse_args()
    arms = {
        "real": load_settings(args.config, [*args.overrides, "generative.source=none"]),
        "bank": load_settings(args.config, args.overrides),
    }
    if arms["bank"].data.in_memory or arms["bank"].generative.source != "bank":
        raise SystemExit(f"{args.config}: expected generative.source=bank and data.in_memory=false; in memory see speed.py")
    rates: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(args.rounds):  # in turns, so that a busy machine treats both alike
        for name, settings in arms.items():
            rates[name].append(images_per_second(settings, args.batches))
    median = {name: round(statistics.median(values), 1) for name, values in rates.items()}
    found = {"images per second": median, "workers": arms["bank"].data.workers, "real over bank": round(median["real"] / median["bank"], 3)}
    args.out.write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
