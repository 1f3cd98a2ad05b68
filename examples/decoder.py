r"""Compress a decoder by a text alone, and see what it says then.

python examples/decoder.py                                    # SmolLM2-135M by reviews of IMDb
python examples/decoder.py path/to/llama text.txt runs/mine   # your own
"""

import sys
from pathlib import Path

import lpaf_jax
from lpaf_jax.evaluation.generate import generate


def main(
    model: str = "smollm2", text: str = "imdb", out: str = "runs/decoder", pieces: int = 32
) -> None:
    # Without held_out the end of the text is what the model is judged by.
    metrics = lpaf_jax.compress(
        model, calibration=text, out=out, recipe="channels", params=0.8, samples=pieces
    )
    for stage, scores in metrics["stages"].items():
        print(f"{stage:12} perplexity {scores['perplexity']:.1f}")
    print(generate(Path(out) / "model", "This film", tokens=8).text)


if __name__ == "__main__":
    main(*sys.argv[1:])
