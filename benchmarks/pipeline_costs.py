"""What an image costs with pipelines that `PipelineVariation` runs, in counted operations: ``python -m benchmarks.pipeline_costs``.

Networks whose full-size configuration is certain stand on the meta device: those of Stable Diffusion 1.5 and XL (full_size.py), and
FLUX.1's transformer, whose configuration is the default of its class in diffusers. A multiply-add counts 2. Counted are the calls of
the denoiser and of the VAE (FLUX's has the layers of Stable Diffusion's); text and image encoders, which run once for each prompt or
source, are not. Of the other models in docs/choosing.md the configuration is not known for certain here, and none is counted.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import full_size


def tflop(call: Callable[[], Any]) -> float:
    """Return the TFLOP of a call on the meta device."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops() / 1e12


def unet_call(version: str, side: int) -> float:
    """Return the TFLOP of one row through a UNet of Stable Diffusion, for images of `side` pixels."""
    wide = {"xl": 2048, "1.5": 768}[version]
    with torch.device("meta"):
        net = full_size.unet(version, **({} if version == "xl" else {"time_cond_proj_dim": 256}))
        added = {"text_embeds": torch.rand(1, 1280), "time_ids": torch.rand(1, 6)} if version == "xl" else None
        given = {} if version == "xl" else {"timestep_cond": torch.rand(1, 256)}
        return tflop(
            lambda: net(
                torch.rand(1, 4, side // 8, side // 8), torch.tensor(1), encoder_hidden_states=torch.rand(1, 77, wide),
                added_cond_kwargs=added, **given,
            )
        )  # fmt: skip


def vae_calls(side: int, encode: bool = True) -> float:
    """Return the TFLOP of decoding an image with the VAE of Stable Diffusion, and of encoding one."""
    with torch.device("meta"):
        vae, size = full_size.vae(), side // 8
        decoding = tflop(lambda: vae.decode(torch.rand(1, 4, size, size)))
        return decoding + (tflop(lambda: vae.encode(torch.rand(1, 3, side, side))) if encode else 0)


def flux_call(side: int, text: int) -> float:
    """Return the TFLOP of one row through FLUX.1's transformer, with `text` tokens of text and image embedding."""
    from diffusers import FluxTransformer2DModel

    with torch.device("meta"):
        net = FluxTransformer2DModel(guidance_embeds=True)
        tokens = (side // 16) ** 2
        inputs = {
            "hidden_states": torch.rand(1, tokens, 64), "encoder_hidden_states": torch.rand(1, text, 4096),
            "pooled_projections": torch.rand(1, 768), "timestep": torch.rand(1), "img_ids": torch.rand(tokens, 3),
            "txt_ids": torch.rand(text, 3), "guidance": torch.rand(1),
        }  # fmt: skip
        return tflop(lambda: net(**inputs))


def main() -> None:
    """Count and print a Markdown table."""
    print("| pipeline | TFLOP per image |\n|---|---:|")
    # Redux: 729 tokens of SigLIP beside 512 of the empty prompt.
    cases: dict[str, Callable[[], float]] = {
        "SDXL-Turbo image to image, 512 pixels, 2 of 4 steps": lambda: 2 * unet_call("xl", 512) + vae_calls(512),
        "LCM (SD 1.5) image to image, 512 pixels, 2 of 4 steps": lambda: 2 * unet_call("1.5", 512) + vae_calls(512),
        "FLUX Redux with FLUX.1 dev, 512 pixels, 28 steps": lambda: 28 * flux_call(512, 512 + 729) + vae_calls(512, encode=False),
    }
    for name, count in cases.items():
        print(f"| {name} | {count():.1f} |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
