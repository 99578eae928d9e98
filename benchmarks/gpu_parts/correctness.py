"""Part 1: what the library promises, on the device: invariance, parity with the CPU, training steps, fork, memory, no sync.

Everything is compared in full float32; what TensorFloat-32, torch's default for convolutions, changes is a check of its own.
"""

from __future__ import annotations

import contextlib
import copy
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

import gentransforms as gt
from benchmarks.gpu import check
from benchmarks.gpu_parts.context import Context, run

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

# Largest difference of a pixel. TensorFloat-32 has 11 bits and bfloat16 8, through all layers.
BOUND = {"float32": 1e-4, "TensorFloat-32": 0.05, "bfloat16": 0.25}
COMPILING = 25.0  # seconds that a first torch.compile may take


class NotHere(Exception):
    """The check needs a GPU, or more time."""


@contextlib.contextmanager
def full_float32(on: bool = True) -> Iterator[None]:
    """Compute products and convolutions in full float32; with ``on=False`` in TensorFloat-32 where the device has it."""
    backends = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [backend.allow_tf32 for backend in backends]
    for backend in backends:
        backend.allow_tf32 = not on
    try:
        yield
    finally:
        for backend, value in zip(backends, before, strict=True):
            backend.allow_tf32 = value


def main(context: Context) -> None:
    """Run all checks; one that fails does not stop the others."""
    # First what needs no diffusers, whose import takes long on a machine that has never read it; the compiler last.
    checks: dict[str, Callable[[], Any]] = {
        "bundled generator, float32": lambda: check(context.device),
        "bundled generator, TensorFloat-32": lambda: check_tensor_float(context.device),
        "bundled generator, bfloat16": lambda: check_bfloat16(context.device),
        "training step": lambda: check_training_step(context.device),
        "autocast": lambda: check_autocast(context.device),
        "images and generator on two devices": lambda: check_two_devices(context.device),
        "no sync in the transform": lambda: check_no_sync(context.device),
        "fork in a worker": lambda: check_fork(context.device),
        "out of memory": lambda: check_out_of_memory(context.device),
        "unCLIP, float32": lambda: check_diffusion("unclip", context.device, "float32"),
        "unCLIP, bfloat16": lambda: check_diffusion("unclip", context.device, "bfloat16"),
        "ControlNet, float32": lambda: check_diffusion("controlnet", context.device, "float32"),
        "ControlNet, bfloat16": lambda: check_diffusion("controlnet", context.device, "bfloat16"),
        "torch.compile": lambda: check_compile(context, "eager" if context.quick else "inductor"),
    }
    found: dict[str, Any] = {}
    for name, call in checks.items():
        start = time.monotonic()
        try:
            with full_float32():
                found[name] = {"outcome": "passed", "found": call()}
        except NotHere as reason:
            found[name] = {"outcome": "skipped", "reason": str(reason)}
        except (Exception, SystemExit) as error:
            found[name] = {"outcome": "failed", "reason": f"{type(error).__name__}: {error}"[:1000]}
        found[name]["seconds"] = round(time.monotonic() - start, 2)
        print(name, found[name], flush=True)
        count = {outcome: sum(one["outcome"] == outcome for one in found.values()) for outcome in ("passed", "failed", "skipped")}
        failed = [name for name, one in found.items() if one["outcome"] == "failed"]
        context.write(checks=found, summary={**count, **({"which failed": ", ".join(failed)} if failed else {})})
    if failed:
        sys.exit(1)


def compare(generator: gt.ImageGenerator, reference: Tensor, images: Tensor, seeds: Tensor, bound: float) -> dict[str, float]:
    """Return the largest differences from the reference and between batches; raise if one is beyond the bound."""
    with torch.no_grad():
        batch = generator(images, seeds)
        alone = torch.cat([generator(images[i : i + 1], seeds[i : i + 1]) for i in range(len(images))])
        reversed_batch = generator(images.flip(0), seeds.flip(0)).flip(0)
    differences = {"device_vs_cpu": batch.cpu() - reference, "alone_vs_batch": alone - batch, "reversed_vs_batch": reversed_batch - batch}
    found = {name: difference.abs().max().item() for name, difference in differences.items()}
    worst = max(found, key=found.__getitem__)
    if not found[worst] <= bound:
        raise AssertionError(f"{worst}: {found[worst]:.3g}, expected at most {bound:g}")
    return found


def check_bfloat16(device: torch.device) -> dict[str, float]:
    """The bundled generator in bfloat16 beside itself in float32 on the CPU."""
    generator, images, seeds = gt.load_generator("icgan-cifar10-32"), photos(5), torch.arange(5)
    with torch.no_grad():
        reference = generator(images, seeds)
    return compare(generator.to(device, torch.bfloat16), reference, images.to(device), seeds, BOUND["bfloat16"])


def check_tensor_float(device: torch.device) -> dict[str, float]:
    """The bundled generator as torch runs it by default, beside itself on the CPU."""
    generator, images, seeds = gt.load_generator("icgan-cifar10-32"), photos(5), torch.arange(5)
    with torch.no_grad():
        reference = generator(images, seeds)
    with full_float32(False):
        return compare(generator.to(device), reference, images.to(device), seeds, BOUND["TensorFloat-32"])


def check_diffusion(family: str, device: torch.device, dtype: str) -> dict[str, float]:
    """A tiny diffusion generator with random weights, beside itself on the CPU in float32."""
    import tiny_diffusion

    images, seeds = discs(3), torch.arange(3)
    options: dict[str, Any] = {"num_inference_steps": 3, "image_size": 32}
    if family == "unclip":
        generator: Any = gt.StableDiffusionVariation.from_pipeline(tiny_diffusion.unclip(), **options)
    else:
        pipe = tiny_diffusion.stable_diffusion()
        generator = gt.ControlNetVariation(pipe, controlnet=tiny_diffusion.controlnet(pipe.unet), condition="canny", **options)
    with torch.no_grad():
        reference = generator(images, seeds)
    # Random networks amplify rounding over the steps.
    bound = 10 * BOUND["float32"] if dtype == "float32" else BOUND["bfloat16"]
    return compare(generator.to(device, getattr(torch, dtype)), reference, images.to(device), seeds, bound)


def check_training_step(device: torch.device) -> dict[str, float]:
    """Two steps with generated images: the model learns, the generator stays as it is."""
    generator = gt.load_generator("icgan-cifar10-32").to(device)
    before = copy.deepcopy(generator.state_dict())
    augment, model, images = gt.GenerativeAugment(generator, p=0.5), small_model(device), photos(32).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    losses = []
    for _ in range(2):
        made = augment(images)
        assert made.device == images.device
        assert not torch.equal(made, images)
        loss = F.cross_entropy(model(made), torch.arange(32, device=device) % 10)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in generator.state_dict().items())
    return {"first_loss": losses[0], "second_loss": losses[1]}


def check_compile(context: Context, backend: str) -> dict[str, float]:
    """A compiled model with the transform inside gives the images and losses of the plain one."""
    if context.left() < COMPILING and not context.quick:
        raise NotHere(f"{context.left():.0f} s are left, and compiling may take {COMPILING:.0f}")
    device = context.device
    augment, model = seeded_augment(device), small_model(device)

    class Step(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.augment = model, augment

        def forward(self, images: Tensor) -> Tensor:
            return self.model(self.augment(images))

    step, images = Step(), photos(16).to(device)
    plain, compiled = step(images), torch.compile(step, backend=backend)(images)
    compiled.sum().backward()
    difference = (plain - compiled).abs().max().item()
    assert difference < 0.05, difference
    return {"difference": difference}


def check_autocast(device: torch.device) -> dict[str, float]:
    """Under autocast the images are the same; in bfloat16 they would differ by a hundredth."""
    augment, images = seeded_augment(device), photos(8).to(device)
    plain = augment(images)
    with torch.autocast(device.type, torch.bfloat16):
        made = augment(images)
    assert made.dtype == torch.float32
    # Not bit for bit: two runs of a transposed convolution may add in another order.
    difference = (plain - made).abs().max().item()
    assert difference < 1e-5, difference
    return {"difference": difference}


def check_two_devices(device: torch.device) -> dict[str, float]:
    """Images on the CPU and the generator on a busy device, and the other way round, give the images of the CPU."""
    images, expected = photos(256), seeded_augment(torch.device("cpu"))(photos(256))
    found: dict[str, float] = {}
    for name, generator_on, images_on in (("images on the CPU", device, "cpu"), ("generator on the CPU", "cpu", device)):
        augment, batch = seeded_augment(torch.device(generator_on)), images.to(images_on)
        differences = []
        for _ in range(3):  # the first call waits, to count images that are not finite
            if device.type == "cuda":
                torch.cuda._sleep(100_000_000)  # some 50 ms, in which nothing that was queued has arrived
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of the generator on the CPU
                made = augment(batch)
            differences.append((made.cpu() - expected).abs().max())
        found[name] = max(differences).item()
        assert found[name] < BOUND["float32"], found
    return found


def check_no_sync(device: torch.device) -> dict[str, bool]:
    """From its second call on, the transform waits for the device nowhere."""
    if device.type != "cuda":
        raise NotHere("needs CUDA")
    augment, images = gt.GenerativeAugment(gt.load_generator("icgan-cifar10-32").to(device), p=0.5), photos(64).to(device)
    whole = gt.GenerativeAugment(gt.load_generator("icgan-cifar10-32").to(device), p=1.0)
    for transform in (augment, whole):
        transform(images)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            transform(images)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return {"no_sync": True}


class Augmented(Dataset[Tensor]):
    """Images that a worker augments with a generator on the device, which it must not."""

    def __init__(self, augment: gt.GenerativeAugment) -> None:
        self.augment = augment

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Tensor:
        return self.augment(photos(1))[0]


def check_fork(device: torch.device) -> dict[str, str]:
    """A forked worker that would use the GPU says so."""
    if device.type != "cuda":
        raise NotHere("needs CUDA")
    augment = gt.GenerativeAugment(gt.load_generator("icgan-cifar10-32").to(device), p=1.0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            next(iter(DataLoader(Augmented(augment), batch_size=1, num_workers=1, multiprocessing_context="fork")))
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
        assert "DeviceError" in text, text
        return {"said": text.strip().splitlines()[-1][:300]}
    raise AssertionError("a forked worker used the GPU without an error")


def check_out_of_memory(device: torch.device) -> dict[str, Any]:
    """A batch that does not fit is halved until it does, with a warning, and gives the same images."""
    if device.type != "cuda":
        raise NotHere("needs CUDA")
    generator, count = gt.load_generator("icgan-cifar10-32").to(device), 4096
    images, seeds = torch.rand(count, 3, 32, 32, device=device), torch.arange(count)
    small = gt.GenerativeAugment(generator, p=1.0, seeds_getter=lambda _: seeds, max_batch_size=64)(images)
    torch.cuda.empty_cache()
    total, number = torch.cuda.get_device_properties(device).total_memory, images.get_device()  # "cuda" alone has no number
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved(device) + 400 * 2**20) / total, number)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            made = gt.GenerativeAugment(generator, p=1.0, seeds_getter=lambda _: seeds)(images)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, number)
    said = [str(one.message) for one in caught if "out of memory" in str(one.message)]
    assert said, "nothing was said: the batch may have fitted"
    difference = (made - small).abs().max().item()
    assert difference < BOUND["float32"], difference
    return {"said": said[0], "difference": difference}


def seeded_augment(device: torch.device) -> gt.GenerativeAugment:
    """The bundled generator on the device, every image replaced, the seeds always the same."""
    generator = gt.load_generator("icgan-cifar10-32").to(device)
    return gt.GenerativeAugment(generator, p=1.0, seeds_getter=lambda sample: torch.arange(len(sample)))


def small_model(device: torch.device) -> nn.Module:
    """A small classifier of 32-pixel images."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)]
    return nn.Sequential(*layers).to(device)


def photos(count: int) -> Tensor:
    """Random smooth images (count, 3, 32, 32) in [0, 1], the same every time."""
    coarse = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    return F.interpolate(coarse, 32, mode="bilinear")


def discs(count: int) -> Tensor:
    """Noisy images (count, 3, 32, 32) in [0, 1] of a bright disc on dark ground: with edges that no rounding moves."""
    rng = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    centres, radii = 10 + 12 * torch.rand(count, 2, 1, 1, generator=rng), 5 + 4 * torch.rand(count, 1, 1, generator=rng)
    inside = ((y - centres[:, 0]).hypot(x - centres[:, 1]) < radii).float()[:, None]
    return 0.1 + 0.6 * inside + 0.2 * torch.rand(count, 3, 32, 32, generator=rng)


if __name__ == "__main__":
    run(main, __doc__)
