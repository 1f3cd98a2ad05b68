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
from transformers import AutoModelForSequenceClassification  # noqa: E402

folder = Path(sys.argv[1])
place = PeftConfig.from_pretrained(folder).base_model_name_or_path
base = AutoModelForSequenceClassification.from_pretrained(place, trust_remote_code=True)
model = PeftModel.from_pretrained(base, folder).eval()
ids = torch.tensor(np.load(folder / "ids.npy"))
with torch.no_grad():
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
np.save(folder / "logits.npy", logits.numpy())
