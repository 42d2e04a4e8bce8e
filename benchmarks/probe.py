"""A baseline that trains no encoder: logistic regression on the sentence vectors of the encoder as it comes.

A text's vector is the mean of its last hidden states, scaled to length 1, which is what encoders like all-MiniLM-L6-v2
were trained to give (Reimers & Gurevych 2019, §3). The head of a BERT looks at the first token's state alone, through a
pooler that such a training leaves aside.
"""

import numpy as np
import torch
from protocols import at_thresholds, threshold, threshold_rows
from sklearn.linear_model import LogisticRegressionCV
from torch.nn.functional import normalize
from transformers import PreTrainedModel

from metalib.models import TokenizedReviews
from metalib.tasks import Task
from metalib.training import Workbench

NAME = "probe"


def sentence_vectors(model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """(rows, hidden) mean of each text's last hidden states, of length 1."""
    inputs.pop("labels")
    states = model.base_model(**inputs).last_hidden_state
    return normalize((states * inputs["attention_mask"][..., None]).sum(dim=1), dim=-1)


def regression(vectors: np.ndarray, labels: np.ndarray) -> LogisticRegressionCV:
    """Both classes weigh as much; how far it is held back is chosen by cross-validation among what it learns from."""
    return LogisticRegressionCV(
        l1_ratios=(0,), cv=min(5, int(np.bincount(labels).min())), scoring="balanced_accuracy", class_weight="balanced",
        max_iter=1000, use_legacy_attributes=False,
    ).fit(vectors, labels)  # fmt: skip


def probe_logits(bench: Workbench, part: str, tasks: list[Task], per_class: int) -> dict[str, list[np.ndarray]]:
    """Logits (queries, 2) of each task. `plain`: learned from its support set.

    `known`, where tasks have thresholds: learned from at most `per_class` training reviews of each class at the task's
    threshold, and from nothing of the task.
    """

    def vectors(reviews: TokenizedReviews, rows: np.ndarray) -> np.ndarray:
        return reviews.compute(bench.model, rows, sentence_vectors).numpy()

    def logits(model: LogisticRegressionCV, task: Task) -> np.ndarray:
        margins = model.decision_function(seen[task.query])
        return np.stack([np.zeros_like(margins), margins], axis=-1)

    reviews, train = bench.reviews[part], bench.reviews["train"]
    seen = vectors(reviews, np.arange(len(reviews.labels)))
    found = {"plain": [logits(regression(seen[task.support], reviews.labels[task.support]), task) for task in tasks]}
    if at_thresholds(bench.splits.train):
        models = {name: regression(vectors(train, rows), train.labels[rows])
                  for name, rows in threshold_rows(bench.splits.train, per_class).items()}  # fmt: skip
        found["known"] = [logits(models[threshold(task.domain)], task) for task in tasks]
    return found
