"""The names that users see, and how little importing them costs."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import subprocess
import sys

import pytest

import gentransforms as gt

EXPECTED = {
    "ICGAN", "Bank", "BankAugment", "ControlNetVariation", "GenerativeAugment", "GentransformsError", "ImageGenerator",
    "StableDiffusionVariation", "TwoViews", "derive_seeds", "generate_bank", "list_pretrained", "load_generator",
    "open_source", "plan_bank", "with_keys",
}  # fmt: skip
MODULES = sorted(module.name for module in pkgutil.walk_packages(gt.__path__, "gentransforms.") if not module.name.endswith("__main__"))
HEAVY = ("diffusers", "transformers", "kornia", "datasets", "pyarrow", "ray", "huggingface_hub", "safetensors", "typer", "rich")


class TestTopLevel:
    def test_names_are_exactly_these(self) -> None:
        assert set(gt.__all__) == EXPECTED
        assert len(gt.__all__) == len(EXPECTED)
        assert all(hasattr(gt, name) for name in gt.__all__)

    def test_has_a_version(self) -> None:
        assert gt.__version__.count(".") == 2

    def test_holds_names_and_nothing_else(self) -> None:
        source = inspect.getsource(gt)
        assert "def " not in source
        assert "class " not in source

    def test_importing_is_light(self) -> None:
        code = f"import sys, gentransforms; print([name for name in {HEAVY!r} if name in sys.modules])"
        printed = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
        assert printed.stdout.strip() == "[]"
        assert printed.stderr == ""

    def test_every_public_thing_is_documented(self) -> None:
        for name in gt.__all__:
            thing = getattr(gt, name)
            assert inspect.getdoc(thing), name
            if inspect.isclass(thing):
                for member, value in vars(thing).items():
                    public = not member.startswith("_") and (callable(value) or isinstance(value, property | classmethod | staticmethod))
                    assert not public or inspect.getdoc(getattr(thing, member)), f"{name}.{member}"


class TestModules:
    @pytest.mark.parametrize("name", MODULES)
    def test_every_module_says_what_is_public(self, name: str) -> None:
        module = importlib.import_module(name)
        assert module.__doc__, "a module says what it is for"
        if hasattr(module, "__path__"):
            return  # packages of ours hold modules, not names
        assert hasattr(module, "__all__")
        assert all(hasattr(module, public) for public in module.__all__)
        assert len(set(module.__all__)) == len(module.__all__)

    @pytest.mark.parametrize("name", MODULES)
    def test_what_is_public_is_documented(self, name: str) -> None:
        module = importlib.import_module(name)
        for public in getattr(module, "__all__", []):
            thing = getattr(module, public)
            if inspect.isclass(thing) or inspect.isfunction(thing):
                assert inspect.getdoc(thing), public
