"""The methods there are: every module of this package registers its own."""

from lpaf_jax.core.registry import import_modules
from lpaf_jax.recipes.base import RECIPES as RECIPES
from lpaf_jax.recipes.base import STAGES as STAGES
from lpaf_jax.recipes.base import Recipe as Recipe
from lpaf_jax.recipes.base import logged_as as logged_as
from lpaf_jax.recipes.base import make_recipe as make_recipe
from lpaf_jax.recipes.base import own_settings as own_settings
from lpaf_jax.recipes.base import register as register
from lpaf_jax.recipes.base import summary as summary

import_modules(__name__, first="lpaf")  # the one the project is about
