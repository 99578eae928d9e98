"""Quantised and offloaded pipelines: fingerprints, banks and saving work, or say what to do."""

from __future__ import annotations

import copy
import json
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_pipelines
import torch
from torch import Tensor

import gentransforms as gt
from gentransforms.errors import ConfigError, GentransformsError, WeightsError
from gentransforms.generators.diffusion.describe import describe_part

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:.*torchao.*:UserWarning"),
]
OPTIONS = {"strength": 0.5, "num_inference_steps": 2}
SEEDS = torch.tensor([3, 4])


def photos() -> Tensor:
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def generator_of(pipe: Any) -> gt.PipelineVariation:
    return gt.PipelineVariation.from_pipeline(pipe, **OPTIONS)


def by_call(folder: Path) -> Any:
    """A pipeline whose UNet torchao quantised in place."""
    quantization = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    pipe = tiny_pipelines.img2img()
    quantization.quantize_(pipe.unet, quantization.Int8WeightOnlyConfig())
    return pipe


def by_diffusers(folder: Path) -> Any:
    """One whose UNet diffusers loaded quantised."""
    quantization = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    from diffusers import TorchAoConfig, UNet2DConditionModel

    pipe = tiny_pipelines.img2img()
    pipe.unet.save_pretrained(folder / "unet")
    how = TorchAoConfig(quantization.Int8WeightOnlyConfig())
    pipe.register_modules(
        unet=UNet2DConditionModel.from_pretrained(folder / "unet", quantization_config=how, torch_dtype=torch.float32).eval()
    )
    return pipe


class TestTorchao:
    @pytest.mark.parametrize("make", [by_call, by_diffusers])
    def test_eight_bits(self, make: Any, tmp_path: Path) -> None:
        generator, plain = generator_of(make(tmp_path)), generator_of(tiny_pipelines.img2img())
        made, expected = generator(photos(), SEEDS), plain(photos(), SEEDS)
        assert 0 < (made - expected).abs().max() < 0.02
        found = generator.fingerprint()
        assert found != plain.fingerprint()
        assert generator_of(make(tmp_path / "again")).fingerprint() == found
        again = copy.deepcopy(generator)
        assert again.fingerprint() == found
        assert torch.allclose(again(photos(), SEEDS), made, atol=1e-5)
        with pytest.raises(ConfigError, match=r"unet is quantised \(.*\).*save the generator before quantising it.*banks work as it is"):
            generator.save_pretrained(tmp_path / "saved")
        data = [{"image": photo, "key": i} for i, photo in enumerate(photos())]
        gt.generate_bank(gt.open_source(data), tmp_path / "bank", generator, variants=1, progress=False)
        assert len(gt.Bank.open(tmp_path / "bank")) == 2

    def test_the_configuration_of_a_quantiser_is_written_as_json(self) -> None:
        how = SimpleNamespace(to_dict=lambda: {"quant_method": "torchao", "bits": 8})
        part = SimpleNamespace(config={"width": 4, "quantization_config": how})
        assert json.loads(json.dumps(describe_part(part)))["quantization_config"] == {"quant_method": "torchao", "bits": 8}


class TestByConfiguration:
    """`quantization_config=` of from_pretrained, which is diffusers'."""

    def test_reaches_diffusers(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from diffusers import StableDiffusionImg2ImgPipeline

        tiny_pipelines.img2img().save_pretrained(tmp_path)
        own, seen, how = StableDiffusionImg2ImgPipeline.from_pretrained, [], object()

        def load(place: str, quantization_config: Any = None, **options: Any) -> Any:
            seen.append(quantization_config)
            return own(place, **options)

        monkeypatch.setattr(StableDiffusionImg2ImgPipeline, "from_pretrained", load)
        gt.PipelineVariation.from_pretrained(tmp_path, quantization_config=how, **OPTIONS)
        gt.PipelineVariation.from_pretrained(tmp_path, **OPTIONS)
        assert seen == [how, None]

    @pytest.mark.skipif(find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed")
    def test_what_is_missing_is_named(self, tmp_path: Path) -> None:
        from diffusers import BitsAndBytesConfig, PipelineQuantizationConfig

        tiny_pipelines.img2img().save_pretrained(tmp_path)
        how = PipelineQuantizationConfig(quant_mapping={"unet": BitsAndBytesConfig(load_in_8bit=True)})
        with pytest.raises(GentransformsError, match=r"bitsandbytes|A GPU is needed"):
            gt.PipelineVariation.from_pretrained(tmp_path, quantization_config=how, **OPTIONS)


class TestBitsandbytes:
    @pytest.mark.parametrize("bits", [{"load_in_8bit": True}, {"load_in_4bit": True}])
    @pytest.mark.gpu
    def test_on_a_gpu(self, bits: dict[str, Any], tmp_path: Path) -> None:  # diffusers refuses to quantise so without one
        pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
        from diffusers import BitsAndBytesConfig, UNet2DConditionModel

        pipe = tiny_pipelines.img2img()
        pipe.unet.save_pretrained(tmp_path / "unet")
        how = BitsAndBytesConfig(**bits)
        pipe.register_modules(unet=UNet2DConditionModel.from_pretrained(tmp_path / "unet", quantization_config=how).eval())
        for name in ("vae", "text_encoder"):
            getattr(pipe, name).to(pipe.unet.device)
        generator = generator_of(pipe)
        assert generator.fingerprint() == generator.fingerprint()
        assert generator(photos().to(pipe.unet.device), SEEDS).isfinite().all()
        with pytest.raises(ConfigError, match="quantised"):
            generator.save_pretrained(tmp_path / "saved")


class TestOffloaded:
    def test_whole_models(self) -> None:
        """As enable_model_cpu_offload does it, with the CPU as the accelerator."""
        accelerate = pytest.importorskip("accelerate")
        plain, pipe = generator_of(tiny_pipelines.img2img()), tiny_pipelines.img2img()
        hook = None
        for part in (pipe.text_encoder, pipe.unet, pipe.vae):
            _, hook = accelerate.cpu_offload_with_hook(part, "cpu", prev_module_hook=hook)
        generator = generator_of(pipe)
        assert generator.fingerprint() == plain.fingerprint()
        assert torch.equal(generator(photos(), SEEDS), plain(photos(), SEEDS))

    @pytest.mark.slow  # test_pipeline_variation_offload has the same by the option
    def test_layer_by_layer(self, tmp_path: Path) -> None:
        """As enable_sequential_cpu_offload does it: between calls the weights are on the meta device."""
        accelerate = pytest.importorskip("accelerate")
        pipe = tiny_pipelines.img2img()
        accelerate.cpu_offload(pipe.unet, torch.device("cpu"))
        generator = generator_of(pipe)
        expected = generator_of(tiny_pipelines.img2img())(photos(), SEEDS)
        assert torch.equal(generator(photos(), SEEDS), expected)
        with pytest.raises(WeightsError, match=r"meta device, without values.*remove_all_hooks\(\)"):
            generator.fingerprint()
        with pytest.raises(WeightsError, match="meta device"):
            gt.generate_bank(gt.open_source([{"image": photos()[0], "key": 0}]), tmp_path / "bank", generator, variants=1, progress=False)
        with pytest.raises(WeightsError, match=r"unet .*meta device.*remove_all_hooks\(\)"):
            generator.save_pretrained(tmp_path / "saved")

    def test_weights_that_were_never_loaded(self) -> None:
        from diffusers import UNet2DConditionModel

        pipe = tiny_pipelines.img2img()
        config = {name: value for name, value in pipe.unet.config.items() if not name.startswith("_")}
        with torch.device("meta"):
            pipe.register_modules(unet=UNet2DConditionModel(**config))
        with pytest.raises(WeightsError, match="unet has weights without values, on the meta device"):
            generator_of(pipe)
