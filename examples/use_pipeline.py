"""Classify texts with a folder that `metalib adapt` wrote, through a pipeline of Transformers; metalib is not needed.

python examples/use_pipeline.py my_model "It broke after a week." "A superb lamp."
(for learners that are classifiers: all but matching, siamese and relation, which `metalib predict` opens)
"""

import sys

from transformers import pipeline

if len(sys.argv) < 3:
    sys.exit(__doc__)
folder, *texts = sys.argv[1:]
classify = pipeline("text-classification", model=folder)
for text, found in zip(texts, classify(texts, truncation=True), strict=True):  # longer texts are cut, as in training
    print(f"{found['label']} ({found['score']:.2f}): {text}")
