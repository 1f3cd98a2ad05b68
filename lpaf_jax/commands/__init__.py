"""The other commands, each a dataclass of its options with a `run`."""

from lpaf_jax.commands.analyze import Analyze
from lpaf_jax.commands.bench import Bench
from lpaf_jax.commands.compare import Compare
from lpaf_jax.commands.export import Export
from lpaf_jax.commands.inspect import Inspect
from lpaf_jax.commands.recipes import Recipes
from lpaf_jax.commands.serve import Evaluate, Predict

__all__ = ["Analyze", "Bench", "Compare", "Evaluate", "Export", "Inspect", "Predict", "Recipes"]
