"""The methods there are: every module of this package registers its own."""

import importlib
import pkgutil

from lpaf_jax.recipes.base import RECIPES as RECIPES
from lpaf_jax.recipes.base import Recipe as Recipe
from lpaf_jax.recipes.base import make_recipe as make_recipe
from lpaf_jax.recipes.base import own_settings as own_settings
from lpaf_jax.recipes.base import register as register
from lpaf_jax.recipes.base import summary as summary

# The one the project is about comes first.
_NAMES = sorted((m.name for m in pkgutil.iter_modules(__path__)), key=lambda n: (n != "lpaf", n))
for _name in _NAMES:
    importlib.import_module(f"{__name__}.{_name}")
