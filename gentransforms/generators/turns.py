"""One thread at a time: a pipeline's call keeps what it is doing in its networks and scheduler, so two at once would mix their images."""

from __future__ import annotations

import contextlib
import os
import threading
import weakref

import torch
from torch import nn

__all__ = ["take_turn"]

_guard = threading.RLock()
# Beside the generators, not in them: a lock can be neither pickled nor copied, and a copy has its own turns.
_locks: weakref.WeakKeyDictionary[nn.Module, threading.RLock] = weakref.WeakKeyDictionary()


def take_turn(generator: nn.Module) -> contextlib.AbstractContextManager[object]:
    """Return a context in which no other thread is in a context of the same generator; a thread that is inside may enter again.

    In a graph of ``torch.compile``, where there are no threads to wait for, it does nothing.

    Example:
        >>> generator = nn.Identity()
        >>> with take_turn(generator), take_turn(generator):
        ...     pass
    """
    if torch.compiler.is_compiling():
        return contextlib.nullcontext()
    with _guard:
        return _locks.setdefault(generator, threading.RLock())


def _forget() -> None:
    """Begin anew in a forked process: a thread of the parent may have been inside, and would never leave here."""
    global _guard, _locks
    _guard, _locks = threading.RLock(), weakref.WeakKeyDictionary()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
