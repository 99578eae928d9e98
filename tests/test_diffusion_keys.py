"""Keys and values of the text are computed once in a call, and images stay the same."""

from __future__ import annotations

import copy
import threading
from collections import Counter
from typing import Any

import pytest
import tiny_diffusion as tiny
import torch
from torch import Tensor

import gentransforms as gt
from gentransforms.generators.diffusion import base
from gentransforms.generators.diffusion.faster import keys
from gentransforms.generators.diffusion.faster.keys import KnownKeys, known_keys

pytestmark = pytest.mark.usefixtures("one_thread")
FAST: dict[str, Any] = {"num_inference_steps": 4, "scheduler": "ddim", "guidance_scale": 3.0}
SEEDS = torch.tensor([3, 5])


def photos() -> Tensor:
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(11))


def variation(**options: Any) -> gt.StableDiffusionVariation:
    return gt.StableDiffusionVariation.from_pipeline(tiny.unclip(), **(FAST | options))


def controlled(**options: Any) -> gt.ControlNetVariation:
    pipe = tiny.stable_diffusion()
    return gt.ControlNetVariation.from_pipeline(pipe, controlnet=tiny.controlnet(pipe.unet), prompt="a", **(FAST | options))


def text_layers(generator: Any) -> list[Any]:
    return [m.attn2 for net in generator._denoising_networks() for m in net.modules() if type(m).__name__ == "BasicTransformerBlock"]


class TestKnownKeys:
    @pytest.mark.parametrize("make", [variation, controlled])
    @pytest.mark.parametrize(
        "options",
        [{}, {"guidance_scale": 1.0}, {"fuse_qkv": True}, {"guidance_interval": (0.25, 0.75), "cache_interval": 2, "cache_branch": 1}],
        ids=["guided", "unguided", "fused", "faster"],
    )
    def test_once_for_all_steps(self, make: Any, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
        generator = make(**options)
        layers = text_layers(generator)
        assert len(layers) >= 4
        count: Counter[str] = Counter()
        for layer in layers:
            for name in ("to_q", "to_k", "to_v", "to_kv"):
                if (part := getattr(layer, name, None)) is not None:
                    part.register_forward_hook(lambda *_, name=name: count.update([name]))
        condition = generator.encode(photos())
        made = generator.sample(condition, SEEDS)
        once = {"to_kv": len(layers)} if "fuse_qkv" in options else {"to_k": len(layers), "to_v": len(layers)}
        steps = count.pop("to_q")
        assert count == once
        assert steps > 1.5 * len(layers), "queries are of the image, in each step"
        count.clear()
        monkeypatch.setattr(base, "known_keys", lambda networks, text: torch.no_grad())
        expected = generator.sample(condition, SEEDS)
        assert count["to_q"] == steps
        assert count[next(iter(once))] == steps, "as it was without"
        assert (made - expected).abs().max() <= 1e-5

    def test_processors_come_back(self, monkeypatch: pytest.MonkeyPatch) -> None:
        generator = variation()
        before = generator.fingerprint()
        layers = text_layers(generator)
        own = [layer.processor for layer in layers]

        def fail(*args: Any, **kwargs: Any) -> Any:
            assert all(isinstance(layer.processor, KnownKeys) for layer in layers)
            raise RuntimeError("in the loop")

        monkeypatch.setattr(base, "denoise", fail)
        with pytest.raises(RuntimeError, match="in the loop"):
            generator(photos(), SEEDS)
        assert [layer.processor for layer in layers] == own
        assert generator.fingerprint() == before

    def test_attention_of_other_kinds_is_left_alone(self) -> None:
        from diffusers.models.attention_processor import AttnProcessor

        generator = variation()
        expected = generator(photos(), SEEDS)
        generator.unet.set_attn_processor(AttnProcessor())
        layers = text_layers(generator)
        with known_keys([generator.unet], torch.zeros(1, 2, 32)):
            assert not any(isinstance(layer.processor, KnownKeys) for layer in layers)
        assert (generator(photos(), SEEDS) - expected).abs().max() <= 1e-5

    def test_an_ip_adapter_is_left_alone(self) -> None:
        pipe = tiny.stable_diffusion()
        pipe.register_modules(image_encoder=tiny.image_encoder(), feature_extractor=tiny.image_processor())
        pipe.load_ip_adapter(tiny.ip_adapter(pipe.unet), subfolder="", weight_name="", image_encoder_folder=None)
        processors = dict(pipe.unet.attn_processors)
        with known_keys([pipe.unet], torch.zeros(1, 2, 32)):
            assert pipe.unet.attn_processors == processors

    def test_copies_and_forks_of_a_network_at_work(self) -> None:
        generator = variation()
        layers = text_layers(generator)
        own = [layer.processor for layer in layers]
        with known_keys([generator.unet], torch.zeros(1, 2, 32)):
            copied: Any = copy.deepcopy(generator)
            assert {type(layer.processor) for layer in text_layers(copied)} == {type(own[0])}
            keys._forget()  # as in a forked process
            assert [layer.processor for layer in layers] == own
            assert not keys._FOUND

    def test_two_threads_wait_for_each_other(self) -> None:
        generator = variation(num_inference_steps=2)
        conditions = [generator.encode(photos(), prompts=[word] * 2) for word in ("a cat", "dog")]
        expected = [generator.sample(condition, SEEDS) for condition in conditions]
        found: list[Any] = [None, None]

        def run(i: int) -> None:
            with torch.no_grad():
                for _ in range(2):
                    found[i] = generator.sample(conditions[i], SEEDS)

        threads = [threading.Thread(target=run, args=(i,)) for i in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not torch.equal(expected[0], expected[1])
        for made, alone in zip(found, expected, strict=True):
            assert torch.equal(made, alone)
