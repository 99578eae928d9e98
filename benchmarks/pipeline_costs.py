"""What an image costs with pipelines that `PipelineVariation` runs, in counted operations: ``python -m benchmarks.pipeline_costs``.

Networks whose full-size configuration is certain stand on the meta device: those of Stable Diffusion 1.5 and XL (full_size.py), and the
transformers of FLUX.1, Z-Image, Qwen-Image and SANA 1.6B, whose configurations are the defaults of their classes in diffusers. The
defaults are taken for the released models because they give the number of weights that the authors state: 6, 20 and 1.6 billion, which
is printed, too. A multiply-add counts 2. The figures include the calls of the denoiser and of the VAE (FLUX's has the layers of Stable
Diffusion's; Qwen-Image's is its class's default). They leave out text and image encoders, which run once for each prompt or source, and
the autoencoders of Z-Image and SANA, whose configurations are published only with the weights. For the other models in docs/choosing.md
(Kandinsky 2.2, FLUX.2 klein) this holds for the denoiser, too, so they are not counted.
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


def z_image_call(side: int, text: int) -> float:
    """Return the TFLOP of one row through Z-Image's transformer, with `text` tokens of text."""
    with torch.device("meta"):
        net = _default("ZImageTransformer2DModel")
        return tflop(lambda: net([torch.rand(16, 1, side // 8, side // 8)], torch.rand(1), [torch.rand(text, 2560)]))


def sana_call(side: int, text: int) -> float:
    """Return the TFLOP of one row through SANA-Sprint's transformer, with `text` tokens of text."""
    with torch.device("meta"):
        net = _default("SanaTransformer2DModel", guidance_embeds=True, qk_norm="rms_norm_across_heads")  # what SANA-Sprint adds
        latents, texts = torch.rand(1, 32, side // 32, side // 32), torch.rand(1, text, 2304)
        return tflop(lambda: net(latents, encoder_hidden_states=texts, timestep=torch.rand(1), guidance=torch.rand(1)))


def qwen_edit_call(side: int, text: int) -> float:
    """Return the TFLOP of one row through Qwen-Image's transformer beside a source of its size, with `text` tokens of text and picture."""
    with torch.device("meta"):
        net, edge = _default("QwenImageTransformer2DModel"), side // 16
        latents, texts = torch.rand(1, 2 * edge**2, 64), torch.rand(1, text, 3584)
        shapes = [[(1, edge, edge)] * 2]
        return tflop(lambda: net(latents, encoder_hidden_states=texts, timestep=torch.rand(1), img_shapes=shapes))


def qwen_vae_calls(side: int) -> float:
    """Return the TFLOP of encoding and decoding an image with the VAE of Qwen-Image."""
    with torch.device("meta"):
        vae = _default("AutoencoderKLQwenImage")
        encoding = tflop(lambda: vae.encode(torch.rand(1, 3, 1, side, side)))
        return encoding + tflop(lambda: vae.decode(torch.rand(1, 16, 1, side // 8, side // 8)))


def _default(name: str, **changes: Any) -> Any:
    import diffusers

    net = getattr(diffusers, name)(**changes)
    print(f"{name}: {sum(p.numel() for p in net.parameters()) / 1e9:.2f} billion weights", file=sys.stderr)
    return net


def main() -> None:
    """Count and print a Markdown table."""
    print("| pipeline | TFLOP per image |\n|---|---:|")
    # Redux: 729 tokens of SigLIP beside 512 of the empty prompt.
    cases: dict[str, Callable[[], float]] = {
        "SDXL-Turbo image to image, 512 pixels, 2 of 4 steps": lambda: 2 * unet_call("xl", 512) + vae_calls(512),
        "LCM (SD 1.5) image to image, 512 pixels, 2 of 4 steps": lambda: 2 * unet_call("1.5", 512) + vae_calls(512),
        "FLUX Redux with FLUX.1 dev, 512 pixels, 28 steps": lambda: 28 * flux_call(512, 512 + 729) + vae_calls(512, encode=False),
        "Z-Image-Turbo image to image, 1024 pixels, 5 of 9 steps, transformer alone": lambda: 5 * z_image_call(1024, 32),
        "SANA-Sprint image to image, 1024 pixels, 2 steps, transformer alone": lambda: 2 * sana_call(1024, 300),
        # The picture is about 1,370 tokens (patches of 28 pixels), the template and a short instruction about 100.
        "Qwen-Image-Edit, 1024 pixels, 50 steps": lambda: 50 * qwen_edit_call(1024, 1470) + qwen_vae_calls(1024),
    }
    for name, count in cases.items():
        print(f"| {name} | {count():.1f} |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
