"""Who may import whom: only downwards."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "gentransforms"
FILES = sorted(PACKAGE.rglob("*.py"))

# From the bottom up. A module may import those of lower layers, and of its own; a package's name covers its modules.
LAYERS = (
    ("errors",),
    ("seeding", "images", "hub"),
    ("generators.base", "generators.card", "generators.identity"),
    ("generators",),
    ("sources",),
    ("bank.format", "bank.selection"),
    ("bank.generate", "bank.verify", "bank.share", "bank.importing"),
    ("bank.reader", "bank"),
    ("transforms",),
    ("kornia", "testing"),
    ("audit",),
    ("cli",),
)
# Within a layer these know nothing of each other.
APART = (("errors",), ("seeding", "images", "hub"))


def name_of(file: Path) -> str:
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def layer_of(module: str) -> tuple[int, str]:
    """The layer of a module of ours and the entry that names it: the longest that fits."""
    fits = [(len(name), i, name) for i, names in enumerate(LAYERS) for name in names if module == name or module.startswith(name + ".")]
    if not fits:
        pytest.fail(f"gentransforms.{module} stands in no layer: add it to LAYERS")
    _, layer, name = max(fits)
    return layer, name


def imports_of(file: Path) -> set[str]:
    """The modules of ours that a file imports, wherever in it but for type checking: ``"images"`` for gentransforms.images."""
    found = set()
    tree = ast.parse(file.read_text())
    typing = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if id(node) in typing:
            continue
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file.name}: imports are absolute"
            names = [node.module or ""]
            package = (node.module or "").removeprefix("gentransforms").removeprefix(".")
            if (PACKAGE.parent / Path(*(node.module or "").split("."))).is_dir():  # from gentransforms import hub, which may hold names too
                inside = [f"{package}.{alias.name}".removeprefix(".") for alias in node.names]
                names = [f"gentransforms.{name if is_module(name) or not package else package}" for name in inside]
        found |= {name.removeprefix("gentransforms.") for name in names if name.split(".")[0] == "gentransforms"}
    return found


def is_module(name: str) -> bool:
    path = PACKAGE / Path(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


MODULES = [file for file in FILES if name_of(file) not in ("", "__main__")]


class TestLayering:
    @pytest.mark.parametrize("file", MODULES, ids=name_of)
    def test_imports_go_downwards(self, file: Path) -> None:
        module = name_of(file)
        layer, own = layer_of(module)
        for imported in imports_of(file):
            if imported in ("gentransforms", "__version__") or not is_module(imported):
                # A name of the top level, which holds everything but the command line.
                assert own == "cli", f"{module} imports {imported} from the top level"
                continue
            below, name = layer_of(imported)
            assert below <= layer, f"{module} imports {imported}, which stands above it"
            if below == layer and name != own:
                assert not any(own in names and name in names for names in APART), f"{module} and {imported} should not know each other"

    def test_errors_import_nothing_of_ours(self) -> None:
        assert imports_of(PACKAGE / "errors.py") == set()

    def test_hub_knows_no_class(self) -> None:
        assert imports_of(PACKAGE / "hub/models.py") == {"errors", "hub.client"}

    @pytest.mark.parametrize(
        "file",
        [*sorted((PACKAGE / "transforms").glob("*.py")), PACKAGE / "kornia.py", PACKAGE / "testing.py"],
        ids=name_of,
    )
    def test_transforms_know_no_concrete_generator(self, file: Path) -> None:
        concrete = {name for name in imports_of(file) if name.startswith("generators.")}
        concrete -= {"generators.base", "generators.held", "generators.registry"}
        assert concrete == set()

    def test_only_hub_touches_the_hub(self) -> None:
        for file in FILES:
            tree = ast.parse(file.read_text())
            imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
            imported |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
            touches = any(name and name.split(".")[0] == "huggingface_hub" for name in imported)
            assert not touches or name_of(file).startswith("hub."), file

    def test_no_module_is_called_utils(self) -> None:
        assert [file for file in FILES if "util" in file.stem or "helper" in file.stem] == []

    def test_an_import_upwards_would_be_seen(self, tmp_path: Path) -> None:
        file = tmp_path / "images.py"
        lines = (
            "from gentransforms.transforms.two_views import TwoViews",
            "from gentransforms.hub import models",
            "import gentransforms.cli.main",
        )
        file.write_text("def f():\n" + "".join(f"    {line}\n" for line in lines))
        assert imports_of(file) == {"transforms.two_views", "hub.models", "cli.main"}
        assert layer_of("transforms") > layer_of("images")
        assert layer_of("generators.base") < layer_of("generators.icgan.network") < layer_of("sources.base")
