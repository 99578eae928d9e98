"""Scores of a bank's variants: a table with the columns ``key`` and ``variant``, paired with the bank's rows, and drawn by."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gentransforms.bank.format.lookup import Lookup, Numbers
from gentransforms.bank.format.manifest import hash_manifest
from gentransforms.errors import BankError, ConfigError
from gentransforms.paths import local_path
from gentransforms.sources.arrow import arrow

__all__ = ["SCORES_FILE", "Draws", "find_scored_rows", "mark_scores", "read_bank_scores", "read_scores", "to_numpy", "weigh_rows"]

Floats = npt.NDArray[np.float64]

SCORES_FILE = "scores.parquet"  # in the folder of an audit
# Columns of an audit that are small where a variant is good, or large where it repeats another source.
_NO_WEIGHTS = ("place", "rank", "distance", "nearest_similarity")
_BANK = b"gentransforms.bank"  # in the metadata of a table of scores: the hash of the manifest of the bank that was audited


def read_scores(scores: Any) -> Any:
    """Return the Arrow table that `scores` is, or the path of.

    Raises:
        ConfigError: if it is neither.
        BankError: if the file cannot be read.
    """
    pa = arrow()
    if isinstance(scores, pa.Table):
        return scores
    if not isinstance(scores, str | Path):
        raise ConfigError(f"scores={scores!r}: expected an Arrow table, the path of a Parquet file, or a mask without an expression")
    import pyarrow.parquet as pq

    path = local_path(scores, "scores")
    if path.is_dir():  # of an audit
        path = path / SCORES_FILE
    if not path.is_file():
        raise BankError(f"{path}: no such file: expected scores.parquet, which `gentransforms bank audit` writes")
    try:
        return pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise BankError(
            f"{path}: cannot be read as scores ({' '.join(str(error).split())}): expected scores.parquet of an audit"
        ) from error


def mark_scores(table: Any, digest: str) -> Any:
    """Return a table of scores that names the bank it is about, by the hash of its manifest; Parquet files keep it."""
    return table.replace_schema_metadata({**(table.schema.metadata or {}), _BANK: digest.encode()})


def read_bank_scores(scores: Any, manifest: Mapping[str, Any], bank: str) -> Any:
    """Return the Arrow table that `scores` is, or the path of, unless it names another bank.

    Tables that name none are the user's own, or have been through a library that drops the metadata of a table.

    Raises:
        ConfigError: as `read_scores`.
        BankError: as `read_scores`; if the scores are those of another bank, or of this one before it was extended.
    """
    table = read_scores(scores)
    named = (table.schema.metadata or {}).get(_BANK, b"").decode()
    if named in ("", hash_manifest(manifest)):
        return table
    if named in [entry["digest"] for entry in manifest.get("history") or []]:
        raise BankError(f"{bank}: the scores are from before the bank was extended: audit it again")
    raise BankError(
        f"{bank}: the scores are those of another bank (with {len(table):,} images): audit this one, or pass its own scores.parquet"
    )


def find_scored_rows(lookup: Lookup, table: Any, bank: str) -> Numbers:
    """Return for each row of a table of scores the number of the bank's row that it is about.

    Args:
        lookup: of the bank; all its rows in use must have a score, those that a selection left out may have one.
        table: with the columns ``key`` and ``variant``.
        bank: its name, for errors.

    Raises:
        ConfigError: if a column is not there.
        BankError: if the scores are not those of this bank, do not cover it, or name a variant twice.
    """
    for name in ("key", "variant"):
        if name not in table.column_names:
            raise ConfigError(f"scores have no column {name!r}, but {', '.join(table.column_names)}: expected the scores of an audit")
    used = np.ones(len(lookup.variants), dtype=bool) if lookup.kept is None else lookup.kept
    whole = lookup if lookup.kept is None else dataclasses.replace(lookup, kept=None)
    keys, variants = table["key"].to_pylist(), table["variant"].to_pylist()
    rows = whole.find_rows(keys, variants)
    if (rows < 0).any():
        i = int(np.flatnonzero(rows < 0)[0])
        raise BankError(
            f"{bank}: has no variant {variants[i]} of key {keys[i]!r}, of which there is a score: these are another bank's scores"
        )
    times = np.bincount(rows, minlength=len(used))
    if times.max(initial=0) > 1:
        i = int(np.flatnonzero(times[rows] > 1)[0])
        raise BankError(f"{bank}: variant {variants[i]} of key {keys[i]!r} has more than one score: expected one row for each variant")
    if not times[used].all():
        raise BankError(
            f"{bank}: scores cover {int(times[used].sum()):,} of its {int(used.sum()):,} images: audit it again, without a limit"
        )
    return rows


def weigh_rows(lookup: Lookup, table: Any, column: str, bank: str) -> npt.NDArray[np.float64]:
    """Return the score of each row of a bank, as weights of 0 or more; 0 for rows that a selection left out.

    Args:
        lookup: of the bank.
        table: the scores, an Arrow table with the columns ``key`` and ``variant``.
        column: of it, numbers.
        bank: its name, for errors.

    Raises:
        ConfigError: if there is no such column, or it is one of which less is better; if a score is missing, negative, or not
            finite; or if all are 0.
        BankError: as `find_scored_rows`.
    """
    pa = arrow()
    rows = find_scored_rows(lookup, table, bank)
    if column not in table.column_names:
        raise ConfigError(f"weights={column!r}: the scores have no such column, but {', '.join(table.column_names)}")
    if column in _NO_WEIGHTS:
        raise ConfigError(
            f"weights={column!r}: the variants that are drawn most would be those with the largest {column}, not the best: expected "
            "'realism', 'similarity', or a column of yours of which more is better"
        )
    kind = table[column].type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        raise ConfigError(
            f"weights={column!r}: the column is {kind}, expected numbers; to leave variants out use Bank.select(scores, expression)"
        )
    values = np.zeros(len(lookup.variants))
    values[rows] = to_numpy(table[column].cast(pa.float64(), safe=False).fill_null(float("nan")))
    if lookup.kept is not None:
        values[~lookup.kept] = 0
    wrong = np.flatnonzero(~((values >= 0) & (values < 1e300)))
    if len(wrong):
        row = int(wrong[0])
        place = int(lookup.locate(wrong[:1])[1][0])
        raise ConfigError(
            f"weights={column!r}: the score of variant {lookup.variants[row]} of key {lookup.key(place)!r} is {values[row]:g}, and that of "
            f"{len(wrong) - 1:,} more is of the kind: expected finite numbers of 0 or more; leave these out first, as in "
            f'Bank.select(scores, "{column} >= 0 and {column} < 1e9"), or weigh by another column'
        )
    if not values.any():
        raise ConfigError(f"weights={column!r}: all scores of {bank} are 0: nothing could be drawn")
    return values


class Draws:
    """The variants of each source that can be drawn, with their weights.

    Args:
        lookup: of a bank; rows that are not in use are never drawn.
        weights: (rows,) finite numbers of 0 or more; rows of weight 0 are never drawn. None: all are equal.
    """

    def __init__(self, lookup: Lookup, weights: Floats | None = None) -> None:
        self._lookup = lookup
        self._rows: Numbers | None = None  # None: all of them
        self._starts = lookup.starts
        self._ends: Floats | None = None
        self._totals: Floats = np.diff(lookup.starts).astype(np.float64)
        if lookup.kept is None and weights is None:
            return
        used = np.ones(len(lookup.variants), dtype=bool) if lookup.kept is None else lookup.kept
        self._rows = np.flatnonzero(used if weights is None else used & (weights > 0))
        self._starts = np.searchsorted(self._rows, lookup.starts)
        counts = np.diff(self._starts)
        self._totals = counts.astype(np.float64)
        if weights is not None:
            own = weights[self._rows]
            owners = np.repeat(np.arange(len(counts)), counts)
            self._totals = np.bincount(owners, own, minlength=len(counts)).astype(np.float64)
            # Of each source the weights add up to 1: small weights of one would be lost beside large ones of another.
            scaled = own / self._totals[owners]
            self._ends = np.concatenate([[0.0], np.cumsum(scaled)])

    def unreachable(self) -> list[str | int]:
        """Return the keys of which nothing can be drawn although they have variants in use."""
        return [self._lookup.key(place) for place in np.flatnonzero((np.diff(self._starts) == 0) & self._lookup.used).tolist()]

    def find(self, keys: Sequence[Any]) -> tuple[Numbers, Floats]:
        """Return the place of each key, and the sum of its variants' weights, or their number; 0 where nothing can be drawn."""
        places = self._lookup.find_keys(keys)
        if not len(self._totals):
            return places, np.zeros(len(places))
        return places, np.where(places >= 0, self._totals[places], 0.0)

    def pick(self, places: Numbers, uniforms: Floats) -> npt.NDArray[np.int32]:
        """Return a variant of each place.

        Args:
            places: of keys of which something can be drawn.
            uniforms: a number in [0, 1) for each.
        """
        first, stop = self._starts[places], self._starts[places + 1]
        if self._ends is None:
            picked = first + (uniforms * (stop - first)).astype(np.int64)
        else:
            below, above = self._ends[first], self._ends[stop]
            picked = np.searchsorted(self._ends, below + uniforms * (above - below), side="right") - 1
        picked = np.clip(picked, first, stop - 1)  # of numbers that were rounded up to the end
        return self._lookup.variants[picked if self._rows is None else self._rows[picked]]


def to_numpy(column: Any) -> npt.NDArray[Any]:
    """Return a column of a table; missing numbers as NaN, missing booleans as false."""
    pa = arrow()
    if pa.types.is_boolean(column.type):
        column = column.fill_null(False)
    values: npt.NDArray[Any] = column.to_numpy()
    return values.astype(object) if pa.types.is_string(column.type) else values
