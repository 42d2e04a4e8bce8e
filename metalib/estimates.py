"""How well a learner does on one's own few examples, from these examples alone."""

from collections.abc import Collection
from typing import Any

import numpy as np
from scipy.stats import binomtest
from sklearn.model_selection import RepeatedStratifiedKFold
from tqdm.auto import tqdm

from metalib.evaluation import Episodes, interval, score, score_interval
from metalib.learners import Learner
from metalib.models import TokenizedReviews
from metalib.plots import label
from metalib.report import Clean, escape, paired_table, percent, table
from metalib.tasks import Task

FOLDS, REPEATS = 5, 4
METRICS = ("accuracy", "balanced_accuracy")
Scores = dict[str, Any]  # {"methods": {NAME: {METRIC: {"mean", "ci95"}}}, "paired": as in evaluation.json, …}
Values = dict[str, np.ndarray]  # method → (folds,) or (texts,) values of one metric


def cross_validate(
    learner: Learner, reviews: TokenizedReviews, rows: np.ndarray, rivals: dict[str, np.ndarray], seed: int
) -> Scores | None:
    """Learn some folds, predict the one left out; `rivals`: name → (n,) predictions for all examples.

    The folds are stratified and drawn anew `REPEATS` times. Intervals and paired differences are `evaluation.interval`:
    with k folds their correlation is estimated by 1/k, which makes it Nadeau & Bengio's 1/J + n_test/n_train.
    None where a class has too few examples for two folds.
    """
    labels = reviews.labels[rows]
    folds = min(FOLDS, int(np.unique(labels, return_counts=True)[1].min()))
    if folds < 2:
        return None
    splitter = RepeatedStratifiedKFold(n_splits=folds, n_repeats=REPEATS, random_state=seed)
    tasks = [Task(rows[learn], rows[left], "", i) for i, (learn, left) in enumerate(splitter.split(rows, labels))]
    predicted = {"adapted": [learner.predict(reviews, task, (seed, task.index))
                             for task in tqdm(tasks, "Cross-validating", leave=False)]}  # fmt: skip
    predicted |= {name: [all_rows[task.query] for task in tasks] for name, all_rows in rivals.items()}
    predicted["majority"] = [np.full(len(task.query), majority(reviews.labels[task.support])) for task in tasks]
    truth = [reviews.labels[task.query] for task in tasks]
    values = {name: [score(p[None], y[None]) for p, y in zip(each, truth, strict=True)]
              for name, each in predicted.items()}  # fmt: skip
    episodes = Episodes(tasks, np.empty(0), {"": 1 / folds})
    of_metric = {metric: {name: np.concatenate([fold[metric] for fold in each]) for name, each in values.items()}
                 for metric in METRICS}  # fmt: skip
    constant = {name for name, each in predicted.items() if len(np.unique(np.concatenate(each))) == 1}
    found = summarise(of_metric, dict.fromkeys(METRICS, episodes), len(rows), constant)
    return {"folds": folds, "repeats": REPEATS, **found}


def test_rest(
    learner: Learner,
    reviews: TokenizedReviews,
    learn: np.ndarray,
    rest: np.ndarray,
    rivals: dict[str, np.ndarray],
    seed: int,
) -> Scores | None:
    """Learn the rows `learn`, predict the rows `rest`, whose texts count as independent; None where there are none.

    Balanced accuracy is the mean of the classes' recalls: `evaluation.interval` with classes for domains.
    """
    if not len(rest):
        return None
    labels = reviews.labels[rest]
    predicted = {"adapted": learner.predict(reviews, Task(learn, rest, "", 0), (seed,))}
    predicted |= {name: all_rows[rest] for name, all_rows in rivals.items()}
    predicted["majority"] = np.full(len(rest), majority(labels))  # the best that a constant can do
    right = {name: (each == labels).astype(float) for name, each in predicted.items()}
    texts = {"accuracy": [Task(rest, rest, "", i) for i in range(len(rest))],
             "balanced_accuracy": [Task(rest, rest, str(y), i) for i, y in enumerate(labels)]}  # fmt: skip
    episodes = {metric: Episodes(tasks, labels, dict.fromkeys({task.domain for task in tasks}, 0.0))
                for metric, tasks in texts.items()}  # fmt: skip
    return {"texts": len(rest), **summarise(dict.fromkeys(METRICS, right), episodes, len(rest))}


def majority(labels: np.ndarray) -> int:
    """The most frequent class, of equally frequent ones the first."""
    return int(np.bincount(labels).argmax())


def summarise(
    values: dict[str, Values], episodes: dict[str, Episodes], texts: int, constant: Collection[str] = ()
) -> Scores:
    """Means with intervals of each metric and method, and the paired differences of `adapted` to the others.

    constant: methods that say the same of all texts. The sizes of the folds alone then move their scores.
    """
    names = list(values["accuracy"])
    methods = {name: {metric: point(values[metric][name], episodes[metric], texts if name != "majority" else 0,
                                    name in constant)
                      for metric in METRICS} for name in names}  # fmt: skip
    paired = []
    for name in names[1:]:
        for metric in METRICS:
            found = interval(values[metric][names[0]] - values[metric][name], episodes[metric])
            a, b = (float(values[metric][each].mean()) for each in (names[0], name))
            says_little = no_spread(found) or {names[0], name} <= set(constant)
            ends = exact_difference(a, b, texts, name == "majority") if says_little else found["ci95"]
            ends = [None if end is None else float(np.clip(end, -1, 1)) for end in ends]
            paired.append({"a": names[0], "b": name, "metric": metric, "difference": found["mean"], "ci95": ends})
    return {"methods": methods, "paired": paired}


def no_spread(found: dict[str, Any]) -> bool:
    """Whether an interval has no width, since what it is made from varies nowhere: with few texts that says little."""
    low, high = found["ci95"]
    return low is not None and high - low < 1e-9


def exact(mean: float, texts: int, level: float) -> list[float]:
    """Both ends of the exact (Clopper & Pearson's) interval of a share of so many texts; [mean, mean] for none."""
    if not texts:
        return [float(mean)] * 2
    found = binomtest(round(mean * texts), texts).proportion_ci(level)
    return [float(found.low), float(found.high)]


def exact_difference(a: float, b: float, texts: int, is_constant: bool) -> list[float]:
    """Both ends of a − b, two shares of so many texts, where it is the same in all folds.

    Where b is a constant rule's, a alone is uncertain. Else a − b is the share of the texts that a alone gets right,
    less the share that b alone does: one of both is seen to be 0, and each has an exact interval at 97.5% (Bonferroni).
    """
    if is_constant:
        return [end - b for end in exact(a, texts, 0.95)]
    more, fewer = (exact(max(difference, 0.0), texts, 0.975) for difference in (a - b, b - a))
    return [more[0] - fewer[1], more[1] - fewer[0]]


def point(values: np.ndarray, episodes: Episodes, texts: int, is_constant: bool = False) -> dict[str, Any]:
    """`score_interval`; where nothing varies, the exact interval of a share of so many texts."""
    found = score_interval(values, episodes)
    if no_spread(found) or is_constant:
        found["ci95"] = exact(found["mean"], texts, 0.95)
    return found


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
                 f"(Nadeau & Bengio).\n\n{scores_text(found, clean)}"]  # fmt: skip
    if rest:
        shown.append(f"Test on the {rest['texts']} examples that were not learned, percent, with 95% intervals.\n\n"
                     f"{scores_text(rest, clean)}")  # fmt: skip
    return "\n".join(shown)
