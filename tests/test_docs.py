"""The documentation is true: its code and commands run, its links lead somewhere, and the site builds."""

from __future__ import annotations

import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest
import ssl_example
import tiny_diffusion
import tiny_pipelines
import torch
import torchvision
from command_line import parse_command
from icgan_example import example
from PIL import Image
from released import random_state, write_released
from safetensors.torch import save_file
from torch import nn

import gentransforms as gt
from benchmarks.costs import MEASURED
from gentransforms.audit import encoders
from gentransforms.generators.icgan.architecture import BigGANConfig

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
FASTER = {"segmentation.py": ["--steps", "2"]}  # of an example, what makes seconds of it
RESULTS = ROOT / "benchmarks" / "RESULTS.md"
SLURM = ROOT / "examples" / "slurm" / "generate.sbatch"
STEPS = re.compile(r"(num_inference_steps(?:=|\": ))\d+")  # of a diffusion pipeline: two are as good, here
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# Settings that make a training of seconds out of the one a page shows; later settings win. Widths: see ssl_example.
TINY_TRAINING = [
    "device=cpu", "precision=float32", "encoder.widths=[8,16]", "encoder.blocks=[1,1]", "encoder.epochs=1", "encoder.batch_size=4",
    "encoder.projection=4", "generator.G_ch=4", "generator.dim_z=8", "generator.shared_dim_feat=6", "generator.D_ch=4",
    "generator.neighbours=2", "generator.steps=1", "generator.batch_size=4",
]  # fmt: skip
# What other packages say of our small runs is not our readers' concern; our own warnings are errors.
pytestmark = [
    pytest.mark.filterwarnings("ignore:::lightning"),
    pytest.mark.filterwarnings("ignore:::torchmetrics"),
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
]


class Block(NamedTuple):
    language: str
    code: str
    line: int


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [Block(m[1], m[2], text.count("\n", 0, m.start()) + 1) for m in FENCE.finditer(text)]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """An empty folder with some photos, where a reader tries things; the state of the process is kept."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gt.ImageGenerator, "registered", dict(gt.ImageGenerator.registered))
    for sample in (Path(gt.__file__).parent / "samples").glob("*.png"):
        (tmp_path / "photos" / sample.stem).mkdir(parents=True)
        shutil.copy(sample, tmp_path / "photos" / sample.stem)
        if sample.stem == "cat":
            Image.open(sample).convert("RGB").resize((96, 64)).save(tmp_path / "photo.jpg")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # everything here is so small that threads only wait for each other
    with torch.random.fork_rng(devices=[]):
        yield tmp_path
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


class TestPages:
    @pytest.mark.parametrize("page", [p for p in PAGES if blocks(p)], ids=name_of)
    def test_code_runs(self, page: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Every block of a page, one after the other in one place, as a reader tries them."""
        if any("import lightning" in block.code for block in blocks(page)):
            pytest.importorskip("lightning")
        if page.name == "icgan.md":
            _released_models(workplace)
        if page.name in ("README.md", "audit.md"):
            monkeypatch.setattr(encoders, "_torchvision", _small_encoder)
        if page.name == "sources.md":
            monkeypatch.setattr(torchvision.datasets, "CIFAR10", _small_cifar10)
        if page.name in ("stable-diffusion.md", "controlnet.md", "choosing.md", "faster.md"):
            _tiny_repositories(workplace)
        if page.name == "pipelines.md":
            tiny_pipelines.write_repositories(workplace)
        if page.name == "banks.md":
            _variants_of_the_authors(workplace)
        if page.name in ("loops.md", "hour.md"):
            pytest.importorskip("lightly")
        if page.name == "hour.md":
            shutil.copytree(workplace / "photos", workplace / "photos-test")
        module = ModuleType("page_of_the_docs")  # a module that can be found, so that its classes can be pickled
        monkeypatch.setitem(sys.modules, module.__name__, module)
        for language, code, line in blocks(page):
            if language == "python":
                # Empty lines before it, so that a traceback shows the line of the page.
                code = code.replace('if __name__ == "__main__":', "if True:")  # as where a reader runs it
                code = STEPS.sub(r"\g<1>2", code)
                exec(compile("\n" * line + code, str(page), "exec", dont_inherit=True), module.__dict__)
            elif language == "bash":
                for command in code.replace("\\\n", " ").splitlines():
                    _run_command(shlex.split(command, comments=True), monkeypatch)

    @pytest.mark.parametrize("page", PAGES, ids=name_of)
    def test_blocks_are_ones_that_we_run(self, page: Path) -> None:
        fences = re.findall(r"^\s*(?:```|~~~)", page.read_text(encoding="utf-8"), re.MULTILINE)
        assert len(fences) == 2 * len(blocks(page)), "a code block that is indented or not closed"
        assert {block.language for block in blocks(page)} <= {"python", "bash", "text"}

    @pytest.mark.parametrize("page", [*PAGES, ROOT / "examples" / "ssl" / "README.md"], ids=name_of)
    def test_code_fits_the_column(self, page: Path) -> None:
        long = [line for block in blocks(page) for line in block.code.splitlines() if len(line) > 100]
        assert not long, f"{page.name}: code lines of more than 100 characters"

    @pytest.mark.parametrize("page", [p for p in PAGES if p.parent == ROOT], ids=name_of)
    def test_links_of_the_repository_pages_lead_somewhere(self, page: Path) -> None:
        """Those of docs/ are checked by the strict build."""
        for target in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
            assert (ROOT / target.partition("#")[0]).exists(), target
            assert target.startswith("docs/"), f"{target}: the site has the pages of docs/ only"

    def test_the_error_of_a_forked_worker_is_quoted_as_raised(self) -> None:
        quoted = next(b.code for b in blocks(ROOT / "docs" / "where.md") if b.language == "text")
        source = (ROOT / "gentransforms" / "generators" / "held.py").read_text()
        raised = "".join(re.findall(r'"(.*?)"', source[source.index("raise DeviceError(") :].partition("\n            )\n")[0]))
        assert " ".join(quoted.split()) == "DeviceError: " + raised.replace("{device}", "cuda:0")

    def test_settings_named_in_the_guide_exist(self) -> None:
        settings = example("settings").Settings()
        for name in re.findall(r"^\| `([\w.]+)` \|", (ROOT / "docs" / "training.md").read_text(encoding="utf-8"), re.MULTILINE):
            value = settings
            for part in name.split("."):
                value = getattr(value, part)


class TestExamples:
    @pytest.mark.parametrize("path", EXAMPLES, ids=name_of)
    def test_runs(self, path: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        if "lightly" in path.name:
            pytest.importorskip("lightly")
        monkeypatch.setattr(sys, "argv", [str(path), *FASTER.get(path.name, [])])
        runpy.run_path(str(path), run_name="__main__")
        assert capsys.readouterr().out

    @pytest.mark.parametrize("path", EXAMPLES, ids=name_of)
    def test_is_named_in_the_readme_and_names_itself(self, path: Path) -> None:
        assert path.name in (ROOT / "README.md").read_text(encoding="utf-8")
        assert f"python examples/{path.name}" in path.read_text(encoding="utf-8")


class TestSlurm:
    """The job script of an array, with a stand-in for `srun` that says what it was to run."""

    def test_bash_can_read_it(self) -> None:
        assert subprocess.run(["bash", "-n", str(SLURM)], capture_output=True, check=True).stderr == b""

    def test_is_quoted_as_it_is(self) -> None:
        quoted = [block.code for block in blocks(ROOT / "docs" / "cluster.md") if block.code.startswith("#!/bin/bash")]
        assert quoted == [SLURM.read_text(encoding="utf-8")]

    def test_two_shards_make_a_whole_bank(self, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (workplace / "bin").mkdir()
        stand_in = workplace / "bin" / "srun"
        stand_in.write_text("#!/bin/bash\nprintf '%s\\n' \"$@\"\n")
        stand_in.chmod(0o755)
        for task in ("0", "1"):
            variables = {"SLURM_ARRAY_TASK_ID": task, "SLURM_ARRAY_TASK_COUNT": "2", "SLURM_CPUS_PER_TASK": "8"}
            path = f"{workplace / 'bin'}{os.pathsep}{os.environ['PATH']}"
            arguments = ["photos", "a bank", "icgan-cifar10-32", "--unit-size", "3"]
            command = ["bash", str(SLURM), *arguments]
            done = subprocess.run(command, env=os.environ | variables | {"PATH": path}, capture_output=True, text=True, check=True)
            first, *words = done.stdout.splitlines()
            assert first == "--cpus-per-task=8"
            assert gt.Bank.open("a bank", partial=True).missing_units == 2 if task == "1" else not Path("a bank").exists()
            _run_command(words, monkeypatch)
        assert len(gt.Bank.open("a bank")) == 100

    def test_without_arguments_it_fails_at_once(self) -> None:
        assert subprocess.run(["bash", str(SLURM)], capture_output=True, check=False).returncode != 0


class TestCosts:
    @pytest.mark.slow
    def test_what_imagenet_costs_is_what_the_script_counts(self) -> None:
        """All but the bytes, which go with the version of the JPEG library."""
        rows = re.findall(r"^\| .* to [\d.]+ \|$", self.printed("bank_costs"), re.MULTILINE)
        page = (ROOT / "docs" / "banks.md").read_text(encoding="utf-8")
        assert len(rows) == 10
        for row in rows:
            assert row.rpartition(" | ")[0] in page

    @pytest.mark.slow
    def test_what_an_image_costs_is_what_the_script_counts(self) -> None:
        assert self.printed("costs").strip() in RESULTS.read_text(encoding="utf-8")

    def test_choosing_has_the_figures_of_the_results(self) -> None:
        page = (ROOT / "docs" / "choosing.md").read_text(encoding="utf-8")
        shown = re.findall(r"^\|[^|]+\|[^|]+\|[^|]+\| ([\d.]+) \| ([\d.]+) \|[^|]+\|$", page, re.MULTILINE)
        section = RESULTS.read_text(encoding="utf-8").partition("## What an image costs")[2].partition("\n## ")[0]
        counted = re.findall(r"^\| (.+) \| ([\d.]+) \| ([\d.]+) \|$", section, re.MULTILINE)
        assert len(counted) == 10
        assert shown == [(cost, hours) for name, cost, hours in counted if "not compiled" not in name]

    def test_rates_are_those_that_were_measured(self) -> None:
        section = RESULTS.read_text(encoding="utf-8").partition("\n## On a GPU")[2].partition("\n## ")[0]
        measured = re.findall(r"^\|.* \| [\d,.]+ \| (\d+) \| \d+% \|", section, re.MULTILINE)  # images/s, TFLOP/s, share of the ceiling
        assert len(measured) >= 10
        for name, rate in MEASURED.items():
            assert f"{rate:.0f}" in measured, name

    def printed(self, name: str) -> str:
        return subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], cwd=ROOT, capture_output=True, text=True, check=True).stdout


class TestSite:
    def test_index_is_the_readme(self, site: Path) -> None:
        page = (site / "index.html").read_text(encoding="utf-8")
        assert "every generated image is a function of" in page.lower()
        assert 'src="assets/augmentations.png"' in page
        assert 'href="seeds/"' in page
        assert (site / "changelog" / "index.html").read_text(encoding="utf-8").count("unreleased")

    def test_every_public_name_is_in_the_api_pages(self, site: Path) -> None:
        pages = "".join(page.read_text(encoding="utf-8") for page in (site / "api").rglob("*.html"))
        for module in ("gentransforms", "gentransforms.kornia", "gentransforms.testing"):
            __import__(module)
            for name in sys.modules[module].__all__:
                assert f'id="{module}.{name}"' in pages, f"{module}.{name} is in no page of docs/api"
        for name in gt.errors.__all__:
            assert f'id="gentransforms.errors.{name}"' in pages or f'id="gentransforms.{name}"' in pages, name

    def test_doctests_are_shown_as_code(self, site: Path) -> None:
        """A docstring section that the site does not know would turn ``>>>`` into nested quotations."""
        for page in (site / "api").rglob("*.html"):
            assert "<blockquote>" not in page.read_text(encoding="utf-8"), page

    def test_loads_nothing_from_elsewhere(self, site: Path) -> None:
        for page in site.rglob("*.html"):
            loaded = re.findall(r'<(?:script|img|iframe)[^>]*\ssrc="([^"]+)|<link[^>]*\shref="([^"]+)', page.read_text(encoding="utf-8"))
            assert not [url for pair in loaded for url in pair if url.startswith(("http", "//"))], page


def _released_models(folder: Path) -> None:
    """What the IC-GAN page takes as given: two released folders, one with classes, and the checkpoints of their extractors."""
    from torchvision.models import resnet50

    small = {"resolution": 32, "G_ch": 4, "dim_z": 8, "shared_dim_feat": 4, "G_attn": "0"}
    config = BigGANConfig(**small)
    write_released(folder / "icgan_biggan_imagenet_res256", config, random_state(config))
    swav = {f"module.{name}": t for name, t in resnet50().state_dict().items() if not name.startswith("fc.")}
    torch.save(swav, folder / "swav_800ep_pretrain.pth.tar")
    classes = BigGANConfig(**small, class_cond=True, n_classes=1000)
    write_released(folder / "cc_icgan_biggan_imagenet_res256", classes, random_state(classes))
    torch.save(resnet50().state_dict(), folder / "resnet50-0676ba61.pth")


def _small_encoder(name: str) -> tuple[nn.Module, encoders._Preprocessing]:
    """What stands for a model of torchvision, whose weights would be downloaded: the colours of an image in 4 x 4 cells."""
    assert name == "resnet50"
    return nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten()), encoders._Preprocessing((32, 32), (0.5,) * 3, (0.25,) * 3)


def _small_cifar10(root: str, *, train: bool, download: bool) -> torchvision.datasets.FakeData:
    """What stands for CIFAR-10, which would be downloaded."""
    assert download
    images = torchvision.datasets.FakeData(12 if train else 10, (3, 32, 32), num_classes=10)
    images.classes = list("abcdefghij")
    return images


def _tiny_repositories(folder: Path) -> None:
    """What stands for the Hub's repositories: folders of the same names and layout, with tiny networks and random weights."""
    base = tiny_diffusion.stable_diffusion()
    parts = {
        "sd2-community/stable-diffusion-2-1-unclip-small": tiny_diffusion.unclip(),
        "stable-diffusion-v1-5/stable-diffusion-v1-5": base,
        "lllyasviel/control_v11p_sd15_canny": tiny_diffusion.controlnet(base.unet),
        "lllyasviel/control_v11p_sd15_seg": tiny_diffusion.controlnet(base.unet),
        "your/controlnet-for-sd21": tiny_diffusion.controlnet(base.unet),
    }
    for name, part in parts.items():
        part.save_pretrained(folder / name)
    adapter = folder / "h94" / "IP-Adapter" / "models"
    tiny_diffusion.image_encoder().save_pretrained(adapter / "image_encoder")
    weights = {f"{part}.{name}": t for part, tensors in tiny_diffusion.ip_adapter(base.unet).items() for name, t in tensors.items()}
    save_file(weights, adapter / "ip-adapter_sd15.safetensors")


def _variants_of_the_authors(folder: Path) -> None:
    """What the paper's released code leaves: ten JPEG files of each photo."""
    for photo in (folder / "photos").rglob("*.png"):
        made = folder / "generated" / photo.parent.name
        made.mkdir(parents=True)
        for i in range(10):
            Image.open(photo).convert("RGB").resize((24, 24)).save(made / f"{photo.stem}_{i}.JPEG")


def _run_command(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a command that a page shows, or check that it exists where running it takes long."""
    match words:
        case []:
            pass
        case ["make", target, *variables]:
            makefile = (ROOT / "Makefile").read_text()
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"make {target}: no such target"
            for name in (variable.partition("=")[0] for variable in variables):
                assert f"$({name})" in makefile, f"make {target}: no variable {name}"
        case ["python3", "-m", "venv", folder]:
            assert folder == ".venv", "the environment that the Makefile uses, too"
        case ["source", script]:
            assert script == ".venv/bin/activate"
        case ["pip", "install", "-e", target]:
            extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
            named = re.fullmatch(r"\.(?:\[([\w,]+)\])?", target)
            assert named, target
            assert set((named[1] or "all").split(",")) <= set(extras), target
        case ["gentransforms", *arguments] if arguments[:2] == ["bank", "push"] or "ray" in arguments:
            parse_command(arguments)  # to carry it out takes the Hub (test_bank_hub.py), or a cluster (test_bank_ray.py)
        case ["gentransforms", *arguments]:
            from gentransforms.cli.main import app

            with pytest.raises(SystemExit) as ended:
                app(arguments, prog_name="gentransforms")
            assert ended.value.code in (0, None), " ".join(words)
        case ["sbatch", *options] if (script := str(SLURM.relative_to(ROOT))) in options:
            source, bank, generator, *others = options[options.index(script) + 1 :]
            parse_command(["generate", source, bank, "--generator", generator, *others])
        case ["python", "examples/icgan/train.py", *arguments]:
            monkeypatch.setattr(sys, "argv", ["train.py", *arguments, *TINY_TRAINING])
            example("train").main()
        case [
            "python",
            "examples/icgan/classifier.py" | "examples/icgan/evaluate.py" | "examples/icgan/curves.py" | "examples/anomaly.py" as script,
            *arguments,
        ]:
            # test_icgan_evaluation.py and test_anomaly_example.py run them; here, that the options shown are theirs
            known = set(re.findall(r'add_argument\("(--[\w-]+)"', (ROOT / script).read_text()))
            assert {word for word in arguments if word.startswith("--")} <= known, " ".join(words)
        case ["python", path, *_] if path.startswith("examples/ssl/"):
            script, arguments = ssl_example.miniature(words)
            ssl_example.call(monkeypatch, Path.cwd(), script, *arguments)
        case ["tensorboard", "--logdir", folder]:
            assert list(Path(folder).rglob("events.out.tfevents.*"))
        case _:
            pytest.fail(f"a command that this test does not know how to check: {' '.join(words)}")
