"""Rows of Parquet files by their number, a few at a time: memory does not grow with the files or their row groups."""

from __future__ import annotations

import bisect
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from gentransforms.errors import SourceError
from gentransforms.sources.decode import check_folder, is_of_the_machine, one_line

__all__ = ["RowReader"]

_BATCH_BYTES = 1 << 22
_KEPT_BYTES, _KEPT_ROWS = 1 << 27, 64  # rows kept: as many as fit in the first, but no fewer than the second
_ROW_BYTES = 512  # what a kept row costs beside its values
_CURSORS = 4


@dataclass
class _Cursor:
    """A row group that is being read from its start on."""

    file: Any
    batches: Iterator[Any]
    next: int


class RowReader:
    """Reads rows by number from several Parquet files, safely among threads; rows in order are read once.

    A row group is read from its start on, in batches of about 4 MB; a row behind the place reached, and no longer kept,
    begins the row group again. Up to four row groups are open at a time. What is held beside the rows kept is a page of the
    file, which is what its writer made it: with pyarrow's defaults at least 1,024 rows.

    Args:
        files: with the row counts of their row groups.
        columns: to read.

    Example:
        >>> import tempfile, pyarrow, pyarrow.parquet
        >>> path = Path(tempfile.mkdtemp()) / "a.parquet"
        >>> pyarrow.parquet.write_table(pyarrow.table({"label": [5, 6, 7]}), path)
        >>> RowReader([(path, [3])], ["label"]).read(2)
        {'label': 7}
    """

    def __init__(self, files: Sequence[tuple[Path, Sequence[int]]], columns: Sequence[str]) -> None:
        self.files, self.columns = files, list(columns)
        self._groups = [(path, group) for path, counts in files for group in range(len(counts))]
        self._starts = [0, *accumulate(count for _, counts in files for count in counts)]
        self._empty()

    def _empty(self) -> None:
        self._lock = threading.Lock()
        self._cursors: OrderedDict[int, _Cursor] = OrderedDict()
        self._kept: OrderedDict[int, tuple[dict[str, Any], int]] = OrderedDict()
        self._bytes = 0

    def __getstate__(self) -> dict[str, Any]:
        return {"files": self.files, "columns": self.columns}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def read(self, number: int) -> dict[str, Any]:
        """Return the values of a row's columns.

        Raises:
            SourceError: if the file is damaged there, or gone.
            OSError: if the folder of the files is gone too.
        """
        with self._lock:
            kept = self._kept.get(number)
            if kept is not None:
                return kept[0]
            place = bisect.bisect_right(self._starts, number) - 1
            try:
                return self._advance(place, number)
            except Exception as error:  # of Arrow, whose kinds are many
                self._close(place)
                if is_of_the_machine(error):
                    raise
                path, group = self._groups[place]
                check_folder(path.parent, error)
                raise SourceError(f"row group {group} of {path.name} cannot be read: {one_line(error)}") from error

    def _advance(self, place: int, number: int) -> dict[str, Any]:
        cursor = self._cursors.get(place)
        if cursor is None or cursor.next > number:
            self._close(place)
            cursor = self._cursors[place] = self._open(place)
            if len(self._cursors) > _CURSORS:
                self._close(next(iter(self._cursors)))
        self._cursors.move_to_end(place)
        while True:
            batch = next(cursor.batches, None)
            if batch is None:
                raise EOFError("it holds fewer rows than it says")
            first, rows = cursor.next, batch.to_pylist()
            cursor.next += len(rows)
            self._keep(first, rows)  # also of a batch passed over: another thread may be about to ask for its rows
            if cursor.next > number:
                found: dict[str, Any] = rows[number - first]
                return found

    def _keep(self, first: int, rows: list[dict[str, Any]]) -> None:
        for number, row in enumerate(rows, start=first):
            size = _ROW_BYTES + sum(map(_size, row.values()))
            self._bytes += size - self._kept.pop(number, ({}, 0))[1]
            self._kept[number] = (row, size)
        while self._bytes > _KEPT_BYTES and len(self._kept) > _KEPT_ROWS:
            self._bytes -= self._kept.popitem(last=False)[1][1]

    def _open(self, place: int) -> _Cursor:
        import pyarrow.parquet

        path, group = self._groups[place]
        # With neither a small buffer nor pre_buffer=False a whole row group would be read first.
        file = pyarrow.parquet.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False)
        facts = file.metadata.row_group(group)
        rows = max(1, _BATCH_BYTES * facts.num_rows // max(1, facts.total_byte_size))
        # Arrow's own threads would not survive a fork.
        batches = file.iter_batches(batch_size=min(rows, 1 << 14), row_groups=[group], columns=self.columns, use_threads=False)
        return _Cursor(file, batches, self._starts[place])

    def _close(self, place: int) -> None:
        cursor = self._cursors.pop(place, None)
        if cursor is not None:
            cursor.file.close()


def _size(value: Any) -> int:
    if isinstance(value, dict):
        return sum(map(_size, value.values()))
    return len(value) if isinstance(value, bytes | str) else 8
