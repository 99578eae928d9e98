"""Code shared by models and data sets on the Hub: translation of the client's errors, uploads, checksums."""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import importlib
import sys
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gentransforms.errors import BankError, GentransformsError, WeightsError
from gentransforms.hub.card_parts import CARD_FILE
from gentransforms.hub.card_update import update_card
from gentransforms.hub.replaced import replaced_patterns

__all__ = [
    "DATASET",
    "MODEL",
    "Kind",
    "bars_on_a_terminal",
    "hub_errors",
    "is_gated",
    "is_repository",
    "sha256",
    "upload",
    "upload_one_by_one",
]

_MESSAGE = "Upload with gentransforms"


@dataclass(frozen=True)
class Kind:
    """A kind of repository: the Hub's name for it, the error class to raise, and the wording of the messages."""

    repo_type: str | None
    error: type[GentransformsError]
    no_file: str
    no_repository: str
    no_network: str
    log_in: str


MODEL = Kind(
    None, WeightsError,
    no_file="the repository has no file {what}",
    no_repository="no such repository on the Hub, or it is private: check the name, or pass token=",
    no_network="check the network, or drop local_files_only / HF_HUB_OFFLINE",
    log_in="log in with hf auth login, set HF_TOKEN, or pass token=",
)  # fmt: skip
DATASET = Kind(
    "dataset", BankError,
    no_file="the data set has no file {what}: it is not a bank written by push_to_hub",
    no_repository="no such directory, and no such data set on the Hub, or it is private: check the name, or log in",
    no_network="check the network",
    log_in="log in with hf auth login, or set HF_TOKEN",
)  # fmt: skip


@contextlib.contextmanager
def hub_errors(kind: Kind, repo_id: str, what: str, revision: str | None = None) -> Iterator[None]:
    """Translate what the Hub's client raises while reading into our errors, one sentence each.

    Args:
        kind: kind of the repository.
        repo_id: ``"organisation/name"``.
        what: what is fetched, such as ``"'config.json'"``.
        revision: the requested revision.
    """
    from huggingface_hub import errors as hf

    at = f"{what} at revision {revision!r}" if revision else what
    try:
        yield
    except hf.RevisionNotFoundError as error:
        raise kind.error(f"{repo_id}: the Hub has no such revision: {revision!r}") from error
    except hf.LocalEntryNotFoundError as error:
        raise kind.error(f"{repo_id}: {at} is not in the local cache and could not be fetched; {kind.no_network}") from error
    except hf.EntryNotFoundError as error:
        raise kind.error(f"{repo_id}: {kind.no_file.format(what=at)}") from error
    except hf.GatedRepoError as error:  # a subclass of the next
        raise kind.error(
            f"{repo_id}: {at} could not be fetched, because the repository is gated: accept its conditions at "
            f"{_page(kind, repo_id)}, then {kind.log_in}"
        ) from error
    except (hf.RepositoryNotFoundError, hf.HFValidationError) as error:
        raise kind.error(f"{repo_id}: {kind.no_repository}") from error
    except _request_errors() as error:
        raise kind.error(f"{repo_id}: {at} could not be fetched: {_one_line(error)}") from error


def upload(
    save: Callable[[Path], None],
    repo_id: str,
    kind: Kind = MODEL,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    given: Collection[str] | None = (),
) -> str:
    """Create the repository if absent, upload what `save` writes into a folder, and return the commit's address.

    Repository and branch are checked first, because `save` may write for hours. Weights in a folder of the repository that those in
    the same folder here replace, such as their shards of before, are deleted in the same commit; other files stay.

    Args:
        save: called with an empty folder.
        repo_id: ``"organisation/name"``, or the name alone for one of the user's own.
        kind: kind of the repository.
        private: whether a new repository is private; with True, one that exists and is public is refused.
        token: Hub token to use instead of the stored login.
        revision: branch to commit to.
        commit_message: message of the commit.
        given: parts of the card that the user stated now, which replace those of a card that is there; None replaces all of it.

    Raises:
        WeightsError, BankError: if the Hub refuses a model, a data set.
    """
    api, repo_id = _open_repository(repo_id, kind, private, token, revision)
    with tempfile.TemporaryDirectory() as directory, bars_on_a_terminal():
        save(Path(directory))
        if given is not None and (Path(directory) / CARD_FILE).exists():
            _keep_card(api, Path(directory) / CARD_FILE, repo_id, kind, revision, given)
        written = [path.relative_to(directory).as_posix() for path in Path(directory).rglob("*") if path.is_file()]
        with _upload_errors(kind, repo_id):
            commit = api.upload_folder(
                repo_id=repo_id,
                repo_type=kind.repo_type,
                folder_path=directory,
                revision=revision,
                commit_message=commit_message or _MESSAGE,
                delete_patterns=replaced_patterns(written) or None,
            )
    return str(commit.commit_url)


def upload_one_by_one(
    write: Callable[[Path, str], Iterable[Path]],
    repo_id: str,
    kind: Kind,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    replace: str | None = None,
    given: Collection[str] | None = (),
) -> str:
    """Upload files as they are written, then commit them all; return the commit's address.

    Each file is removed once it is uploaded, so that the disk holds one at a time. Files that the Hub already has, for example
    after an interrupted push, are not uploaded again.

    Args:
        write: given an empty folder and the repository's full name, yields the path of each file that it has written.
        repo_id: ``"organisation/name"``, or the name alone for one of the user's own.
        kind: kind of the repository.
        private: whether a new repository is private; with True, one that exists and is public is refused.
        token: Hub token to use instead of the stored login.
        revision: branch to commit to.
        commit_message: message of the commit.
        replace: pattern of existing files to delete, unless a file of that name was written.
        given: as in `upload`.

    Raises:
        WeightsError, BankError: if the Hub refuses a model, a data set.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    api, repo_id = _open_repository(repo_id, kind, private, token, revision)
    where: dict[str, Any] = {"repo_id": repo_id, "repo_type": kind.repo_type, "revision": revision}
    added: list[Any] = []
    with tempfile.TemporaryDirectory() as directory, bars_on_a_terminal():
        for path in write(Path(directory), repo_id):
            if given is not None and path == Path(directory) / CARD_FILE:
                _keep_card(api, path, repo_id, kind, revision, given)
            with _upload_errors(kind, repo_id):
                added.append(CommitOperationAdd(path.relative_to(directory).as_posix(), path))
                api.preupload_lfs_files(additions=added[-1:], **where)
            if added[-1]._is_uploaded:  # a small text is not: it goes with the commit
                path.unlink()
        with _upload_errors(kind, repo_id):
            names = {addition.path_in_repo for addition in added}
            there = set(api.list_repo_files(**where)) - names if replace is not None else set()
            gone = [CommitOperationDelete(name) for name in sorted(there) if fnmatch.fnmatch(name, str(replace))]
            commit = api.create_commit(operations=[*added, *gone], commit_message=commit_message or _MESSAGE, **where)
    return str(commit.commit_url)


def _open_repository(repo_id: str, kind: Kind, private: bool | None, token: str | bool | None, revision: str | None) -> tuple[Any, str]:
    """Create the repository if absent, check that the branch exists, and return the Hub's client and the repository's full name."""
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    with _upload_errors(kind, repo_id), bars_on_a_terminal():
        repo_id = api.create_repo(repo_id, repo_type=kind.repo_type, private=private, exist_ok=True).repo_id
        found = api.repo_info(repo_id, repo_type=kind.repo_type, revision=revision) if private or revision is not None else None
    if private and found is not None and found.private is False:
        raise kind.error(
            f"{repo_id}: private=True, and this repository exists and is public: make it private in its settings, or leave private out"
        )
    return api, repo_id


def _keep_card(api: Any, new: Path, repo_id: str, kind: Kind, revision: str | None, given: Collection[str]) -> None:
    """Update the card that the repository has, if it has one, with a new one, and write the result in place of the new one."""
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    with _upload_errors(kind, repo_id):
        try:  # by force, because without a network the client would return a card of before from its cache
            there = api.hf_hub_download(repo_id, CARD_FILE, repo_type=kind.repo_type, revision=revision, force_download=True)
        except LocalEntryNotFoundError as error:  # a subclass of the next, for a network that fails
            raise _unknown_card(error) from error
        except EntryNotFoundError:
            return
        except ValueError as error:  # what the client raises for the same by force
            raise _unknown_card(error) from error
        old = Path(there).read_text(encoding="utf-8-sig")
        new.write_text(update_card(old, new.read_text(encoding="utf-8"), given), encoding="utf-8")


def _unknown_card(error: Exception) -> OSError:
    cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
    return OSError(f"its {CARD_FILE}, which may have been edited, could not be fetched ({_one_line(cause)}): push again")


@contextlib.contextmanager
def bars_on_a_terminal() -> Iterator[None]:
    """Show the Hub client's progress bars on a terminal only."""
    utils: Any = importlib.import_module("huggingface_hub.utils")
    if sys.stderr.isatty() or utils.are_progress_bars_disabled():
        yield
        return
    utils.disable_progress_bars()
    try:
        yield
    finally:
        utils.enable_progress_bars()


def is_repository(name: str) -> bool:
    """Return whether `name` has the form of a repository, ``"organisation/name"``.

    Example:
        >>> is_repository("org/name"), is_repository("./folder"), is_repository("C:/folder")
        (True, False, False)
    """
    parts = name.split("/")
    return len(parts) == 2 and all(parts) and not name.startswith((".", "~")) and "\\" not in name and ":" not in name


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def is_gated(error: BaseException) -> bool:
    """Return whether the Hub's client raised an error because the conditions of a repository have not been accepted."""
    from huggingface_hub.errors import GatedRepoError

    return isinstance(error, GatedRepoError)


def _page(kind: Kind, repo_id: str) -> str:
    from huggingface_hub import constants

    return f"{constants.ENDPOINT}/{'' if kind.repo_type is None else kind.repo_type + 's/'}{repo_id}"


@contextlib.contextmanager
def _upload_errors(kind: Kind, repo_id: str) -> Iterator[None]:
    try:
        yield
    except _request_errors() as error:
        raise kind.error(f"{repo_id}: the upload failed: {_one_line(error)}") from error


def _request_errors() -> tuple[type[Exception], ...]:
    """Return the exceptions of the Hub's client, whichever HTTP library its version uses: requests, httpx or httpx2."""
    from huggingface_hub.errors import HfHubHTTPError

    # The base classes are that library's connection errors; ValueError is for a name or a card that the Hub refuses.
    return (*HfHubHTTPError.__bases__, OSError, ValueError)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
