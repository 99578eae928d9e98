"""How far a stage has come: by its steps, or by its seconds where these pass faster."""

from __future__ import annotations

import time


class Pace:
    """The position of a stage in its schedule, in steps.

    Without `seconds` it is the number of steps, and a run can be repeated exactly. With them, a stage whose steps take too long
    goes through its schedule faster, warm-up and decay included, and ends in time with fewer steps.

    Args:
        steps: of the whole stage.
        seconds: that the stage may take; None for as many as it needs.
        before: seconds that were spent before the run was resumed.
    """

    def __init__(self, steps: int, seconds: float | None = None, before: float = 0.0) -> None:
        self.steps, self.limit, self.before, self.began = steps, seconds, before, time.perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds so far."""
        return self.before + time.perf_counter() - self.began

    def position(self, step: int) -> float:
        """Return the position after so many steps, from 0 to `steps` and beyond."""
        return step if self.limit is None else max(step, self.steps * self.seconds / self.limit)
