"""Prompts that all images share: encoded once, and again when they, their encoders or their arithmetic change."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import tiny_diffusion as tiny
import torch
from torch import Tensor, nn

import gentransforms as gt
from gentransforms.generators.diffusion.prompts.stamps import make_stamp, same

pytestmark = pytest.mark.usefixtures("one_thread")
SEEDS = torch.tensor([3, 4])
FAST: dict[str, Any] = {"num_inference_steps": 1, "guidance_scale": 3.0, "prompt": "a"}


def photos() -> Tensor:
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def adapted(base: Any, hidden: bool = False) -> Any:
    base.register_modules(image_encoder=tiny.image_encoder(), feature_extractor=tiny.image_processor())
    base.load_ip_adapter(tiny.ip_adapter(base.unet, hidden), subfolder="", weight_name="", image_encoder_folder=None)
    return base


def fresh(generator: Any) -> Any:
    """A generator as this one is now, that has made no images."""
    names = ("num_inference_steps", "guidance_scale", "prompt", "negative_prompt")
    return type(generator).from_pipeline(generator.pipe, **{name: getattr(generator, name) for name in names})


@contextmanager
def encodings(generator: Any) -> Iterator[list[int]]:
    """The rows of each call of the text encoder."""
    rows: list[int] = []
    hook = generator.text_encoder.register_forward_hook(lambda _module, args, _out: rows.append(len(args[0])))
    yield rows
    hook.remove()


def set_to(name: str, value: Any) -> Callable[[Any], None]:
    return lambda generator: setattr(generator, name, value)


def changed_encoder(name: str) -> Callable[[Any], None]:
    def change(generator: Any) -> None:
        with torch.no_grad():
            for parameter in getattr(generator, name).parameters():
                parameter.mul_(1.2)

    return change


def loaded(generator: Any) -> None:
    generator.text_encoder.load_state_dict(tiny.text_encoder(seed=8).state_dict())


def replaced_weight(generator: Any) -> None:
    layer = generator.text_encoder.get_input_embeddings()
    layer.weight = nn.Parameter(layer.weight.flip(0), requires_grad=False)


def inverted(generator: Any) -> None:
    generator.pipe.load_textual_inversion({"a</w>": torch.full((32,), 3.0)}, token="zz")
    generator.prompt = "zz"


def another_inversion(generator: Any) -> None:
    generator.prompt = "<cat>"
    generator(photos(), SEEDS)
    generator.pipe.load_textual_inversion({"<cat>": torch.full((32,), 3.0)})


def lora(generator: Any) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    inject_adapter_in_model(config, generator.text_encoder, "one")


def lora_scale(generator: Any) -> None:
    lora(generator)
    generator(photos(), SEEDS)
    for module in generator.text_encoder.modules():
        if hasattr(module, "scaling"):
            module.set_scale("one", 0.2)


def rounded(generator: Any) -> None:
    generator.to(torch.bfloat16)
    generator(photos().bfloat16(), SEEDS)
    generator.float()


def rounded_without_use(generator: Any) -> None:
    generator.to(torch.bfloat16).float()


def zeros(generator: Any) -> None:
    generator.pipe.register_to_config(force_zeros_for_empty_prompt=not generator.pipe.config.force_zeros_for_empty_prompt)


def sd() -> Any:
    return adapted(tiny.stable_diffusion())


def plus() -> Any:
    return adapted(tiny.stable_diffusion(), hidden=True)


def xl() -> Any:
    return adapted(tiny.stable_diffusion_xl())


CHANGES = [
    (tiny.unclip, set_to("prompt", "b")), (tiny.unclip, set_to("negative_prompt", "b")), (tiny.unclip, set_to("guidance_scale", 1.0)),
    (tiny.unclip, loaded), (sd, replaced_weight), (sd, changed_encoder("text_encoder")), (sd, inverted), (sd, another_inversion),
    (sd, lora), (sd, lora_scale), (tiny.unclip, rounded), (tiny.unclip, rounded_without_use), (xl, changed_encoder("text_encoder_2")),
    (xl, zeros), (plus, changed_encoder("image_encoder")),
]  # fmt: skip


# Changes of a kind that another one stands for; slow tests.
ALIKE = (7, 9, 11)


class TestSharedConditions:
    @pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning")
    @pytest.mark.parametrize(
        ("make", "change"), [pytest.param(*case, marks=pytest.mark.slow if i in ALIKE else ()) for i, case in enumerate(CHANGES)]
    )
    def test_a_change_counts(self, make: Callable[[], Any], change: Callable[[Any], None]) -> None:
        if change in (lora, lora_scale):
            pytest.importorskip("peft")
        generator = gt.StableDiffusionVariation.from_pipeline(make(), **FAST)
        before = generator(photos(), SEEDS)
        change(generator)
        made, twin = generator(photos(), SEEDS), fresh(generator)
        assert torch.equal(made, twin(photos(), SEEDS))
        assert generator.fingerprint() == twin.fingerprint()
        assert not torch.equal(made, before)

    def test_guidance_that_comes_later(self) -> None:
        generator = gt.StableDiffusionVariation.from_pipeline(tiny.unclip(), num_inference_steps=1, guidance_scale=1.0)
        generator(photos(), SEEDS)
        generator.guidance_scale = 5.0
        assert torch.equal(generator(photos(), SEEDS), fresh(generator)(photos(), SEEDS))

    def test_another_text_encoder(self) -> None:
        generator = gt.StableDiffusionVariation.from_pipeline(tiny.unclip(), **FAST)
        before, old = generator(photos(), SEEDS), weakref.ref(generator.text_encoder)
        generator.text_encoder = tiny.text_encoder(seed=8)
        gc.collect()
        assert old() is None, "its memory is free"
        made = generator(photos(), SEEDS)
        assert torch.equal(made, fresh(generator)(photos(), SEEDS))
        assert not torch.equal(made, before)

    def test_with_a_controlnet(self) -> None:
        pipe = tiny.stable_diffusion()
        options = {**FAST, "controlnet": tiny.controlnet(pipe.unet)}
        generator = gt.ControlNetVariation.from_pipeline(pipe, **options)
        before = generator(photos(), SEEDS)
        generator.prompt = "b"
        made = generator(photos(), SEEDS)
        assert torch.equal(made, gt.ControlNetVariation.from_pipeline(pipe, **{**options, "prompt": "b"})(photos(), SEEDS))
        assert not torch.equal(made, before)

    def test_a_change_past_torchs_counting_counts_with_the_fingerprint(self) -> None:
        generator = gt.StableDiffusionVariation.from_pipeline(tiny.unclip(), **FAST)
        generator(photos(), SEEDS)
        for parameter in generator.text_encoder.parameters():
            parameter.data.mul_(1.2)
        assert generator.fingerprint() == fresh(generator).fingerprint()
        assert torch.equal(generator(photos(), SEEDS), fresh(generator)(photos(), SEEDS))

    def test_what_changes_no_text_encodes_nothing_again(self) -> None:
        generator = gt.StableDiffusionVariation.from_pipeline(sd(), **FAST)
        with encodings(generator) as rows:
            generator(photos(), SEEDS)
            generator.guidance_scale, generator.num_inference_steps = 4.0, 2
            generator.pipe.set_ip_adapter_scale(0.3)
            changed_encoder("image_encoder")(generator)
            generator.share_memory()  # as a move to another device: other memory, the same values
            generator(photos(), SEEDS)
        assert rows == [2]

    @pytest.mark.parametrize("way", [copy.deepcopy, lambda generator: pickle.loads(pickle.dumps(generator))])
    def test_copies_keep_it_and_see_their_own_changes(self, way: Callable[[Any], Any]) -> None:
        generator = gt.StableDiffusionVariation.from_pipeline(tiny.unclip(), **FAST)
        before = generator(photos(), SEEDS)
        twin = way(generator)
        with encodings(twin) as rows:
            assert torch.equal(twin(photos(), SEEDS), before)
        assert rows == []
        loaded(twin)
        assert torch.equal(twin(photos(), SEEDS), fresh(twin)(photos(), SEEDS))
        assert torch.equal(generator(photos(), SEEDS), before)

    def test_a_copy_of_a_changed_one(self) -> None:
        generator = gt.StableDiffusionVariation.from_pipeline(tiny.unclip(), **FAST)
        generator(photos(), SEEDS)
        loaded(generator)
        assert torch.equal(copy.deepcopy(generator)(photos(), SEEDS), fresh(generator)(photos(), SEEDS))


class TestStamps:
    def test_memory_that_is_used_again_is_seen(self) -> None:
        layer = nn.Linear(4, 4)
        stamp = make_stamp([layer])
        for _ in range(20):  # ids and addresses come again
            layer.weight = nn.Parameter(torch.zeros(4, 4))
            now = make_stamp([layer])
            assert not same(stamp, now)
            stamp = now

    def test_settings_count(self) -> None:
        layer = nn.Linear(2, 2)
        assert same(make_stamp([layer, None], "a"), make_stamp([layer, None], "a"))
        assert not same(make_stamp([layer], "a"), make_stamp([layer], "b"))
        assert not same(None, make_stamp([layer]))
        assert not same(make_stamp([layer]), make_stamp([layer, nn.Linear(2, 2)]))

    def test_weights_of_inference_mode_and_without_values(self) -> None:
        with torch.inference_mode():
            inner = nn.Linear(2, 2)
        meta = nn.Linear(2, 2, device="meta")
        assert same(make_stamp([inner, meta]), make_stamp([inner, meta]))
