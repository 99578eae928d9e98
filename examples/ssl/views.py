"""Classic augmentation by kornia, on whole batches on the training device, with random parameters of its own for each image."""

from __future__ import annotations

from collections.abc import Sequence

import kornia.augmentation as K
import torch
from config import AugmentationSettings, ViewSettings
from crops import device_crop
from hue import shift_hue
from torch import Tensor, nn

# The steps of a view, in their order, and the settings that each depends on.
STEPS = {
    "crop": ("crop_scale",), "jitter": ("jitter_p", "brightness", "contrast", "saturation", "hue"), "grey": ("grey_p",),
    "blur": ("blur_p", "blur_sigma"), "solarise": ("solarise_p",), "flip": ("flip_p",),
}  # fmt: skip
HUE = 3  # in the order of the jitter's four adjustments, which kornia draws once a batch; it does the others
Drawn = dict[str, Tensor]  # what kornia draws for a step: parameters (B, …)


class View(nn.Module):
    """One view: images (B, 3, H, W) float in [0, 1] to (B, 3, size, size) float in [0, 1].

    `crop=False` leaves out the crop, for images that the workers have already cropped.
    """

    def __init__(self, s: ViewSettings, size: int, interpolation: str = "bicubic", crop: bool = True) -> None:
        super().__init__()
        self.settings, self.size = s, size
        # SimCLR's kernel: a tenth of the side, odd. At least 3, since images below 30 pixels would get a kernel of 1.
        kernel = max(3, size // 10 // 2 * 2 + 1)
        steps = {
            "crop": device_crop(s, size, interpolation) if crop else nn.Identity(),
            "jitter": K.ColorJitter(s.brightness, s.contrast, s.saturation, s.hue, p=s.jitter_p),
            "grey": K.RandomGrayscale(p=s.grey_p),
            "blur": K.RandomGaussianBlur((kernel, kernel), (s.blur_sigma[0], s.blur_sigma[1]), p=s.blur_p) if s.blur_p else None,
            "solarise": K.RandomSolarize((0.5, 0.5), (0.0, 0.0), p=s.solarise_p) if s.solarise_p else None,
            "flip": K.RandomHorizontalFlip(p=s.flip_p),
        }
        self.steps = nn.ModuleDict({name: step for name, step in steps.items() if step is not None})

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        drawn = self.draw(images.shape)
        for name in self.steps:
            images = self.take(name, images, drawn.get(name))
        return images.clamp(0, 1)

    def draw(self, shape: torch.Size) -> dict[str, Drawn]:
        """Draw the random numbers of all steps for images (B, 3, H, W), on the CPU."""
        later = torch.Size((*shape[:2], self.size, self.size))
        random = {name: step for name, step in self.steps.items() if hasattr(step, "forward_parameters")}
        return {name: step.forward_parameters(shape if name == "crop" else later) for name, step in random.items()}

    def take(self, name: str, images: Tensor, drawn: Drawn | None) -> Tensor:
        """Return images (B, 3, h, w) after a step, with what was drawn for it."""
        if name not in self.steps:
            return images
        step = self.steps[name]
        if name == "crop":
            # Bicubic interpolation overshoots, and kornia's colour transforms expect [0, 1].
            return (step(images) if drawn is None else step(images, params=drawn)).clamp(0, 1)
        if not step.p:
            return images
        return self._jitter(images, drawn) if name == "jitter" else step(images, params=drawn)

    def _jitter(self, images: Tensor, drawn: Drawn) -> Tensor:
        order = drawn["order"].tolist()
        at = order.index(HUE) if HUE in order else len(order)
        for part in (order[:at], order[at : at + 1], order[at + 1 :]):
            if part == [HUE] and self.settings.hue:
                chosen = (drawn["batch_prob"] > 0.5).view(-1, 1, 1, 1).to(images.device, non_blocking=True)
                images = torch.where(chosen, shift_hue(images, drawn["hue_factor"]), images)
            elif part and part != [HUE]:
                images = self.steps["jitter"](images, params=drawn | {"order": torch.tensor(part)})
        return images


@torch.no_grad()
def augment_pair(views: tuple[View, View], first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``views[0](first), views[1](second)``, in fewer operations where the views have the same settings.

    Small images cost a GPU what it takes to launch the operations. So a step with equal settings is taken by all images at once, and
    of the jitter, whose order is each batch's own, the hue. The random numbers are those of one view
    after the other, because each draws all of its own first.
    """
    draws = [view.draw(part.shape) for view, part in zip(views, (first, second), strict=True)]

    def apart(name: str, parts: Sequence[Tensor], drawn: list[Drawn | None]) -> Tensor:
        return torch.cat([view.take(name, *each) for view, *each in zip(views, parts, drawn, strict=True)])

    both = None
    for name, fields in STEPS.items():
        drawn = [draw.get(name) for draw in draws]
        alike = all(getattr(views[0].settings, field) == getattr(views[1].settings, field) for field in fields)
        parts = (first, second) if both is None else both.chunk(2)
        if not alike or parts[0].shape != parts[1].shape:
            both = apart(name, parts, drawn)
        elif name == "jitter":
            orders = [each["order"] for each in drawn]
            at = [order.tolist().index(HUE) for order in orders]
            both = apart(name, parts, [each | {"order": order[:i]} for each, order, i in zip(drawn, orders, at, strict=True)])
            both = views[0].take(name, both, join(drawn) | {"order": torch.tensor([HUE])})
            both = apart(name, both.chunk(2), [each | {"order": order[i + 1 :]} for each, order, i in zip(drawn, orders, at, strict=True)])
        else:
            both = views[0].take(name, torch.cat(parts) if both is None else both, join(drawn))
    assert both is not None
    return both.clamp(0, 1).chunk(2)


def join(drawn: list[Drawn | None]) -> Drawn | None:
    """Return what was drawn for two batches as what was drawn for one."""
    one, other = drawn
    if one is None or other is None:
        return None
    return {name: torch.cat([value, other[name]]) for name, value in one.items() if name not in ("forward_input_shape", "order")}


class TwoClassicViews(nn.Module):
    """Both views of a batch, with a separate augmentation of generated images if the settings have one."""

    def __init__(self, s: AugmentationSettings, size: int, crop: bool) -> None:
        super().__init__()
        self.view1, self.view2 = (View(view, size, s.interpolation, crop) for view in (s.view1, s.view2))
        self.generated = None if s.generated is None else View(s.generated, size, s.interpolation, crop)

    def forward(self, first: Tensor, second: Tensor, made1: Tensor, made2: Tensor) -> tuple[Tensor, Tensor]:
        """Return both views; made1 and made2 (B,) bool, on the CPU, tell which of the images are generated."""
        whole = [self._view(view, made) for view, made in ((self.view1, made1), (self.view2, made2))]
        if whole[0] is not None and whole[1] is not None:
            return augment_pair((whole[0], whole[1]), first, second)
        return self._one(self.view1, first, made1), self._one(self.view2, second, made2)

    def _view(self, view: View, made: Tensor) -> View | None:
        """Return the view that all images get; None if they get different ones."""
        if self.generated is None or not made.any():
            return view
        return self.generated if made.all() else None

    def _one(self, view: View, images: Tensor, made: Tensor) -> Tensor:
        whole = self._view(view, made)
        if whole is not None:
            return whole(images)
        assert self.generated is not None
        places = torch.cat([(~made).nonzero(), made.nonzero()]).squeeze(1)
        real, generated = (images[rows.nonzero().squeeze(1).to(images.device, non_blocking=True)] for rows in (~made, made))
        out = torch.cat([view(real), self.generated(generated)])
        return torch.empty_like(out).index_copy(0, places.to(out.device, non_blocking=True), out)
