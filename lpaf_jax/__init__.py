"""LPAF and its neighbours: low-rank compression of transformer models in JAX.

`lpaf_jax.pipeline.compress` is the main job; the linear algebra, `lpaf_jax.linalg`, works alone.
What is offered here is imported when it is first used: the linear algebra needs no Flax.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

# Name here -> module and the name there.
_PUBLIC = {
    "load": "lpaf_jax.models:load_model",
}

if TYPE_CHECKING:  # _PUBLIC once more, for those that read types; a test compares the two
    from lpaf_jax.models import load_model as load
else:

    def __getattr__(name):
        if name not in _PUBLIC:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module, there = _PUBLIC[name].split(":")
        globals()[name] = value = getattr(import_module(module), there)
        return value


__all__ = ["__version__", "load"]


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
