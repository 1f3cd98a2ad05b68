import subprocess
import sys

SCRIPT = """
import importlib.abc, sys

blocked = {"flax", "transformers", "datasets", "torch", "optax", "orbax", "safetensors",
           "tokenizers", "huggingface_hub", "matplotlib", "rich", "tyro", "pyarrow"}

class Block(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in blocked:
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Block())
try:
    import flax
except ImportError:
    pass
else:
    raise SystemExit("the block does not work")

import jax.numpy as jnp
import lpaf_jax.linalg as linalg

print(linalg.svd(jnp.eye(4), 2).dense().shape)
"""


def test_linalg_needs_only_jax_and_numpy() -> None:
    run = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout == "(4, 4)\n"
