"""`lpaf generate`."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from lpaf_jax.cli.stage import StageName
from lpaf_jax.core.ranges import demand, whole


@dataclass(frozen=True)
class Generate:
    """Continue a text with a language model; prints the continuation alone."""

    dir: Positional[Path]
    """Folder of a run or of a model, a .gguf file, or `smollm2`."""
    prompt: Annotated[str, arg(metavar="TEXT")]
    """What is to be continued."""
    tokens: int = 64
    """Tokens that are written at most; the model may end the text before."""
    temperature: float = 0.0
    """0 takes the most likely token at every place; 1 draws as likely as the model says."""
    top_p: float = 1.0
    """Draw only from the most likely tokens that together have this chance."""
    seed: int = 0
    """Of the draws."""
    stage: StageName = "final"
    """Which model of a run: as it stood after this stage."""

    def run(self) -> None:
        """Continue and print."""
        from lpaf_jax.checkpoints import find_model
        from lpaf_jax.evaluation.generate import Sampling, generate

        demand(self, "tokens", whole(1), "a whole number, at least 1")
        demand(self, "temperature", lambda x: 0 <= x < float("inf"), "finite and at least 0")
        demand(self, "top_p", lambda x: 0 < x <= 1, "in (0, 1]")
        sampling = Sampling(self.temperature, self.top_p, self.seed)
        folder = find_model(self.dir, self.stage)
        told = generate(folder, self.prompt, tokens=self.tokens, sampling=sampling)
        print(told.text)
        print(
            f"{told.prompt} tokens read in {told.reading:.2f} s, {told.tokens} written in "
            f"{told.writing:.2f} s (compilation included)",
            file=sys.stderr,
        )
