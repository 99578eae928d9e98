"""How robust are the features? A run's linear layer and k-NN, fitted on clean training images, tested on corrupted ones.

    python examples/ssl/corruptions.py runs/cifar10-small/*-seed? --out runs/corruptions

Six corruptions of five strengths each, made on the fly (corrupted_images.py has what they do, and how much). They stand for the
paper's transfer sets where those cannot be had. The images are those of the run's settings; --train and --test take others.
Each run is named METHOD-ARM-seedN, as reproduce.py names its folders. Writes corruptions.json and corruptions.md into OUT: accuracies
with 95% intervals over seeds (Student's t), for a single seed over the test images (Wilson), and gains over the baseline, paired by
seed. Runs that corruptions.json has already are evaluated again only if their checkpoint has changed; what was measured on other
images, or in another way, is not mixed with it.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from arguments import positive
from config import Settings
from corrupted_images import CORRUPTIONS, STRENGTHS, corrupt
from data import Source, open_images, refuse_other_classes
from filelock import FileLock
from frozen import extract_features, load_run
from learning_curves import TITLES
from linear_probe import Features, ProbeOptions, fit_linear
from loading import WholeImages, load_into_memory, training_rows, whole_loader
from measured import describe_images, hash_checkpoint, name_differences
from probes import Accuracy, knn, mean_accuracy, mean_gain, percent, wilson
from quiet import hush
from shared import settle_device, write_whole
from torch import Tensor
from torch.utils.data import Dataset
from trained import is_trained

PROBES = {"linear": "linear layer", "knn": "weighted k-NN"}


def evaluate_run(folder: Path, train: Source, test: Source, epochs: int, device: str = "cpu") -> dict[str, Any]:
    """Return the accuracies of a run, ``{"clean": {"linear": …, "knn": …}, "noise": {"linear": [five strengths], …}, …}``."""
    backbone, settings = load_run(folder)
    classes, k = len(train.classes), settings.probe.k
    known, labels = extract_features(backbone, _batches(_images(train, training_rows(train, settings)[0], settings), settings), device)
    # Standardised as evaluate.py does, so that the accuracy on clean images is the one it reports.
    mean, deviation = known.mean(dim=0), known.std(dim=0).clamp(min=1e-6)
    accelerator = "cpu" if device == "cpu" else "gpu"
    options = ProbeOptions(epochs=epochs, cached=True, optimizer="sgd", workers=0, seed=settings.seed, accelerator=accelerator)
    layer = fit_linear(backbone, Features((known - mean) / deviation, labels), classes, options)[0].layer.cpu().requires_grad_(False)
    images = _images(test, torch.arange(len(test)), settings)

    def accuracies(corruption: tuple[str, int] | None = None) -> dict[str, float]:
        features, expected = extract_features(backbone, _batches(images, settings, corruption), device)
        guesses = {
            "linear": layer((features - mean) / deviation).argmax(dim=1),
            "knn": knn(features, known, labels, classes, k, settings.probe.temperature),
        }
        return {probe: round((guess == expected).float().mean().item(), 5) for probe, guess in guesses.items()}

    found: dict[str, Any] = {"clean": accuracies()}
    for name in CORRUPTIONS:
        at = [accuracies((name, strength)) for strength in STRENGTHS]
        found[name] = {probe: [one[probe] for one in at] for probe in PROBES}
    return found


def _images(source: Source, rows: Tensor, settings: Settings) -> Dataset[Any]:
    """Return whole images, as the other probes see them."""
    size = settings.data.image_size
    return load_into_memory(source, rows, size)[0] if settings.data.in_memory else WholeImages(source, rows, size)


def _batches(images: Dataset[Any], settings: Settings, corruption: tuple[str, int] | None = None) -> Iterator[dict[str, Tensor]]:
    """Yield batches of images (B, 3, S, S) uint8, corrupted by name and strength if one is given."""
    for batch in whole_loader(images, 500 if settings.data.in_memory else 128, settings.data.workers):
        yield batch if corruption is None else batch | {"images": corrupt(batch["images"], *corruption, batch["rows"])}


def describe_run(folder: Path, settings: Settings) -> dict[str, Any]:
    """Return which run is in a folder METHOD-ARM-seedN, and the hash of its checkpoint."""
    method, seed = settings.method.name, settings.seed
    arm = folder.name.removeprefix(f"{method}-").removesuffix(f"-seed{seed}")
    return {"run": str(folder.resolve()), "method": method, "arm": arm, "seed": seed, "checkpoint_sha256": hash_checkpoint(folder)}


def _of_settings(settings: Settings) -> dict[str, Any]:
    """Return what a run's settings decide about its measurement."""
    data, probe = settings.data, settings.probe
    images = {"limit": data.limit, "holdout": data.holdout, "image_size": data.image_size}
    return {**images, "k": probe.k, "temperature": probe.temperature, "corruptions": CORRUPTIONS}


def table(runs: list[dict[str, Any]], over: str = "baseline") -> str:
    """Return a Markdown table for each probe: clean images, each corruption (mean of its strengths), and the mean of all of them."""
    arms: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for run in sorted(runs, key=lambda r: (list(TITLES).index(r["method"]), r["arm"] != over, r["arm"], r["seed"])):
        arms.setdefault((run["method"], run["arm"]), []).append(run)
    columns = ["clean", *CORRUPTIONS, "all corruptions"]
    parts = []
    for probe, title in PROBES.items():
        rows = [["method", "arm", "seeds", *columns, "gain"], ["---"] * 2 + ["---:"] * (len(columns) + 2)]
        for (method, arm), own in arms.items():
            images = own[0]["measure"]["test_images"]
            all_of = [[_with_wilson(_accuracy(run, probe, column), images) for run in own] for column in columns]
            cells = [percent(*mean_accuracy(accuracies)) for accuracies in all_of]
            last = arms.get((method, over), [])
            baseline = {run["seed"]: _with_wilson(_accuracy(run, probe, columns[-1]), images) for run in last}
            pairs = [(accuracy, baseline[run["seed"]]) for accuracy, run in zip(all_of[-1], own, strict=True) if run["seed"] in baseline]
            gain = "" if arm == over or not pairs else percent(*mean_gain(pairs), sign="+")
            rows.append([TITLES[method], arm, str(len(own)), *cells, gain])
        parts.append(f"Accuracy of the {title} in percent:\n\n" + "\n".join(f"| {' | '.join(row)} |" for row in rows))
    return "\n\n".join(parts) + (
        "\n\nA column of a corruption is the mean over five strengths. Intervals are 95%: over seeds (Student's t) where there are "
        f"several, else over the test images (Wilson; of a gain, as if the images were others); the gain is that of the last accuracy over "
        f"{over}, paired by seed.\n"
    )


def _accuracy(run: dict[str, Any], probe: str, column: str) -> float:
    if column == "all corruptions":
        return statistics.fmean(_accuracy(run, probe, name) for name in CORRUPTIONS)
    value = run["accuracy"][column][probe]
    return float(value if column == "clean" else statistics.fmean(value))


def _with_wilson(accuracy: float, images: int) -> Accuracy:
    return accuracy, wilson(round(accuracy * images), images)


def _read(report: Path) -> dict[tuple[str, str, int], Any]:
    """Return the runs of a report by method, arm and seed."""
    runs = json.loads(report.read_text()) if report.exists() else []
    return {(run["method"], run["arm"], run["seed"]): run for run in runs}


def _refuse_another_folder(known: dict[str, Any] | None, about: dict[str, Any], report: Path, folder: Path) -> None:
    if known is not None and known["run"] != about["run"]:
        raise SystemExit(f"{report} has {folder.name} from another folder, {known['run']}: choose another --out for {folder}")


def _refuse_other_measures(runs: dict[tuple[str, str, int], Any], measure: dict[str, Any], reason: str) -> None:
    for run in runs.values():
        if differing := name_differences(run["measure"], measure):
            raise SystemExit(f"{reason}, {differing}: choose another --out")


def main() -> None:
    """Parse the command line, evaluate what is missing, and write both reports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="folders METHOD-ARM-seedN of runs")
    parser.add_argument("--train", help="labelled images for the linear layer and k-NN; by default those of the run")
    parser.add_argument("--test", help="labelled images to corrupt; by default those of the run")
    parser.add_argument("--probe-epochs", type=positive, default=100)
    parser.add_argument("--gain-over", metavar="ARM", default="baseline", help="the arm that gains are relative to")
    parser.add_argument("--device", default="cpu", help="auto, cuda, mps or cpu; default cpu")
    parser.add_argument("--out", type=Path, required=True, help="folder of the reports")
    args = parser.parse_args()
    args.device = settle_device(args.device, f"--device {args.device}")
    hush()
    args.out.mkdir(parents=True, exist_ok=True)
    report = args.out / "corruptions.json"
    opened, described = functools.cache(open_images), functools.cache(describe_images)
    trained = [folder for folder in args.runs if is_trained(folder)]
    if left := [str(folder) for folder in args.runs if folder not in trained]:
        print(f"left out, since not trained to the end: {', '.join(left)}")
    if not trained:
        raise SystemExit("none of the runs is trained to its end: expected folders of train.py or reproduce.py")
    for folder in trained:
        found = _read(report)
        settings = load_run(folder)[1]
        data = settings.data
        if (args.test or data.test) is None:
            raise SystemExit(f"{folder}: the run had no test images; give labelled ones as --test")
        train, test = (opened(name, data.image_column, data.label_column) for name in (args.train or data.train, args.test or data.test))
        refuse_other_classes(train, test)
        measure = {"probe_epochs": args.probe_epochs, **described(train, "train"), **described(test, "test"), **_of_settings(settings)}
        _refuse_other_measures(found, measure, f"{report} has runs measured otherwise than {folder} would be")
        about = describe_run(folder, settings)
        name = about["method"], about["arm"], about["seed"]
        if name in found and found[name]["checkpoint_sha256"] == about["checkpoint_sha256"]:
            continue
        _refuse_another_folder(found.get(name), about, report, folder)
        if name in found:
            print(f"{folder}: trained again since it was evaluated, so it is evaluated again")
        run = about | {"measure": measure, "accuracy": evaluate_run(folder, train, test, args.probe_epochs, args.device)}
        with FileLock(args.out / ".lock"):  # another command may have added runs to this report meanwhile
            found = _read(report)
            _refuse_another_folder(found.get(name), about, report, folder)
            found[name] = run
            _refuse_other_measures(found, measure, f"{report} was given runs meanwhile that were measured otherwise than {folder}")
            with write_whole(report) as partial:  # hours of evaluation
                partial.write_text(json.dumps(list(found.values()), indent=2) + "\n")
    with FileLock(args.out / ".lock"):
        text = table(list(_read(report).values()), args.gain_over)
        (args.out / "corruptions.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
