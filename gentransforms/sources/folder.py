"""A folder of images as a source: keys are paths, labels come from class folders, other inputs from a metadata file."""

from __future__ import annotations

import hashlib
import json
import os
import re
import warnings
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gentransforms.errors import ConfigError, SourceError
from gentransforms.paths import local_path
from gentransforms.sources.base import ImageSource, SourceSample, read_each
from gentransforms.sources.contents import is_litter
from gentransforms.sources.decode import SUFFIXES, check_folder, decode_oriented
from gentransforms.sources.inputs import input_value
from gentransforms.sources.metadata import METADATA_NAMES, find_metadata, folder_order, read_metadata
from gentransforms.sources.white import WhiteLevel
from gentransforms.wording import one_line

if TYPE_CHECKING:
    from typing import Self

__all__ = ["ImageFolderSource"]

# Image formats that Pillow does not read by itself.
_UNREADABLE = frozenset({
    ".arw", ".cr2", ".cr3", ".dng", ".exr", ".hdr", ".heic", ".heif", ".jxl", ".nef", ".nrw", ".orf", ".pef", ".psd", ".raf", ".raw",
    ".rw2", ".srw", ".svg", ".xcf",
})  # fmt: skip
# Names of splits in lower case, what may be with them when all folders are splits, and words that say nothing more.
_SPLITS = frozenset({"train", "training", "val", "valid", "validation", "dev", "test", "testing", "eval", "evaluation", "trainval"})
_BESIDE_SPLITS = frozenset({
    "extra", "unlabeled", "unlabelled", "unsup", "unsupervised", "holdout", "heldout", "minival", "pred", "prediction",
})  # fmt: skip
_FILLING = ("dataset", "set", "data", "images", "image", "imgs", "img", "photos", "samples", "split")
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
_STRAYS = 10  # at most one image of so many counts as a stray


class ImageFolderSource(ImageSource):
    """All images in a folder and its subfolders, in the order of torchvision's ImageFolder; hidden files are skipped.

    If every image is in a subfolder, each sample has ``labels``: the index of its top-level subfolder among those that hold
    images, sorted by name.
    With a file ``metadata.jsonl``, ``metadata.csv`` or ``metadata.parquet`` following Hugging Face's convention (a column
    ``file_name``), that file alone determines the images and their inputs: labels, prompts, and masks as paths.

    Args:
        root: the folder.
        image_column: column of the metadata file with the names of the images.
        columns: columns of the metadata file with inputs, ``{"prompts": "caption"}``; common names are recognised.
        white_level: value of white in grey images with more than 8 bits, if not 65535.

    Raises:
        ConfigError: if there is no such folder, it holds no images or several splits, or the metadata file does not fit.

    Warns:
        UserWarning: if there are images in formats that cannot be read, such as ``.heic``, or a few images beside class folders,
            which leave all without labels, or the folder of a split around them, which gives all the same label, or a file with the
            name of a metadata file that is about something else.

    Example:
        >>> from pathlib import Path
        >>> import gentransforms
        >>> source = ImageFolderSource(Path(gentransforms.__file__).parent / "samples")
        >>> source.keys[:2], next(source.read_range(0, 1)).image.shape
        (['airplane.png', 'automobile.png'], torch.Size([3, 32, 32]))
    """

    def __init__(
        self,
        root: str | Path,
        *,
        image_column: str | None = None,
        columns: Mapping[str, str] | None = None,
        white_level: float | None = None,
    ) -> None:
        self._white_level = WhiteLevel(white_level)
        self.root = local_path(root, "root")
        if not self.root.is_dir():
            raise ConfigError(f"{self.root}: no such folder: expected a folder of images")
        self._labels: dict[str, int] = {}
        self._carried: dict[str, list[Any]] = {}
        description: dict[str, Any] = {"kind": "image folder", "path": str(root)}
        decides: dict[str, Any] = {"kind": "image folder"} | ({} if white_level is None else {"white_level": white_level})
        metadata = find_metadata(self.root, image_column)
        if metadata is not None:
            keys, self._carried, chosen = read_metadata(metadata, image_column or "file_name", columns)
            decides |= {"image_column": image_column or "file_name", "columns": chosen}
            super().__init__(keys, inputs=self._carried, description=description | {"metadata": metadata.name, "decides": decides})
            return
        if columns or image_column:
            name, value = ("columns", columns) if columns else ("image_column", image_column)
            raise ConfigError(f"{name}={value!r}: {self.root} has no {' or '.join(METADATA_NAMES)} with such a column")
        keys, unreadable = _images_in(self.root)
        skipped = _tell_unreadable(unreadable)
        if not keys:
            found = f": {skipped}" if skipped else f" (looked for {', '.join(sorted(SUFFIXES))})"
            raise ConfigError(f"{self.root}: no images in this folder or its subfolders{found}")
        if skipped:
            warnings.warn(f"{self.root}: {skipped}", stacklevel=3)
        _tell_splits(self.root, keys)
        in_classes = all("/" in key for key in keys)
        _warn_of_strays(self.root, keys)
        if in_classes:
            # Not all subfolders: one without images, such as a bank stored there, must not change the labels.
            self._labels = {name: i for i, name in enumerate(sorted({key.partition("/")[0] for key in keys}))}
            decides["folders"] = hashlib.blake2b(json.dumps(self._labels).encode(), digest_size=8).hexdigest()
        super().__init__(keys, inputs=("labels",) if in_classes else (), description=description | {"decides": decides})

    def read_range(self, start: int, stop: int) -> Iterator[SourceSample | SourceError]:
        for sample in read_each(self._read, start, stop):
            if isinstance(sample, SourceError):
                check_folder(self.root, sample)
            yield sample

    def _read(self, index: int) -> SourceSample:
        key = str(self.keys[index])
        image, stored = decode_oriented(self.root / key, self._white_level)
        inputs: dict[str, Any] = {}
        for name in self.inputs:
            value = self._carried[name][index] if name in self._carried else self._labels[key.partition("/")[0]]
            inputs[name] = input_value(name, value, stored, self.root)
        return SourceSample(image, inputs)

    def select(self, names: Collection[str]) -> Self:
        fewer = super().select(names)
        if "labels" not in names:
            fewer.description["decides"].pop("folders", None)
        return fewer

    @property
    def labels(self) -> list[int | None] | None:
        """The label of every image, without reading the images; None if there are no labels, and for an image without one."""
        if "labels" in self._carried:
            return list(self._carried["labels"])
        return [self._labels[str(key).partition("/")[0]] for key in self.keys] if self._labels else None

    def class_names(self, name: str) -> list[str] | None:
        return self.classes or None if name == "labels" else None

    @property
    def classes(self) -> list[str]:
        """Class names in the order of their labels; empty unless the classes are subfolders."""
        return list(self._labels)


def _images_in(root: Path) -> tuple[list[str], list[str]]:
    """Return the sorted paths of all images below a folder, and the paths of images in formats that cannot be read.

    The directory listing itself tells files from folders, so that millions of files need not be examined one by one.
    """
    names_in: dict[str, list[str]] = {}
    unreadable: list[str] = []
    stack: list[tuple[str, tuple[str, ...]]] = [("", (os.path.realpath(root),))]
    while stack:
        folder, above = stack.pop()
        names: list[str] = []
        try:
            entries = os.scandir(root / folder)
        except OSError as error:
            raise ConfigError(f"{root / folder}: cannot be listed: {one_line(error)}") from error
        with entries:
            for entry in entries:
                name = entry.name
                if is_litter(name):
                    continue
                if not _is_folder(entry):
                    suffix = name[name.rfind(".") :].lower()
                    if suffix in SUFFIXES:
                        names.append(name)
                    elif suffix in _UNREADABLE:
                        unreadable.append(f"{folder}/{name}" if folder else name)
                    continue
                real = os.path.realpath(entry.path) if entry.is_symlink() else f"{above[-1]}{os.sep}{name}"
                if real in above:
                    continue  # a link to a folder above it, which would never end
                stack.append((f"{folder}/{name}" if folder else name, (*above, real)))
        if names:
            names_in[folder] = sorted(names)
    folders = sorted(names_in, key=folder_order)
    return [f"{folder}/{name}" if folder else name for folder in folders for name in names_in[folder]], unreadable


def _tell_unreadable(paths: Sequence[str]) -> str:
    """Return how many files in which formats are skipped, and what to do; empty if there are none."""
    if not paths:
        return ""
    counts = Counter(path[path.rfind(".") :].lower() for path in paths)
    found = ", ".join(f"{count:,} {suffix}" for suffix, count in counts.most_common())
    return f"{found} cannot be read and {'is' if len(paths) == 1 else 'are'} left out, such as {min(paths)!r}: convert to JPEG or PNG"


def _tell_splits(root: Path, keys: Sequence[str]) -> None:
    """Raise for a folder of splits: their images would be mixed, and the splits taken for classes. Warn of a single split."""
    folders = {key.rpartition("/")[0] for key in keys}
    if "" in folders:
        return
    inside = {tuple(folder.split("/")) for folder in folders}
    first = {parts[0] for parts in inside}
    if len(first) == 1 and not _SPLITS.isdisjoint(_words(*first)) and all(len(parts) > 1 for parts in inside):
        (split,) = first
        warnings.warn(
            f"{root}: all images are in the folder {split!r}, and so have the same label: for labels by the folders in it, and the "
            f"keys that fit these, give {str(root / split)!r}",
            stacklevel=4,
        )
    while len(first) == 1 and all(len(parts) > 1 for parts in inside):  # a folder around the whole data set
        root /= first.pop()
        inside = {parts[1:] for parts in inside}
        first = {parts[0] for parts in inside}
    splits = set(_splits_among(first))
    classes = {name: {parts[1] for parts in inside if parts[0] == name and len(parts) > 1} for name in first}
    frames = {_frame(name, _SPLITS) for name in splits}
    known = {name for name in first - splits if _words(name) & _BESIDE_SPLITS and _frame(name, _BESIDE_SPLITS) in frames | {""}}
    alike = {name for name in first - splits if any(classes[name] & classes[split] for split in splits)}
    if splits and len(first) > 1 and (splits | known == first or (len(splits) > 1 and splits | known | alike == first)):
        raise ConfigError(
            f"{root}: holds the splits {', '.join(map(repr, sorted(first)))}: give the folder of one of them, such as "
            f"{str(root / min(splits))!r}"
        )
    if all(len(set(_splits_among(below).values())) > 1 for below in classes.values()):
        example = sorted(_splits_among(classes[min(first)]))
        raise ConfigError(
            f"{root}: each folder in it holds splits, such as {' and '.join(map(repr, example))} in {min(first)!r}: their images would "
            f"be mixed: give the folder of one split, such as {str(root / min(first) / example[0])!r}, or list the images of one split in "
            f"{METADATA_NAMES[0]}"
        )


def _splits_among(names: Collection[str]) -> dict[str, str]:
    """Return which of these folders are splits, and of what: named after one alone, as "Training_Set" or "train2017", or alike but for
    the split, as "seg_train" and "seg_test"; not "test_tube" and "train_station"."""
    found: dict[str, dict[str, str]] = {}
    for name in names:
        if of := " ".join(sorted(_words(name) & _SPLITS)):
            found.setdefault(_frame(name, _SPLITS), {})[name] = of
    return {name: of for frame, alike in found.items() if not frame or len(set(alike.values())) > 1 for name, of in alike.items()}


def _frame(name: str, splits: Collection[str]) -> str:
    """Return a name with a star in place of words for splits, and the numbers after them; empty if these are all that it says."""
    frame = _WORD.sub(lambda word: "*" if _bare(word[0]) in splits else word[0].lower(), name)
    return re.sub(r"\*\d*(?:[\W_]*\*\d*)*", "*", frame) if _words(name) - set(splits) else ""


def _words(name: str) -> set[str]:
    return {_bare(word) for word in _WORD.findall(name)} - {""}


def _bare(word: str) -> str:
    word = word.lower()
    return next((word.removesuffix(end) for end in _FILLING if word.endswith(end)), word)


def _warn_of_strays(root: Path, keys: Sequence[str]) -> None:
    """Warn if a few images lie beside class folders, such as a preview: because of them there are no labels."""
    strays = [key for key in keys if "/" not in key]
    folders = {key.partition("/")[0] for key in keys if "/" in key}
    if strays and len(folders) > 1 and len(strays) * _STRAYS <= len(keys):
        warnings.warn(
            f"{root}: {len(strays):,} of {len(keys):,} images are in no class folder, such as {strays[0]!r}, so no image has a label: "
            "for labels, move them away",
            stacklevel=4,
        )


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False
