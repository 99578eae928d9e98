"""Run an experiment: train and evaluate methods x generators x seeds, and write one table of all runs.

    python examples/ssl/reproduce.py --configs examples/ssl/configs/cifar10-small --methods simclr byol \
        --generators baseline icgan --seeds 0 1 2 --make-bank icgan-cifar10-32 --out runs/cifar10-small \
        data.train=train.parquet data.test=test.parquet generative.bank=banks/cifar10-small

A run is CONFIGS/METHOD-GENERATOR.yaml with a seed and the name=value arguments. Finished runs are skipped, interrupted ones are
resumed. With --trained-only nothing is trained, and banks are not needed, so that runs can be trained on one machine and evaluated on
another; runs that are not trained to their end are named. The table holds all runs in OUT, so
that other commands can add methods, arms and seeds, even at the same time. Writes results.json, results.md and curves.png into
OUT: means over seeds with 95% intervals (Student's t); for a single seed, the interval is over the test images. If runs
differ in more than they should, such as the epochs of two arms, this is refused or said below the table.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerators import refuse_absent_devices
from arguments import positive
from comparable import finished_seeds, name_mixed_settings, refuse_another_bank, refuse_mixed_seeds, refuse_other_images
from config import Settings, load_settings
from contents import CONTENTS, describe_contents
from data import Source, open_images, refuse_other_classes, split_rows
from evaluate import evaluate
from frozen import load_generator, load_run
from learning_curves import TITLES, draw_curves
from linear_probe import ProbeOptions
from loading import training_rows
from make_bank import make_bank
from measured import name_differences
from planned_variants import describe_planned, refuse_missing_variants
from probes import Accuracy, mean_accuracy, mean_gain, mean_interval, percent
from quiet import hush
from shared import flatten, name_changes, read_record, refuse_another_run, write_whole
from similarity import compare
from train import FREE, FREE_WHEN_TRAINED, RECORDED, train
from trained import has_begun, is_trained

import gentransforms as gt


def main() -> None:
    """Parse the command line, run what is missing, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configs", type=Path, required=True, help="folder of METHOD-GENERATOR.yaml files")
    parser.add_argument("--methods", nargs="+", required=True)
    parser.add_argument("--generators", nargs="+", default=["baseline", "icgan"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--make-bank", metavar="GENERATOR", help="generate missing banks with this generator")
    parser.add_argument("--variants", type=positive, default=10, help="variants per image of a generated bank")
    parser.add_argument("--trained-only", action="store_true", help="train nothing: evaluate the runs that are trained")
    parser.add_argument("--encoder", metavar="GENERATOR", help="compare the features with those of this generator's encoder")
    parser.add_argument(
        "--probe",
        choices=["cached", "paper"],
        default="cached",
        help="cached: features extracted once, SGD; paper: the paper's linear probe",
    )
    parser.add_argument("--gain-over", metavar="GENERATOR", default="baseline", help="the arm that the table's gains are relative to")
    parser.add_argument("--probe-epochs", type=positive, default=100)
    parser.add_argument("overrides", nargs="*", metavar="name=value", help="settings of all runs, for example trainer.epochs=5")
    args = parser.parse_args()
    hush()
    plan = [
        (method, generator, seed, load_settings(args.configs / f"{method}-{generator}.yaml", [*args.overrides, f"seed={seed}"]))
        for seed in args.seeds for method in args.methods for generator in args.generators
    ]  # fmt: skip
    for *path, settings in plan:
        if not (run_folder(args.out, *path) / "result.json").exists():
            refuse_absent_devices(settings.trainer.accelerator, settings.trainer.devices)
    refuse_others(plan, args.out)
    refuse_mixed_seeds(plan, args.out)
    refuse_unknown_arm(args.gain_over, plan, args.configs, args.out)
    if args.make_bank:
        refuse_several_banks(plan, args.make_bank)
    if args.trained_only:
        plan = only_trained(plan, args.out)
    opened = functools.cache(open_images)  # listing ImageNet's folders takes minutes
    images = [open_run_images(settings, opened) for *_, settings in plan]
    described = functools.cache(describe_test)
    measures = [describe_measure(settings, test, args, described) for (*_, settings), (_, test) in zip(plan, images, strict=True)]
    folders = [run_folder(args.out, *path) for *path, _ in plan]
    refuse_other_measures(measures, [folder.name for folder in folders], args.out)
    refuse_other_images(plan, [source for source, _ in images], args.out)
    encoder = load_generator(args.encoder, "--encoder ") if args.encoder else None
    if not args.trained_only:
        unfinished = [settings for *path, settings in plan if not (run_folder(args.out, *path) / "result.json").exists()]
        if args.make_bank and (arm := next((s for s in unfinished if s.generative.source == "bank"), None)):
            make_planned_bank(arm, args.make_bank, args.variants)
        refuse_missing_variants(plan, [source for source, _ in images], args.out)
    for i, ((method, generator, seed, settings), folder) in enumerate(zip(plan, folders, strict=True)):
        if not (folder / "result.json").exists():
            print(f"[{i + 1}/{len(plan)}] {folder.name}", flush=True)
            name = {"method": method, "generator": generator, "seed": seed, "measure": measures[i]}
            run(name, settings, folder, args, images[i], encoder)
        elif i + 1 < len(plan):  # nothing new to report
            continue
        report(finished(args.out), args.out, args.gain_over)
    print((args.out / "results.md").read_text())


def run(
    name: dict[str, Any], settings: Settings, folder: Path, args: argparse.Namespace, images: tuple[Source, Source],
    encoder: gt.ImageGenerator | None,
) -> None:  # fmt: skip
    """Train and evaluate one run. Its ``result.json`` is written last and marks the run as finished.

    `images` are the sources to train and to evaluate on. The features are compared with the encoder of the generator `encoder`.
    """
    bank, t, (source, test) = settings.generative.bank, settings.trainer, images
    rows, held = training_rows(source, settings)
    if settings.generative.source != "none" and not args.trained_only and (others := finished_seeds(folder)):
        refuse_another_bank(others, describe_planned(settings, source))
    if args.trained_only:  # only_trained has chosen those that are; their banks may be elsewhere, or gone
        print(f"{folder.name} is trained")
    elif t.devices * t.nodes == 1:
        train(settings, folder, quiet=True)
    else:  # one process per device: Lightning runs the script again in each of them, so it must be train.py
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").write_text(yaml.safe_dump(dataclasses.asdict(settings)))
        script = Path(__file__).with_name("train.py")
        if subprocess.run([sys.executable, script, "--config", folder / "config.yaml", "--out", folder]).returncode:
            raise SystemExit(f"{folder}: the training failed, for the reason above; run the same command again to continue")
    data = settings.data
    test_rows = held if data.test_on_holdout else torch.arange(len(test))
    backbone, _ = load_run(folder)
    options = ProbeOptions(
        epochs=args.probe_epochs, image_size=data.image_size, in_memory=data.in_memory, workers=data.workers, seed=settings.seed,
        accelerator=t.accelerator, k=settings.probe.k, temperature=settings.probe.temperature,
    )  # fmt: skip
    if args.probe == "cached":
        options.cached, options.optimizer = True, "sgd"
    else:
        options.batch_size = 4 * options.batch_size  # the paper's batch of 4 GPUs on one device
    found = name | evaluate(backbone, (source, rows), (test, test_rows), options, folder=folder / "linear")
    found["training"] = json.loads((folder / "training.json").read_text())
    found["p"], found["bank"] = (settings.generative.p, bank) if settings.generative.source != "none" else (0.0, None)
    found |= {name: read_record(folder).get(name) for name in ("bank_generator", "generator_fingerprint")}
    found["select"], found["weights"] = settings.generative.select, settings.generative.weights
    if encoder is not None:
        # CKA is biased upwards for few images: ten for each feature of the wider network, which may be the encoder.
        found["encoder"] = compare([folder], encoder, test, max(10_000, 10 * backbone.width), rows=test_rows)
    with write_whole(folder / "result.json") as partial:
        partial.write_text(json.dumps(found, indent=2) + "\n")
    shutil.rmtree(folder / "linear", ignore_errors=True)


def open_run_images(settings: Settings, opened: Callable[..., Source]) -> tuple[Source, Source]:
    """Return the images to train and to evaluate on; exit before training if a run could not be evaluated."""
    data = settings.data
    if data.test is None and not data.test_on_holdout:
        raise SystemExit("data.test is not set: expected labelled images to evaluate on, or data.test_on_holdout=true")
    train = opened(data.train, data.image_column, data.label_column)
    test = train if data.test_on_holdout else opened(str(data.test), data.image_column, data.label_column)
    refuse_other_classes(train, test)
    return train, test


def describe_measure(
    settings: Settings, test: Source, args: argparse.Namespace, described: Callable[[Source, int | None], dict[str, str]]
) -> dict[str, Any]:
    """Return what a run is evaluated with, which must be the same for all runs of a table; `described` is `describe_test`."""
    data = settings.data
    assert test.labels is not None, "open_run_images refuses them"
    labels = hashlib.sha256(test.labels.numpy().tobytes()).hexdigest()  # of the images, wherever they are stored
    return {
        "probe": args.probe, "probe_epochs": args.probe_epochs, "test_images": len(test), "test_labels_sha256": labels,
        "on_holdout": data.test_on_holdout, "limit": data.limit, "holdout": data.holdout, "image_size": data.image_size,
        "in_memory": data.in_memory, "k": settings.probe.k, "temperature": settings.probe.temperature, "encoder": args.encoder,
        **described(test, data.holdout if data.test_on_holdout else None),
    }  # fmt: skip


def describe_test(test: Source, holdout: int | None = None) -> dict[str, str]:
    """Return which images a run is evaluated on, wherever they are stored: all of a source, or those held out of it."""
    rows = torch.arange(len(test)) if holdout is None else split_rows(len(test), None, holdout)[1]
    return {f"test_{name}": value for name, value in describe_contents(test, rows).items() if name != "labels_sha256"}


def refuse_other_measures(measures: list[dict[str, Any]], names: list[Any], out: Path) -> None:
    """Exit if the planned and finished runs are not all evaluated in the same way, and so do not belong in one table."""
    measure = measures[0]
    for other, name in zip(measures, names, strict=True):
        compared = _comparable(measure, other)
        differing = name_changes([key for key in compared if measure[key] != other[key]], measure, other, then=" and")
        if differing:
            raise SystemExit(
                f"{names[0]} and {name} would be evaluated with different {', '.join(differing)}: the runs of a table need the same"
            )
    for run in finished(out):
        before = run.get("measure", {})
        compared = _comparable(measure, before)
        if changed := name_differences({name: before.get(name) for name in compared}, {name: measure[name] for name in compared}):
            raise SystemExit(
                f"{run['folder']} was evaluated with different {changed}: choose another --out, or delete the result.json of "
                "every run there to evaluate them again; their training is kept"
            )


def _comparable(measure: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Return the names of what can be compared: hashes of images only if both have them, as runs of earlier versions have none."""
    images = {f"test_{name}" for name in CONTENTS} - {"test_labels_sha256"}
    return [name for name in measure if name not in images or name in other]


def finished(out: Path) -> list[dict[str, Any]]:
    """Return all finished runs in a folder, ordered by method, arm and seed."""
    runs = [json.loads(path.read_text()) | {"folder": str(path.parent)} for path in out.glob("*/result.json")]
    methods = list(TITLES)
    return sorted(runs, key=lambda r: (methods.index(r["method"]), r["generator"] != "baseline", r["generator"], r["seed"]))


def run_folder(out: Path, method: str, generator: str, seed: int) -> Path:
    """Return the folder of a run."""
    return out / f"{method}-{generator}-seed{seed}"


def refuse_others(plan: list[tuple[str, str, int, Settings]], out: Path) -> None:
    """Exit, before anything runs, if the folder of a planned run holds a run with other settings."""
    for method, generator, seed, settings in plan:
        folder = run_folder(out, method, generator, seed)
        if not has_begun(folder) and not (folder / "result.json").exists():
            continue
        # With auto a run keeps the precision that it began with.
        free = {*RECORDED, *(["trainer.precision"] if settings.trainer.precision == "auto" else [])}
        refuse_another_run(folder, flatten(settings), free | {*(FREE_WHEN_TRAINED if is_trained(folder) else FREE)})


def refuse_several_banks(plan: list[tuple[str, str, int, Settings]], generator: str) -> None:
    """Exit if the planned runs have different banks: one generator would make those of all arms."""
    arms = {s.generative.bank: arm for _, arm, _, s in plan if s.generative.source == "bank"}
    if len(arms) > 1:
        raise SystemExit(
            f"--make-bank {generator}: the arms have different banks, {', '.join(f'{arm} {bank}' for bank, arm in arms.items())}, and it "
            "would make all of them; make each with make_bank.py or real_variants.py, and leave --make-bank out"
        )


def refuse_unknown_arm(over: str, plan: list[tuple[str, str, int, Settings]], configs: Path, out: Path) -> None:
    """Exit if gains are wanted over an arm that is none: neither finished, nor one of those that there are configurations for.

    The baseline may be absent: the table of some arms of it has no gains.
    """
    there = {path.stem.partition("-")[2] for method, *_ in plan for path in configs.glob(f"{method}-*.yaml")}
    there |= {run["generator"] for run in finished(out)}
    if over != "baseline" and over not in there:
        raise SystemExit(f"--gain-over {over}: no such arm; expected one of {', '.join(sorted(there))}")


def make_planned_bank(settings: Settings, generator: str, variants: int) -> None:
    """Make the bank of the planned runs, or what is missing of it, before any of them is trained."""
    try:
        make_bank(settings, generator, variants)
    except gt.GentransformsError as error:
        raise SystemExit(f"--make-bank {generator}, generative.bank={settings.generative.bank!r}: {error}") from error


def only_trained(plan: list[tuple[str, str, int, Settings]], out: Path) -> list[tuple[str, str, int, Settings]]:
    """Return the planned runs that are trained to their end; the others are named."""
    left = {run_folder(out, *path).name: (*path, settings) for *path, settings in plan}
    there = {name: run for name, run in left.items() if is_trained(out / name)}
    if len(there) < len(left):
        print(f"not trained to the end: {', '.join(sorted(left.keys() - there))}")
    if not there:
        raise SystemExit(f"--trained-only: none of the runs in {out} is trained to its end")
    return list(there.values())


def report(runs: list[dict[str, Any]], out: Path, over: str = "baseline") -> None:
    """Write ``results.json``, ``results.md`` and ``curves.png``."""
    (out / "results.json").write_text(json.dumps(runs, indent=2) + "\n")
    (out / "results.md").write_text("\n".join(filter(None, [table(runs, over), name_mixed_settings(runs, over)])))
    draw_curves(runs, out / "curves.png")


def table(runs: list[dict[str, Any]], over: str = "baseline") -> str:
    """Return the runs as a Markdown table: means in percent with half their 95% intervals, and gains over the arm `over`."""
    encoder = any("encoder" in run for run in runs)
    head = ["method", "generator", "seeds", "linear", "gain", "k-NN", "gain", "steps"] + (
        ["CKA with the encoder", "Procrustes distance"] if encoder else []
    )
    rows = [head, ["---"] * 2 + ["---:"] * (len(head) - 2)]
    arms = {}
    for run in runs:
        arms.setdefault((run["method"], run["generator"]), []).append(run)
    for (method, generator), own in arms.items():
        row = [TITLES.get(method, method), generator, str(len(own))]
        for probe in ("linear", "knn"):
            baseline = {run["seed"]: _accuracy(run, probe) for run in arms.get((method, over), [])}
            pairs = [(_accuracy(run, probe), baseline[run["seed"]]) for run in own if run["seed"] in baseline]
            row.append(percent(*mean_accuracy([_accuracy(run, probe) for run in own])))
            row.append("" if generator == over or not pairs else percent(*mean_gain(pairs), sign="+"))
        row.append("/".join(sorted({f"{run['training']['steps']}" for run in own})))
        if encoder:
            own_encoder = [next(v for name, v in run["encoder"].items() if name != "untrained") for run in own if "encoder" in run]
            row += [_figure([found[measure] for found in own_encoder]) for measure in ("linear_cka", "procrustes_distance")]
        rows.append(row)
    images = "held-out" if any(run.get("measure", {}).get("on_holdout") for run in runs) else "test"
    note = (
        f"Accuracy in percent on the {images} images. Intervals are 95%: over seeds (Student's t) where there are several, else over the "
        f"{images} images (Wilson; of a gain, as if the images were others), without the variation between training runs; gains are paired "
        f"by seed"
        f"{'' if over == 'baseline' else f' and relative to {over}'}.\n"
    )
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n\n" + note


def _accuracy(run: dict[str, Any], probe: str) -> Accuracy:
    return run[probe]["accuracy"], run[probe]["interval"]


def _figure(values: list[float]) -> str:
    if not values:
        return ""
    mean, half = mean_interval(values)
    return f"{mean:.3f}" if half is None else f"{mean:.3f} ± {half:.3f}"


if __name__ == "__main__":
    main()
