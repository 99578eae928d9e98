"""Diffusion generators saved and loaded: every family, from folders and from a Hub, and what is refused."""

from __future__ import annotations

import contextlib
import json
import pickle
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import stock
import tiny_diffusion as tiny
import torch
from hub_client import load, process, push
from hub_server import TOKEN, Hub, Repo
from safetensors.torch import load_file, save_file
from test_diffusion_variation import agree
from torch import Tensor

import gentransforms as gt
from gentransforms.errors import ConfigError, WeightsError
from gentransforms.generators.diffusion.options import PRESETS

SEEDS = torch.tensor([3, 4])
FAST: dict[str, Any] = {"num_inference_steps": 2}


def photos() -> Tensor:
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def write_adapter(folder: Path, base: Any, *, hidden: bool = False, binary: bool = False) -> tuple[str, str, str]:
    """An IP-Adapter repository: its weights and, beside them, its image encoder."""
    models, weights = folder / "models", tiny.ip_adapter(base.unet, hidden)
    tiny.image_encoder().save_pretrained(models / "image_encoder")
    if binary:
        torch.save(weights, models / "adapter.bin")
        return str(folder), "models", "adapter.bin"
    flat = {f"{part}.{name}": t for part, tensors in weights.items() for name, t in tensors.items()}
    save_file(flat, models / "adapter.safetensors")
    return str(folder), "models", "adapter.safetensors"


def tiny_vae() -> Any:
    """Of the class of taesd."""
    from diffusers import AutoencoderTiny

    torch.manual_seed(10)
    vae = AutoencoderTiny(
        encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8), num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1)
    )
    with torch.no_grad():  # so that its images are not flat
        vae.decoder.layers[-1].weight.mul_(10)
        vae.decoder.layers[-1].bias.fill_(0.5)
    return vae


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("repositories")
    base = tiny.stable_diffusion()
    parts = {"unclip": tiny.unclip(), "variation": tiny.variation(), "base": base, "xl": tiny.stable_diffusion_xl()}
    parts |= {"controlnet": tiny.controlnet(base.unet), "second": tiny.controlnet(base.unet, seed=8)}
    for name, part in parts.items():
        part.save_pretrained(root / name)
    return {name: root / name for name in parts}


def to_bin(folder: Path, part: str) -> Path:
    """Weights as repositories had them before safetensors."""
    file = next((folder / part).glob("*.safetensors"))
    target = file.with_name(file.name.replace("model.safetensors", "pytorch_model.bin"))
    if file.name.startswith("diffusion"):
        target = file.with_suffix(".bin")
    torch.save(load_file(file), target)
    file.unlink()
    return target


@pytest.fixture
def copy_of(folders: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    return lambda name: Path(shutil.copytree(folders[name], tmp_path / f"copy-{name}"))


FAMILIES = ["unclip", "variation", "ip-adapter", "ip-adapter plus .bin", "ip-adapter xl", "controlnet", "two controlnets", "depth"]


def make(family: str, folders: dict[str, Path], place: Path) -> Any:
    if family in ("unclip", "variation"):
        return gt.StableDiffusionVariation.from_pretrained(folders[family], **FAST)
    if family.startswith("ip-adapter"):
        name = "xl" if "xl" in family else "base"
        base = tiny.stable_diffusion_xl() if "xl" in family else tiny.stable_diffusion()
        adapter = write_adapter(place / "adapter", base, hidden="plus" in family, binary=".bin" in family)
        return gt.StableDiffusionVariation.from_pretrained(folders[name], ip_adapter=adapter, ip_adapter_scale=0.6, **FAST)
    nets: Any = [folders["controlnet"], folders["second"]] if "two" in family else folders["controlnet"]
    options: dict[str, Any] = {"condition": ["canny", "segmentation"] if "two" in family else "canny", "prompt": "abc", "strength": 0.9}
    if family == "depth":
        model, processor = tiny.depth_estimator()
        model.save_pretrained(place / "depth")
        processor.save_pretrained(place / "depth")
        options |= {"condition": "depth", "depth_model": place / "depth"}
    return gt.ControlNetVariation.from_pretrained(folders["base"], controlnet=nets, **options, **FAST)


def images_of(generator: Any) -> Tensor:
    inputs = {"masks": torch.zeros(2, 32, 32, dtype=torch.int64)} if "masks" in generator.inputs else {}
    with torch.no_grad():
        made: Tensor = generator(photos(), SEEDS, **inputs)
    return made


class TestSaveAndLoad:
    @pytest.mark.parametrize(
        "family",
        [
            pytest.param(name, marks=pytest.mark.slow) if name in ("ip-adapter", "ip-adapter xl", "controlnet", "depth") else name
            for name in FAMILIES
        ],
    )
    def test_what_is_saved_makes_the_same_images(self, family: str, folders: dict[str, Path], tmp_path: Path) -> None:
        generator = make(family, folders, tmp_path)
        generator.save_pretrained(tmp_path / "saved")
        fingerprint, expected = generator.fingerprint(), images_of(generator)
        shutil.rmtree(tmp_path / "adapter", ignore_errors=True)  # the folder needs no other
        shutil.rmtree(tmp_path / "depth", ignore_errors=True)
        for place in (tmp_path / "saved", tmp_path / "moved"):
            if not place.exists():
                shutil.move(tmp_path / "saved", place)
            again = gt.load_generator(place)
            assert type(again) is type(generator)
            assert again.fingerprint() == fingerprint
            assert torch.equal(images_of(again), expected)
        assert not list((tmp_path / "moved").rglob("*.bin"))
        assert "gentransforms" in (tmp_path / "moved" / "README.md").read_text()

    def test_an_option_given_replaces_the_saved_one(self, folders: dict[str, Path], tmp_path: Path) -> None:
        make("unclip", folders, tmp_path).save_pretrained(tmp_path / "saved")
        again = gt.StableDiffusionVariation.from_pretrained(tmp_path / "saved", guidance_scale=1.0)
        assert (again.num_inference_steps, again.guided) == (2, False)

    def test_a_scheduler_object_is_saved(self, folders: dict[str, Path], tmp_path: Path) -> None:
        from diffusers import DEISMultistepScheduler

        scheduler = DEISMultistepScheduler(prediction_type="v_prediction", solver_order=1)
        generator = gt.StableDiffusionVariation.from_pretrained(folders["unclip"], scheduler=scheduler, **FAST)
        generator.save_pretrained(tmp_path / "saved")
        again = gt.load_generator(tmp_path / "saved")
        assert type(again.scheduler) is DEISMultistepScheduler
        assert again.scheduler.config.solver_order == 1
        assert torch.equal(images_of(again), images_of(generator))

    def test_half_the_bytes_in_another_dtype(self, folders: dict[str, Path], tmp_path: Path) -> None:
        generator = make("controlnet", folders, tmp_path)
        generator.save_pretrained(tmp_path / "saved", dtype=torch.float16)
        assert generator.dtype == torch.float32
        for part in ("unet", "controlnet"):
            weights = load_file(next((tmp_path / "saved" / part).glob("*.safetensors")))
            assert {t.dtype for t in weights.values()} == {torch.float16}

    def test_a_function_without_a_version_cannot_be_saved(self, folders: dict[str, Path], tmp_path: Path) -> None:
        generator = gt.ControlNetVariation.from_pretrained(
            folders["base"], controlnet=folders["controlnet"], condition=lambda images: images
        )
        with pytest.raises(ConfigError, match=r"version"):
            generator.save_pretrained(tmp_path / "saved")
        assert not (tmp_path / "saved").exists()

    def test_a_function_with_a_version_is_given_again(self, folders: dict[str, Path], tmp_path: Path) -> None:
        def inverted(images: Tensor) -> Tensor:
            return 1 - images

        inverted.name, inverted.version = "inverted", "1"  # type: ignore[attr-defined]
        generator = gt.ControlNetVariation.from_pretrained(folders["base"], controlnet=folders["controlnet"], condition=inverted, **FAST)
        generator.save_pretrained(tmp_path / "saved")
        with pytest.raises(ConfigError, match=r"saved.*function 'inverted' \(version '1'\).*condition="):
            gt.load_generator(tmp_path / "saved")
        again = gt.ControlNetVariation.from_pretrained(tmp_path / "saved", condition=inverted)
        assert again.fingerprint() == generator.fingerprint()
        assert torch.equal(again(photos(), SEEDS), generator(photos(), SEEDS))

    def test_an_adapter_that_came_inside_a_pipeline_cannot_be_saved(self, tmp_path: Path) -> None:
        pipe = tiny.stable_diffusion()
        repo, subfolder, name = write_adapter(tmp_path, pipe)
        pipe.load_ip_adapter(repo, subfolder=subfolder, weight_name=name)
        with pytest.raises(ConfigError, match="ip_adapter="):
            gt.StableDiffusionVariation.from_pipeline(pipe, **FAST).save_pretrained(tmp_path / "saved")


class TestFolders:
    """Repositories of others, in diffusers layout."""

    @pytest.mark.parametrize(("name", "cls"), [("unclip", gt.StableDiffusionVariation), ("variation", gt.StableDiffusionVariation)])
    def test_the_class_is_found(self, name: str, cls: type, folders: dict[str, Path]) -> None:
        assert type(gt.load_generator(folders[name])) is cls

    @pytest.mark.parametrize("name", ["unclip", "variation"])
    def test_old_weights(self, name: str, copy_of: Callable[[str], Path], folders: dict[str, Path]) -> None:
        folder = copy_of(name)
        for part in ("unet", "vae", "image_encoder", *(("text_encoder", "image_normalizer") if name == "unclip" else ())):
            to_bin(folder, part)
        assert not list(folder.rglob("*.safetensors"))
        old, new = (gt.StableDiffusionVariation.from_pretrained(place, **FAST) for place in (folder, folders[name]))
        assert torch.equal(images_of(old), images_of(new))

    def test_old_weights_of_a_controlnet(self, copy_of: Callable[[str], Path], folders: dict[str, Path]) -> None:
        folder = copy_of("controlnet")
        to_bin(folder.parent, folder.name)
        old, new = (
            gt.ControlNetVariation.from_pretrained(folders["base"], controlnet=place, prompt="abc", **FAST)
            for place in (folder, folders["controlnet"])
        )
        assert torch.equal(images_of(old), images_of(new))

    @pytest.mark.parametrize("name", ["variation", "base"])
    def test_a_safety_checker_is_not_even_read(self, name: str, copy_of: Callable[[str], Path], folders: dict[str, Path]) -> None:
        folder = copy_of(name)
        index = json.loads((folder / "model_index.json").read_text())
        index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
        (folder / "model_index.json").write_text(json.dumps(index | {"requires_safety_checker": True}))
        (folder / "safety_checker").mkdir()
        (folder / "safety_checker" / "config.json").write_text("damaged")
        (folder / "safety_checker" / "model.safetensors").write_text("damaged")
        options = {"controlnet": folders["controlnet"], "prompt": "abc"} if name == "base" else {}
        made, expected = (gt.load_generator(place, **options, **FAST) for place in (folder, folders[name]))
        assert "safety_checker" not in dict(made.named_children())
        assert torch.equal(images_of(made), images_of(expected))

    def test_a_variant_of_the_weight_files(self, folders: dict[str, Path], tmp_path: Path) -> None:
        pipe = tiny.variation()
        with torch.no_grad():
            pipe.unet.conv_out.bias.add_(1)
        pipe.save_pretrained(tmp_path, variant="other")
        with pytest.raises(WeightsError):
            gt.StableDiffusionVariation.from_pretrained(tmp_path, **FAST)
        found = gt.StableDiffusionVariation.from_pretrained(tmp_path, variant="other", **FAST)
        assert torch.equal(found.unet.conv_out.bias, pipe.unet.conv_out.bias)

    def test_an_image_encoder_in_a_folder_of_its_own(self, folders: dict[str, Path], tmp_path: Path) -> None:
        """As the XL adapters of h94/IP-Adapter on ViT-H: weights in one folder, their image encoder in another."""
        repo, subfolder, name = write_adapter(tmp_path, tiny.stable_diffusion_xl())
        expected = gt.StableDiffusionVariation.from_pretrained(folders["xl"], ip_adapter=(repo, subfolder, name), **FAST)
        shutil.move(tmp_path / "models" / "image_encoder", tmp_path / "elsewhere" / "image_encoder")
        adapter = (repo, subfolder, name, "elsewhere/image_encoder")
        found = gt.StableDiffusionVariation.from_pretrained(folders["xl"], ip_adapter=adapter, **FAST)
        assert torch.equal(images_of(found), images_of(expected))
        with pytest.raises(WeightsError, match="image_encoder"):
            gt.StableDiffusionVariation.from_pretrained(folders["xl"], ip_adapter=(repo, subfolder, name), **FAST)

    @pytest.mark.parametrize(("name", "expected"), [("unclip", "madebyollin/taesd"), ("xl", "madebyollin/taesdxl")])
    def test_the_tiny_vae(
        self, name: str, expected: str, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Found under the name of its repository, for which a folder stands here; the images are the stock pipeline's."""
        import diffusers

        tiny_vae().save_pretrained(tmp_path / expected)
        adapter = write_adapter(tmp_path / "adapter", tiny.stable_diffusion_xl())
        monkeypatch.chdir(tmp_path)
        options = {"ip_adapter": adapter} if name == "xl" else {}
        generator = gt.StableDiffusionVariation.from_pretrained(folders[name], vae="tiny", **options, **FAST)
        assert type(generator.vae).__name__ == "AutoencoderTiny"
        images, seeds = photos()[:1], SEEDS[:1]
        seen = {"image" if name == "unclip" else "ip_adapter_image": stock.normalised(generator, images)}
        cls = diffusers.StableUnCLIPImg2ImgPipeline if name == "unclip" else diffusers.StableDiffusionXLPipeline
        agree(generator(images, seeds), stock.run(cls, generator, seeds, prompt=[""], **seen))

    @pytest.mark.parametrize("name", ["unclip", "base"])
    def test_a_module_as_vae(self, name: str, folders: dict[str, Path]) -> None:
        options = {"controlnet": folders["controlnet"], "prompt": "abc", "strength": 1.0} if name == "base" else {}
        generator = gt.load_generator(folders[name], vae=(vae := tiny_vae()), **options, **FAST)
        assert generator.vae is vae
        assert images_of(generator).std() > 0.01

    def test_code_in_old_weights_does_not_run(self, copy_of: Callable[[str], Path], tmp_path: Path) -> None:
        class Harm:
            def __reduce__(self) -> Any:
                return (Path.touch, (tmp_path / "harmed",))

        folder = copy_of("unclip")
        file = to_bin(folder, "unet")
        weights = torch.load(file, weights_only=True)
        torch.save(weights | {"harm": Harm()}, file, pickle_module=pickle)
        with pytest.raises(WeightsError):
            gt.StableDiffusionVariation.from_pretrained(folder)
        assert not (tmp_path / "harmed").exists()

    @pytest.mark.parametrize("kind", ["AutoencoderTiny", "AutoencoderKL", "folder of a pipeline"])
    def test_another_vae(self, kind: str, folders: dict[str, Path], tmp_path: Path) -> None:
        if kind == "AutoencoderTiny":
            vae: Any = tiny_vae()
            vae.save_pretrained(tmp_path)
        else:
            vae = tiny.vae()
            vae.save_pretrained(tmp_path)
        place = folders["variation"] if kind == "folder of a pipeline" else tmp_path
        generator = gt.StableDiffusionVariation.from_pretrained(folders["unclip"], vae=str(place), **FAST)
        assert type(generator.vae).__name__ == (kind if kind.startswith("Auto") else "AutoencoderKL")
        assert images_of(generator).shape == (2, 3, 32, 32)

    def test_lora_is_merged_and_saved(self, folders: dict[str, Path], tmp_path: Path) -> None:
        peft = pytest.importorskip("peft")
        pipe = tiny.stable_diffusion()
        pipe.unet.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
        weights = peft.get_peft_model_state_dict(pipe.unet)
        type(pipe).save_lora_weights(tmp_path / "lora", unet_lora_layers=weights)
        net, options = str(folders["controlnet"]), {"prompt": "abc", **FAST}
        plain = gt.ControlNetVariation.from_pretrained(folders["base"], controlnet=net, **options)
        tuned = gt.ControlNetVariation.from_pretrained(folders["base"], controlnet=net, lora=str(tmp_path / "lora"), **options)
        assert (images_of(plain) - images_of(tuned)).abs().max() > 0.01
        assert not [name for name, _ in tuned.named_parameters() if "lora" in name]
        tuned.save_pretrained(tmp_path / "saved")
        assert torch.equal(images_of(gt.load_generator(tmp_path / "saved")), images_of(tuned))

    def test_whole_controlnet_pipelines(self, folders: dict[str, Path], tmp_path: Path) -> None:
        from diffusers import StableDiffusionControlNetPipeline

        base = tiny.stable_diffusion()
        net = tiny.controlnet(base.unet)
        parts = {name: part for name, part in base.components.items() if name not in ("image_encoder",)}
        StableDiffusionControlNetPipeline(**parts, controlnet=net, requires_safety_checker=False).save_pretrained(tmp_path)
        whole = gt.ControlNetVariation.from_pretrained(tmp_path, prompt="abc", **FAST)
        split = gt.ControlNetVariation.from_pretrained(folders["base"], controlnet=folders["controlnet"], prompt="abc", **FAST)
        assert torch.equal(images_of(whole), images_of(split))

    def test_dtype_is_that_of_every_network(self, folders: dict[str, Path], tmp_path: Path) -> None:
        adapter = write_adapter(tmp_path, tiny.stable_diffusion())
        options = {"ip_adapter": adapter, "controlnet": folders["controlnet"], "dtype": torch.bfloat16}
        generator = gt.ControlNetVariation.from_pretrained(folders["base"], **options, **FAST)
        assert {parameter.dtype for parameter in generator.parameters()} == {torch.bfloat16}
        assert images_of(generator).isfinite().all()

    def test_paper_preset_is_float16_unless_told(self, folders: dict[str, Path]) -> None:
        generator = gt.StableDiffusionVariation.from_pretrained(folders["unclip"], preset="paper")
        assert generator.dtype == torch.float16
        assert {name: getattr(generator, name) for name in PRESETS["paper"] if name != "scheduler"} == {
            name: value for name, value in PRESETS["paper"].items() if name != "scheduler"
        }
        told = gt.StableDiffusionVariation.from_pretrained(folders["unclip"], preset="paper", dtype=torch.float32)
        assert told.dtype == torch.float32


OWN: dict[str, Any] = {
    "num_inference_steps": 7, "guidance_scale": 3.0, "guidance_interval": (0.1, 0.9), "scheduler": "euler", "eta": 0.5, "prompt": "abc",
}  # fmt: skip


@pytest.fixture(scope="module")
def saved(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("saved")
    own = OWN | {"noise_level": "foreground", "foreground_bounds": (0.5,)}
    gt.StableDiffusionVariation.from_pretrained(folders["unclip"], **own).save_pretrained(root / "own")
    gt.StableDiffusionVariation.from_pretrained(folders["unclip"], preset="paper").save_pretrained(root / "paper")
    gt.StableDiffusionVariation.from_pretrained(folders["unclip"], preset="fast").save_pretrained(root / "fast")
    nets = {"controlnet": folders["controlnet"], "strength": 0.5}
    gt.ControlNetVariation.from_pretrained(folders["base"], **nets, **OWN).save_pretrained(root / "controlnet")
    return {place.name: place for place in root.iterdir()}


class TestPresetOfASavedGenerator:
    """It is worth as much as of the repository: more than what was saved, less than what is given beside it."""

    @staticmethod
    def shown(generator: Any) -> tuple[Any, ...]:
        names = ("num_inference_steps", "guidance_scale", "guidance_interval", "eta", "prompt", "noise_level", "foreground_bounds", "dtype")
        return (*(getattr(generator, name) for name in names), type(generator.scheduler).__name__)

    @pytest.mark.parametrize("name", ["own", "paper", "fast"])
    @pytest.mark.parametrize("preset", ["paper", "fast"])
    def test_is_that_of_the_repository(self, name: str, preset: Any, saved: dict[str, Path], folders: dict[str, Path]) -> None:
        expected = gt.load_generator(folders["unclip"], preset=preset)
        found = gt.load_generator(saved[name], preset=preset)
        kept = {"own": OWN, "paper": PRESETS["paper"], "fast": {}}[name]  # what the preset does not name stays
        for option in set(kept) - set(PRESETS[preset]) - {"guidance_interval"}:
            assert getattr(found, option) == kept[option]
            setattr(found, option, getattr(expected, option))
        if name == "own" and preset == "fast":
            assert (found.noise_level, found.foreground_bounds) == ("foreground", (0.5,))
            found.noise_level, found.foreground_bounds = expected.noise_level, expected.foreground_bounds
        if name == "own" and preset == "paper":
            assert found.guidance_interval == (0.1, 0.9)
            found.guidance_interval = None
        assert self.shown(found) == self.shown(expected)

    def test_less_than_what_is_given_beside_it(self, saved: dict[str, Path]) -> None:
        given: dict[str, Any] = {"num_inference_steps": 3, "scheduler": "unipc", "prompt": "b"}
        found = gt.load_generator(saved["own"], preset="paper", **given)
        assert (found.num_inference_steps, type(found.scheduler).__name__, found.prompt) == (3, "UniPCMultistepScheduler", "b")
        assert found.guidance_scale == 10.0

    def test_of_a_controlnet(self, saved: dict[str, Path]) -> None:
        found = gt.load_generator(saved["controlnet"], preset="fast")
        assert self.shown(found)[:3] == (4, 1.0, None)
        assert (found.strength, found.prompt) == (0.5, "abc")

    def test_without_one_what_was_saved(self, saved: dict[str, Path]) -> None:
        assert self.shown(gt.load_generator(saved["own"]))[:5] == (7, 3.0, (0.1, 0.9), 0.5, "abc")

    @pytest.mark.parametrize("preset", ["best", ["paper"], 1])
    def test_no_such_preset(self, preset: Any, saved: dict[str, Path]) -> None:
        with pytest.raises(ConfigError, match=r"preset=.*expected one of 'paper', 'fast'"):
            gt.load_generator(saved["own"], preset=preset)


class TestRefused:
    @pytest.mark.parametrize("part", ["unet", "vae", "image_encoder", "text_encoder", "scheduler", "feature_extractor", "image_normalizer"])
    def test_missing_component(self, part: str, copy_of: Callable[[str], Path]) -> None:
        folder = copy_of("unclip")
        shutil.rmtree(folder / part)
        with pytest.raises(WeightsError, match=f"not loadable: it has no folder '{part}', which model_index.json names"):
            gt.StableDiffusionVariation.from_pretrained(folder)

    def test_a_component_given_is_not_missed(self, copy_of: Callable[[str], Path]) -> None:
        folder = copy_of("unclip")
        shutil.rmtree(folder / "vae")
        assert images_of(gt.StableDiffusionVariation.from_pretrained(folder, vae=tiny.vae(), **FAST)).shape == (2, 3, 32, 32)

    def test_missing_weights(self, copy_of: Callable[[str], Path]) -> None:
        folder = copy_of("unclip")
        next((folder / "unet").glob("*.safetensors")).unlink()
        with pytest.raises(WeightsError, match=r"not loadable: .*unet: fetch it again, or name another"):
            gt.StableDiffusionVariation.from_pretrained(folder)

    def test_truncated_weights(self, copy_of: Callable[[str], Path]) -> None:
        folder = copy_of("unclip")
        file = next((folder / "unet").glob("*.safetensors"))
        file.write_bytes(file.read_bytes()[:-100])
        with pytest.raises(WeightsError, match="not loadable"):
            gt.StableDiffusionVariation.from_pretrained(folder)

    @pytest.mark.parametrize("part", ["unet", "vae"])
    def test_weights_without_some(self, part: str, copy_of: Callable[[str], Path]) -> None:
        folder = copy_of("unclip")
        file = next((folder / part).glob("*.safetensors"))
        weights = load_file(file)
        del weights[sorted(weights)[0]]
        save_file(weights, file, {"format": "pt"})
        with pytest.raises(WeightsError):
            gt.StableDiffusionVariation.from_pretrained(folder)

    def test_another_kind_of_pipeline_says_what_is_taken(self, copy_of: Callable[[str], Path]) -> None:
        folder = copy_of("unclip")
        index = json.loads((folder / "model_index.json").read_text())
        (folder / "model_index.json").write_text(json.dumps(index | {"_class_name": "DDPMPipeline"}))
        for loader in (gt.StableDiffusionVariation.from_pretrained, gt.ControlNetVariation.from_pretrained):
            with pytest.raises(WeightsError, match=r"DDPMPipeline.*StableUnCLIPImg2ImgPipeline"):
                loader(folder)
        with pytest.raises(WeightsError, match=r"DDPMPipeline takes no image: diffusers names no image-to-image pipeline of its parts"):
            gt.load_generator(folder)

    def test_a_plain_base_needs_something_to_see_the_image_by(self, folders: dict[str, Path]) -> None:
        with pytest.raises(WeightsError, match="ip_adapter="):
            gt.StableDiffusionVariation.from_pretrained(folders["base"])
        with pytest.raises(ConfigError, match="controlnet"):
            gt.ControlNetVariation.from_pretrained(folders["base"])

    def test_no_such_place(self, tmp_path: Path) -> None:
        with pytest.raises(WeightsError):
            gt.StableDiffusionVariation.from_pretrained(tmp_path / "nothing")
        (tmp_path / "empty").mkdir()
        with pytest.raises(WeightsError, match=r"model_index\.json"):
            gt.StableDiffusionVariation.from_pretrained(tmp_path / "empty")

    def test_what_another_class_saved(self, folders: dict[str, Path], tmp_path: Path) -> None:
        make("controlnet", folders, tmp_path).save_pretrained(tmp_path / "saved")
        with pytest.raises(WeightsError, match="ControlNetVariation"):
            gt.StableDiffusionVariation.from_pretrained(tmp_path / "saved")

    def test_a_newer_format(self, folders: dict[str, Path], tmp_path: Path) -> None:
        make("unclip", folders, tmp_path).save_pretrained(tmp_path / "saved")
        file = tmp_path / "saved" / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"format_version": 99}))
        with pytest.raises(WeightsError, match="99"):
            gt.StableDiffusionVariation.from_pretrained(tmp_path / "saved")

    @pytest.mark.parametrize(
        ("options", "says"),
        [
            ({"ip_adapter": "h94/IP-Adapter"}, "weight_name"),
            ({"ip_adapter": 3}, "weight_name"),
            ({"vae": "/nowhere/at/all"}, "nowhere"),
            ({"lora": 3}, "lora"),
            ({"scheduler": "best"}, "dpm"),
            ({"image_size": 33}, "multiples of 2"),
            ({"noise_level": 1000}, "999"),
        ],
    )
    def test_options(self, options: dict[str, Any], says: str, folders: dict[str, Path]) -> None:
        with pytest.raises((ConfigError, WeightsError), match=says):
            gt.StableDiffusionVariation.from_pretrained(folders["unclip"], **options)


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Hub, ProcessPoolExecutor]]:
    """The server, and one process that may reach it: starting one takes seconds."""
    with contextlib.closing(Hub()) as hub, process(hub.endpoint, tmp_path_factory.mktemp("home")) as client:
        yield hub, client


class TestHub:
    """The same through a Hub on this machine."""

    def test_revisions_and_old_weights(self, site: tuple[Hub, ProcessPoolExecutor], copy_of: Callable[[str], Path], tmp_path: Path) -> None:
        """A commit, a tag and the newest, whose weights are in .bin files as in old repositories."""
        first, second = copy_of("unclip"), tmp_path / "second"
        pipe = tiny.unclip()
        with torch.no_grad():
            pipe.unet.conv_out.bias.add_(1)
        pipe.save_pretrained(second)
        expected = [gt.StableDiffusionVariation.from_pretrained(folder).fingerprint() for folder in (first, second)]
        for folder in (first, second):
            for part in ("unet", "vae", "image_encoder", "text_encoder", "image_normalizer"):
                to_bin(folder, part)
        hub, client = site
        repo = hub.repos["org/aged"] = Repo()
        commits = [repo.commit(files(folder)) for folder in (first, second)]
        repo.refs["v1"] = commits[0]
        for revision, fingerprint in {commits[0]: expected[0], None: expected[1], "v1": expected[0], commits[1]: expected[1]}.items():
            found = client.submit(load, "org/aged", revision=revision).result(120)
            assert found["fingerprint"] == fingerprint, revision

    def test_load_and_push(self, folders: dict[str, Path], site: tuple[Hub, ProcessPoolExecutor], tmp_path: Path) -> None:
        hub, client = site
        write_adapter(tmp_path / "adapter", tiny.stable_diffusion())
        for name in ("unclip", "base", "controlnet"):
            hub.repos[f"org/{name}"] = Repo(private=name == "unclip")
            hub.repos[f"org/{name}"].commit(files(folders[name]))
        hub.repos["org/adapter"] = Repo()
        hub.repos["org/adapter"].commit(files(tmp_path / "adapter"))

        def there(*arguments: Any, **options: Any) -> Any:
            return client.submit(load, *arguments, **options).result(120)

        local = gt.StableDiffusionVariation.from_pretrained(folders["unclip"])
        found = there("org/unclip", token=TOKEN)
        assert found == {"class": "StableDiffusionVariation", "fingerprint": local.fingerprint()}
        assert there("org/unclip", token=TOKEN, local_files_only=True) == found
        adapter = ("org/adapter", "models", "adapter.safetensors")
        assert there("org/base", "StableDiffusionVariation", ip_adapter=adapter)["class"] == "StableDiffusionVariation"
        held = gt.ControlNetVariation.from_pretrained(folders["base"], controlnet=folders["controlnet"])
        assert there("org/base", "ControlNetVariation", controlnet="org/controlnet")["fingerprint"] == held.fingerprint()
        gt.StableDiffusionVariation.from_pretrained(folders["unclip"], **FAST).save_pretrained(tmp_path / "saved")
        client.submit(push, str(tmp_path / "saved"), "org/pushed", token=TOKEN).result(120)
        assert there("org/pushed")["fingerprint"] == gt.load_generator(tmp_path / "saved").fingerprint()
        with pytest.raises(WeightsError, match="org/unclip"):
            there("org/unclip", token="hf_wrong", cache_dir=tmp_path / "other")

    def test_push_of_weights_in_fewer_files_than_before(self, site: tuple[Hub, ProcessPoolExecutor], tmp_path: Path) -> None:
        generator = gt.StableDiffusionVariation.from_pipeline(tiny.variation(), num_inference_steps=1)
        generator.save_pretrained(tmp_path / "old")
        unet, single = tmp_path / "old" / "unet", "diffusion_pytorch_model.safetensors"
        (unet / single).unlink()
        generator.unet.save_pretrained(unet, max_shard_size="300KB")
        old = files(tmp_path / "old")
        assert f"unet/{single}.index.json" in old
        of_others = {"unet/notes.txt": b"1", "unet/diffusion_pytorch_model.fp16.safetensors": b"2", "images/a.safetensors": b"3"}
        hub, client = site
        repo = hub.repos["org/fewer"] = Repo()
        repo.commit(old | of_others)
        with torch.no_grad():
            for parameter in generator.unet.parameters():
                parameter.mul_(0.5)
        generator.save_pretrained(tmp_path / "new")
        client.submit(push, str(tmp_path / "new"), "org/fewer", token=TOKEN).result(120)
        found = client.submit(load, "org/fewer", cache_dir=tmp_path / "cache").result(120)
        assert found["fingerprint"] == generator.fingerprint()
        there = repo.commits[repo.refs["main"]]
        assert {name for name in there if name.startswith("unet/")} == {"unet/config.json", f"unet/{single}", *list(of_others)[:2]}
        assert of_others.items() <= there.items()
        assert len(repo.commits) == 2, "in one commit"
