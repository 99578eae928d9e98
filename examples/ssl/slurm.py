"""Under SLURM: a job that is told of its end, by ``#SBATCH --requeue --signal=SIGUSR1@90``, is queued again.

Lightning's own handler saves wherever the training stands, in the middle of a step, too, which such a checkpoint then leaves
out, and picks up whatever checkpoint of that kind it finds. Here the job goes on from its last checkpoint, exactly, and repeats
the steps since.
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
    """Return, under SLURM, what gives Lightning ranks and nodes and keeps it from requeueing."""
    return [SLURMEnvironment(auto_requeue=False)] if SLURMEnvironment.detect() else []


def requeue_at_signal() -> None:
    """Have the scheduler queue this job again at SIGUSR1; elsewhere do nothing."""
    if not SLURMEnvironment.detect() or threading.current_thread() is not threading.main_thread():
        return
    process = os.getpid()

    def requeue(*_: Any) -> None:
        # Of all tasks and their workers, which get the signal as well, one asks.
        if os.environ.get("SLURM_PROCID", "0") != "0" or os.getpid() != process:
            return
        array = os.environ.get("SLURM_ARRAY_JOB_ID")
        job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ["SLURM_JOB_ID"]
        print(f"SIGUSR1: queueing job {job} again; it will go on from its last checkpoint", file=sys.stderr, flush=True)
        try:
            subprocess.run(["scontrol", "requeue", job], check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"job {job} could not be queued again: {error}", file=sys.stderr, flush=True)

    signal.signal(signal.SIGUSR1, requeue)
