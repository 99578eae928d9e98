"""Read ranges of rows of Parquet files forwards, in batches: memory does not grow with the files or their row groups."""

from __future__ import annotations

import bisect
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from gentransforms.errors import SourceError
from gentransforms.sources.decode import check_folder, is_of_the_machine
from gentransforms.wording import one_line

__all__ = ["RowReader"]

_BATCH_BYTES = 1 << 22
_KEPT_BYTES = 1 << 26  # recent batches that are kept for threads that read neighbouring ranges out of step
_OPEN = 4  # row groups kept open, the most recently used


class RowReader:
    """Read ranges of rows from several Parquet files; thread-safe.

    A row group is read from its start. A range that lies before the current position and is no longer kept makes the reader
    start its row group again.

    Args:
        files: paths, each with the row counts of its row groups.
        columns: names of the columns to read.

    Example:
        >>> import tempfile, pyarrow, pyarrow.parquet
        >>> path = Path(tempfile.mkdtemp()) / "a.parquet"
        >>> pyarrow.parquet.write_table(pyarrow.table({"label": [5, 6, 7]}), path)
        >>> list(RowReader([(path, [3])], ["label"]).read_range(1, 3))
        [{'label': 6}, {'label': 7}]
    """

    def __init__(self, files: Sequence[tuple[Path, Sequence[int]]], columns: Sequence[str]) -> None:
        self.files, self.columns = files, list(columns)
        self._groups = [(path, group) for path, counts in files for group in range(len(counts))]
        self._starts = [0, *accumulate(count for _, counts in files for count in counts)]
        self._lock = threading.Lock()
        self._kept: deque[tuple[int, Any]] = deque()
        self._open_groups: dict[int, tuple[Iterator[Any], int]] = {}  # the next batches, and the number of their first row

    def __getstate__(self) -> dict[str, Any]:
        return {"files": self.files, "columns": self.columns}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def read_range(self, start: int, stop: int) -> Iterator[dict[str, Any] | SourceError]:
        """Yield each row as a dict of its columns, or an error if the file is damaged there.

        Raises:
            OSError: if the folder of the files, or their disk, is gone.
        """
        while start < stop:
            group = bisect.bisect_right(self._starts, start) - 1
            try:
                with self._lock:
                    first, batch = self._find(group, start)
            except Exception as error:  # of Arrow, whose kinds are many
                path, number = self._groups[group]
                if is_of_the_machine(error):
                    raise
                check_folder(path.parent, error)
                end = min(stop, self._starts[group + 1])
                failed = SourceError(f"row group {number} of {path.name} cannot be read: {one_line(error)}")
                failed.__cause__ = error
                yield from [failed] * (end - start)
                start = end
                continue
            end = min(stop, first + batch.num_rows)
            for row in range(start - first, end - first):
                yield batch.slice(row, 1).to_pylist()[0]
            start = end

    def _find(self, group: int, row: int) -> tuple[int, Any]:
        """Return the batch that holds a row, and the number of its first row."""
        for first, batch in self._kept:
            if first <= row < first + batch.num_rows:
                return first, batch
        batches, place = self._open_groups.pop(group, (None, 0))
        if batches is None or row < place:
            batches, place = self._open(group), self._starts[group]
        while True:
            batch = next(batches, None)
            if batch is None:
                raise EOFError("it holds fewer rows than it says")
            first, place = place, place + batch.num_rows
            self._kept.append((first, batch))  # also a skipped one: another thread may be about to request its rows
            while len(self._kept) > 1 and sum(kept.nbytes for _, kept in self._kept) > _KEPT_BYTES:
                self._kept.popleft()
            if row < place:
                break
        self._open_groups[group] = batches, place
        if len(self._open_groups) > _OPEN:
            self._open_groups.pop(next(iter(self._open_groups)))
        return first, batch

    def _open(self, group: int) -> Iterator[Any]:
        import pyarrow.parquet

        path, number = self._groups[group]
        # Without a small buffer and pre_buffer=False, a whole row group would be read first.
        with pyarrow.parquet.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as file:
            facts = file.metadata.row_group(number)
            rows = max(1, _BATCH_BYTES * facts.num_rows // max(1, facts.total_byte_size))
            # Arrow's own threads would not survive a fork.
            yield from file.iter_batches(batch_size=min(rows, 1 << 14), row_groups=[number], columns=self.columns, use_threads=False)
