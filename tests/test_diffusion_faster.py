"""The approximate ways to a faster loop: guidance in an interval, and cached features (DeepCache)."""

from __future__ import annotations

import copy
import pickle
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tiny_diffusion as tiny
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import gentransforms as gt
from gentransforms.errors import ConfigError
from gentransforms.generators.diffusion.faster import deepcache
from gentransforms.generators.diffusion.faster.steps import Step, check_interval, plan_steps
from gentransforms.generators.generate import generate
from gentransforms.testing import check_generator

pytestmark = pytest.mark.usefixtures("one_thread")
WITH_ONE = {("xl", 3), ("two-controlnets-bgr", 1)}
HALF = (0.25, 0.75)  # steps 3 to 7 of 10


def adapted(base: str = "sd") -> Any:
    return adapt({"sd": tiny.stable_diffusion, "xl": tiny.stable_diffusion_xl}[base]())


def adapt(pipe: Any) -> Any:
    pipe.register_modules(image_encoder=tiny.image_encoder(), feature_extractor=tiny.image_processor())
    pipe.load_ip_adapter(tiny.ip_adapter(pipe.unet), subfolder="", weight_name="", image_encoder_folder=None)
    return pipe


def controlled(pipe: Any, order: str = "rgb", nets: int = 1, ip: bool = False) -> Callable[..., Any]:
    """From options to a ControlNetVariation."""
    own = [tiny.controlnet(pipe.unet, seed=6 + i) for i in range(nets)]
    for net in own:
        net.register_to_config(controlnet_conditioning_channel_order=order)
    if ip:
        adapt(pipe)
    condition: Any = ["canny", "maps"][:nets]
    return lambda **options: gt.ControlNetVariation.from_pipeline(pipe, controlnet=own, condition=condition, **options)


def of(pipe: Any) -> Callable[..., Any]:
    return lambda **options: gt.StableDiffusionVariation.from_pipeline(pipe, **options)


KINDS: dict[str, Callable[[], Callable[..., Any]]] = {
    "unclip": lambda: of(tiny.unclip()), "variation": lambda: of(tiny.variation()), "ip-adapter": lambda: of(adapted()),
    "xl": lambda: of(adapted("xl")), "controlnet": lambda: controlled(tiny.stable_diffusion()),
    "two-controlnets-bgr": lambda: controlled(tiny.stable_diffusion(), "bgr", 2),
    "controlnet-xl": lambda: controlled(tiny.stable_diffusion_xl(), ip=True),
    "controlnet-unclip": lambda: controlled(tiny.unclip()),
}  # fmt: skip


# The kinds whose rows go another way through the loop; the others, slow, put together what these have.
SHARING = [kind if kind in ("unclip", "xl", "two-controlnets-bgr") else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS]


@pytest.fixture(scope="module")
def kinds() -> Callable[[str], Callable[..., Any]]:
    """Pipelines built once, which tests leave as they are."""
    return cache(lambda name: KINDS[name]())


def batch(count: int = 2) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(11)
    return torch.rand(count, 3, 32, 32, generator=rng), torch.tensor([3, 2**40 + 5, 0])[:count]


def run(generator: Any, images: Tensor, seeds: Tensor) -> Tensor:
    maps = {"control_maps": images.flip(3)} if "control_maps" in generator.inputs else {}
    with torch.no_grad():
        made: Tensor = generator(images, seeds, **maps)
    return made


@contextmanager
def called(network: torch.nn.Module) -> Iterator[list[Counter[str]]]:
    """The rows that each module of a network got, in a counter for each time that its first convolution ran."""
    passes: list[Counter[str]] = []

    def count(path: str) -> Any:
        def hook(_module: Any, args: Any, kwargs: Any) -> None:
            if path == "conv_in":
                passes.append(Counter())
            if passes:
                passes[-1][path] += len(args[0] if args else kwargs["hidden_states"])

        return hook

    leaves = [(path, m) for path, m in network.named_modules() if not list(m.children()) or path == "mid_block"]
    hooks = [module.register_forward_pre_hook(count(path), with_kwargs=True) for path, module in leaves]
    try:
        yield passes
    finally:
        for hook in hooks:
            hook.remove()


class TestPlan:
    def test_a_step_is_guided_from_low_to_below_high(self) -> None:
        for low, high, expected in [(0, 1, range(10)), (0.25, 0.75, range(3, 8)), (0.3, 0.7, range(3, 7)), (0.0, 0.1, [0]), (0.9, 1, [9])]:
            steps = plan_steps(10, guided=True, interval=(low, high))
            assert [i for i, step in enumerate(steps) if step.guided] == list(expected), (low, high)

    def test_the_interval_is_of_the_whole_schedule(self) -> None:
        """So that it means the same noise levels whatever the strength."""
        assert plan_steps(10, guided=True, interval=HALF, first=6) == plan_steps(10, guided=True, interval=HALF)[6:]

    def test_without_guidance_no_step_is_guided(self) -> None:
        assert plan_steps(3, guided=False, interval=HALF) == [Step(False)] * 3

    @pytest.mark.parametrize(("interval", "full"), [(1, [0, 1, 2, 3, 4, 5]), (2, [0, 2, 4]), (3, [0, 3]), (9, [0])])
    def test_every_nth_step_is_full(self, interval: int, full: list[int]) -> None:
        steps = plan_steps(6, guided=True, cache_interval=interval)
        assert [i for i, step in enumerate(steps) if step.full] == full

    def test_the_first_guided_step_is_full(self) -> None:
        """No features of unconditional rows are there before."""
        steps = plan_steps(10, guided=True, interval=HALF, cache_interval=4)
        assert [i for i, step in enumerate(steps) if step.full] == [0, 3, 7]

    def test_the_first_of_fewer_steps_is_full(self) -> None:
        assert plan_steps(10, guided=False, cache_interval=2, first=7) == [Step(False), Step(False, False), Step(False)]

    @pytest.mark.parametrize(
        "value", [(0.5, 0.5), (0.7, 0.2), (-0.1, 0.5), (0, 1.1), (0.5,), 0.5, "ab", (True, 1), (float("nan"), 1), ("0", "1")]
    )
    def test_other_intervals_are_refused(self, value: Any) -> None:
        with pytest.raises(ConfigError, match=r"guidance_interval=.*\(low, high\).*0 <= low < high <= 1"):
            check_interval(value)


class TestGuidanceInterval:
    @pytest.mark.parametrize("kind", ["unclip", *(pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS if kind != "unclip")])
    def test_half_of_the_steps_takes_15_rows_instead_of_20(self, kinds: Any, kind: str) -> None:
        images, seeds = batch(1)
        for interval, expected in [(None, 20), (HALF, 15)] if kind == "unclip" else [(HALF, 15)]:
            generator = kinds(kind)(num_inference_steps=10, guidance_scale=3.0, scheduler="ddim", guidance_interval=interval)
            networks = [generator.unet, *getattr(generator, "controlnets", [])]
            for network in networks:
                with called(network) as passes:
                    run(generator, images, seeds)
                assert sum(rows["conv_in"] for rows in passes) == expected
                assert [rows["conv_in"] for rows in passes] == [2 if interval is None or 3 <= i < 8 else 1 for i in range(10)]

    @pytest.mark.parametrize("kind", SHARING)
    def test_all_steps_are_the_plain_loop(self, kinds: Any, kind: str) -> None:
        options = {"num_inference_steps": 3, "guidance_scale": 3.0}
        assert torch.equal(run(kinds(kind)(**options, guidance_interval=(0, 1)), *batch()), run(kinds(kind)(**options), *batch()))

    @pytest.mark.parametrize("kind", ["unclip", "xl", pytest.param("two-controlnets-bgr", marks=pytest.mark.slow)])
    def test_is_guidance_switched_on_and_off(self, kinds: Any, kind: str) -> None:
        """Against the plain loop, of which each step's rows are combined with the scale of that step: 1 outside the interval."""
        images, seeds = batch()
        options = {"num_inference_steps": 8, "guidance_scale": 3.0, "scheduler": "ddim", "prompt": "a cat"}
        made = run(kinds(kind)(**options, guidance_interval=(0.25, 0.5)), images, seeds)
        reference = kinds(kind)(**options)
        calls = iter(range(8))

        def blend(_module: Any, _args: Any, output: Any) -> Any:
            """Make the unconditional rows such that the loop's combination with 3 gives what a scale of 1 would."""
            without, with_condition = output[0].chunk(2)
            return (torch.cat([without if 2 <= next(calls) < 4 else with_condition, with_condition]),)

        hook = reference.unet.register_forward_hook(blend)
        expected = run(reference, images, seeds)
        hook.remove()
        assert (made - expected).abs().max() <= 1e-4
        assert (made - run(reference, images, seeds)).abs().max() > 1e-3


def up_layers(unet: Any) -> list[Any]:
    """The residual blocks of the way up, by the skip connection that each uses."""
    return [resnet for block in unet.up_blocks for resnet in block.resnets][::-1]


def skip_channels(unet: Any) -> list[int]:
    """The channels of the skip connections, in the order in which the way down leaves them."""
    widths = [unet.conv_in.out_channels]
    for block in unet.down_blocks:
        widths += [resnet.out_channels for resnet in block.resnets] + [unit.out_channels for unit in block.downsamplers or ()]
    return widths


@contextmanager
def cached_by_hooks(unet: Any, branch: int, full: list[bool]) -> Iterator[None]:
    """DeepCache in another way: all of the network runs, and in the cached steps what enters the layer of `branch` is replaced."""
    layer, width = up_layers(unet)[branch], skip_channels(unet)[branch]
    steps, kept = iter(full), []

    def replace(_module: Any, args: Any) -> Any:
        deep, skip = args[0][:, :-width], args[0][:, -width:]
        if next(steps):
            kept[:] = [deep.clone()]
        return (torch.cat([kept[0][-len(deep) :], skip], dim=1), *args[1:])

    hook = layer.register_forward_pre_hook(replace)
    try:
        yield
    finally:
        hook.remove()


# unCLIP with all branches, XL and two ControlNets with one; the others are slow.
REFERENCED = [
    pytest.param(kind, branch, marks=[] if kind == "unclip" or (kind, branch) in WITH_ONE else [pytest.mark.slow])
    for kind in KINDS
    for branch in range(4)
]


class TestDeepCache:
    @pytest.mark.parametrize(("kind", "branch"), REFERENCED)
    def test_is_the_whole_network_with_its_deep_features_replaced(self, kinds: Any, kind: str, branch: int) -> None:
        options = {"num_inference_steps": 5, "guidance_scale": 3.0, "scheduler": "ddim"}
        made = run(kinds(kind)(**options, cache_interval=2, cache_branch=branch), *batch())
        plain = kinds(kind)(**options)
        with cached_by_hooks(plain.unet, branch, [True, False, True, False, True]):
            expected = run(plain, *batch())
        assert (made - expected).abs().max() <= 1e-5
        assert (made - run(plain, *batch())).abs().max() > 1e-4, "the features are not those of the same step"

    @pytest.mark.parametrize("guidance", [1.0, 3.0])
    def test_with_an_interval_of_guidance(self, kinds: Any, guidance: float) -> None:
        options: dict[str, Any] = {"num_inference_steps": 10, "guidance_scale": guidance, "scheduler": "dpm++"}
        if guidance > 1:
            options["guidance_interval"] = HALF
        made = run(kinds("unclip")(**options, cache_interval=3, cache_branch=1), *batch())
        full = {1.0: [0, 3, 6, 9], 3.0: [0, 3, 6, 9]}[guidance]
        plain = kinds("unclip")(**options)
        with cached_by_hooks(plain.unet, 1, [i in full for i in range(10)]):
            expected = run(plain, *batch())
        assert (made - expected).abs().max() <= 1e-5

    @pytest.mark.parametrize(
        ("size", "branch"),
        [
            pytest.param(size, branch, marks=() if branch % 4 == 3 * i else pytest.mark.slow)
            for i, size in enumerate([(32, 32), (40, 56)])
            for branch in range(6)
        ],
    )
    def test_deeper_networks_and_uneven_sizes(self, branch: int, size: tuple[int, int]) -> None:
        """Three levels, which shrink latents of 20 x 28 by 4, and FreeU."""
        pipe = tiny.variation()
        pipe.register_modules(unet=tiny.unet(
            block_out_channels=(16, 32, 32), down_block_types=("CrossAttnDownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"), attention_head_dim=(2, 4, 4),
        ))  # fmt: skip
        if size == (32, 32):
            pipe.unet.enable_freeu(s1=0.9, s2=0.2, b1=1.4, b2=1.6)
        options: dict[str, Any] = {"num_inference_steps": 3, "image_size": (size[0] + 4, size[1]) if size[0] == 40 else size}
        made = run(of(pipe)(**options, cache_interval=3, cache_branch=branch), *batch())
        plain = of(pipe)(**options)
        # A PNDM scheduler of 3 steps has 4 timesteps.
        with cached_by_hooks(plain.unet, branch, [True, False, False, True]):
            expected = run(plain, *batch())
        assert (made - expected).abs().max() <= 1e-5

    @pytest.mark.parametrize("kind", SHARING)
    def test_a_full_step_is_the_networks_own(self, kinds: Any, kind: str) -> None:
        options = {"num_inference_steps": 2, "guidance_scale": 3.0, "scheduler": "ddim"}
        forward, full = deepcache.run_unet, []

        def always(*args: Any, deep: Any = None, **rest: Any) -> Any:
            full.append(deep)
            return forward(*args, **rest)

        generator = kinds(kind)(**options, cache_interval=2)
        plain = kinds(kind)(**options)
        with called(plain.unet) as expected:
            one = run(plain, *batch())
        plan = [Step(True), Step(True)]
        generator._plan = lambda *_: plan
        with called(generator.unet) as passes:
            two = run(generator, *batch())
        assert passes == expected
        assert torch.equal(one, two)

    @pytest.mark.parametrize("kind", SHARING)
    def test_an_interval_of_one_is_the_plain_loop(self, kinds: Any, kind: str) -> None:
        options = {"num_inference_steps": 2, "guidance_scale": 3.0}
        assert torch.equal(run(kinds(kind)(**options, cache_interval=1), *batch()), run(kinds(kind)(**options), *batch()))

    def test_a_cached_step_runs_the_shallow_part_alone(self, kinds: Any) -> None:
        """Of the tiny UNet's skip connections 0 is the first convolution, 1 the first layer, 2 its downsampler, 3 the second level."""
        entered = {
            0: ("up_blocks.1.resnets.1.",), 1: ("down_blocks.0.resnets.0.", "up_blocks.1.resnets."),
            2: ("down_blocks.0.", "up_blocks.1.resnets.", "up_blocks.0.upsamplers.", "up_blocks.0.resnets.1.", "up_blocks.0.attentions.1."),
            3: ("down_blocks.", "up_blocks."),
        }  # fmt: skip
        around = ("conv_", "time_", "class_embedding")
        for branch, blocks in entered.items():
            generator = kinds("unclip")(num_inference_steps=4, guidance_scale=3.0, scheduler="ddim", cache_interval=2, cache_branch=branch)
            with called(generator.unet) as passes:
                run(generator, *batch(1))
            assert [rows["mid_block"] for rows in passes] == [2, 0, 2, 0]
            for rows in passes[1::2]:
                assert {path for path in rows if not path.startswith((*blocks, *around))} == set()
                for block in blocks:
                    assert any(path.startswith(block) for path in rows), block
            assert set(passes[0]) > set(passes[1])

    def test_a_cached_step_of_a_controlnet_runs_its_shallow_part_alone(self, kinds: Any) -> None:
        for branch, blocks in {0: (), 1: ("down_blocks.0.resnets.0.",), 2: ("down_blocks.0.",), 3: ("down_blocks.",)}.items():
            options = {"num_inference_steps": 2, "guidance_scale": 3.0, "scheduler": "ddim", "cache_interval": 2, "cache_branch": branch}
            generator = kinds("controlnet")(**options)
            with called(generator.controlnets[0]) as passes:
                run(generator, *batch(1))
            assert [rows["mid_block"] for rows in passes] == [2, 0]
            around = ("conv_in", "time_", *(f"controlnet_down_blocks.{i}" for i in range(branch + 1)))
            assert {path for path in passes[1] if not path.startswith((*blocks, *around))} == set()
            assert sum(path.startswith("controlnet_down_blocks") for path in passes[1]) == branch + 1

    def test_operations_are_saved(self, kinds: Any) -> None:
        counts = []
        for branch in (None, 3, 2, 1, 0):
            options = {} if branch is None else {"cache_interval": 2, "cache_branch": branch}
            generator = kinds("unclip")(num_inference_steps=4, scheduler="ddim", **options)
            condition = generator.encode(batch(1)[0])
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                generator.sample(condition, batch(1)[1])
            counts.append(counter.get_total_flops())
        assert counts == sorted(counts, reverse=True)
        assert len(set(counts)) == 5


OPTIONS: list[dict[str, Any]] = [
    {"guidance_interval": (0.3, 0.7)}, {"cache_interval": 2}, {"cache_interval": 3, "cache_branch": 2, "guidance_interval": HALF},
]  # fmt: skip


class TestContract:
    @pytest.mark.parametrize(
        ("kind", "options"),
        [
            pytest.param(kind, options, id=f"{kind}-{name}", marks=() if i == j == 0 else pytest.mark.slow)
            for i, kind in enumerate(["unclip", "ip-adapter", "controlnet-xl"])
            for j, (name, options) in enumerate(zip(["guidance", "cache", "both"], OPTIONS, strict=True))
        ],
    )
    def test_of_generators(self, kinds: Any, kind: str, options: dict[str, Any]) -> None:
        """Images follow from image and seed alone, whatever the batch and its order."""
        check_generator(kinds(kind)(num_inference_steps=5, guidance_scale=3.0, scheduler="ddim", **options))

    def test_nothing_is_left_from_one_call_to_the_next(self, kinds: Any) -> None:
        generator = kinds("unclip")(num_inference_steps=3, scheduler="ddim", cache_interval=3)
        images, seeds = batch(3)
        before = set(vars(generator)) | {"_compiled_parts"}
        first = run(generator, images[:2], seeds[:2])
        run(generator, images.flip(0), seeds)
        assert torch.equal(run(generator, images[:2], seeds[:2]), first)
        assert set(vars(generator)) == before
        assert not [t for name, t in generator.named_buffers() if "_shared_" not in name and t.ndim == 4]

    def test_out_of_memory_in_a_cached_step_halves_the_batch(self, kinds: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        generator = kinds("unclip")(num_inference_steps=4, scheduler="ddim", cache_interval=2)
        images, seeds = batch(3)
        expected = run(generator, images, seeds)
        from gentransforms.generators.diffusion import base

        def short(*args: Any, deep: Any = None, **rest: Any) -> Any:
            if deep is not None and len(deep) > 4:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return deepcache.run_unet(*args, deep=deep, **rest)

        monkeypatch.setattr(base, "run_unet", short)
        with pytest.warns(UserWarning, match="out of memory at a batch of 3"):
            made, finite, size = generate(generator, images, seeds, {})
        assert size == 2
        assert (made - expected).abs().max() <= 1e-5
        assert finite.all()

    def test_copies_and_pickles_make_the_same(self, kinds: Any) -> None:
        generator = kinds("unclip")(num_inference_steps=4, scheduler="ddim", cache_interval=2, guidance_interval=HALF)
        expected = run(generator, *batch())
        for other in (copy.deepcopy(generator), pickle.loads(pickle.dumps(generator))):
            assert torch.equal(run(other, *batch()), expected)
            assert other.fingerprint() == generator.fingerprint()

    def test_a_strength_begins_with_a_full_step(self) -> None:
        make = controlled(tiny.stable_diffusion())
        options = {"num_inference_steps": 10, "strength": 0.5, "scheduler": "ddim", "guidance_scale": 3.0}
        generator = make(**options, cache_interval=2, guidance_interval=HALF)
        with called(generator.unet) as passes:
            run(generator, *batch(1))
        assert [(rows["conv_in"], bool(rows["mid_block"])) for rows in passes] == [(2, True), (2, False), (2, True), (1, False), (1, True)]


class TestOptions:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"guidance_interval": (0.5, 0.2)}, r"guidance_interval=\(0.5, 0.2\).*low < high"),
            ({"guidance_interval": (0.2, 0.8), "guidance_scale": 1.0}, r"guidance_interval=\(0.2, 0.8\).*guidance_scale=1\b.*leave it out"),
            ({"guidance_interval": (0.2, 0.8), "preset": "fast"}, r"guidance_interval=\(0.2, 0.8\).*no guidance"),
            ({"guidance_interval": (0.31, 0.39), "scheduler": "ddim", "num_inference_steps": 10}, r"none of 10 steps.*widen"),
            ({"cache_interval": 0}, r"cache_interval=0\b.*positive integer"),
            ({"cache_interval": 1.5}, r"cache_interval=1.5.*positive integer"),
            ({"cache_interval": True}, r"cache_interval=True.*positive integer"),
            ({"cache_interval": 2, "cache_branch": 4}, r"cache_branch=4\b.*\b0\b.*\b3\b"),
            ({"cache_interval": 2, "cache_branch": -1}, r"cache_branch=-1\b.*\b0\b.*\b3\b"),
            ({"cache_interval": 2, "cache_branch": 1.0}, r"cache_branch=1.0.*integer"),
            ({"cache_branch": 1}, r"cache_branch=1 has no effect.*cache_interval"),
        ],
    )
    def test_wrong_values(self, kinds: Any, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            kinds("unclip")(**options)

    def test_a_network_of_other_blocks_is_refused(self) -> None:
        pipe = tiny.variation()
        down, up = ("ResnetDownsampleBlock2D", "CrossAttnDownBlock2D"), ("CrossAttnUpBlock2D", "ResnetUpsampleBlock2D")
        pipe.register_modules(unet=tiny.unet(down_block_types=down, up_block_types=up))
        with pytest.raises(ConfigError, match=r"cache_interval.*ResnetDownsampleBlock2D.*CrossAttnDownBlock2D.*leave it out"):
            of(pipe)(cache_interval=2)

    def test_a_network_distilled_with_guidance_has_no_interval(self) -> None:
        pipe = tiny.stable_diffusion(time_cond_proj_dim=32)
        pipe.register_modules(image_encoder=tiny.image_encoder(), feature_extractor=tiny.image_processor())
        pipe.load_ip_adapter(tiny.ip_adapter(pipe.unet), subfolder="", weight_name="", image_encoder_folder=None)
        with pytest.raises(ConfigError, match="distilled"):
            of(pipe)(guidance_interval=HALF)
        options = {"num_inference_steps": 4, "scheduler": "lcm"}
        made = run(of(pipe)(**options, cache_interval=2), *batch())
        plain = of(pipe)(**options)
        with cached_by_hooks(plain.unet, 0, [True, False, True, False]):
            assert (made - run(plain, *batch())).abs().max() <= 1e-5

    @pytest.mark.parametrize(
        "options",
        [
            pytest.param(options, id=name, marks=() if name == "both" else pytest.mark.slow)
            for name, options in zip(["guidance", "cache", "both"], OPTIONS, strict=True)
        ],
    )
    def test_are_in_the_fingerprint_and_saved(self, options: dict[str, Any], tmp_path: Path) -> None:
        generator = of(tiny.unclip())(num_inference_steps=4, **options)
        plain = of(tiny.unclip())(num_inference_steps=4)
        assert generator.fingerprint() != plain.fingerprint()
        generator.save_pretrained(tmp_path / "saved")
        again: Any = gt.load_generator(tmp_path / "saved")
        assert again.fingerprint() == generator.fingerprint()
        assert again.guidance_interval == options.get("guidance_interval")
        assert torch.equal(run(again, *batch()), run(generator, *batch()))
        for switched in ({"cache_branch": 0}, {}):
            off: Any = gt.load_generator(tmp_path / "saved", guidance_interval=(0, 1), cache_interval=1, **switched)
            assert off.fingerprint() == plain.fingerprint()
        unguided: Any = gt.load_generator(tmp_path / "saved", guidance_scale=1.0)
        assert unguided.guidance_interval is None

    def test_off_is_the_same_generator_as_none(self, kinds: Any) -> None:
        off = kinds("unclip")(guidance_interval=(0.0, 1.0), cache_interval=1, cache_branch=0)
        assert off.fingerprint() == kinds("unclip")().fingerprint()
        assert not {"guidance_interval", "cache_interval", "cache_branch"} & off.config.keys()
        kinds("unclip")(guidance_scale=1.0, guidance_interval=(0, 1))  # nothing to refuse

    def test_without_guidance_an_interval_says_nothing(self, kinds: Any) -> None:
        generator = kinds("unclip")(guidance_interval=HALF)
        generator.guidance_scale = 1.0
        assert generator.fingerprint() == kinds("unclip")(guidance_scale=1.0).fingerprint()

    def test_come_from_the_command_line(self, tmp_path: Path) -> None:
        from gentransforms.cli.options import parse_options

        tiny.unclip().save_pretrained(tmp_path / "pipe")
        options = parse_options(["guidance_interval=[0.25, 0.75]", "cache_interval=2", "cache_branch=1"])
        loaded: Any = gt.load_generator(tmp_path / "pipe", **options)
        assert (loaded.guidance_interval, loaded.cache_interval, loaded.cache_branch) == (HALF, 2, 1)
