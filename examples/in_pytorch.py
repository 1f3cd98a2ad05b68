r"""Use a compressed classifier with torch and transformers alone; this library is not imported.

python examples/in_pytorch.py runs/quick/model "a moving and funny film"
"""

import sys

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer


def main(folder: str = "runs/quick/model", *texts: str) -> None:
    # The code that lies beside the weights puts the factors in; read it before you trust it.
    model = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    inputs = tokenizer(list(texts) or ["a fine film"], return_tensors="pt", padding=True)
    with torch.no_grad():
        answers = model(**inputs).logits.argmax(-1)
    for answer in answers:
        print(model.config.id2label[int(answer)])


if __name__ == "__main__":
    main(*sys.argv[1:])
