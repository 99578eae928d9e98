"""The picture of real images, classic augmentation and generated ones."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from ssl_example import call, ssl, write_photos

import gentransforms as gt
from gentransforms.testing import FakeGenerator

pytestmark = pytest.mark.usefixtures("one_thread")


class TestCompose:
    def test_every_image_is_in_its_place(self) -> None:
        module = ssl("figure3")
        rows = {
            name: torch.randint(0, 256, (3, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(i))
            for i, name in enumerate("ab")
        }
        pixels = np.asarray(module.compose(rows, ["x", "y", "z"], 16))
        assert pixels.shape == (module.TOP + 2 * 16 + module.GAP, module.LEFT + 3 * 16 + 2 * module.GAP, 3)
        for row, images in enumerate(rows.values()):
            for column, image in enumerate(images.permute(0, 2, 3, 1).numpy()):
                top, left = module.TOP + row * (16 + module.GAP), module.LEFT + column * (16 + module.GAP)
                assert np.array_equal(pixels[top : top + 16, left : left + 16], image.repeat(2, axis=0).repeat(2, axis=1))
        assert (pixels[:, : module.LEFT] < 128).any()  # the names


class TestFirstOfEachClass:
    def test_by_label(self, tmp_path: Path) -> None:
        source = ssl("data").open_images(str(write_photos(tmp_path / "x", 9, classes=3)))
        assert source.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
        assert ssl("figure3").first_of_each_class(source, 10) == [0, 3, 6]
        assert ssl("figure3").first_of_each_class(source, 2) == [0, 3]
        source.labels[:3] = 2
        assert ssl("figure3").first_of_each_class(source, 10) == [3, 0]

    def test_without_labels(self, tmp_path: Path) -> None:
        for path in write_photos(tmp_path / "x", 4, classes=1).rglob("*.png"):
            path.rename(tmp_path / path.name)
        (tmp_path / "x" / "class0").rmdir()
        (tmp_path / "x").rmdir()
        assert ssl("figure3").first_of_each_class(ssl("data").open_images(str(tmp_path)), 3) == [0, 1, 2]


class TestGenerate:
    def test_images_that_are_not_finite_are_not_drawn(self) -> None:
        class Broken(FakeGenerator):
            def sample(self, condition: Mapping[str, torch.Tensor], seeds: torch.Tensor) -> torch.Tensor:
                made = super().sample(condition, seeds)
                made[..., 0, 0] = float("nan")
                return made

        photos = [Image.new("RGB", (8, 8)), Image.new("RGB", (8, 8))]
        assert len(ssl("figure3").generate(FakeGenerator(), photos, ["a", "b"], 0)) == 2
        with pytest.raises(SystemExit, match=r"2 of 2 images by Broken are not finite, such as that of 'a'"):
            ssl("figure3").generate(Broken(), photos, ["a", "b"], 0)


class TestScript:
    def test_rows(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        """With the bundled generator, and with another in Stable Diffusion's place; the generated rows are what it makes alone."""
        write_photos(tmp_path / "photos", 6, classes=3, size=32)
        load, asked = ssl("figure3").load_generator, []

        def load_generator(name: str, option: str, **options: str) -> gt.ImageGenerator:
            asked.append((name, option, options))
            return FakeGenerator() if name == "fake" else load(name, option, **options)

        monkeypatch.setattr(ssl("figure3"), "load_generator", load_generator)
        before = torch.random.get_rng_state()
        for out, more in (("a.png", []), ("b.png", ["--stable-diffusion", "fake"]), ("c.png", ["--rows", "5", "2"])):
            call(monkeypatch, tmp_path, "figure3", "--data", "photos", "--cell", "32", "--out", out, *more)
        assert torch.equal(torch.random.get_rng_state(), before)
        assert asked[2] == ("fake", "--stable-diffusion ", {"preset": "paper"})
        assert "rows 0, 2, 4 of photos" in capsys.readouterr().out
        a, b, c = (np.asarray(Image.open(tmp_path / f"{name}.png")).astype(int) for name in "abc")
        module, side = ssl("figure3"), 32 + ssl("figure3").GAP
        assert [x.shape[0] for x in (a, b, c)] == [module.TOP + n * side - module.GAP for n in (3, 4, 3)]
        assert [x.shape[1] for x in (a, b, c)] == [module.LEFT + n * side - module.GAP for n in (3, 3, 2)]
        assert np.array_equal(b[: len(a)], a)
        source = ssl("data").open_images("photos")
        first = torch.from_numpy(np.asarray(source.read(0)).copy()).permute(2, 0, 1)
        assert np.array_equal(a[module.TOP :, module.LEFT :][:32, :32], first.permute(1, 2, 0).numpy())
        with torch.no_grad():
            made = gt.load_generator("icgan-cifar10-32")(first[None] / 255, gt.derive_seeds(0, [source.keys[0]], [0]))[0]
        cell = a[module.TOP + 2 * side :, module.LEFT :][:32, :32]
        assert abs(cell - (made * 255).permute(1, 2, 0).numpy()).max() <= 1
        with pytest.raises(SystemExit, match="--rows 6: expected rows from 0 to 5"):
            call(monkeypatch, tmp_path, "figure3", "--data", "photos", "--out", "d.png", "--rows", "6")
