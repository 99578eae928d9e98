"""Part 7: the fair experiment (examples/ssl/configs/cifar10-fair) with the generator that part 4 trains beside it.

Banks of real images are made on the processor while the generator trains, those of its variants on the device as soon as it is
there; then every run whose bank is ready, whole seeds first, all at once. If they cannot all end in time, the last ones give way.
Finished runs come back in ``runs/``; ``reproduce.py --trained-only`` evaluates them anywhere, without the banks (GPU.md). The same
command with the same folder goes on with what is left.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu_parts.context import Context, run
from benchmarks.gpu_parts.fair_commands import Commands
from benchmarks.gpu_parts.finished import keep_run
from benchmarks.gpu_parts.images import Images, split_images
from benchmarks.gpu_parts.processes import Processes
from benchmarks.gpu_parts.schedule import Forecast, Look, who_gives_way
from benchmarks.gpu_parts.weak import steps_of

ARMS = ("baseline", "generated", "oracle", "weak-2", "weak-1", "neighbours")
REAL = ("oracle", "neighbours")
SEEDS = (0, 1, 2)
WITHOUT = 240.0  # seconds that are left when part 4 is waited for no longer
TAIL = 10.0  # seconds that are kept for packing
PROBE = 5.0  # seconds that a run takes after its last step


class Fair:
    """What is due at a time. `tick` is called again and again; all that takes long is a process of its own."""

    def __init__(self, context: Context, images: Images, processes: Processes) -> None:
        self.context, self.processes = context, processes
        self.commands = Commands(images, context.device.type, context.quick)
        self.seeds = SEEDS[:1] if context.quick else SEEDS
        self.plan = [(arm, seed) for seed in self.seeds for arm in ARMS]
        self.names = [run_name(arm, seed) for arm, seed in self.plan]
        self.forecast = Forecast()
        # What has become of the runs that are not waited for; those of an earlier call are there.
        self.ended = {name: "done" for name in self.names if (context.out / "runs" / name).exists()}
        self.began = time.monotonic()

    def tick(self) -> bool:
        """Do what is due; return whether anything is left to wait for."""
        self.begin_banks()
        self.begin_runs()
        self.end_runs()
        self.give_way()
        return self.context.left() > TAIL and len(self.ended) < len(self.plan)

    def begin_banks(self) -> None:
        """Start the banks whose generator is there. The encoder, which finds neighbours, is the same in all snapshots."""
        snapshots, trained = self.context.work / "generator" / "snapshots", self.trained()
        if self.bank("oracle") == "absent":
            self.start("bank-oracle", self.commands.real("oracle"), threads=4)
        steps = steps_of(snapshots)
        if steps and self.bank("neighbours") == "absent":
            self.start("bank-neighbours", self.commands.real("neighbours", snapshots / f"{steps[0]:07d}"), threads=4)
        if trained is None or trained["generator"] is None:
            return
        generators = {"generated": trained["generator"]}
        generators |= {arm: snapshots / f"{step:07d}" for arm, step in self.read("weak.json").items() if arm in ARMS}
        for arm, generator in generators.items():
            if self.bank(arm) == "absent":
                for i, command in enumerate(self.commands.generated(arm, generator)):
                    self.start(f"bank-{arm}-{i}", command)

    def begin_runs(self) -> None:
        """Start the runs whose bank is ready, once the generator no longer needs the device."""
        trained, chosen = self.trained(), self.read("weak.json")
        if trained is None:
            return
        for (arm, seed), name in zip(self.plan, self.names, strict=True):
            if name in self.ended or self.processes.state(name) != "absent":
                continue
            bank = "done" if arm == "baseline" else self.bank(arm)
            never = trained["generator"] is None or (bool(chosen) and arm.startswith("weak") and arm not in chosen)
            if bank == "done":
                (self.folder(name) / "progress").unlink(missing_ok=True)  # of an earlier call
                self.start(name, self.commands.run(arm, seed, self.folder(name)))
                self.forecast.forget()
            elif bank == "failed" or (bank == "absent" and never):
                self.ended[name] = "no bank"

    def end_runs(self) -> None:
        """Keep the runs that have ended since."""
        for name in self.names:
            state = self.processes.state(name)
            if name in self.ended or state not in ("done", "failed"):
                continue
            self.ended[name] = state
            self.say(f"{name}: {state}")
            if state == "done":
                keep_run(self.folder(name), self.context.out / "runs" / name)
            self.forecast.forget()
            self.write()

    def give_way(self) -> None:
        """End the last of the runs if they cannot all end in time."""
        running = [name for name in self.names if self.processes.state(name) == "running"]
        for name in running:
            progress = self.folder(name) / "progress"
            if progress.exists():
                self.forecast.add(name, Look(*map(float, progress.read_text().split())))
        ages = {name: self.processes.age(name) for name in running}
        ending = who_gives_way(running, ages, self.forecast, self.context.left() - TAIL - PROBE)
        for name in ending:
            self.processes.stop(name)
            self.ended[name] = f"gave way with {self.forecast.remaining(name):.0f} steps left"
            self.say(f"{name}: {self.ended[name]}")
        if ending:
            self.forecast.forget()
            self.write()

    def end(self) -> None:
        """End what still runs, and write what has become of everything."""
        self.end_runs()
        self.ended |= {name: "cut off" for name in self.names if self.processes.state(name) == "running"}
        self.processes.stop_all()
        self.write()

    def write(self) -> None:
        """Write the result: what has become of each run and bank."""
        for path in (self.context.work / "banks").glob("*.json"):
            (self.context.out / "banks").mkdir(exist_ok=True)
            shutil.copy(path, self.context.out / "banks")
        banks = {arm: self.bank(arm) for arm in ARMS if arm != "baseline"}
        runs = {name: self.ended.get(name, self.processes.state(name)) for name in self.names}
        whole = [seed for seed in self.seeds if all(runs[run_name(arm, seed)] == "done" for arm in ARMS)]
        summary = {"runs": list(runs.values()).count("done"), "of": len(runs), "whole seeds": len(whole)}
        self.context.write(trained=self.trained(), weak=self.read("weak.json"), banks=banks, runs=runs, summary=summary)

    def bank(self, arm: str) -> str:
        """Return the state of a bank: that of its processes."""
        names = [f"bank-{arm}"] if arm in REAL else [f"bank-{arm}-{i}" for i in range(self.commands.shards)]
        states = {self.processes.state(name) for name in names}
        return next(state for state in ("failed", "running", "absent", "done") if state in states)

    def trained(self) -> dict[str, Any] | None:
        """Return what part 4 says of its generator; None while it trains, but nobody waits for it too long."""
        return self.read("trained.json") or ({"generator": None} if self.context.left() < WITHOUT else None)

    def read(self, name: str) -> dict[str, Any]:
        """Return what part 4 has left under a name; empty if it has not."""
        path = self.context.work / name
        return json.loads(path.read_text()) if path.exists() else {}

    def folder(self, name: str) -> Path:
        """Return the folder of a run."""
        return self.context.work / "runs" / name

    def start(self, name: str, command: list[object], threads: int = 1) -> None:
        """Start a process, and say so."""
        self.say(f"{name} begins")
        self.processes.start(name, command, threads)

    def say(self, text: str) -> None:
        """Print a line with the seconds since the start."""
        print(f"{time.monotonic() - self.began:6.1f} {text}", flush=True)


def run_name(arm: str, seed: int) -> str:
    """Return the name of a run, as reproduce.py names its folder."""
    return f"simclr-{arm}-seed{seed}"


def main(context: Context) -> None:
    """Do what is due until everything has ended, or the time is over."""
    if not any((context.work / name).exists() for name in ("part4-training", "trained.json")):
        sys.exit("there is no generator, and nobody trains one: run --parts 4,7, or give the --work of an earlier call")
    fair = Fair(context, split_images(context), Processes(context.out / "logs", context.work))
    try:
        while fair.tick():
            time.sleep(0.5)
    finally:
        fair.end()


if __name__ == "__main__":
    run(main, __doc__)
