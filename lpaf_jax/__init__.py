"""LPAF and its neighbours: low-rank compression of transformer models in JAX.

    import lpaf_jax

    lpaf_jax.compress("minilm", task="rotten_tomatoes", recipe="kfac-svd", params=0.25, out="run")
    model = lpaf_jax.load("run")

`compress` is the main job, `compare` runs several methods on one model and data. A method is a
`Recipe` of stages; `register` gives one a name. The linear algebra, `lpaf_jax.linalg`, works alone:
what is offered here is imported when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

# Name here -> module and the name there.
_PUBLIC = {
    "FineTune": "lpaf_jax.stages:FineTune",
    "Prune": "lpaf_jax.stages:Prune",
    "Factorize": "lpaf_jax.stages:Factorize",
    "Tune": "lpaf_jax.stages:Tune",
    "MixedTune": "lpaf_jax.stages:MixedTune",
    "Recipe": "lpaf_jax.recipes:Recipe",
    "add_tokens": "lpaf_jax.export:add_tokens",
    "compare": "lpaf_jax.runs.comparison:compare",
    "compress": "lpaf_jax.runs.pipeline:compress",
    "load": "lpaf_jax.checkpoints:load",
    "register": "lpaf_jax.recipes:register",
}

if TYPE_CHECKING:  # _PUBLIC once more, for those that read types; a test compares the two
    from lpaf_jax.checkpoints import load as load
    from lpaf_jax.export import add_tokens as add_tokens
    from lpaf_jax.recipes import Recipe as Recipe
    from lpaf_jax.recipes import register as register
    from lpaf_jax.runs.comparison import compare as compare
    from lpaf_jax.runs.pipeline import compress as compress
    from lpaf_jax.stages import Factorize as Factorize
    from lpaf_jax.stages import FineTune as FineTune
    from lpaf_jax.stages import MixedTune as MixedTune
    from lpaf_jax.stages import Prune as Prune
    from lpaf_jax.stages import Tune as Tune
else:

    def __getattr__(name):
        if name not in _PUBLIC:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module, there = _PUBLIC[name].split(":")
        globals()[name] = value = getattr(import_module(module), there)
        return value


__all__ = [
    "Factorize",
    "FineTune",
    "MixedTune",
    "Prune",
    "Recipe",
    "Tune",
    "__version__",
    "add_tokens",
    "compare",
    "compress",
    "load",
    "register",
]


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
