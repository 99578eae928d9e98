"""The errors that the library raises for its users.

GentransformsError
├── ImageError          an image, or something that accompanies it in a sample, cannot be used (ValueError)
├── GeneratorError      a generator broke its contract                                         (RuntimeError)
├── ConfigError         a setting or configuration is invalid                                  (ValueError)
├── WeightsError        a weights file or repository is missing, damaged or of another kind    (RuntimeError)
│   └── ConversionError a released checkpoint does not match its own description
├── MissingInputError   a generator needs something that was not given                         (RuntimeError)
├── DeviceError         the work cannot be done on this device or in this process              (RuntimeError)
├── SourceError         a source image of a bank cannot be read                                (RuntimeError)
└── BankError           a bank is missing, unfinished, damaged, or made with other settings    (RuntimeError)
    ├── MissingKeyError a bank holds no image for a key or variant                             (LookupError)
    └── OtherBankError  a bank was made with other settings or sources than those given now
"""

from __future__ import annotations

__all__ = [
    "BankError",
    "ConfigError",
    "ConversionError",
    "DeviceError",
    "GeneratorError",
    "GentransformsError",
    "ImageError",
    "MissingInputError",
    "MissingKeyError",
    "OtherBankError",
    "SourceError",
    "WeightsError",
]


class GentransformsError(Exception):
    """Base class of the errors that this library raises for its users."""


class ImageError(GentransformsError, ValueError):
    """An image, or something that accompanies it in a sample, cannot be used."""


class GeneratorError(GentransformsError, RuntimeError):
    """A generator broke its contract: wrong shape, dtype, device or count."""


class ConfigError(GentransformsError, ValueError):
    """A setting, an option or a configuration is invalid."""


class WeightsError(GentransformsError, RuntimeError):
    """A weights file or repository is missing, damaged or of another kind."""


class ConversionError(WeightsError):
    """A released checkpoint does not match its own description."""


class MissingInputError(GentransformsError, RuntimeError):
    """A generator needs something that was not given: labels, masks, prompts or a feature extractor."""


class DeviceError(GentransformsError, RuntimeError):
    """The work cannot be done on this device or in this process, such as CUDA in a forked worker."""


class SourceError(GentransformsError, RuntimeError):
    """A source image of a bank cannot be read; the bank records the message as the reason."""


class BankError(GentransformsError, RuntimeError):
    """A bank is missing, unfinished, damaged, or made with other settings."""


class MissingKeyError(BankError, LookupError):
    """A bank holds no image for a key, or for one of its variants."""


class OtherBankError(BankError):
    """A bank was made with other settings or sources than those given now. The same call fails again."""
