"""Which value is white in grey images of more than 8 bits, where no file says so."""

from __future__ import annotations

import math
from typing import cast

import numpy as np
import PIL.Image

from gentransforms.errors import SourceError

__all__ = ["WhiteLevel"]

_WHOLE = 65535
_OF_FLOATS = (1, 255, _WHOLE)
_CLIPPED = 1.1  # of white: interpolation and sharpening overshoot by less, as a rule
_OVERSHOOT = 1.5  # of white: the most that bicubic and Lanczos resampling overshoot, as in `gentransforms.images`
_DARK = 4  # times the largest value, and white is in doubt: 14 bits of 16


class WhiteLevel:
    """The value of white in the grey images of one source: the given one, or for each image what fits its values.

    Args:
        level: value of white, such as 1023 for 10 bits; None to choose one. Integers then have 65535, and floats 1, 255 or 65535: the
            first that their largest value does not exceed, or overshoots as interpolation does.

    Example:
        >>> WhiteLevel().of(PIL.Image.new("F", (4, 2), 1.01))
        (1, [])
        >>> WhiteLevel(2.0).of(PIL.Image.new("F", (4, 2), 1.01))
        (2.0, [])
    """

    def __init__(self, level: float | None = None) -> None:
        self.level = level
        self._assumed: list[int] = []

    def of(self, image: PIL.Image.Image) -> tuple[float, list[str]]:
        """Return the value of white in an image, and what is to be said about that choice; nothing of an image of 8 bits.

        Raises:
            SourceError: if no choice fits.
        """
        floats = image.mode == "F"
        if self.level is not None or not (floats or image.mode.startswith("I")):
            return self.level or _WHOLE, []
        if not floats:
            return _WHOLE, _of_integers(image)
        low, high = cast("tuple[float, float]", image.getextrema())
        white = next((white for white in _OF_FLOATS if _fits(low, high, white)), None)
        if white is None:
            raise SourceError(f"pixels from {low:g} to {high:g}: expected 0 to 1, 0 to 255 or 0 to 65535")
        doubts = []
        if white not in self._assumed:
            self._assumed.append(white)
            if len(self._assumed) > 1:
                ranges = " and ".join(f"0 to {white}" for white in sorted(self._assumed))
                doubts.append(
                    f"grey images of floats of one source are scaled from different ranges, {ranges}, each by its own largest value: "
                    "pass white_level= (--white-level) with the value that is white in all of them"
                )
        if high > _CLIPPED * white:
            doubts.append(
                f"a grey image of floats has values far above {white}, which become white: if white is another value, pass white_level= "
                "(--white-level)"
            )
        elif 0 < high < white / _DARK:
            bound = 2.0 ** math.ceil(math.log2(high)) if white == 1 else (1 << math.ceil(high).bit_length()) - 1
            doubts.append(
                f"a grey image of floats has no values above {bound:g} and will be dark, as white is taken to be {white}: "
                f"if white is {bound:g}, pass white_level={bound:g} (--white-level); if it is {white}, pass white_level={white}"
            )
        return white, doubts


def _of_integers(image: PIL.Image.Image) -> list[str]:
    values = np.asarray(image)
    low, top = int(values.min()), int(values.max())
    if not 0 <= low <= top <= 1.001 * _WHOLE:
        raise SourceError(f"pixels from {low} to {top}: expected 0 to 65535")
    if not 0 < top < (_WHOLE + 1) // _DARK:
        return []
    bits = max(8, top.bit_length() + top.bit_length() % 2)
    white = (1 << bits) - 1
    return [
        f"a grey image of 16 bits uses no more than {bits} of them and will be dark: if white is {white}, "
        f"pass white_level={white}; if it is 65535, pass white_level=65535"
    ]


def _fits(low: float, high: float, white: int) -> bool:
    # An image that goes as far below black as above white was normalised; it does not overshoot.
    below = 0.001 + (_OVERSHOOT - 1) * max(0.0, min(high, white))
    return -below <= low <= high <= (_OVERSHOOT if white < _WHOLE else _CLIPPED) * white
