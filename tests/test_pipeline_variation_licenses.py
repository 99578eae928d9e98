"""Licences of a prior and of a depth model in the notes of a PipelineVariation."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_diffusion
import tiny_pipelines

import gentransforms as gt

pytestmark = pytest.mark.usefixtures("one_thread")
UNKNOWN = "unknown: look it up"


def card(folder: Path, license: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "README.md").write_text(f"---\nlicense: {license}\n---\n")


def licenses(generator: gt.PipelineVariation) -> dict[str, str]:
    return {name.removeprefix("Licence of "): value for name, value in generator.notes.items() if name.startswith("Licence of the ")}


class TestLicenses:
    def test_of_a_depth_model_in_a_pipeline(self, tmp_path: Path) -> None:
        pipe, prior = tiny_pipelines.kandinsky_depth()
        model, processor = tiny_diffusion.depth_estimator()
        card(tmp_path, "cc-by-nc-4.0")
        model.name_or_path = str(tmp_path)
        generator = gt.PipelineVariation.from_pipeline(
            pipe, prior=prior, condition="depth", depth_estimator=(model, processor), num_inference_steps=1, image_size=64
        )
        assert licenses(generator) == {"the prior": UNKNOWN, "the depth model": "cc-by-nc-4.0"}

    def test_of_a_prior_that_was_replaced(self, tmp_path: Path) -> None:
        pipe, prior = tiny_pipelines.kandinsky()
        pipe.save_pretrained(tmp_path / "decoder")
        for name, license in (("a", "mit"), ("b", "apache-2.0")):
            prior.save_pretrained(tmp_path / name)
            card(tmp_path / name, license)
        load = gt.PipelineVariation.from_pretrained
        load(tmp_path / "decoder", prior=tmp_path / "a", num_inference_steps=1).save_pretrained(tmp_path / "saved")
        assert licenses(load(tmp_path / "saved")) == {f"the prior {tmp_path.name}/a": "mit"}
        assert licenses(load(tmp_path / "saved", prior=tmp_path / "b")) == {f"the prior {tmp_path.name}/b": "apache-2.0"}
