"""An actor of a Ray cluster that generates units.

This module imports no torch: whatever kills the worker, importing torch or loading the generator included, does so once a unit has begun,
so that it counts. Ray itself restarts actors without limit.
"""

from __future__ import annotations

import base64
import contextlib
import os
import pickle
from typing import TYPE_CHECKING, Any

from gentransforms.bank.generate.board import MAKE, Span

if TYPE_CHECKING:
    from gentransforms.bank.generate.guard import Guard
    from gentransforms.bank.generate.job import Job

__all__ = ["FAILED", "UnitMaker", "decode"]

FAILED = "failed"


class UnitMaker:
    """Generates the units of batches, and asks a `Board` before each.

    Args:
        handle: a list of one reference to the job in Ray's object store.
        directory: working directory to which relative paths refer.
        workers: as for `make_units`.
        board: the actor that holds the board of the run.
    """

    def __init__(self, handle: list[Any], directory: str, workers: int | None, board: Any) -> None:
        with contextlib.suppress(OSError):  # a node without this directory needs absolute paths
            os.chdir(directory)
        self.handle, self.workers, self.board = handle, workers, board
        self.loaded: tuple[Job, Guard] | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        """Generate the units of a batch; return an answer about each, encoded: its kind, its place, and a report or an error."""
        places = [(int(start), int(stop)) for start, stop in zip(batch["start"], batch["stop"], strict=True)]
        return {"answer": [base64.b64encode(pickle.dumps(self._make(place))).decode() for place in places]}

    def _make(self, place: Span) -> tuple[str, Span, Any]:
        """Return the answer `MAKE` with a report, `FAILED` with the name and text of an error of this library, or what the board says."""
        import ray

        verdict, proved = ray.get(self.board.begin.remote(place, ray.get_runtime_context().get_node_id()))
        if verdict != MAKE:
            return verdict, place, None
        from gentransforms import errors
        from gentransforms.bank.format.unit import Unit
        from gentransforms.bank.generate.pipeline import make_units

        passed = False
        try:
            job, guard = self.loaded = self.loaded or self._load()
            guard.passed = guard.passed or proved
            (report,) = make_units(job, [Unit(*place)], workers=self.workers, guard=guard)
            passed = guard.passed
        except errors.GentransformsError as error:  # Ray would wrap it in an error of its own
            known = next(kind.__name__ for kind in type(error).__mro__ if hasattr(errors, kind.__name__))
            return FAILED, place, (known, str(error))
        finally:
            ray.get(self.board.end.remote(place, passed))
        return MAKE, place, report

    def _load(self) -> tuple[Job, Guard]:
        """Return the job, with its generator on the actor's device, and a guard for all units of this actor."""
        import ray

        from gentransforms.bank.generate.guard import Guard

        job: Job = ray.get(self.handle[0])
        job.generator.to(job.device)
        return job, Guard(job)


def decode(answer: str) -> tuple[str, Span, Any]:
    """Decode an answer of `UnitMaker`."""
    kind, place, content = pickle.loads(base64.b64decode(answer))
    return kind, place, content
