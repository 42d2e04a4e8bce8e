"""The same as use_pipeline.py with the model itself: logits, and whatever is to be done with them.

python examples/use_auto_model.py my_model "It broke after a week." "A superb lamp."
"""

import sys

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

if len(sys.argv) < 3:
    sys.exit(__doc__)
folder, *texts = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
inputs = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
with torch.no_grad():
    scores = model(**inputs).logits.softmax(-1)  # (texts, classes)
for text, row in zip(texts, scores, strict=True):
    print(f"{model.config.id2label[int(row.argmax())]} ({row.max():.2f}): {text}")
