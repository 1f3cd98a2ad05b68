r"""A finished run's model served from PyTorch: is it as accurate there as here?

    python benchmarks/served.py runs/quick

Reads the test split of the run's task with the tokenizer of the folder, and labels it once here and
once with `AutoModelForSequenceClassification.from_pretrained(..., trust_remote_code=True)` in a
process that cannot import this package.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from provenance import provenance

from lpaf_jax.core.files import read_json, write_json
from lpaf_jax.data import encode, eval_batches, load_task
from lpaf_jax.evaluation.serve import load_predictor

HERE = Path(__file__).parent
THEIRS = """
import sys
import numpy as np, torch
from transformers import AutoModelForSequenceClassification
assert "lpaf_jax" not in sys.modules and "jax" not in sys.modules
folder, place = sys.argv[1:]
model = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True).eval()
names = ("input_ids", "attention_mask", "token_type_ids")
found, given = [], np.load(f"{place}/given.npz")
with torch.no_grad():
    for i in range(len(given.files) // 3):
        batch = {n: torch.tensor(given[f"{n}{i}"]) for n in names}
        found.append(model(**batch).logits.numpy())
np.save(f"{place}/found.npy", np.concatenate(found))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "served.json")
    args = parser.parse_args()
    metrics = read_json(args.run / "metrics.json")
    settings = metrics["settings"]
    columns = {name: settings[name] for name in ("text_column", "label_column", "pair_column")}
    task = load_task(settings["task"], data=settings["data"], **columns)
    predictor = load_predictor(args.run)
    data = encode(predictor.tokenizer, task.test, predictor.terms.length)
    ours = predictor.logits(data, 32)
    batches = eval_batches(data, 32)
    with tempfile.TemporaryDirectory() as place:
        names = ("input_ids", "attention_mask", "token_type_ids")
        arrays = {f"{n}{i}": batch[n] for i, batch in enumerate(batches) for n in names}
        np.savez(Path(place) / "given.npz", **arrays)
        folder = (args.run / "model").resolve()
        # -I: neither the working directory nor PYTHONPATH shows it this package.
        told = [sys.executable, "-I", "-c", THEIRS, str(folder), place]
        subprocess.run(told, check=True, cwd=place)
        found = np.load(Path(place) / "found.npy")[: len(data)]
    theirs = batches.restore(found)
    result = {
        **provenance(),
        "model": f"{metrics['model']} on {metrics['task']}, {metrics['encoder_params_ratio']:.1%}",
        "examples": len(data),
        "accuracy_of_the_run": metrics["stages"]["final"]["accuracy"],
        "accuracy_here": float(np.mean(ours.argmax(-1) == data.labels)),
        "accuracy_in_pytorch": float(np.mean(theirs.argmax(-1) == data.labels)),
        "answers_that_differ": int(np.sum(ours.argmax(-1) != theirs.argmax(-1))),
        "largest_difference_of_logits": float(np.abs(ours - theirs).max()),
    }
    write_json(args.out, result)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
