"""Evaluation: the same episodes for all methods, three scores, 95% intervals, paired differences.

An *episode* is a task of a held-out domain: learn its support set, predict its query set. The episodes of one domain
are drawn from one pool of reviews and overlap, so their scores are not independent, and the usual standard error is too
small. The intervals here correct for it; their unit is the review: they say how far a score may move with other reviews
of the *same* domains, not with other domains.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from scipy import stats
from sklearn.metrics import f1_score, recall_score
from tqdm.auto import tqdm

from metalib.errors import BadInput
from metalib.learners import Learner
from metalib.models import TokenizedReviews
from metalib.processes import together
from metalib.tasks import Task, TaskSampler

METRICS = ("accuracy", "balanced_accuracy", "macro_f1")


@dataclass(frozen=True)
class Episodes:
    """A fixed list of episodes.

    Attributes:
        tasks: the episodes, over all domains in turn.
        labels: (episodes, queries) true classes.
        overlap: domain → share of a class's reviews that one query set takes, averaged over the classes.
    """

    tasks: list[Task]
    labels: np.ndarray
    overlap: dict[str, float]

    @classmethod
    def draw(cls, sampler: TaskSampler, count: int) -> "Episodes":
        """The first `count` tasks of a sampler. Raises BadInput where domains that come in turn would be left out."""
        if sampler.in_turn and count < len(sampler.domains):
            raise BadInput(f"{count} episodes are too few for {len(sampler.domains)} domains in turn — raise "
                           "eval_episodes, or validation_episodes for validation domains")  # fmt: skip
        tasks = [sampler[index] for index in range(count)]
        overlap = {domain: sampler.query_share(domain) for domain in sampler.domains}
        return cls(tasks, np.stack([sampler.labels[task.query] for task in tasks]), overlap)


def predict_episodes(
    learner: Learner,
    reviews: TokenizedReviews,
    episodes: Episodes,
    marks: Sequence[int],
    seed: int = 0,
    accelerator: Accelerator | None = None,
    description: str | None = None,
) -> np.ndarray:
    """(episodes, marks, queries) predicted classes after each number of adaptation steps in `marks`.

    With several processes, process r of N does the episodes r, r + N, …, and all of them return everything.
    """
    rank, processes = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    mine = range(rank, len(episodes.tasks), processes)
    bar = tqdm(mine, description, disable=description is None or rank > 0, leave=False)
    predictions = torch.zeros(len(episodes.tasks), len(marks), episodes.labels.shape[1], dtype=torch.int64)
    for i in bar:
        along = learner.predict_along(reviews, episodes.tasks[i], (seed, i), list(marks))
        predictions[i] = torch.from_numpy(along)
    if accelerator:  # an episode is zeros on all processes but one
        with together(accelerator, "at the evaluation"):
            predictions = accelerator.reduce(predictions.to(accelerator.device), "sum").cpu()
    return predictions.numpy()


def score(predictions: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Scores of each episode, from (episodes, queries) classes; each (episodes,), fractions of 1.

    Balanced accuracy is the mean recall over the classes that occur in the query set, and so equal to accuracy where
    the query set is balanced; macro-F1 is the mean F1 over the classes that occur in it or are predicted.
    """
    rows = list(zip(labels, predictions, strict=True))
    return {
        "accuracy": (predictions == labels).mean(-1),
        "balanced_accuracy": np.array([recall_score(y, p, labels=np.unique(y), average="macro") for y, p in rows]),
        "macro_f1": np.array([f1_score(y, p, average="macro", zero_division=0.0) for y, p in rows]),
    }


def interval(values: np.ndarray, episodes: Episodes, level: float = 0.95) -> dict[str, Any]:
    """Mean of per-episode values (episodes,) over the domains, and its 95% interval (or that of another `level`).

    In each domain the variance of the mean over J episodes is (1/J + ρ/(1 − ρ)) · s², the corrected resampled t-test of
    Nadeau & Bengio (2003, §3), where ρ, the correlation of two episodes, is estimated by the share of a class's reviews
    in one query set, averaged over the classes. Where support and query sets use up the pool this is their
    1/J + n_query/n_support.
    Domains count alike; their variances add, with Welch and Satterthwaite's degrees of freedom.
    """
    of_domain = np.asarray([task.domain for task in episodes.tasks])
    means, variances, freedoms = [], [], []
    for domain in sorted(set(of_domain)):
        group = values[of_domain == domain]
        rho = min(episodes.overlap[domain], 0.99)
        means.append(group.mean())
        variances.append((1 / len(group) + rho / (1 - rho)) * group.var(ddof=1) if len(group) > 1 else np.inf)
        freedoms.append(max(len(group) - 1, 1))
    mean = float(np.mean(means))
    total = np.sum(variances)
    if not 0 < total < np.inf:  # no spread at all, or a single episode, which has none to show
        return {"mean": mean, "ci95": [mean, mean] if total == 0 else [None, None]}
    freedom = total**2 / np.sum(np.square(variances) / freedoms)
    half = float(stats.t.ppf((1 + level) / 2, freedom) * np.sqrt(total) / len(means))
    return {"mean": mean, "ci95": [mean - half, mean + half]}


def score_interval(values: np.ndarray, episodes: Episodes) -> dict[str, Any]:
    """`interval` of a score, which cannot lie outside 0 … 1: the ends are cut off there."""
    result = interval(values, episodes)
    if result["ci95"][0] is not None:
        result["ci95"] = [max(result["ci95"][0], 0.0), min(result["ci95"][1], 1.0)]
    return result


def _of_domain(episodes: Episodes, domain: str) -> tuple[np.ndarray, Episodes]:
    inside = np.asarray([task.domain == domain for task in episodes.tasks])
    tasks = [task for task in episodes.tasks if task.domain == domain]
    return inside, Episodes(tasks, episodes.labels[inside], episodes.overlap)


def summarise(predictions: np.ndarray, episodes: Episodes) -> dict[str, Any]:
    """One method's entry of `evaluation.json`: `overall` and by domain, each score with mean and interval."""
    values = score(predictions, episodes.labels)
    entry: dict[str, Any] = {
        "overall": {name: score_interval(values[name], episodes) for name in METRICS},
        "domains": {},
    }
    for domain in sorted(episodes.overlap):
        inside, part = _of_domain(episodes, domain)
        entry["domains"][domain] = {name: score_interval(values[name][inside], part) for name in METRICS}
    return entry


def compare(predictions: dict[str, np.ndarray], episodes: Episodes, first: str) -> list[dict[str, Any]]:
    """Paired differences `first` − other on the same episodes, per score, with their 95% intervals."""
    values = {name: score(predicted, episodes.labels) for name, predicted in predictions.items()}
    pairs = []
    for other in (name for name in predictions if name != first):
        for metric in METRICS:
            difference = interval(values[first][metric] - values[other][metric], episodes)
            pairs.append(
                {
                    "a": first,
                    "b": other,
                    "metric": metric,
                    "difference": difference["mean"],
                    "ci95": difference["ci95"],
                }
            )
    return pairs


def winner(cell: dict[str, Any]) -> tuple[str, dict[str, Any] | None]:
    """The learner of a cell of `phase.json` that beats joint training by most, and that difference.

    Only differences whose simultaneous interval lies above 0 count; `joint` where there is none.
    """
    above = [pair for pair in cell["paired"] if pair["b"] == "joint" and (pair["simultaneous"][0] or 0) > 0]
    best = max(above, key=lambda pair: pair["difference"], default=None)
    return ("joint", None) if best is None else (best["a"], best)


def curve(predictions: np.ndarray, episodes: Episodes, metric: str = "balanced_accuracy") -> list[dict[str, Any]]:
    """Mean and interval at each mark, from (episodes, marks, queries) predictions."""
    return [
        score_interval(score(predictions[:, mark], episodes.labels)[metric], episodes)
        for mark in range(predictions.shape[1])
    ]


def constant_predictions(episodes: Episodes, choose: Callable[[Task], np.ndarray]) -> np.ndarray:
    """(episodes, queries) predictions of a rule that learns nothing, such as the majority class."""
    return np.stack([choose(task) for task in episodes.tasks])
