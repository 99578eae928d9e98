"""Progress display of a bank run (a bar on a terminal, plain lines elsewhere), and graceful shutdown on Ctrl-C."""

from __future__ import annotations

import contextlib
import itertools
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any

from gentransforms.bank.generate.job import UnitReport
from gentransforms.bank.generate.plan import Plan

__all__ = ["Progress", "duration", "stoppable"]


class Progress:
    """A context manager that shows images, failures and time on stderr.

    Args:
        plan: the plan of the run.
        enabled: False for no output.
        every: seconds between plain lines, if stderr is not a terminal.
    """

    def __init__(self, plan: Plan, enabled: bool = True, every: float = 30.0) -> None:
        self.plan, self.enabled, self.every = plan, enabled, every
        self.images = self.units = self.failed = self.rejected = 0
        self.begun = self._printed = time.monotonic()
        self._bar: Any = None

    def __enter__(self) -> Progress:
        self.begun = self._printed = time.monotonic()
        if self.enabled and sys.stderr.isatty():
            self._bar = _bar()
            self._bar.start()
            self._task = self._bar.add_task("", total=self.plan.images_left, note="", rate="")
        return self

    def __exit__(self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()  # restores the cursor, also after Ctrl-C
            self._bar = None

    @property
    def rate(self) -> float:
        """Images per second so far."""
        return self.images / max(time.monotonic() - self.begun, 1e-9)

    def on_images(self, count: int) -> None:
        """Count images that have been generated."""
        self.images += count
        self._show()

    def on_unit(self, report: UnitReport) -> None:
        """Count a unit that has been written."""
        self.units += 1
        self.failed += len(report.failed)
        self.rejected += len(report.rejected)
        self._show()

    def say(self, text: str) -> None:
        """Print a line above the bar; once stderr is closed, print nothing more."""
        try:
            if self._bar is not None:
                self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
            elif self.enabled:
                print(text, file=sys.stderr, flush=True)
        except (OSError, ValueError):  # a broken pipe, a closed file
            self.enabled, self._bar = False, None

    def _show(self) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=self.images, note=self._note(), rate=f"{self.rate:.1f} images/s")
        elif self.enabled and time.monotonic() - self._printed >= self.every:
            self._printed = time.monotonic()
            left = max(self.plan.images_left - self.images, 0) / max(self.rate, 1e-9)
            self.say(f"{self.images}/{self.plan.images_left} images, {self.rate:.1f} images/s, {duration(left)} left{self._note()}")

    def _note(self) -> str:
        counts = {"failed": self.failed, "rejected": self.rejected}
        return "".join(f", {count} {name}" for name, count in counts.items() if count)


@contextlib.contextmanager
def stoppable(say: Callable[[str], None]) -> Iterator[Callable[[], bool]]:
    """Yield a function that returns whether Ctrl-C was pressed; a second Ctrl-C raises KeyboardInterrupt.

    Does nothing outside the main thread, or if Ctrl-C has another handler.

    Args:
        say: called with a message for the user at the first Ctrl-C.

    Example:
        >>> with stoppable(print) as stopped:
        ...     stopped()
        False
    """
    asked = threading.Event()
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before is not signal.default_int_handler:
        yield asked.is_set
        return

    def ask(_number: int, _frame: FrameType | None) -> None:
        asked.set()
        signal.signal(signal.SIGINT, before)
        with contextlib.suppress(Exception):  # the run ends even if the message cannot be printed
            say("stopping after the current unit; press Ctrl-C again to stop at once; the same call resumes either way")

    signal.signal(signal.SIGINT, ask)
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGINT, before)


def duration(seconds: float) -> str:
    """Format a length of time for people.

    Example:
        >>> duration(75), duration(7260), duration(400_000)
        ('1 min 15 s', '2 h 1 min', '4 d 15 h')
    """
    whole = round(seconds)
    units = (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1))
    for (name, size), (small_name, small) in itertools.pairwise(units):
        if whole >= size:
            return f"{whole // size} {name} {whole % size // small} {small_name}"
    return f"{whole} s"


def _bar() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("generating"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"), TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )  # fmt: skip
    return Bar(*columns, console=Console(stderr=True))
