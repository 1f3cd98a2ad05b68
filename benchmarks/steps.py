"""What each step of LPAF is worth, one question at a time: validation chooses, test is read once.

    python benchmarks/steps.py --list                # the questions, and how many cells each has
    python benchmarks/steps.py ridge ranks           # some of them
    python benchmarks/steps.py                       # all, some hours on two cores

Every question is a call of `lpaf compare` with recipes of its own. All share one folder, and in it
one fine-tuned model and each pruned one, and go on where they were if they are killed. `--show`
prints what is there. Step 2 is asked before any tuning, where nothing else makes up for a cut.
"""

import argparse
import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from provenance import provenance

from lpaf_jax.checkpoints import load_model
from lpaf_jax.core.files import read_json, write_json
from lpaf_jax.importance import Importance, Subject, Weighting, gradient_moments
from lpaf_jax.importance.base import register_importance
from lpaf_jax.importance.gradients import shrunk
from lpaf_jax.models.functional import Batch, as_function, parameters
from lpaf_jax.recipes import Recipe
from lpaf_jax.runs.comparison import compare
from lpaf_jax.stages import Factorize, FineTune, MixedTune, Prune, Stage, Tune
from lpaf_jax.stages.base import Context

RESULTS = Path(__file__).parent / "results" / "steps.json"
TEXTS = Path("runs/transfer.txt")
HALF = Prune(kept=0.5)
BEST = Factorize(importance="two-sided", solver="metric", ranks="loss")
PLAIN = Factorize(importance="none", solver="plain", ranks="uniform")
PAPER = Factorize()


class Question(NamedTuple):
    """Recipes that differ in one thing, and the sizes at which they are tried.

    The first recipe is the one that the others are tested against, answer by answer.
    """

    about: str
    recipes: list[Recipe]
    params: tuple[float, ...]


def two_sided(name: str, inputs: float, gradients: float, own_labels: bool = False) -> str:
    """Register the two-sided metric with other shares of its mean diagonal mixed in."""

    def right(subject: Subject) -> dict[str, Weighting]:
        assert subject.loss is not None
        paths = [path.removesuffix(".kernel") for path in subject.weights]
        batches = answered(subject) if own_labels else subject.batches()
        found = gradient_moments(subject.model, batches, subject.loss, paths)
        return {f"{p}.kernel": Weighting(right=shrunk(m, gradients)) for p, m in found.items()}

    def left(weighting: Weighting, moment: Any) -> Weighting:
        return weighting._replace(left=shrunk(moment.second, inputs))

    needs: Any = frozenset({"loss", "inputs"})
    sides: Any = frozenset({"left", "right"})
    return register_importance(Importance(name, "by both sides", sides, needs, right, left)).name


def answered(subject: Subject) -> Iterable[Batch]:
    """The batches with labels drawn from the model's own answers: those of the true Fisher."""
    forward, params = jax.jit(as_function(subject.model)), parameters(subject.model)
    for i, batch in enumerate(subject.batches()):
        drawn = jax.random.categorical(jax.random.key(i), forward(params, {}, batch))
        yield {**batch, "labels": np.asarray(drawn)}


def recipe(*stages: Stage, name: str) -> Recipe:
    return Recipe(FineTune(), *stages, name=name)


def on_both(cut: Factorize, name: str) -> list[Recipe]:
    """A cut of the fine-tuned and of the pruned model."""
    return [recipe(cut, name=name), recipe(HALF, cut, name=f"{name}, pruned")]


def ridge() -> Question:
    fisher = Factorize(importance="fisher", solver="elementwise")
    adam = Factorize(importance="adam", solver="elementwise")
    found = []
    with_it = dataclasses.replace
    for value in (0.0, 0.03, 0.3, 3.0):
        found.append(recipe(with_it(fisher, ridge=value), name=f"fisher, exact, ridge {value:g}"))
        name = f"adam, exact, pruned, ridge {value:g}"
        found.append(recipe(HALF, with_it(adam, ridge=value), name=name))
    return Question("the ridge of the exact element-wise solver", found, (0.25,))


def ranks() -> Question:
    found = []
    for rule in ("uniform", "loss", "measured"):
        found += on_both(dataclasses.replace(BEST, ranks=rule), f"two-sided, {rule}")
    sizes = (0.25, 0.1, 0.04)
    return Question("ranks: as large, by the loss, by what one cut was seen to do", found, sizes)


def moments() -> Question:
    found = [recipe(BEST, name="two-sided, loss")]
    for inputs, gradients in ((0.0, 0.01), (0.02, 0.01), (0.02, 0.5), (0.2, 0.1)):
        name = two_sided(f"two-sided-{inputs:g}-{gradients:g}", inputs, gradients)
        found.append(recipe(dataclasses.replace(BEST, importance=name), name=name))
    for count in (10, 160):
        cut = dataclasses.replace(BEST, moment_batches=count)
        found.append(recipe(cut, name=f"two-sided, {count} batches"))
    name = two_sided("two-sided-own-labels", 0.02, 0.1, own_labels=True)
    found.append(recipe(dataclasses.replace(BEST, importance=name), name=name))
    return Question("shrinkage, number of batches and labels of the moments", found, (0.1,))


@dataclasses.dataclass(frozen=True)
class ByFineTuned(Factorize):
    """The cut of the pruned model by what the fine-tuned one says of errors."""

    def subject(self, model: nnx.Module, context: Context) -> Subject:
        fine_tuned = load_model(context.before_last(Prune))
        return super().subject(model, context)._replace(model=fine_tuned)


def whose() -> Question:
    by_other = ByFineTuned(**vars(BEST))
    found = []
    for kept in (0.5, 0.25):
        for cut, model in ((BEST, "pruned"), (by_other, "fine-tuned")):
            name = f"pruned to {100 * kept:g} %, moments of the {model} model"
            found.append(recipe(Prune(kept=kept), cut, name=name))
    return Question("whose moments weigh the cut of a pruned model", found, (0.16, 0.04))


def pruning() -> Question:
    found = after_pruning(BEST, "two-sided, loss")
    return Question("pruning while fine-tuning, then the best cut", found, (0.16, 0.04))


def figure_three() -> Question:
    found = after_pruning(PLAIN, "svd")
    return Question("pruning while fine-tuning, then plain SVD", found, (0.16,))


def after_pruning(cut: Factorize, name: str) -> list[Recipe]:
    # Trained as long as what is pruned, with all of its weights.
    whole = Prune(prune_from="pretrained", kept=1.0, prune_epochs=3.0)
    found = [recipe(whole, cut, name=f"not pruned, {name}"), recipe(cut, name=name)]
    for criterion in ("sensitivity", "first-order", "magnitude"):
        # Not 0.3, the default of the stage, in the place of which the preset has its own.
        for kept in (0.5, 0.1) if criterion == "magnitude" else (0.5, 0.25, 0.1):
            step: Any = {"criterion": criterion, "kept": kept, "prune_epochs": 3.0}
            prune = Prune(prune_from="pretrained", **step)
            found.append(recipe(prune, cut, name=f"{criterion} to {100 * kept:g} %, {name}"))
    return found


def tuning() -> Question:
    # Three epochs of two passes are six of one.
    def mixed(**changes: Any) -> MixedTune:
        return MixedTune(tune_epochs=3.0, **changes)

    teacher: dict[str, Any] = {"distil": 1.0, "temperature": 2.0}
    kinds = {
        "mixed": mixed(),
        "two passes": mixed(p_init=0.0),
        "two passes, not held together": mixed(p_init=0.0, consistency=0.0),
        "mixed, teacher": mixed(**teacher),
        "two passes, teacher": mixed(p_init=0.0, **teacher),
        "mixed with the fine-tuned": mixed(mix_with="finetuned"),
        "mixed, lr 5e-5": mixed(tune_lr=5e-5),
        "two passes, lr 5e-5": mixed(p_init=0.0, tune_lr=5e-5),
        "mixed, not held together": mixed(consistency=0.0),
        "mixed to the end": mixed(p_end=1.0),
        "mixed, p from 0.8": mixed(p_init=0.8),
    }
    of_paper = ("mixed", "two passes", "two passes, not held together")
    found = [recipe(HALF, PAPER, kinds[name], name=f"lpaf's cut, {name}") for name in of_paper]
    found += [recipe(HALF, BEST, each, name=f"two-sided, {name}") for name, each in kinds.items()]
    return Question("mixed-rank tuning against as many steps and passes without", found, (0.16,))


def taught(**changes: Any) -> Tune:
    """Tuning by the dense model's answers and hidden states."""
    return dataclasses.replace(Tune(distil=1.0, distil_hidden=1.0, temperature=2.0), **changes)


def others(count: int) -> dict[str, Any]:
    """So many texts beside the task's own."""
    if not TEXTS.is_file():
        raise SystemExit(f"{TEXTS} is missing: python benchmarks/sentences.py makes it")
    return {"transfer": TEXTS, "transfer_samples": count}


def texts() -> Question:
    kinds = {
        "own texts, 2.6 epochs": taught(tune_epochs=2.61),
        "own texts, 6 epochs": taught(tune_epochs=6.0),
        "own texts, 6 epochs, lr 1e-4": taught(tune_epochs=6.0, tune_lr=1e-4),
        "own texts, 10 epochs, lr 1e-4": taught(tune_epochs=10.0, tune_lr=1e-4),
        "own texts, 20 epochs, lr 1e-4": taught(tune_epochs=20.0, tune_lr=1e-4),
        # As many steps as the six epochs of 6,000 texts.
        "as many others, lr 1e-4": taught(tune_epochs=3.0, tune_lr=1e-4, **others(6_000)),
    }
    found = [recipe(HALF, BEST, tune, name=name) for name, tune in kinds.items()]
    return Question("the task's own texts or others beside them", found, (0.1, 0.04))


def plus() -> Question:
    usual = taught(**others(20_000))
    variants = {
        "answers alone": dataclasses.replace(usual, distil_hidden=0.0),
        "lr 1e-4": dataclasses.replace(usual, tune_lr=1e-4),
        "lr 4e-4": dataclasses.replace(usual, tune_lr=4e-4),
        # As many steps: 0.6 epochs of 26,000 texts are 2.61 of the task's own 6,000.
        "no transfer": dataclasses.replace(usual, transfer=None, tune_epochs=2.61),
    }
    same = {f.name: getattr(usual, f.name) for f in dataclasses.fields(usual)}
    measured = dataclasses.replace(BEST, ranks="measured")
    found = [
        recipe(HALF, BEST, usual, name="plus"),
        recipe(BEST, usual, name="plus, not pruned"),
        # Two passes in each step: half as many steps.
        recipe(HALF, BEST, MixedTune(**same | {"tune_epochs": 0.3}), name="plus, mixed"),
        recipe(HALF, measured, usual, name="plus, measured"),
        *(recipe(HALF, BEST, tune, name=f"plus, {name}") for name, tune in variants.items()),
    ]
    return Question("what the best of all three is made of", found, (0.1,))


QUESTIONS: dict[str, Callable[[], Question]] = {
    "ranks": ranks,
    "moments": moments,
    "ridge": ridge,
    "whose": whose,
    "pruning": pruning,
    "figure-3": figure_three,
    "tuning": tuning,
    "plus": plus,
    "texts": texts,
}


def keep(found: dict[str, Any], question: Question) -> None:
    """Write the cells of a question, what made them and their p beside those of the others."""
    held = read_json(RESULTS) if RESULTS.is_file() else {"recipes": {}, "rows": []}

    def key(row: dict[str, Any]) -> tuple[Any, ...]:
        return row["recipe"], row["params"], row["seed"]

    chances = {key(pair): pair["p"] for pair in found["paired"]}
    rows = {key(row): row for row in held["rows"]}
    against, *others = (each.name for each in question.recipes)
    for row in found["rows"]:
        if row["recipe"] in (against, *others):
            rows[key(row)] = row | provenance()
            if key(row) in chances:
                rows[key(row)] |= {"against": against, "p": chances[key(row)]}
    facts = {name: found[name] for name in ("settings", "versions", "threads")}
    recipes = held["recipes"] | found["recipes"]
    write_json(RESULTS, {**facts, "recipes": recipes, "rows": list(rows.values())})


def show(name: str, question: Question, rows: list[dict[str, Any]]) -> None:
    """What is there of a question, as Markdown; the best on validation first."""
    names = {each.name for each in question.recipes}
    for share in question.params:
        of = [r for r in rows if r["recipe"] in names and r["params"] == share]
        if not of:
            continue
        print(f"\n{name}: {question.about}, {100 * share:g} %, {dense(of)}\n")
        print("| recipe | validation | divergence | test (p) | before tuning | seconds |")
        print("|---|---|---|---|---|---|")
        for row in sorted(of, key=lambda r: -r["validation"]):
            valid, test, before = (
                f"{100 * row[key]:.2f}" for key in ("validation", "final", "before_tuning")
            )
            if "p" in row:
                test += f" ({row['p']:.3f} against {row['against']})"
            cells = [row["recipe"], valid, f"{row['divergence']:.4f}", test, before]
            # None of a cell that took over what another one had made before it was killed.
            cells.append("" if row["seconds"] is None else f"{row['seconds']:.0f}")
            print(f"| {' | '.join(cells)} |")


def dense(rows: list[dict[str, Any]]) -> str:
    return "dense " + " and ".join(f"{100 * x:.2f}" for x in {row["dense"] for row in rows})


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("questions", nargs="*", metavar="QUESTION", help=", ".join(QUESTIONS))
    parser.add_argument("--list", action="store_true", help="say what there is, run nothing")
    parser.add_argument("--show", action="store_true", help="print what is there, run nothing")
    parser.add_argument("--only", nargs="+", help="the first recipe, and those named")
    parser.add_argument(
        "--params", type=float, nargs="+", help="sizes, instead of all that are asked"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--work", type=Path, default=Path("runs/steps"))
    args = parser.parse_args()
    if unknown := set(args.questions) - QUESTIONS.keys():
        parser.error(f"no question {', '.join(unknown)}: there are {', '.join(QUESTIONS)}")
    asked = {name: QUESTIONS[name]() for name in args.questions or QUESTIONS}
    for name, question in asked.items():
        if args.list:
            cells = len(question.recipes) * len(question.params)
            print(f"{name}: {question.about} ({cells} cells)")
            continue
        if args.params:
            question = question._replace(params=tuple(args.params))
        if args.only:
            first, *others = question.recipes
            chosen = [each for each in others if each.name in args.only]
            question = question._replace(recipes=[first, *chosen])
        if not args.show:
            found = compare(
                "minilm",
                task="rotten_tomatoes",
                out=args.work,
                recipes=question.recipes,
                params=question.params,
                seeds=args.seeds,
                preset="quick",
                keep="all",
                baseline=question.recipes[0].name,
            )
            keep(found, question)
        show(name, question, read_json(RESULTS)["rows"])


if __name__ == "__main__":
    main()
