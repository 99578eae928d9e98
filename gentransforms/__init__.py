"""Generative models as ordinary image augmentation: torchvision v2 transforms that draw new images of the same content."""

from __future__ import annotations

from gentransforms.bank.augment import BankAugment
from gentransforms.bank.generate import generate_bank, plan_bank
from gentransforms.bank.keyed import with_keys
from gentransforms.bank.reader import Bank
from gentransforms.errors import GentransformsError
from gentransforms.generators.base import ImageGenerator
from gentransforms.generators.diffusion.controlnet import ControlNetVariation
from gentransforms.generators.diffusion.variation import StableDiffusionVariation
from gentransforms.generators.icgan.generator import ICGAN
from gentransforms.registry import list_pretrained, load_generator
from gentransforms.seeding import derive_seeds
from gentransforms.transforms import GenerativeAugment, TwoViews

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
    "plan_bank",
    "with_keys",
]
