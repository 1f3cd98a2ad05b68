"""Where the matrices of a transformer block are, by name: all that tells one layer from another."""

from typing import NamedTuple


class Layout(NamedTuple):
    """The compressible layers of a block, by their paths in it.

    Attributes:
        blocks: path of the list of blocks, below the prefix of the family.
        queries, keys, values: layers of attention; one and the same where a matrix holds all three.
        output: the layer that takes what attention makes of the values.
        into: the layers that give the channels between the feed-forward layers; a gate is first.
        out: the layer that takes those.
        width: what config.json calls the number of these channels.
    """

    blocks: str
    queries: str
    keys: str
    values: str
    output: str
    into: tuple[str, ...]
    out: str
    width: str

    @property
    def apart(self) -> bool:
        """Whether queries, keys and values each have a matrix."""
        return len({self.queries, self.keys, self.values}) == 3

    @property
    def feed_forward(self) -> tuple[str, ...]:
        """All feed-forward layers."""
        return (*self.into, self.out)

    @property
    def layers(self) -> tuple[str, ...]:
        """All compressible layers of a block."""
        return (self.queries, self.keys, self.values, self.output, *self.feed_forward)
