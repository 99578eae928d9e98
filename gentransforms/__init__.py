"""Generative models as ordinary image augmentation: torchvision v2 transforms that draw new images of the same content."""

from __future__ import annotations

from gentransforms.bank.generate.run import generate_bank, plan_bank
from gentransforms.bank.reader import Bank
from gentransforms.errors import GentransformsError
from gentransforms.generators.base import ImageGenerator
from gentransforms.generators.diffusion.controlnet import ControlNetVariation
from gentransforms.generators.diffusion.variation import StableDiffusionVariation
from gentransforms.generators.icgan.generator import ICGAN
from gentransforms.generators.registry import list_pretrained, load_generator
from gentransforms.seeding import derive_seeds
from gentransforms.sources import open_source
from gentransforms.sources.keyed import with_keys
from gentransforms.transforms.bank import BankAugment
from gentransforms.transforms.generative import GenerativeAugment
from gentransforms.transforms.two_views import TwoViews

__version__ = "0.1.0"

__all__ = [
    "ICGAN",
    "Bank",
    "BankAugment",
    "ControlNetVariation",
    "GenerativeAugment",
    "GentransformsError",
    "ImageGenerator",
    "StableDiffusionVariation",
    "TwoViews",
    "derive_seeds",
    "generate_bank",
    "list_pretrained",
    "load_generator",
    "open_source",
    "plan_bank",
    "with_keys",
]
