"""Decoders that draw noise: from the seed of each image, as the stock pipeline with a random generator for each."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import stock
import tiny_diffusion as tiny
import torch
from torch import Tensor

import gentransforms as gt

pytestmark = pytest.mark.usefixtures("one_thread")
SEEDS = torch.tensor([3, 2**62, 7])


def photos() -> Tensor:
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def consistency_decoder() -> Any:
    """As OpenAI's for Stable Diffusion: a diffusion model of pixels, in two steps."""
    torch.manual_seed(0)
    options: dict[str, Any] = {
        "encoder_block_out_channels": (16, 32), "encoder_down_block_types": ("DownEncoderBlock2D",) * 2, "encoder_layers_per_block": 1,
        "encoder_norm_num_groups": 8, "decoder_block_out_channels": (32, 64), "decoder_layers_per_block": 1, "decoder_norm_num_groups": 8,
        "decoder_down_block_types": ("ResnetDownsampleBlock2D",) * 2, "decoder_up_block_types": ("ResnetUpsampleBlock2D",) * 2,
    }  # fmt: skip
    return diffusers.ConsistencyDecoderVAE(scaling_factor=0.18215, **options).eval()


@pytest.fixture(scope="module")
def generator() -> gt.StableDiffusionVariation:
    pipe = tiny.stable_diffusion()
    pipe.register_modules(vae=consistency_decoder(), image_encoder=tiny.image_encoder(), feature_extractor=tiny.image_processor())
    pipe.load_ip_adapter(tiny.ip_adapter(pipe.unet), subfolder="", weight_name="", image_encoder_folder=None)
    return gt.StableDiffusionVariation.from_pipeline(pipe, num_inference_steps=2)


class TestConsistencyDecoder:
    def test_the_seed_decides(self, generator: gt.StableDiffusionVariation) -> None:
        torch.manual_seed(1)
        made = generator(photos(), SEEDS)
        torch.manual_seed(2)
        assert torch.equal(generator(photos(), SEEDS), made)
        condition = generator.encode(photos()[:1].expand(3, -1, -1, -1))
        one, other, same = generator.sample(condition, torch.tensor([3, 4, 3]))
        assert (one - other).abs().max() > 0.05
        assert (one - same).abs().max() <= 1e-4

    @pytest.mark.parametrize("slices", [None, pytest.param(1, marks=pytest.mark.slow), 2])
    def test_an_image_alone_is_that_of_the_batch(self, generator: gt.StableDiffusionVariation, slices: int | None) -> None:
        generator.decode_batch_size = None
        made = generator(photos(), SEEDS)
        generator.decode_batch_size = slices
        assert (generator(photos(), SEEDS) - made).abs().max() <= 1e-4
        for i in range(3):
            assert (generator(photos()[i : i + 1], SEEDS[i : i + 1]) - made[i : i + 1]).abs().max() <= 1e-4

    def test_agrees_with_the_stock_pipeline(self, generator: gt.StableDiffusionVariation) -> None:
        made = generator(photos(), SEEDS)
        image = stock.normalised(generator, photos())
        expected = torch.cat(
            [
                stock.run(diffusers.StableDiffusionPipeline, generator, SEEDS[i : i + 1], prompt="", ip_adapter_image=image[i : i + 1])
                for i in range(3)
            ]
        )
        assert expected.std() > 0.05
        assert (made - expected).abs().max() <= 1e-4
