"""Read a bank: from (key, variant) to images."""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import torch
from torch import Tensor

from gentransforms.bank.format.facts import Facts
from gentransforms.bank.format.images import ADVICE, Images, decode_rgb, map_file
from gentransforms.bank.format.index import Index, Rows
from gentransforms.bank.format.manifest import MANIFEST, hash_json, is_export, read_manifest
from gentransforms.bank.format.unit import Unit, read_sidecar, unit_schema
from gentransforms.bank.share.opening import Exported, exported_rows, repository_rows
from gentransforms.bank.verify.checker import BankReport, unit_faults, verify_bank
from gentransforms.bank.verify.rows import entries
from gentransforms.errors import BankError, ConfigError, MissingKeyError
from gentransforms.hub.client import is_repository
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
        batches: Sequence[tuple[str, pa.RecordBatch]],
        *,
        path: Path,
        failed: Sequence[dict[str, Any]] = (),
        rejected: Sequence[dict[str, Any]] = (),
        missing_units: int = 0,
        reopen: tuple[Callable[..., Bank], tuple[Any, ...]] | None = None,
    ) -> None:
        """Take a bank that was found somewhere.

        Args:
            manifest: checked by `layout.check_manifest`.
            batches: the rows of the units in source order, of the schema of `layout.unit_schema`, each with a name that an
                error can give.
            path: where it is.
            failed: of those units.
            rejected: of those units.
            missing_units: how many units are not there.
            reopen: a function and its arguments that give the same bank in another process.
        """
        self.path, self.manifest = path, manifest
        self._facts = Facts.read(manifest, str(path / MANIFEST))
        self._index = Index(batches, self._facts.variants)
        self._images = Images(batches)
        self._batches = [batch for _, batch in batches]
        self.failed, self.rejected = list(failed), list(rejected)
        self.missing_units, self._reopen = missing_units, reopen

    @classmethod
    def open(cls, path_or_repo: str | Path, revision: str | None = None, partial: bool = False) -> Bank:
        """Open a finished bank.

        Args:
            path_or_repo: directory of the bank, or of its export, or a data set on the Hub, ``"organisation/name"``, that
                `push_to_hub` wrote; exports and data sets are opened through `datasets`, which keeps a copy in its cache.
            revision: commit, tag or branch of a data set on the Hub.
            partial: take what is there of an unfinished bank too.

        Raises:
            BankError: if there is no bank, it is unfinished, damaged, or of another format version.
            ConfigError: if a revision is given for a directory.
        """
        directory = Path(path_or_repo)
        if not directory.exists() and is_repository(str(path_or_repo)):
            return _open_repository(str(path_or_repo), revision)
        if revision is not None:
            raise ConfigError(f"revision={revision!r}: {str(directory)!r} is a directory on this machine and has no revisions")
        return _open_export(directory) if is_export(directory) else _open_directory(directory, partial)

    def __len__(self) -> int:
        return len(self._index)

    def __contains__(self, key: object) -> bool:
        try:
            return as_keys([key], "key")[0] in self._index
        except ConfigError:
            return False

    @property
    def keys(self) -> list[str | int]:
        """The sources that have images, each once, in the source's order; all str or all int."""
        return self._index.keys

    @property
    def variants(self) -> int:
        """How many variants each source was to have; failed sources and rejected variants aside, it has them."""
        return self._facts.variants

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
        return self._index.variants_of(as_keys([key], "key")[0])

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
        rows = self._index.find(names, numbers)
        absent = [i for i, row in enumerate(rows.tolist()) if row < 0]
        if absent:
            more = f" (and {len(absent) - 1} more of these {len(names)} are not there)" if len(absent) > 1 else ""
            raise MissingKeyError(f"{self.path}: {self.why_absent(names[absent[0]], numbers[absent[0]])}{more}")
        data = self._images.read(rows)
        return self._decode(rows, data) if decode else [bytes(one) for one in data]

    def why_absent(self, key: str | int, variant: int) -> str:
        """Return in one sentence why the bank has no image for a pair, and what to do."""
        there = self._index.variants_of(key)
        if there and not 0 <= variant < self.variants:
            return f"key {key!r} has no variant {variant}: this bank was made with variants 0 to {self.variants - 1}"
        drawn = next((e for e in self.rejected if e["key"] == key and type(e["key"]) is type(key) and e.get("variant") == variant), None)
        if drawn is not None:
            return (
                f"variant {variant} of key {key!r} was rejected after {drawn.get('attempts')} attempts ({drawn.get('reason')}): "
                + (f"it has {there}; draw among variants_of(key)" if there else 'leave the key out, or use missing="source"')
            )  # fmt: skip
        if there:
            return f"key {key!r} has no variant {variant}, but {there}: {ADVICE}"
        lost = next((e for e in self.failed if e["key"] == key and type(e["key"]) is type(key)), None)
        if lost is not None:
            return (
                f"key {key!r} has no images, because its source could not be read ({lost.get('reason')}): "
                "mend it and run generate with --retry-failed, or leave it out"
            )  # fmt: skip
        return f"key {key!r} is not in this bank{self._hint(key)}"

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yield all rows in order, as memory-mapped record batches of the schema of `layout.unit_schema`."""
        yield from self._batches

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
            options: ``license`` and ``description`` for the card; ``private``, ``token``, ``revision``, ``commit_message``.

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

    def _decode(self, rows: Rows, data: list[bytearray]) -> Tensor:
        images = torch.empty((len(data), 3, *self.image_size), dtype=torch.uint8, device=torch.device("cpu"))
        for i, one in enumerate(data):
            try:
                image = decode_rgb(one)
                if image.shape != images.shape[1:]:
                    raise BankError(f"it is {image.shape[1]} x {image.shape[2]} pixels")
            except BankError as error:
                row = int(rows[i])
                key, variant = self._index.at(row)
                raise BankError(
                    f"{self.path / self._images.file_of(row)}: variant {variant} of key {key!r} does not decode to {self.image_size[0]} x "
                    f"{self.image_size[1]} pixels ({error}): {ADVICE}"
                ) from error
            images[i] = image
        return images

    def _hint(self, key: str | int) -> str:
        kind = self._facts.key_type
        if type(key).__name__ != kind:
            twin: str | int | None = str(key) if kind == "str" else int(key) if str(key).removeprefix("-").isdecimal() else None
            there = f"; {twin!r} is" if twin is not None and twin in self._index else ""
            return f", whose keys are {kind}: {key!r} is {type(key).__name__}, and '1' and 1 differ{there}"
        if self.missing_units:
            return f", of which {self.missing_units:,} units are not made yet"
        like = f" (keys look like {self.keys[0]!r})" if self.keys else ""
        return f'{like}: generate a bank from the data set you read, or use missing="source" in BankAugment'


def _open_export(directory: Path, cached: Sequence[str] = ()) -> Bank:
    """Open an export; `cached` are the files of a first opening, when it is opened again."""
    directory = directory.absolute()
    opened = exported_rows(directory, cached)
    return _opened(opened, (_open_export, (directory, opened.cached)))


def _open_repository(repo_id: str, revision: str | None, cached: Sequence[str] = ()) -> Bank:
    opened, commit = repository_rows(repo_id, revision, cached)
    return _opened(opened, (_open_repository, (repo_id, commit, opened.cached)))


def _opened(opened: Exported, reopen: tuple[Any, tuple[Any, ...]]) -> Bank:
    failed, rejected = (entries(opened.manifest["info"], name) for name in ("failed", "rejected"))
    return Bank(opened.manifest, opened.batches, path=opened.folder, failed=failed, rejected=rejected, reopen=reopen)


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Keep the garbage collector from looking again and again at what a growing index holds: a quarter of the time of opening."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@_no_collection()
def _open_directory(directory: Path, partial: bool, names: Sequence[str] | None = None, digest: str | None = None) -> Bank:
    """Open a bank in a directory; `names` and `digest` are what a first opening found, when it is opened again."""
    directory = directory.absolute()  # where another process, in another directory, finds it
    manifest = read_manifest(directory)
    found = hash_json(manifest)
    if digest is not None and found != digest:
        raise BankError(f"{directory / MANIFEST}: has changed since this bank was opened: open it again where you opened it first")
    facts = Facts.read(manifest, str(directory / MANIFEST))
    planned = facts.units()
    pinned = None if names is None else set(names)
    units = [unit for unit in planned if pinned is None or unit.name in pinned]
    there = _units_there(directory, units, facts)
    missing = len(planned) - len(there)
    if len(there) < len(units) and not partial:
        gone = sum(unit.stop - unit.start for unit in planned if unit not in there) * facts.variants
        raise BankError(
            f"{directory}: unfinished: {missing:,} of {len(planned):,} units are missing, {gone:,} of {facts.count * facts.variants:,} "
            "images: run generate with the settings of this bank again to finish it, or open it with partial=True"
        )
    schema = unit_schema(facts.key_type)
    batches, failed, rejected = [], [], []
    for unit, sidecar in there.items():
        own = map_file(f"{directory}/{unit.file}", schema)
        rows = sum(batch.num_rows for batch in own)
        if rows != sidecar.get("rows"):
            raise BankError(f"{directory / unit.file}: has {rows} rows, and its sidecar says {sidecar.get('rows')}: {ADVICE}")
        batches += [(unit.file, batch) for batch in own]
        failed += entries(sidecar, "failed")
        rejected += entries(sidecar, "rejected")
    reopen = (_open_directory, (directory, False, [unit.name for unit in there] if missing else None, found))
    return Bank(manifest, batches, path=directory, failed=failed, rejected=rejected, missing_units=missing, reopen=reopen)


def _units_there(directory: Path, units: Sequence[Unit], facts: Facts) -> dict[Unit, dict[str, Any]]:
    """Return the units whose file is there, with their sidecars.

    Raises:
        BankError: if one of them is damaged, or of other settings; a run that was interrupted leaves none such.
    """
    with os.scandir(directory) as entries_there:
        sizes = {entry.name: entry.stat().st_size for entry in entries_there if entry.name.endswith(".arrow")}
    there = {}
    for unit in units:
        size = sizes.get(unit.file)
        if size is None:
            continue
        sidecar = read_sidecar(directory, unit)
        faults = unit_faults(unit, sidecar, size, facts.digest)
        if faults:
            others = next((text for kind, text in faults if kind == "settings"), None)
            if others is not None:  # it is no damaged one, and no repair removes it
                raise BankError(f"{directory}: {others}")
            raise BankError(f"{directory / unit.file}: damaged: {faults[0][1]}; {ADVICE}")
        assert sidecar is not None
        there[unit] = sidecar
    return there


def _variants(variants: Any) -> list[int]:
    found = as_keys(variants, "variants")
    for variant in found:
        if isinstance(variant, str):
            raise ConfigError(f"variants: {variant!r} is a str, expected int")
    return found  # type: ignore[return-value]
