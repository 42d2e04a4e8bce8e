"""How well a learner does on one's own few examples, from these examples alone."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats
from sklearn.model_selection import RepeatedStratifiedKFold
from tqdm.auto import tqdm

from metalib.evaluation import Episodes, interval
from metalib.learners import Learner
from metalib.models import TokenizedReviews
from metalib.plots import label
from metalib.report import Clean, escape, paired_table, percent, table
from metalib.tasks import Task

FOLDS, REPEATS = 5, 4
METRICS = ("accuracy", "balanced_accuracy")
Scores = dict[str, Any]  # {"methods": {NAME: {METRIC: {"mean", "ci95"}}}, "paired": as in evaluation.json, …}
Rights = dict[str, np.ndarray]  # method → (texts,) how often each text was predicted right, as a share of 1


@dataclass(frozen=True)
class Folds:
    """What was seen of each fold.

    Attributes:
        episodes: the folds, as `evaluation.interval` takes them.
        scores: metric → method → (folds,) its score.
    """

    episodes: Episodes
    scores: dict[str, Rights]


def cross_validate(
    learner: Learner, reviews: TokenizedReviews, rows: np.ndarray, rivals: dict[str, np.ndarray], seed: int
) -> Scores | None:
    """Learn some folds, predict the one left out; `rivals`: name → (n,) predictions for all examples.

    The folds are stratified and drawn anew `REPEATS` times. Intervals and paired differences are `evaluation.interval`:
    with k folds their correlation is estimated by 1/k, which makes it Nadeau & Bengio's 1/J + n_test/n_train. None is
    narrower than that of as many independent texts. None at all where a class has too few examples for two folds.
    """
    labels = reviews.labels[rows]
    count = min(FOLDS, int(np.unique(labels, return_counts=True)[1].min()))
    if count < 2:
        return None
    splits = list(RepeatedStratifiedKFold(n_splits=count, n_repeats=REPEATS, random_state=seed).split(rows, labels))
    tasks = [Task(rows[learn], rows[left], "", i) for i, (learn, left) in enumerate(splits)]
    predicted = {"adapted": [learner.predict(reviews, task, (seed, task.index))
                             for task in tqdm(tasks, "Cross-validating", leave=False)]}  # fmt: skip
    predicted |= {name: [all_rows[task.query] for task in tasks] for name, all_rows in rivals.items()}
    predicted["majority"] = [np.full(len(task.query), majority(reviews.labels[task.support])) for task in tasks]
    lefts, right = [left for _, left in splits], {name: np.zeros(len(rows)) for name in predicted}
    scores: dict[str, Rights] = {metric: {} for metric in METRICS}
    for name, each in predicted.items():
        hits = [p == labels[left] for p, left in zip(each, lefts, strict=True)]
        np.add.at(right[name], np.concatenate(lefts), np.concatenate(hits) / REPEATS)
        for metric, groups in alike(labels).items():
            scores[metric][name] = np.array([np.mean([part.mean() for part in parts(hit, groups[left])])
                                             for hit, left in zip(hits, lefts, strict=True)])  # fmt: skip
    seen = Folds(Episodes(tasks, np.empty(0), {"": 1 / count}), scores)
    return {"folds": count, "repeats": REPEATS, **summarise(right, labels, seen)}


def test_rest(
    learner: Learner,
    reviews: TokenizedReviews,
    learn: np.ndarray,
    rest: np.ndarray,
    rivals: dict[str, np.ndarray],
    seed: int,
) -> Scores | None:
    """Learn the rows `learn`, predict the rows `rest`, whose texts count as independent; None where there are none."""
    if not len(rest):
        return None
    labels = reviews.labels[rest]
    predicted = {"adapted": learner.predict(reviews, Task(learn, rest, "", 0), (seed,))}
    predicted |= {name: all_rows[rest] for name, all_rows in rivals.items()}
    predicted["majority"] = np.full(len(rest), majority(labels))  # the best that a constant can do
    right = {name: (each == labels).astype(float) for name, each in predicted.items()}
    return {"texts": len(rest), **summarise(right, labels)}


def majority(labels: np.ndarray) -> int:
    """The most frequent class, of equally frequent ones the first."""
    return int(np.bincount(labels).argmax())


def alike(labels: np.ndarray) -> dict[str, np.ndarray]:
    """Metric → (texts,) the groups of texts whose shares count alike: all are one group, or each class is one."""
    return {"accuracy": np.zeros_like(labels), "balanced_accuracy": labels}


def parts(values: np.ndarray, groups: np.ndarray) -> list[np.ndarray]:
    """The values (texts,) of each group."""
    return [values[groups == group] for group in np.unique(groups)]


def summarise(right: Rights, labels: np.ndarray, seen: Folds | None = None) -> Scores:
    """Means with intervals of each metric and method, and the paired differences of `adapted` to the others.

    Intervals are those of independent texts. With folds, means are the folds', and an interval reaches as far as the
    folds', too: folds that are alike, or nearly, hide how little so few texts say.
    """
    methods: Scores = {name: {} for name in right}
    paired, first = [], next(iter(right))
    for metric, groups in alike(labels).items():
        for name in right:
            found = of_texts(right[name], groups)
            if seen:
                found = wider(found, interval(seen.scores[metric][name], seen.episodes), 0.0)
            if name == "majority":  # known beforehand
                found["ci95"] = [found["mean"]] * 2
            methods[name][metric] = found
        for name in (name for name in right if name != first):
            found = difference_of_texts(right[first], right[name], groups, name == "majority")
            if seen:
                differences = seen.scores[metric][first] - seen.scores[metric][name]
                found = wider(found, interval(differences, seen.episodes), -1.0)
            if name == "majority":  # nobody is better than always right, or worse than never
                known, mean = of_texts(right[name], groups)["mean"], found["mean"]
                low, high = found["ci95"]
                found["ci95"] = [max(low, min(-known, mean)), min(high, max(1 - known, mean))]
            paired.append({"a": first, "b": name, "metric": metric, "difference": found["mean"], "ci95": found["ci95"]})
    return {"methods": methods, "paired": paired}


def wider(of_texts: Scores, of_folds: Scores, least: float) -> Scores:
    """The folds' mean, and the outer ends of both intervals, between `least` and 1."""
    low, high = zip(of_texts["ci95"], of_folds["ci95"], strict=True)
    return {"mean": of_folds["mean"], "ci95": [max(min(low), least), min(max(high), 1.0)]}


def of_texts(right: np.ndarray, groups: np.ndarray) -> Scores:
    """Mean of the groups' shares of right texts, and its interval from their exact ones."""
    each = parts(right, groups)
    return combined([part.mean() for part in each], [exact(part.mean(), len(part), 0.95) for part in each])


def difference_of_texts(a: np.ndarray, b: np.ndarray, groups: np.ndarray, is_constant: bool) -> Scores:
    """Mean of the groups' paired differences a − b, and its interval; `is_constant`: b is a constant rule's."""
    pairs = list(zip(parts(a, groups), parts(b, groups), strict=True))
    return combined([(x - y).mean() for x, y in pairs], [exact_difference(x, y, is_constant) for x, y in pairs])


def combined(means: list[float], ends: list[list[float]]) -> Scores:
    """The mean of independent estimates, and its interval from theirs (MOVER: Zou & Donner 2008).

    To each side it is as far as the root of the sum of their squared distances, over their number.
    """
    low, high = (np.linalg.norm(np.subtract(side, means)) / len(means) for side in np.transpose(ends))
    mean = float(np.mean(means))
    return {"mean": mean, "ci95": [mean - float(low), mean + float(high)]}


def exact(mean: float, texts: int, level: float) -> list[float]:
    """Both ends of the exact (Clopper & Pearson's) interval of a share of so many texts."""
    found = stats.binomtest(round(mean * texts), texts).proportion_ci(level)
    return [float(found.low), float(found.high)]


def exact_difference(a: np.ndarray, b: np.ndarray, is_constant: bool) -> list[float]:
    """Both ends of the mean of a − b, (texts,) each.

    Where b is a constant rule's, a alone is uncertain. Else a − b is the share of the texts that a alone gets right,
    less the share that b alone does, each with its exact interval; put together as in `combined`, but for their
    correlation: no text is in both.
    """
    if is_constant:
        return [end - float(b.mean()) for end in exact(a.mean(), len(a), 0.95)]
    more, fewer = (float(np.maximum(side, 0).mean()) for side in (a - b, b - a))
    (low, high), (least, most) = exact(more, len(a), 0.95), exact(fewer, len(a), 0.95)
    root = np.sqrt(more * (1 - more) * fewer * (1 - fewer))
    correlation = -more * fewer / root if root else 0.0

    def far(x: float, y: float) -> float:
        return float(np.sqrt(x**2 + y**2 - 2 * correlation * x * y))

    return [more - fewer - far(more - low, most - fewer), more - fewer + far(high - more, fewer - least)]


def scores_text(scores: Scores, clean: Clean = escape) -> str:
    """Two tables: the scores in percent, and the differences in words."""
    rows = [[label(name), *(percent(entry[metric]) for metric in METRICS)] for name, entry in scores["methods"].items()]
    return table(["", *(metric.replace("_", " ") for metric in METRICS)], rows, clean) + "\n" + paired_table(
        scores, clean=clean)  # fmt: skip


def results(facts: dict[str, Any], clean: Clean = escape) -> str:
    """The scores as they stand in `metalib.json`, with what they are."""
    found, rest = facts["cross_validation"], facts["test"]
    shown = ["A class has too few examples to cross-validate.\n"]
    if found:
        how = f"{found['folds']} folds, {found['repeats']} times"
        shown = [f"Cross-validation on the examples ({how}), percent, with 95% intervals that account for overlap "
                 "(Nadeau & Bengio) and are no narrower than those of as many independent texts.\n\n"
                 f"{scores_text(found, clean)}"]  # fmt: skip
    if rest:
        shown.append(f"Test on the {rest['texts']} examples that were not learned, percent, with 95% intervals.\n\n"
                     f"{scores_text(rest, clean)}")  # fmt: skip
    return "\n".join(shown)
