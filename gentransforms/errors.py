"""The tree of errors that a user of the library may meet.

GentransformsError
├── ImageError          an image, or what stands beside it in a sample, cannot be used   (ValueError)
├── GeneratorError      a generator broke its contract                                    (RuntimeError)
├── ConfigError         a setting or configuration is wrong                               (ValueError)
├── WeightsError        a weights file or repository is missing, damaged or of another kind (RuntimeError)
│   └── ConversionError a released checkpoint does not match its own description
├── MissingInputError   a generator needs something that was not given                    (RuntimeError)
└── DeviceError         work was asked for where it cannot be done                        (RuntimeError)
"""

from __future__ import annotations

__all__ = [
    "ConfigError",
    "ConversionError",
    "DeviceError",
    "GeneratorError",
    "GentransformsError",
    "ImageError",
    "MissingInputError",
    "WeightsError",
]


class GentransformsError(Exception):
    """Base of every error this library raises for its users."""


class ImageError(GentransformsError, ValueError):
    """An image, or what stands beside it in a sample, cannot be used."""


class GeneratorError(GentransformsError, RuntimeError):
    """A generator broke its contract: wrong shape, dtype, device or count."""


class ConfigError(GentransformsError, ValueError):
    """A setting, an option or a configuration is wrong."""


class WeightsError(GentransformsError, RuntimeError):
    """A weights file or repository is missing, damaged or of another kind."""


class ConversionError(WeightsError):
    """A released checkpoint does not match its own description."""


class MissingInputError(GentransformsError, RuntimeError):
    """A generator needs something that was not given: labels, masks, prompts or a feature extractor."""


class DeviceError(GentransformsError, RuntimeError):
    """Work was asked for where it cannot be done, such as CUDA in a forked worker."""
