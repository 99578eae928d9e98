"""Remove damaged units of a bank that other processes may be filling."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from gentransforms.bank.format.locking import locked
from gentransforms.bank.format.unit import INDEX
from gentransforms.errors import BankError

__all__ = ["remove_index", "remove_units"]


def remove_units(directory: Path, names: Sequence[str], damaged: Callable[[str], bool]) -> tuple[str, ...]:
    """Remove units that are damaged still, and return their names.

    Args:
        directory: of the bank.
        names: of the units that were found damaged, perhaps some time ago.
        damaged: asked of each once more while the bank's lock is held, when no process can be putting the unit in its place.

    Raises:
        BankError: if files cannot be removed.

    Example:
        >>> import tempfile
        >>> remove_units(Path(tempfile.mkdtemp()), ["unit-000000000-000000002"], lambda name: False)
        ()
    """
    removed = []
    for name in names:
        try:
            with locked(directory):
                if not damaged(name):
                    continue
                (directory / INDEX).unlink(missing_ok=True)  # what it says will not be so
                for suffix in (".arrow", ".json"):
                    (directory / f"{name}{suffix}").unlink(missing_ok=True)
                removed.append(name)
        except OSError as error:
            raise BankError(f"{directory / name}: cannot be removed: {error.strerror or error}: fix it and repair again") from error
    return tuple(removed)


def remove_index(directory: Path) -> None:
    """Remove the index of a bank, which opens without it.

    Raises:
        BankError: if it cannot be removed.
    """
    try:
        with locked(directory):
            (directory / INDEX).unlink(missing_ok=True)
    except OSError as error:
        raise BankError(f"{directory / INDEX}: cannot be removed: {error.strerror or error}: fix it and repair again") from error
