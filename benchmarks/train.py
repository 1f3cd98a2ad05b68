r"""Training steps on MiniLM beside the same work in PyTorch, the loop around them, a run's cost.

    python benchmarks/train.py
    python benchmarks/train.py --dtype bfloat16 --batch 256 --peak-tflops 989 --malloc plain \
        --out benchmarks/results/train_bfloat16.json

Two classes, random tokens without padding, dropout 0.1, AdamW with clipping and warm-up. JAX runs
the steps that `lpaf compress` runs; PyTorch plain transformers, with factorized layers of two
linear ones, and a mixed-rank layer that evaluates both branches as the paper's formula says.

Each framework has a process to itself, with the malloc settings of `lpaf` (the main figures)
and without. Rows that are compared with one another lie in one group, and those of one framework
in one process, where they take turns; the processes of a group follow one another, in another
order each round. A figure is the median over windows of ten steps, as many as there are between
two updates of the pruning masks. `--table` prints what the JSON holds. What an LPAF run costs
beside its fine-tuning is read from a finished run of `lpaf` (`--run`) and computed from ms a step.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

from provenance import provenance
from train_common import DRAW, Job

from lpaf_jax.checkpoints import resolve_model
from lpaf_jax.cli.allocator import SETTINGS
from lpaf_jax.core.files import read_json, write_json
from lpaf_jax.core.machine import usable_cpus
from lpaf_jax.linalg import rank_for_ratio
from lpaf_jax.runs.settings import PRESETS, make_settings

HERE = Path(__file__).parent
GROUPS = ("host", "dense", "25", "50", "16")
TITLES = {
    "dense/fine-tune": "fine-tune, dense",
    "dense/prune": "prune, masks updated every 10 steps",
    "50/fine-tune": "fine-tune, factors of 50 %",
    "25/fine-tune": "fine-tune, factors of 25 %",
    "16/fine-tune": "fine-tune, factors of 16 %",
    "25/two-pass": "two passes, factors of 25 % (tuning, once p is 0)",
    "25/mixed": f"mixed-rank, 25 %, p = {DRAW}",
    "25/mixed-batched": f"mixed-rank, 25 %, p = {DRAW}, both passes as one batch",
    "25/mixed-at-0": "mixed-rank, 25 %, p = 0, the dense weights still there",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--groups", nargs="+", choices=GROUPS, default=list(GROUPS))
    parser.add_argument("--lengths", type=int, nargs="+", default=[32, 64])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--malloc", nargs="+", choices=["fast", "plain"], default=["fast", "plain"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--windows", type=int, default=2, help="of a row, length and round")
    parser.add_argument("--steps", type=int, default=10, help="of a window")
    parser.add_argument("--peak-tflops", type=float, help="of the device, for its utilisation")
    parser.add_argument("--run", type=Path, default=Path("runs/lpaf"), help="a finished run")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "train.json")
    parser.add_argument("--table", action="store_true", help="print the results, measure nothing")
    args = parser.parse_args()
    if not args.table:
        measure(args)
    print_table(read_json(args.out))


def measure(args: argparse.Namespace) -> None:
    chosen = ("groups", "lengths", "batch", "dtype", "malloc", "rounds", "windows", "steps")
    table: dict[str, Any] = {
        **provenance(),
        "settings": {name: getattr(args, name) for name in chosen},
        "peak_tflops": args.peak_tflops,
        "machine": {"processor": processor(), "python": platform.python_version()},
        "rows": {},
        "left_out": [],
    }
    if (args.run / "metrics.json").is_file():
        metrics = read_json(args.run / "metrics.json")
        epochs = {k: v for k, v in metrics["settings"].items() if k.endswith("_epochs")}
        kept = {name: metrics[name] for name in ("task", "encoder_params_ratio", "seconds")}
        table["run"] = kept | epochs | {"jax": metrics["versions"]["jax"]}
    folder, where = resolve_model("minilm"), None
    workers = [f"{side} {malloc}" for malloc in args.malloc for side in ("jax", "torch")]
    for turn in range(args.rounds):
        for group in sorted(args.groups, key=GROUPS.index):
            for worker in workers[turn % len(workers) :] + workers[: turn % len(workers)]:
                if group == "host" and worker.startswith("torch"):
                    continue
                job = Job(
                    group,
                    rank_of(group, folder),
                    str(folder),
                    args.lengths,
                    args.batch,
                    args.steps,
                    args.windows,
                    args.dtype,
                    usable_cpus(),
                    where,
                )
                print(f"round {turn + 1}: {group} {worker}", file=sys.stderr, flush=True)
                told = ask(worker, job)
                where = told.get("platform", where)
                enter(table, told, worker, group, str(turn + 1))
                write_json(args.out, table)


def rank_of(group: str, folder: Path) -> int | None:
    if not group.isdigit():
        return None
    config = read_json(folder / "config.json")
    m, n = config["hidden_size"], config["intermediate_size"]
    return rank_for_ratio([(m, m)] * 4 + [(m, n), (n, m)], int(group) / 100)


def ask(worker: str, job: Job) -> dict[str, Any]:
    """What a process of its own measures; `missing` says why there is nothing."""
    side, malloc = worker.split()
    others = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    done = subprocess.run(
        [sys.executable, str(HERE / f"train_{side}.py"), json.dumps(job._asdict())],
        env=others | (SETTINGS if malloc == "fast" else {}),
        capture_output=True,
        text=True,
    )
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    print(done.stderr[-2000:], file=sys.stderr)
    lines = done.stderr.strip().splitlines() or ["no message"]
    reason = next((line for line in reversed(lines) if "Error" in line), lines[-1])
    return {"missing": f"it ended with {done.returncode}: {reason}"}


def enter(table: dict[str, Any], told: dict[str, Any], worker: str, group: str, turn: str) -> None:
    """Add a round of a group to the table."""
    if "missing" in told:
        note = f"left out: {group}, {worker}: {told['missing']}"
        print(note, file=sys.stderr)
        table["left_out"] += [note] if note not in table["left_out"] else []
        return
    table["machine"] |= told["versions"] | {
        f"{worker.split()[0]}_{name}": told[name] for name in ("device", "threads")
    }
    for kind, by_length in told["rows"].items():
        for length, found in by_length.items():
            cells = table["rows"].setdefault(f"{group}/{kind}", {}).setdefault(length, {})
            cell = cells.setdefault(worker, {"rounds": {}})
            cell["rounds"][turn] = found.pop("ms")
            cell |= found
            every = [ms for ms_of_round in cell["rounds"].values() for ms in ms_of_round]
            cell |= {"ms": median(every), "min": min(every), "max": max(every)}
            sizes = {c["parameters"] for c in cells.values() if "parameters" in c}
            if len(sizes) > 1:
                raise SystemExit(f"{group}/{kind}: the models differ, {sizes} parameters")


def print_table(table: dict[str, Any]) -> None:
    """The results as Markdown."""
    machine, settings = table["machine"], table["settings"]
    print(f"{', '.join(f'{k} {v}' for k, v in machine.items())}, commit {table['commit']}")
    print(f"\nms a step (least–most window), {settings['dtype']}, batch {settings['batch']}\n")
    peak = table["peak_tflops"]
    head = ["step", "length", "JAX", "PyTorch", "PyTorch / JAX", "examples/s", "TFLOP/s"]
    head += ["of the peak"] if peak else []
    head += ["JAX, plain malloc", "PyTorch, plain malloc"] if len(settings["malloc"]) > 1 else []
    print(f"| {' | '.join(head)} |\n{'|---' * len(head)}|")
    first = settings["malloc"][0]
    for row, title in TITLES.items():
        for length, cells in table["rows"].get(row, {}).items():
            ours, theirs = cells.get(f"jax {first}"), cells.get(f"torch {first}")
            if ours is None:
                continue
            rate = ours["flops"] / ours["ms"] / 1e9
            line = [title, length, _ms(ours), _ms(theirs), _ratio(theirs, ours)]
            line += [f"{1e3 * settings['batch'] / ours['ms']:.1f}", f"{rate:.3g}"]
            line += [f"{rate / peak:.1%}"] if peak else []
            if len(settings["malloc"]) > 1:
                line += [_ms(cells.get(f"{side} plain")) for side in ("jax", "torch")]
            print(f"| {' | '.join(line)} |")
    print()
    for line in [*costs(table, first), *goals(table, first), *table["left_out"]]:
        print(f"- {line}")


def _ms(cell: dict[str, Any] | None) -> str:
    if cell is None:
        return "–"
    digits = 0 if cell["ms"] >= 100 else 1
    return f"{cell['ms']:.{digits}f} ({cell['min']:.{digits}f}–{cell['max']:.{digits}f})"


def _ratio(above: dict[str, Any] | None, below: dict[str, Any] | None) -> str:
    """The ratio of two medians, and of those of each round the least and the largest."""
    if above is None or below is None:
        return "–"
    both = above["rounds"].keys() & below["rounds"].keys()
    each = [median(above["rounds"][turn]) / median(below["rounds"][turn]) for turn in both]
    spread = f" ({min(each):.2f}–{max(each):.2f})" if each else ""
    return f"{above['ms'] / below['ms']:.2f}{spread}"


def goals(table: dict[str, Any], first: str) -> list[str]:
    """What was aimed at, beside what was seen."""
    found = []

    def compare(text: str, above: Any, below: Any, limit: float) -> None:
        if above is not None and below is not None:
            met = above["ms"] / below["ms"] <= limit
            found.append(f"{text}: {_ratio(above, below)}, {'met' if met else 'missed'}")

    for length in map(str, table["settings"]["lengths"]):

        def cell(row: str, side: str = "jax", length: str = length) -> dict[str, Any] | None:
            return table["rows"].get(row, {}).get(length, {}).get(f"{side} {first}")

        for row in (name for name in TITLES if name.endswith("/fine-tune")):
            text = f"{TITLES[row]}, length {length}: at most 1 × PyTorch"
            compare(text, cell(row), cell(row, "torch"), 1)
        text = f"mixed-rank, length {length}: at most 0.5 × PyTorch"
        compare(text, cell("25/mixed"), cell("25/mixed", "torch"), 0.5)
        text = f"prune, length {length}: at most 1.1 × a fine-tuning step"
        compare(text, cell("dense/prune"), cell("dense/fine-tune"), 1.1)
        text = f"two passes (p = 0), length {length}: at most 2 × one pass over the factors"
        compare(text, cell("25/two-pass"), cell("25/fine-tune"), 2)
        text = f"mixed-rank at p = 0, length {length}: at most 1 × two passes over the factors"
        compare(text, cell("25/mixed-at-0"), cell("25/two-pass"), 1)
    for kind in ("fine-tune", "prune", "mixed"):
        for cells in table["rows"].get(f"host/{kind}", {}).values():
            if f"jax {first}" in cells:
                host = cells[f"jax {first}"]
                text = f"the loop around a {kind} step ({host['leaves']} arrays): less than 2 ms"
                seen = f"{host['ms']:.2f} ({host['min']:.2f}–{host['max']:.2f})"
                found.append(f"{text}: {seen}, {'met' if host['ms'] < 2 else 'missed'}")
    return found


def costs(table: dict[str, Any], first: str) -> list[str]:
    """The cost of an LPAF run in runs of fine-tuning.

    From ms a step, with E epochs of each stage and t of each step at 25 %:

        (E_ft t_ft + E_prune t_prune + E_tune (e t_mixed + (1 − e) t_two)) / (E_ft t_ft)

    e = `p_end` is the share of tuning steps before p is 0. As p falls linearly from `p_init`, the
    p that was measured, a mixed step costs on average (t_mixed(p_init) + t_mixed(0)) / 2.
    """
    found = []
    if "run" in table:
        run, seconds = table["run"], table["run"]["seconds"]
        stages = ("dense", "pruned", "factorized", "final")
        whole = sum(seconds[stage] for stage in stages)
        found.append(
            f"a finished run ({run['task']}, {run['encoder_params_ratio']:.0%}, "
            f"{run['finetune_epochs']}, {run['prune_epochs']} and {run['tune_epochs']} epochs, "
            f"jax {run['jax']}; compilation and validation included): "
            f"{' + '.join(f'{seconds[s]:.0f}' for s in stages)} = {whole:.0f} s, "
            f"{whole / seconds['dense']:.2f} × its fine-tuning"
        )
    needed = ("dense/fine-tune", "dense/prune", "25/mixed", "25/mixed-at-0", "25/two-pass")
    for length in map(str, table["settings"]["lengths"]):
        cells = [table["rows"].get(r, {}).get(length, {}).get(f"jax {first}") for r in needed]
        if None in cells:
            continue
        fine, prune, mixed, last, two = (cell["ms"] for cell in cells if cell)
        told = []
        for preset in PRESETS:
            made = make_settings("minilm", task="rotten_tomatoes", out="runs", preset=preset)
            s = made.method.settings()
            tune = s["p_end"] * (mixed + last) / 2 + (1 - s["p_end"]) * two
            extra = s["prune_epochs"] * prune + s["tune_epochs"] * tune
            told.append(f"{preset} {1 + extra / (s['finetune_epochs'] * fine):.1f} ×")
        found.append(
            f"LPAF at 25 % beside its fine-tuning alone, from ms a step, length {length}: "
            f"{', '.join(told)}"
        )
    return found


def processor() -> str:
    """The model of the processor, where the system tells."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    main()
