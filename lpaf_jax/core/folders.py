"""Where the models of a run lie, and which of them a person means."""

from pathlib import Path
from typing import Any

from lpaf_jax.core.errors import LpafError
from lpaf_jax.core.files import read_json


def stage_folder(run: Path, stage: str) -> Path:
    """Where the model after `stage` lies in the folder of a run, whether it is there or not."""
    return run / ("model" if stage == "final" else f"stages/{stage}")


def model_folder(folder: Path, stage: str = "final") -> Path:
    """The folder of the model after `stage` of the run in `folder`; of `folder`, if it is a model.

    Args:
        folder: of a run or of a model.
        stage: dense, final, or one in between; a model folder is its own final stage.

    Raises:
        LpafError: there is no such folder or stage.
    """
    if not folder.is_dir():
        amiss = "is not a folder" if folder.exists() else "does not exist"
        raise LpafError(f"{folder} {amiss}: name the --out folder of a run, or a model")
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        raise LpafError(
            f"{folder} is a PEFT adapter, not a model: merge it into its base model (lpaf export "
            f"{folder} --format merged --out NEW) and use the result"
        )
    place = stage_folder(folder, stage)
    if (folder / "config.json").is_file():
        if stage != "final":
            raise LpafError(
                f"{folder} is a model and has no stages: leave --stage {stage} out, or name the "
                "--out folder of a run"
            )
        place = folder
    if not (place / "config.json").is_file():
        kept = sorted(p.parent.name for p in folder.glob("stages/*/config.json"))
        kept += ["final"] if (folder / "model" / "config.json").is_file() else []
        finished = (folder / "metrics.json").is_file() and kept == ["final"]
        hint = "; the run kept only the final one (--keep final)" if finished else ""
        if (folder / "settings.json").is_file() and not (folder / "metrics.json").is_file():
            hint = "; this run has not finished, and the command that began it resumes it"
        raise LpafError(
            f"{folder} has no model of stage {stage!r}; it has "
            f"{', '.join(kept) if kept else 'none'}{hint}"
        )
    return place


def run_of(place: Path) -> tuple[Path, str] | None:
    """The folder of the run that the model in `place` belongs to, and its stage; None if alone."""
    place = place.absolute()
    for run, stage in ((place.parent, "final"), (place.parent.parent, place.name)):
        if stage_folder(run, stage) == place and (run / "settings.json").is_file():
            return run, stage
    return None


def run_record(run: Path, name: str) -> dict[str, Any]:
    """What `name`, settings.json or metrics.json, of a run says; empty where there is none.

    Raises:
        LpafError: it is damaged.
    """
    path = run / name
    if not path.is_file():
        return {}
    value = read_json(path)
    if not isinstance(value, dict):
        raise LpafError(f"{path} is not a JSON object: it was not written by lpaf")
    return value
