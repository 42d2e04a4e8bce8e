"""Export a folder that `metalib adapt` wrote to ONNX, and classify with ONNX Runtime; metalib is not needed.

pip install onnx onnxscript onnxruntime
python examples/export_onnx.py my_model model.onnx "It broke after a week." "A superb lamp."

For learners that are classifiers. What matching, siamese and relation learn is an encoder and the examples it compares
with, no classifier: there is nothing that ONNX could open by itself, and this says so; `metalib predict` opens them.
"""

import logging
import sys
import warnings

import numpy as np
import onnxruntime
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase


def load(folder: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The classifier of a folder and its tokenizer; an encoder without a classifier ends the program."""
    model, found = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    if found["missing_keys"]:  # Transformers would make them up at random
        sys.exit(f"{folder} holds no classifier, so there is nothing to export: a learner that compares (matching, "
                 "siamese, relation) needs its examples beside its encoder — use `metalib predict`")  # fmt: skip
    return model.eval(), AutoTokenizer.from_pretrained(folder)


def export(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, file: str) -> None:
    """Write the model as one ONNX file for any number of texts, of any length that the tokenizer lets through."""
    inputs = tokenizer(["two texts", "of different lengths"], padding=True, return_tensors="pt")
    free = {name: {0: "texts", 1: "tokens"} for name in inputs}  # axes that may have any size
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it misses torchvision, which texts do not need
    with warnings.catch_warnings(action="ignore"):  # these are about torch's own inside
        torch.onnx.export(model, kwargs=dict(inputs), f=file, input_names=list(inputs), output_names=["logits"],
                          dynamic_shapes=free, dynamo=True, external_data=False, verbose=False)  # fmt: skip


def classify(session: onnxruntime.InferenceSession, tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> np.ndarray:
    """(texts, classes) logits from ONNX Runtime."""
    inputs = tokenizer(texts, padding=True, truncation=True, return_tensors="np")
    return session.run(["logits"], dict(inputs))[0]


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    folder, file, *texts = sys.argv[1:]
    model, tokenizer = load(folder)
    export(model, tokenizer, file)
    logits = classify(onnxruntime.InferenceSession(file), tokenizer, texts)
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))  # less the largest, so that none overflows
    scores = powers / powers.sum(axis=-1, keepdims=True)  # softmax
    for text, row in zip(texts, scores, strict=True):
        print(f"{model.config.id2label[int(row.argmax())]} ({row.max():.2f}): {text}")
