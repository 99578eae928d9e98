"""Which of several runs that share a device can all end in time, and which give way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

YOUNG = 60.0  # seconds in which a run that has just begun may have made no step
APART = 15.0  # seconds that two looks at a run are apart, at least


@dataclass(frozen=True)
class Look:
    """How far a run was at a time: steps done, of how many."""

    at: float
    step: float
    total: float


@dataclass
class Forecast:
    """Steps per second of runs, between their first look since the last change and their newest."""

    looks: dict[str, list[Look]] = field(default_factory=dict)

    def add(self, name: str, look: Look) -> None:
        """Note how far a run is."""
        own = self.looks.setdefault(name, [])
        if own and look.at < own[0].at + APART:
            return
        own[1:] = [look]

    def forget(self) -> None:
        """Begin anew from the newest looks: when a run has begun or ended, the others become slower or faster."""
        for own in self.looks.values():
            own[:] = own[-1:]

    def rate(self, name: str) -> float | None:
        """Return steps per second; None before the second look."""
        own = self.looks.get(name, [])
        return (own[1].step - own[0].step) / (own[1].at - own[0].at) if len(own) == 2 else None

    def remaining(self, name: str) -> float:
        """Return the steps that are left of a run that has been looked at."""
        newest = self.looks[name][-1]
        return newest.total - newest.step


def who_gives_way(order: Sequence[str], ages: dict[str, float], forecast: Forecast, seconds: float) -> list[str]:
    """Return the runs to end, the last in `order` first, so that the others end within so many seconds; at least one stays.

    The runs share a device that makes so many steps per second, whoever's they are, so that those of a run that gives way go to the
    others. Nothing is decided before every run has been looked at twice; but one that has made no step long after it began (`ages`, in
    seconds) is not waited for.

    Example:
        >>> forecast = Forecast()
        >>> for at, step in ((0, 0), (20, 200)):
        ...     for name in ("a", "b"):
        ...         forecast.add(name, Look(at, step, 1000))
        >>> who_gives_way(["a", "b"], {"a": 20, "b": 20}, forecast, 60)  # 1,600 steps at 20 a second take 80 s
        ['b']
    """
    rates = {name: forecast.rate(name) for name in order}
    if any(rate is None and (ages[name] < YOUNG or name in forecast.looks) for name, rate in rates.items()):
        return []
    speed = sum(rate for rate in rates.values() if rate is not None)
    known = [name for name in order if rates[name] is not None]
    left = sum(forecast.remaining(name) for name in known)
    ending: list[str] = []
    for name in reversed(known):
        if left <= speed * max(seconds, 0.0) or len(ending) == len(known) - 1:
            break
        ending.append(name)
        left -= forecast.remaining(name)
    return ending
