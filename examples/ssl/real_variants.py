"""Make a bank of real images, which shows what a generator is worth: its variants are other images of the data set.

    python examples/ssl/real_variants.py --kind neighbours --generator icgan-cifar10-32 \
        --config examples/ssl/configs/cifar10-fair/simclr-neighbours.yaml data.train=train.parquet
    python examples/ssl/real_variants.py --kind oracle --of test.parquet --out banks/oracle-test \
        --config examples/ssl/configs/cifar10-fair/simclr-oracle.yaml data.train=train.parquet

Variants are looked up among the images that the settings train on. ``neighbours`` takes the ten nearest to the source, each once,
by the generator's encoder (cosine similarity of features less their mean, as in the generator's training). ``oracle`` draws ten
others of the source's class; it uses labels, and so is a ceiling, not an arm that anyone could run without them. --variants 5 --among 10
makes a smaller bank of the same ten neighbours: five of them, drawn for each source.

The source itself is never taken, whatever its distance. Images that are equal pixel by pixel count as one, so neither a copy of the
source nor two copies of another image are among its variants; near copies stay. The order of the variants is drawn for each source,
so that the first few are a fair sample of all. The bank is imported like one that was made elsewhere (`gentransforms bank import`),
and recipes read it like any other. BANK.json says what it was made of.

With --of, the sources are other images, such as the test images that examples/icgan/evaluate.py measures with its --bank.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from arguments import positive
from config import Settings, load_settings
from data import Source, open_images, refuse_other_classes
from frozen import GeneratorsEncoder, extract_features, load_generator
from loading import load_into_memory, training_rows, whole_loader
from make_bank import Rows
from measured import name_differences
from real_images import Pool, draw_of_class, nearest_others, shuffle
from torch import Tensor
from torchvision.utils import save_image

import gentransforms as gt
from gentransforms.bank.importing import import_bank
from gentransforms.bank.reader import Bank


def write_bank(images: Tensor, places: Tensor, source: Source, rows: list[int], bank: Path) -> None:
    """Import variants: source `rows[i]` gets the images (M, 3, S, S) at `places[i]` (k,). An interrupted import is continued."""
    keys = [source.keys[row] for row in rows]
    bank.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{bank.name}-", dir=bank.parent) as folder:
        originals, variants = Path(folder, "originals"), Path(folder, "variants")
        for path in (originals, variants):
            path.mkdir()
        for place in places.unique().tolist():
            save_image(images[place].float() / 255, originals / f"{place}.png")
        for key, own in zip(keys, places.tolist(), strict=True):
            stem = str(PurePosixPath(key).with_suffix("")) if isinstance(key, str) else str(key)
            (variants / stem).parent.mkdir(parents=True, exist_ok=True)
            for number, place in enumerate(own):
                _link(originals / f"{place}.png", variants / f"{stem}_{number}.png")
        import_bank(variants, gt.open_source(Rows(source, rows), key=keys), bank, variants=places.shape[1])


def make(
    kind: str, settings: Settings, bank: Path, generator: gt.ImageGenerator | None, of: str | None, variants: int, seed: int,
    among: int | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Make or complete a bank; return what BANK.json holds. Neighbours are drawn from the `among` nearest, by default taken all."""
    drawn_from = among or variants
    data = settings.data
    train = open_images(data.train, data.image_column, data.label_column)
    source = train if of is None else open_images(of, data.image_column, data.label_column)
    if kind == "oracle":
        refuse_other_classes(train, source)
    record: dict[str, Any] = {
        "kind": kind, "generator": None if generator is None else generator.fingerprint(), "train": data.train, "limit": data.limit,
        "holdout": data.holdout, "image_size": data.image_size, "of": of, "variants": variants, "seed": seed,
        "among": among,
    }  # fmt: skip
    path = bank.with_name(f"{bank.name}.json")
    if (before := refuse_another_bank(record, path, bank)) is not None:
        return before
    rows = training_rows(train, settings)[0]
    images, rows = load_into_memory(train, rows, data.image_size)
    pool = Pool.of(images)
    sources = images
    if of is not None:
        sources, rows = load_into_memory(source, torch.arange(len(source)), data.image_size)
    own = pool.find(sources.images)
    refuse_too_few(kind, pool.images.labels, sources.labels, own, drawn_from, train, "--among" if among else "--variants")
    seeds = gt.derive_seeds(seed, [source.keys[row] for row in rows.tolist()], [0] * len(rows))
    if kind == "oracle":
        places = draw_of_class(sources.labels, pool.images.labels, own, variants, seeds)
    else:
        assert generator is not None, "main asks for it"
        encoder = GeneratorsEncoder(generator)
        of_pool, of_sources = (extract_features(encoder, whole_loader(x, 500, 0), str(generator.device))[0] for x in (pool.images, sources))
        places = shuffle(nearest_others(of_sources, of_pool, own, drawn_from), seeds)[:, :variants]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=2) + "\n")  # first, so that nobody continues it with other settings
    write_bank(pool.images.images, places, source, rows.tolist(), bank)
    record |= {"sources": len(rows), "pool": len(pool.images), "copies_left_out": len(images) - len(pool.images)}
    record["sources_in_pool"] = int((own >= 0).sum())
    if train.labels is not None and source.labels is not None and train.classes == source.classes:
        record["same_label"] = round((pool.images.labels[places] == sources.labels[:, None]).float().mean().item(), 4)
    path.write_text(json.dumps(record, indent=2) + "\n")
    return record


def refuse_another_bank(record: dict[str, Any], path: Path, bank: Path) -> dict[str, Any] | None:
    """Exit if the bank was made of something else than `record` says; return what the file at `path` holds if the bank is complete."""
    if not path.exists():
        if bank.exists():
            raise SystemExit(f"{bank} exists, without {path.name}: it was not made by this script; choose another folder")
        return None
    before: dict[str, Any] = json.loads(path.read_text())
    if changed := name_differences({name: before.get(name) for name in record}, record):
        raise SystemExit(f"{bank} is made with other {changed}: choose another folder, or remove it and {path.name}")
    return before if "sources" in before and bank.exists() else None


def refuse_too_few(kind: str, labels: Tensor, wanted: Tensor, own: Tensor, expected: int, train: Source, option: str) -> None:
    """Exit unless each source has so many others among the images with `labels` (M,); the message names the option that wants them."""
    present = (own >= 0).long()
    if kind == "neighbours":
        least, what = len(labels) - int(present.max()), "other images"
    else:
        counts = torch.bincount(labels, minlength=int(wanted.max()) + 1)
        left = counts[wanted] - present
        least, what = int(left.min()), f"other images of class {train.classes[int(wanted[left.argmin()])]!r}"
    if least < expected:
        raise SystemExit(f"{option} {expected}: {train.name!r} has {least} different {what} for some sources, expected at least as many")


def _link(original: Path, path: Path) -> None:
    try:
        os.link(original, path)  # not a copy: each image is a variant of many
    except OSError:  # a file system without links
        shutil.copyfile(original, path)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and make the bank."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=["neighbours", "oracle"], required=True)
    parser.add_argument("--config", type=Path, required=True, help="YAML file of settings, whose training images are looked up")
    parser.add_argument("--generator", help="bundled name, folder or repository: its encoder finds the neighbours")
    parser.add_argument("--of", metavar="IMAGES", help="make variants of these images; by default, of the training images")
    parser.add_argument("--out", type=Path, metavar="BANK", help="the bank; by default generative.bank of the settings")
    parser.add_argument("--variants", type=positive, default=10, help="of each image")
    parser.add_argument("--among", type=positive, help="draw variants from this many nearest neighbours; by default, take the nearest")
    parser.add_argument("--seed", type=int, default=0, help="of the order of the variants, and of the oracle's choice")
    parser.add_argument("overrides", nargs="*", metavar="name=value", help="settings, for example data.limit=10000")
    args = parser.parse_args(arguments)
    if (args.kind == "neighbours") != (args.generator is not None):
        expected = "a generator, whose encoder finds them" if args.generator is None else "none, it draws by labels alone"
        raise SystemExit(f"--kind {args.kind} --generator {args.generator}: expected {expected}")
    if args.among is not None and (args.kind != "neighbours" or args.among <= args.variants):
        expected = f"more than --variants {args.variants}" if args.kind == "neighbours" else "none, it draws from the whole class"
        raise SystemExit(f"--kind {args.kind} --among {args.among}: expected {expected}")
    settings = load_settings(args.config, args.overrides)
    bank = args.out if args.of else args.out or settings.generative.bank
    if bank is None:
        raise SystemExit(f"{'--out' if args.of else 'generative.bank'} is not set: expected the folder for the bank")
    generator = load_generator(args.generator, "--generator ") if args.generator else None
    try:
        made = make(args.kind, settings, Path(bank), generator, args.of, args.variants, args.seed, args.among)
        images = len(Bank.open(bank))
    except gt.GentransformsError as error:
        raise SystemExit(str(error)) from error
    print(f"{bank}: {images} images of {made['sources']} sources, out of {made['pool']} ({made['copies_left_out']} copies left out)")
    if "same_label" in made:
        print(f"{made['same_label']:.1%} of them have the label of their source")


if __name__ == "__main__":
    main()
