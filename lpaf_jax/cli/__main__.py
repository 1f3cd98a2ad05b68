"""`python -m lpaf_jax.cli`."""

import sys

from lpaf_jax.cli import main

if __name__ == "__main__":
    sys.exit(main())
