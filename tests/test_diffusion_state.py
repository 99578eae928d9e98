"""State of a pipeline that decides images and is in no configuration: in the fingerprint, saved with the generator, or refused by name."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_diffusion as tiny
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils._pytree import tree_map

import gentransforms as gt
from gentransforms.errors import ConfigError, WeightsError
from gentransforms.generators.diffusion.state import quantisation

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning")]
SEEDS = torch.tensor([3, 4])
FAST: dict[str, Any] = {"num_inference_steps": 2}


def photos() -> Tensor:
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def adapted(scale: Any = None) -> Any:
    pipe = tiny.stable_diffusion()
    pipe.register_modules(image_encoder=tiny.image_encoder(), feature_extractor=tiny.image_processor())
    pipe.load_ip_adapter(tiny.ip_adapter(pipe.unet), subfolder="", weight_name="", image_encoder_folder=None)
    if scale is not None:
        pipe.set_ip_adapter_scale(scale)
    return pipe


def write_lora(folder: Path, seed: int = 0) -> Path:
    """A LoRA of a UNet in the layout of diffusers' training scripts."""
    unet = tiny.unet()
    rng = torch.Generator().manual_seed(seed)
    weights = {}
    for name, module in unet.named_modules():
        if isinstance(module, nn.Linear) and name.endswith(("to_q", "to_v")):
            weights[f"unet.{name}.lora_A.weight"] = torch.randn(2, module.in_features, generator=rng)
            weights[f"unet.{name}.lora_B.weight"] = torch.randn(module.out_features, 2, generator=rng)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / f"lora{seed}.safetensors")
    return folder / f"lora{seed}.safetensors"


def load_lora(pipe: Any, file: Path, name: str) -> None:
    pytest.importorskip("peft")
    pipe.load_lora_weights(str(file.parent), weight_name=file.name, adapter_name=name)


def variation(pipe: Any) -> gt.StableDiffusionVariation:
    return gt.StableDiffusionVariation.from_pipeline(pipe, **FAST)


def no_lora(pipe: Any, folder: Path) -> None:
    pass


def lora_of(scale: float) -> Callable[[Any, Path], None]:
    def change(pipe: Any, folder: Path) -> None:
        load_lora(pipe, write_lora(folder), "one")
        pipe.set_adapters(["one"], [scale])

    return change


def two_loras(pipe: Any, folder: Path) -> None:
    load_lora(pipe, write_lora(folder), "one")
    load_lora(pipe, write_lora(folder, 1), "two")


def one_of_two(pipe: Any, folder: Path) -> None:
    two_loras(pipe, folder)
    pipe.set_adapters(["one"])


def other_of_two(pipe: Any, folder: Path) -> None:
    two_loras(pipe, folder)
    pipe.set_adapters(["two"])


def both_of_two(pipe: Any, folder: Path) -> None:
    two_loras(pipe, folder)
    pipe.set_adapters(["one", "two"], [0.5, 0.5])


def disabled(pipe: Any, folder: Path) -> None:
    one_of_two(pipe, folder)
    pipe.disable_lora()


def fused(pipe: Any, folder: Path) -> None:
    one_of_two(pipe, folder)
    pipe.fuse_lora(adapter_names=["one"], lora_scale=0.7)


def inverted(pipe: Any, folder: Path) -> None:
    pipe.load_textual_inversion({"<cat>": torch.full((32,), 3.0)})


def freeu(pipe: Any, folder: Path) -> None:
    pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.3, b2=1.4)


def tiled(pipe: Any, folder: Path) -> None:
    pipe.vae.enable_tiling()
    pipe.vae.tile_sample_min_size, pipe.vae.tile_latent_min_size = 16, 8


def other_scheduler(pipe: Any, folder: Path) -> None:
    from diffusers import EulerDiscreteScheduler

    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)


def other_timesteps(pipe: Any, folder: Path) -> None:
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, timestep_spacing="trailing")


def other_statistics(pipe: Any, folder: Path) -> None:
    pipe.feature_extractor.image_mean = [0.2, 0.3, 0.4]


def scaled(pipe: Any, folder: Path) -> None:
    pipe.set_ip_adapter_scale(0.2)


def scaled_by_block(pipe: Any, folder: Path) -> None:
    pipe.set_ip_adapter_scale({"up": {"block_0": [0.0, 1.0]}})


DECIDES = [
    no_lora, lora_of(1.0), lora_of(0.3), one_of_two, other_of_two, both_of_two, disabled, fused, freeu, tiled, other_scheduler,
    other_timesteps, other_statistics, scaled, scaled_by_block,
]  # fmt: skip


class TestInTheFingerprint:
    def test_whatever_changes_the_images_changes_it(self, tmp_path: Path) -> None:
        """Of all pairs of changes: where the images differ, the fingerprints do."""
        made, fingerprints, names = [], [], []
        new = adapted()
        for i, change in enumerate(DECIDES):
            pipe = copy.deepcopy(new)
            change(pipe, tmp_path / str(i))
            generator = variation(pipe)
            fingerprints.append(generator.fingerprint())
            assert generator.fingerprint() == fingerprints[-1]
            made.append(generator(photos(), SEEDS))
            assert generator.fingerprint() == fingerprints[-1], "making images changes nothing"
            names.append(getattr(change, "__qualname__", str(i)))
        distinct = 0
        for i in range(len(made)):
            for j in range(i):
                if (made[i] - made[j]).abs().max() > 1e-4:
                    distinct += 1
                    assert fingerprints[i] != fingerprints[j], (names[i], names[j])
        assert distinct > 0.9 * len(made) * (len(made) - 1) / 2, "nearly all of them change the images"

    def test_of_a_text(self, tmp_path: Path) -> None:
        plain, changed = adapted(), adapted()
        inverted(changed, tmp_path)
        a, b = (gt.StableDiffusionVariation.from_pipeline(pipe, prompt="<cat>", **FAST) for pipe in (plain, changed))
        assert (a(photos(), SEEDS) - b(photos(), SEEDS)).abs().max() > 1e-3
        assert a.fingerprint() != b.fingerprint()

    def test_changed_after_the_generator_was_built(self) -> None:
        generator = variation(adapted())
        before = generator.fingerprint()
        generator.pipe.set_ip_adapter_scale(0.5)
        assert generator.config["ip_adapter_scale"] == 0.5
        assert generator.fingerprint() != before
        generator.pipe.set_ip_adapter_scale(1.0)
        assert generator.fingerprint() == before

    def test_the_option_and_the_call_are_one(self) -> None:
        given = gt.StableDiffusionVariation.from_pipeline(adapted(), ip_adapter_scale=0.3, **FAST)
        assert given.fingerprint() == variation(adapted(0.3)).fingerprint() != variation(adapted(0.4)).fingerprint()

    def test_the_way_a_scheduler_came_does_not_count(self, tmp_path: Path) -> None:
        from diffusers import DDIMScheduler

        pipe, other = tiny.variation(), tiny.variation()
        scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
        other.scheduler = scheduler
        given, own = gt.StableDiffusionVariation.from_pipeline(pipe, scheduler=scheduler, **FAST), variation(other)
        assert torch.equal(given(photos(), SEEDS), own(photos(), SEEDS))
        assert given.fingerprint() == own.fingerprint() != variation(tiny.variation()).fingerprint()
        for i, generator in enumerate((given, own)):
            generator.save_pretrained(tmp_path / str(i))
            again = gt.load_generator(tmp_path / str(i))
            assert type(again.scheduler) is DDIMScheduler
            assert again.fingerprint() == given.fingerprint()
        replaced = variation(tiny.variation())
        replaced.scheduler = scheduler
        assert replaced.fingerprint() == given.fingerprint()

    def test_a_scheduler_that_rewrites_its_configuration(self) -> None:
        """DPM-Solver single-step does, when it sets its timesteps."""
        import tiny_pipelines
        from diffusers import DPMSolverSinglestepScheduler

        pipe = tiny_pipelines.img2img()
        pipe.scheduler = DPMSolverSinglestepScheduler.from_config(pipe.scheduler.config)
        generator = gt.PipelineVariation.from_pipeline(pipe, strength=0.5, num_inference_steps=4)
        before = generator.fingerprint()
        generator(photos(), SEEDS)
        assert generator.fingerprint() == before

    def test_zeros_for_an_empty_prompt(self) -> None:
        pipes = [tiny.stable_diffusion_xl() for _ in range(2)]
        for pipe, zeros in zip(pipes, (True, False), strict=True):
            pipe.register_to_config(force_zeros_for_empty_prompt=zeros)
            pipe.register_modules(image_encoder=tiny.image_encoder(), feature_extractor=tiny.image_processor())
            pipe.load_ip_adapter(tiny.ip_adapter(pipe.unet), subfolder="", weight_name="", image_encoder_folder=None)
        a, b = map(variation, pipes)
        assert (a(photos(), SEEDS) - b(photos(), SEEDS)).abs().max() > 1e-4
        assert a.fingerprint() != b.fingerprint()

    def test_of_a_controlnet_and_its_depth_estimator(self) -> None:
        base = tiny.stable_diffusion()
        net = tiny.controlnet(base.unet)
        estimator, processor = tiny.depth_estimator()
        options: dict[str, Any] = {"controlnet": net, "condition": "depth", "depth_estimator": (estimator, processor), **FAST}
        generator = gt.ControlNetVariation.from_pipeline(base, **options)
        before = {generator.fingerprint()}
        processor.image_mean = [0.1, 0.1, 0.1]
        before.add(generator.fingerprint())
        generator.scales = [0.5]
        before.add(generator.fingerprint())
        net.register_to_config(controlnet_conditioning_channel_order="bgr")
        before.add(generator.fingerprint())
        assert len(before) == 4


class TestLeftOut:
    """What changes images by rounding alone."""

    @pytest.mark.parametrize(
        ("change", "images"),
        [
            *((change, True) for change in ("slicing", "attention_slicing", "fused_projections", "old_attention")),
            ("compiled", False),
            pytest.param("compiled", True, marks=pytest.mark.slow),
        ],
    )
    def test_is_the_same_generator(self, change: str, images: bool) -> None:
        plain = variation(tiny.variation())
        pipe = tiny.variation()
        if change == "slicing":
            pipe.vae.enable_slicing()
        elif change == "attention_slicing":
            pipe.enable_attention_slicing(1)
        elif change == "fused_projections":
            with torch.no_grad():
                pipe.unet.fuse_qkv_projections()
        elif change == "old_attention":
            from diffusers.models.attention_processor import AttnProcessor

            pipe.unet.set_attn_processor(AttnProcessor())
        generator = variation(pipe)
        if change == "compiled":
            generator.unet = torch.compile(generator.unet, backend="eager")
            generator.vae = torch.compile(generator.vae, backend="eager")
            assert generator.pipe.unet is generator.unet
        assert generator.fingerprint() == plain.fingerprint()
        if images:
            assert (generator(photos(), SEEDS) - plain(photos(), SEEDS)).abs().max() < 1e-4


@pytest.fixture(scope="module")
def repositories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``base`` and ``adapter``."""
    root = tmp_path_factory.mktemp("repositories")
    base, weights = tiny.stable_diffusion(), tiny.ip_adapter(tiny.unet())
    base.save_pretrained(root / "base")
    (root / "adapter" / "models").mkdir(parents=True)
    flat = {f"{part}.{name}": t for part, tensors in weights.items() for name, t in tensors.items()}
    save_file(flat, root / "adapter" / "models" / "ip.safetensors")
    tiny.image_encoder().save_pretrained(root / "adapter" / "models" / "image_encoder")
    return root


class TestSaved:
    @pytest.mark.parametrize(
        "change",
        [
            freeu,
            *(pytest.param(change, marks=pytest.mark.slow) for change in (tiled, scaled)),
            other_scheduler,
            other_statistics,
            scaled_by_block,
        ],
    )
    def test_state_comes_back(self, change: Callable[[Any, Path], None], repositories: Path, tmp_path: Path) -> None:
        generator = gt.StableDiffusionVariation.from_pretrained(
            repositories / "base", ip_adapter=(str(repositories / "adapter"), "models", "ip.safetensors"), **FAST
        )
        change(generator.pipe, tmp_path)
        if change is other_scheduler:
            generator.scheduler = generator.pipe.scheduler
        generator.save_pretrained(tmp_path / "saved")
        again = gt.load_generator(tmp_path / "saved")
        assert again.fingerprint() == generator.fingerprint()
        assert torch.equal(again(photos(), SEEDS), generator(photos(), SEEDS))

    def test_a_textual_inversion_comes_back(self, tmp_path: Path) -> None:
        pipe = tiny.unclip()
        pipe.tokenizer.add_tokens("<cat>")
        pipe.text_encoder.resize_token_embeddings(len(pipe.tokenizer))
        with torch.no_grad():
            pipe.text_encoder.get_input_embeddings().weight[-1].fill_(3)
        generator = gt.StableDiffusionVariation.from_pipeline(pipe, prompt="a <cat>", **FAST)
        generator.save_pretrained(tmp_path / "saved")
        again = gt.load_generator(tmp_path / "saved")
        assert again.fingerprint() == generator.fingerprint()
        assert torch.equal(again(photos(), SEEDS), generator(photos(), SEEDS))

    @pytest.mark.usefixtures("no_repository")
    @pytest.mark.parametrize("change", [one_of_two, fused, disabled])
    def test_a_lora_beside_the_weights_is_refused(self, change: Callable[[Any, Path], None], tmp_path: Path) -> None:
        pipe = tiny.variation()
        pipe_sd = tiny.stable_diffusion()
        pipe_sd.register_modules(unet=pipe.unet)
        change(pipe_sd, tmp_path)
        generator = variation(pipe)
        for save in (lambda: generator.save_pretrained(tmp_path / "saved"), lambda: generator.push_to_hub("org/name")):
            with pytest.raises(ConfigError, match=r"unet holds a LoRA.*fuse_lora\(\).*unload_lora_weights\(\)"):
                save()
        assert not (tmp_path / "saved").exists()

    def test_a_lora_that_was_merged_as_advised_is_saved(self, tmp_path: Path) -> None:
        pipe = tiny.variation()
        pipe_sd = tiny.stable_diffusion()
        pipe_sd.register_modules(unet=pipe.unet)
        one_of_two(pipe_sd, tmp_path)
        before = variation(pipe)(photos(), SEEDS)
        pipe_sd.fuse_lora(adapter_names=["one"])
        pipe_sd.unload_lora_weights()
        generator = variation(pipe)
        assert (generator(photos(), SEEDS) - before).abs().max() < 1e-4
        generator.save_pretrained(tmp_path / "saved")
        assert gt.load_generator(tmp_path / "saved").fingerprint() == generator.fingerprint()

    def test_fused_projections_are_saved_as_they_were(self, tmp_path: Path) -> None:
        generator = variation(tiny.variation())
        expected = generator.fingerprint()
        with torch.no_grad():
            generator.unet.fuse_qkv_projections()
        generator.save_pretrained(tmp_path / "saved")
        assert gt.load_generator(tmp_path / "saved").fingerprint() == expected


class Strange:
    """An attention processor of unknown effect."""

    def __call__(self, attn: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return hidden_states * 0


class TestRefused:
    def test_attention_processors_of_unknown_effect(self) -> None:
        from diffusers.models.attention_processor import AttnProcessor2_0

        pipe = tiny.variation()
        pipe.unet.set_attn_processor(Strange())
        with pytest.raises(ConfigError, match=r"unet has the attention processor Strange.*unet.set_attn_processor\(AttnProcessor2_0\(\)\)"):
            variation(pipe)
        pipe.unet.set_attn_processor(AttnProcessor2_0())
        assert variation(pipe).fingerprint() == variation(tiny.variation()).fingerprint()

    def test_those_set_later_have_no_fingerprint(self) -> None:
        generator = variation(tiny.variation())
        generator.unet.set_attn_processor(Strange())
        with pytest.raises(ConfigError, match="Strange"):
            generator.fingerprint()

    def test_forward_methods_that_were_replaced(self) -> None:
        pipe = tiny.variation()
        own = pipe.unet.mid_block.forward
        pipe.unet.mid_block.forward = lambda *args, **kwargs: own(*args, **kwargs)
        with pytest.raises(ConfigError, match=r"the forward method of unet.mid_block was replaced"):
            variation(pipe)

    def test_hooks_of_diffusers(self) -> None:
        pipe = tiny.variation()
        pipe.vae.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
        with pytest.raises(ConfigError, match=r"vae\S* runs under diffusers' hook 'layerwise_casting'"):
            variation(pipe)

    def test_offloading_says_what_to_do_and_that_works(self) -> None:
        accelerate = pytest.importorskip("accelerate")
        pipe = tiny.variation()
        expected = variation(tiny.variation()).fingerprint()
        accelerate.cpu_offload(pipe.unet, torch.device("cpu"))
        with pytest.raises(ConfigError, match=r"unet\S* is offloaded by accelerate.*pipe.remove_all_hooks\(\).*pipe.to\(device\)"):
            variation(pipe)
        pipe.remove_all_hooks()
        assert variation(pipe.to("cpu")).fingerprint() == expected

    def test_weights_on_meta(self) -> None:
        pipe = tiny.variation()
        pipe.register_modules(vae=pipe.vae.to("meta"))
        with pytest.raises(WeightsError, match=r"vae has weights without values, on the meta device"):
            variation(pipe)

    def test_noise_levels_that_no_configuration_holds(self) -> None:
        pipe = tiny.variation()
        pipe.scheduler.alphas_cumprod = pipe.scheduler.alphas_cumprod**2
        with pytest.raises(ConfigError, match=r"scheduler.alphas_cumprod of the PNDMScheduler was changed.*trained_betas"):
            variation(pipe)

    @pytest.mark.parametrize("scale", [-1, "much", True, {"sideways": 1.0, "up": "x"}])
    def test_scales_of_other_kinds(self, scale: Any) -> None:
        with pytest.raises(ConfigError, match="ip_adapter_scale="):
            gt.StableDiffusionVariation.from_pipeline(adapted(), ip_adapter_scale=scale)


def pre_hook(pipe: Any) -> None:
    pipe.unet.mid_block.register_forward_pre_hook(lambda module, args: (args[0] * 0.5, *args[1:]))


def post_hook(pipe: Any) -> None:
    pipe.vae.decoder.register_forward_hook(lambda module, args, output: output * 0.5)


def circular(pipe: Any) -> None:
    for module in pipe.vae.modules():
        if isinstance(module, nn.Conv2d):
            module.padding_mode = "circular"


def output_scale(pipe: Any) -> None:
    pipe.unet.mid_block.resnets[0].output_scale_factor = 3.0


def epsilon(pipe: Any) -> None:
    pipe.vae.decoder.conv_norm_out.eps = 1.0


def activation(pipe: Any) -> None:
    pipe.unet.mid_block.resnets[0].nonlinearity = nn.Tanh()


def first_noise(pipe: Any) -> None:
    pipe.scheduler.init_noise_sigma = 0.5


CHANGED: list[tuple[Callable[[Any], None], str]] = [
    (pre_hook, r"unet\.mid_block has a forward hook .*remove\(\)"),
    (post_hook, r"vae\.decoder has a forward hook .*remove\(\)"),
    (circular, r"vae\.\S+\.padding_mode is 'circular'.*'zeros'"),
    (output_scale, r"unet\.mid_block\.resnets\.0\.output_scale_factor is 3\.0"),
    (epsilon, r"vae\.decoder\.conv_norm_out\.eps is 1\.0"),
    (activation, r"unet\.mid_block\.resnets\.0\.nonlinearity is a Tanh.*SiLU"),
    (first_noise, r"scheduler\.init_noise_sigma of the PNDMScheduler is 0\.5"),
]


@pytest.mark.parametrize(("change", "message"), CHANGED)
class TestChangedInPlace:
    """What changes images and is in no configuration, no weight and no state that is read."""

    def test_before_the_generator_is_built(self, change: Callable[[Any], None], message: str) -> None:
        pipe = tiny.variation()
        change(pipe)
        with pytest.raises(ConfigError, match=message):
            variation(pipe)

    def test_afterwards_it_has_no_fingerprint(self, change: Callable[[Any], None], message: str) -> None:
        generator = variation(tiny.variation())
        before = generator(photos(), SEEDS)
        change(generator)
        assert (generator(photos(), SEEDS) - before).abs().max() > 1e-4
        with pytest.raises(ConfigError, match=message):
            generator.fingerprint()

    def test_of_a_controlnet_pipeline(self, change: Callable[[Any], None], message: str) -> None:
        base = tiny.stable_diffusion()
        change(base)
        with pytest.raises(ConfigError, match=message):
            gt.ControlNetVariation.from_pipeline(base, controlnet=tiny.controlnet(base.unet), condition="canny", **FAST)


def test_a_forward_hook_that_was_removed_as_advised_leaves_the_generator_as_it_was() -> None:
    pipe = tiny.variation()
    handle = pipe.unet.register_forward_hook(lambda module, args, output: None)
    with pytest.raises(ConfigError, match=r"unet has a forward hook"):
        variation(pipe)
    handle.remove()
    assert variation(pipe).fingerprint() == variation(tiny.variation()).fingerprint()


class Int8(torch.Tensor):
    """A weight in eight bits with one scale, made float where it is used, as torchao's are."""

    codes: Tensor
    scale: Tensor

    @staticmethod
    def __new__(cls, codes: Tensor, scale: Tensor) -> Int8:
        return torch.Tensor._make_wrapper_subclass(cls, codes.shape, dtype=scale.dtype, device=codes.device)  # type: ignore[no-any-return]

    def __init__(self, codes: Tensor, scale: Tensor) -> None:
        self.codes, self.scale = codes, scale

    def __tensor_flatten__(self) -> tuple[list[str], Any]:
        return ["codes", "scale"], None

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, Tensor], context: Any, size: Any, stride: Any) -> Int8:
        return Int8(inner["codes"], inner["scale"])

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.ops.aten.detach.default:
            return Int8(args[0].codes, args[0].scale)
        plain = tree_map(lambda value: value.codes * value.scale if isinstance(value, Int8) else value, args)
        return function(*plain, **kwargs or {})


class TestQuantised:
    @pytest.mark.parametrize(("dtype", "expected"), [(torch.uint8, "uint8"), (torch.int8, "int8"), (torch.bfloat16, None)])
    def test_weights_of_bytes(self, dtype: torch.dtype, expected: str | None) -> None:
        """As bitsandbytes keeps them: plain parameters of whole numbers."""
        network = nn.Linear(2, 2)
        network.weight = nn.Parameter(torch.zeros(2, 2, dtype=dtype), requires_grad=False)
        assert quantisation(network) == expected

    def quantised(self, bits: int = 127) -> Any:
        """A pipeline with one such weight."""
        pipe = tiny.variation()
        linear = pipe.unet.time_embedding.linear_1
        scale = linear.weight.detach().abs().max() / bits
        linear.weight = nn.Parameter(Int8((linear.weight.detach() / scale).round().to(torch.int8), scale), requires_grad=False)
        return pipe

    def test_has_a_fingerprint_of_its_own(self) -> None:
        first, second = variation(self.quantised()), variation(self.quantised())
        others = {variation(pipe).fingerprint() for pipe in (tiny.variation(), self.quantised(63))}
        assert first.fingerprint() == second.fingerprint() not in others
        assert len(others) == 2

    def test_is_not_saved(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"unet is quantised \(Int8\).*quantise after loading; banks work"):
            variation(self.quantised()).save_pretrained(tmp_path / "saved")
        assert not (tmp_path / "saved").exists()

    def test_fills_a_bank(self, tmp_path: Path) -> None:
        images = [{"image": torch.rand(3, 32, 32), "key": i} for i in range(2)]
        gt.generate_bank(images, tmp_path / "bank", variation(self.quantised()), variants=1, base_seed=1, progress=False)
        assert len(gt.Bank.open(tmp_path / "bank")) == 2
