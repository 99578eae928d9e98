"""ControlNet for detection and segmentation: new images with boxes and masks that remain valid.

    python examples/segmentation.py
    python examples/segmentation.py --base stable-diffusion-v1-5/stable-diffusion-v1-5 --controlnet lllyasviel/control_v11p_sd15_seg

A small synthetic data set of images, boxes and masks passes through ControlNet, a crop and a flip. The masks control the
ControlNet. All targets are checked, and segmentation.png shows source, control map and two augmented samples with their targets.

Without --base, the networks are tiny with random weights. The targets are still checked, but the images are noise.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.ops import masks_to_boxes
from torchvision.transforms import v2
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks, save_image

import gentransforms as gt

CLASSES = ("background", "crate", "ball")
PALETTE = [[120, 120, 120], [0, 255, 20], [255, 0, 163]]  # in ADE20K's: wall, crate, ball
HEIGHT, WIDTH = 96, 128


class Shapes(Dataset[dict[str, Any]]):
    """A crate and a ball in front of a wall: image, one box for each, and a mask of classes."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Sample `index`, always the same."""
        rng = torch.Generator().manual_seed(index)

        def draw(low: int, high: int) -> int:
            return int(torch.randint(low, high, (), generator=rng))

        y, x = torch.meshgrid(torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij")
        mask = torch.zeros(HEIGHT, WIDTH, dtype=torch.uint8)
        top, left = draw(8, 40), draw(4, 20)
        mask[top : top + draw(20, 48), left : left + draw(20, 40)] = 1
        radius = draw(12, 24)
        mask[(y - draw(30, 60)) ** 2 + (x - draw(92, 100)) ** 2 <= radius**2] = 2
        colours = torch.rand(3, 3, generator=rng)
        image = colours[mask.long()].permute(2, 0, 1) + 0.1 * torch.randn(3, HEIGHT, WIDTH, generator=rng)
        boxes = masks_to_boxes(torch.stack([mask == 1, mask == 2])) + torch.tensor([0, 0, 1, 1])  # the ends are exclusive
        return {
            "image": tv_tensors.Image((255 * image.clamp(0, 1)).to(torch.uint8)),
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(HEIGHT, WIDTH)),
            "mask": tv_tensors.Mask(mask),
            "prompt": "a crate and a ball in front of a wall",
        }


def main() -> None:
    """Augment, check, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", help="repository or folder of a Stable Diffusion")
    parser.add_argument("--controlnet", help="repository or folder of a ControlNet for segmentation masks")
    parser.add_argument("--steps", type=int, default=10, help="denoising steps")
    parser.add_argument("--out", default="segmentation.png", help="picture to write")
    args = parser.parse_args()
    if args.controlnet and not args.base:
        parser.error("--controlnet: give --base too, the Stable Diffusion that it was trained for")
    options = {"condition": "segmentation", "palette": PALETTE, "num_inference_steps": args.steps}
    if args.base:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        generator = gt.ControlNetVariation.from_pretrained(args.base, controlnet=args.controlnet, device=device, **options)
    else:
        base, controlnet = tiny_networks()
        generator = gt.ControlNetVariation(base, controlnet=controlnet, **options)

    def get_inputs(sample: dict[str, Any]) -> dict[str, Any]:
        return {"masks": sample["mask"]} | ({"prompts": sample["prompt"]} if "prompts" in generator.inputs else {})

    augment = v2.Compose(
        [
            gt.GenerativeAugment(generator, p=1.0, inputs_getter=get_inputs),
            v2.RandomResizedCrop((HEIGHT, WIDTH), scale=(0.5, 1.0)),
            v2.RandomHorizontalFlip(),
        ]
    )
    torch.manual_seed(0)
    shapes, rows, checked = Shapes(), [], 0
    for sample in (shapes[i] for i in range(len(shapes))):
        augmented = [augment(sample) for _ in range(2)]
        checked += sum(check_targets(one) for one in augmented)
        control = control_map(generator, sample)
        share = check_layout(control, sample["mask"])
        rows += [drawn(sample), control, *(drawn(one) for one in augmented)]
        print(f"control map on the mask's classes: {share:.1%} of pixels; {len(augmented)} augmented samples checked")
    save_image(torch.stack(rows), args.out, nrow=4)
    print(f"{checked} boxes and masks are valid; wrote {args.out}")


def check_targets(sample: dict[str, Any]) -> int:
    """Return the number of objects in a sample whose box was compared with their mask; exit if one does not fit."""
    count = 0
    for label, box in enumerate(sample["boxes"], start=1):
        mask = sample["mask"] == label
        if mask.sum() < 16:  # cropped away
            continue
        around = masks_to_boxes(mask[None])[0] + torch.tensor([0, 0, 1, 1])
        inside = (box[:2] - 1.5 <= around[:2]).all() and (around[2:] <= box[2:] + 1.5).all()
        # A crate's box stays tight after a crop; that of a ball that was cut may be larger than the rest of the ball.
        tight = label == 2 or (box - around).abs().max() <= 1.5
        if not (inside and tight):
            raise SystemExit(f"the box of the {CLASSES[label]} is {box.tolist()}, but its mask lies in {around.tolist()}")
        count += 1
    return count


def check_layout(control: Tensor, mask: Tensor) -> float:
    """Return the share of pixels at which the control map (3, H, W) has the colour of the mask's class; exit if it is below 95%."""
    distance = (control[None] - torch.tensor(PALETTE)[:, :, None, None] / 255).abs().sum(1)
    share = (distance.argmin(0) == mask).float().mean().item()
    if share < 0.95:
        raise SystemExit(f"only {share:.1%} of the control map's pixels are of the mask's class")
    return share


def control_map(generator: gt.ControlNetVariation, sample: dict[str, Any]) -> Tensor:
    """Return what the ControlNet sees of a sample, at the sample's size: (3, H, W) float32 in [0, 1]."""
    image = (sample["image"][None] / 255).as_subclass(Tensor).to(generator.device)
    with torch.no_grad():
        seen = generator.encode(image, masks=sample["mask"][None].as_subclass(Tensor).to(generator.device))["control_0"]
    return F.interpolate(seen.float(), (HEIGHT, WIDTH), mode="nearest-exact")[0].cpu()


def drawn(sample: dict[str, Any]) -> Tensor:
    """Return a sample's image with its targets on it: (3, H, W) float32 in [0, 1]."""
    masks = torch.stack([sample["mask"] == label for label in (1, 2)])
    picture = draw_segmentation_masks(sample["image"], masks, alpha=0.3, colors=["#00ff14", "#ff00a3"])
    return draw_bounding_boxes(picture, sample["boxes"], colors=["#00ff14", "#ff00a3"], width=2) / 255


def tiny_networks() -> tuple[Any, Any]:
    """Return a pipeline and a ControlNet of a few channels, with random weights, in the layout of the large ones."""
    from diffusers import AutoencoderKL, ControlNetModel, PNDMScheduler, StableDiffusionImageVariationPipeline, UNet2DConditionModel
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

    torch.manual_seed(0)
    vision = CLIPVisionConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, projection_dim=32)
    unet = UNet2DConditionModel(
        sample_size=32, layers_per_block=1, block_out_channels=(32, 64), cross_attention_dim=32, attention_head_dim=8, norm_num_groups=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(16, 32),
        norm_num_groups=8,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )
    pipe = StableDiffusionImageVariationPipeline(
        vae=vae, unet=unet, image_encoder=CLIPVisionModelWithProjection(vision), feature_extractor=CLIPImageProcessor(),
        scheduler=PNDMScheduler(beta_schedule="scaled_linear", skip_prk_steps=True), safety_checker=None, requires_safety_checker=False,
    )  # fmt: skip
    return pipe, ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 16), load_weights_from_unet=False)


if __name__ == "__main__":
    main()
