"""The error about a damaged file of a bank, whose advice depends on where the file is."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from gentransforms.errors import BankError

__all__ = ["ADVICE", "REPLACED", "Damage", "advising"]

# What to do about a damaged unit.
ADVICE = "`gentransforms bank verify --repair` removes damaged units, and generate (or bank import) then makes them again"
# The same where the unit may also be a new one.
REPLACED = f"if generate has replaced it since the bank was opened, open the bank again; otherwise it is damaged: {ADVICE}"


class Damage(BankError):
    """A file of a bank is damaged.

    Args:
        fault: what is wrong with it.
        advice: what to do if it is a unit of a bank.
    """

    def __init__(self, fault: str, advice: str = ADVICE) -> None:
        super().__init__(f"{fault}: {advice}")
        self.fault = fault

    def __reduce__(self) -> tuple[type[BankError], tuple[str]]:
        return BankError, (str(self),)


@contextlib.contextmanager
def advising(advice: str | None) -> Iterator[None]:
    """Give this advice about damaged files instead of that about units of a bank; None leaves it.

    Example:
        >>> with advising("download it again"):
        ...     raise Damage("a.parquet: is cut off")
        Traceback (most recent call last):
        ...
        gentransforms.errors.BankError: a.parquet: is cut off: download it again
    """
    try:
        yield
    except Damage as error:
        if advice is None:
            raise
        raise BankError(f"{error.fault}: {advice}") from error
