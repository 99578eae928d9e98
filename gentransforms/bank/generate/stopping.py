"""Ctrl-C during a long run: the first asks for an orderly end, the second is an ordinary one."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

__all__ = ["stoppable"]


@contextlib.contextmanager
def stoppable(say: Callable[[str], None]) -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether Ctrl-C was pressed; a second one raises KeyboardInterrupt.

    Does nothing outside the main thread, or where Ctrl-C is handled already.

    Args:
        say: called with a line for the user at the first Ctrl-C.

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
        with contextlib.suppress(Exception):  # whatever becomes of the line, the run ends as asked
            say("stopping after the unit in flight; Ctrl-C again stops at once, and the same call resumes either way")

    signal.signal(signal.SIGINT, ask)
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGINT, before)
