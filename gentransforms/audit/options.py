"""How an audit is made."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gentransforms.audit.pixels import STATISTICS
from gentransforms.errors import ConfigError

__all__ = ["AuditOptions", "read_options"]

_TAKEN = ("classes", *STATISTICS)


@dataclass(frozen=True)
class AuditOptions:
    """The arguments that `audit_bank` and `audit_generator` share; `audit_bank` says what they mean.

    Raises:
        ConfigError: if they do not fit each other.
    """

    encoder: Any = "auto"
    labels: Any = None
    holdout: Any = None
    limit: int | None = None
    attributes: Mapping[str, Any] | None = None
    classifier: Callable[[Tensor], Tensor] | None = None
    cache: str | Path | None = None
    device: torch.device | str | int | None = None
    seed: int = 0
    progress: bool = True

    def __post_init__(self) -> None:
        if self.classifier is not None and self.labels is None:
            raise ConfigError("classifier: judges labels, and there are none: give labels=")
        if type(self.seed) is not int:
            raise ConfigError(f"seed={self.seed!r}: expected a whole number")
        if self.attributes is not None and not isinstance(self.attributes, Mapping):
            raise ConfigError(f'attributes={self.attributes!r}: expected a dict from names to labels, such as {{"age": [...]}}')
        for name in self.attributes or {}:
            if name in _TAKEN:
                raise ConfigError(f"attributes: {name!r} names a measure already, drift/{name}: choose another name")

    @property
    def given(self) -> dict[str, Any]:
        """Labels and attributes, by what they are called in errors."""
        labels = {} if self.labels is None else {"labels": self.labels}
        return labels | {f"attributes[{name!r}]": values for name, values in (self.attributes or {}).items()}


def read_options(given: Mapping[str, Any]) -> AuditOptions:
    """Return options by name.

    Raises:
        ConfigError: if one is unknown.
    """
    known = [field.name for field in dataclasses.fields(AuditOptions)]
    unknown = next((name for name in given if name not in known), None)
    if unknown is not None:
        raise ConfigError(f"unknown option {unknown!r}: expected one of {', '.join(known)}")
    return AuditOptions(**given)
