"""Everything that only a GPU can show, unattended: ``python -m benchmarks.gpu_all --data train.parquet --out results``.

Runs the parts of benchmarks/gpu_parts in the order of their worth, each in a process of its own with a time limit, so that a
part that fails or hangs costs only itself. What a part has found so far is packed into one file under 16 MB in the output
folder, again and again while it runs, so that nothing is lost if the machine is taken away. Parts for which the minutes do not
suffice are skipped by name. GPU.md says what to bring.

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

from benchmarks.packing import pack

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Part:
    """A part: its limit in seconds, None for what is left; the least that it is started with; the modules that it imports."""

    number: int
    name: str
    title: str
    limit: float | None
    least: float
    modules: tuple[str, ...]


_LIBRARY = ("torch", "torchvision", "numpy", "PIL", "huggingface_hub", "safetensors", "filelock", "einops")
_DIFFUSION = (*_LIBRARY, "diffusers", "transformers", "importlib_metadata", "regex", "requests", "kornia", "kornia_rs")
_BANK = (*_LIBRARY, "pyarrow", "datasets", "dill", "multiprocess", "xxhash", "pandas", "rich")
_TRAINING = (*_BANK, "kornia", "kornia_rs", "omegaconf", "antlr4", "tensorboard", "matplotlib", "yaml")
_SSL = (*_TRAINING, "lightning", "lightly", "hydra", "torchmetrics")
PARTS = (
    Part(1, "correctness", "correctness on the device", 60, 20, _DIFFUSION),
    Part(2, "icgan", "throughput of IC-GAN 256", 60, 20, _LIBRARY),
    Part(3, "diffusion", "throughput of Stable Diffusion 2.1 unCLIP", 90, 30, _DIFFUSION),
    Part(4, "training", "training of the bundled generator", 300, 60, _TRAINING),
    Part(5, "ssl", "self-supervised learning on CIFAR-10", None, 40, _SSL),
    Part(6, "bank", "filling a bank", None, 20, _BANK),
)
AHEAD = (
    "torchvision", "diffusers.pipelines.stable_diffusion", "transformers.models.clip", "diffusers.models", "kornia.augmentation",
    "datasets", "omegaconf", "torch.utils.tensorboard", "matplotlib.pyplot", "lightning", "lightly.loss", "torchmetrics.classification",
    "torch._inductor.compile_fx",
)  # fmt: skip
RESERVED = 25.0  # seconds that a part without a limit leaves for each part behind it


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, run the parts, and print the table; return the exit code: 1 if a part failed, 2 for a wrong call."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=9.0, help="for everything, the start included")
    parser.add_argument("--data", type=Path, help="CIFAR-10's training images, a Parquet file; without it some parts make toy images")
    parser.add_argument("--test", type=Path, help="the test images; without them 5,000 of the training images are held out")
    parser.add_argument("--out", type=Path, required=True, help="folder for the packed results, at most eight files")
    parser.add_argument("--work", type=Path, help="folder for everything else, with which a second call goes on; default: a temporary one")
    parser.add_argument("--parts", default="1,2,3,4,5,6", help="which, and in which order")
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
    """Run the parts one after the other; return a row for each. ``summary.json`` and ``summary.md`` are written after each."""
    absent = {part.number: find_missing(part.modules, environment) for part in parts}
    if any(absent.values()):
        names = sorted({name for missing in absent.values() for name in missing})
        print(f"missing here: {', '.join(names)}; benchmarks/GPU.md says which wheels to bring", flush=True)
    rows: list[dict[str, Any]] = []
    for i, part in enumerate(parts):
        left, behind = end - time.monotonic(), sum(RESERVED for later in parts[i + 1 :] if not absent[later.number])
        # In a rehearsal the limits are not those of a GPU.
        seconds = min(part.limit * (10 if args.quick else 1), left) if part.limit is not None else left - (0 if args.quick else behind)
        row: dict[str, Any] = {"part": part.number, "title": part.title}
        if absent[part.number]:
            row |= {"outcome": f"skipped: missing {', '.join(absent[part.number])}"}
        elif seconds < (1 if args.quick else part.least):
            row |= {"outcome": f"skipped: {max(0, left):.0f} s left; run again with --parts {part.number}"}
        else:
            print(f"part {part.number}, {part.title}: at most {seconds:.0f} s", flush=True)
            row |= run_part(part, args, work, seconds, environment)
            print(f"part {part.number}: {row['outcome']} after {row['seconds']} s", flush=True)
        rows.append(row)
        summary = {"device": args.device, "quick": args.quick, "minutes": args.minutes, "parts": rows}
        (args.out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
        (args.out / "summary.md").write_text(table(rows))
    return rows


def run_part(part: Part, args: argparse.Namespace, work: Path, seconds: float, environment: dict[str, str]) -> dict[str, Any]:
    """Run a part for at most so many seconds, pack what it writes, and return its outcome and its figures."""
    folder, start = work / f"part{part.number}-{part.name}", time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    packed = args.out / f"part{part.number}-{part.name}.zip"
    command = part_command(part, args, folder, work, seconds)
    with (folder / "log.txt").open("w") as log:
        # A session of its own, so that its workers end with it.
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            outcome = wait(process, start + seconds, lambda: pack(folder, packed))
        finally:
            end_session(process)
    left_out = pack(folder, packed)
    result = folder / "result.json"
    figures = json.loads(result.read_text()).get("summary", {}) if result.exists() else {}
    row = {"outcome": outcome, "seconds": round(time.monotonic() - start, 1), "figures": figures, "packed": packed.name}
    return row | ({"not_packed": left_out} if left_out else {})


def part_command(part: Part, args: argparse.Namespace, folder: Path, work: Path, seconds: float) -> list[str]:
    """Return the command of a part."""
    command = [sys.executable, "-m", f"benchmarks.gpu_parts.{part.name}", "--out", str(folder), "--work", str(work)]
    command += ["--device", args.device]
    command += ["--seconds", f"{seconds:.1f}", "--since", f"{time.time():.2f}", *(["--quick"] if args.quick else [])]
    for option, path in {"--data": args.data, "--test": args.test}.items():
        command += [option, str(path.resolve())] if path is not None else []
    return command


def wait(process: subprocess.Popen[bytes], until: float, on_tick: Any, tick: float = 10.0) -> str:
    """Wait for a process, at most until then, with a call of `on_tick` every so often; return how it ended."""
    while True:
        left = until - time.monotonic()
        if left <= 0:
            return "cut off at its time limit"
        try:
            code = process.wait(timeout=min(tick, left))
        except subprocess.TimeoutExpired:
            on_tick()
            continue
        return "done" if code == 0 else f"failed with exit code {code}, see log.txt in its file"


def end_session(process: subprocess.Popen[bytes]) -> None:
    """End a process and all that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


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
        end_session(process)


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
    sys.exit(main())
