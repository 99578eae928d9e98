"""Choose variants of a bank by their scores: a small expression, parsed and never evaluated as code.

    similarity >= 0.6 and not near_copy

Columns are compared with numbers, true, false or "text"; a column of true and false stands alone too. Comparisons combine
with ``and``, ``or``, ``not`` and brackets.
"""

from __future__ import annotations

import base64
import json
import operator
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gentransforms.bank.format.lookup import Lookup
from gentransforms.bank.scores import find_scored_rows, to_numpy
from gentransforms.errors import BankError, ConfigError
from gentransforms.paths import local_path

__all__ = ["Selection", "choose_rows", "evaluate_expression", "parse_comparison"]

_FORMAT, _FORMAT_VERSION = "gentransforms-selection", 1
_TOKEN = re.compile(r"""\s*(?:(?P<number>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)|(?P<text>"[^"]*"|'[^']*')"""
                    r"""|(?P<name>[A-Za-z_][\w./-]*)|(?P<operator><=|>=|==|!=|<|>)|(?P<bracket>[()]))""")  # fmt: skip
_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge, "==": operator.eq, "!=": operator.ne,
}  # fmt: skip
_WORDS = {"and", "or", "not", "true", "false"}
_HINT = 'expected comparisons such as "similarity >= 0.6 and not near_copy"'

Mask = npt.NDArray[np.bool_]


def evaluate_expression(expression: str, columns: Mapping[str, npt.NDArray[Any]]) -> Mask:
    """Return where an expression holds: (N,) bool.

    Args:
        expression: as described at the top of this file.
        columns: (N,) arrays of numbers, booleans or text by name. NaN and missing values satisfy no comparison but ``!=``.

    Raises:
        ConfigError: if it cannot be read, or names an unknown column, with the columns there are.

    Example:
        >>> import numpy as np
        >>> columns = {"similarity": np.array([0.5, 0.7, 0.9]), "near_copy": np.array([False, False, True])}
        >>> evaluate_expression("similarity >= 0.6 and not near_copy", columns).tolist()
        [False, True, False]
    """
    return _Parser(expression, columns).parse()


def parse_comparison(text: str) -> tuple[str, Callable[[float, float], bool], float]:
    """Return name, operator and number of a comparison such as ``"near_copies > 0.01"``.

    Raises:
        ConfigError: if it is none.

    Example:
        >>> name, compare, number = parse_comparison("near_copies > 0.01")
        >>> name, compare(0.5, number)
        ('near_copies', True)
    """
    tokens = list(_tokens(text))
    if [kind for kind, _ in tokens] != ["name", "operator", "number"]:
        raise ConfigError(f'{text!r}: expected NAME OPERATOR NUMBER, such as "near_copies > 0.01"')
    return tokens[0][1], _OPERATORS[tokens[1][1]], float(tokens[2][1])


@dataclass(frozen=True)
class Selection:
    """Which variants of one bank are used, as a small file.

    Attributes:
        bank: digest of the bank it belongs to.
        kept: (rows,) bool, in the order of the bank's rows.
        where: the expression that chose them; empty for a mask.
        rows: hash of the key and variant of each row, because a retry may add rows to the same bank, and take others away; empty if
            unknown.
    """

    bank: str
    kept: Mask
    where: str = ""
    rows: str = ""

    def save(self, path: str | Path) -> None:
        """Write it as JSON."""
        packed = base64.b64encode(zlib.compress(np.packbits(self.kept).tobytes())).decode()
        content = {
            "format": _FORMAT, "format_version": _FORMAT_VERSION, "bank": self.bank, "where": self.where,
            "rows": len(self.kept), "rows_hash": self.rows, "kept": int(self.kept.sum()), "mask": packed,
        }  # fmt: skip
        local_path(path).write_text(json.dumps(content, indent=2) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Selection:
        """Read a file that `save` wrote.

        Raises:
            BankError: if it cannot be read, or is none.
        """
        file = local_path(path)
        try:
            content = json.loads(file.read_text())
            if content.get("format") != _FORMAT or content["format_version"] != _FORMAT_VERSION:
                raise BankError(f"{path}: not a selection of this version: write one with `gentransforms bank select`")
            packed = np.frombuffer(zlib.decompress(base64.b64decode(content["mask"])), np.uint8)
            kept = np.unpackbits(packed, count=content["rows"]).astype(bool)
            if int(kept.sum()) != content["kept"]:
                raise ValueError("the mask does not have the number of variants that it says")
            return cls(content["bank"], kept, content["where"], str(content.get("rows_hash", "")))
        except OSError as error:
            raise BankError(f"{path}: cannot be read: {error.strerror or error}") from error
        except (ValueError, KeyError, TypeError, AttributeError, zlib.error) as error:
            raise BankError(f"{path}: damaged, or not a selection ({error}): write it again with `gentransforms bank select`") from error


def choose_rows(lookup: Lookup, scores: Any, where: str | None, bank: str) -> Mask:
    """Return which rows of a bank are chosen: (rows,) bool, also of those that an earlier selection left out.

    Args:
        lookup: of the bank.
        scores: an Arrow table with the columns ``key`` and ``variant``; or, without `where`, a mask with one entry for each
            image of the bank.
        where: the expression.
        bank: its name, for errors.

    Raises:
        ConfigError: if the expression cannot be read, or the mask has another length.
        BankError: if the scores are not those of this bank, or do not cover it.
    """
    before = np.ones(len(lookup.variants), dtype=bool) if lookup.kept is None else lookup.kept
    if where is None:
        mask = np.asarray(scores)
        if mask.dtype != bool or mask.shape != (int(before.sum()),):
            raise ConfigError(
                f"scores: {mask.dtype} of shape {mask.shape}: expected a mask of {int(before.sum()):,} booleans, one for each image of the "
                f"bank, or a table of scores and an expression; {_HINT}"
            )
        kept = before.copy()
        kept[before] = mask
        return kept
    rows = find_scored_rows(lookup, scores, bank)
    used = {text for kind, text in _tokens(where) if kind == "name"}
    empty = next((name for name in scores.column_names if name in used and scores[name].null_count == len(scores)), None)
    if empty is not None:
        raise ConfigError(f"{where!r}: the column {empty!r} is empty in these scores: `label` and `agrees` come from an audit with labels")
    kept = np.zeros(len(before), dtype=bool)
    kept[rows[evaluate_expression(where, {name: to_numpy(scores[name]) for name in scores.column_names})]] = True
    if not (kept & before).any():
        raise ConfigError(f"{where!r}: holds for none of the {int(before.sum()):,} images of {bank}: nothing would be left to train on")
    return kept & before


class _Parser:
    """Recursive descent; `or` binds weaker than `and`, that weaker than `not`."""

    def __init__(self, expression: str, columns: Mapping[str, npt.NDArray[Any]]) -> None:
        self.expression, self.columns = expression, columns
        self.tokens = [*_tokens(expression), ("end", "")]
        self.place = 0

    def parse(self) -> Mask:
        mask = self.parse_or()
        if self.tokens[self.place][0] != "end":
            raise self.error(f"unexpected {self.tokens[self.place][1]!r}")
        return mask

    def parse_or(self) -> Mask:
        mask = self.parse_and()
        while self.take("name", "or"):
            mask = mask | self.parse_and()
        return mask

    def parse_and(self) -> Mask:
        mask = self.parse_not()
        while self.take("name", "and"):
            mask = mask & self.parse_not()
        return mask

    def parse_not(self) -> Mask:
        if self.take("name", "not"):
            return ~self.parse_not()
        if self.take("bracket", "("):
            mask = self.parse_or()
            if not self.take("bracket", ")"):
                raise self.error("a bracket is not closed")
            return mask
        return self.parse_comparison()

    def parse_comparison(self) -> Mask:
        kind, name = self.tokens[self.place]
        if kind != "name" or name in _WORDS:
            raise self.error(f"unexpected {name!r}" if name else "it ends too early")
        if name not in self.columns:
            raise ConfigError(f"{self.expression!r}: no column {name!r}: expected one of {', '.join(self.columns)}")
        self.place += 1
        column = np.asarray(self.columns[name])
        if self.tokens[self.place][0] != "operator":
            if column.dtype != bool:
                raise self.error(f"column {name!r} is not true or false: compare it, as in {name} >= 0.5")
            return column.copy()
        compare = _OPERATORS[self.tokens[self.place][1]]
        self.place += 1
        value = self.value(name, column)
        known = (
            np.array([entry is not None for entry in column], dtype=bool) if column.dtype == object else np.ones(len(column), dtype=bool)
        )
        found: Mask = np.full(len(column), compare is operator.ne)
        with np.errstate(invalid="ignore"):
            found[known] = compare(column[known], value)
        return found

    def value(self, name: str, column: npt.NDArray[Any]) -> Any:
        kind, text = self.tokens[self.place]
        self.place += 1
        is_text = column.dtype.kind in "OUS"
        if kind == "number" and not is_text and column.dtype != bool:
            return float(text)
        if kind == "name" and text in ("true", "false") and column.dtype == bool:
            return text == "true"
        if kind == "text" and is_text:
            return text[1:-1]
        wanted = "true or false" if column.dtype == bool else 'text such as "cat"' if is_text else "a number"
        raise self.error(f"column {name!r} is compared with {text or 'nothing'!r}: expected {wanted}")

    def take(self, kind: str, text: str) -> bool:
        if self.tokens[self.place] != (kind, text):
            return False
        self.place += 1
        return True

    def error(self, reason: str) -> ConfigError:
        return ConfigError(f"{self.expression!r}: {reason}; {_HINT}; columns: {', '.join(self.columns)}")


def _tokens(text: str) -> Iterator[tuple[str, str]]:
    place = 0
    stripped = text.rstrip()
    while place < len(stripped):
        match = _TOKEN.match(stripped, place)
        if match is None or match.lastgroup is None:
            raise ConfigError(f"{text!r}: cannot be read from {stripped[place:].strip()!r} on; {_HINT}")
        yield match.lastgroup, match[match.lastgroup]
        place = match.end()
