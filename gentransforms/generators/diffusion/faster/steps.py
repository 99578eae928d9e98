"""What each step of the sampling loop does: with guidance or without, through the whole network or a part of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gentransforms.errors import ConfigError

__all__ = ["Step", "check_guided", "check_interval", "plan_steps"]


@dataclass(frozen=True)
class Step:
    """One step of the loop.

    Attributes:
        guided: whether an unconditional row goes through the network beside each conditional one.
        full: whether all of the network runs, instead of its shallow part with the deep features of an earlier step.
    """

    guided: bool
    full: bool = True


def plan_steps(
    count: int, *, guided: bool, interval: tuple[float, float] | None = None, cache_interval: int = 1, first: int = 0
) -> list[Step]:
    """Return the steps from `first` to the last of a schedule.

    Step i of n is guided where low <= i / n < high. A step runs in full if it is the first, if `cache_interval` steps have
    passed since the last full one, or if guidance begins with it: the features of the unconditional rows are not there yet.

    Args:
        count: how many steps the whole schedule has.
        guided: whether there is guidance at all.
        interval: (low, high), where in the schedule there is guidance; everywhere by default.
        cache_interval: every how many steps the whole network runs.
        first: how many steps are left out, for images that start from less than full noise.

    Example:
        >>> [step.guided for step in plan_steps(4, guided=True, interval=(0.25, 0.75))]
        [False, True, True, False]
        >>> [step.full for step in plan_steps(5, guided=False, cache_interval=2)]
        [True, False, True, False, True]
    """
    low, high = interval or (0.0, 1.0)
    steps: list[Step] = []
    since = cache_interval
    for i in range(first, count):
        now = guided and low <= i / count < high
        full = since >= cache_interval or (now and not steps[-1].guided)
        since = 1 if full else since + 1
        steps.append(Step(now, full))
    return steps


def check_interval(value: Any) -> tuple[float, float] | None:
    """Return (low, high) of a guidance interval; None for the whole schedule.

    Raises:
        ConfigError: unless 0 <= low < high <= 1.

    Example:
        >>> check_interval([0.2, 0.8])
        (0.2, 0.8)
    """
    if value is None:
        return None
    numbers = isinstance(value, Sequence) and len(value) == 2 and all(type(v) in (int, float) for v in value)
    if not numbers or not 0 <= value[0] < value[1] <= 1:
        raise ConfigError(
            f"guidance_interval={value!r}: expected (low, high) with 0 <= low < high <= 1, fractions of the steps from the noisiest, 0, to "
            "the last, 1"
        )
    return None if tuple(value) == (0, 1) else (float(value[0]), float(value[1]))


def check_guided(interval: tuple[float, float], unguided: str | None, steps: Sequence[Step]) -> None:
    """Check that an interval has an effect.

    Args:
        interval: that of the guidance.
        unguided: why there is no guidance at all; None if there is.
        steps: the whole plan.

    Raises:
        ConfigError: if there is no guidance, or none of the steps is in the interval.
    """
    if unguided is not None:
        raise ConfigError(
            f"guidance_interval={interval!r}: there is no guidance ({unguided}): leave it out; where it was saved, give (0, 1)"
        )
    if not any(step.guided for step in steps):
        raise ConfigError(f"guidance_interval={interval!r}: none of {len(steps)} steps is in it: widen it, or give guidance_scale=1")
