"""The released models at full size on the meta device: shapes and operations without weights, and nothing read back from a device.

A tensor on that device has no values: whatever reads one there fails, as `Tensor.item` would wait on an accelerator.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import tiny_diffusion as tiny
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import gentransforms as gt
from gentransforms.generators.diffusion import conditions

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks import full_size

# TFLOP, a multiply-add counted as two: measured by others (ANCHORS.md), in three digits.
UNET_64, UNET_32, DECODE_512, TINY_DECODE_512 = 0.804, 0.181, 2.515, 0.141
VISION = {"ViT-H/14": 0.335, "ViT-L/14": 0.162}


def tera(function: Any, *args: Any) -> float:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        function(*args)
    return counter.get_total_flops() / 1e12


def images(count: int, side: int) -> Tensor:
    return torch.empty(count, 3, side, side, device="meta")


class Built(dict[str, Any]):
    """The pipelines of each kind, built when they are asked for: each takes seconds."""

    def __missing__(self, kind: str) -> Any:
        with torch.device("cpu"):  # where the first test that asks is in another device's context, its scheduler would be there, too
            return self.setdefault(kind, full_size.build(kind))


@pytest.fixture(scope="module")
def pipes() -> dict[str, Any]:
    return Built()


@pytest.mark.slow
class TestParameters:
    """As many as the released weights hold."""

    def test_counts(self, pipes: dict[str, Any]) -> None:
        with torch.device("meta"):
            parts = {
                "tiny VAE": full_size.tiny_vae(),
                "UNet 2.1": full_size.unet("2.1"),
                "ControlNet": full_size.controlnet(pipes["sd15"].unet),
            }
        parts |= {"UNet 1.5": pipes["sd15"].unet, "UNet XL": pipes["sdxl"].unet, "VAE": pipes["sd15"].vae}
        assert {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()} == {
            "UNet 1.5": 859_520_964, "UNet 2.1": 865_910_724, "UNet XL": 2_567_463_684, "VAE": 83_653_863, "tiny VAE": 2_445_063,
            "ControlNet": 361_279_120,
        }  # fmt: skip


class TestOperations:
    """What one call of each network costs, against the counts in ANCHORS.md."""

    @pytest.mark.parametrize(("side", "expected"), [pytest.param(64, UNET_64, marks=pytest.mark.slow), (32, UNET_32)])
    def test_unet(self, pipes: dict[str, Any], side: int, expected: float) -> None:
        unet = pipes["unclip-large"].unet
        latents, text = torch.empty(1, 4, side, side, device="meta"), torch.empty(1, 77, 1024, device="meta")
        labels = torch.empty(1, 2048, device="meta")
        found = tera(lambda: unet(latents, torch.empty((), device="meta"), text, class_labels=labels))
        assert found == pytest.approx(expected, rel=0.005)

    @pytest.mark.slow
    def test_vae(self, pipes: dict[str, Any]) -> None:
        latents = torch.empty(1, 4, 64, 64, device="meta")
        assert tera(pipes["sd15"].vae.decode, latents) == pytest.approx(DECODE_512, rel=0.005)
        with torch.device("meta"):
            tiny = full_size.tiny_vae()
        assert tera(tiny.decode, latents) == pytest.approx(TINY_DECODE_512, rel=0.01)

    @pytest.mark.parametrize(("kind", "name"), [
        ("unclip-large", "ViT-H/14"), pytest.param("unclip-small", "ViT-L/14", marks=pytest.mark.slow),
    ])  # fmt: skip
    def test_image_encoder(self, pipes: dict[str, Any], kind: str, name: str) -> None:
        assert tera(pipes[kind].image_encoder, images(1, 224)) == pytest.approx(VISION[name], rel=0.01)


class TestSample:
    """`encode` and `sample` themselves. Tiny networks show the same for each kind; at full size, one is not slow."""

    @pytest.mark.parametrize(
        ("kind", "dtype"),
        [
            pytest.param(kind, dtype, marks=() if (kind, dtype) == ("unclip-large", torch.float32) else pytest.mark.slow)
            for kind in ("unclip-large", "unclip-small", "variation")
            for dtype in (torch.float32, torch.float16)
        ],
    )
    def test_shapes(self, pipes: dict[str, Any], kind: str, dtype: torch.dtype) -> None:
        pipe = pipes[kind] if dtype == torch.float32 else full_size.build(kind, dtype=dtype)
        generator = gt.StableDiffusionVariation.from_pipeline(pipe, num_inference_steps=1, scheduler="dpm++")
        width = 1024 if kind == "unclip-large" else 768
        condition = generator.encode(images(2, 300))
        assert (condition["image_embeds"].shape, condition["image_embeds"].dtype) == ((2, width), dtype)
        made = generator.sample(condition, torch.arange(2))
        side = 512 if kind == "variation" else 768
        assert (made.shape, made.dtype, made.device.type) == ((2, 3, side, side), torch.float32, "meta")

    @pytest.mark.slow
    @pytest.mark.parametrize("kind", ["sd15", "sdxl"])
    def test_ip_adapter(self, kind: str) -> None:
        pipe = full_size.build(kind)
        with torch.device("meta"):
            weights = tiny.ip_adapter(pipe.unet, embedding=1024)
            pipe.register_modules(image_encoder=full_size.image_encoder("ViT-H/14"))
        pipe.load_ip_adapter(weights, subfolder="", weight_name="", image_encoder_folder=None)
        generator = gt.StableDiffusionVariation.from_pipeline(pipe, num_inference_steps=1, scheduler="dpm++")
        condition = generator.encode(images(2, 300))
        assert condition["image_embeds"].shape == (2, 1024)
        side = 1024 if kind == "sdxl" else 512
        assert generator.sample(condition, torch.arange(2)).shape == (2, 3, side, side)

    @pytest.mark.slow
    @pytest.mark.parametrize("size", [(256, 256), (512, 256), (512, 512)])
    @pytest.mark.parametrize("guidance", [1.0, 10.0])
    def test_cost_of_an_image(self, pipes: dict[str, Any], size: tuple[int, int], guidance: float) -> None:
        """The networks as often as they must run, and nothing beside them that costs anything."""
        steps, count, variants = 2, 2, 2
        generator = gt.StableDiffusionVariation.from_pipeline(
            pipes["unclip-large"], num_inference_steps=steps, guidance_scale=guidance, scheduler="ddim", image_size=size
        )
        generator(images(1, 64), torch.arange(1))  # the empty prompt is encoded

        def run() -> None:
            condition = generator.encode(images(count, 64))
            generator.sample({name: rows.repeat_interleave(variants, dim=0) for name, rows in condition.items()}, torch.arange(4))

        latents = torch.empty(1, 4, size[0] // 8, size[1] // 8, device="meta")
        text, labels = torch.empty(1, 77, 1024, device="meta"), torch.empty(1, 2048, device="meta")
        unet = tera(lambda: generator.unet(latents, torch.empty((), device="meta"), text, class_labels=labels))
        decode, encode = tera(generator.vae.decode, latents), tera(generator.image_encoder, images(1, 224))
        rows = 2 if guidance > 1 else 1
        expected = count * encode + count * variants * (steps * rows * unet + decode)
        assert tera(run) == pytest.approx(expected, rel=1e-3)

    @pytest.mark.slow
    def test_controlnet(self, pipes: dict[str, Any]) -> None:
        base = pipes["sd15"]
        with torch.device("meta"):
            net = full_size.controlnet(base.unet)
        generator = gt.ControlNetVariation.from_pipeline(
            base, controlnet=[net, net], condition=["segmentation", lambda x: x], num_inference_steps=2, scheduler="dpm++", strength=0.5
        )
        masks = torch.zeros(2, 300, 200, dtype=torch.int64, device="meta")
        condition = generator.encode(images(2, 200), masks=masks)
        assert condition["control_0"].shape == condition["control_1"].shape == (2, 3, 512, 512)
        assert condition["latents"].shape == (2, 4, 64, 64)
        assert generator.sample(condition, torch.arange(2)).shape == (2, 3, 512, 512)


class Work(TorchDispatchMode):
    """Counts operations: those of convolutions as `FlopCounterMode` does, and one for each number any other operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.made = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.made += sum(t.numel() for t in (out if isinstance(out, tuple | list) else [out]) if isinstance(t, Tensor))
        if func is torch.ops.aten.max_pool2d_with_indices.default:
            self.made += 8 * out[0].numel()  # nine numbers are compared
        return out


class TestCanny:
    @pytest.mark.slow
    def test_costs_next_to_nothing(self) -> None:
        """16 images of 256 pixels, under 3% of the operations of the UNet's call for them, which sees latents of 32."""
        photos = torch.rand(16, 3, 256, 256, generator=torch.Generator().manual_seed(0))
        photos = torch.nn.functional.avg_pool2d(photos, 5, stride=1, padding=2)  # noise with edges long enough to follow
        photos = (photos - photos.mean()) * 4 + 0.5
        with Work() as work, FlopCounterMode(display=False) as counter:
            magnitude = conditions.canny_magnitude(photos)
            edges = conditions.canny_edges(magnitude, torch.full((16,), 0.3), torch.full((16,), 0.6))
        assert 0.005 < float(edges.mean()) < 0.5, "there are edges to follow"
        share = (counter.get_total_flops() + work.made) / (16 * UNET_32 * 1e12)
        assert 0 < share < 0.03
        assert share < 0.003, "in fact ten times less"

    def test_reads_nothing_before_its_one_look(self) -> None:
        assert conditions.canny_magnitude(images(2, 64)).shape == (2, 1, 64, 64)
