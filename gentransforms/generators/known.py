"""The generators that are known by name: the bundled one, and repositories of others that run here."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["KNOWN", "Pretrained", "PretrainedTable"]

_UNKNOWN = "not checked"


@dataclass(frozen=True)
class Pretrained:
    """One row of `list_pretrained`.

    Args:
        name: what `load_generator` takes.
        class_name: of the generator.
        repository: where its weights are.
        license: of its weights.
        description: what it is.
        keeps: what of a source its images keep, by the papers on it.
        size: of its images, in pixels: a side.
        steps: of denoising, in the full schedule: as its authors recommend them, or the 10 of Ayromlou et al. for those of
            `StableDiffusionVariation`; 0 for one pass. Without an option, the default of the pipeline applies.
        commercial: whether the licence allows commercial use: ``"yes"``, ``"no"``, or what to read.
        gated: whether the Hub asks for consent before the download: ``"yes"``, ``"no"``, or that it was not checked.
        options: of `load_generator` that it needs.
    """

    name: str
    class_name: str
    repository: str
    license: str
    description: str
    keeps: str
    size: int
    steps: int
    commercial: str = "yes"
    gated: str = "no"
    options: str = ""


class PretrainedTable(tuple[Pretrained, ...]):
    """Known generators, as a tuple of rows that prints as a table."""

    def __str__(self) -> str:
        header = ("name", "class", "licence", "commercial use", "gated", "size", "steps", "keeps", "what it is", "options")
        rows = [header] + [
            (
                r.name, r.class_name, r.license, r.commercial, r.gated, str(r.size), str(r.steps or "one pass"), r.keeps, r.description,
                r.options,
            )
            for r in self
        ]  # fmt: skip
        widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
        return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)

    __repr__ = __str__


def _hub(name: str, class_name: str, license: str, description: str, keeps: str, size: int, steps: int, **more: str) -> Pretrained:
    return Pretrained(name, class_name, name, license, description, keeps, size, steps, **more)


_CONTENT, _AS_STRENGTH = "content, style, colours", "layout and colours, the less the higher strength is"
_INSTRUCTED = "what the instruction leaves alone"
_DEV = "FLUX.1 [dev] non-commercial"

KNOWN = PretrainedTable(
    [
        Pretrained(
            "icgan-cifar10-32", "ICGAN", "bundled with the package", "Apache-2.0",
            "IC-GAN, trained on CIFAR-10 without labels", "the kind of thing", 32, 0,
        ),
        _hub(
            "sd2-community/stable-diffusion-2-1-unclip-small", "StableDiffusionVariation", "CreativeML Open RAIL++-M",
            "Stable Diffusion 2.1 unCLIP", _CONTENT, 768, 10, commercial="yes, with restrictions of use", gated=_UNKNOWN,
        ),
        _hub(
            "sd2-community/stable-diffusion-2-1-unclip", "StableDiffusionVariation", "CreativeML Open RAIL++-M",
            "the same with a larger image encoder", _CONTENT, 768, 10, commercial="yes, with restrictions of use", gated=_UNKNOWN,
        ),
        _hub(
            "lambdalabs/sd-image-variations-diffusers", "StableDiffusionVariation", "CreativeML Open RAIL-M",
            "Stable Diffusion 1.4 conditioned on CLIP image embeddings", _CONTENT, 512, 10, commercial="yes, with restrictions of use",
            gated=_UNKNOWN,
        ),
        _hub(
            "kandinsky-community/kandinsky-2-2-decoder", "PipelineVariation", "Apache-2.0", "Kandinsky 2.2", _CONTENT, 512, 50,
            gated=_UNKNOWN, options="prior=kandinsky-community/kandinsky-2-2-prior",
        ),
        _hub(
            "stabilityai/sdxl-turbo", "PipelineVariation", "sai-nc-community", "SDXL-Turbo, image to image", _AS_STRENGTH, 512, 4,
            commercial="no, without a licence of Stability AI", gated=_UNKNOWN, options="strength=0.5 guidance_scale=0",
        ),
        _hub(
            "SimianLuo/LCM_Dreamshaper_v7", "PipelineVariation", _UNKNOWN, "a latent consistency model, image to image", _AS_STRENGTH,
            512, 4, commercial="read its card", gated=_UNKNOWN, options="strength=0.5",
        ),
        _hub(
            "black-forest-labs/FLUX.2-klein-4B", "PipelineVariation", "Apache-2.0", "FLUX.2 klein, edits by instruction", _INSTRUCTED,
            1024, 4, gated=_UNKNOWN, options="prompt=…",
        ),
        _hub(
            "Tongyi-MAI/Z-Image-Turbo", "PipelineVariation", "Apache-2.0", "Z-Image-Turbo, image to image", _AS_STRENGTH, 1024, 9,
            gated=_UNKNOWN, options="strength=0.5 guidance_scale=0",
        ),
        _hub(
            "Qwen/Qwen-Image-Edit", "PipelineVariation", "Apache-2.0", "Qwen-Image-Edit, edits by instruction", _INSTRUCTED, 1024, 50,
            gated=_UNKNOWN, options="prompt=…",
        ),
        _hub(
            "Efficient-Large-Model/Sana_Sprint_1.6B_1024px_diffusers", "PipelineVariation", "sources differ: NVIDIA's own or Apache-2.0",
            "SANA-Sprint, image to image", _AS_STRENGTH, 1024, 2, commercial="read its card, and Gemma's terms", gated=_UNKNOWN,
            options="strength=0.6",
        ),
        _hub(
            "black-forest-labs/FLUX.1-dev", "PipelineVariation", _DEV, "FLUX Redux, with FLUX.1 dev", _CONTENT, 1024,
            28, commercial="no", gated="yes", options="prior=black-forest-labs/FLUX.1-Redux-dev",
        ),
    ]
)  # fmt: skip
