"""constraints.txt fixes a version of everything that ``make setup`` installs, and says nothing else."""

from __future__ import annotations

import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LINES = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
PINS = {canonicalize_name(r.name): r for r in map(Requirement, LINES)}


def version(name: str) -> str:
    (specifier,) = PINS[canonicalize_name(name)].specifier
    return specifier.version


def needed() -> set[str]:
    """What ``gentransforms[all]`` installs on this machine, by the metadata of what is installed."""
    seen: dict[str, set[str]] = {}
    left = [Requirement("gentransforms[all]")]
    while left:
        requirement = left.pop()
        name = canonicalize_name(requirement.name)
        extras = {"", *requirement.extras}
        if extras <= seen.get(name, set()):
            continue
        seen[name] = extras | seen.get(name, set())
        for line in metadata.requires(name) or []:
            further = Requirement(line)
            if further.marker is None or any(further.marker.evaluate({"extra": extra}) for extra in seen[name]):
                left.append(further)
    return set(seen) - {"gentransforms"}


class TestConstraints:
    @pytest.mark.parametrize("line", LINES)
    def test_a_line_is_a_name_and_a_version(self, line: str) -> None:
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.!]+( ; .+)?", line)

    def test_each_package_once_in_order(self) -> None:
        names = [canonicalize_name(Requirement(line).name) for line in LINES]
        assert len(set(names)) == len(names)
        assert names == sorted(names)

    def test_they_are_within_the_ranges_of_pyproject(self) -> None:
        lists = [PROJECT["dependencies"], *(lines for name, lines in PROJECT["optional-dependencies"].items() if name != "all")]
        ours = [Requirement(line) for lines in lists for line in lines]
        outside = [str(r) for r in ours if not r.specifier.contains(version(r.name))]
        assert len(ours) > 25
        assert outside == []

    def test_the_extra_all_is_every_other(self) -> None:
        (everything,) = PROJECT["optional-dependencies"]["all"]
        assert Requirement(everything).extras == set(PROJECT["optional-dependencies"]) - {"all"}

    def test_nothing_that_is_installed_is_left_open(self) -> None:
        """In the environment of ``make setup``; in one of the newest packages others may be needed."""
        packages = needed()
        assert {"torch", "numpy", "mypy", "omegaconf"} <= packages
        if any(metadata.version(name) != version(name) for name in packages & PINS.keys()):
            pytest.skip("other versions are installed than those of constraints.txt")
        assert packages <= PINS.keys()

    def test_every_version_installs_on_the_oldest_python(self) -> None:
        """A package may require a newer patch release, as pymdown-extensions 13 does; the Python of a distribution may be older."""
        oldest = PROJECT["requires-python"].removeprefix(">=") + ".0"
        for name in sorted(needed() & PINS.keys()):
            if metadata.version(name) == version(name):
                required = metadata.metadata(name)["Requires-Python"] or ""
                assert SpecifierSet(required).contains(oldest), f"{name} {version(name)} requires Python {required}"
