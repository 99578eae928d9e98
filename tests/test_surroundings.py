"""What surrounds a call or a loading does not leak into it: default dtype and device, inference mode, empty-weights contexts."""

from __future__ import annotations

import contextlib
import operator
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import tiny_diffusion
import torch
from kornia.augmentation import AugmentationSequential
from small_banks import SIZE, make_bank
from small_generators import NotFinite, tiny_icgan
from torch import nn

import gentransforms as gt
from gentransforms import surroundings
from gentransforms.kornia import RandomGenerative
from gentransforms.surroundings import isolate, isolate_loading
from gentransforms.testing import FakeGenerator

pytestmark = pytest.mark.usefixtures("one_thread")

BATCH = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(3))


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def default_device(kind: str) -> Iterator[None]:
    torch.set_default_device(kind)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextlib.contextmanager
def matmul_precision(name: str) -> Iterator[None]:
    """What Lightning advises on every GPU with tensor cores."""
    torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision("highest")
        for backend in (torch.backends.cuda, torch.backends.mkldnn):  # "highest" leaves "ieee", which follows no parent
            if hasattr(backend.matmul, "fp32_precision"):  # type: ignore[attr-defined]
                backend.matmul.fp32_precision = "none"  # type: ignore[attr-defined]


@contextlib.contextmanager
def fp32_precision(where: str, value: str) -> Iterator[None]:
    """The newer way, since torch 2.9, after which the older one raises."""
    place = operator.attrgetter(where)(torch.backends) if where else torch.backends
    before = place.fp32_precision
    place.fp32_precision = value
    try:
        yield
    finally:
        place.fp32_precision = before


def empty_weights(include_buffers: bool) -> AbstractContextManager[Any]:
    import accelerate

    context: AbstractContextManager[Any] = accelerate.init_empty_weights(include_buffers=include_buffers)
    return context


def lightning_precision(name: str) -> AbstractContextManager[Any]:
    from lightning.pytorch.plugins.precision import DoublePrecision, HalfPrecision

    plugin: Any = DoublePrecision() if name == "64-true" else HalfPrecision(name)
    return plugin.forward_context()  # type: ignore[no-any-return]


CALLS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "bfloat16 by default": lambda: default_dtype(torch.bfloat16),
    "float64 by default": lambda: default_dtype(torch.float64),
    "meta by default": lambda: default_device("meta"),
    "torch.device(meta)": lambda: torch.device("meta"),
    "inference_mode": torch.inference_mode,
    "no_grad": torch.no_grad,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "bf16-true": lambda: lightning_precision("bf16-true"),
    "16-true": lambda: lightning_precision("16-true"),
    "64-true": lambda: lightning_precision("64-true"),
    "medium": lambda: matmul_precision("medium"),
    **({"bf16 convolutions": lambda: fp32_precision("mkldnn.conv", "bf16")} if hasattr(torch.backends, "fp32_precision") else {}),
}
LOADINGS = CALLS | {
    "init_empty_weights": lambda: empty_weights(False),
    "init_empty_weights with buffers": lambda: empty_weights(True),
}


@pytest.fixture(params=CALLS)
def around_call(request: pytest.FixtureRequest) -> Callable[[], AbstractContextManager[Any]]:
    return CALLS[request.param]


@pytest.fixture(params=LOADINGS)
def around_loading(request: pytest.FixtureRequest) -> Callable[[], AbstractContextManager[Any]]:
    return LOADINGS[request.param]


# Where loading takes long: one of each kind of surroundings. The others set the default dtype or device in another way.
FEW_LOADINGS = [
    name if name in ("bfloat16 by default", "meta by default", "inference_mode", "autocast", "init_empty_weights with buffers") else
    pytest.param(name, marks=pytest.mark.slow) for name in LOADINGS
]  # fmt: skip


@pytest.fixture(params=FEW_LOADINGS)
def around_long_loading(request: pytest.FixtureRequest) -> Callable[[], AbstractContextManager[Any]]:
    return LOADINGS[request.param]


class TestIsolate:
    def test_everything_at_once_and_back(self) -> None:
        with default_dtype(torch.float64), torch.device("meta"), torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
            with isolate():
                assert torch.zeros(1).dtype == torch.float32
                assert torch.zeros(1).device.type == "cpu"
                assert not torch.zeros(1).is_inference()
                assert not torch.is_autocast_enabled("cpu")
                assert not torch.is_grad_enabled()
            assert torch.get_default_dtype() == torch.float64
            assert torch.zeros(1).is_meta
            assert torch.is_inference_mode_enabled()
            assert torch.is_autocast_enabled("cpu")

    @pytest.mark.parametrize("name", ["high", "medium"])
    def test_products_in_float32(self, name: str) -> None:
        with matmul_precision(name):
            for _ in range(2):
                with isolate(), isolate():
                    assert torch.get_float32_matmul_precision() == "highest"
                assert torch.get_float32_matmul_precision() == name

    @pytest.mark.skipif(not hasattr(torch.backends, "fp32_precision"), reason="torch before 2.9 has no such settings")
    @pytest.mark.parametrize(
        ("where", "value"),
        [("", "bf16"), ("", "tf32"), *((where, "bf16") for where in ("mkldnn", "mkldnn.conv", "mkldnn.matmul")), ("cuda.matmul", "tf32")],
    )
    def test_products_and_convolutions_in_float32_whoever_asked_for_less(self, where: str, value: str) -> None:
        def settings() -> dict[str, str]:
            names = ("cuda.matmul", "mkldnn.matmul", "mkldnn.conv", "cudnn.conv", "mkldnn", "cudnn")
            return {name: operator.attrgetter(name)(torch.backends).fp32_precision for name in names}

        plain = settings()
        with fp32_precision(where, value):
            before = settings()
            assert before != plain
            with isolate():
                assert {settings()[name] for name in ("cuda.matmul", "mkldnn.matmul", "mkldnn.conv")} <= {"none", "ieee"}
                assert settings()["cudnn.conv"] == before["cudnn.conv"]
            assert settings() == before
        assert settings() == plain  # nothing stays behind that would not follow its parent

    @pytest.mark.skipif(not hasattr(torch.backends, "fp32_precision"), reason="torch before 2.9 has no such settings")
    def test_products_in_float32_where_both_ways_disagree(self) -> None:
        with matmul_precision("high"), fp32_precision("mkldnn.matmul", "bf16"):
            with pytest.raises(RuntimeError, match="precision"):
                torch.get_float32_matmul_precision()
            with isolate():
                assert torch.get_float32_matmul_precision() == "highest"  # as torch.compile reads it
                assert not torch.backends.cuda.matmul.allow_tf32
                assert torch.backends.mkldnn.matmul.fp32_precision == "ieee"  # type: ignore[attr-defined]
            assert torch.backends.mkldnn.matmul.fp32_precision == "bf16"  # type: ignore[attr-defined]
            assert torch.backends.cuda.matmul.allow_tf32

    @pytest.mark.parametrize("enabled", [True, False])
    def test_gradients_stay_as_they_are(self, enabled: bool) -> None:
        with torch.set_grad_enabled(enabled), isolate():
            assert torch.is_grad_enabled() == enabled

    def test_the_default_dtype_comes_back_after_an_error(self) -> None:
        with default_dtype(torch.float64):
            with pytest.raises(KeyError), isolate():
                raise KeyError
            assert torch.get_default_dtype() == torch.float64

    def test_the_default_dtype_comes_back_whoever_leaves_first(self) -> None:
        entered, leave, seen = threading.Event(), threading.Event(), []

        def other() -> None:
            with isolate():
                entered.set()
                leave.wait(10)
                seen.append(torch.get_default_dtype())

        with default_dtype(torch.float64):
            thread = threading.Thread(target=other)
            with isolate():
                thread.start()
                assert entered.wait(10)
            assert torch.get_default_dtype() == torch.float32  # as long as the other is inside
            leave.set()
            thread.join()
            assert seen == [torch.float32]
            assert torch.get_default_dtype() == torch.float64

    def test_empty_weights_go_on_afterwards(self) -> None:
        before = nn.Module.register_parameter
        with empty_weights(False):
            assert nn.Linear(1, 1).weight.is_meta
            with isolate_loading():
                assert not nn.Linear(1, 1).weight.is_meta
            assert nn.Linear(1, 1).weight.is_meta
        assert nn.Module.register_parameter is before


@pytest.fixture(scope="module")
def bundled() -> gt.ImageGenerator:
    return gt.load_generator("icgan-cifar10-32")


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a diffusion pipeline."""
    folder = tmp_path_factory.mktemp("repository")
    tiny_diffusion.unclip().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def from_repository(repository: Path) -> gt.ImageGenerator:
    return gt.load_generator(repository, num_inference_steps=1)


class TestLoading:
    def same(self, generator: gt.ImageGenerator, expected: gt.ImageGenerator) -> None:
        assert generator.dtype == torch.float32
        assert generator.device.type == "cpu"
        assert not any(t.is_meta or t.is_inference() for t in (*generator.parameters(), *generator.buffers()))
        assert generator.fingerprint() == expected.fingerprint()

    def test_the_bundled_generator(
        self, around_long_loading: Callable[[], AbstractContextManager[Any]], bundled: gt.ImageGenerator
    ) -> None:
        expected = bundled
        with around_long_loading():
            loaded, augment = gt.load_generator("icgan-cifar10-32"), gt.GenerativeAugment.from_pretrained("icgan-cifar10-32", p=1.0)
        self.same(loaded, expected)
        self.same(augment.generator, expected)
        seeds = torch.arange(6)
        assert loaded(BATCH, seeds).equal(expected(BATCH, seeds))
        assert not augment(BATCH).equal(BATCH)

    def test_a_users_own(self, around_loading: Callable[[], AbstractContextManager[Any]], tmp_path: Path) -> None:
        tiny_icgan().save_pretrained(tmp_path)
        with around_loading():
            loaded = gt.ICGAN.from_pretrained(tmp_path)
        self.same(loaded, gt.ICGAN.from_pretrained(tmp_path))

    def test_a_diffusion_repository(
        self, around_long_loading: Callable[[], AbstractContextManager[Any]], repository: Path, from_repository: gt.ImageGenerator
    ) -> None:
        with around_long_loading():
            loaded = gt.load_generator(repository, num_inference_steps=1)
        self.same(loaded, from_repository)

    @pytest.mark.parametrize("kind", ["bundled", "transform", "users", "diffusion"])
    def test_random_numbers_go_on_as_without_it(self, kind: str, repository: Path, tmp_path: Path) -> None:
        """A network that is built after loading starts from the weights that it has in a run without a generator."""
        tiny_icgan().save_pretrained(tmp_path)
        load: dict[str, Callable[[], Any]] = {
            "bundled": lambda: gt.load_generator("icgan-cifar10-32"),
            "transform": lambda: gt.GenerativeAugment.from_pretrained("icgan-cifar10-32"),
            "users": lambda: gt.ICGAN.from_pretrained(tmp_path),
            "diffusion": lambda: gt.load_generator(repository, num_inference_steps=1),
        }
        before = torch.get_rng_state()
        load[kind]()
        assert torch.get_rng_state().equal(before)

    def test_built_under_inference_mode(self) -> None:
        with torch.inference_mode():
            augment = gt.GenerativeAugment(tiny_icgan(), 1.0, seeds_getter=lambda sample: list(range(6)))
            built = gt.GenerativeAugment(FakeGenerator(), 1.0)
        assert augment(BATCH).equal(gt.GenerativeAugment(tiny_icgan(), 1.0, seeds_getter=lambda sample: list(range(6)))(BATCH))
        assert not built(BATCH).equal(BATCH)
        assert built.generator.double().dtype == torch.float64  # weights of inference mode cannot be moved


def transforms(folder: Path) -> dict[str, Callable[[], Any]]:
    return {
        "online": lambda: gt.GenerativeAugment(tiny_icgan(), 0.5),
        "at another size": lambda: gt.GenerativeAugment(tiny_icgan(), 0.5, output_size=(20, 24), max_batch_size=2),
        "seeds": lambda: gt.GenerativeAugment(tiny_icgan(), 0.5, seeds_getter=lambda sample: list(range(6))),
        "kornia": lambda: RandomGenerative(tiny_icgan(), 0.5),
        "kornia in a sequence": lambda: AugmentationSequential(RandomGenerative(tiny_icgan(), 0.5), data_keys=["input"]),
        "bank": lambda: gt.BankAugment(folder, 0.5, keys_getter=lambda sample: list(range(6))),
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bank(tmp_path_factory.mktemp("bank") / "bank", keys=list(range(10)))


class TestCalls:
    @pytest.mark.parametrize("kind", transforms(Path()))
    def test_selection_seeds_and_images_stay_the_same(
        self, kind: str, around_call: Callable[[], AbstractContextManager[Any]], folder: Path
    ) -> None:
        augment = transforms(folder)[kind]()
        torch.manual_seed(0)
        expected, following = augment(BATCH), torch.rand(1)
        torch.manual_seed(0)
        with around_call():
            within = augment(BATCH)
        assert torch.rand(1).equal(following)
        assert not within.is_inference()
        assert within.equal(expected)
        torch.manual_seed(0)
        assert augment(BATCH).equal(expected)  # nothing of it stays behind

    @pytest.mark.parametrize("cls", [gt.GenerativeAugment, RandomGenerative])
    def test_built_inside(self, cls: Any, around_call: Callable[[], AbstractContextManager[Any]]) -> None:
        torch.manual_seed(0)
        expected = cls(FakeGenerator(), 0.5)(BATCH)
        generator = FakeGenerator()
        with around_call():
            augment = cls(generator, 0.5)
        torch.manual_seed(0)
        assert augment(BATCH).equal(expected)

    def test_what_was_drawn_has_its_own_dtypes(self, around_call: Callable[[], AbstractContextManager[Any]], folder: Path) -> None:
        for augment in (gt.GenerativeAugment(FakeGenerator(), 0.5), gt.BankAugment(folder, 0.5)):
            torch.manual_seed(0)
            expected = augment.make_params([BATCH])
            torch.manual_seed(0)
            with around_call():
                params = augment.make_params([BATCH])
            for name, value in expected.items():
                if isinstance(value, torch.Tensor):
                    assert params[name].equal(value)
                    assert (params[name].dtype, params[name].device) == (value.dtype, value.device)

    def test_inputs_have_their_own_dtypes(self, around_call: Callable[[], AbstractContextManager[Any]]) -> None:
        given: list[Any] = []

        class Noting(FakeGenerator):
            inputs = ("labels", "weights")

            def encode(self, images: Any, **inputs: Any) -> Any:
                given.append(inputs)
                return super().encode(images)

        values = {"labels": list(range(6)), "weights": [1 / 3] * 6}
        augment = gt.GenerativeAugment(Noting(), 1.0, inputs_getter=lambda sample: values)
        with around_call():
            augment(BATCH)
        assert (given[0]["labels"].dtype, given[0]["weights"].dtype) == (torch.int64, torch.float32)
        assert given[0]["weights"].tolist() == pytest.approx(values["weights"], abs=1e-7)
        assert given[0]["labels"].device.type == "cpu"

    def test_the_count_of_the_non_finite(self, around_call: Callable[[], AbstractContextManager[Any]]) -> None:
        augment = gt.GenerativeAugment(NotFinite(bad=(12,)), 1.0, seeds_getter=lambda sample: list(range(10, 16)))
        with around_call(), pytest.warns(UserWarning, match="NaN or infinity"):
            augment(BATCH)
        augment(BATCH)
        with around_call():
            augment(BATCH)
        assert augment.nonfinite_count == 3

    def test_a_bank_filled_inside(self, around_call: Callable[[], AbstractContextManager[Any]], tmp_path: Path) -> None:
        photos = [torch.full((3, *SIZE), 20 * i, dtype=torch.uint8) for i in range(4)]
        options: Any = {"variants": 2, "progress": False}
        gt.generate_bank(photos, tmp_path / "plain", tiny_icgan(), **options)
        with around_call():
            gt.generate_bank(photos, tmp_path / "inside", tiny_icgan(), **options)
        plain, inside = (gt.Bank.open(tmp_path / name) for name in ("plain", "inside"))
        rows = [(key, v) for key in plain.keys for v in range(2)]
        keys, variants = [k for k, _ in rows], [v for _, v in rows]
        assert inside.read(keys, variants).equal(plain.read(keys, variants))

    def test_results_can_be_trained_on_after_inference_mode(self) -> None:
        with torch.inference_mode():
            images = gt.GenerativeAugment(FakeGenerator(), 1.0)(BATCH)
        layer = nn.Conv2d(3, 1, 3)
        layer(images).sum().backward()
        assert layer.weight.grad is not None


class Dependent(FakeGenerator):
    """A generator whose images depend on torch's default dtype and on its precision of products, as another library's may."""

    def sample(self, condition: Any, seeds: torch.Tensor) -> torch.Tensor:
        self.meanwhile()
        assert torch.get_float32_matmul_precision() == "highest"
        return super().sample(condition, seeds) * (torch.arange(1, 2) / 3)

    def meanwhile(self) -> None:
        """What happens in other threads while it generates images."""


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if nothing had been warned of in this process."""
    for setting in (surroundings._DTYPE, surroundings._ARITHMETIC):
        monkeypatch.setattr(setting, "_warned", False)


def in_thread(function: Callable[[], Any]) -> Any:
    results: list[Any] = []

    def run() -> None:
        try:
            results.append(function())
        except BaseException as error:
            results.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if isinstance(results[0], BaseException):
        raise results[0]
    return results[0]


@pytest.mark.usefixtures("fresh")
class TestThreads:
    """What a thread that augments does to one that trains."""

    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
    @pytest.mark.parametrize("kind", ["ICGAN", "bank"])
    def test_the_default_dtype_stays(self, kind: str, dtype: torch.dtype, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Whoever needs none does not change it, not even for a moment."""
        augment = transforms(folder)["seeds" if kind == "ICGAN" else "bank"]()
        torch.manual_seed(0)
        expected = augment(BATCH)
        with default_dtype(dtype):
            torch.manual_seed(0)
            with monkeypatch.context() as patch:
                patch.setattr(torch, "set_default_dtype", lambda dtype: pytest.fail(f"set to {dtype}"))
                made = in_thread(lambda: augment(BATCH))
        assert made.equal(expected)

    def test_the_precision_stays_for_a_bank(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        augment = transforms(folder)["bank"]()
        with matmul_precision("high"), monkeypatch.context() as patch:
            patch.setattr(torch, "set_float32_matmul_precision", lambda name: pytest.fail(f"set to {name}"))
            in_thread(lambda: augment(BATCH))

    def test_of_other_generators_are_warned_of(self) -> None:
        augment = gt.GenerativeAugment(Dependent(), 1.0, seeds_getter=lambda sample: list(range(6)))
        expected = augment(BATCH)
        with default_dtype(torch.float64):
            assert augment(BATCH).equal(expected)  # in the main thread, without a word
            with pytest.warns(UserWarning, match=r"default dtype .* all threads of the process; augment in the thread .* model.double"):
                assert in_thread(lambda: augment(BATCH)).equal(expected)
            assert in_thread(lambda: augment(BATCH)).equal(expected)  # once
            assert torch.get_default_dtype() == torch.float64

    def test_the_precision_is_warned_of(self) -> None:
        augment = transforms(Path())["seeds"]()
        expected = augment(BATCH)
        with matmul_precision("high"):
            with pytest.warns(UserWarning, match=r"precision of float32 products .* slower: .* under autocast"):
                assert in_thread(lambda: augment(BATCH)).equal(expected)
            assert in_thread(lambda: augment(BATCH)).equal(expected)
            assert torch.get_float32_matmul_precision() == "high"

    def test_a_warning_that_is_an_error_leaves_all_as_it_was(self) -> None:
        augment = gt.GenerativeAugment(Dependent(), 1.0)
        with default_dtype(torch.float64):
            with pytest.raises(UserWarning, match="default dtype"):
                in_thread(lambda: augment(BATCH))
            assert torch.get_default_dtype() == torch.float64
            assert not surroundings._DTYPE._inside

    def test_a_change_by_another_thread_is_warned_of(self) -> None:
        """As Lightning's bf16-true makes in the training thread: the images are not what they should be."""
        generator = Dependent()
        augment = gt.GenerativeAugment(generator, 1.0)
        try:
            generator.meanwhile = lambda: in_thread(lambda: torch.set_default_dtype(torch.bfloat16))  # type: ignore[method-assign]
            with pytest.warns(UserWarning, match=r"default dtype was changed while images were generated, .* so they may differ"):
                augment(BATCH)
            assert torch.get_default_dtype() == torch.bfloat16
        finally:
            torch.set_default_dtype(torch.float32)

    @pytest.mark.parametrize("how", ["subclass", "compiled", "hook", "foreign"])
    def test_what_is_unknown_of_an_icgan_may_depend_on_it(self, how: str) -> None:
        generator = type("Own", (gt.ICGAN,), {})(**tiny_icgan().config) if how == "subclass" else tiny_icgan()
        assert generator._reads_default_dtype == (how == "subclass")
        if how == "compiled":
            generator.network.compile(backend="eager")
        if how == "hook":
            generator.network.register_forward_hook(lambda *_: None)
        if how == "foreign":
            generator.network.extra = type("Extra", (nn.Identity,), {"__module__": "peft.layers"})()
        assert generator._reads_default_dtype
