"""How a weighted factorization is solved: every module here registers its own solvers."""

from lpaf_jax.core.registry import import_modules
from lpaf_jax.solvers.base import PRODUCT as PRODUCT
from lpaf_jax.solvers.base import SOLVERS as SOLVERS
from lpaf_jax.solvers.base import Solution as Solution
from lpaf_jax.solvers.base import Solver as Solver
from lpaf_jax.solvers.base import check_biases as check_biases
from lpaf_jax.solvers.base import check_pair as check_pair
from lpaf_jax.solvers.base import first as first
from lpaf_jax.solvers.base import register_solver as register_solver
from lpaf_jax.solvers.base import solve_cut as solve_cut
from lpaf_jax.solvers.base import solve_one as solve_one

import_modules(__name__, first="plain")
