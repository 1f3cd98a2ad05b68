"""Reads an adapter as somebody would who has torch, transformers and peft alone; no test by itself.

    python -I peft_reader.py FOLDER

The folder holds `ids.npy`; what the model answers goes into `logits.npy` beside it.
"""

import importlib.abc
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
from peft import PeftConfig, PeftModel  # noqa: E402
from transformers import (  # noqa: E402
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
)

folder = Path(sys.argv[1])
config = PeftConfig.from_pretrained(folder)
decoder = config.task_type == "CAUSAL_LM"
kind = AutoModelForCausalLM if decoder else AutoModelForSequenceClassification
base = kind.from_pretrained(config.base_model_name_or_path, trust_remote_code=True)
model = PeftModel.from_pretrained(base, folder).eval()
ids = torch.tensor(np.load(folder / "ids.npy"))
with torch.no_grad():
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
np.save(folder / "logits.npy", logits.numpy())
