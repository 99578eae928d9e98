"""Let torch capture graphs with a backend of the test's, because code for them takes long to make."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch


@contextlib.contextmanager
def compiled_by(backend: Callable[[Any, Any], Any], monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Give every ``torch.compile`` the backend, whatever its mode, and forget the graphs afterwards."""
    whole = torch.compile
    monkeypatch.setattr(
        torch, "compile", functools.wraps(whole)(lambda function, mode=None, **rest: whole(function, backend=backend, **rest))
    )
    torch.compiler.reset()
    try:
        yield
    finally:
        torch.compiler.reset()
