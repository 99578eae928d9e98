"""The commands that draw: `demo` and `preview`, the photos they read and the picture they write."""

from __future__ import annotations

import io
import json
import resource
import shutil
from pathlib import Path

import numpy
import numpy.typing
import PIL.Image
import pyarrow.parquet as parquet
import pytest
import torch
from test_cli import RUNNER, refused, tiny  # noqa: F401  (a fixture)
from typer.testing import Result

from gentransforms.cli.grid import draw_grid, write_picture
from gentransforms.cli.main import app
from gentransforms.cli.photos import find_photos, read_photo, sample_photos
from gentransforms.cli.plain import Failure, WrongCall

CIFAR = Path(__file__).parents[2] / "shared" / "data" / "cifar10" / "test.parquet"
COLOUR = (200, 30, 60)


def photo(path: Path, size: tuple[int, int] = (40, 30), mode: str = "RGB") -> Path:
    PIL.Image.new("RGB", size, COLOUR).convert(mode).save(path)
    return path


def pixels(path: Path) -> numpy.typing.NDArray[numpy.uint8]:
    with PIL.Image.open(path) as picture:
        return numpy.asarray(picture)


def drawn(*arguments: object) -> Result:
    result = RUNNER.invoke(app, [str(argument) for argument in arguments])
    assert (result.exit_code, result.stderr) == (0, "")
    return result


class TestDemo:
    """`gentransforms demo`."""

    def test_bundled_generator_and_photos(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        lines = drawn("demo").stdout.splitlines()
        assert lines[0].startswith("10 sources x 7 variants: 70 images made in ")
        assert lines[0].endswith(" images/s (ICGAN on cpu)")
        assert lines[1:] == ["wrote demo/augmentations.png"]
        with PIL.Image.open("demo/augmentations.png") as picture:
            assert picture.size == (96 * 8 + 12 + 6 * 4, 96 * 10 + 9 * 4)

    def test_limit_of_the_bundled_photos(self, tiny: str, tmp_path: Path) -> None:  # noqa: F811
        lines = drawn("demo", "--generator", tiny, "--variants", 1, "--limit", 2, "-o", tmp_path / "a.png").stdout.splitlines()
        assert lines[0] == "took the first 2 of 10 images; --limit takes more"
        assert lines[1].startswith("2 sources x 1 variant: ")

    def test_columns(self, tiny: str, tmp_path: Path) -> None:  # noqa: F811
        drawn("demo", "--generator", tiny, "--variants", 4, "--columns", "--output", tmp_path / "wide.png")
        with PIL.Image.open(tmp_path / "wide.png") as picture:
            assert picture.size == (96 * 10 + 9 * 4, 96 * 5 + 12 + 3 * 4)

    def test_same_seed_same_picture(self, tiny: str, tmp_path: Path) -> None:  # noqa: F811
        files = [tmp_path / f"{name}.png" for name in "abc"]
        for file, seed in zip(files, (3, 3, 4), strict=True):
            torch.rand(1)  # whatever state torch's random numbers are in
            drawn("demo", "--generator", tiny, "--variants", 2, "--seed", seed, "--output", file)
        assert files[0].read_bytes() == files[1].read_bytes() != files[2].read_bytes()

    def test_p_zero_shows_the_sources(self, tiny: str, tmp_path: Path) -> None:  # noqa: F811
        stdout = drawn("demo", "--generator", tiny, "--variants", 1, "--p", 0, "-o", tmp_path / "a.png").stdout
        assert "10 sources x 1 variant: 0 images made" in stdout
        found = pixels(tmp_path / "a.png")
        assert numpy.array_equal(found[:, :96], found[:, 108:])

    def test_folder_of_mixed_sizes_and_its_limit(self, tiny: str, tmp_path: Path) -> None:  # noqa: F811
        folder = tmp_path / "photos"
        (folder / "subfolder").mkdir(parents=True)
        for number in range(18):
            photo(folder / f"{number:02}.png", (20 + 10 * number, 64))
        (folder / "notes.txt").write_text("not an image")
        (folder / ".hidden.png").write_text("not an image")
        lines = drawn("demo", "--images", folder, "--generator", tiny, "--variants", 1, "-o", tmp_path / "a.webp").stdout.splitlines()
        assert lines[0] == f"took the first 16 of 18 images in {folder}; --limit takes more"
        assert lines[1].startswith("16 sources x 1 variant")
        lines = drawn("demo", "--images", folder, "--generator", tiny, "--limit", 18, "-o", tmp_path / "a.jpg").stdout.splitlines()
        assert lines[0].startswith("18 sources x 7 variants: 126 images")
        for name, kind in {"a.webp": "WEBP", "a.jpg": "JPEG"}.items():
            with PIL.Image.open(tmp_path / name) as picture:
                assert picture.format == kind

    def test_refuses_what_is_no_folder_of_images(self, tiny: str, tmp_path: Path) -> None:  # noqa: F811
        (tmp_path / "empty").mkdir()
        photo(tmp_path / "a.png")
        for name, words in {"no": "no such folder", "a.png": "expected a folder of images", "empty": "no images"}.items():
            message = refused("demo", "--images", tmp_path / name, "--generator", tiny)
            assert f"{tmp_path / name}: {words}" in message
        (tmp_path / "b.jpg").write_text("not an image")
        assert str(tmp_path / "b.jpg") in refused("demo", "--images", tmp_path, "--generator", tiny)

    def test_small_micro_batches_change_nothing(self, tiny: str, tmp_path: Path) -> None:  # noqa: F811
        pictures = []
        for size in (3, 64):
            drawn("demo", "--generator", tiny, "--variants", 2, "--max-batch-size", size, "-o", tmp_path / "a.png")
            pictures.append(pixels(tmp_path / "a.png").astype(int))
        assert abs(pictures[0] - pictures[1]).max() <= 1


class TestPreview:
    """`gentransforms preview`."""

    def test_one_row_an_image(self, tiny: str, tmp_path: Path) -> None:  # noqa: F811
        names = [photo(tmp_path / "a.jpg", (500, 300)), photo(tmp_path / "b.png", (8, 8), "L")]
        stdout = drawn("preview", *names, "-o", tmp_path / "new" / "grid.png", "--generator", tiny).stdout
        assert stdout.endswith(f"wrote {tmp_path / 'new' / 'grid.png'}\n")
        picture = pixels(tmp_path / "new" / "grid.png")
        assert picture.shape == (96 * 2 + 4, 96 * 9 + 12 + 7 * 4, 3)
        assert numpy.abs(picture[5, 5].astype(int) - COLOUR).max() <= 3
        assert [path.name for path in (tmp_path / "new").iterdir()] == ["grid.png"]

    def test_picture_is_replaced_and_umask_respected(self, tiny: str, tmp_path: Path) -> None:  # noqa: F811
        grid = tmp_path / "grid.png"
        grid.write_text("an older picture")
        drawn("preview", photo(tmp_path / "a.png"), "-o", grid, "--generator", tiny, "--variants", 1)
        assert grid.read_bytes().startswith(b"\x89PNG")
        assert grid.stat().st_mode & 0o777 == (tmp_path / "a.png").stat().st_mode & 0o777

    def test_wrong_images(self, tiny: str, tmp_path: Path) -> None:  # noqa: F811
        (tmp_path / "text.jpg").write_text("not an image")
        (tmp_path / "zero.jpg").touch()
        (tmp_path / "cut.png").write_bytes(sample_photos()[0].read_bytes()[:900])
        good = photo(tmp_path / "good.png")
        for name, words in {
            "text.jpg": "not an image", "zero.jpg": "this file is empty", "cut.png": "cannot be read as an image",
            "no.jpg": "no such file", ".": "expected an image file, but this is a folder", "a" * 300: "File name too long",
        }.items():  # fmt: skip
            assert f"{tmp_path / name}: {words}" in refused("preview", good, tmp_path / name, "-o", tmp_path / "x.png", "--generator", tiny)
        assert not (tmp_path / "x.png").exists()

    def test_wrong_outputs(self, tiny: str, tmp_path: Path) -> None:  # noqa: F811
        good = photo(tmp_path / "good.png")
        before = good.read_bytes()
        for name, words in {
            ".": "but this is a folder", "x.gif": "must end in .png, .jpg, .jpeg, .webp", "x": "must end in",
            "good.png": "would be overwritten", "good.png/x.png": f"{good} is not a folder",
        }.items():  # fmt: skip
            message = refused("preview", good, "--output", tmp_path / name, "--generator", tiny)
            assert f"Error: {tmp_path / name}: " in message
            assert words in message
        assert good.read_bytes() == before

    def test_unwritable_output_is_a_failure(self, tiny: str, tmp_path: Path) -> None:  # noqa: F811
        output = Path("/proc/gentransforms/x.png")  # refused to root too
        assert f"Error: {output}: " in refused("preview", photo(tmp_path / "a.png"), "-o", output, "--generator", tiny, code=1)

    def test_white_of_more_than_8_bits(self, tiny: str, tmp_path: Path) -> None:  # noqa: F811
        scan = tmp_path / "scan.png"
        PIL.Image.fromarray(numpy.full((8, 8), 4095, dtype=numpy.uint16)).save(scan)  # white, in 12 bits
        call = ["preview", scan, "--generator", tiny, "--variants", 1, "-o", tmp_path / "grid.png"]
        with pytest.warns(UserWarning, match="a grey image of 16 bits uses no more than 12 of them"):
            RUNNER.invoke(app, list(map(str, call)))
        drawn(*call, "--white-level", 4095)
        with PIL.Image.open(tmp_path / "grid.png") as picture:
            assert picture.getpixel((1, 1)) == (255, 255, 255)


class TestWritePicture:
    """A picture is written whole or not at all."""

    def test_full_disk(self, tmp_path: Path) -> None:
        noise = PIL.Image.fromarray(numpy.random.default_rng(0).integers(0, 255, (300, 300, 3), numpy.uint8))
        (tmp_path / "a.png").write_text("an older picture")
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
        try:
            with pytest.raises(Failure, match=r"a\.png: could not be written: File too large"):
                write_picture(noise, tmp_path / "a.png")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
        assert (tmp_path / "a.png").read_text() == "an older picture"

    def test_too_large_for_its_format(self, tmp_path: Path) -> None:
        with pytest.raises(Failure, match=r"a\.webp: could not be written: "):
            write_picture(PIL.Image.new("RGB", (20_000, 1)), tmp_path / "a.webp")
        assert list(tmp_path.iterdir()) == []


class TestSamplePhotos:
    """The photos of the demo, and so of the README's picture, were not picked by eye."""

    @pytest.mark.skipif(not CIFAR.exists(), reason="needs ../shared/data/cifar10/test.parquet")
    def test_first_test_image_of_each_class(self) -> None:
        table = parquet.read_table(CIFAR)
        names = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]["label"]["names"]
        labels = table["label"].to_pylist()
        for path in sample_photos():
            stored = table["image"][labels.index(names.index(path.stem))].as_py()["bytes"]
            with PIL.Image.open(io.BytesIO(stored)) as first:
                assert numpy.array_equal(pixels(path), numpy.asarray(first.convert("RGB")))


class TestDrawGrid:
    """Where each image lies, and how it is enlarged."""

    @pytest.mark.parametrize(
        ("size", "cell"), [((32, 32), (96, 96)), ((64, 64), (128, 128)), ((128, 96), (96, 128)), ((24, 48), (192, 96))]
    )
    def test_cells_hold_whole_pixels(self, size: tuple[int, int], cell: tuple[int, int]) -> None:
        sources = torch.randint(256, (2, 3, *size), dtype=torch.uint8)
        variants = torch.randint(256, (2, 3, 3, *size), dtype=torch.uint8)
        picture = numpy.asarray(draw_grid(sources, variants))
        width, height = cell
        assert picture.shape == (2 * height + 4, 4 * width + 12 + 2 * 4, 3)
        factor = width // size[1]
        for row in range(2):
            for column, image in enumerate((sources[row], *variants[row])):
                top, left = row * (height + 4), column * (width + 4) + (8 if column else 0)
                found = picture[top : top + height : factor, left : left + width : factor]
                assert numpy.array_equal(found, image.permute(1, 2, 0).numpy())

    def test_columns_are_the_rows_turned(self) -> None:
        sources, variants = torch.randint(256, (5, 3, 40, 40), dtype=torch.uint8), torch.randint(256, (5, 2, 3, 40, 40), dtype=torch.uint8)
        turned = draw_grid(sources.mT, variants.mT).transpose(PIL.Image.Transpose.TRANSPOSE)
        picture = draw_grid(sources, variants, columns=True)
        assert picture.size == (5 * 120 + 4 * 4, 3 * 120 + 12 + 4)
        assert numpy.array_equal(numpy.asarray(picture), numpy.asarray(turned))

    def test_columns_of_cells_that_are_not_square(self) -> None:
        sources, variants = torch.zeros(2, 3, 96, 192, dtype=torch.uint8), torch.ones(2, 1, 3, 96, 192, dtype=torch.uint8)
        picture = numpy.asarray(draw_grid(sources, variants, columns=True))
        assert picture.shape == (2 * 96 + 12, 2 * 192 + 4, 3)
        assert (picture[:96, 196:] == 0).all()
        assert (picture[96 + 12 :, :192] == 1).all()


class TestReadPhoto:
    """Any picture becomes RGB and upright."""

    @pytest.mark.parametrize(
        ("name", "mode"),
        [("a.png", "RGB"), ("a.png", "RGBA"), ("a.jpg", "CMYK"), ("a.tif", "CMYK"), ("a.bmp", "RGB"), ("a.webp", "RGB")],
    )
    def test_modes(self, name: str, mode: str, tmp_path: Path) -> None:
        image = read_photo(photo(tmp_path / name, mode=mode))
        assert (image.mode, image.size) == ("RGB", (40, 30))
        assert numpy.abs(numpy.subtract(image.getpixel((20, 15)), COLOUR)).max() <= 4

    @pytest.mark.parametrize("mode", ["L", "1", "LA", "P"])
    def test_grey(self, mode: str, tmp_path: Path) -> None:
        PIL.Image.new("L", (4, 4), 255).convert(mode).save(tmp_path / "a.png")
        assert read_photo(tmp_path / "a.png").getpixel((0, 0)) == (255, 255, 255)

    def test_sixteen_bits(self, tmp_path: Path) -> None:
        PIL.Image.fromarray(numpy.full((4, 4), 100 * 257, numpy.uint16)).save(tmp_path / "a.png")
        assert read_photo(tmp_path / "a.png").getpixel((0, 0)) == (100, 100, 100)

    def test_transparency_is_white(self, tmp_path: Path) -> None:
        PIL.Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(tmp_path / "a.png")
        PIL.Image.new("P", (4, 4), 0).save(tmp_path / "b.png", transparency=b"\x00")
        assert [read_photo(tmp_path / name).getpixel((0, 0)) for name in ("a.png", "b.png")] == [(255, 255, 255)] * 2

    def test_exif_orientation(self, tmp_path: Path) -> None:
        image = PIL.Image.new("RGB", (40, 20), "red")
        image.paste("blue", (20, 0, 40, 20))
        exif = PIL.Image.Exif()
        exif[0x0112] = 6  # shown turned by 90 degrees, clockwise
        image.save(tmp_path / "a.png", exif=exif)
        upright = read_photo(tmp_path / "a.png")
        assert upright.size == (20, 40)
        assert (upright.getpixel((10, 5)), upright.getpixel((10, 35))) == ((255, 0, 0), (0, 0, 255))

    def test_a_file_that_may_not_be_read(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(_path: Path) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(PIL.Image, "open", refuse)  # root may read everything
        with pytest.raises(WrongCall, match=r"a\.png: cannot be read as an image: Permission denied"):
            read_photo(photo(tmp_path / "a.png"))


class TestFindPhotos:
    """The images of a folder."""

    def test_by_suffix_in_order(self, tmp_path: Path) -> None:
        for name in ("b.PNG", "a.jpeg", "c.txt", ".d.png"):
            shutil.copy(sample_photos()[0], tmp_path / name)
        assert [path.name for path in find_photos(tmp_path)] == ["a.jpeg", "b.PNG"]

    def test_of_class_folders_in_turn(self, tmp_path: Path) -> None:
        for name in ("cat/1.png", "cat/2.png", "cat/3.png", "dog/puppies/1.png", "dog/2.png", ".thumbnails/1.png", "cat/notes.txt"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(sample_photos()[0], tmp_path / name)
        found = [path.relative_to(tmp_path).as_posix() for path in find_photos(tmp_path)]
        assert found == ["cat/1.png", "dog/2.png", "dog/puppies/1.png", "cat/2.png", "cat/3.png"]
        shutil.copy(sample_photos()[0], tmp_path / "own.png")
        assert [path.name for path in find_photos(tmp_path)] == ["own.png"]
