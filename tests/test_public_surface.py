"""The names that users see, and how little importing them costs."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import pickle
import pkgutil
import subprocess
import sys

import pytest

import gentransforms as gt

EXPECTED = {
    "ICGAN", "Audit", "Bank", "BankAugment", "BankConfig", "ControlNetVariation", "GenerativeAugment", "GentransformsError",
    "ImageGenerator", "ImageSource", "PipelineVariation",
    "StableDiffusionVariation", "TwoViews", "audit_bank", "audit_generator", "derive_seeds", "generate_bank",
    "list_pretrained", "load_generator",
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
        tree = ast.parse(inspect.getsource(gt))
        functions = [node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
        assert functions == ["__getattr__", "__dir__"]
        assert not any(isinstance(node, ast.ClassDef) for node in ast.walk(tree))

    def test_type_checkers_see_what_is_loaded(self) -> None:
        """The imports for editors and mypy name the modules that names are loaded from."""
        (block,) = [node for node in ast.parse(inspect.getsource(gt)).body if isinstance(node, ast.If)]
        assert ast.unparse(block.test) == "TYPE_CHECKING"
        seen = {alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
        assert seen == {name: f"gentransforms.{module}" for name, module in gt._MODULES.items()}
        assert set(seen) == set(gt.__all__)
        assert all(getattr(gt, name) is getattr(importlib.import_module(seen[name]), name) for name in gt.__all__)

    def test_loads_nothing_until_a_name_is_used(self) -> None:
        code = (
            f"import sys, gentransforms as gt; heavy = {('torch', 'torchvision', 'numpy', 'PIL', *HEAVY)!r}\n"
            "loaded = lambda: [name for name in heavy if name in sys.modules]\n"
            "print(loaded(), set(gt.__all__) <= set(dir(gt)), gt.errors.BankError.__name__, loaded())\n"
            "gt.derive_seeds; print(loaded()); from gentransforms import *; print(Bank is gt.Bank, gt.bank.reader.Bank is Bank)\n"
            f"print([name for name in {HEAVY!r} if name in sys.modules])"
        )
        printed = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
        assert printed.stdout.splitlines() == ["[] True BankError []", "['torch', 'numpy']", "True True", "[]"]
        assert printed.stderr == ""

    def test_a_name_that_is_not_there(self) -> None:
        with pytest.raises(AttributeError, match="module 'gentransforms' has no attribute 'Banc'"):
            gt.Banc  # noqa: B018
        assert not hasattr(gt, "cli_of")

    def test_classes_are_pickled_by_their_modules(self) -> None:
        assert pickle.loads(pickle.dumps(gt.TwoViews)) is gt.TwoViews

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


class TestCommandLine:
    """A help text or a version waits for nothing: what is imported is counted, since times are not the same twice."""

    def test_help_and_version_load_nothing_heavy(self) -> None:
        commands = [[], ["demo"], ["preview"], ["generate"], ["list"], ["convert"], ["convert", "icgan"], ["bank"]]
        commands += [["bank", name] for name in ("info", "verify", "export", "push", "import")]
        calls = [["--version"], *([*command, "--help"] for command in commands)]
        code = f"""
import contextlib, io, json, sys
from gentransforms.cli.main import app
loaded = {{}}
for call in {calls!r}:
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        app(call, prog_name="gentransforms")
    assert ("Usage: " + " ".join(["gentransforms", *call[:-1]]) in text.getvalue()) or call == ["--version"], text.getvalue()
    loaded[" ".join(call)] = sorted(sys.modules)
print(json.dumps(loaded))
"""
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        for call, modules in json.loads(done.stdout).items():
            heavy = {"torch", "torchvision", "numpy", "PIL", *HEAVY} - {"typer"}
            assert heavy.isdisjoint(modules), call
            assert len(modules) < 300, call  # 175 when this was written; torch alone is more than a thousand
