"""What benchmarks/gpu_parts takes from examples/ is there, and is called as it is defined: nobody sees it run before it is on a GPU."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from ssl_example import ssl

from benchmarks.gpu_parts import training
from benchmarks.gpu_parts.fair_commands import Commands
from benchmarks.gpu_parts.images import Images

ROOT = Path(__file__).parents[1]
PARTS = sorted((ROOT / "benchmarks" / "gpu_parts").glob("*.py"))


def definitions(module: ast.ImportFrom, source: str) -> dict[str, Any]:
    """Return the definitions of an example's module; none of other modules."""
    for example in ("ssl", "icgan"):
        path = ROOT / "examples" / example / f"{module.module}.py"
        if path.exists() and f'"examples" / "{example}"' in source:
            found: dict[str, Any] = {}
            for statement in ast.parse(path.read_text()).body:
                if isinstance(statement, ast.FunctionDef | ast.ClassDef):
                    found[statement.name] = statement
                elif isinstance(statement, ast.Assign):
                    found |= {target.id: statement for target in statement.targets if isinstance(target, ast.Name)}
            return found
    return {}


def signature(definition: ast.FunctionDef) -> inspect.Signature:
    """Return the signature of a function without its module being imported."""
    a = definition.args
    first, values = [*a.posonlyargs, *a.args], len(a.defaults)
    kind = inspect.Parameter
    parameters = [
        kind(arg.arg, kind.POSITIONAL_OR_KEYWORD, default=None if i >= len(first) - values else kind.empty) for i, arg in enumerate(first)
    ]
    parameters += [kind(a.vararg.arg, kind.VAR_POSITIONAL)] if a.vararg else []
    pairs = zip(a.kwonlyargs, a.kw_defaults, strict=True)
    parameters += [kind(arg.arg, kind.KEYWORD_ONLY, default=kind.empty if default is None else None) for arg, default in pairs]
    return inspect.Signature(parameters + ([kind(a.kwarg.arg, kind.VAR_KEYWORD)] if a.kwarg else []))


def taken(path: Path) -> dict[str, Any]:
    """Return the definitions of what a part imports from examples/, by name; None for what is not there."""
    source = path.read_text()
    found: dict[str, Any] = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (there := definitions(node, source)):
            found |= {name.name: there.get(name.name) for name in node.names}
    return found


class TestExamplesOfParts:
    def test_something_is_looked_at(self) -> None:
        assert {"load_settings", "train", "ours", "make_bank", "load_judge", "hush", "Generator"} <= {
            n for path in PARTS for n in taken(path)
        }

    @pytest.mark.parametrize("path", PARTS, ids=lambda path: path.stem)
    def test_is_there_and_called_as_defined(self, path: Path) -> None:
        used = taken(path)
        assert [name for name, definition in used.items() if definition is None] == []
        for call in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in used):
                continue
            definition, arguments = used[call.func.id], list(call.args)
            if isinstance(definition, ast.ClassDef):
                definition = next(one for one in definition.body if isinstance(one, ast.FunctionDef) and one.name == "__init__")
                arguments.insert(0, ast.Name("self"))
            words = {word.arg: word for word in call.keywords if word.arg}
            signature(definition).bind(*arguments, **words)

    def test_seconds_of_a_step(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        # The part puts examples/ssl first on the path; examples/icgan has scripts of the same names.
        monkeypatch.setattr(sys, "path", list(sys.path))
        part = importlib.import_module("benchmarks.gpu_parts.ssl")
        speed = ssl("speed")
        ticks = iter([(0.0, 0.0), (1.0, 5.0), (3.0, 9.0), (6.0, 30.0), (10.0, 50.0)])

        def train(settings: Any, out: Path, callbacks: Any, quiet: bool) -> None:
            for now in ticks:
                monkeypatch.setattr(speed.time, "perf_counter", lambda now=now: now[0])
                monkeypatch.setattr(speed.time, "process_time", lambda now=now: now[1])
                callbacks[0].on_train_batch_end()
            monkeypatch.undo()

        monkeypatch.setattr(speed, "train", train)
        assert part.seconds_of_a_step(speed.ours(None)) == 3.0, "of 2, 3 and 4 seconds, after the warm-up"


def options_of(script: Path) -> set[str]:
    return set(re.findall(r"add_argument\(\s*\"(--[a-z-]+)\"", script.read_text()))


class TestCommandsOfParts:
    @pytest.mark.parametrize("kind", ["oracle", "neighbours"])
    def test_real_variants(self, kind: str, tmp_path: Path) -> None:
        commands = Commands(Images(*[tmp_path] * (len(inspect.signature(Images).parameters) - 1), 0), "cpu", True)
        command = commands.real(kind, tmp_path if kind == "neighbours" else None)
        script, config = Path(str(command[1])), Path(str(command[command.index("--config") + 1]))
        assert config.exists()
        assert {word for word in command if str(word).startswith("--")} <= options_of(script)

    def test_scripts_of_the_generator(self) -> None:
        source = (ROOT / "benchmarks" / "gpu_parts" / "training.py").read_text()
        calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "script"]
        assert len(calls) == 3
        scripts = [Path(str(training.script(call.args[0].value)[1])) for call in calls]  # type: ignore[attr-defined]
        assert set(re.findall(r'"(--[a-z-]+)"', source)) <= set().union(*map(options_of, scripts))
        for call in calls:
            words = [node.value for node in ast.walk(call) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
            path = Path(str(training.script(words[0])[1]))
            assert path.exists()
            assert {word for word in words if word.startswith("--")} <= options_of(path)
