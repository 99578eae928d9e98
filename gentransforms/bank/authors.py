"""Take variants that others generated as image files, in the layout of the paper's authors, as a bank."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

import PIL.Image

from gentransforms.bank.encoding import Encoding
from gentransforms.bank.layout import Unit, digest_of, keys_digest, units_of
from gentransforms.bank.settings import enter_directory
from gentransforms.bank.source import open_source
from gentransforms.bank.writer import Row, is_done, remove_partials, write_unit
from gentransforms.errors import BankError, ConfigError

__all__ = ["import_bank"]

_SHOWN = 3
_FORMATS = {"JPEG": "jpeg", "WEBP": "webp", "PNG": "png"}


def import_bank(
    variants_folder: str | Path, source: Any, path: str | Path, *, variants: int = 10, unit_size: int = 100, workers: int = 4
) -> int:
    """Copy image files ``<class>/<name>_<i>.JPEG`` into a bank, unchanged; return the number of images.

    The files of the source ``<class>/<name>.<any suffix>`` are its variants i, from 0. Their seeds are not known: -1 in
    each row. Resumable, as `generate_bank` is.

    Args:
        variants_folder: holds the files.
        source: the folder of the images they were made of, or whatever `generate_bank` takes that has such keys.
        path: of the bank; made if absent.
        variants: how many each source should have.
        unit_size: sources written together.
        workers: threads that read.

    Raises:
        BankError: if a file has no source, if files differ in size, or if a bank of other settings is there.
        ConfigError: if there are no such files.

    Source: the released code of Ayromlou et al. (AAAI 2025) writes this layout.
    """
    folder, directory = Path(variants_folder), Path(path)
    opened = open_source(source)
    found = _found(folder)
    stems = {_stem(key): key for key in opened.keys}
    if len(stems) < len(opened.keys):
        raise BankError("source: two of its images differ only in their suffix, so the variants of one cannot be told from the other's")
    _check_sources(folder, found, stems, variants)
    size, image_format = _first(folder, found)
    settings = {
        "generator": {"class": "imported", "fingerprint": "unknown", "config": {}, "preserves_geometry": False},
        "base_seed": None, "variants": variants, "image_format": image_format, "quality": None, "encoder": None, "batch_size": None,
        "unit_size": unit_size, "threads": None, "device": None, "image_size": size, "max_draws": None, "min_similarity": None,
        "source": {"count": len(opened.keys), "keys": keys_digest(opened.keys), "key_type": opened.key_type, "inputs": []},
    }  # fmt: skip
    enter_directory(directory, settings, {"source": dict(opened.description), "generator_name": None, "imported_from": str(folder)})
    remove_partials(directory)
    with ThreadPoolExecutor(workers) as pool:
        for unit in units_of(len(opened.keys), unit_size):
            if not is_done(directory, unit):
                _copy(folder, directory, unit, opened.keys, found, settings, pool)
    return sum(len(files) for files in found.values())


def _found(folder: Path) -> dict[str, dict[int, str]]:
    """The variants of each stem: number to relative path."""
    found: dict[str, dict[int, str]] = {}
    for parent, _, names in os.walk(folder):
        for name in names:
            relative = PurePosixPath(Path(parent, name).relative_to(folder).as_posix())
            stem, underscore, number = relative.stem.rpartition("_")
            if underscore and number.isdecimal() and not name.startswith("."):
                files = found.setdefault(str(relative.with_name(stem)), {})
                if int(number) in files:
                    raise BankError(
                        f"{folder}: variant {int(number)} of {relative.with_name(stem)} is there twice: {files[int(number)]}, {relative}"
                    )
                files[int(number)] = str(relative)
    if not found:
        raise ConfigError(
            f"variants_folder={str(folder)!r}: no files <class>/<name>_<i>.<suffix> in it: expected variants that were generated"
        )
    return found


def _stem(key: str | int) -> str:
    return str(PurePosixPath(str(key)).with_suffix("")) if isinstance(key, str) else str(key)


def _check_sources(folder: Path, found: dict[str, dict[int, str]], stems: dict[str, Any], variants: int) -> None:
    orphans = [file for stem, files in found.items() if stem not in stems for file in files.values()]
    if orphans:
        raise BankError(
            f"{folder}: {len(orphans)} of {sum(map(len, found.values()))} files have no source, such as "
            f"{', '.join(sorted(orphans)[:_SHOWN])}: expected <source without suffix>_<i>, for sources such as "
            f"{', '.join(list(stems)[:_SHOWN])}; is it the folder they were made of?"
        )
    beyond = sorted(file for files in found.values() for number, file in files.items() if number >= variants)
    if beyond:
        raise BankError(f"{folder}: {beyond[0]} is a variant beyond variants={variants}, counted from 0: give their true number")


def _first(folder: Path, found: dict[str, dict[int, str]]) -> tuple[list[int], str]:
    for files in found.values():
        for file in files.values():
            size, kind = _size(folder / file, (folder / file).read_bytes())
            if kind not in _FORMATS:
                raise BankError(f"{folder / file}: is {kind}: expected {', '.join(_FORMATS)}")
            return [size[1], size[0]], Encoding(_FORMATS[kind]).image_format
    raise AssertionError


def _size(file: Path, data: bytes) -> tuple[tuple[int, int], str]:
    try:
        with PIL.Image.open(io.BytesIO(data)) as image:
            return image.size, str(image.format)
    except Exception as error:  # Pillow's decoders raise all kinds of errors on damaged files
        raise BankError(f"{file}: cannot be read as an image ({error}): mend or remove it, then import again") from error


def _copy(
    folder: Path, directory: Path, unit: Unit, keys: Sequence[str | int], found: dict[str, dict[int, str]], settings: dict[str, Any],
    pool: ThreadPoolExecutor,
) -> None:  # fmt: skip
    files = [(i, number, file) for i in range(unit.start, unit.stop) for number, file in sorted(found.get(_stem(keys[i]), {}).items())]
    datas: Iterable[bytes] = pool.map(lambda entry: (folder / entry[2]).read_bytes(), files)
    rows, present = [], set()
    for (i, number, file), data in zip(files, datas, strict=True):
        size, _ = _size(folder / file, data)
        if [size[1], size[0]] != settings["image_size"]:
            raise BankError(f"{folder / file}: is {size[0]} x {size[1]} pixels: expected all of one size, {settings['image_size'][::-1]}")
        rows.append(Row(keys[i], number, -1, 0, data))
        present.add((i, number))
    lacking = [(i, n) for i in range(unit.start, unit.stop) for n in range(settings["variants"]) if (i, n) not in present]
    rejected = [{"key": keys[i], "index": i, "variant": n, "draws": 0, "reason": "no such file was imported"} for i, n in lacking]
    facts = {"settings": digest_of(settings), "failed": [], "rejected": rejected, "redrawn": 0}
    write_unit(directory, unit, rows, settings["source"]["key_type"], facts)
