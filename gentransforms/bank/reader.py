"""Read a bank: from (key, variant) to images."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gentransforms.bank.draws import Draws
from gentransforms.bank.format.facts import Facts
from gentransforms.bank.format.images import Images, decode_rgb
from gentransforms.bank.format.index import Index, build_index, list_sizes, read_index
from gentransforms.bank.format.lookup import Numbers
from gentransforms.bank.format.manifest import MANIFEST, hash_json, hash_manifest, is_export, read_manifest
from gentransforms.bank.format.unit import ADVICE, unit_schema
from gentransforms.bank.scores import weigh_rows
from gentransforms.bank.selection import Selection, choose_rows
from gentransforms.bank.share.opening import Exported, open_export, open_repository
from gentransforms.bank.verify.checker import BankReport, verify_bank
from gentransforms.errors import BankError, ConfigError, MissingKeyError
from gentransforms.hub.client import is_repository
from gentransforms.paths import local_path
from gentransforms.sources.arrow import arrow
from gentransforms.sources.keys import as_keys

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Bank"]


class Bank:
    """A directory of pre-generated variants, open for reading; made by `Bank.open`.

    Nothing of it changes after opening: it may be shared by threads and by forked processes, and is opened anew from its
    path where it is sent to another process.

    Attributes:
        path: its directory; of a bank on the Hub, the folder of the cache that holds its files.
        manifest: what ``bank.json`` says.
        keys: of the sources that have images, each once, in the source's order; all str or all int.
        failed: sources that could not be read, as dicts with ``key`` and ``reason``; they have no images.
        missing_units: how many units of an unfinished bank are not there.
        rejected: variants of which every attempt was refused, as dicts with ``key``, ``variant``, ``attempts`` and ``reason``.
        selection: which of its variants are used; None for all.
        scores: the table, or its path, by which `select` chose them; None if it has none.

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

    def __init__(
        self,
        manifest: dict[str, Any],
        index: Index,
        find_file: Callable[[int], Path],
        *,
        path: Path,
        missing_units: int = 0,
        reopen: tuple[Callable[..., Bank], tuple[Any, ...]] | None = None,
    ) -> None:
        """Take a bank that was found somewhere.

        Args:
            manifest: checked by `check_manifest`.
            index: of its files.
            find_file: returns the path of the file of a number, which has the columns of `unit_schema`.
            path: where it is.
            missing_units: how many units are not there.
            reopen: a function and its arguments that give the same bank in another process.
        """
        self.path, self.manifest = path, manifest
        self._facts = Facts.read(manifest, str(path / MANIFEST))
        self._lookup = index.lookup
        self._images = Images(index.lookup, unit_schema(self._facts.key_type), find_file)
        self.failed, self.rejected = index.failed, index.rejected
        self.missing_units, self._reopen = missing_units, reopen
        self.selection: Selection | None = None
        self.scores: Any = None

    @classmethod
    def open(
        cls, path_or_repo: str | Path, revision: str | None = None, partial: bool = False, *, selection: str | Path | None = None
    ) -> Bank:
        """Open a finished bank.

        Args:
            path_or_repo: directory of the bank, or of its export, or a data set on the Hub, ``"organisation/name"``, that
                `push_to_hub` wrote; exports and data sets are opened through `datasets`, which keeps a copy in its cache.
            revision: commit, tag or branch of a data set on the Hub.
            partial: take what is there of an unfinished bank too.
            selection: a file that ``gentransforms bank select`` wrote: only those variants are there then.

        Raises:
            BankError: if there is no bank, it is unfinished, damaged, or of another format version.
            ConfigError: if a revision is given for a directory.
        """
        directory = local_path(path_or_repo, "path_or_repo")
        if not directory.exists() and is_repository(str(path_or_repo)):
            bank = _open_repository(str(path_or_repo), revision)
            return bank if selection is None else _select(bank, Selection.load(selection))
        if revision is not None:
            raise ConfigError(f"revision={revision!r}: {str(directory)!r} is a directory on this machine and has no revisions")
        bank = _open_export(directory) if is_export(directory) else _open_directory(directory, partial)
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
        """The sources that have images, each once, in the source's order; all str or all int."""
        return self._lookup.list_keys()

    @property
    def integer_keys(self) -> bool:
        """Whether keys are int; otherwise they are str. A bank without images has keys of its source's type."""
        return self._lookup.integer_keys

    @property
    def marks(self) -> npt.NDArray[np.uint8] | None:
        """The mark of each source in `keys`, (N, 48) uint8: its mean colours in 4 x 4 cells. None if the bank keeps none."""
        marks = self._lookup.marks
        return marks if marks is None or self._lookup.kept is None else marks[self._lookup.used]

    def find_keys(self, keys: Any) -> npt.NDArray[np.int64]:
        """Return the place of each key in `keys`, and -1 for those that are not there.

        Raises:
            ConfigError: if one is neither str nor int.
        """
        places = self._lookup.find_keys(as_keys(keys, "keys"))
        if self._lookup.kept is None:
            return places
        used = self._lookup.used
        return np.where((places >= 0) & used[places], np.cumsum(used)[places] - 1, -1)

    @property
    def variants(self) -> int:
        """How many variants each source was to have; failed sources and rejected variants aside, it has them."""
        return self._facts.variants

    @property
    def source_count(self) -> int:
        """How many images the bank was made from, or is to be made from, whether they could be read or not."""
        return self._facts.count

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of every image."""
        return self._facts.image_size

    @property
    def preserves_geometry(self) -> bool:
        """Whether the generator kept the layout of each image, so that its masks and boxes still fit."""
        return self._facts.preserves_geometry

    @property
    def generator_name(self) -> str:
        """Name of the class that made the images."""
        return self._facts.generator

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that decided its bytes, of the manifest."""
        settings: dict[str, Any] = self.manifest["settings"]
        return settings

    def variants_of(self, key: str | int) -> list[int]:
        """Return the variants of a key that are there, in order; an empty list for a key without images.

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
            decode: return pixels; otherwise the encoded bytes.

        Returns:
            uint8 (N, 3, H, W), or a list of N bytes.

        Raises:
            MissingKeyError: if the bank has no image for a pair, saying which and why.
            ConfigError: if the lengths differ, or a value is of another type.
            BankError: if an image does not decode.
        """
        names, numbers = as_keys(keys, "keys"), _variants(variants)
        if len(names) != len(numbers):
            raise ConfigError(f"keys has {len(names)} entries and variants has {len(numbers)}: expected equal lengths, paired")
        rows = self._lookup.find_rows(names, numbers)
        absent = [i for i, row in enumerate(rows.tolist()) if row < 0]
        if absent:
            more = f" (and {len(absent) - 1} more of these {len(names)} are not there)" if len(absent) > 1 else ""
            raise MissingKeyError(f"{self.path}: {self.why_absent(names[absent[0]], numbers[absent[0]])}{more}")
        with self._explain_extension():
            data = self._images.read(rows)
        return self._decode(rows, data) if decode else [bytes(one) for one in data]

    def why_absent(self, key: str | int, variant: int) -> str:
        """Return in one sentence why the bank has no image for a pair, and what to do."""
        there = self._lookup.variants_of(key)
        if self.selection is not None and dataclasses.replace(self._lookup, kept=None).find_rows([key], [variant])[0] >= 0:
            what = f"the selection {self.selection.where!r}" if self.selection.where else "a selection"
            advice = f"it has {there}" if there else 'use missing="source" in BankAugment'
            return f"variant {variant} of key {key!r} is left out by {what}: {advice}"
        if there and not 0 <= variant < self.variants:
            return f"key {key!r} has no variant {variant}: this bank was made with variants 0 to {self.variants - 1}"
        refused = next((e for e in self.rejected if e["key"] == key and type(e["key"]) is type(key) and e.get("variant") == variant), None)
        if refused is not None:
            return (
                f"variant {variant} of key {key!r} was rejected after {refused.get('attempts')} attempts ({refused.get('reason')}): "
                + (f"it has {there}; choose among variants_of(key)" if there else 'leave the key out, or use missing="source"')
            )  # fmt: skip
        if there:
            return f"key {key!r} has no variant {variant}, but {there}: {ADVICE}"
        lost = next((e for e in self.failed if e["key"] == key and type(e["key"]) is type(key)), None)
        if lost is not None:
            return (
                f"key {key!r} has no images, because its source could not be read ({lost.get('reason')}): "
                "fix it and run generate with --retry-failed, or leave it out"
            )  # fmt: skip
        return f"key {key!r} is not in this bank{self._hint(key)}"

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
        """Return a bank that holds only the variants for which an expression holds.

        Args:
            scores: the table `gentransforms.Audit.scores`, or the path of ``scores.parquet``; it must cover the bank. Without
                `expression`, a mask with one boolean for each image, in the order of `batches`.
            expression: comparisons of columns with numbers, combined by ``and``, ``or``, ``not`` and brackets:
                ``"similarity >= 0.6 and not near_copy"``.

        Raises:
            ConfigError: if the expression cannot be read, or names an unknown column.
            BankError: if the scores are another bank's.
        """
        kept = choose_rows(self._lookup, scores, expression, str(self.path))
        return _select(self, Selection(hash_manifest(self.manifest), kept, expression or ""), None if expression is None else scores)

    def weigh(self, column: str, scores: Any = None) -> npt.NDArray[np.float64]:
        """Return the scores of its rows as weights for `draws`; 0 for those that a selection left out.

        Args:
            column: of the scores.
            scores: as for `select`; by default those that the bank was selected by.

        Raises:
            ConfigError: if there are no scores, no such column, or one is missing, negative or not finite, or all are 0.
            BankError: if the scores are another bank's, or do not cover this one.
        """
        given = self.scores if scores is None else scores
        if given is None:
            raise ConfigError(f"weights={column!r}: {self.path} has no scores: give scores=, the table of an audit or its path")
        return weigh_rows(self._lookup, given, column, str(self.path))

    def draws(self, weights: npt.NDArray[np.float64] | None = None) -> Draws:
        """Return what draws among the variants of each source: uniformly, or in proportion to what `weigh` returned."""
        return Draws(self._lookup, weights)

    def verify(
        self,
        *,
        images: bool = True,
        threads: int | None = None,
        repair: bool = False,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> BankReport:
        """Check its files as they are now, down to each image; see `gentransforms.bank.verify.checker.verify_bank`."""
        return verify_bank(self.path, images=images, threads=threads, repair=repair, on_progress=on_progress)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload it as an ordinary Hugging Face data set with a card; return the address of the commit.

        Args:
            repo_id: ``"organisation/name"``; made if absent.
            options: for the card ``license``, ``description`` and ``audit``, the folder of an audit; ``private``, ``token``,
                ``revision``, ``commit_message``.

        Raises:
            BankError: if the Hub refuses.
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
        return self  # nothing of it changes

    def __reduce__(self) -> tuple[Callable[..., Bank], tuple[Any, ...]]:
        assert self._reopen is not None, "a bank that is sent to another process says how to open it there"
        return self._reopen

    @contextlib.contextmanager
    def _explain_extension(self) -> Iterator[None]:
        """If a file cannot be read because another process has extended the bank, say so."""
        try:
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
                if image.shape != images.shape[1:]:
                    raise BankError(f"it is {image.shape[1]} x {image.shape[2]} pixels")
            except BankError as error:
                file, place = (int(n) for (n,) in self._lookup.locate(rows[i : i + 1]))
                raise BankError(
                    f"{self.path / self._lookup.files[file]}: variant {self._lookup.variants[rows[i]]} of key {self._lookup.key(place)!r} "
                    f"does not decode to {self.image_size[0]} x {self.image_size[1]} pixels ({error}): {ADVICE}"
                ) from error
            images[i] = image
        return images

    def _hint(self, key: str | int) -> str:
        kind = self._facts.key_type
        if type(key).__name__ != kind:
            twin: str | int | None = str(key) if kind == "str" else int(key) if str(key).removeprefix("-").isdecimal() else None
            there = f"; {twin!r} is" if twin is not None and self._lookup.find_key(twin) >= 0 else ""
            return f", whose keys are {kind}: {key!r} is {type(key).__name__}, and '1' and 1 differ{there}"
        if self.missing_units:
            return f", of which {self.missing_units:,} units are not made yet"
        like = f" (keys look like {self.keys[0]!r})" if self.keys else ""
        return f'{like}: generate a bank from the data set you read, or use missing="source" in BankAugment'


def _select(bank: Bank, selection: Selection, scores: Any = None) -> Bank:
    """Return a bank with those variants alone, and the scores that chose them, or those of before.

    Raises:
        BankError: if the selection is another bank's.
    """
    count = len(bank._lookup.variants)
    if selection.bank != hash_manifest(bank.manifest) or len(selection.kept) != count:
        raise BankError(
            f"{bank.path}: the selection is of another bank, or older than this bank's last images ({len(selection.kept):,} of {count:,}): "
            "make it again with `gentransforms bank select`"
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


def _open_export(directory: Path, cached: Sequence[str] = ()) -> Bank:
    """Open an export; `cached` are the files of a first opening, when it is opened again."""
    directory = directory.absolute()
    opened = open_export(directory, cached)
    return _opened(opened, (_open_export, (directory, opened.cached)))


def _open_repository(repo_id: str, revision: str | None, cached: Sequence[str] = ()) -> Bank:
    opened, commit = open_repository(repo_id, revision, cached)
    return _opened(opened, (_open_repository, (repo_id, commit, opened.cached)))


def _opened(opened: Exported, reopen: tuple[Any, tuple[Any, ...]]) -> Bank:
    return Bank(opened.manifest, opened.index, opened.find_file, path=opened.folder, reopen=reopen)


def _open_directory(directory: Path, partial: bool, names: Sequence[str] | None = None, digest: str | None = None) -> Bank:
    """Open a bank in a directory; `names` and `digest` are what a first opening found, when it is opened again."""
    directory = directory.absolute()  # where another process, in another directory, finds it
    manifest = read_manifest(directory)
    found = hash_json(manifest)
    if digest is not None and found != digest:
        raise BankError(
            f"{directory / MANIFEST}: has changed since this bank was opened, because another process has extended or replaced the bank: "
            "open it again in the main process"
        )
    facts = Facts.read(manifest, str(directory / MANIFEST))
    index, missing = (_map_index(directory, facts), 0) if names is None else (None, 0)
    if index is None:
        index, missing = _read_units(directory, facts, partial, names)
    reopen = (_open_directory, (directory, False, index.lookup.files if missing else None, found))
    files = index.lookup.files
    return Bank(manifest, index, lambda number: directory / files[number], path=directory, missing_units=missing, reopen=reopen)


def _map_index(directory: Path, facts: Facts) -> Index | None:
    """Return what the index of a bank says, if it has one and all its units are there."""
    try:
        index = read_index(directory, facts)
    except FileNotFoundError:
        return None
    except BankError as error:
        warnings.warn(f"{error}: the bank is opened without it, which takes longer; {ADVICE}", stacklevel=5)
        return None
    with os.scandir(directory) as entries:  # their names alone: their sizes are checked when they are read
        there = sum(1 for entry in entries if entry.name.startswith("unit-") and entry.name.endswith(".arrow"))
    return index if there == len(index.lookup.files) else None


def _read_units(directory: Path, facts: Facts, partial: bool, names: Sequence[str] | None) -> tuple[Index, int]:
    """Return the index of the units that are there, and how many are missing; of those `names` alone if they are given."""
    sizes = list_sizes(directory)
    planned = facts.units()
    pinned = None if names is None else set(names)
    wanted = [unit for unit in planned if pinned is None or unit.file in pinned]
    there = [unit for unit in wanted if unit.file in sizes]
    missing = len(planned) - len(there)
    if len(there) < len(wanted) and not partial:
        gone = sum(unit.stop - unit.start for unit in set(planned) - set(there)) * facts.variants
        raise BankError(
            f"{directory}: unfinished: {missing:,} of {len(planned):,} units are missing, {gone:,} of {facts.count * facts.variants:,} "
            "images: run generate with the settings of this bank again to finish it, or open it with partial=True"
        )
    return build_index(directory, facts, there, sizes), missing


def _variants(variants: Any) -> list[int]:
    found = as_keys(variants, "variants")
    for variant in found:
        if isinstance(variant, str):
            raise ConfigError(f"variants: {variant!r} is a str, expected int")
    return found  # type: ignore[return-value]
