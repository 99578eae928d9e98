"""What the examples in docstrings have at hand besides the library: tiny repositories in diffusers layout, with random weights."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def diffusers_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folders of a Stable Diffusion unCLIP pipeline, a Stable Diffusion pipeline, a ControlNet and an image-to-image pipeline."""
    sys.path.insert(0, str(Path(__file__).parent / "tests"))
    import tiny_diffusion as tiny
    import tiny_pipelines

    root = tmp_path_factory.mktemp("diffusers")
    base = tiny.stable_diffusion()
    parts = {"unclip_folder": tiny.unclip(), "base_folder": base, "controlnet_folder": tiny.controlnet(base.unet)}
    parts["img2img_folder"] = tiny_pipelines.img2img()
    for name, part in parts.items():
        part.save_pretrained(root / name)
    return {name: str(root / name) for name in parts}


@pytest.fixture(autouse=True)
def _folders_in_docstrings(request: pytest.FixtureRequest, doctest_namespace: dict[str, Any]) -> None:
    families = (".diffusion.", ".pipelines.")  # the namespace is that of the whole session: without a name here, order would decide
    if type(request.node).__name__ == "DoctestItem" and any(family in request.node.name for family in families):
        doctest_namespace |= request.getfixturevalue("diffusers_folders")
