"""Adapters (LoRA) in every part of compressing a decoder, four bits beside fewer numbers: one page.

    python benchmarks/healing.py                  # three hours on two cores; goes on where it was
    python benchmarks/healing.py --params 0.8     # one size; 1 is the dense model with adapters
    python benchmarks/healing.py --params 0.8 --memory  # peak memory alone, by half of the windows
    python benchmarks/healing.py --show           # print what is there, run nothing

SmolLM2-135M and reviews of IMDb: 64 windows of 256 tokens to learn from, by the next token alone,
the same number of steps in every row, 16 of 4 windows, the dense model's among them. Judged by
other reviews. What adapters do: estimate Fisher's rows (`sketch`), train while a cut gets deeper
(`during the cut`), say which heads and channels go (`LoRAPrune`), or heal what was cut: over
matrices as they are or in four bits; both factors of a layer together, or one after the other as in
SVD-LLM (`in turn`). The page is a comparison, with figures in four bits as well: see
runs/healing/comparison/compare.html.
"""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from provenance import provenance

from lpaf_jax.core.files import read_json, write_json
from lpaf_jax.data import load_task
from lpaf_jax.recipes import Recipe
from lpaf_jax.report.compare_facts import Group, groups
from lpaf_jax.runs.comparison import compare
from lpaf_jax.stages import Compensate, Factorize, FineTune, PruneGroups, Stage, Tune

RESULTS = Path(__file__).parent / "results" / "healing.json"
MEMORY = RESULTS.with_name("healing_memory.json")
WINDOWS, LENGTH, BATCH = 64, 256, 4
# Every row has as many steps; adapters that train before the last stage share them with it.
EPOCHS, BEFORE = 1.0, 0.5
RANK, LORA_LR, FULL_LR = 8, 1e-3, 1e-4


def recipes() -> list[Recipe]:
    rows: dict[str, Any] = {"solver": "metric", "ranks": "share"}
    two_sided = Factorize(importance="two-sided", solver="metric", ranks="loss")
    lora = Tune(lora=RANK, tune_lr=LORA_LR, tune_epochs=EPOCHS)
    four_bits = dataclasses.replace(lora, lora_base="nf4")
    in_turn = dataclasses.replace(lora, lora_order="in-turn")
    rest = Tune(lora=RANK, tune_lr=LORA_LR, tune_epochs=EPOCHS - BEFORE)
    every = Tune(tune_lr=FULL_LR, tune_epochs=EPOCHS)
    adapters: dict[str, Any] = {"lora_epochs": BEFORE, "lora_lr": LORA_LR}
    during = Compensate(importance="fisher-rows", **rows, lora=RANK, **adapters, truncations=4)
    groups_by = PruneGroups(prune_lora=RANK, **adapters, mask_every=1)
    plain = Factorize(importance="none", solver="plain", ranks="share")
    ways: list[tuple[str, Stage, Tune]] = [
        ("plain SVD, LoRA", plain, lora),
        ("Fisher rows, LoRA", Factorize(importance="fisher-rows", **rows), lora),
        ("sketch of them, LoRA", Factorize(importance="lora-sketch", **rows), lora),
        ("Fisher rows, LoRA during the cut", during, rest),
        ("LoRAPrune, LoRA", groups_by, rest),
        ("two-sided, LoRA", two_sided, lora),
        ("two-sided, LoRA in turn", two_sided, in_turn),
        ("two-sided, LoRA over NF4", two_sided, four_bits),
        ("two-sided, all weights", two_sided, every),
    ]
    return [Recipe(FineTune(finetune_epochs=0), cut, tune, name=name) for name, cut, tune in ways]


def baselines() -> list[Recipe]:
    """The dense model, adapted in as many steps: what learning the domain does by itself."""
    whole = Factorize(importance="none", solver="plain", ranks="share")
    lora = Tune(lora=RANK, tune_lr=LORA_LR, tune_epochs=EPOCHS)
    ways = {"dense, LoRA": lora, "dense, LoRA over NF4": dataclasses.replace(lora, lora_base="nf4")}
    return [Recipe(FineTune(finetune_epochs=0), whole, tune, name=n) for n, tune in ways.items()]


def reviews(work: Path) -> Path:
    """Some of each split of IMDb, one to a paragraph: as a text it is split in the same way."""
    work.mkdir(parents=True, exist_ok=True)
    file = work / "reviews.txt"
    splits = load_task("imdb")
    parts = (splits.train.texts[:80], splits.validation.texts[:12], splits.test.texts[:30])
    texts = [" ".join(text.split()) for part in parts for text in part]
    file.write_text("\n\n".join(texts) + "\n", encoding="utf-8")
    return file


def show(found: dict[str, Any]) -> None:
    """As Markdown."""
    print("| kept | | before tuning | final | bytes | in NF4 | bytes | seconds | memory |")
    print("|---|---|---|---|---|---|---|---|---|")

    def line(kept: str, name: str, of: Group, end: str, scores: list[float | None]) -> None:
        score, size = of.in_nf4(end) or (float("nan"), 0)
        cells = [kept, name, *("" if x is None else f"{x:.1f}" for x in scores)]
        whole = of.mean("bytes" if end == "final" else "bytes_dense") or 0
        cells += [f"{whole / 1e6:.0f} MB", f"{score:.1f}", f"{size / 1e6:.0f} MB"]
        if end == "final":
            cells.append(f"{of.mean('seconds') or 0:.0f}")
            memory = of.mean("memory")
            cells.append("" if memory is None else f"{memory / 2**30:.1f} GiB")
        print(f"| {' | '.join(cells)} |")

    every = [of for size in groups(found).values() for of in size]
    line("100 %", "dense", every[0], "dense", [None, every[0].mean("dense")])
    for of in every:
        scores = [of.mean("before_tuning"), of.score]
        line(f"{100 * of.params:g} %", of.recipe, of, "final", scores)


def show_memory(found: dict[str, Any]) -> None:
    """As Markdown."""
    print("| kept | | memory |")
    print("|---|---|---|")
    for row in found["rows"]:
        print(f"| {100 * row['params']:g} % | {row['recipe']} | {row['memory'] / 2**30:.1f} GiB |")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--params", type=float, nargs="+", default=[1.0, 0.8, 0.6])
    names = [made.name for made in recipes()]
    parser.add_argument(
        "--rows", nargs="+", choices=names, default=names, metavar="ROW", help="but the dense ones"
    )
    parser.add_argument("--work", type=Path, default=Path("runs/healing"))
    parser.add_argument("--memory", action="store_true", help="peak memory alone, in less time")
    parser.add_argument("--show", action="store_true", help="print what is there, run nothing")
    args = parser.parse_args()
    results = MEMORY if args.memory else RESULTS
    if not args.show:
        # What is held at once does not grow with the number of windows or steps.
        windows = WINDOWS // 2 if args.memory else WINDOWS
        chosen: dict[str, Any] = {"limit": windows, "length": LENGTH, "batch": BATCH}
        chosen["nf4"] = not args.memory
        task = reviews(args.work)
        out = args.work / ("memory" if args.memory else "comparison")
        for share in args.params:
            asked = [each for each in recipes() if each.name in args.rows]
            made = baselines() if share == 1 else asked
            found = compare("smollm2", task=task, out=out, recipes=made, params=[share], **chosen)
            write_json(results, found | provenance())
    (show_memory if args.memory else show)(read_json(results))


if __name__ == "__main__":
    main()
