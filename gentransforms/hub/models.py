"""Find, fetch and read the files of a generator, whatever its class."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gentransforms.errors import ConfigError, WeightsError
from gentransforms.hub.card_parts import CARD_FILE
from gentransforms.hub.client import MODEL, hub_errors, is_repository, sha256
from gentransforms.hub.licenses import license_fields, license_link
from gentransforms.paths import local_path
from gentransforms.wording import name_type

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "BUNDLED", "CARD_FILE", "CONFIG_FILE", "PIPELINE_FILE", "WEIGHTS_FILE", "License", "Source", "bundled_names", "card_metadata",
    "check_format", "own_config", "pipeline_class", "read_card", "read_config", "read_license", "read_weights", "stated_license",
]  # fmt: skip

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
PIPELINE_FILE = "model_index.json"
BUNDLED = Path(__file__).parents[1] / "weights"


def bundled_names() -> list[str]:
    """Return the names of the generators that come with the package."""
    return sorted(path.parent.name for path in BUNDLED.glob(f"*/{CONFIG_FILE}"))


class Source:
    """The place a generator's files come from: a bundled name, a folder or a Hub repository.

    Args:
        name_or_path: a folder that exists, else a bundled name, else a repository ``"organisation/name"``. A folder with a bundled name
            has to hold a model; otherwise, as for a bank that was named after its generator, the bundled one is meant.
        revision: commit, tag or branch; for a repository only.
        token: for a private repository.
        cache_dir: where downloads are kept.
        local_files_only: use only what is downloaded already.

    Raises:
        WeightsError: if `name_or_path` is none of the three.
        ConfigError: if a revision is given for local files.

    Example:
        >>> Source("no-such-generator")
        Traceback (most recent call last):
        ...
        gentransforms.errors.WeightsError: 'no-such-generator' is neither a folder nor a bundled generator (...
    """

    def __init__(
        self,
        name_or_path: str | Path,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
    ) -> None:
        self.name = str(name_or_path)
        self.folder: Path | None = local_path(name_or_path, "name_or_path") if self.name else Path()
        cache = None if cache_dir is None else local_path(cache_dir, "cache_dir")
        self.options: dict[str, Any] = {"revision": revision, "token": token, "cache_dir": cache, "local_files_only": local_files_only}
        self._snapshot: Path | None = None  # the folder of the Hub's cache with the commit that files were fetched of
        bundled = self.name in bundled_names()
        if not self.name or not _is_folder(self.folder) or (bundled and not _holds_model(self.folder)):
            self.folder = BUNDLED / self.name if bundled else None  # an empty path would be the working directory
        elif self.name.startswith("~"):
            self.name = str(self.folder)
        if self.folder is not None and revision is not None:
            raise ConfigError(f"revision={revision!r}: {self.name!r} is a folder on this machine and has no revisions")
        if self.folder is None and not is_repository(self.name):
            raise WeightsError(
                f"{self.name!r} is neither a folder nor a bundled generator ({', '.join(bundled_names()) or 'none'}) "
                "nor a repository 'organisation/name'"
            )

    def __str__(self) -> str:
        return self.name

    def file(self, filename: str) -> Path:
        """Return the local path of one file, downloading it if needed.

        Raises:
            WeightsError: if it does not exist or cannot be fetched, with the file and the reason.
        """
        if self.folder is not None:
            path = self._in_folder(self.folder, filename)
            if path is None:
                hidden = "; it hides the repository of that name on the Hub: to load that one, rename the folder, or start elsewhere"
                raise WeightsError(
                    f"{self.name}: no file {filename!r} in this folder: expected a folder written by save_pretrained"
                    + (hidden if is_repository(self.name) and not _holds_model(self.folder) else "")
                )
            return path
        from huggingface_hub import hf_hub_download

        with hub_errors(MODEL, self.name, repr(filename), self.options["revision"]):
            path = Path(hf_hub_download(self.name, filename, **self.options))
        self._snapshot = path.parents[filename.count("/")]
        return path

    def find(self, filename: str) -> Path | None:
        """Return the local path of one file, downloading it if needed; None if it is known not to exist.

        Raises:
            WeightsError: if it cannot be fetched, so that it is unknown whether it exists.
        """
        if self.folder is not None:
            return self._in_folder(self.folder, filename)
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        try:
            return self.file(filename)
        except WeightsError as error:
            absent = isinstance(error.__cause__, EntryNotFoundError)
            local = isinstance(error.__cause__, LocalEntryNotFoundError)  # a subclass: without a network
            if absent and (not local or self._is_absent_in_cache(filename)):
                return None
            raise

    def find_card(self) -> Path | None:
        """Return the local path of the card, of the commit that other files were fetched of; None if there is none.

        A card that was never downloaded is asked for once, without the repetitions that the Hub's client makes for a file that has to be
        there: a generator that is in the cache must not wait for its card where there is no network.

        Raises:
            WeightsError: if it cannot be fetched.
        """
        if self._snapshot is None:
            return self.find(CARD_FILE)
        if (self._snapshot / CARD_FILE).is_file():
            return self._snapshot / CARD_FILE
        if self.options["local_files_only"] or self._is_absent_in_cache(CARD_FILE):
            return None
        from huggingface_hub import get_hf_file_metadata, hf_hub_url
        from huggingface_hub.errors import EntryNotFoundError

        # What follows asks again, and the Hub's client then remembers that there is none.
        with hub_errors(MODEL, self.name, repr(CARD_FILE), self.options["revision"]), contextlib.suppress(EntryNotFoundError):
            get_hf_file_metadata(hf_hub_url(self.name, CARD_FILE, revision=self.options["revision"]), token=self.options["token"])
        return self.find(CARD_FILE)

    def _in_folder(self, folder: Path, filename: str) -> Path | None:
        path = folder / filename
        try:
            path.lstat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise WeightsError(f"{self.name}: {filename!r} cannot be read: {error.strerror or error}") from error
        if not path.is_file():
            raise WeightsError(f"{self.name}: {filename!r} is not a file: it is a folder, or a broken link")
        return path

    def _is_absent_in_cache(self, filename: str) -> bool:
        """Return whether the cache knows that the file does not exist: an earlier request failed, or a full listing lacks it."""
        import huggingface_hub as hf

        where = {"revision": self.options["revision"], "cache_dir": self.options["cache_dir"]}
        if hf.try_to_load_from_cache(self.name, filename, **where) is hf._CACHED_NO_EXIST:
            return True
        try:
            files = hf.get_cached_repo_tree(self.name, **where)  # AttributeError: an older huggingface_hub keeps no such list
        except Exception:
            return False
        return filename not in {file.path for file in files}


def find_cached(repo_id: str, names: Sequence[str]) -> Path | None:
    """Return the folder of the Hub's cache that has all these files of a repository, if there is one; asks no network."""
    from huggingface_hub import try_to_load_from_cache

    found = [path for name in names if isinstance(path := try_to_load_from_cache(repo_id, name), str)]
    return Path(found[0]).parent if len(found) == len(names) else None


def read_config(source: Source) -> dict[str, Any]:
    """Return the parsed ``config.json``.

    Raises:
        WeightsError: if it is missing or not a JSON object.
    """
    return _read_object(source, source.file(CONFIG_FILE))


def own_config(source: Source) -> dict[str, Any] | None:
    """Return the parsed ``config.json`` if gentransforms wrote it; None if there is none, or another library wrote it.

    Raises:
        WeightsError: if it cannot be fetched or read, because without it another generator would be loaded.
    """
    path = source.find(CONFIG_FILE)
    if path is None:
        return None
    description = _read_object(source, path)
    return description if description.get("format") == "gentransforms" else None


def pipeline_class(source: Source) -> str | None:
    """Return the class that diffusers' ``model_index.json`` names; None if there is no such file.

    Raises:
        WeightsError: if it cannot be fetched or read, or names none.
    """
    path = source.find(PIPELINE_FILE)
    if path is None:
        return None
    name = _read_object(source, path).get("_class_name")
    if isinstance(name, list) and name and all(isinstance(part, str) for part in name):  # a module of the repository, and its class
        return ".".join(name)
    if not isinstance(name, str):
        raise WeightsError(f"{source}: {PIPELINE_FILE} names no pipeline class: fetch it again")
    return name


@dataclass(frozen=True)
class License:
    """The licence that a card states.

    Args:
        name: by the Hub's name for it, or its own; None if none is stated.
        link: address of its text, for one that the Hub has no name for.
    """

    name: str | None = None
    link: str | None = None


def read_card(source: Source) -> str | None:
    """Return the card of a repository or folder: empty if it has none, None if it could not be fetched or read."""
    try:
        card = source.find_card()
        return "" if card is None else card.read_text(encoding="utf-8-sig")
    except Exception:  # whatever is wrong with a card, no generator should fail for it
        return None


def read_license(source: Source, card: str | None = None) -> License:
    """Return the licence that the card of a repository or folder states.

    Args:
        source: the repository or folder.
        card: the text of its card, if it was read already.

    Example:
        >>> read_license(Source("icgan-cifar10-32")).name
        'apache-2.0'
    """
    name, link = stated_license((read_card(source) if card is None else card) or "")
    return License(name, name and license_link(link, source.name, source.options["revision"], source.folder is None))


def stated_license(card: str) -> tuple[str | None, Any]:
    """Return name and link of the licence that the metadata of a card state, as they are there; None where they state none.

    Example:
        >>> stated_license("---\\nlicense: mit\\n---\\n# Mine")
        ('mit', None)
    """
    from huggingface_hub import ModelCard

    header = re.match(r"---\s*\n.*?\n---\s*(?:\n|$)", card, re.DOTALL)
    try:
        data = None if header is None else ModelCard(header[0]).data
    except Exception:  # as in read_card
        return None, None
    found, name = getattr(data, "license", None), getattr(data, "license_name", None)
    if not found and not name:
        return None, None
    if isinstance(found, list):  # the Hub takes several
        found = ", ".join(map(str, found))
    return str(name if found in (None, "other") and name else found), getattr(data, "license_link", None)


def _read_object(source: Source, path: Path) -> dict[str, Any]:
    """Return a JSON object from a file of `source`."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise WeightsError(f"{source}: {path.name} is not JSON ({error}): fetch or save it again") from error
    except OSError as error:
        raise WeightsError(f"{source}: {path.name} cannot be read: {error.strerror or error}") from error
    if not isinstance(value, dict):
        raise WeightsError(f"{source}: {path.name} holds {name_type(value)}: expected an object")
    return value


def check_format(source: Source, description: Mapping[str, Any], newest: int) -> None:
    """Raise unless `description` is a gentransforms config in a known format.

    Raises:
        WeightsError: naming what was found.
    """
    if description.get("format") != "gentransforms" or not {"class", "config", "format_version"} <= description.keys():
        raise WeightsError(f"{source}: {CONFIG_FILE} is not one of gentransforms: expected a folder written by save_pretrained")
    for name, kind in {"format_version": int, "class": str, "config": dict}.items():
        if not isinstance(description[name], kind):
            raise WeightsError(f"{source}: {name!r} in {CONFIG_FILE} is {description[name]!r}: expected {kind.__name__}")
    if description["format_version"] > newest:
        raise WeightsError(
            f"{source}: format version {description['format_version']} is newer than this library reads ({newest}): upgrade gentransforms"
        )


def read_weights(source: Source, expected_sha256: str | None) -> dict[str, Tensor]:
    """Return the tensors of ``model.safetensors``, on the CPU.

    Raises:
        WeightsError: if the file is missing, differs from the one its config describes, or is not a complete safetensors file.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = source.file(WEIGHTS_FILE)
    if expected_sha256 is not None and sha256(path) != expected_sha256:
        raise WeightsError(f"{source}: {WEIGHTS_FILE} is damaged or not the file its config describes (SHA-256 differs): fetch it again")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise WeightsError(f"{source}: {WEIGHTS_FILE} is not a complete safetensors file ({error}): fetch it again") from error


def card_metadata(license: str | None, link: str | None, **fields: Any) -> str:
    """Return the YAML header of a model card, which the Hub reads.

    Args:
        license: of the weights.
        link: to its text, where the Hub has no name for it.
        fields: the others.
    """
    from huggingface_hub import ModelCardData

    return str(ModelCardData(library_name="gentransforms", **license_fields(license, link), **fields).to_yaml())


def _holds_model(folder: Path) -> bool:
    return any((folder / name).exists() for name in (CONFIG_FILE, PIPELINE_FILE, WEIGHTS_FILE))


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # not a valid path, such as a name longer than the file system allows
        return False
