"""Write the model card that is saved beside the weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gentransforms.errors import ConfigError
from gentransforms.hub import models as hub
from gentransforms.hub.card_parts import card_part
from gentransforms.wording import with_article

__all__ = ["model_card"]

_UNSAID = "Not stated by whoever saved these weights."
_SECTIONS = {
    "training_data": ("Training data", _UNSAID),
    "evaluation": ("Evaluation", _UNSAID),
    "intended_use": (
        "Intended use",
        "Augmenting training images of vision models: each image is replaced, with some probability, by a new image of the same content.",
    ),
    "limits": (
        "Limits",
        "The images are synthetic. They inherit the gaps and biases of the training data, may change features that a label or "
        "a measurement depends on, and are not suitable for evaluation sets. Inspect a grid of them before training.",
    ),
}


def model_card(generator: Any, sections: Mapping[str, Any]) -> str:
    """Return a model card for `generator` in Markdown, with the metadata that the Hub reads.

    Args:
        generator: the ImageGenerator to save.
        sections: text of ``title``, ``description``, ``license``, ``license_link`` and of the sections; the card says so if one is absent.

    Raises:
        ConfigError: if a section is unknown.

    Example:
        >>> from gentransforms.testing import FakeGenerator
        >>> "library_name: gentransforms" in model_card(FakeGenerator(), {"license": "apache-2.0"})
        True
    """
    unknown = sorted(sections.keys() - _SECTIONS.keys() - {"title", "description", "license", "license_link"})
    if unknown:
        raise ConfigError(f"card: unknown sections {unknown}, expected title, description, license, license_link or {sorted(_SECTIONS)}")
    name = type(generator).__name__
    article = with_article(name).partition(" ")[0]
    tags = ["data-augmentation", "self-supervised-learning", name.lower()]
    license = sections.get("license", generator.license)
    link = sections.get("license_link", generator._license_link if license == generator.license else None)
    metadata = hub.card_metadata(license, link, pipeline_tag="image-to-image", tags=tags)
    height, width = generator.image_size
    weights = sum(tensor.numel() for tensor in generator._saved_weights().values())
    figures = [
        f"- Images: {height} x {width} pixels; keeps the source's layout: {'yes' if generator.preserves_geometry else 'no'}",
        f"- Weights: {weights:,} numbers",
        f"- Inputs besides the image: {', '.join(generator.inputs) or 'none'}",
    ]
    lines = [
        f"---\n{metadata}\n---\n",
        f"# {sections.get('title', name)}\n",
        sections.get("description", f"{article.capitalize()} `{name}` image generator for [gentransforms], saved with `save_pretrained`."),
        "\n" + card_part("figures", "\n".join(figures)) + "\n",
        f"- Licence: {f'[{license}]({link})' if license and link else license or _UNSAID}",
        *(f"- {what}: {text}" for what, text in generator.notes.items() if text != license),
        "",
        "## How to load\n",
        "```python\nimport gentransforms as gt\n",
        'augment = gt.GenerativeAugment.from_pretrained("<this repository or folder>", p=0.5)\n```\n',
    ]
    for key, (heading, default) in _SECTIONS.items():
        lines.append(f"## {heading}\n\n{sections.get(key, default)}\n")
    return "\n".join(lines)
