"""Everything that only a GPU can show, unattended: ``python -m benchmarks.gpu_all --data train.parquet --out results``.

Runs parts of benchmarks/gpu_parts, each in a process of its own with a time limit, so that a part that fails or hangs costs only
itself. What a part has found so far is packed into files under 16 MB in the output folder, again and again while it runs, so
that nothing is lost if the machine is taken away. Parts for which the minutes do not suffice are skipped by name. Part 7 runs
beside part 4, whose generator it waits for. GPU.md says what to bring.

`--device cpu --quick` rehearses all parts in miniature.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.leftovers import forget_generator
from benchmarks.running import Running, wait

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Part:
    """A part.

    Attributes:
        limit: in seconds; None for what is left, less `leaves` for each part behind it.
        least: seconds that it is started with.
        modules: what it imports.
        files: zip files that it may fill.
        beside: the part that it runs together with, if it follows it.
    """

    number: int
    name: str
    title: str
    limit: float | None
    least: float
    modules: tuple[str, ...]
    files: int = 1
    beside: int | None = None
    leaves: float = 25.0


_LIBRARY = ("torch", "torchvision", "numpy", "PIL", "huggingface_hub", "safetensors", "filelock", "einops")
_DIFFUSION = (*_LIBRARY, "diffusers", "transformers", "importlib_metadata", "regex", "requests", "kornia", "kornia_rs")
_BANK = (*_LIBRARY, "pyarrow", "datasets", "dill", "multiprocess", "xxhash", "pandas", "rich")
_TRAINING = (*_BANK, "kornia", "kornia_rs", "omegaconf", "antlr4", "tensorboard", "matplotlib", "yaml")
_SSL = (*_TRAINING, "lightning", "lightly", "hydra", "torchmetrics")
PARTS = (
    Part(1, "correctness", "correctness on the device", 60, 20, _DIFFUSION),
    Part(2, "icgan", "throughput of IC-GAN 256", 60, 20, _LIBRARY),
    Part(3, "diffusion", "throughput of Stable Diffusion 2.1 unCLIP", 150, 30, _DIFFUSION),
    Part(4, "training", "training of the bundled generator", 375, 60, _TRAINING, files=2),
    Part(5, "ssl", "self-supervised learning on CIFAR-10", None, 40, _SSL),
    Part(6, "bank", "filling a bank", None, 20, _BANK),
    Part(7, "fair", "the fair experiment", None, 120, _SSL, files=3, beside=4, leaves=0),
)
FIRST = "4,7,3"  # what has not been measured yet; 3 runs if the others end early
AHEAD = (
    "torchvision", "diffusers.pipelines.stable_diffusion", "transformers.models.clip", "diffusers.models", "kornia.augmentation",
    "datasets", "omegaconf", "torch.utils.tensorboard", "matplotlib.pyplot", "lightning", "lightly.loss", "torchmetrics.classification",
    "torch._inductor.compile_fx",
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, run the parts, and print the table; return the exit code: 1 if a part failed, 2 for a wrong call."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=9.0, help="for everything, the start included")
    parser.add_argument("--data", type=Path, help="CIFAR-10's training images, a Parquet file; without it some parts make toy images")
    parser.add_argument("--test", type=Path, help="the test images; without them 5,000 of the training images are held out")
    parser.add_argument("--out", type=Path, required=True, help="folder for the packed results, at most eight files")
    parser.add_argument("--work", type=Path, help="folder for everything else, with which a second call goes on; default: a temporary one")
    parser.add_argument("--parts", default=FIRST, help=f"which, and in which order; default: {FIRST}")
    parser.add_argument("--wheels", type=Path, help="folder of wheels to install first, without a network, outside the environment")
    parser.add_argument("--device", default="cuda", help="cuda, or cpu to rehearse")
    parser.add_argument("--quick", action="store_true", help="everything in miniature")
    args = parser.parse_args(arguments)
    end = time.monotonic() + 60 * args.minutes
    known = {str(part.number): part for part in PARTS}
    chosen = [known.get(number.strip()) for number in args.parts.split(",")]
    if None in chosen:
        print(f"--parts {args.parts}: expected numbers from 1 to {len(PARTS)}, such as 1,2,4", file=sys.stderr)
        return 2
    for option, path in {"--data": args.data, "--test": args.test, "--wheels": args.wheels}.items():
        if path is not None and not path.exists():
            print(f"{option} {path} does not exist", file=sys.stderr)
            return 2
    args.out.mkdir(parents=True, exist_ok=True)
    work = (args.work or Path(tempfile.mkdtemp(prefix="gpu_all-"))).resolve()
    work.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])}
    # What is cut off has said what it knew, and nothing waits for a network that is not there.
    environment |= {"PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}
    if args.wheels is not None:
        install(args.wheels, work / "site", environment)
    with reading_ahead(environment) if args.device != "cpu" else contextlib.nullcontext():
        rows = run_parts([part for part in chosen if part is not None], args, work, end, environment)
    print(table(rows))
    if all(row["outcome"].startswith("skipped: missing") for row in rows):
        return 2
    return int(any(row["outcome"].startswith(("failed", "cut off")) for row in rows))


def run_parts(parts: list[Part], args: argparse.Namespace, work: Path, end: float, environment: dict[str, str]) -> list[dict[str, Any]]:
    """Run the parts, each after the other or beside it; return a row for each. The summary is written whenever one has ended."""
    absent = {part.number: find_missing(part.modules, environment) for part in parts}
    if any(absent.values()):
        names = sorted({name for missing in absent.values() for name in missing})
        print(f"missing here: {', '.join(names)}; benchmarks/GPU.md says which wheels to bring", flush=True)
    rows: dict[int, dict[str, Any]] = {}

    def note(part: Part, **found: Any) -> None:
        rows[part.number] = {"part": part.number, "title": part.title, **found}
        ordered = [rows[one.number] for one in parts if one.number in rows]
        summary = {"device": args.device, "quick": args.quick, "minutes": args.minutes, "parts": ordered}
        (args.out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
        (args.out / "summary.md").write_text(table(ordered))

    for group, later in grouped(parts):
        running: dict[int, tuple[Part, Running]] = {}
        left = end - time.monotonic()
        for part in group:
            behind = part.leaves * sum(not absent[other.number] for other in later)
            # In a rehearsal the limits are not those of a GPU.
            seconds = left - (0 if args.quick else behind) if part.limit is None else min(part.limit * (10 if args.quick else 1), left)
            if absent[part.number]:
                note(part, outcome=f"skipped: missing {', '.join(absent[part.number])}")
            elif seconds < (1 if args.quick else part.least):
                note(part, outcome=f"skipped: {max(0, left):.0f} s left; run again with --parts {part.number}")
            else:
                print(f"part {part.number}, {part.title}: at most {seconds:.0f} s", flush=True)
                if part.number == 4 and (removed := forget_generator(work)):
                    print(f"removed, of an earlier generator: {', '.join(removed)}", flush=True)
                folder = work / f"part{part.number}-{part.name}"
                command, packed = part_command(part, args, folder, work, seconds), args.out / f"{folder.name}.zip"
                one = Running.begin(command, folder, packed, part.files, seconds, ROOT, environment)
                running[one.process.pid] = part, one
        with contextlib.closing(wait([one for _, one in running.values()])) as ended:
            for one in ended:
                part, row = running[one.process.pid][0], one.report()
                print(f"part {part.number}: {row['outcome']} after {row['seconds']} s", flush=True)
                note(part, **row)
    return [rows[part.number] for part in parts]


def grouped(parts: list[Part]) -> Iterator[tuple[list[Part], list[Part]]]:
    """Return the parts that run beside each other, and all that come after them."""
    left = list(parts)
    while left:
        group = [left.pop(0)]
        while left and left[0].beside == group[0].number:
            group.append(left.pop(0))
        yield group, list(left)


def part_command(part: Part, args: argparse.Namespace, folder: Path, work: Path, seconds: float) -> list[str]:
    """Return the command of a part."""
    command = [sys.executable, "-m", f"benchmarks.gpu_parts.{part.name}", "--out", str(folder), "--work", str(work)]
    command += ["--device", args.device]
    command += ["--seconds", f"{seconds:.1f}", "--since", f"{time.time():.2f}", *(["--quick"] if args.quick else [])]
    for option, path in {"--data": args.data, "--test": args.test}.items():
        command += [option, str(path.resolve())] if path is not None else []
    return command


@contextlib.contextmanager
def reading_ahead(environment: dict[str, str]) -> Iterator[None]:
    """Import, beside the parts, what they will import: on a machine that has never read these files, the first import takes long."""
    code = "import contextlib, importlib\nfor name in {names}:\n  with contextlib.suppress(Exception): importlib.import_module(name)"
    process = subprocess.Popen(
        [sys.executable, "-c", code.format(names=AHEAD)], cwd=ROOT, env=environment | {"CUDA_VISIBLE_DEVICES": ""},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def install(wheels: Path, site: Path, environment: dict[str, str]) -> None:
    """Install the wheels of a folder into `site`, without a network, and put it into the environment's path."""
    files = sorted(str(path) for path in wheels.glob("*.whl"))
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-index",
        "--no-deps",
        "--no-compile",
        "--upgrade",
        "--target",
        str(site),
        *files,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False) if files else None
    if done is None or done.returncode:
        print(f"the wheels in {wheels} could not be installed: {done.stderr[-500:] if done else 'there are none'}", flush=True)
    # Behind the checkout, before what is installed.
    first, *rest = environment["PYTHONPATH"].split(os.pathsep)
    environment["PYTHONPATH"] = os.pathsep.join([first, str(site), *rest])


def find_missing(modules: Sequence[str], environment: dict[str, str]) -> list[str]:
    """Return the modules that a part would not find."""
    before = list(sys.path)
    sys.path[:0] = environment["PYTHONPATH"].split(os.pathsep)
    importlib.invalidate_caches()
    try:
        return [name for name in modules if importlib.util.find_spec(name) is None]
    finally:
        sys.path[:] = before


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a Markdown table."""
    lines = ["| part | outcome | seconds | figures |", "| --- | --- | ---: | --- |"]
    for row in rows:
        figures = "; ".join(f"{name}: {value}" for name, value in row.get("figures", {}).items())
        lines.append(f"| {row['part']}. {row['title']} | {row['outcome']} | {row.get('seconds', '')} | {figures} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the parts end, too
    sys.exit(main())
