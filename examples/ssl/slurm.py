"""Requeue a SLURM job that is about to reach its time limit (``#SBATCH --requeue --signal=SIGUSR1@90``).

Lightning's own handler saves a checkpoint at once, even in the middle of a step, which is then lost, and it loads any such
checkpoint that it finds. Here the job continues exactly from its last checkpoint and repeats the steps since.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from typing import Any

from lightning.pytorch.plugins.environments import SLURMEnvironment


def environments() -> list[SLURMEnvironment]:
    """Return, under SLURM, the plugin that gives Lightning ranks and nodes, without its requeueing."""
    return [SLURMEnvironment(auto_requeue=False)] if SLURMEnvironment.detect() else []


def requeue_at_signal() -> None:
    """Requeue this job at SIGUSR1; without SLURM do nothing."""
    if not SLURMEnvironment.detect() or threading.current_thread() is not threading.main_thread():
        return
    process = os.getpid()

    def requeue(*_: Any) -> None:
        # All tasks and their workers receive the signal; one of them requeues.
        if os.environ.get("SLURM_PROCID", "0") != "0" or os.getpid() != process:
            return
        array = os.environ.get("SLURM_ARRAY_JOB_ID")
        job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ["SLURM_JOB_ID"]
        print(f"SIGUSR1: requeueing job {job}; it will continue from its last checkpoint", file=sys.stderr, flush=True)
        try:
            subprocess.run(["scontrol", "requeue", job], check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"job {job} could not be requeued: {error}", file=sys.stderr, flush=True)

    signal.signal(signal.SIGUSR1, requeue)
