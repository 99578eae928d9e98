"""Train the independent judge of evaluate.py: a supervised classifier of the real training images.

    python examples/icgan/classifier.py --train train.parquet --test test.parquet --out runs/judge

On CIFAR-10 this takes 27 minutes on two CPU cores. The classifier shares nothing with the generator's encoder: architecture,
objective and training run all differ. Labels are used here and in evaluate.py only, never to train a generator.
OUT/classifier.pt holds the weights and OUT/classifier.json the accuracy on the test images.

Architecture and schedule: after Jordan, "94% on CIFAR-10 in 3.29 seconds on a single GPU" (2024), shortened: a frozen
whitening of 2x2 patches, then convolution pairs with pooling, initialised as identities; SGD with Nesterov momentum, label
smoothing; at test time the mean over an image and its mirror image.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import time
from pathlib import Path

import kornia.augmentation as K
import torch
from checkpoints import atomic_save
from einops import rearrange
from images import load_images, load_labels
from rich.progress import track
from shared import is_finite, refuse_unwritable, settle_device, settle_precision
from torch import Tensor, nn
from torch.nn import functional as F


class Judge(nn.Module):
    """A compact convolutional classifier: images (B, 3, R, R) in [0, 1], R at least 16, to features and logits.

    It is trained, and later judges, in `precision`, ``"bfloat16"`` or ``"float32"``, so that its predictions do not depend on the machine.
    """

    names: list[str]

    def __init__(self, classes: int, size: int, width: int = 256, precision: str = "bfloat16") -> None:
        super().__init__()
        self.arguments = {"classes": classes, "size": size, "width": width, "precision": precision}
        self.whiten = nn.Conv2d(3, 24, 2)
        self.whiten.weight.requires_grad_(False)
        widths = [24, 64] + [width] * max(2, int(math.log2(size)) - 3)
        self.blocks = nn.Sequential(*(_pair(a, b) for a, b in itertools.pairwise(widths)))
        self.head = nn.Linear(width, classes, bias=False)

    def autocast(self) -> torch.autocast:
        """Return the context to compute in."""
        return torch.autocast(self.head.weight.device.type, torch.bfloat16, enabled=self.arguments["precision"] == "bfloat16")

    def features(self, images: Tensor) -> Tensor:
        """Return (B, width): the pooled activations before the last layer."""
        x = F.gelu(self.whiten((images.contiguous(memory_format=torch.channels_last) - 0.5) * 4))
        return self.blocks(x).amax(dim=(2, 3))

    def forward(self, images: Tensor) -> Tensor:
        """Return (B, classes) logits."""
        return self.head(self.features(images)) / 4

    @torch.no_grad()
    def start_from_patches(self, images: Tensor) -> None:
        """Set the first layer to the whitening of 2x2 patches of `images` (N, 3, R, R) in [0, 1], and its negative."""
        patches = rearrange(F.unfold((images - 0.5) * 4, 2), "b pixels places -> (b places) pixels")
        values, vectors = torch.linalg.eigh(torch.cov(patches.T))
        kernels = rearrange(vectors / (values + 1e-2).sqrt(), "(c h w) n -> n c h w", c=3, h=2)
        self.whiten.weight.copy_(torch.cat([kernels, -kernels]))


def _pair(inputs: int, outputs: int) -> nn.Sequential:
    first, second = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
    for conv in (first, second):  # the first channels pass on their input; the others are initialised at random
        nn.init.dirac_(conv.weight[: conv.in_channels].data)
    norms = [nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)]
    return nn.Sequential(first, nn.MaxPool2d(2), norms[0], nn.GELU(), second, norms[1], nn.GELU())


def load_judge(folder: str | Path) -> Judge:
    """Return the classifier of a finished run in eval mode; exit if the folder holds none, or one that diverged."""
    path = Path(folder) / "classifier.pt"
    if not path.is_file():
        raise SystemExit(f"no {path}: expected a folder written by classifier.py")
    state = torch.load(path, map_location="cpu", weights_only=True)
    if not is_finite(state["weights"]):
        raise SystemExit(f"{path} holds NaN or infinity, with which every image would be of the first class: train it again")
    judge = Judge(**state["arguments"])
    judge.names = state["names"]
    judge.load_state_dict(state["weights"])
    return judge.eval().requires_grad_(False).to(memory_format=torch.channels_last)


def train_judge(
    images: Tensor, labels: Tensor, epochs: int, seed: int, width: int = 256, device: str = "cpu", precision: str = "bfloat16"
) -> Judge:
    """Train on images (N, 3, R, R) uint8 with labels (N,) integer; exit if the loss or a weight becomes NaN or infinite."""
    torch.manual_seed(seed)
    judge = Judge(int(labels.max()) + 1, images.shape[-1], width, precision)
    some = torch.randperm(len(images))[: max(20, 2_000_000 // images.shape[-1] ** 2)]
    judge.start_from_patches(images[some].float() / 255)
    judge.to(device, memory_format=torch.channels_last)
    images, labels = images.to(device), labels.to(device)
    batch_size, peak = min(500, len(images)), 0.5
    per_epoch = len(images) // batch_size
    parameters = [p for p in judge.parameters() if p.requires_grad]
    # No decay for the norms: unlike the weights before them, their gains set the scale of what follows.
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": 1e-3},
        {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.SGD(groups, lr=peak, momentum=0.9, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak, total_steps=epochs * per_epoch, pct_start=0.2, cycle_momentum=False)
    augment = nn.Sequential(K.RandomHorizontalFlip(), K.RandomCrop(images.shape[-2:], padding=2, padding_mode="reflect"))
    for epoch in range(epochs):
        order = torch.randperm(len(images)).to(device)
        for i in track(range(per_epoch), f"classifier epoch {epoch + 1}/{epochs}"):
            rows = order[i * batch_size : (i + 1) * batch_size]
            with torch.no_grad():
                batch = augment(images[rows].float() / 255)
            with judge.autocast():
                logits = judge(batch)
            loss = F.cross_entropy(logits.float(), labels[rows], label_smoothing=0.1)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1}/{epochs} loss {loss.item():.4f}", flush=True)
        if not is_finite([loss, judge.state_dict()]):
            narrow = "" if precision == "float32" else f", or --precision float32 (now {precision})"
            raise SystemExit(
                f"the classifier diverged in epoch {epoch + 1}: loss {loss.item():.4f}; try another --seed (now {seed}){narrow}"
            )
    return judge.eval()


@torch.no_grad()
def predict(judge: Judge, images: Tensor, batch_size: int = 500) -> tuple[Tensor, Tensor]:
    """Return (N,) predicted labels and (N, D) features of uint8 images (N, 3, R, R): means over image and mirror image."""
    labels, features = [], []
    device = judge.head.weight.device
    for batch in track(images.split(batch_size), "classifying"):
        x = batch.to(device, non_blocking=True).float() / 255
        with judge.autocast():
            f = (judge.features(x).float() + judge.features(x.flip(3)).float()) / 2
        features.append(f)
        labels.append(judge.head(f).argmax(1))
    return torch.cat(labels).cpu(), torch.cat(features).cpu()  # once, not at every batch: each would wait for the device


def main() -> None:
    """Train, measure, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", required=True, help="Parquet with columns image and label, or a folder with a subfolder per class")
    parser.add_argument("--test", required=True, help="the same, of images not trained on")
    parser.add_argument("--out", required=True, type=Path, help="folder for classifier.pt and classifier.json")
    parser.add_argument("--size", type=int, default=32, help="side of the images in pixels")
    parser.add_argument("--epochs", type=int, default=14)
    parser.add_argument("--width", type=int, default=256, help="channels of the last blocks, and the number of features")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", help="auto, cuda, mps or cpu; default cpu")
    parser.add_argument("--precision", choices=["auto", "bfloat16", "float32"], default="auto", help="auto: what the device computes in")
    args = parser.parse_args()
    args.device = settle_device(args.device, f"--device {args.device}")
    refuse_unwritable(args.out, "--out")
    (labels, names), (expected, test_names) = load_labels(args.train), load_labels(args.test)
    if names != test_names:
        raise SystemExit(f"--train has the classes {names}, --test {test_names}: expected the same in both")
    images, test_images = load_images(args.train, args.size), load_images(args.test, args.size)
    args.out.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    precision, said = settle_precision(args.precision, None, args.device)
    print(said, flush=True)
    judge = train_judge(images, labels, args.epochs, args.seed, args.width, args.device, precision)
    seconds = time.perf_counter() - start
    # Saved before it is tested: what may go wrong then costs no training.
    (args.out / "classifier.json").unlink(missing_ok=True)  # of an earlier classifier
    weights = {name: tensor.cpu() for name, tensor in judge.state_dict().items()}
    atomic_save({"arguments": judge.arguments, "names": names, "weights": weights}, args.out / "classifier.pt")
    guesses, _ = predict(judge, test_images)
    accuracy = (guesses == expected).float().mean().item()
    record = {
        "test_accuracy": round(accuracy, 4),
        "epochs": args.epochs,
        "seed": args.seed,
        "precision": precision,
        "seconds": round(seconds),
    }
    (args.out / "classifier.json").write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record))


if __name__ == "__main__":
    main()
