"""Show progress of an audit."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

__all__ = ["show_progress"]


@contextlib.contextmanager
def show_progress(wanted: bool) -> Iterator[Callable[[int, int], None] | None]:
    """Yield a function that takes the sources done and their number; None where nothing is shown."""
    if not wanted or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("sources"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("encoding", total=None)
        yield lambda done, total: progress.update(
            task, completed=done, total=total, description="encoding" if done < total else "measuring"
        )
