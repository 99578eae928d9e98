"""Who may import whom: only downwards, and never in a circle; imports inside functions count, those for type checking alone do not."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "gentransforms"

# From the bottom up. A module may import those of lower layers, and of its own; a package's name covers its modules.
LAYERS = (
    ("errors",),
    ("paths", "wording", "containers"),
    ("seeding", "images", "surroundings", "hub"),
    ("generators",),
    ("sources",),
    ("bank.config", "bank.format", "bank.scores", "bank.selection"),
    ("bank.generate", "bank.verify", "bank.share", "bank.opening", "bank.importing"),
    ("bank.reader", "bank"),
    ("transforms", "kornia", "testing"),
    ("audit",),
    ("cli",),
)
# Within a layer these know nothing of each other.
APART = (("seeding", "images", "surroundings", "hub"), ("bank.generate", "bank.verify"), ("bank.generate", "bank.share"))

Graph = Mapping[str, set[str]]


def name_of(file: Path, package: Path = PACKAGE) -> str:
    parts = file.relative_to(package).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_module(name: str, package: Path = PACKAGE) -> bool:
    path = package / Path(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


def imports_of(file: Path, package: Path = PACKAGE) -> set[str]:
    """The modules of ours that a file imports, wherever in it but for type checking: ``"images"`` for gentransforms.images.

    A string that is the name of one, as importlib takes it, counts too. A name of the top level stands for itself.
    """
    tree = ast.parse(file.read_text(encoding="utf-8"))
    typing = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for statement in node.body
        for inner in ast.walk(statement)
    }
    found: set[str] = set()
    for node in ast.walk(tree):
        names: list[str] = []
        if id(node) in typing:
            continue
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file.name}: imports are absolute"
            parent = (node.module or "").removeprefix("gentransforms").removeprefix(".")
            for alias in node.names:
                inside = f"{parent}.{alias.name}".removeprefix(".")  # from gentransforms import hub; or a name that the module holds
                whole = f"gentransforms.{inside}" if is_module(inside, package) or not parent else node.module or ""
                names.append(whole if (node.module or "").split(".")[0] == "gentransforms" else "")
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and re.fullmatch(r"gentransforms(\.\w+)+", node.value):
            names = [node.value] if is_module(node.value.removeprefix("gentransforms."), package) else []
        found |= {name.removeprefix("gentransforms.") for name in names if name.split(".")[0] == "gentransforms"}
    return found


def graph_of(package: Path) -> Graph:
    files = {name_of(file, package): file for file in sorted(package.rglob("*.py"))}
    return {name: imports_of(file, package) - {name} for name, file in files.items() if name not in ("", "__main__")}


def layer_of(module: str) -> tuple[int, str]:
    """The layer of a module of ours and the entry that names it: the longest that fits."""
    fits = [(len(name), i, name) for i, names in enumerate(LAYERS) for name in names if module == name or module.startswith(name + ".")]
    if not fits:
        pytest.fail(f"gentransforms.{module} stands in no layer: add it to LAYERS")
    _, layer, name = max(fits)
    return layer, name


def wrong_imports(graph: Graph) -> Iterator[str]:
    """What is imported upwards, sideways where that is forbidden, or from the top level, which is for users."""
    for module, imported in graph.items():
        layer, own = layer_of(module)
        for other in sorted(imported):
            if other not in graph:
                if own != "cli":  # the version
                    yield f"{module} imports {other} from the top level"
                continue
            above, name = layer_of(other)
            if above > layer:
                yield f"{module} imports {other}, which stands above it"
            elif name != own and any(own in names and name in names for names in APART):
                yield f"{module} and {other} should not know each other"


def circles(graph: Graph) -> list[tuple[str, ...]]:
    """The modules that import each other, directly or by way of others, a list for each such knot."""

    def reachable(start: str) -> set[str]:
        seen: set[str] = set()
        left = [start]
        while left:
            new = graph.get(left.pop(), set()) - seen
            seen |= new
            left += new
        return seen

    below = {module: reachable(module) for module in graph}
    return sorted({tuple(sorted(b for b in below[a] if a in below.get(b, ()))) for a in graph if a in below[a]})


@pytest.fixture(scope="module")
def graph() -> Graph:
    return graph_of(PACKAGE)


class TestLayering:
    def test_imports_go_downwards(self, graph: Graph) -> None:
        assert len(graph) > 80
        assert list(wrong_imports(graph)) == []

    def test_there_are_no_circles(self, graph: Graph) -> None:
        assert circles(graph) == []

    def test_errors_import_nothing_of_ours(self, graph: Graph) -> None:
        assert graph["errors"] == set()

    def test_hub_knows_no_class(self, graph: Graph) -> None:
        imported = {name for module in graph if module.startswith("hub") for name in graph[module]}
        assert imported == {
            "errors",
            "paths",
            "wording",
            "hub.card_parts",
            "hub.card_sections",
            "hub.card_update",
            "hub.client",
            "hub.licenses",
            "hub.replaced",
        }

    def test_transforms_know_no_concrete_generator(self, graph: Graph) -> None:
        above = {module: names for module, names in graph.items() if module.split(".")[0] in ("transforms", "kornia", "testing")}
        assert len(above) > 5
        concrete = ("generators.icgan", "generators.diffusion", "generators.pipelines")
        assert [(module, name) for module, names in above.items() for name in names if name.startswith(concrete)] == []

    def test_only_hub_touches_the_hub(self) -> None:
        for file in PACKAGE.rglob("*.py"):
            tree = ast.parse(file.read_text(encoding="utf-8"))
            imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
            imported |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
            touches = any(name and name.split(".")[0] == "huggingface_hub" for name in imported)
            assert not touches or name_of(file).startswith("hub."), file

    def test_no_module_is_called_utils(self, graph: Graph) -> None:
        assert [name for name in graph if re.search("util|helper", name.split(".")[-1])] == []

    def test_no_folder_is_crowded(self) -> None:
        folders = [folder for folder in [PACKAGE, *PACKAGE.rglob("*")] if folder.is_dir()]
        assert {folder.name: n for folder in folders if (n := len(list(folder.glob("*.py")))) > 20} == {}


class TestPlanted:
    """Faults that the tests above would see, each planted into a tree of its own."""

    @pytest.fixture
    def package(self, tmp_path: Path) -> Path:
        for name in ("errors", "images", "seeding", "bank/format/unit", "bank/generate/run", "bank/verify/checker", "cli/main"):
            path = tmp_path / f"{name}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("from gentransforms.errors import BankError\n" if name != "errors" else "")
            for folder in path.relative_to(tmp_path).parents:
                (tmp_path / folder / "__init__.py").touch()
        (tmp_path / "cli/main.py").write_text("from gentransforms import __version__, errors\nimport gentransforms.bank.generate.run\n")
        assert list(wrong_imports(graph_of(tmp_path))) == []
        assert circles(graph_of(tmp_path)) == []
        assert graph_of(tmp_path)["cli.main"] == {"__version__", "errors", "bank.generate.run"}
        return tmp_path

    @pytest.mark.parametrize(
        ("module", "line", "words"),
        [
            ("images", "from gentransforms.bank.format.unit import Unit", "images imports bank.format.unit, which stands above it"),
            ("images", "from gentransforms import cli", "images imports cli, which stands above it"),
            ("images", "import gentransforms.cli.main", "images imports cli.main, which stands above it"),
            ("images", "from gentransforms import seeding", "images and seeding should not know each other"),
            ("seeding", "importlib.import_module('gentransforms.cli.main')", "seeding imports cli.main, which stands above it"),
            ("bank.format.unit", "from gentransforms.bank.generate import run", "bank.format.unit imports bank.generate.run, which stands"),
            ("bank.verify.checker", "import gentransforms.bank.generate.run", "bank.verify.checker and bank.generate.run should not know"),
            ("bank.generate.run", "from gentransforms import Bank", "bank.generate.run imports Bank from the top level"),
            ("bank.generate.run", "import gentransforms", "bank.generate.run imports gentransforms from the top level"),
        ],
    )
    @pytest.mark.parametrize("inside", [False, True])
    def test_import_upwards(self, package: Path, module: str, line: str, words: str, inside: bool) -> None:
        with (package / f"{module.replace('.', '/')}.py").open("a") as file:
            file.write(f"def f():\n    {line}\n" if inside else f"{line}\n")
        (fault,) = wrong_imports(graph_of(package))
        assert words in fault

    def test_import_for_type_checking(self, package: Path) -> None:
        (package / "images.py").write_text("if TYPE_CHECKING:\n    from gentransforms.cli import main\n")
        assert list(wrong_imports(graph_of(package))) == []

    def test_circle(self, package: Path) -> None:
        """Of three modules of one layer, by an import at the top, one in a function, and one by name."""
        (package / "bank/generate/a.py").write_text("import gentransforms.bank.generate.b\n")
        (package / "bank/generate/b.py").write_text("def f():\n    from gentransforms.bank.generate.c import g\n")
        assert circles(graph_of(package)) == []
        (package / "bank/generate/c.py").write_text("import_module('gentransforms.bank.generate.a')\n")
        assert list(wrong_imports(graph_of(package))) == []
        assert circles(graph_of(package)) == [("bank.generate.a", "bank.generate.b", "bank.generate.c")]

    def test_module_without_a_layer(self, package: Path) -> None:
        (package / "shed.py").touch()
        with pytest.raises(pytest.fail.Exception, match=r"gentransforms\.shed stands in no layer"):
            list(wrong_imports(graph_of(package)))
