"""What the files of a pipeline leave out is refused when a generator is saved: IP-Adapters, and attention processors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_diffusion
import tiny_pipelines
import torch
from torch import nn

import gentransforms as gt
from gentransforms.errors import ConfigError
from gentransforms.generators.pipelines.processors import check_saved_whole

pytestmark = pytest.mark.usefixtures("one_thread")


class Scaled:
    """An attention processor with a setting."""

    def __init__(self, factor: float = 0.1) -> None:
        self.factor = factor

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError


def on_a_unet(pipe: Any) -> None:
    pipe.register_modules(image_encoder=tiny_diffusion.image_encoder(), feature_extractor=tiny_diffusion.image_processor())
    pipe.load_ip_adapter(tiny_diffusion.ip_adapter(pipe.unet), subfolder="", weight_name="", image_encoder_folder=None)


def on_a_transformer(pipe: Any) -> None:
    pipe.transformer.encoder_hid_proj = nn.Linear(2, 2)


def in_stable_diffusion_3(pipe: Any) -> None:
    pipe.transformer.image_proj = nn.Linear(2, 2)


def weights_of_its_own(pipe: Any) -> None:
    pipe.unet.mid_block.another = nn.Linear(2, 2)


def one_of_the_user(pipe: Any) -> None:
    pipe.unet.set_attn_processor(Scaled())


def one_in_a_transformer(pipe: Any) -> None:
    pipe.transformer.set_attn_processor(Scaled())


def one_in_an_autoencoder(pipe: Any) -> None:
    pipe.vae.set_attn_processor(Scaled())


def another_of_diffusers(pipe: Any) -> None:
    from diffusers.models.attention_processor import PAGIdentitySelfAttnProcessor2_0

    pipe.unet.set_attn_processor(PAGIdentitySelfAttnProcessor2_0())


def a_setting(pipe: Any) -> None:
    processor = next(iter(pipe.unet.attn_processors.values()))
    processor.strength = 0.5


class TestRefused:
    @pytest.mark.parametrize(
        ("family", "change", "message"),
        [
            ("img2img", on_a_unet, "unet holds an IP-Adapter.*unload_ip_adapter"),
            ("flux", on_a_transformer, "transformer holds an IP-Adapter"),
            ("stable_diffusion_3", in_stable_diffusion_3, "transformer holds an IP-Adapter"),
            ("img2img", weights_of_its_own, r"unet has the weights mid_block\.another\.weight, which its configuration does not build"),
            ("img2img", one_of_the_user, "unet has the attention processor Scaled .* builds AttnProcessor2_0"),
            ("flux", one_in_a_transformer, "transformer has the attention processor Scaled .* builds FluxAttnProcessor"),
            ("stable_diffusion_3", one_in_a_transformer, "transformer has the attention processor Scaled .* builds JointAttnProcessor2_0"),
            ("img2img", one_in_an_autoencoder, "vae has the attention processor Scaled"),
            ("img2img", another_of_diffusers, "unet has the attention processor PAGIdentitySelfAttnProcessor2_0"),
            ("img2img", a_setting, "unet has the attention processor AttnProcessor2_0 .* other settings"),
        ],
    )
    @pytest.mark.usefixtures("no_repository")
    def test_with_what_would_be_lost(self, family: str, change: Callable[[Any], None], message: str, tmp_path: Path) -> None:
        pipe = getattr(tiny_pipelines, family)()
        change(pipe)
        generator = gt.PipelineVariation.from_pipeline(pipe)
        with pytest.raises(ConfigError, match=message):
            generator.save_pretrained(tmp_path / "saved")
        assert not (tmp_path / "saved").exists()
        with pytest.raises(ConfigError, match=message):
            generator.push_to_hub("org/name")

    @pytest.mark.usefixtures("no_repository")
    def test_before_there_is_a_repository(self) -> None:
        generator = gt.PipelineVariation.from_pipeline(tiny_pipelines.img2img(), cross_attention_kwargs={"scale": nn.Linear(2, 2)})
        with pytest.raises(ConfigError, match="cannot be written as JSON"):
            generator.push_to_hub("org/name")
        with pytest.raises(ConfigError, match=r"dtype=torch\.bfloat16: load the generator with"):
            generator.push_to_hub("org/name", dtype=torch.bfloat16)


class TestAccepted:
    @pytest.mark.parametrize("family", ["img2img", "flux", "flux2_klein", "stable_diffusion_3", "z_image", "sana_sprint"])
    def test_networks_as_their_configurations_build_them(self, family: str) -> None:
        pipe = getattr(tiny_pipelines, family)()
        check_saved_whole({name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)})

    def test_what_changes_images_only_by_rounding(self) -> None:
        from diffusers.models.attention_processor import AttnProcessor

        pipe = tiny_pipelines.img2img()
        pipe.unet.set_attn_processor(AttnProcessor())
        check_saved_whole({"unet": pipe.unet})
        pipe.unet.set_attention_slice(1)
        check_saved_whole({"unet": pipe.unet})

    @pytest.mark.parametrize("family", ["img2img", "stable_diffusion_3", "flux"])
    def test_fused_projections(self, family: str) -> None:
        pipe = getattr(tiny_pipelines, family)()
        network = getattr(pipe, "transformer", None) or pipe.unet
        network.fuse_qkv_projections()
        check_saved_whole({"network": network})

    def test_an_adapter_that_was_unloaded(self, tmp_path: Path) -> None:
        pipe = tiny_pipelines.img2img()
        on_a_unet(pipe)
        pipe.unload_ip_adapter()
        generator = gt.PipelineVariation.from_pipeline(pipe, strength=0.5, num_inference_steps=4)
        generator.save_pretrained(tmp_path / "saved")
        saved = json.loads((tmp_path / "saved" / "config.json").read_text())["config"]
        assert (saved["depth"], saved["prior"]) == (False, False)  # what the folder does not hold is not looked for in it
        images, seeds = torch.rand(1, 3, 32, 32), torch.tensor([1])
        again = gt.load_generator(tmp_path / "saved")
        assert (again(images, seeds) - generator(images, seeds)).abs().max() <= 1e-5
