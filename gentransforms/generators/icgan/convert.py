"""Convert the authors' released folders into our format."""

from __future__ import annotations

from pathlib import Path

from gentransforms.errors import ConversionError, WeightsError
from gentransforms.generators.card import is_about
from gentransforms.generators.icgan.generator import ICGAN
from gentransforms.generators.icgan.released import load_resnet50_features, read_released
from gentransforms.hub.models import CARD_FILE
from gentransforms.paths import local_path

__all__ = ["convert_icgan"]

_CARD = {
    "license": "cc-by-nc-4.0",
    "training_data": "As stated by the authors for the released model of this name.",
    "description": "An IC-GAN released by Casanova et al. (NeurIPS 2021), converted by gentransforms; weights unchanged.",
}


def convert_icgan(source: str | Path, destination: str | Path, *, features: str | Path | None = None) -> ICGAN:
    """Convert a released folder into one that `ICGAN.from_pretrained` loads; return the generator.

    Args:
        source: folder with ``state_dict_best*.pth`` and ``G_ema_best*.pth``.
        destination: folder to write; the card of an earlier conversion of this release there stays as it was edited.
        features: SwAV or torchvision ResNet-50 checkpoint; without it the generator samples from given features only.

    Raises:
        ConversionError: if files are missing or unreadable, or keys are missing, unexpected or of the wrong shape; it lists them.
        ConfigError: if the config asks for something that the network does not support.
        WeightsError: if `destination` holds files that are not of an earlier conversion.
    """
    state, config = read_released(source)
    try:
        extractor = None if features is None else load_resnet50_features(features)
        generator = ICGAN.from_released(state, config, extractor)
    except WeightsError as error:
        raise ConversionError(f"{source}: {error}") from error
    there = local_path(destination, "destination") / CARD_FILE
    again = there.is_file() and is_about(there.read_text(encoding="utf-8", errors="replace"), generator)
    generator.save_pretrained(destination, card=None if again else {"title": local_path(source).resolve().name, **_CARD})
    return generator
