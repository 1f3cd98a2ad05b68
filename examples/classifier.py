r"""Compress a classifier, look at it, and ask it.

python examples/classifier.py                              # MiniLM on Rotten Tomatoes
python examples/classifier.py path/to/bert reviews.csv     # columns sentence and label
"""

import sys
from pathlib import Path

import lpaf_jax
from lpaf_jax.evaluation.serve import load_predictor


def main(model: str = "minilm", task: str = "rotten_tomatoes", out: str = "runs/example") -> None:
    # What was begun there goes on; what is finished is not done again.
    metrics = lpaf_jax.compress(
        model, task=task, out=out, recipe="lpaf-plus", params=0.25, preset="quick", length=32
    )
    for stage, scores in metrics["stages"].items():
        print(f"{stage:12} {scores['accuracy']:.1%}")
    print(f"{metrics['total_params_ratio']:.1%} of all numbers are left")

    predictor = load_predictor(Path(out))
    for said in predictor.predict(["a moving and funny film", "a waste of two hours"]):
        print(said.text, "->", said.answer)


if __name__ == "__main__":
    main(*sys.argv[1:])
