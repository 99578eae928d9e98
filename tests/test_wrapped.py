"""A model that holds a transform, in the hands of what walks, averages, saves, compiles, exports and wraps models."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from small_banks import SIZE, make_bank
from small_generators import tiny_icgan
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn
from torch.utils.checkpoint import checkpoint

import gentransforms as gt
from gentransforms.kornia import RandomGenerative
from gentransforms.testing import FakeGenerator

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:::lightning"),
    pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning"),
]

IMAGES = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(3))
SEEDS = torch.arange(6)


def fixed_seeds(sample: Any) -> list[int]:
    return list(range(6))


def fixed_keys(sample: Any) -> list[int]:
    return list(range(len(sample)))


class Net(nn.Module):
    """A model that augments in its forward when it trains."""

    def __init__(self, augment: nn.Module) -> None:
        super().__init__()
        self.augment = augment
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.body(self.augment(images) if self.training else images)
        return scores


HOLDERS: dict[str, Callable[[], Any]] = {
    "GenerativeAugment": lambda: gt.GenerativeAugment(tiny_icgan(), 1.0, seeds_getter=fixed_seeds),
    "RandomGenerative": lambda: RandomGenerative(tiny_icgan(), 1.0),
}


@pytest.fixture(params=HOLDERS)
def net(request: pytest.FixtureRequest) -> Iterator[Net]:
    """A model whose generator must be the same, and make the same images, after the test as before."""
    model = Net(HOLDERS[request.param]())
    generator = model.augment.generator
    before, made = generator.fingerprint(), generator(IMAGES, SEEDS)
    yield model
    assert model.augment.generator is generator
    assert generator.fingerprint() == before
    assert generator(IMAGES, SEEDS).equal(made)
    assert not any(parameter.requires_grad for parameter in generator.parameters())
    assert model.augment.nonfinite_count == 0
    assert not model.augment(IMAGES).equal(IMAGES)


def initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.constant_(module.weight, 0.5)


class TestWalked:
    def test_apply(self, net: Net) -> None:
        net.apply(initialise)
        assert net.body[0].weight.eq(0.5).all()

    def test_requires_grad_and_train(self, net: Net) -> None:
        net.requires_grad_(True)
        net.train()
        net(IMAGES).sum().backward()
        assert not any(module.training for module in net.augment.generator.modules())

    def test_parameters_in_place(self, net: Net) -> None:
        with torch.no_grad():
            for tensor in (*net.parameters(), *net.buffers()):
                tensor.zero_()

    def test_batch_norms_converted(self, net: Net) -> None:
        converted = nn.SyncBatchNorm.convert_sync_batchnorm(net)
        assert any(isinstance(module, nn.SyncBatchNorm) for module in converted.modules())
        net.body[1] = nn.BatchNorm2d(4)

    def test_update_bn(self, net: Net) -> None:
        before = net.body[1].running_mean.clone()
        update_bn([IMAGES, IMAGES], net)
        assert not net.body[1].running_mean.equal(before)

    def test_post_init_of_transformers(self, net: Net) -> None:
        from transformers import PretrainedConfig, PreTrainedModel

        class Model(PreTrainedModel):
            config_class = PretrainedConfig

            def __init__(self, config: Any) -> None:
                super().__init__(config)
                self.inner = net
                self.post_init()

            def _init_weights(self, module: nn.Module) -> None:
                initialise(module)

        model = Model(PretrainedConfig())
        model.init_weights()
        assert not set(net.augment.generator.modules()) & set(model.modules())

    @pytest.mark.parametrize("device", ["cpu", "meta"])
    def test_to_empty_and_a_strict_load(self, net: Net, device: str) -> None:
        state = copy.deepcopy(net.state_dict())
        net.to_empty(device=device)
        if device == "meta":
            net.to_empty(device="cpu")
        assert net.load_state_dict(state, strict=True) == ([], [])
        assert net.augment.nonfinite_count == 0

    def test_casts_and_moves(self, net: Net) -> None:
        for change in (net.half, net.bfloat16, net.double, net.float, net.cpu, lambda: net.to("cpu", torch.float16), net.share_memory):
            change()
        net.to(memory_format=torch.channels_last)

    def test_overwriting_and_swapping_conversions(self, net: Net) -> None:
        try:
            for switch in (
                torch.__future__.set_overwrite_module_params_on_conversion,
                torch.__future__.set_swap_module_params_on_conversion,
            ):
                switch(True)
                net.double()
                net.float()
                switch(False)
        finally:
            torch.__future__.set_overwrite_module_params_on_conversion(False)
            torch.__future__.set_swap_module_params_on_conversion(False)

    def test_weight_decay_of_what_an_optimiser_was_given(self, net: Net) -> None:
        optimizer = torch.optim.AdamW(net.parameters(), lr=0.1, weight_decay=0.5)
        net.train()
        net(IMAGES).sum().backward()
        optimizer.step()

    def test_pruning_and_quantising_find_nothing_in_it(self, net: Net) -> None:
        from torch.nn.utils import parameters_to_vector, prune

        prunable = [(m, "weight") for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        prune.global_unstructured(prunable, pruning_method=prune.L1Unstructured, amount=0.5)
        assert len(parameters_to_vector(net.parameters())) == sum(p.numel() for p in net.body.parameters())


class TestAveraged:
    def test_the_averages_images_are_the_models(self, net: Net) -> None:
        ema = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
        generator = ema.module.augment.generator
        assert generator is not net.augment.generator
        shared = zip(generator.parameters(), net.augment.generator.parameters(), strict=True)
        assert all(a.data_ptr() == b.data_ptr() for a, b in shared)  # an average does not double a generator of gigabytes
        net.train()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(2):
            net(IMAGES).sum().backward()
            optimizer.step()
            ema.update_parameters(net)
        assert ema.module.augment.generator(IMAGES, SEEDS).equal(net.augment.generator(IMAGES, SEEDS))
        update_bn([IMAGES, IMAGES], ema)
        assert ema.module.augment.generator(IMAGES, SEEDS).equal(net.augment.generator(IMAGES, SEEDS))

    def test_a_copy_reset_by_hand(self, net: Net) -> None:
        target = copy.deepcopy(net)
        for a, b in zip(target.parameters(), net.parameters(), strict=True):
            a.data.mul_(0.9).add_(b.data, alpha=0.1)


class TestSaved:
    def test_no_frozen_parameters(self, net: Net) -> None:
        net.body[0].bias.requires_grad_(False)
        state = get_model_state_dict(net, options=StateDictOptions(ignore_frozen_params=True))
        assert "body.0.weight" in state
        assert "body.0.bias" not in state
        assert not any("augment" in name for name in state)

    def test_full_and_strict(self, net: Net) -> None:
        state = get_model_state_dict(net, options=StateDictOptions(full_state_dict=True))
        assert not any("augment" in name for name in state)
        net.load_state_dict(state, strict=True)

    def test_the_whole_model(self, net: Net, tmp_path: Path) -> None:
        torch.save(net, tmp_path / "net.pt")
        again = torch.load(tmp_path / "net.pt", weights_only=False)
        assert again.augment.generator(IMAGES, SEEDS).equal(net.augment.generator(IMAGES, SEEDS))


class TestComputed:
    def test_gradient_checkpointing_makes_the_same_images_again(self) -> None:
        model = Net(gt.GenerativeAugment(tiny_icgan(), 0.5)).train()
        gradients = []
        for recomputed in (False, True):
            torch.manual_seed(0)
            model.zero_grad()
            # Batch norm's own running statistics aside, a second forward must see what the first one saw.
            (checkpoint(model, IMAGES, use_reentrant=False) if recomputed else model(IMAGES)).sum().backward()
            gradients.append(model.body[0].weight.grad.clone())
        torch.testing.assert_close(gradients[1], gradients[0], atol=1e-5, rtol=1e-4)

    def test_export_of_the_path_that_leaves_it_out(self, net: Net) -> None:
        net.eval()
        exported = torch.export.export(net, (IMAGES,))
        torch.testing.assert_close(exported.module()(IMAGES), net(IMAGES))
        assert not any("augment" in name for name in exported.state_dict)

    def test_compiled_it_stays_out_of_the_graph(self, net: Net) -> None:
        graphs: list[torch.fx.GraphModule] = []

        def backend(graph: torch.fx.GraphModule, example_inputs: Any) -> Any:
            graphs.append(graph)
            return graph.forward

        torch._dynamo.reset()
        net.train()
        torch.manual_seed(0)
        expected = net(IMAGES)
        torch.manual_seed(0)
        scores = torch.compile(net, backend=backend)(IMAGES)
        torch.testing.assert_close(scores, expected)
        # What was compiled is the body alone, once.
        convolutions = [node for graph in graphs for node in graph.graph.nodes if "conv" in str(node.target)]
        assert len(convolutions) == sum(isinstance(module, nn.Conv2d) for module in net.body)
        torch._dynamo.reset()

    def test_fullgraph_says_that_it_cannot(self, net: Net) -> None:
        torch._dynamo.reset()
        net.train()
        with pytest.raises(torch._dynamo.exc.Unsupported, match="forward"):
            torch.compile(net, backend="eager", fullgraph=True)(IMAGES)
        assert torch.compile(net.body, backend="eager", fullgraph=True)(IMAGES).shape == (6, 2)
        torch._dynamo.reset()

    def test_replicas_of_data_parallel(self, net: Net) -> None:
        # What `replicate` does with each module, on devices that are not here.
        replica = net.augment._replicate_for_data_parallel()
        assert replica.generator is net.augment.generator
        assert (replica.generator.device, replica.generator.dtype) == (torch.device("cpu"), torch.float32)
        assert replica(IMAGES).shape == IMAGES.shape


class TestCompiledGenerator:
    def test_a_compiled_generator_is_told_what_to_do(self) -> None:
        with pytest.raises(gt.GentransformsError, match=r"torch\.compile\(ICGAN\).*for network in generator\.children\(\)"):
            gt.GenerativeAugment(torch.compile(tiny_icgan(), backend="eager"))  # type: ignore[arg-type]

    def test_as_advised(self) -> None:
        calls: list[int] = []

        def backend(graph: torch.fx.GraphModule, example_inputs: Any) -> Any:
            calls.append(1)
            return graph.forward

        torch._dynamo.reset()
        plain, generator = tiny_icgan(), tiny_icgan()
        for network in generator.children():
            network.compile(backend=backend)
        augment = gt.GenerativeAugment(generator, 1.0, seeds_getter=fixed_seeds)
        expected = gt.GenerativeAugment(plain, 1.0, seeds_getter=fixed_seeds)(IMAGES)
        torch.testing.assert_close(augment(IMAGES), expected, atol=1e-5, rtol=0)
        assert calls  # it is compiled inside the transform too, which itself is kept out of graphs
        assert generator.fingerprint() == plain.fingerprint()
        torch.testing.assert_close(pickle.loads(pickle.dumps(augment))(IMAGES), expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(copy.deepcopy(augment)(IMAGES), expected, atol=1e-5, rtol=0)
        torch._dynamo.reset()

    def test_a_network_replaced_by_its_compiled_self(self, tmp_path: Path) -> None:
        torch._dynamo.reset()
        plain, generator = tiny_icgan(), tiny_icgan()
        generator.network = torch.compile(generator.network, backend="eager")
        assert generator.fingerprint() == plain.fingerprint()
        generator.save_pretrained(tmp_path)
        assert gt.load_generator(tmp_path).fingerprint() == plain.fingerprint()
        augment = gt.GenerativeAugment(generator, 1.0, seeds_getter=fixed_seeds)
        torch.testing.assert_close(augment(IMAGES), gt.GenerativeAugment(plain, 1.0, seeds_getter=fixed_seeds)(IMAGES), atol=1e-5, rtol=0)
        torch._dynamo.reset()


class Large(FakeGenerator):
    """As many modules and parameters as a Stable Diffusion pipeline has."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList(nn.Linear(1, 1) for _ in range(915))


class TestCost:
    def test_a_call_walks_no_parameters(self, monkeypatch: pytest.MonkeyPatch) -> None:
        augment = gt.GenerativeAugment(Large(), 1.0)
        augment(IMAGES)
        listed: list[str] = []
        original = nn.Module._named_members

        def counting(self: nn.Module, *args: Any, **options: Any) -> Iterator[Any]:
            for member in original(self, *args, **options):
                listed.append(member[0])
                yield member

        monkeypatch.setattr(nn.Module, "_named_members", counting)
        monkeypatch.setattr(nn.Module, "train", lambda *_: pytest.fail("every module is visited"))
        monkeypatch.setattr(nn.Module, "requires_grad_", lambda *_: pytest.fail("every parameter is visited"))
        augment(IMAGES)
        # Where the generator is and of which dtype: each the first parameter that comes.
        assert 0 < len(listed) < 20

    def test_a_part_in_training_mode_is_found(self) -> None:
        augment = gt.GenerativeAugment(Large(), 1.0)
        augment.generator.parts[400].train()
        augment(IMAGES)
        assert not augment.generator.parts[400].training


class TestBank:
    def test_has_nothing_that_anything_could_reach(self, tmp_path: Path) -> None:
        bank = gt.Bank.open(make_bank(tmp_path / "bank", keys=list(range(10))))
        net = Net(gt.BankAugment(bank, 1.0, keys_getter=fixed_keys))
        images = torch.zeros(6, 3, *SIZE, dtype=torch.uint8)
        torch.manual_seed(0)
        expected = net.augment(images)
        net.apply(initialise)
        net.to_empty(device="cpu")
        net.half()
        assert not any("augment" in name for name in net.state_dict())
        torch.manual_seed(0)
        assert AveragedModel(net).module.augment(images).equal(expected)
        torch._dynamo.reset()
        torch.manual_seed(0)
        assert torch.compile(net.augment, backend="eager")(images).equal(expected)
        torch._dynamo.reset()


class TestLightning:
    def test_swa_eval_mode_hyperparameters_and_checkpoints(self, tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
        L = pytest.importorskip("lightning")
        module = lightning_module(gt.GenerativeAugment(tiny_icgan(), 1.0), 3)
        generator = module.augment.generator
        before = generator(IMAGES, SEEDS)
        loader = torch.utils.data.DataLoader(IMAGES, batch_size=3)
        swa = L.pytorch.callbacks.StochasticWeightAveraging(swa_lrs=0.01, swa_epoch_start=1)
        trainer = L.Trainer(
            max_epochs=3, accelerator="cpu", callbacks=[swa], logger=False, enable_progress_bar=False, enable_model_summary=False,
            default_root_dir=tmp_path,
        )  # fmt: skip
        trainer.fit(module, loader)
        assert generator(IMAGES, SEEDS).equal(before)
        assert not any("eval mode" in str(warning.message) for warning in recwarn)
        path = tmp_path / "last.ckpt"
        trainer.save_checkpoint(path)
        saved = torch.load(path, weights_only=True)
        assert not any("augment" in name for name in saved["state_dict"])
        assert saved["hyper_parameters"] == {"width": 3}
        again = type(module).load_from_checkpoint(path, augment=gt.GenerativeAugment(tiny_icgan(), 1.0))
        assert again.body.weight.equal(module.body.weight)


def lightning_module(augment: nn.Module, width: int) -> Any:
    import lightning as L

    class Module(L.LightningModule):
        def __init__(self, augment: nn.Module, width: int) -> None:
            super().__init__()
            self.save_hyperparameters(ignore=["augment"])
            self.augment = augment
            self.body = nn.Conv2d(3, width, 3)

        def training_step(self, images: Tensor, batch_idx: int) -> Tensor:
            loss: Tensor = self.body(self.augment(images)).square().mean()
            return loss

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    return Module(augment, width)


def situations(rank: int, folder: str) -> None:
    """What two processes do with a model together; the last line of each says that it went well."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
    from torch.nn.parallel import DistributedDataParallel

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    log = Path(folder, f"{rank}.txt")

    def check(name: str, wrap: Callable[[Net], nn.Module], **options: Any) -> None:
        torch.manual_seed(rank)  # each process draws its own selection
        net = Net(gt.GenerativeAugment(tiny_icgan(), 1.0, **options))
        generator = net.augment.generator
        before = generator(IMAGES, SEEDS)
        net.augment._held.nonfinite += 5 * rank  # a count that a broadcast of buffers would reset
        model = wrap(net)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            model(IMAGES).square().sum().backward()
            optimizer.step()
        assert generator(IMAGES, SEEDS).equal(before), name
        assert net.augment.generator is generator, name
        assert net.augment.nonfinite_count == 5 * rank, name
        with log.open("a") as file:
            file.write(f"{name}\n")

    check("DDP", DistributedDataParallel)
    check("DDP with everything trainable", lambda net: DistributedDataParallel(net.requires_grad_(True), broadcast_buffers=True))
    check("DDP static graph", lambda net: DistributedDataParallel(net, static_graph=True))
    mesh = init_device_mesh("cpu", (2,))

    def sharded(net: Net) -> nn.Module:
        for layer in net.body:
            fully_shard(layer, mesh=mesh)
        fully_shard(net, mesh=mesh)
        return net

    check("FSDP2", sharded)
    check("FSDP1", lambda net: FullyShardedDataParallel(net, device_id=torch.device("cpu")))
    dist.destroy_process_group()


@pytest.mark.slow
class TestTwoProcesses:
    def test_ddp_fsdp1_and_fsdp2(self, tmp_path: Path) -> None:
        torch.multiprocessing.spawn(situations, (str(tmp_path),), nprocs=2)
        for rank in range(2):
            assert Path(tmp_path, f"{rank}.txt").read_text().splitlines() == [
                "DDP", "DDP with everything trainable", "DDP static graph", "FSDP2", "FSDP1",
            ]  # fmt: skip
