"""Generative models as ordinary image augmentation: torchvision v2 transforms that generate new images of the same content."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

# For type checkers and editors. At run time a name is loaded when it is first used, so that importing the package is cheap.
if TYPE_CHECKING:
    from gentransforms.audit.result import Audit
    from gentransforms.audit.run import audit_bank, audit_generator
    from gentransforms.bank.config import BankConfig
    from gentransforms.bank.generate.run import generate_bank, plan_bank
    from gentransforms.bank.reader import Bank
    from gentransforms.errors import GentransformsError
    from gentransforms.generators.base import ImageGenerator
    from gentransforms.generators.diffusion.controlnet import ControlNetVariation
    from gentransforms.generators.diffusion.variation import StableDiffusionVariation
    from gentransforms.generators.icgan.generator import ICGAN
    from gentransforms.generators.pipelines.variation import PipelineVariation
    from gentransforms.generators.registry import list_pretrained, load_generator
    from gentransforms.seeding import derive_seeds
    from gentransforms.sources import ImageSource, open_source
    from gentransforms.sources.keyed import with_keys
    from gentransforms.transforms.bank import BankAugment
    from gentransforms.transforms.generative import GenerativeAugment
    from gentransforms.transforms.two_views import TwoViews

__version__ = "0.1.0"

__all__ = [
    "ICGAN",
    "Audit",
    "Bank",
    "BankAugment",
    "BankConfig",
    "ControlNetVariation",
    "GenerativeAugment",
    "GentransformsError",
    "ImageGenerator",
    "ImageSource",
    "PipelineVariation",
    "StableDiffusionVariation",
    "TwoViews",
    "audit_bank",
    "audit_generator",
    "derive_seeds",
    "generate_bank",
    "list_pretrained",
    "load_generator",
    "open_source",
    "plan_bank",
    "with_keys",
]

_MODULES = {
    "ICGAN": "generators.icgan.generator",
    "Audit": "audit.result",
    "Bank": "bank.reader",
    "BankAugment": "transforms.bank",
    "BankConfig": "bank.config",
    "ControlNetVariation": "generators.diffusion.controlnet",
    "GenerativeAugment": "transforms.generative",
    "GentransformsError": "errors",
    "ImageGenerator": "generators.base",
    "ImageSource": "sources",
    "PipelineVariation": "generators.pipelines.variation",
    "StableDiffusionVariation": "generators.diffusion.variation",
    "TwoViews": "transforms.two_views",
    "audit_bank": "audit.run",
    "audit_generator": "audit.run",
    "derive_seeds": "seeding",
    "generate_bank": "bank.generate.run",
    "list_pretrained": "generators.registry",
    "load_generator": "generators.registry",
    "open_source": "sources",
    "plan_bank": "bank.generate.run",
    "with_keys": "sources.keyed",
}
# Modules with public names of their own: gentransforms.errors.BankError works without importing the module.
_PUBLIC_MODULES = ("bank", "errors", "kornia", "sources", "testing")


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
        globals()[name] = value  # from now on without this function
        return value
    if name in _PUBLIC_MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_PUBLIC_MODULES})
