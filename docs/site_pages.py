"""Pages of the site that are made from the code, and files that lie elsewhere (a hook of mkdocs).

Links lead from file to file of the repository, so that they work there, too: here each becomes the
page that the file is.
"""

import inspect
import json
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File
from site_measured import figures, measured

ROOT = Path(__file__).parents[1]
# File of the repository -> page of the site; those in docs/ keep their names.
_PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "CONTRIBUTING.md",
    "CHANGELOG.md": "CHANGELOG.md",
    "tests/CASES.md": "CASES.md",
    "benchmarks/results/patterns.png": "patterns.png",
}
_MADE = {"examples": "examples.md", "examples/compress.ipynb": "examples.md"}
_LINK = re.compile(r"(\]\()([^)#:\s]+)(#[^)\s]*)?(\))")


def on_files(files: Any, config: Any) -> Any:
    for source, page in _PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    made = {
        "examples.md": _examples(),
        "methods.md": _methods(),
        "reference.md": _reference("lpaf_jax", "The Python interface"),
        "linalg.md": _reference("lpaf_jax.linalg", "`lpaf_jax.linalg`"),
    }
    for page, text in made.items():
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    sources = {site: repository for repository, site in _PAGES.items()}
    source = sources.get(page.file.src_uri, f"docs/{page.file.src_uri}")

    def led(found: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), found[2]))
        site = _PAGES.get(target) or _MADE.get(target) or target.removeprefix("docs/")
        return f"{found[1]}{site}{found[3] or ''}{found[4]}"

    return _LINK.sub(led, markdown)


def _examples() -> str:
    parts = ["# Examples\n\nEach is run by the tests.\n"]
    for file in sorted((ROOT / "examples").glob("*.py")):
        text = file.read_text(encoding="utf-8")
        parts.append(f"## {file.name}\n\n```python\n{text}```\n")
    for file in sorted((ROOT / "examples").glob("*.ipynb")):
        cells = json.loads(file.read_text(encoding="utf-8"))["cells"]
        code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
        text = "\n\n".join(code)
        parts.append(f"## {file.name}\n\nA notebook.\n\n```python\n{text}\n```\n")
    return "\n".join(parts)


def _methods() -> str:
    from lpaf_jax.cli.recipes import needs
    from lpaf_jax.importance import IMPORTANCES
    from lpaf_jax.ranks import RANK_RULES
    from lpaf_jax.recipes import RECIPES, make_recipe, summary
    from lpaf_jax.report.markup import formula
    from lpaf_jax.solvers import SOLVERS

    parts = [
        "# Methods\n",
        "Which to take: `lpaf-plus` for a classifier or a regression with labels; `kfac-svd` where "
        "nothing is to be trained but gradients can be had; `channels` for a decoder by a text "
        "alone, `width-pruning` where the result must load without code of ours; `drone` where "
        "gradients cannot be afforded. [Results](results.md) has what was measured.\n",
        "Below each method stand its stages by the models that they leave, with the settings in "
        "which they differ from their defaults; `lpaf compress --recipe NAME --help` shows all. Then "
        "follows what `benchmarks/results/` holds of it, with the command and the state of the code "
        "that gave it. Figures of different commands differ in training, too.\n",
    ]
    found = figures()
    for name in RECIPES:
        recipe = make_recipe(name)
        parts.append(f"## {name}\n\n{formula(summary(name))}\n\nNeeds {needs(recipe)}.\n")
        for step, stage in recipe.steps():
            usual = type(stage)().settings()
            own = {key: x for key, x in stage.settings().items() if x != usual[key]}
            said = ", ".join(f"`{key.replace('_', '-')} {x}`" for key, x in own.items())
            parts.append(f"- `{step}`: {type(stage).__name__}{f' with {said}' if said else ''}")
        parts += ["", measured(name, found)]
    tables = {"Importances": IMPORTANCES, "Solvers": SOLVERS, "Rank rules": RANK_RULES}
    for title, registry in tables.items():
        parts.append(f"## {title}\n\n| name | what it does | source |\n|---|---|---|")
        for name, each in registry.items():
            source = getattr(each, "source", "")
            parts.append(f"| `{name}` | {_cell(formula(each.summary))} | {_cell(source)} |")
        parts.append("")
    return "\n".join(parts)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _reference(module: str, title: str) -> str:
    from importlib import import_module

    owner = import_module(module)
    names = getattr(owner, "__all__", None) or [n for n in vars(owner) if not n.startswith("_")]
    found = {name: getattr(owner, name) for name in names}
    places = [
        f"{each.__module__}.{each.__qualname__}"
        for each in found.values()
        if not inspect.ismodule(each) and hasattr(each, "__qualname__")
    ]
    intro = (inspect.getdoc(owner) or "").strip()
    return "\n\n".join([f"# {title}", intro, *(f"::: {place}" for place in places)])
