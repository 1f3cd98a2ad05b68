"""The `lpaf` command."""

import sys
from collections.abc import Sequence

from lpaf_jax.cli.allocator import begin_anew


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; see `lpaf_jax.cli.app.main`."""
    if argv is None:
        begin_anew(sys.argv[1:])
    try:
        from lpaf_jax.cli import app
    except KeyboardInterrupt:  # it takes a moment to load, and nothing has begun
        print("lpaf: interrupted", file=sys.stderr)
        return 130
    return app.main(argv)
