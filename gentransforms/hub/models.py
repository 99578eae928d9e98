"""Fetch and store the files of a generator; knows no class. The one place that touches huggingface_hub."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from gentransforms.errors import BankError, ConfigError, WeightsError

__all__ = [
    "BUNDLED", "CARD_FILE", "CONFIG_FILE", "PIPELINE_FILE", "WEIGHTS_FILE", "Source", "bundled_names", "card_metadata", "check_format",
    "dataset_file", "dataset_folder", "is_repository", "own_config", "pipeline_class", "read_config", "read_weights", "sha256", "upload",
]  # fmt: skip

CONFIG_FILE, WEIGHTS_FILE, CARD_FILE = "config.json", "model.safetensors", "README.md"
PIPELINE_FILE = "model_index.json"
BUNDLED = Path(__file__).parents[1] / "weights"


def bundled_names() -> list[str]:
    """Return the names of the generators that come with the package."""
    return sorted(path.parent.name for path in BUNDLED.glob(f"*/{CONFIG_FILE}"))


class Source:
    """Where a generator's files come from: a bundled name, a folder or a Hub repository.

    Args:
        name_or_path: a folder that exists, else a bundled name, else a repository ``"organisation/name"``.
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
        self.folder: Path | None = Path(name_or_path)
        self.options: dict[str, Any] = {"revision": revision, "token": token, "cache_dir": cache_dir, "local_files_only": local_files_only}
        if not self.name or not _is_folder(self.folder):  # an empty path would be the working directory
            self.folder = BUNDLED / self.name if self.name in bundled_names() else None
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
        """Return the local path of one file, downloaded first where needed.

        Raises:
            WeightsError: if it does not exist or cannot be fetched, saying which and why.
        """
        if self.folder is not None:
            path = self.folder / filename
            if not path.is_file():
                raise WeightsError(f"{self.name}: no file {filename!r} in this folder: expected a folder written by save_pretrained")
            return path
        from huggingface_hub import errors as hf
        from huggingface_hub import hf_hub_download

        at = f" at revision {self.options['revision']!r}" if self.options["revision"] else ""
        try:
            return Path(hf_hub_download(self.name, filename, **self.options))
        except hf.RevisionNotFoundError as error:
            raise WeightsError(f"{self.name}: the Hub has no such revision: {self.options['revision']!r}") from error
        except hf.LocalEntryNotFoundError as error:
            raise WeightsError(
                f"{self.name}: {filename!r}{at} is not in the local cache and could not be fetched; "
                "check the network, or drop local_files_only / HF_HUB_OFFLINE"
            ) from error
        except hf.EntryNotFoundError as error:
            raise WeightsError(f"{self.name}: the repository has no file {filename!r}{at}") from error
        except (hf.RepositoryNotFoundError, hf.HFValidationError) as error:
            raise WeightsError(f"{self.name}: no such repository on the Hub, or it is private: check the name, or pass token=") from error
        except _request_errors() as error:
            raise WeightsError(f"{self.name}: {filename!r}{at} could not be fetched: {error}") from error


def read_config(source: Source) -> dict[str, Any]:
    """Return the parsed ``config.json``.

    Raises:
        WeightsError: if it is missing or not a JSON object.
    """
    path = source.file(CONFIG_FILE)
    try:
        description = json.loads(path.read_text())
    except ValueError as error:
        raise WeightsError(f"{source}: {CONFIG_FILE} is not JSON ({error}): fetch or save it again") from error
    if not isinstance(description, dict):
        raise WeightsError(f"{source}: {CONFIG_FILE} holds a {type(description).__name__}: expected an object")
    return description


def own_config(source: Source) -> dict[str, Any] | None:
    """Return the parsed ``config.json`` if it is one of ours; None if there is none, or it is of others."""
    try:
        description = read_config(source)
    except WeightsError:
        return None
    return description if description.get("format") == "gentransforms" else None


def pipeline_class(source: Source) -> str | None:
    """Return the class that diffusers' ``model_index.json`` names; None if there is no such file.

    Raises:
        WeightsError: if it is not JSON, or names none.
    """
    try:
        path = source.file(PIPELINE_FILE)
    except WeightsError:
        return None
    try:
        return str(json.loads(path.read_text())["_class_name"])
    except (ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"{source}: {PIPELINE_FILE} names no pipeline class ({error}): fetch it again") from error


def check_format(source: Source, description: Mapping[str, Any], newest: int) -> None:
    """Raise unless `description` is a config of ours in a format we know.

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
        WeightsError: if the file is missing, is not the one the config speaks of, or is no whole safetensors file.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = source.file(WEIGHTS_FILE)
    if expected_sha256 is not None and sha256(path) != expected_sha256:
        raise WeightsError(f"{source}: {WEIGHTS_FILE} is damaged or not the file its config speaks of (SHA-256 differs): fetch it again")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise WeightsError(f"{source}: {WEIGHTS_FILE} is no whole safetensors file ({error}): fetch it again") from error


def card_metadata(*, dataset: bool = False, **fields: Any) -> str:
    """Return the YAML that the Hub reads at the head of a card, of a model or of a data set."""
    from huggingface_hub import DatasetCardData, ModelCardData

    if dataset:
        return str(DatasetCardData(**fields).to_yaml())
    return str(ModelCardData(library_name="gentransforms", **fields).to_yaml())


def dataset_file(repo_id: str, filename: str, revision: str | None = None) -> Path:
    """Return the local path of one file of a data set repository, downloaded first where needed.

    Raises:
        BankError: if there is no such repository, revision or file, or it cannot be fetched.
    """
    from huggingface_hub import hf_hub_download

    with _dataset_errors(repo_id, repr(filename), revision), _bars_on_a_terminal():
        return Path(hf_hub_download(repo_id, filename, repo_type="dataset", revision=revision))


def dataset_folder(repo_id: str, filenames: Sequence[str], revision: str) -> Path:
    """Return a local folder with all those files of a data set repository, several downloaded at once where needed.

    Args:
        repo_id: ``"organisation/name"``.
        filenames: paths in it.
        revision: a commit. What is there of it is not asked for again.

    Raises:
        BankError: if the repository lacks one of them, or they cannot be fetched.
    """
    from huggingface_hub import snapshot_download

    what = f"its {len(filenames)} files" if len(filenames) > 1 else repr(filenames[0])

    def folder(local: bool) -> Path:
        return Path(
            snapshot_download(repo_id, repo_type="dataset", revision=revision, allow_patterns=list(filenames), local_files_only=local)
        )

    def lacking(there: Path) -> list[str]:
        return [name for name in filenames if not (there / name).is_file()]

    with _dataset_errors(repo_id, what, revision), _bars_on_a_terminal():
        from huggingface_hub.errors import LocalEntryNotFoundError

        with contextlib.suppress(LocalEntryNotFoundError):
            if not lacking(there := folder(local=True)):
                return there
        there = folder(local=False)  # without a network, what is in the cache: perhaps not all
    if gone := lacking(there):
        raise BankError(
            f"{repo_id}: {gone[0]!r} at revision {revision!r} could not be fetched, and is not in the local cache: check the network; "
            "if the Hub has no such file, push the bank again"
        )
    return there


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def upload(
    save: Callable[[Path], None],
    repo_id: str,
    *,
    repo_type: str | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    replace: str | None = None,
) -> str:
    """Make the repository if absent, upload what `save` writes into a folder, and return the commit's address.

    The Hub is asked for the repository and the branch first: `save` may write for hours.

    Args:
        save: called with an empty folder.
        repo_id: ``"organisation/name"``.
        repo_type: ``"dataset"``, or None for a model.
        private: whether a new repository is.
        token: of the Hub, instead of the one logged in with.
        revision: branch.
        commit_message: of the commit.
        replace: a pattern of files that are removed where the folder has none of that name.

    Raises:
        WeightsError, BankError: if the Hub refuses a model, a data set.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as directory, _bars_on_a_terminal():
        with _upload_errors(repo_id, repo_type):
            api.create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True)
            if revision is not None:
                api.repo_info(repo_id, repo_type=repo_type, revision=revision)
        save(Path(directory))
        with _upload_errors(repo_id, repo_type):
            commit = api.upload_folder(
                repo_id=repo_id, repo_type=repo_type, folder_path=directory, revision=revision,
                commit_message=commit_message or "Upload with gentransforms", delete_patterns=replace,
            )  # fmt: skip
    return str(commit.commit_url)


@contextlib.contextmanager
def _upload_errors(repo_id: str, repo_type: str | None) -> Iterator[None]:
    """Make our errors, each one sentence, of what the Hub's client raises when it writes."""
    try:
        yield
    except _request_errors() as error:
        kind = BankError if repo_type == "dataset" else WeightsError
        raise kind(f"{repo_id}: the upload failed: {' '.join(str(error).split())}") from error


@contextlib.contextmanager
def _dataset_errors(repo_id: str, what: str, revision: str | None) -> Iterator[None]:
    """Make BankErrors, each one sentence, of what the Hub's client raises."""
    from huggingface_hub import errors as hf

    at = f" at revision {revision!r}" if revision else ""
    try:
        yield
    except hf.RevisionNotFoundError as error:
        raise BankError(f"{repo_id}: the Hub has no such revision: {revision!r}") from error
    except hf.LocalEntryNotFoundError as error:
        raise BankError(f"{repo_id}: {what}{at} is not in the local cache and could not be fetched; check the network") from error
    except hf.EntryNotFoundError as error:
        raise BankError(f"{repo_id}: the data set has no file {what}{at}: it is no bank that push_to_hub wrote") from error
    except (hf.RepositoryNotFoundError, hf.HFValidationError) as error:
        raise BankError(
            f"{repo_id!r}: no such directory, and no such data set on the Hub, or it is private: check the name, or log in"
        ) from error
    except _request_errors() as error:
        raise BankError(f"{repo_id}: {what}{at} could not be fetched: {' '.join(str(error).split())}") from error


@contextlib.contextmanager
def _bars_on_a_terminal() -> Iterator[None]:
    """No bars of the Hub's client where nobody watches."""
    utils: Any = importlib.import_module("huggingface_hub.utils")
    if sys.stderr.isatty() or utils.are_progress_bars_disabled():
        yield
        return
    utils.disable_progress_bars()
    try:
        yield
    finally:
        utils.enable_progress_bars()


def _request_errors() -> tuple[type[Exception], ...]:
    """Return what the Hub's client raises, whichever HTTP library it uses: requests, httpx and httpx2 were, each in its time."""
    from huggingface_hub.errors import HfHubHTTPError

    # The bases are that library's errors, for a connection that breaks; ValueError is for a name or a card the Hub refuses.
    return (*HfHubHTTPError.__bases__, OSError, ValueError)


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # no path at all, such as a name longer than the file system allows
        return False


def is_repository(name: str) -> bool:
    """Whether a name can be that of a repository, ``"organisation/name"``."""
    parts = name.split("/")
    return len(parts) == 2 and all(parts) and not name.startswith((".", "~")) and "\\" not in name
