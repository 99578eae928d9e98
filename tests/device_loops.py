"""Steps of the training loops on a pretended accelerator, in a process of their own: prints where a step waits for the device, as JSON."""

from __future__ import annotations

import copy
import json
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from pretend_device import DEVICE, PretendDevice, pretend_device
from rich.progress import Progress
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map
from torchvision.transforms import v2

import gentransforms as gt
from gentransforms.errors import ConfigError

RECIPES = Path(__file__).parents[1] / "examples"
STEPS = 4


class Counted:
    """Takes the place of a function that a loop calls once a step, and remembers the waits before each call."""

    def __init__(self, mode: PretendDevice, function: Callable[..., Any]) -> None:
        self.mode, self.function = mode, function
        self.seen: list[tuple[dict[str, int], int]] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.seen.append((dict(self.mode.waits), self.mode.launches))
        return self.function(*args, **kwargs)

    def of_a_step(self) -> dict[str, Any]:
        """What happened between the second call and the last, by step; the first step prepares."""
        (before, started), (after, ended) = self.seen[1], self.seen[-1]
        steps = len(self.seen) - 2
        waits = {name: (count - before.get(name, 0)) / steps for name, count in after.items() if count > before.get(name, 0)}
        return {"waits": waits, "launches": (ended - started) / steps}


class Parts:
    """Launches by the part of a step in which they happen; an inner part's are not its outer one's."""

    def __init__(self, mode: PretendDevice) -> None:
        self.mode, self.launches = mode, Counter[str]()
        self.inside: list[str] = []
        self.last = 0

    def turn(self) -> None:
        """Count what was launched since the last turn for the part that it happened in."""
        self.launches[self.inside[-1] if self.inside else "rest"] += self.mode.launches - self.last
        self.last = self.mode.launches

    def watched(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that counts for a part."""

        def run(*args: Any, **kwargs: Any) -> Any:
            self.turn()
            self.inside.append(name)
            try:
                return function(*args, **kwargs)
            finally:
                self.turn()
                self.inside.pop()

        return run


def pictures(count: int) -> Tensor:
    return torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def loops(which: str) -> Iterator[tuple[str, Any]]:
    """Run the loops of a recipe; yield the name of each, and what happens in a step."""
    sys.path.insert(0, str(RECIPES / ("ssl" if which in ("ssl", "parts") else "icgan")))
    found = {"check": check, "transform": transform, "between": between, "inputs": inputs, "icgan": icgan, "ssl": ssl, "parts": parts}
    yield from found[which]()


def check() -> Iterator[tuple[str, Any]]:
    """What the pretended device has to see."""
    with pretend_device() as mode:
        x = torch.arange(4.0).to(DEVICE, non_blocking=True)
        x.to(DEVICE)
        torch.ones(4).to(DEVICE)
        float(x.sum())
        x[x > 1]
        x.cpu()
        x.nonzero()
        y = x.clone().requires_grad_()
        (y * 2).sum().backward()
        assert y.grad is not None
        assert y.grad.device == DEVICE
        try:
            x + torch.ones(4)
        except RuntimeError:
            mode.waits["two devices"] += 1
    yield "check", {name.rpartition(": ")[2]: count for name, count in mode.waits.items()}


def icgan() -> Iterator[tuple[str, dict[str, Any]]]:
    import adversarial
    import classifier
    import encoder
    from settings import load_settings

    settings = load_settings(None, [
        "device=pretend", "precision=float32", "encoder.widths=[8,16]", "encoder.blocks=[1,1]", "encoder.projection=4", "encoder.epochs=2",
        "encoder.batch_size=8", "generator.G_ch=4", "generator.dim_z=8", "generator.shared_dim_feat=6", "generator.D_ch=4",
        f"generator.steps={STEPS}", "generator.batch_size=8", "sample_every=1000", "checkpoint_every=1000", "log_every=1000",
    ])  # fmt: skip
    with tempfile.TemporaryDirectory() as folder, Progress(disable=True) as progress, pretend_device() as mode:
        encoder.seed_step = counted = Counted(mode, encoder.seed_step)
        made = encoder.train_encoder(pictures(16), settings, Path(folder), progress)
        yield "encoder", counted.of_a_step()
        adversarial.seed_step = counted = Counted(mode, adversarial.seed_step)
        adversarial.train_generator(pictures(16), made, settings, Path(folder), progress)
        yield "generator", counted.of_a_step()
    with pretend_device() as mode:
        classifier.F.cross_entropy = counted = Counted(mode, classifier.F.cross_entropy)
        classifier.train_judge(
            pictures(500 * STEPS)[..., :16, :16].contiguous(), torch.arange(500 * STEPS) % 3, 1, 0, 16, "pretend", "float32"
        )
        yield "judge", counted.of_a_step()


def ssl() -> Iterator[tuple[str, dict[str, Any]]]:
    from config import load_settings
    from methods import METHODS
    from optimizers import build_optimizer, learning_rate, parameter_groups
    from probes import knn

    small = [
        "backbone.name=small",
        "backbone.widths=[8,16]",
        "backbone.blocks=[1,1]",
        "method.hidden=16",
        "method.out=8",
        "data.train=none",
    ]
    for method in ("simclr", "byol", "simsiam", "barlowtwins", "mocov2plus"):
        settings = load_settings(RECIPES / "ssl" / "configs" / "cifar10" / f"{method}-baseline.yaml", [*small, "trainer.batch_size=8"])
        generator = gt.GenerativeAugment(gt.load_generator("icgan-cifar10-32"))
        with pretend_device() as mode:
            module = METHODS[method](settings, 3, generator).to(DEVICE)
            s = settings.optimizer
            optimizer = build_optimizer(parameter_groups([module.backbone, *module.heads()], s), s, learning_rate(s, settings.trainer))
            counted = Counted(mode, lambda: None)
            batch = {"images": pictures(8).to(DEVICE), "labels": (torch.arange(8) % 3).to(DEVICE), "rows": torch.arange(8)}
            for _ in range(STEPS):
                counted()
                loss = module.training_step(dict(batch), 0)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                if hasattr(module, "target_backbone"):
                    module.after_step(3, 10)
            yield method, counted.of_a_step()
    with pretend_device() as mode:
        counted, features = Counted(mode, knn), torch.randn(20, 4).to(DEVICE)
        for _ in range(STEPS):
            counted(features, features, torch.arange(20).to(DEVICE, non_blocking=True) % 3, 3, 5, 0.1)
        yield "k-NN", counted.of_a_step()


def parts() -> Iterator[tuple[str, dict[str, float]]]:
    """Launches of a SimCLR step with ResNet-18, as in configs/cifar10, part by part; autocast's casts would come on top."""
    from config import load_settings
    from methods import METHODS
    from optimizers import build_optimizer, learning_rate, parameter_groups

    settings = load_settings(RECIPES / "ssl" / "configs" / "cifar10" / "simclr-baseline.yaml", ["data.train=none", "trainer.batch_size=4"])
    with pretend_device() as mode:
        module = METHODS["simclr"](settings, 10).to(DEVICE)
        s, watch = settings.optimizer, Parts(mode)
        groups = parameter_groups([module.backbone, *module.heads()], s)
        groups.append({"params": list(module.probe.parameters()), "weight_decay": 0.0})
        optimizer = build_optimizer(groups, s, learning_rate(s, settings.trainer))
        for owner, name in ((module, "views"), (module.backbone, "forward"), (module.projector, "forward"), (module.criterion, "forward")):
            part = {"views": "views", "forward": type(owner).__name__}[name]
            setattr(owner, name, watch.watched(part, getattr(owner, name)))
        batch = {"images": pictures(4).to(DEVICE), "labels": torch.arange(4).to(DEVICE), "rows": torch.arange(4)}
        for step in range(STEPS):
            if step == 1:  # the first prepares
                watch.turn()
                watch.launches.clear()
            loss = module.training_step(dict(batch), 0)
            optimizer.zero_grad(set_to_none=True)
            watch.watched("backward", loss.backward)()
            watch.watched("optimizer", optimizer.step)()
        watch.turn()
    yield "parts of SimCLR", {name: count / (STEPS - 1) for name, count in watch.launches.items()}


def transform() -> Iterator[tuple[str, dict[str, Any]]]:
    for name, p, dtype in (("half", 0.5, torch.float32), ("all", 1.0, torch.float32), ("bytes", 0.5, torch.uint8)):
        augment = gt.GenerativeAugment(gt.load_generator("icgan-cifar10-32"), p=p)
        with pretend_device() as mode:
            augment.to(DEVICE)
            images = pictures(8).to(DEVICE)
            counted = Counted(mode, augment)
            for _ in range(STEPS):
                made = counted(images if dtype == torch.uint8 else images.float() / 255)
            assert made.device == DEVICE
            yield name, counted.of_a_step()


def between() -> Iterator[tuple[str, bool]]:
    """Images on one device and the generator on the other: whether the new images are those of the CPU, and what was said."""
    from gentransforms.kornia import RandomGenerative
    from gentransforms.testing import FakeGenerator

    images, seeds = pictures(6).float() / 255, torch.arange(6)

    def transform() -> Any:
        return gt.GenerativeAugment(FakeGenerator(), p=1.0, seeds_getter=lambda _: seeds)

    samples = {"floats": images, "bytes": pictures(6), "views": [images[:3], images[3:, :, :16, :16]]}
    for name, sample in samples.items():
        expected = tree_leaves(transform()(sample))
        for where, generator_on, images_on in (("to the device", DEVICE, "cpu"), ("to the CPU", "cpu", DEVICE)):
            with pretend_device(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                augment = transform()
                augment.generator.to(generator_on)
                for _ in range(2):  # the first call waits for the count of images that are not finite
                    made = tree_leaves(augment(tree_map(lambda x: x.to(images_on), sample)))  # noqa: B023
                alike = all(torch.equal(a.cpu(), b) for a, b in zip(made, expected, strict=True))
            yield f"{name} {where}", alike
    augment = RandomGenerative(FakeGenerator(), p=1.0)
    expected = augment(images)
    with pretend_device(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield "kornia to the CPU", torch.equal(augment(images.to(DEVICE), params=augment._params).cpu(), expected)
    with pretend_device(), warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        composed = torch.nn.ModuleDict({"transforms": v2.Compose([transform()])}).to(DEVICE)
        for _ in range(2):
            composed["transforms"](images.to(DEVICE))
    yield "one warning", [str(w.message).partition(":")[0] for w in said] == ["the images are on pretend"]
    with pretend_device():
        pickled = gt.load_generator("icgan-cifar10-32").to(DEVICE)
        state = pickled.__dict__ | {"_released": {name: t.to(DEVICE) for name, t in pickled._released.items()}}  # as map_location does
        again = type(pickled).__new__(type(pickled))
        again.__setstate__(state)
        yield "loaded by map_location", again.fingerprint() == gt.load_generator("icgan-cifar10-32").fingerprint()


def inputs() -> Iterator[tuple[str, Any]]:
    """Labels in a transform with the generator on the device: what is said of those that are no classes, and where a step waits."""
    network = {"resolution": 32, "G_ch": 4, "dim_z": 8, "shared_dim_feat": 6, "feature_dim": 16, "G_attn": "0"}
    classes = {"class_cond": True, "n_classes": 5, "shared_dim": 4}
    generator = gt.ICGAN(network | classes, {"kind": "small-resnet", "widths": [8, 16], "blocks": [1, 1]})
    images, good = pictures(2), torch.tensor([0, 4])

    def error_of(augment: Any, *sample: Tensor) -> str:
        try:
            augment(*sample)
        except (ConfigError, IndexError) as error:
            return type(error).__name__
        return "none"

    for where in ("cpu", DEVICE):
        for first in (True, False):
            with pretend_device() as mode:
                augment = gt.GenerativeAugment(copy.deepcopy(generator), p=1.0, inputs_getter=lambda sample: {"labels": sample[1]})
                augment.to(DEVICE)
                batch, labels, counted = images.to(DEVICE), good.to(where), Counted(mode, augment)
                for _ in range(0 if first else STEPS):
                    counted(batch, labels)
                found = [error_of(augment, batch, torch.tensor(bad).to(where)) for bad in ([0, -1], [5, 0])]
            yield f"labels on {where}, {'first' if first else 'later'} call", found
            if not first:
                yield f"waits with labels on {where}", counted.of_a_step()["waits"]


if __name__ == "__main__":
    print(json.dumps({name: found for which in sys.argv[1:] for name, found in loops(which)}))
