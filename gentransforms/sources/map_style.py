"""Any map-style data set as a source: torchvision's, Hugging Face's, or the user's own."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import PIL.Image
from torchvision.datasets import DatasetFolder

from gentransforms.errors import ConfigError, SourceError
from gentransforms.sources.base import ImageSource, SourceSample, read_each
from gentransforms.sources.decode import DOWNLOAD, check_folder, exif_orientation, is_of_the_machine
from gentransforms.sources.image_column import only_image, refuse_lists
from gentransforms.sources.inputs import SeenColumns, choose_columns, input_value, is_label, names_in_feature
from gentransforms.sources.keyed import KeyedDataset
from gentransforms.sources.keys import Key, Keyed, list_keys
from gentransforms.sources.sample_images import entries, first_image, is_image, outline, read_pixels, same_value
from gentransforms.sources.white import WhiteLevel
from gentransforms.wording import name_type, one_line

if TYPE_CHECKING:
    from typing import Self

__all__ = ["MapStyleSource"]

# How many samples, spread over the data set, are tried to see what they hold.
_TRIED = 16
_SECONDS = 10.0  # after which no more samples are read a second time
_IMAGE_NAMES = ("image", "img")


class MapStyleSource(ImageSource):
    """The samples of a data set with ``__len__`` and ``__getitem__``: images, tuples that hold one, or dicts.

    The image of a sample is its first PIL image, `tv_tensors.Image` or encoded image, or else its first tensor (C, H, W). In
    a tuple, an integer in second place is the label; in a dict, labels, prompts and masks are the entries with these names.
    Up to 16 samples, spread over the data set, show which inputs there are. A sample where one is None has none, and if the
    generator takes this input, it is a failed source; no label or empty prompt is made up.
    The images of a Hugging Face data set are decoded here, so that a damaged one does not stop a run. A sample that raises
    becomes a `SourceError`. The data set is read by one thread at a time, unless it is torchvision's ImageFolder.

    Args:
        dataset: a data set without random transforms, because a bank has to be a function of its sources.
        key: as for `gentransforms.with_keys`, with the same keys by default.
        image_column: entry of a dict that holds the image.
        columns: entries of a dict that hold inputs: ``{"prompts": "caption"}``; common names are recognised.
        inputs_getter: a function from a sample to its inputs, for other samples: ``lambda sample: {"labels": sample[2]}``.
        white_level: value of white in grey images with more than 8 bits that are decoded here, if not 65535.
        name: name of the data set, for the bank's manifest.

    Raises:
        ConfigError: if it is not map-style, no sample can be read or none holds an image, keys are not unique, or reading a
            sample twice gives two different images. `select` raises it for an input that differs.

    Warns:
        UserWarning: of a PIL image that was processed and still has an EXIF orientation: it is rotated here, perhaps again.

    Example:
        >>> import torch
        >>> source = MapStyleSource([(torch.zeros(3, 8, 8), 5)])
        >>> source.inputs, next(source.read_range(0, 1)).inputs
        (('labels',), {'labels': 5})
    """

    def __init__(
        self,
        dataset: Any,
        *,
        key: Key | None = None,
        image_column: str | None = None,
        columns: Mapping[str, str] | None = None,
        inputs_getter: Callable[[Any], Mapping[str, Any]] | None = None,
        white_level: float | None = None,
        name: str | None = None,
    ) -> None:
        self._white_level = WhiteLevel(white_level)
        keys = list_keys(dataset, key)
        self._key_last = isinstance(dataset, Keyed)
        if isinstance(dataset, KeyedDataset) and dataset.transform is None:
            dataset, self._key_last = dataset.dataset, False
        description = {"kind": "data set", "class": f"{type(dataset).__module__}.{type(dataset).__qualname__}"}
        self._dataset, self._getter = dataset, inputs_getter
        self._image_column = image_column
        self._columns: dict[str, str] = {}
        self._random: dict[str, int] = {}  # inputs that differ each time they are read, with the sample that showed it
        self._turned = False
        self._lock = _lock_for(dataset)
        features = _features(dataset)
        if features is not None:
            self._dataset = _undecoded(dataset)
            if _is_list_of_images(features.get(image_column or "")):
                refuse_lists(str(image_column), f"this {type(dataset).__name__}")
            self._image_column = image_column or self._image_feature(features, columns)
        sample, inputs = self._look(len(keys), columns, features)
        split = None if features is None else dataset.split
        decides = {
            "kind": "data set",
            "key": key if isinstance(key, str) else _called(key),
            "image_column": self._image_column or _entry(sample, self._image_in(sample)),
            "columns": dict(self._columns),
            "split": None if split is None else str(split),
            "inputs_getter": _called(inputs_getter),
            **({} if white_level is None else {"white_level": white_level}),
        }
        super().__init__(keys, inputs=inputs, description=description | ({"name": name} if name else {}) | {"decides": decides})

    def class_names(self, name: str) -> list[str] | None:
        if self._getter is not None:
            return None
        features = _features(self._dataset)
        return None if features is None else names_in_feature(features.get(self._columns.get(name, "")))

    def read_range(self, start: int, stop: int) -> Iterator[SourceSample | SourceError]:
        return read_each(self._read, start, stop)

    def _read(self, index: int) -> SourceSample:
        sample = self._fetch(index)
        value = self._image_in(sample)
        if value is None:
            raise SourceError(f"no image in the sample: found {outline(sample)}")
        image, stored = read_pixels(value, self._white_level)
        self._tell_turned(index, value)
        found = self._read_inputs(sample)
        return SourceSample(image, {name: input_value(name, found.get(name), stored) for name in self.inputs})

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._lock = _lock_for(self._dataset)

    def _look(self, count: int, columns: Mapping[str, str] | None, features: Mapping[str, Any] | None) -> tuple[Any, tuple[str, ...]]:
        """Try some samples; return the first one with an image, and the names of the inputs that any of them has."""
        where = f"the samples of this {type(self._dataset).__name__}"
        seen, inputs, error = SeenColumns(), dict[str, None](), None
        readable: list[Any] = []  # the first one, and the first one with an image
        until, compared = time.monotonic() + _SECONDS, False
        for index in _spread(count):
            sample, failure = self._try(index)
            if failure is None:
                try:
                    seen.add(sample)
                    inputs |= dict.fromkeys(self._inputs_in(sample, seen, columns, features))
                except SourceError as raised:
                    failure = raised
            if failure is not None:
                error = error or failure
                continue
            if self._image_column is None and self._getter is None and isinstance(sample, Mapping):
                images = [name for name, value in sample.items() if is_image(value) and isinstance(name, str)]
                only_image(images, self._columns.values(), where)
            try:
                image = self._image_in(sample)
            except SourceError as several:
                advice = ", or name its entry with image_column=" if isinstance(sample, Mapping) else ""
                raise ConfigError(
                    f"sample {index} of this {type(self._dataset).__name__}: {several}: give a data set with one image a sample{advice}"
                ) from several
            if not readable or (len(readable) == 1 and image is not None):
                readable.append(sample)
            if features is not None:  # which say what all samples hold; and images are read as stored
                break
            self._tell_turned(index, image)
            if image is not None and (not compared or time.monotonic() < until):
                self._compare(index, sample)
                compared = True
        if not readable:
            raise ConfigError(f"none of the samples tried of this {type(self._dataset).__name__} can be read: {error}") from error
        if features is None and self._getter is None and isinstance(readable[-1], Mapping):
            seen.choose(columns)  # raises if a column is in no sample
        if self._image_column is None and self._image_in(readable[-1]) is None:
            _tell_no_image(readable[0], where)
        return readable[-1], tuple(inputs)

    def _compare(self, index: int, sample: Any) -> None:
        """Raise for a data set with random transforms, such as one for training: the source of a variant would be unknown."""
        again, failure = self._try(index)
        if failure is not None:
            return
        try:
            first, second = self._image_in(sample), self._image_in(again)
            same = first is second or same_value(*(read_pixels(image, self._white_level)[0] for image in (first, second)))
            inputs, others = self._read_inputs(sample), self._read_inputs(again)
        except SourceError:  # reported when it is read for the bank
            return
        if not same:
            raise ConfigError(
                f"sample {index} of this {type(self._dataset).__name__} has another image each time it is read: "
                "give the data set without random transforms"
            )
        for name in inputs.keys() | others.keys():
            if not same_value(inputs.get(name), others.get(name)):
                self._random.setdefault(name, index)

    def _tell_turned(self, index: int, image: Any) -> None:
        """Warn once of a processed PIL image that is turned here: Pillow keeps a file's orientation in all that is made from it.

        Not of one as it was opened, nor of an `ImageFolder`, which turns nothing itself.
        """
        if self._turned or not isinstance(image, PIL.Image.Image) or image.format is not None or isinstance(self._dataset, DatasetFolder):
            return
        code = exif_orientation(image)
        if code == 1:
            return
        self._turned = True
        warnings.warn(
            f"sample {index} of this {type(self._dataset).__name__} is a PIL image with EXIF orientation {code}: it is rotated for "
            "the bank, and not where the data set is used directly; one that the data set has rotated itself is rotated again: let the "
            "data set return PIL.ImageOps.exif_transpose(PIL.Image.open(path)), which has no orientation left",
            stacklevel=5,
        )

    def select(self, names: Collection[str]) -> Self:
        fewer = super().select(names)
        for name in fewer.inputs:
            if name in self._random:
                raise ConfigError(
                    f"sample {self._random[name]} of this {type(self._dataset).__name__} has other {name} each time it is read: "
                    "give the data set without random choices, or say what the inputs are with inputs_getter"
                )
        return fewer

    def _try(self, index: int) -> tuple[Any, SourceError | None]:
        try:
            return self._fetch(index), None
        except SourceError as error:
            return None, error

    def _fetch(self, index: int) -> Any:
        try:
            with self._lock:
                sample = self._dataset[index]
        except SourceError:
            raise
        except Exception as error:
            if is_of_the_machine(error):
                raise
            if isinstance(self._dataset, DatasetFolder):
                check_folder(Path(self._dataset.root), error)
            raise SourceError(f"{type(error).__name__}: {one_line(error)}") from error
        # What with_keys appended is not a label.
        return sample[:-1] if self._key_last and isinstance(sample, tuple | list) else sample

    def _image_in(self, sample: Any) -> Any:
        if isinstance(sample, Mapping):
            if self._image_column is not None:
                if self._image_column not in sample:
                    raise ConfigError(f"image_column={self._image_column!r}: the samples have {', '.join(map(repr, sample))}")
                return sample[self._image_column]
            first = [name for name in _IMAGE_NAMES if name in sample]
            taken = self._columns.values()
            sample = [sample[name] for name in (*first, *(n for n in sample if n not in first and n not in taken))]
        elif self._image_column is not None:
            raise ConfigError(f"image_column={self._image_column!r}: a sample is {name_type(sample)}: expected a dict")
        return first_image(sample)

    def _inputs_in(
        self, sample: Any, seen: SeenColumns, columns: Mapping[str, str] | None, features: Mapping[str, Any] | None
    ) -> Collection[str]:
        """Return which inputs the samples have, by a sample and those seen before, or by the features of a Hugging Face data set."""
        if self._getter is not None:
            if columns is not None:
                raise ConfigError(f"columns={columns!r}: inputs_getter says what the inputs are: leave one of them out")
            return self._read_inputs(sample).keys()
        if isinstance(sample, Mapping):
            if features is None:
                known = {name: column for name, column in columns.items() if seen.has(column)} if isinstance(columns, Mapping) else columns
                self._columns = seen.choose(known)  # another sample may have the rest
            else:
                self._columns = choose_columns(
                    list(features), columns, lambda name, column: _usable_feature(name, features[column]), "the samples"
                )
            self._columns = {name: column for name, column in self._columns.items() if column != self._image_column}
            return self._columns
        if columns is not None:
            raise ConfigError(f"columns={columns!r}: a sample is {name_type(sample)}, not a dict: give inputs_getter")
        return ("labels",) if seen.fits("labels", 1) else ()

    def _image_feature(self, features: Mapping[str, Any], columns: Mapping[str, str] | None) -> str | None:
        images = [name for name, feature in features.items() if type(feature).__name__ == "Image"]
        usual = next((name for name in _IMAGE_NAMES if name in images), None)
        if usual is not None and self._getter is not None:  # which may use the others
            return usual
        taken = list(columns.values()) if isinstance(columns, Mapping) else []
        image = only_image(images, taken, f"this {type(self._dataset).__name__}")
        lists = [name for name, feature in features.items() if name not in taken and _is_list_of_images(feature)]
        if image is None and lists:
            refuse_lists(lists[0], f"this {type(self._dataset).__name__}")
        return image

    def _read_inputs(self, sample: Any) -> Mapping[str, Any]:
        if self._getter is not None:
            try:
                found = self._getter(sample)
            except Exception as error:
                raise SourceError(f"inputs_getter raised {type(error).__name__}: {one_line(error)}") from error
            if not isinstance(found, Mapping):
                raise ConfigError(f"inputs_getter returned {name_type(found)}: expected a dict, such as {{'labels': 3}}")
            return found
        if isinstance(sample, Mapping):
            return {name: sample.get(column) for name, column in self._columns.items()}
        if isinstance(sample, tuple | list) and len(sample) > 1 and is_label(sample[1]):
            return {"labels": sample[1]}
        return {}


def _called(function: Any) -> str | None:
    """Return the name of a function; None for anything else, such as a list of keys, which the bank compares itself."""
    if not callable(function):
        return None
    return str(getattr(function, "__qualname__", type(function).__qualname__))


def _spread(count: int) -> list[int]:
    """Return `_TRIED` places or fewer, spread over a data set, the first one among them."""
    tried = min(count, _TRIED)
    return [place * count // tried for place in range(tried)]


def _tell_no_image(sample: Any, where: str) -> NoReturn:
    address = next((name for name, value in entries(sample) if isinstance(value, str) and "://" in value), None)
    if address is not None:
        raise ConfigError(
            f"no image in {where}: {address!r} holds addresses, such as {dict(entries(sample))[address]!r}: images are not "
            f"downloaded here: {DOWNLOAD}"
        )
    raise ConfigError(f"no image in {where}: found {outline(sample)}; say where with image_column=")


def _entry(sample: Any, image: Any) -> Any:
    """Return the name of the dict entry that is the image."""
    return next((name for name, value in entries(sample) if value is image and isinstance(name, str)), None)


def _features(dataset: Any) -> Mapping[str, Any] | None:
    """Return the features of a Hugging Face data set; None for others, and for one with a transform, which may return anything."""
    datasets = sys.modules.get("datasets")
    if datasets is None or not isinstance(dataset, datasets.Dataset) or dataset.format["type"] == "custom":
        return None
    features: Mapping[str, Any] = dataset.features
    return features


def _undecoded(dataset: Any) -> Any:
    """Return a Hugging Face data set with its images left encoded."""
    datasets = sys.modules["datasets"]
    dataset = dataset.with_format(None)
    for name, feature in dataset.features.items():
        if isinstance(feature, datasets.Image):
            dataset = dataset.cast_column(name, datasets.Image(decode=False))
    return dataset


def _is_list_of_images(feature: Any) -> bool:
    """Return whether a feature of `datasets` holds lists of images, or of what holds images."""
    items = feature[0] if isinstance(feature, list) else getattr(feature, "feature", None)
    return items is not None and _holds_images(items)


def _holds_images(feature: Any) -> bool:
    if isinstance(feature, Mapping):
        return any(map(_holds_images, feature.values()))
    return type(feature).__name__ == "Image" or _is_list_of_images(feature)


def _usable_feature(name: str, feature: Any) -> bool:
    kind = str(getattr(feature, "dtype", ""))
    if name == "labels":
        return kind.startswith(("int", "uint"))
    if name == "prompts":
        return kind in ("string", "large_string")
    return name != "masks" or type(feature).__name__ == "Image" or kind == "string"


def _lock_for(dataset: Any) -> contextlib.AbstractContextManager[Any]:
    # A user's data set may keep a file open; one that opens a file for each sample needs no lock.
    return contextlib.nullcontext() if isinstance(dataset, DatasetFolder) else threading.Lock()
