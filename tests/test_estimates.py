"""Intervals of one's own few examples: none is narrower than so few texts allow, and all hold their estimate."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from scipy import stats

from metalib import estimates


class Oracle:
    """A learner that is right about all rows but those it is told."""

    def __init__(self, labels: np.ndarray, wrong: Any = ()) -> None:
        self.predictions = np.where(np.isin(np.arange(len(labels)), list(wrong)), 1 - labels, labels)

    def predict(self, reviews: Any, task: Any, seed: Any) -> np.ndarray:
        return self.predictions[task.query]


def of(labels: np.ndarray) -> Any:
    return type("Reviews", (), {"labels": labels})


def outcome(labels: np.ndarray, wrong: Any = (), **rivals: np.ndarray) -> Any:
    learner: Any = Oracle(labels, wrong)
    rows = np.arange(len(labels))
    return estimates.test_rest(learner, of(labels), rows[:0], rows, rivals, 0)


def pair(found: Any, rival: str, metric: str) -> Any:
    return next(one for one in found["paired"] if (one["b"], one["metric"]) == (rival, metric))


def test_accuracy_on_other_texts_has_the_exact_interval() -> None:
    found = outcome(np.repeat([0, 1], 25), wrong=[0, 1, 30])["methods"]["adapted"]["accuracy"]
    exact = stats.binomtest(47, 50).proportion_ci(0.95)
    assert found["mean"] == 0.94 and found["ci95"] == pytest.approx([exact.low, exact.high])


def test_a_class_of_two_says_little_even_if_both_are_right() -> None:
    labels = np.array([0, 0, *[1] * 50])
    found = outcome(labels, wrong=range(2, 7))["methods"]["adapted"]["balanced_accuracy"]
    two, fifty = (stats.binomtest(k, n).proportion_ci(0.95) for k, n in ((2, 2), (45, 50)))
    low = 0.95 - np.hypot(1 - two.low, 0.9 - fifty.low) / 2  # MOVER, by hand
    assert found["mean"] == pytest.approx(0.95) and found["ci95"] == pytest.approx([low, 0.95 + (fifty.high - 0.9) / 2])
    assert low < 0.55


@pytest.mark.parametrize("wrong", [(), range(4), (0,), (0, 20)])
def test_a_difference_lies_in_its_interval(wrong: Any) -> None:
    labels = np.array([*[0] * 5, *[1] * 45])
    found = outcome(labels, wrong, **{"not adapted": np.ones(50, dtype=int)})
    for one in found["paired"]:
        assert one["ci95"][0] <= one["difference"] <= one["ci95"][1], one
    for metric in estimates.METRICS:
        means = [found["methods"][name][metric]["mean"] for name in ("adapted", "majority")]
        assert pair(found, "majority", metric)["difference"] == pytest.approx(means[0] - means[1])


def test_all_right_where_the_majority_is_right_about_one_class_only() -> None:
    labels = np.array([*[0] * 5, *[1] * 45])
    found = pair(outcome(labels), "majority", "balanced_accuracy")
    five, many = (stats.binomtest(n, n).proportion_ci(0.95) for n in (5, 45))
    assert found["difference"] == 0.5
    assert found["ci95"] == pytest.approx([0.5 - np.hypot(1 - five.low, 1 - many.low) / 2, 0.5])


def test_a_constant_rules_balanced_accuracy_is_known() -> None:
    found = outcome(np.array([*[0] * 5, *[1] * 45]))["methods"]["majority"]
    assert found["balanced_accuracy"] == {"mean": 0.5, "ci95": [0.5, 0.5]} and found["accuracy"]["mean"] == 0.9


def test_the_rest_is_predicted_from_what_was_learned_alone() -> None:
    labels = np.repeat([0, 1], 10)
    learn, rest = np.r_[4:10, 18:20], np.r_[0:4, 10:18]

    class Strict(Oracle):
        def predict(self, reviews: Any, task: Any, seed: Any) -> np.ndarray:
            assert task.support.tolist() == learn.tolist() and task.query.tolist() == rest.tolist() and seed == (7,)
            return super().predict(reviews, task, seed)

    learner: Any = Strict(labels, wrong=[0, 13])
    found = estimates.test_rest(learner, of(labels), learn, rest, {"not adapted": 1 - labels}, 7)
    assert found is not None and found["texts"] == 12
    means = {metric: entry["mean"] for metric, entry in found["methods"]["adapted"].items()}
    assert means == pytest.approx({"accuracy": 10 / 12, "balanced_accuracy": (3 / 4 + 7 / 8) / 2})
    assert pair(found, "not adapted", "accuracy")["difference"] == pytest.approx(10 / 12)


def test_there_are_as_many_folds_as_the_smallest_class_has_examples() -> None:
    labels = np.repeat([0, 1], [3, 10])
    learner: Any = Oracle(labels)
    found = estimates.cross_validate(learner, of(labels), np.arange(13), {}, 0)
    assert found is not None and found["folds"] == 3


def test_folds_in_which_a_class_is_always_right_do_not_hide_how_few_it_has() -> None:
    labels = np.array([0, 0, *[1] * 50])
    learner: Any = Oracle(labels, wrong=range(2, 9))  # folds of 26: the share of the second class varies
    found = estimates.cross_validate(learner, of(labels), np.arange(52), {}, 0)
    assert found is not None and found["folds"] == 2
    low, high = found["methods"]["adapted"]["balanced_accuracy"]["ci95"]
    assert high - low > 0.35 and low < 0.6
    ends = pair(found, "majority", "balanced_accuracy")["ci95"]
    assert ends[1] - ends[0] > 0.35


def test_a_model_that_says_one_class_in_each_fold_is_not_sure_of_its_half() -> None:
    labels = np.repeat([0, 1], 10)

    class Collapsed:
        def predict(self, reviews: Any, task: Any, seed: Any) -> np.ndarray:
            return np.full(len(task.query), task.index % 2)

    learner: Any = Collapsed()
    found = estimates.cross_validate(learner, of(labels), np.arange(20), {}, 0)
    assert found is not None
    entry = found["methods"]["adapted"]["balanced_accuracy"]
    assert entry["mean"] == 0.5 and entry["ci95"][0] < 0.4 and entry["ci95"][1] > 0.6
    ends = pair(found, "majority", "balanced_accuracy")["ci95"]
    assert ends[0] < -0.1 and ends[1] > 0.1


@pytest.mark.parametrize("wrong", [[], [0], [0, 30], [0, 1, 30, 31, 32]])
def test_a_table_of_folds_is_consistent_and_no_narrower_than_one_of_texts(wrong: Any) -> None:
    labels = np.array([*[0] * 6, *[1] * 45])
    learner: Any = Oracle(labels, wrong)
    rivals = {"not adapted": np.ones(51, dtype=int)}
    found = estimates.cross_validate(learner, of(labels), np.arange(51), rivals, 0)
    texts = outcome(labels, wrong, **rivals)
    assert found is not None and found["folds"] == 5
    for metric in estimates.METRICS:
        means = {name: entry[metric]["mean"] for name, entry in found["methods"].items()}
        for rival in ("not adapted", "majority"):
            one, other = pair(found, rival, metric), pair(texts, rival, metric)
            assert one["difference"] == pytest.approx(means["adapted"] - means[rival], abs=1e-12)
            assert one["ci95"][0] <= min(one["difference"], other["ci95"][0]) + 1e-12
            assert one["ci95"][1] >= max(one["difference"], other["ci95"][1]) - 1e-12
        least = texts["methods"]["adapted"][metric]["ci95"]
        ends = found["methods"]["adapted"][metric]["ci95"]
        assert ends[0] <= least[0] + 1e-12 and ends[1] >= least[1] - 1e-12


def test_one_more_mistake_makes_no_interval_much_narrower() -> None:
    labels = np.repeat([0, 1], 25)
    widths = [np.diff(pair(outcome(labels, range(wrong), rival=labels), "rival", "accuracy")["ci95"])[0]
              for wrong in range(4)]  # fmt: skip
    assert all(more > 0.95 * less for less, more in pairwise(widths))


def test_intervals_of_a_difference_hold_the_truth() -> None:
    generator, held, labels = np.random.default_rng(1), 0, np.zeros(100, dtype=int)
    for _ in range(600):
        kind = generator.choice(3, size=100, p=[0.25, 0.25, 0.5])  # one alone is right, the other alone, both
        found = pair(outcome(labels, np.flatnonzero(kind == 1), rival=(kind == 0).astype(int)), "rival", "accuracy")
        held += found["ci95"][0] <= 0 <= found["ci95"][1]
    assert held >= 0.94 * 600


def test_intervals_of_balanced_accuracy_hold_the_truth_where_one_class_is_rare() -> None:
    generator, truth, held = np.random.default_rng(0), (0.8, 0.95), 0
    labels = np.array([*[0] * 4, *[1] * 40])
    for _ in range(400):
        right = generator.random(44) < np.take(truth, labels)
        found = outcome(labels, np.flatnonzero(~right))["methods"]["adapted"]["balanced_accuracy"]["ci95"]
        held += found[0] <= np.mean(truth) <= found[1]
    assert held >= 0.94 * 400
