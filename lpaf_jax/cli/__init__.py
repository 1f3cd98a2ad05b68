"""The `lpaf` command."""

from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; see `lpaf_jax.cli.app.main`."""
    from lpaf_jax.cli import app

    return app.main(argv)
