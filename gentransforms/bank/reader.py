"""`Bank`: read variants by key and variant number."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gentransforms.bank.absence import explain_absence
from gentransforms.bank.format.damage import Damage, advising
from gentransforms.bank.format.images import Images, decode_rgb
from gentransforms.bank.format.lookup import Numbers
from gentransforms.bank.format.manifest import MANIFEST, Facts, hash_manifest, read_manifest
from gentransforms.bank.format.unit import unit_schema
from gentransforms.bank.opening import Opened, open_files
from gentransforms.bank.scores import Draws, read_bank_scores, weigh_rows
from gentransforms.bank.selection import Selection, choose_rows
from gentransforms.bank.verify.checker import BankReport, verify_bank
from gentransforms.errors import BankError, ConfigError, MissingKeyError
from gentransforms.sources.arrow import arrow
from gentransforms.sources.keys import as_keys

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Bank"]


class Bank:
    """A directory of variants generated in advance, open for reading. Use `Bank.open`.

    A bank does not change while it is open: threads and forked processes can share it. Sent to another process, it is opened
    again there.

    Attributes:
        path: directory of the bank; for a bank on the Hub, the folder in the cache that holds its files.
        manifest: contents of ``bank.json``.
        failed: sources that could not be read and have no images: dicts of ``key`` and ``reason``.
        rejected: variants for which every attempt was rejected, or that could not be tried (``attempts`` is 0): dicts of ``key``,
            ``variant``, ``attempts`` and ``reason``.
        missing_units: number of units that are missing in an unfinished bank.
        selection: which variants are used; None for all.
        scores: the table of scores, or its path, with which `select` chose them; None if there is none.

    Example:
        >>> import tempfile, torch
        >>> from gentransforms.bank.generate.run import generate_bank
        >>> from gentransforms.testing import FakeGenerator
        >>> class Photos:
        ...     def __len__(self): return 4
        ...     def __getitem__(self, i): return torch.full((3, 16, 16), 50 * i, dtype=torch.uint8)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = generate_bank(Photos(), folder, FakeGenerator(), variants=2)
        ...     bank = Bank.open(folder)
        ...     images = bank.read([3, 0], [1, 1])
        >>> len(bank), bank.keys, images.shape
        (8, [0, 1, 2, 3], torch.Size([2, 3, 16, 16]))
    """

    def __init__(self, opened: Opened) -> None:
        self.path, self.manifest = opened.path, opened.manifest
        self._facts = Facts.read(opened.manifest, str(opened.path / MANIFEST))
        self._lookup = opened.index.lookup
        self._images = Images(self._lookup, unit_schema(self._facts.key_type), opened.find_file)
        self.failed, self.rejected = opened.index.failed, opened.index.rejected
        self.missing_units, self._advice = opened.missing_units, opened.advice
        self.selection: Selection | None = None
        self.scores: Any = None
        self._reopen: tuple[Callable[..., Bank], tuple[Any, ...]] = (_open_again, opened.reopen)

    @classmethod
    def open(
        cls, path_or_repo: str | Path, revision: str | None = None, partial: bool = False, *, selection: str | Path | None = None
    ) -> Bank:
        """Open a finished bank.

        Args:
            path_or_repo: directory of a bank or of its export, or a data set on the Hub, ``"organisation/name"``, that
                `push_to_hub` uploaded. Exports and data sets are opened through `datasets`, which keeps a copy in its cache.
            revision: commit, tag or branch of a data set on the Hub.
            partial: whether an unfinished bank is opened too, with the units that exist.
            selection: a file that ``gentransforms bank select`` wrote: the bank then has only the variants in it.

        Raises:
            BankError: if there is no bank, or it is unfinished, damaged, or of another format version.
            ConfigError: if a revision is given for a directory.
        """
        bank = cls(open_files(path_or_repo, revision, partial))
        return bank if selection is None else _select(bank, Selection.load(selection))

    def __len__(self) -> int:
        return len(self._lookup)

    def __contains__(self, key: object) -> bool:
        try:
            return bool(self._lookup.variants_of(as_keys([key], "key")[0]))
        except ConfigError:
            return False

    @functools.cached_property
    def keys(self) -> list[str | int]:
        """Keys of the sources that have images, each once, in the order of the source; all str or all int."""
        return self._lookup.list_keys()

    @property
    def integer_keys(self) -> bool:
        """Whether keys are int rather than str; known also if the bank has no images."""
        return self._lookup.integer_keys

    @property
    def marks(self) -> npt.NDArray[np.uint8] | None:
        """The mark of each source in `keys`, (N, 48) uint8: its mean colours in 4 x 4 cells. None if the bank keeps none."""
        marks = self._lookup.marks
        return marks if marks is None or self._lookup.kept is None else marks[self._lookup.used]

    def find_keys(self, keys: Any) -> npt.NDArray[np.int64]:
        """Return the index of each key in `self.keys`, or -1 for a key without images.

        Raises:
            ConfigError: if a key is neither str nor int.
        """
        places = self._lookup.find_keys(as_keys(keys, "keys"))
        if self._lookup.kept is None:
            return places
        used = self._lookup.used
        return np.where((places >= 0) & used[places], np.cumsum(used)[places] - 1, -1)

    @property
    def variants(self) -> int:
        """Requested number of variants of each source; there are fewer only of failed sources and if variants were rejected."""
        return self._facts.variants

    @property
    def source_count(self) -> int:
        """Number of source images, including those that could not be read."""
        return self._facts.count

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of every image."""
        return self._facts.image_size

    @property
    def preserves_geometry(self) -> bool:
        """Whether the generator keeps the layout of an image, so that its masks and boxes still fit."""
        return self._facts.preserves_geometry

    @property
    def generator_name(self) -> str:
        """Name of the class that generated the images."""
        return self._facts.generator

    @property
    def settings(self) -> dict[str, Any]:
        """The settings in the manifest, which determine the bytes of the images."""
        settings: dict[str, Any] = self.manifest["settings"]
        return settings

    def variants_of(self, key: str | int) -> list[int]:
        """Return the variants of a key, in order; an empty list for a key without images.

        Raises:
            ConfigError: if `key` is neither str nor int.
        """
        return self._lookup.variants_of(as_keys([key], "key")[0])

    @overload
    def read(self, keys: Any, variants: Any, decode: Literal[True] = True) -> Tensor: ...
    @overload
    def read(self, keys: Any, variants: Any, decode: Literal[False]) -> list[bytes]: ...
    def read(self, keys: Any, variants: Any, decode: bool = True) -> Tensor | list[bytes]:
        """Return one image for each (key, variant) pair.

        Args:
            keys: N keys: a list, tuple, array or integer tensor.
            variants: N variants, paired with `keys`.
            decode: whether to return pixels, or else the encoded bytes.

        Returns:
            uint8 (N, 3, H, W), or a list of N bytes.

        Raises:
            MissingKeyError: if the bank has no image for a pair; the message says which and why.
            ConfigError: if the lengths differ, or a value is of another type.
            BankError: if an image cannot be decoded, or another process has changed the bank.
        """
        names, numbers = as_keys(keys, "keys"), _variants(variants)
        if len(names) != len(numbers):
            raise ConfigError(f"keys has {len(names)} entries and variants has {len(numbers)}: expected equal lengths, paired")
        rows = self._lookup.find_rows(names, numbers)
        absent = [i for i, row in enumerate(rows.tolist()) if row < 0]
        if absent:
            more = f"; {len(absent)} of these {len(names)} pairs have no image" if len(absent) > 1 else ""
            raise MissingKeyError(f"{self.path}: {self.why_absent(names[absent[0]], numbers[absent[0]], names[:64])}{more}")
        with self._explain_extension():
            data = self._images.read(rows)
        with advising(self._advice):
            return self._decode(rows, data) if decode else [bytes(one) for one in data]

    def why_absent(self, key: str | int, variant: int, asked: Sequence[str | int] = ()) -> str:
        """Return in one sentence why the bank has no image for a pair, and what to do; `asked` are keys of the same data set."""
        return explain_absence(self, key, variant, asked)

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yield all rows in order, as memory-mapped record batches with the columns of `unit_schema`."""
        kept, row = self._lookup.kept, 0
        for number in range(len(self._lookup.files)):
            with self._explain_extension():
                batches = self._images.read_batches(number)
            for batch in batches:
                yield batch if kept is None else batch.filter(arrow().array(kept[row : row + len(batch)]))
                row += len(batch)

    def select(self, scores: Any, expression: str | None = None) -> Bank:
        """Return a bank with only the variants for which an expression holds.

        Args:
            scores: the table `gentransforms.Audit.scores`, or the path of ``scores.parquet``; it must cover the bank. Without
                `expression`, a mask: one boolean for each image, in the order of `batches`.
            expression: comparisons of columns with numbers, combined by ``and``, ``or``, ``not`` and parentheses:
                ``"similarity >= 0.6 and not near_copy"``.

        Raises:
            ConfigError: if the expression is invalid or names an unknown column, or no variant would be left.
            BankError: if the scores are those of another bank.
        """
        table = scores if expression is None else read_bank_scores(scores, self.manifest, str(self.path))
        kept = choose_rows(self._lookup, table, expression, str(self.path))
        selection = Selection(hash_manifest(self.manifest), kept, expression or "", self._lookup.digest())
        return _select(self, selection, None if expression is None else scores)

    def weigh(self, column: str, scores: Any = None) -> npt.NDArray[np.float64]:
        """Return a column of the scores as weights for `draws`, one for each row; 0 for rows that a selection left out.

        Args:
            column: column of the scores.
            scores: as for `select`; by default those with which the bank was selected.

        Raises:
            ConfigError: if there are no scores or no such column, a score is missing, negative or not finite, or all are 0.
            BankError: if the scores are those of another bank, or do not cover this one.
        """
        given = self.scores if scores is None else scores
        if given is None:
            raise ConfigError(f"weights={column!r}: {self.path} has no scores: pass scores=, the table of an audit or its path")
        return weigh_rows(self._lookup, read_bank_scores(given, self.manifest, str(self.path)), column, str(self.path))

    def draws(self, weights: npt.NDArray[np.float64] | None = None) -> Draws:
        """Return an object that draws among the variants of each source: uniformly, or with the weights that `weigh` returned."""
        return Draws(self._lookup, weights)

    def verify(
        self,
        *,
        images: bool = True,
        threads: int | None = None,
        repair: bool = False,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> BankReport:
        """Check the files as they are now, including every image; see `gentransforms.bank.verify.checker.verify_bank`."""
        return verify_bank(self.path, images=images, threads=threads, repair=repair, on_progress=on_progress)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload the bank as an ordinary Hugging Face data set with a card; return the address of the commit.

        Args:
            repo_id: ``"organisation/name"``, or the name alone for a repository of your own; created if it does not exist.
            options: for the card ``license``, ``description`` and ``audit``, the folder of an audit; ``private``, ``token``,
                ``revision``, ``commit_message``. The card of a repository that has one is kept, with the figures of this bank and what is
                given here.

        Raises:
            BankError: if the bank is unfinished, empty or a selection, or the Hub refuses the upload.
        """
        from gentransforms.bank.share.export import push_bank

        return push_bank(self, repo_id, **options)

    def __repr__(self) -> str:
        height, width = self.image_size
        state = f", {self.missing_units:,} units missing" if self.missing_units else ""
        what = f"{len(self):,} images {height}x{width} of {len(self.keys):,} keys, variants={self.variants}, {self.generator_name}"
        return f"{type(self).__name__}({str(self.path)!r}: {what}{state})"

    def __copy__(self) -> Bank:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Bank:
        return self  # it never changes

    def __reduce__(self) -> tuple[Callable[..., Bank], tuple[Any, ...]]:
        return self._reopen

    @contextlib.contextmanager
    def _explain_extension(self) -> Iterator[None]:
        """If a file cannot be read because another process has extended the bank, say so."""
        try:
            with advising(self._advice):
                yield
        except BankError as error:
            try:
                extended = hash_manifest(read_manifest(self.path)) != self._facts.digest
            except BankError:  # the whole bank is gone
                extended = False
            if not extended:
                raise
            raise BankError(
                f"{self.path}: another process has extended this bank since it was opened here: once generate has finished, open it again"
            ) from error

    def _decode(self, rows: Numbers, data: list[bytearray]) -> Tensor:
        images = torch.empty((len(data), 3, *self.image_size), dtype=torch.uint8, device=torch.device("cpu"))
        for i, one in enumerate(data):
            try:
                image = decode_rgb(one)
            except BankError as error:
                raise Damage(f"{self._name(rows[i : i + 1])} cannot be decoded ({error})") from error
            if image.shape != images.shape[1:]:
                found, expected = (" x ".join(map(str, size)) for size in (image.shape[1:], self.image_size))
                raise Damage(f"{self._name(rows[i : i + 1])} is {found} pixels, expected {expected}")
            images[i] = image
        return images

    def _name(self, row: Numbers) -> str:
        """Return what an error calls a row, given as an array of one number."""
        (file,), (place,) = self._lookup.locate(row)
        return f"{self._images.find_file(int(file))}: variant {self._lookup.variants[row[0]]} of key {self._lookup.key(int(place))!r}"


def _open_again(function: Callable[..., Opened], arguments: tuple[Any, ...]) -> Bank:
    return Bank(function(*arguments))


def _select(bank: Bank, selection: Selection, scores: Any = None) -> Bank:
    """Return a bank with only the selected variants, and with `scores`, if given, in place of its own.

    Raises:
        BankError: if the selection is that of another bank.
    """
    count = len(bank._lookup.variants)
    same = selection.bank == hash_manifest(bank.manifest) and len(selection.kept) == count
    if not same or selection.rows not in ("", bank._lookup.digest()):
        found = f"{len(selection.kept):,} rows, the bank has {count:,}{' others' if same else ''}"
        raise BankError(
            f"{bank.path}: the selection belongs to another bank, or to an earlier state of this one ({found}): write a new one with "
            "`gentransforms bank select`"
        )
    chosen = object.__new__(type(bank))
    chosen.__dict__.update({name: value for name, value in vars(bank).items() if name != "keys"})
    before = bank._lookup.kept
    kept = selection.kept if before is None else selection.kept & before
    chosen._lookup = dataclasses.replace(bank._lookup, kept=kept)
    chosen.selection = selection
    chosen.scores = bank.scores if scores is None else scores
    chosen._reopen = (_select, (bank, selection, scores))
    return chosen


def _variants(variants: Any) -> list[int]:
    found = as_keys(variants, "variants")
    for variant in found:
        if isinstance(variant, str):
            raise ConfigError(f"variants: {variant!r} is a str, expected int")
    return found  # type: ignore[return-value]
