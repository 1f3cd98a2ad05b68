"""Logits of folders as somebody reads them who has torch and transformers alone; no test by itself.

python -I reader.py IDS.json FOLDER...
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModel, AutoModelForCausalLM

ids = torch.tensor(json.loads(Path(sys.argv[1]).read_text()))
for folder in map(Path, sys.argv[2:]):
    with torch.no_grad():
        model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
        body = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
        out = model(ids, output_hidden_states=True)
        np.savez(
            folder / "read.npz",
            logits=out.logits.numpy(),
            hidden=out.hidden_states[-1].numpy(),
            body=body(ids).last_hidden_state.numpy(),
        )
assert not any(name.split(".")[0] in ("jax", "flax", "lpaf_jax") for name in sys.modules)
