"""Repositories as they were written years ago, or partly: old scheduler configurations, and weight files of one variant only."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
import pytest
import tiny_diffusion as tiny
import torch
from safetensors.torch import save_file
from torch import Tensor

import gentransforms as gt
from gentransforms.errors import WeightsError
from gentransforms.generators.diffusion.loading import rebuild

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:The configuration file of this scheduler"),
]
FAST: dict[str, Any] = {"num_inference_steps": 3, "guidance_scale": 3.0}
SEEDS = torch.tensor([3, 4])
OLD = {
    "new": {},
    "steps_offset": {"steps_offset": 0},
    "clip_sample": {"_class_name": "DDIMScheduler", "clip_sample": True, "steps_offset": 0},
}

AGES = [pytest.param("new", marks=pytest.mark.slow), "steps_offset", "clip_sample"]
# What Stable Diffusion's pipelines rewrite and XL's leave: each base with one, and the others slow.
BASES = [
    pytest.param(base, age, marks=() if (base, age) in (("base", "steps_offset"), ("xl", "clip_sample")) else pytest.mark.slow)
    for base in ("base", "xl")
    for age in OLD
]


def photos() -> Tensor:
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def normalised(images: Tensor) -> Tensor:
    return torch.as_tensor(tiny.image_processor()(images, do_rescale=False, return_tensors="pt").pixel_values)


def rngs(seeds: Tensor) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(int(seed)) for seed in seeds]


@pytest.fixture(scope="module")
def repositories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("repositories")
    base = tiny.stable_diffusion()
    parts = {"unclip": tiny.unclip(), "variation": tiny.variation(), "base": base, "xl": tiny.stable_diffusion_xl()}
    parts |= {"controlnet": tiny.controlnet(base.unet), "controlnet_xl": tiny.controlnet(parts["xl"].unet)}
    for name, part in parts.items():
        part.save_pretrained(root / name)
    models = root / "adapter" / "models"
    models.mkdir(parents=True)
    for name in ("base", "xl"):
        weights = tiny.ip_adapter(parts[name].unet)
        flat = {f"{part}.{key}": value.contiguous() for part, tensors in weights.items() for key, value in tensors.items()}
        save_file(flat, models / f"{name}.safetensors")
    tiny.image_encoder().save_pretrained(models / "image_encoder")
    return {path.name: path for path in root.iterdir()}


def aged(source: Path, target: Path, age: str) -> Path:
    """A copy whose scheduler has a configuration of that age."""
    shutil.copytree(source, target)
    file = target / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | OLD[age]))
    if "_class_name" in OLD[age]:
        index = target / "model_index.json"
        index.write_text(json.dumps(json.loads(index.read_text()) | {"scheduler": ["diffusers", OLD[age]["_class_name"]]}))
    return target


def stock_images(cls: Any, folder: Path, adapter: tuple[Path, str] | None = None, seeds: Tensor = SEEDS, **arguments: Any) -> Tensor:
    """What the stock pipeline, loaded from the repository as everybody does, makes."""
    parts = {name: arguments.pop(name) for name in ("controlnet",) if name in arguments}
    if "safety_checker" in cls.__init__.__annotations__:
        parts["safety_checker"] = None
    pipe = cls.from_pretrained(folder, **parts)
    if adapter is not None:
        pipe.load_ip_adapter(str(adapter[0]), subfolder="models", weight_name=adapter[1])
    pipe.set_progress_bar_config(disable=True)
    size = {"height": 32, "width": 32}
    with torch.no_grad():
        images: Tensor = pipe(**arguments, **size, **FAST, generator=rngs(seeds), output_type="pt").images
    return images


class TestOldConfigurations:
    """Images equal those of the stock pipeline of each family, which rewrites an old configuration in some, and not in others.

    Each family with both old configurations; new ones, which nothing rewrites, are slow tests, but for unCLIP.
    """

    def check(self, generator: Any, reference: Tensor) -> None:
        made = generator(photos(), SEEDS)
        assert made.std() > 0.05
        assert (made - reference).abs().max() <= 1e-4

    @pytest.mark.parametrize("age", AGES)
    def test_unclip(self, age: str, repositories: dict[str, Path], tmp_path: Path) -> None:
        folder = aged(repositories["unclip"], tmp_path / "old", age)
        reference = stock_images(diffusers.StableUnCLIPImg2ImgPipeline, folder, image=normalised(photos()), prompt=["", ""])
        self.check(gt.StableDiffusionVariation.from_pretrained(folder, **FAST), reference)

    @pytest.mark.parametrize("age", AGES)
    def test_variation(self, age: str, repositories: dict[str, Path], tmp_path: Path) -> None:
        folder = aged(repositories["variation"], tmp_path / "old", age)
        reference = stock_images(diffusers.StableDiffusionImageVariationPipeline, folder, image=normalised(photos()))
        self.check(gt.StableDiffusionVariation.from_pretrained(folder, **FAST), reference)

    @pytest.mark.slow  # each base is rewritten as in the next test
    @pytest.mark.parametrize(("base", "age"), BASES)
    def test_ip_adapter(self, base: str, age: str, repositories: dict[str, Path], tmp_path: Path) -> None:
        folder = aged(repositories[base], tmp_path / "old", age)
        cls = {"base": diffusers.StableDiffusionPipeline, "xl": diffusers.StableDiffusionXLPipeline}[base]
        own = (repositories["adapter"], f"{base}.safetensors")
        reference = torch.cat([  # one at a time: of several images the stock pipeline makes one result
            stock_images(cls, folder, own, SEEDS[i : i + 1], prompt="", ip_adapter_image=normalised(photos()[i : i + 1])) for i in (0, 1)
        ])  # fmt: skip
        adapter = (str(repositories["adapter"]), "models", f"{base}.safetensors")
        self.check(gt.StableDiffusionVariation.from_pretrained(folder, ip_adapter=adapter, **FAST), reference)

    @pytest.mark.parametrize(("base", "age"), BASES)
    def test_controlnet(self, base: str, age: str, repositories: dict[str, Path], tmp_path: Path) -> None:
        folder = aged(repositories[base], tmp_path / "old", age)
        name = {"base": "controlnet", "xl": "controlnet_xl"}[base]
        net = diffusers.ControlNetModel.from_pretrained(repositories[name])
        cls = {"base": diffusers.StableDiffusionControlNetPipeline, "xl": diffusers.StableDiffusionXLControlNetPipeline}[base]
        reference = stock_images(cls, folder, controlnet=net, image=photos(), prompt=["", ""])
        generator = gt.ControlNetVariation.from_pretrained(folder, controlnet=repositories[name], condition=same, **FAST)
        self.check(generator, reference)
        generator.save_pretrained(tmp_path / "saved")
        self.check(gt.ControlNetVariation.from_pretrained(tmp_path / "saved", condition=same), reference)


def same(images: Tensor) -> Tensor:
    return images


same.version = "1"  # type: ignore[attr-defined]


class TestHelperPipelines:
    def test_leave_the_parts_as_they_are(self) -> None:
        pipe = diffusers.StableDiffusionControlNetPipeline(
            vae=tiny.vae(), text_encoder=tiny.text_encoder(), tokenizer=tiny.tokenizer(), unet=tiny.unet(),
            controlnet=tiny.controlnet(tiny.unet()), scheduler=tiny.scheduler(steps_offset=0), safety_checker=None, feature_extractor=None,
            requires_safety_checker=False,
        )  # fmt: skip
        pipe.unet.register_to_config(_diffusers_version="0.8.0")
        before = {name: dict(part.config) for name, part in pipe.components.items() if hasattr(part, "config") and name != "text_encoder"}
        helper = rebuild(pipe)
        assert type(helper).__name__ == "StableDiffusionPipeline"
        assert helper.scheduler is pipe.scheduler
        after = {name: dict(part.config) for name, part in pipe.components.items() if name in before}
        assert after == before
        assert helper.scheduler.config.steps_offset == 0
        assert helper.unet.config.sample_size == 16

    def test_generators_leave_the_pipeline_as_it_is(self) -> None:
        pipe = tiny.unclip()
        pipe.scheduler.register_to_config(steps_offset=0, clip_sample=True)
        gt.StableDiffusionVariation.from_pipeline(pipe)
        assert (pipe.scheduler.config.steps_offset, pipe.scheduler.config.clip_sample) == (0, True)


class TestVariants:
    def save(self, folder: Path, **parts: Any) -> None:
        for name, part in parts.items():
            part.save_pretrained(folder / name, variant="fp16")

    def test_reach_every_part(self, tmp_path: Path) -> None:
        base = tiny.stable_diffusion()
        estimator, processor = tiny.depth_estimator()
        self.save(tmp_path, base=base, controlnet=tiny.controlnet(base.unet), vae=tiny.vae())
        estimator.save_pretrained(tmp_path / "depth", variant="fp16")
        processor.save_pretrained(tmp_path / "depth")
        weights = tiny.ip_adapter(base.unet)
        (tmp_path / "models").mkdir()
        save_file({f"{p}.{k}": v.contiguous() for p, t in weights.items() for k, v in t.items()}, tmp_path / "models" / "ip.safetensors")
        tiny.image_encoder().save_pretrained(tmp_path / "models" / "image_encoder", variant="fp16")
        generator = gt.ControlNetVariation.from_pretrained(
            tmp_path / "base", controlnet=tmp_path / "controlnet", vae=tmp_path / "vae", depth_model=tmp_path / "depth", condition="depth",
            ip_adapter=(str(tmp_path), "models", "ip.safetensors"), variant="fp16", num_inference_steps=1,
        )  # fmt: skip
        assert generator(photos(), SEEDS).isfinite().all()

    def test_parts_without_such_files_are_loaded_from_plain_ones(self, tmp_path: Path) -> None:
        base = tiny.stable_diffusion()
        self.save(tmp_path, base=base)
        tiny.controlnet(base.unet).save_pretrained(tmp_path / "controlnet")
        gt.ControlNetVariation.from_pretrained(tmp_path / "base", controlnet=tmp_path / "controlnet", variant="fp16")

    @pytest.mark.parametrize("part", ["base", "controlnet"])
    def test_where_no_others_lie_the_error_names_them(self, part: str, tmp_path: Path) -> None:
        base = tiny.stable_diffusion()
        parts = {"base": base, "controlnet": tiny.controlnet(base.unet)}
        for name, saved in parts.items():
            saved.save_pretrained(tmp_path / name, **({"variant": "fp16"} if name == part else {}))
        with pytest.raises(WeightsError, match=rf"{part}: there are no plain weight files, only .* fp16: give variant='fp16'"):
            gt.ControlNetVariation.from_pretrained(tmp_path / "base", controlnet=tmp_path / "controlnet")

    def test_another_variant_than_those_there(self, tmp_path: Path) -> None:
        tiny.unclip().save_pretrained(tmp_path, variant="fp16")
        with pytest.raises(WeightsError, match=r"the variant 'bf16' is not there, only .* fp16: give variant='fp16'"):
            gt.load_generator(tmp_path, variant="bf16")
