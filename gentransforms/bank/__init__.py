"""Banks, directories of variants generated in advance. This module exports the engines that fill them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gentransforms.bank.generate.engines import Engine, Local
    from gentransforms.bank.generate.job import Job, UnitReport
    from gentransforms.bank.generate.on_ray import Ray

__all__ = ["Engine", "Job", "Local", "Ray", "UnitReport"]

_MODULES = {"Engine": "engines", "Local": "engines", "Ray": "on_ray", "Job": "job", "UnitReport": "job"}


def __getattr__(name: str) -> Any:
    """Load a name when it is first used, so that the command line can read a bank's settings without importing torch."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.generate.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
