"""CONTRIBUTING.md: the map of the house is the house, and its commands exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def places(text: str) -> list[str]:
    """The paths in the first code block, a line each, folders by their indentation."""
    (block, *_) = re.findall(r"^```\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    found: list[str] = []
    above: list[tuple[int, str]] = []
    for line in block.splitlines():
        name, indent = line.split()[0], len(line) - len(line.lstrip())
        above = [(i, folder) for i, folder in above if i < indent]
        found.append("".join(folder for _, folder in above) + name)
        above.append((indent, name))
    return found


class TestMap:
    def test_every_place_exists(self) -> None:
        found = places(TEXT)
        assert len(found) > 20
        assert [place for place in found if not ((ROOT / place).is_dir() if place.endswith("/") else (ROOT / place).is_file())] == []

    def test_every_folder_of_the_package_is_there(self) -> None:
        package = ROOT / "gentransforms"
        folders = {path.parent.relative_to(ROOT).as_posix() + "/" for path in package.glob("*/__init__.py")}
        folders |= {path.parent.relative_to(ROOT).as_posix() + "/" for path in package.glob("bank/*/__init__.py")}
        modules = {path.relative_to(ROOT).as_posix() for path in package.glob("*.py") if not path.stem.startswith("__")}
        assert folders | modules <= set(places(TEXT))

    def test_the_files_that_are_named_exist(self) -> None:
        for line, place in zip(re.findall(r"^```\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)[0].splitlines(), places(TEXT), strict=True):
            for name in re.findall(r"\b\w+\.py\b", line.split(maxsplit=1)[1] if place.endswith("/") else ""):
                assert (ROOT / place / name).is_file(), f"{place}{name}"

    def test_the_order_is_that_of_the_layers(self) -> None:
        from test_layering import layer_of

        modules = [
            place.removeprefix("gentransforms/").rstrip("/").removesuffix(".py") for place in places(TEXT) if "gentransforms/" in place
        ]
        layers = [layer_of(name.replace("/", "."))[0] for name in modules if name not in ("", "bank", "weights", "samples")]
        assert layers == sorted(layers)

    def test_a_place_that_is_gone_would_be_seen(self) -> None:
        assert places("```\na/   x\n  b/   y\n    c.py\n  d.py   z\ne/\n```\n") == ["a/", "a/b/", "a/b/c.py", "a/d.py", "e/"]


class TestCommands:
    def test_every_target_of_make_exists(self) -> None:
        targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
        named = set(re.findall(r"\bmake ([a-z]+)\b", TEXT)) | set(
            re.findall(r"^make ([a-z]+)", (ROOT / "README.md").read_text(), re.MULTILINE)
        )
        assert {"test", "newest", "constraints", "demo"} <= named <= targets
