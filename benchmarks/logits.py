"""How far rounding moves the logits of a decoder: here, and in PyTorch's float32 and float64.

    python benchmarks/logits.py smollm2 runs/smaller
    python benchmarks/logits.py --show

Windows of reviews, 8 of 128 tokens, through the model of a run (MODEL or its folder), here in
float32 and in transformers in float32 and float64, without our code where the folder has none of
it. What both make of float32 is held against float64.
"""

import argparse
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from provenance import provenance

from lpaf_jax.checkpoints import find_model, load_model
from lpaf_jax.core.files import read_json, write_json
from lpaf_jax.data import load_task, load_tokenizer, text_tokens

RESULTS = Path(__file__).parent / "results" / "logits.json"
WINDOWS, LENGTH = 8, 128


def measure(model: str) -> dict[str, Any]:
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    folder = find_model(Path(model), "final")
    tokens_of = text_tokens(load_tokenizer(folder), load_task("imdb").test.texts)
    stream = np.fromiter(islice(chain.from_iterable(tokens_of), WINDOWS * LENGTH), np.int32)
    ids = stream.reshape(WINDOWS, LENGTH)

    ours = np.asarray(load_model(folder, head="lm")(ids), np.float64)

    packed = {"gguf_file": "model.gguf"} if (folder / "model.gguf").exists() else {}
    own_code = any(folder.glob("*.py"))
    theirs: Any = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=own_code, **packed)
    kept = {}
    for dtype in (torch.float32, torch.float64):
        with torch.no_grad():
            kept[dtype] = theirs.to(dtype).eval()(torch.tensor(ids)).logits.double().numpy()
    single, exact = kept[torch.float32], kept[torch.float64]
    return {
        "model": model,
        "without_our_code": not own_code,
        "largest": float(np.abs(exact).max()),
        "ours_to_float64": float(np.abs(ours - exact).max()),
        "torch_to_float64": float(np.abs(single - exact).max()),
        "ours_to_torch": float(np.abs(ours - single).max()),
        "ours_to_float64_mean": float(np.abs(ours - exact).mean()),
        "torch_to_float64_mean": float(np.abs(single - exact).mean()),
    }


def show(rows: list[dict[str, Any]]) -> None:
    """As Markdown."""
    print("| model | largest | ours to float64: most, mean | torch to float64 | ours to torch |")
    print("|---|---|---|---|---|")
    for row in rows:
        cells = [row["model"], f"{row['largest']:.1f}"]
        for of in ("ours", "torch"):
            most, mean = row[f"{of}_to_float64"], row[f"{of}_to_float64_mean"]
            cells.append(f"{most:.1e}, {mean:.1e}")
        print(f"| {' | '.join(cells)} | {row['ours_to_torch']:.1e} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="*", metavar="MODEL")
    parser.add_argument("--show", action="store_true", help="print what is there, run nothing")
    args = parser.parse_args()
    if not args.show:
        write_json(RESULTS, {"rows": [measure(model) for model in args.models]} | provenance())
    show(read_json(RESULTS)["rows"])


if __name__ == "__main__":
    main()
