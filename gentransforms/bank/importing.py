"""Import variants that were generated elsewhere, as image files in the layout of the paper's authors."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import os
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import PIL.Image

from gentransforms.bank.config import BankConfig
from gentransforms.bank.format.damage import Damage
from gentransforms.bank.format.description import describe_bank, describe_source
from gentransforms.bank.format.index import encode_marks, write_index
from gentransforms.bank.format.locking import remove_partials
from gentransforms.bank.format.manifest import MANIFEST, Facts
from gentransforms.bank.format.png import find_png_damage, has_16_bits
from gentransforms.bank.format.unit import FORMER, Row, Unit, is_done, list_entries, read_sidecar, write_unit
from gentransforms.bank.generate.begin import begin_bank
from gentransforms.bank.generate.former import Former, read_former, retire_units
from gentransforms.bank.generate.reading import read_samples
from gentransforms.errors import BankError, ConfigError, ImageError, SourceError
from gentransforms.images import to_rows
from gentransforms.paths import local_path
from gentransforms.sources import ImageSource, open_source
from gentransforms.sources.decode import SUFFIXES
from gentransforms.sources.resemblance import mark

__all__ = ["Imported", "import_bank"]

_SHOWN = 3
_FORMATS = {"JPEG": "jpeg", "WEBP": "webp", "PNG": "png"}
_ORIENTATION = 0x0112
# For each stem <class>/<name>, what follows it in the names of its variants, such as "_3.JPEG". There are few different ones, so
# that millions of files take little memory.
_Tails = dict[str, list[str]]


@dataclass(frozen=True)
class Imported:
    """The state of a bank after `import_bank`.

    Attributes:
        path: directory of the bank.
        sources: number of source images.
        images: number of variants in the bank.
        missing: number of variants that it lacks, because there was no file of them.
        examples: the first of these, as (key, variant).
    """

    path: str
    sources: int
    images: int
    missing: int
    examples: tuple[tuple[str | int, int], ...]


def import_bank(
    variants_folder: str | Path, source: Any, path: str | Path, *, variants: int = 10, unit_size: int = 100, workers: int = 4
) -> Imported:
    """Copy image files ``<class>/<name>_<i>.JPEG`` into a bank, unchanged.

    The file with number i, counted from 0, is variant i of the source ``<class>/<name>`` or ``<class>/<name>.<any suffix>``. Each
    file is decoded once to check that it is complete, and has 8 bits a channel, no transparency and no EXIF orientation. The seeds are
    unknown, and -1 in each row. A variant without a file is recorded as rejected. An interrupted import is resumed by the same call, like
    `generate_bank`; and if files were added since, the same call imports these. What the bank has stays, whether its files still
    exist or not. If keys are row numbers, the sources are read too, for the marks by which these are checked.

    Args:
        variants_folder: folder with the files.
        source: folder of the images from which the variants were generated, or any other source with such keys.
        path: directory of the bank; created if it does not exist.
        variants: expected number of variants of each source; an import cannot be extended by more.
        unit_size: number of sources per unit.
        workers: number of threads that read files.

    Raises:
        BankError: if a file has no source, is damaged, of another size, or of a kind that a bank would show differently, or its
            number occurs twice or is not below `variants`; if there is a bank with other settings, or a unit to be added to is damaged.
        ConfigError: if there are no such files, or a number is not positive.

    Source: the released code of Ayromlou et al. (AAAI 2025) writes this layout.
    """
    for name, number in {"variants": variants, "unit_size": unit_size, "workers": workers}.items():
        if type(number) is not int or number < 1:
            raise ConfigError(f"{name}={number!r}: expected a positive integer")
    folder, directory = local_path(variants_folder, "variants_folder"), local_path(path)
    opened = open_source(source)
    found = _find_files(folder)
    stems = _find_stems(opened.keys, found)
    _check_sources(folder, found, opened.keys, stems, variants)
    size, image_format = _inspect_first(folder, found)
    settings: dict[str, Any] = {field.name: None for field in dataclasses.fields(BankConfig)}
    settings |= {"variants": variants, "image_format": image_format, "unit_size": unit_size}
    generator = {"class": "imported", "fingerprint": "unknown", "config": {}, "preserves_geometry": False, "image_size": size}
    info = {"source": dict(opened.description), "generator_name": None, "imported_from": str(folder)}
    described = describe_source(opened) | {"inputs": [], "decides": {}}  # the keys alone say whose variants the files are

    def describe(existing: Mapping[str, Any] | None) -> dict[str, Any]:
        # Which file is the first changes with added files; its format is for information.
        own = settings if existing is None else settings | {"image_format": existing.get("image_format")}
        return describe_bank(own, generator, described, device=None, encoder=None, info=info)

    manifest = begin_bank(directory, describe, opened, extend=None)
    facts = Facts.read(manifest, str(directory / MANIFEST))
    retire_units(directory, facts)
    remove_partials(directory)
    images, missing, examples = 0, 0, list[tuple[str | int, int]]()
    with ThreadPoolExecutor(workers) as pool:
        for unit in facts.units():
            done = is_done(directory, unit)
            if not done or _has_new_files(directory, unit, opened.keys, stems, found):
                former = read_former(directory, unit, facts, prefix="" if done else FORMER)
                if done and not former.variants:  # what it has would be lost, if its files are gone
                    raise Damage(f"{directory / unit.file}: has changed since it was written: its SHA-256 differs from that in its sidecar")
                _copy(folder, directory, unit, opened, stems, found, facts, former, pool)
            sidecar = read_sidecar(directory, unit) or {}
            lacking = list_entries(sidecar, "rejected")
            images += sidecar.get("rows", 0)
            missing += len(lacking)
            examples += [(entry["key"], entry["variant"]) for entry in lacking[: _SHOWN - len(examples)]]
    write_index(directory)
    return Imported(str(directory), len(opened.keys), images, missing, tuple(examples))


def _has_new_files(directory: Path, unit: Unit, keys: Sequence[str | int], stems: Sequence[str], found: _Tails) -> bool:
    """Return whether there are files now of variants that a unit lacks."""
    own = dict(zip(keys[unit.start : unit.stop], stems[unit.start : unit.stop], strict=True))
    lacking: dict[str | int, set[int]] = {}
    for entry in list_entries(read_sidecar(directory, unit) or {}, "rejected"):
        lacking.setdefault(entry["key"], set()).add(entry["variant"])
    return any(_number(tail) in variants for key, variants in lacking.items() for tail in found.get(own.get(key, ""), ()))


def _find_files(folder: Path) -> _Tails:
    """Return the files in a folder by stem ``<class>/<name>``."""
    if not folder.is_dir():
        raise ConfigError(f"variants_folder={str(folder)!r}: {'expected a folder' if folder.exists() else 'no such folder'}")
    found: _Tails = {}
    walked: set[str] = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(parent)) in walked:
            folders.clear()  # a link to a folder above it
            continue
        walked.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        within = Path(parent).relative_to(folder).as_posix()
        for name in sorted(names):
            stem, underscore, tail = name.rpartition("_")
            number, dot, suffix = tail.partition(".")
            if underscore and number.isdecimal() and f"{dot}{suffix}".lower() in SUFFIXES and not name.startswith("."):
                found.setdefault(stem if within == "." else f"{within}/{stem}", []).append(sys.intern(f"_{tail}"))
    for stem, tails in found.items():
        if len({_number(tail) for tail in tails}) < len(tails):
            tails = sorted(tails, key=_number)
            first, second = next((a, b) for a, b in itertools.pairwise(tails) if _number(a) == _number(b))
            raise BankError(f"{folder}: variant {_number(first)} of {stem} occurs twice, {stem}{first} and {stem}{second}: remove one")
    if not found:
        raise ConfigError(
            f"variants_folder={str(folder)!r}: no files <class>/<name>_<i>.<suffix> in this folder: expected generated variants"
        )
    return found


def _number(tail: str) -> int:
    return int(tail[1:].partition(".")[0])


def _find_stems(keys: Sequence[str | int], found: _Tails) -> list[str]:
    """Return with what the names of each source's files begin: the key itself, if there are such files, or the key without suffix.

    Not all that follows a dot is a suffix: of ``photo.v1`` it may be a version. If files begin with ``photo``, it is one, unless there
    is a source ``photo``, whose files they are. The suffix of an image is always one.

    Raises:
        BankError: if the same files could be those of two sources.
    """
    own, owners, stems = set(keys), dict[str, str | int](), []
    for key in keys:
        stem = str(key)
        path = PurePosixPath(stem)
        if stem not in found:
            bare = str(path.with_suffix("") if path.suffix else path)
            if bare in found and (path.suffix.lower() in SUFFIXES or bare not in own):
                stem = bare
        if stem in found and (other := owners.setdefault(stem, key)) != key:
            raise BankError(
                f"source: {other} and {key} differ only in their suffix, so it is unknown whose variants the files are: rename one of "
                "them and its variants"
            )
        stems.append(stem)
    return stems


def _check_sources(folder: Path, found: _Tails, keys: Sequence[str | int], stems: Sequence[str], variants: int) -> None:
    own = set(stems)
    orphans = [stem for stem in found if stem not in own]
    if orphans:
        shown = sorted(f"{stem}{tail}" for stem in sorted(orphans)[:_SHOWN] for tail in found[stem])[:_SHOWN]
        raise BankError(
            f"{folder}: {sum(len(found[stem]) for stem in orphans)} of {sum(map(len, found.values()))} files have no source, such as "
            f"{', '.join(shown)}: expected <source without suffix>_<i>, for sources such as {', '.join(map(str, keys[:_SHOWN]))}: "
            "check that the source is the folder from which they were generated"
        )
    beyond = sorted(f"{stem}{tail}" for stem, tails in found.items() for tail in tails if _number(tail) >= variants)
    if beyond:
        more = f" (and {len(beyond) - 1} more)" if len(beyond) > 1 else ""
        raise BankError(
            f"{folder}: {beyond[0]} is not one of variants={variants}, which are counted from 0{more}: set variants to their true number"
        )


def _inspect_first(folder: Path, found: _Tails) -> tuple[list[int], str]:
    """Return the size (h, w), which all files must have, and the format of the first file."""
    stem, tails = next(iter(found.items()))
    path = folder / f"{stem}{tails[0]}"
    try:
        return _inspect(_read(path))
    except BankError as error:
        raise BankError(f"{path}: {error}: fix or remove it, then import again") from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BankError(f"{path}: cannot be read: {error.strerror or error}; fix or remove it, then import again") from error


def _inspect(data: bytes) -> tuple[list[int], str]:
    """Return the size (h, w) and format of an encoded image.

    Raises:
        BankError: if it is incomplete or damaged, with the reason.
    """
    try:
        with PIL.Image.open(io.BytesIO(data)) as image:
            size, kind = [image.height, image.width], str(image.format)
            image.load()  # Pillow's decoder, because torchvision's accepts truncated files
            if damage := find_png_damage(data) if kind == "PNG" else "":
                raise ValueError(damage)
            oddity = _find_oddity(image, data)
    except Exception as error:  # Pillow's decoders raise all kinds of errors on damaged files
        raise BankError(f"cannot be read as an image ({' '.join(str(error).split()) or type(error).__name__})") from error
    if kind not in _FORMATS:
        raise BankError(f"is {kind}, expected {', '.join(_FORMATS)}")
    if oddity:
        raise BankError(f'{oddity} (gentransforms.sources.decode.rgb_image(path).save(path, "PNG") converts it)')
    return size, _FORMATS[kind]


def _find_oddity(image: PIL.Image.Image, data: bytes) -> str:
    """Return in which way the pixels that a bank reads from a file would not be those that are seen; empty if they would be."""
    if image.mode.startswith("I") or (image.format == "PNG" and has_16_bits(data)):
        return "has 16 bits a channel, and a bank reads 8"
    if image.has_transparency_data and image.convert("RGBA").getchannel("A").getextrema() != (255, 255):
        return "is transparent, which a bank does not keep"
    with contextlib.suppress(Exception):  # damaged EXIF data, which turn nothing
        if (code := image.getexif().get(_ORIENTATION, 1)) in range(2, 9):
            return f"is stored with EXIF orientation {code}, by which a bank does not turn it"
    return ""


def _copy(
    folder: Path,
    directory: Path,
    unit: Unit,
    source: ImageSource,
    stems: Sequence[str],
    found: _Tails,
    facts: Facts,
    former: Former,
    pool: ThreadPoolExecutor,
) -> None:
    """Write a unit: the rows that it had before, and those of files that it lacked."""
    keys, kept = source.keys, former.rows
    (h, w), had = facts.image_size, {(row.key, row.variant) for row in kept}
    files = [(i, stem, tail) for i in range(unit.start, unit.stop) for stem in [stems[i]] for tail in found.get(stem, ())]
    files = sorted((file for file in files if (keys[file[0]], _number(file[2])) not in had), key=lambda file: (file[0], _number(file[2])))

    def take(file: tuple[int, str, str]) -> tuple[Row, str]:
        i, stem, tail = file
        data = _read(folder / f"{stem}{tail}")
        try:
            (height, width), _ = _inspect(data)
        except BankError as error:
            problem = str(error)
        else:
            problem = "" if (height, width) == (h, w) else f"is {height} x {width} pixels, expected {h} x {w} like the first file"
        return Row(keys[i], _number(tail), -1, 0, data), problem

    rows, problems = [*kept], []
    for (_, stem, tail), (row, problem) in zip(files, pool.map(take, files), strict=True):
        rows.append(row)
        if problem:
            problems.append(f"{stem}{tail} {problem}")
    if problems:
        more = f" (and {len(problems) - 1} more files of this unit have problems)" if len(problems) > 1 else ""
        raise BankError(f"{folder}: {problems[0]}{more}: fix or remove it, then import again")
    places = {keys[i]: i for i in range(unit.start, unit.stop)}
    rows.sort(key=lambda row: (places[row.key], row.variant))
    imported = {(row.key, row.variant) for row in rows}
    lacking = [(key, i, n) for key, i in places.items() for n in range(facts.variants) if (key, n) not in imported]
    rejected = [{"key": key, "index": i, "variant": n, "attempts": 0, "reason": "no file was imported"} for key, i, n in lacking]
    about = {"settings": facts.digest, "failed": [], "rejected": rejected, "retried": 0}
    if facts.key_type == "int":
        about |= _mark_sources(source, [places[key] for key in dict.fromkeys(row.key for row in rows)], pool)
    write_unit(directory, unit, rows, facts.key_type, about, replaces=former.seen)


def _mark_sources(source: ImageSource, places: Sequence[int], pool: ThreadPoolExecutor) -> dict[str, str]:
    """Return the marks of the sources at these places as an entry of a sidecar; nothing if one cannot be read."""

    def read(place: int) -> bytes:
        (sample,) = read_samples(source, range(place, place + 1))
        if isinstance(sample, SourceError):
            return b""
        try:
            rows = to_rows(sample.image)
        except ImageError:
            return b""
        return mark(rows[0]).tobytes() if len(rows) == 1 else b""

    marks = list(pool.map(read, places))
    return {"marks": encode_marks(marks)} if all(marks) else {}
