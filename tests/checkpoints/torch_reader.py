"""Reads folders as somebody would who has torch and transformers alone; not a test by itself.

    python -I torch_reader.py FOLDER...

Each folder holds `inputs.npz`, the arguments of the model, or `pair.json`, two texts. What was
found goes into `read.npz` and `read.json` beside it.
"""

import importlib.abc
import json
import sys
from pathlib import Path
from typing import Any


class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.split(".")[0] in ("flax", "jax", "jaxlib", "lpaf_jax"):
            raise ModuleNotFoundError(f"{name} is not here")


sys.meta_path.insert(0, Absent())

import numpy as np  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402


def refusal(auto: Any, folder: Path) -> str:
    try:
        auto.from_pretrained(folder)
    except ValueError as error:
        return str(error)
    return ""


def load(auto: Any, folder: Path, **options: Any) -> tuple[Any, dict[str, list[str]]]:
    model, info = auto.from_pretrained(
        folder, trust_remote_code=True, output_loading_info=True, **options
    )
    assert not model.training
    assert not any(p.is_meta for p in (*model.parameters(), *model.buffers()))
    return model, {kind: sorted(map(str, names)) for kind, names in info.items()}


def logits(output: Any) -> np.ndarray:
    if "logits" in output:
        return output.logits.float().numpy()
    return torch.stack([output.start_logits, output.end_logits], -1).float().numpy()


@torch.no_grad()
def read(folder: Path) -> None:
    inputs = {name: torch.tensor(a).long() for name, a in np.load(folder / "inputs.npz").items()}
    auto_map = json.loads((folder / "config.json").read_text())["auto_map"]
    (name,) = (name for name in auto_map if name.startswith("AutoModelFor"))
    with_head, body = getattr(transformers, name), transformers.AutoModel
    facts: dict[str, Any] = {"refusals": {}, "info": {}}
    arrays: dict[str, np.ndarray] = {}

    for auto in (transformers.AutoConfig, with_head, body):
        facts["refusals"][auto.__name__] = refusal(auto, folder)

    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=True)
    model, facts["info"]["head"] = load(with_head, folder)
    facts["ranks"] = {
        path: layer.down.out_features
        for path, layer in model.named_modules()
        if isinstance(layer, torch.nn.Sequential)
    }
    facts["config"] = [type(config).__name__, type(model.config).__name__, config.model_type]
    facts["parameters"] = model.num_parameters()
    embeddings, last = model.get_input_embeddings(), model.get_output_embeddings()
    facts["tied"] = last is not None and last.weight is embeddings.weight
    output = model(**inputs, output_hidden_states=True)
    arrays["logits"], arrays["hidden"] = logits(output), output.hidden_states[-1].numpy()
    if name == "AutoModelForCausalLM":
        for cached in (True, False):
            arrays[f"generated_{cached}"] = model.generate(
                inputs["input_ids"][:1, :3],
                max_new_tokens=6,
                min_new_tokens=6,
                do_sample=False,
                use_cache=cached,
            ).numpy()

    alone, facts["info"]["body"] = load(body, folder)
    arrays["body"] = alone(**inputs).last_hidden_state.numpy()

    narrow, facts["info"]["narrow"] = load(with_head, folder, dtype=torch.bfloat16)
    facts["dtypes"] = sorted({str(p.dtype) for p in narrow.parameters()})
    arrays["narrow"] = logits(narrow(**inputs))

    for kind, auto, saved in (("head", with_head, model), ("body", body, alone)):
        again = folder / f"again_{kind}"
        saved.save_pretrained(again)
        facts[f"saved_{kind}"] = sorted(file.name for file in again.iterdir())
        reloaded, facts["info"][f"again_{kind}"] = load(auto, again)
        output = reloaded(**inputs)
        arrays[f"again_{kind}"] = (
            logits(output) if kind == "head" else output.last_hidden_state.numpy()
        )

    drawn = with_head.from_config(config, trust_remote_code=True).eval()
    facts["drawn"] = bool(np.isfinite(logits(drawn(**inputs))).all())

    if (folder / "text.txt").is_file():
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
        text = (folder / "text.txt").read_text()
        facts["ids"] = tokenizer(text)["input_ids"]
        classify = transformers.pipeline(
            "text-classification", model=str(folder), trust_remote_code=True
        )
        (facts["answer"],) = classify(text)

    np.savez(folder / "read.npz", **arrays)
    (folder / "read.json").write_text(json.dumps(facts))


@torch.no_grad()
def read_pair(folder: Path) -> None:
    """What the tokenizer makes of two texts, and the model of that."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    model, _ = load(transformers.AutoModelForSequenceClassification, folder)
    inputs = tokenizer(*json.loads((folder / "pair.json").read_text()), return_tensors="pt")
    np.savez(folder / "read.npz", logits=logits(model(**inputs)))
    facts = {"dtypes": sorted({str(p.dtype) for p in model.parameters()})}
    (folder / "read.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        place = Path(argument)
        read_pair(place) if (place / "pair.json").is_file() else read(place)
