import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import lpaf_jax

PUBLIC = lpaf_jax._PUBLIC


@pytest.mark.parametrize("name", PUBLIC)
def test_a_name_is_what_it_is_at_home(name: str) -> None:
    module, there = PUBLIC[name].split(":")
    assert getattr(lpaf_jax, name) is getattr(import_module(module), there)
    assert name in dir(lpaf_jax)


def test_type_checkers_see_the_same() -> None:
    tree = ast.parse(Path(lpaf_jax.__file__).read_text(encoding="utf-8"))
    [block] = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {
        alias.asname or alias.name: f"{node.module}:{alias.name}"
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == PUBLIC
    assert set(lpaf_jax.__all__) == {"__version__", *PUBLIC}


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'lpaf_jax' has no attribute 'compres'"):
        lpaf_jax.compres  # noqa: B018


def test_the_import_is_light() -> None:
    code = (
        "import sys; before = set(sys.modules); import lpaf_jax; dir(lpaf_jax);"
        "print(*sorted({name.split('.')[0] for name in set(sys.modules) - before}))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(run.stdout.split()) - sys.stdlib_module_names == {"lpaf_jax"}


def test_the_command_is_read_without_loading_what_models_need() -> None:
    code = (
        "import sys, lpaf_jax.cli.app;"
        "print(*sorted({'flax', 'jax', 'optax', 'orbax', 'transformers'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == []
