"""Scores against cases counted by hand, intervals against simulation, comparisons, and the work split in two."""

import warnings
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from scipy import stats

from metalib.evaluation import Episodes, compare, curve, interval, predict_episodes, score, score_interval, summarise
from metalib.tasks import Task, TaskSampler
from metalib.world import FEATURES


def episodes_of(domains: list[str], overlap: dict[str, float], labels: np.ndarray | None = None) -> Episodes:
    """Episodes of which only the domains count (and the labels, where given)."""
    nothing = np.array([], dtype=np.int64)
    tasks = [Task(nothing, nothing, domain, index) for index, domain in enumerate(domains)]
    return Episodes(tasks, np.zeros((len(tasks), 2), dtype=np.int64) if labels is None else labels, overlap)


# Scores


@pytest.mark.parametrize(
    ("labels", "predicted", "accuracy", "balanced", "macro_f1"),
    [
        ([0, 0, 1, 1], [0, 0, 1, 1], 1, 1, 1),
        ([0, 0, 1, 1], [1, 1, 0, 0], 0, 0, 0),
        # class 0: precision 2/3, recall 1/1 → F1 4/5; class 1: precision 1, recall 1/2 → F1 2/3
        ([0, 0, 1, 1], [0, 0, 0, 1], 3 / 4, 3 / 4, (4 / 5 + 2 / 3) / 2),
        # unbalanced; recalls 1/2 and 3/4; precisions 1/2 and 3/4
        ([0, 0, 1, 1, 1, 1], [0, 1, 0, 1, 1, 1], 4 / 6, (1 / 2 + 3 / 4) / 2, (1 / 2 + 3 / 4) / 2),
        # class 0 is never predicted: F1 0 and 2·(1/2)/(3/2) = 2/3
        ([0, 0, 1, 1], [1, 1, 1, 1], 1 / 2, 1 / 2, (0 + 2 / 3) / 2),
        # never predicted and unbalanced: balanced accuracy is not fooled; F1 of class 1 is 2·(3/4)/(7/4) = 6/7
        ([0, 1, 1, 1], [1, 1, 1, 1], 3 / 4, 1 / 2, (0 + 6 / 7) / 2),
        # class 0 does not occur and is predicted: recall of class 1 only; F1 0 and 2/3
        ([1, 1, 1, 1], [0, 0, 1, 1], 1 / 2, 1 / 2, (0 + 2 / 3) / 2),
        # three classes
        ([0, 1, 2], [0, 1, 1], 2 / 3, 2 / 3, (1 + 2 / 3 + 0) / 3),
    ],
)  # fmt: skip
def test_scores_counted_by_hand(labels: Any, predicted: Any, accuracy: float, balanced: float, macro_f1: float) -> None:
    perfect = labels  # a second episode, so that a mean over everything would show
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        values = score(np.array([predicted, perfect]), np.array([labels, labels]))
    assert {name: tuple(value) for name, value in values.items()} == {
        "accuracy": pytest.approx((accuracy, 1)),
        "balanced_accuracy": pytest.approx((balanced, 1)),
        "macro_f1": pytest.approx((macro_f1, 1)),
    }


# Intervals


POOLS, LISTS, COUNT, SHOTS = 300, 10, 60, 10
CLASSES = (30, 70)  # reviews of each class in a pool
SHIFT = 1.0  # between the classes' means of three features with unit variance


def nearest_mean_predictions(x: np.ndarray, support: np.ndarray, query: np.ndarray) -> np.ndarray:
    """(…, episodes, queries) classes by the nearer of the support set's class means; features x (…, items, f)."""
    learned = x[..., support, :]  # (…, episodes, 2 · shots, f), class by class
    centres = np.stack([learned[..., :SHOTS, :].mean(-2), learned[..., SHOTS:, :].mean(-2)], axis=-2)
    gaps = x[..., query, None, :] - centres[..., None, :, :]  # (…, episodes, queries, 2, f)
    return np.square(gaps).sum(-1).argmin(-1)


@pytest.fixture(scope="module")
def simulated() -> SimpleNamespace:
    """Scores (pools, episodes) of two classifiers on 300 independent pools, in episodes that TaskSampler draws."""
    labels = np.repeat([0, 1], CLASSES)
    columns = {"text": [str(i) for i in range(len(labels))], "label": labels, "domain": ["d"] * len(labels)}
    reviews = Dataset.from_dict(columns, features=FEATURES)
    generator = np.random.default_rng(0)
    correct: dict[str, list[np.ndarray]] = {"one": [], "three": []}
    for seed in range(LISTS):  # the pools are independent of the lists of episodes: a few lists are enough
        episodes = Episodes.draw(TaskSampler(reviews, SHOTS, SHOTS, seed), COUNT)
        support = np.stack([task.support for task in episodes.tasks])
        query = np.stack([task.query for task in episodes.tasks])
        x = generator.normal(size=(POOLS // LISTS, len(labels), 3)) + labels[:, None] * SHIFT
        for name, features in (("one", x[..., :1]), ("three", x)):
            predicted = nearest_mean_predictions(features, support, query)
            correct[name].append((predicted == labels[query]).mean(-1))
    # The truth: fresh support and query sets, from a pool without end; its standard error is below 0.001.
    x = generator.normal(size=(40_000, 4 * SHOTS, 3))
    x[:, SHOTS : 2 * SHOTS] += SHIFT
    x[:, 3 * SHOTS :] += SHIFT
    truth = {}
    for name, features in (("one", x[..., :1]), ("three", x)):
        predicted = nearest_mean_predictions(
            features, np.arange(2 * SHOTS)[None], np.arange(2 * SHOTS, 4 * SHOTS)[None]
        )
        truth[name] = float((predicted[:, 0] == np.repeat([0, 1], SHOTS)).mean())
    values = {name: np.concatenate(parts) for name, parts in correct.items()}
    return SimpleNamespace(values=values, truth=truth, episodes=episodes)


def coverages(values: np.ndarray, truth: float, episodes: Episodes) -> tuple[float, float]:
    """Share of the pools whose 95% interval holds the truth: the library's, and the naive mean ± t · s/√J."""
    ours = [interval(one, episodes)["ci95"] for one in values]
    half = stats.t.ppf(0.975, COUNT - 1) * values.std(-1, ddof=1) / np.sqrt(COUNT)
    naive = np.abs(values.mean(-1) - truth) <= half
    return float(np.mean([low <= truth <= high for low, high in ours])), float(naive.mean())


@pytest.mark.parametrize("name", ["one", "three"])
def test_interval_covers_the_true_score_where_the_naive_one_does_not(simulated: Any, name: str) -> None:
    ours, naive = coverages(simulated.values[name], simulated.truth[name], simulated.episodes)
    assert 0.90 <= ours <= 0.995
    assert naive < 0.75


def test_interval_covers_the_true_difference_where_the_naive_one_does_not(simulated: Any) -> None:
    differences = simulated.values["three"] - simulated.values["one"]
    truth = simulated.truth["three"] - simulated.truth["one"]
    assert truth > 0.05
    ours, naive = coverages(differences, truth, simulated.episodes)
    assert 0.90 <= ours <= 0.995
    assert naive < 0.75


def test_no_spread_gives_a_point_and_one_episode_gives_no_interval() -> None:
    three = episodes_of(["a"] * 3, {"a": 0.2})
    assert interval(np.full(3, 0.7), three) == {"mean": pytest.approx(0.7), "ci95": pytest.approx([0.7, 0.7])}
    one = episodes_of(["a"], {"a": 0.2})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert interval(np.array([0.7]), one) == {"mean": 0.7, "ci95": [None, None]}
        mixed = episodes_of(["a", "a", "b"], {"a": 0.2, "b": 0.2})  # the spread of b is not known
        assert interval(np.array([0.2, 0.4, 0.9]), mixed) == {"mean": pytest.approx(0.6), "ci95": [None, None]}


def half_width(point: dict[str, Any]) -> float:
    return (point["ci95"][1] - point["ci95"][0]) / 2


@pytest.mark.parametrize(("support", "query"), [(10, 10), (10, 20), (40, 5)])
def test_a_pool_used_up_gives_nadeau_and_bengios_correction(support: int, query: int) -> None:
    labels = [0] * (support + query) + [1] * (support + query)
    columns = {"text": [str(i) for i in range(len(labels))], "label": labels, "domain": ["d"] * len(labels)}
    sampler = TaskSampler(Dataset.from_dict(columns, features=FEATURES), support, query)
    episodes = Episodes.draw(sampler, 12)
    values = np.random.default_rng(0).uniform(size=12)
    corrected = (1 / 12 + query / support) * values.var(ddof=1)
    assert half_width(interval(values, episodes)) == pytest.approx(stats.t.ppf(0.975, 11) * np.sqrt(corrected))


def test_domains_count_alike_and_their_variances_add() -> None:
    a, b = np.array([0.2, 0.6, 0.4, 0.8]), np.array([0.9, 0.7])
    # Corrections by hand: a: 1/4 + (1/5)/(4/5) = 1/2; b: 1/2 + (1/2)/(1/2) = 3/2. s²: 0.2/3 and 0.02.
    of_a, of_b = 1 / 2 * 0.2 / 3, 3 / 2 * 0.02
    freedom = (of_a + of_b) ** 2 / (of_a**2 / 3 + of_b**2 / 1)
    found = interval(np.concatenate([a, b]), episodes_of(list("aaaabb"), {"a": 1 / 5, "b": 1 / 2}))
    assert found["mean"] == pytest.approx((0.5 + 0.8) / 2)  # not the mean of all six, 0.6
    assert half_width(found) == pytest.approx(stats.t.ppf(0.975, freedom) * np.sqrt(of_a + of_b) / 2)
    mixed = interval(np.array([0.9, 0.2, 0.6, 0.7, 0.4, 0.8]), episodes_of(list("baabaa"), {"a": 1 / 5, "b": 1 / 2}))
    assert mixed["mean"] == pytest.approx(found["mean"]) and mixed["ci95"] == pytest.approx(found["ci95"])


def test_interval_of_a_score_ends_at_0_and_1_and_that_of_a_difference_does_not() -> None:
    episodes = episodes_of(["a"] * 3, {"a": 0.5})
    values = np.array([1.0, 1.0, 0.9])
    assert interval(values, episodes)["ci95"][1] > 1
    assert score_interval(values, episodes)["ci95"][1] == 1
    assert score_interval(1 - values, episodes)["ci95"][0] == 0


# Methods


def noisy(labels: np.ndarray, wrong: list[list[int]]) -> np.ndarray:
    """The true classes, but for the places named for each episode."""
    predictions = labels.copy()
    for row, places in enumerate(wrong):
        predictions[row, places] = 1 - predictions[row, places]
    return predictions


LABELS = np.tile([0, 0, 0, 0, 1, 1, 1, 1], (4, 1))
MEDIUM = noisy(LABELS, [[0], [0, 1, 4], [0, 1, 4, 5, 6], [0, 1, 2, 3, 4, 5, 6]])  # 7, 5, 3 and 1 of 8 right
WORSE = noisy(LABELS, [[0, 5], [0, 1, 4, 5], [0, 1, 4, 5, 6, 7], [0, 1, 2, 3, 4, 5, 6, 7]])  # one fewer each


def test_differences_are_a_minus_b_and_paired_on_the_same_episodes() -> None:
    episodes = episodes_of(["a"] * 4, {"a": 0.2}, LABELS)
    pairs = compare({"b": WORSE, "a": MEDIUM, "c": LABELS}, episodes, "a")
    assert [(p["a"], p["b"], p["metric"]) for p in pairs] == [
        ("a", other, metric) for other in "bc" for metric in ("accuracy", "balanced_accuracy", "macro_f1")
    ]
    to_b, to_c = pairs[0], pairs[3]
    assert to_b["difference"] == pytest.approx(1 / 8) and to_b["ci95"] == pytest.approx([1 / 8, 1 / 8])
    assert to_c["difference"] == pytest.approx(-1 / 2) and to_c["ci95"][0] < -1 / 2 < to_c["ci95"][1]


def test_pairing_is_narrower_than_unpaired_where_scores_go_together(simulated: Any) -> None:
    one, three = (simulated.values[name][0] for name in ("one", "three"))
    assert np.corrcoef(one, three)[0, 1] > 0.2
    paired = half_width(interval(three - one, simulated.episodes))
    unpaired = np.hypot(half_width(interval(one, simulated.episodes)), half_width(interval(three, simulated.episodes)))
    assert paired < 0.9 * unpaired


def test_summary_has_each_domain_and_the_mean_of_the_domains() -> None:
    episodes = episodes_of(list("bbba"), {"a": 0.2, "b": 0.2}, LABELS)
    entry = summarise(MEDIUM, episodes)
    assert list(entry["domains"]) == ["a", "b"]
    assert entry["domains"]["a"]["accuracy"] == {"mean": 1 / 8, "ci95": [None, None]}
    assert entry["domains"]["b"]["accuracy"]["mean"] == pytest.approx(5 / 8)
    assert entry["overall"]["accuracy"]["mean"] == pytest.approx((1 / 8 + 5 / 8) / 2)


def test_curve_has_one_point_for_each_mark() -> None:
    episodes = episodes_of(["a"] * 4, {"a": 0.2}, LABELS)
    points = curve(np.stack([WORSE, MEDIUM, LABELS], axis=1), episodes)
    assert [point["mean"] for point in points] == pytest.approx([3 / 8, 1 / 2, 1])


# Several processes


class Counting:
    """Predicts episode · 10 + mark for every query; remembers which episodes it was asked for."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def predict_along(self, reviews: Any, task: Task, seed: tuple[int, ...], marks: list[int]) -> np.ndarray:
        assert seed == (5, task.index)
        self.asked.append(task.index)
        return np.array([[10 * task.index + mark] * 2 for mark in marks])


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_processes_share_the_episodes_and_each_is_done_once(processes: int) -> None:
    episodes = episodes_of(list("abcabca"), dict.fromkeys("abc", 0.2))

    def run(rank: int) -> tuple[torch.Tensor, list[int]]:
        """What one process brings to the sum, and the episodes that it did."""
        learner: Any = Counting()
        brought: list[torch.Tensor] = []

        def reduce(part: torch.Tensor, how: str) -> torch.Tensor:
            assert how == "sum"
            brought.append(part)
            return part

        accelerator: Any = SimpleNamespace(
            process_index=rank, num_processes=processes, device=torch.device("cpu"), reduce=reduce
        )
        predict_episodes(learner, None, episodes, [0, 3], 5, accelerator)  # type: ignore[arg-type]
        return brought[0], learner.asked

    parts, asked = zip(*map(run, range(processes)), strict=True)
    assert sorted(index for part in asked for index in part) == list(range(7))
    assert max(map(len, asked)) - min(map(len, asked)) <= 1
    expected = np.array([[[10 * i, 10 * i], [10 * i + 3, 10 * i + 3]] for i in range(7)])
    assert np.array_equal(sum(parts), expected)  # summed over the processes: all of them, in order
