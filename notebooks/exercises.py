"""The checks of the exercises.

Each `check_…` takes the learner's function. It prints one line where the answer is right, and raises AssertionError
with a hint that names the mistake where it is not. In the notebooks, `teaching.attempt` prints that hint.
"""

import math
from collections.abc import Callable
from functools import wraps
from typing import Any

import numpy as np


def exercise(check: Callable[[Any], None]) -> Callable[[Any], None]:
    """A check that tells of success, and in which whatever the answer raises becomes a hint."""

    @wraps(check)
    def run(answer: Any) -> None:
        try:
            check(answer)
        except AssertionError:
            raise
        except NotImplementedError:
            raise AssertionError(
                "nothing is written yet; replace `raise NotImplementedError` and run both cells"
            ) from None
        except Exception as error:
            raise AssertionError(f"your code stopped with {type(error).__name__}: {error}") from error
        print(f"Right: {check.__doc__}")

    return run


def close(found: Any, wanted: float) -> bool:
    """Whether an answer is a number, and the right one up to rounding."""
    assert found is not None, "your function returns None; did you forget `return`?"
    assert np.ndim(found) == 0, f"return one number, not something of shape {np.shape(found)}"
    return math.isclose(float(found), wanted, rel_tol=1e-9, abs_tol=1e-12)


# 01_dataset


@exercise
def check_balanced_accuracy(answer: Callable[[np.ndarray, np.ndarray], float]) -> None:
    """balanced accuracy counts both classes alike."""
    labels = np.array([0, 0, 0, 1, 1, 1, 1, 1, 1, 1])
    predictions = np.array([0, 1, 1, 1, 1, 1, 1, 1, 1, 0])
    recalls = (1 / 3, 6 / 7)
    found = answer(predictions, labels)
    right = close(found, np.mean(recalls))
    assert not close(found, 0.7), "this is plain accuracy: take the share of right answers in each class first"
    assert not close(found, np.mean((1 / 2, 6 / 8))), (
        "you divide by how often a class is predicted (precision); divide by how often it is true"
    )
    assert not any(close(found, recall) for recall in recalls), "this is the recall of one class: average over both"
    assert not close(found, sum(recalls)), "you add the two recalls: take their mean"
    assert not close(found, 1 - np.mean(recalls)), "this is the share of wrong answers: flip it"
    assert right, f"for recalls of 1/3 and 6/7 the answer is {np.mean(recalls):.4f}, yours is {float(found):.4f}"
    only = answer(np.array([1, 1, 0, 1]), np.array([1, 1, 1, 1]))
    assert not np.isnan(only), "where a class is absent from the labels you divide by zero: average over those present"
    assert close(only, 0.75), "where a class is absent from the labels, average over the classes that are present"


@exercise
def check_best_class(answer: Callable[[list[int], float], int]) -> None:
    """the best reader weighs the opinions against what it knew before reading."""
    for signs, wanted in (([1, 1, -1], 1), ([-1, -1, 1], 0)):
        found = answer(signs, 0.5)
        assert found is not None, "your function returns None; did you forget `return`?"
        assert found in (0, 1), f"return the class, 0 or 1, not {found!r}"
        assert found == wanted, f"flipped sign: the signs {signs} at equal shares speak for class {wanted}"
    assert answer([1, -1], 0.5) == 1, (
        "signs that cancel out at equal shares are a tie, and a tie goes to class 1: use ≥ in place of >, and a prior "
        "that is 0 at a share of 0.5"
    )
    assert answer([1, -1], 0.3) != 1 or answer([1, -1], 0.7) != 1, (
        "you leave out the prior: signs that cancel out leave log(share / (1 − share))"
    )
    assert answer([1, -1], 0.7) == 1 and answer([1, -1], 0.3) == 0, (
        "the prior has the wrong sign: more positive reviews must speak for class 1"
    )
    assert answer([-1], 0.9) == 0, (
        "one sign weighs log(0.92 / 0.08), which is more than log(0.9 / 0.1): do not count signs as 1, nor let the "
        "prior decide alone"
    )
    assert answer([-1], 0.95) == 1, "a share of 0.95 outweighs one negative opinion: add the prior on the log scale"


# 02_task_sampling


@exercise
def check_draw_task(answer: Callable[..., tuple[np.ndarray, np.ndarray]]) -> None:
    """support and query are balanced, share no review, and follow from (seed, index)."""
    negatives, positives = np.arange(100, 130), np.arange(200, 270)
    shots, queries = 10, 10
    overlapping = repeating = False
    for index in range(20):
        drawn = answer(negatives, positives, shots, queries, seed=0, index=index)
        assert drawn is not None, "your function returns None; did you forget `return`?"
        support, query = (np.asarray(rows) for rows in drawn)
        for name, rows, count in (("support", support, shots), ("query", query, queries)):
            assert len(rows) == 2 * count, f"the {name} set has {len(rows)} rows: shots and queries are per class"
            assert np.isin(rows, np.concatenate([negatives, positives])).all(), (
                f"the {name} set holds numbers that are no rows of the domain: return rows, not their places"
            )
            low = int(np.isin(rows, negatives).sum())
            assert low == count, f"the {name} set is unbalanced ({low} negative of {len(rows)}): draw from each class"
            repeating |= len(set(rows.tolist())) < len(rows)
        overlapping |= bool(set(support.tolist()) & set(query.tolist()))
    assert not repeating, "one review comes twice in a set: draw without replacement"
    assert not overlapping, "query reviews stand in the support set: draw both at once, then cut"

    def rows(seed: int, index: int) -> list[int]:
        return np.concatenate(answer(negatives, positives, shots, queries, seed=seed, index=index)).tolist()

    first = rows(0, 3)
    rows(0, 4)
    assert rows(0, 3) == first, "the same (seed, index) gave another task: make the generator inside, from both"
    assert rows(0, 3) != rows(0, 4), "every index gives the same task: put the index into the generator's seed"
    assert rows(0, 3) != rows(1, 3), "every seed gives the same task: put the seed into the generator's seed"
    assert rows(0, 3) != rows(1, 2) and rows(2, 3) != rows(3, 2), (
        "(seed, index) and (index, seed), or equal sums of them, give the same task: seed with the pair, not a sum"
    )


@exercise
def check_chance_of_one_class(answer: Callable[[int, int, int], float]) -> None:
    """a support set that is drawn blindly may hold one class only."""
    total, draws = math.comb(10, 3), 3
    all_positive, all_negative = math.comb(6, draws) / total, math.comb(4, draws) / total
    found = answer(4, 6, draws)
    right = close(found, all_positive + all_negative)
    assert not close(found, 0.6**draws + 0.4**draws), (
        "you draw with replacement: after a positive review one less is left; count with `math.comb`"
    )
    assert not close(found, 0.6**draws), "you draw with replacement, and forget that all may be negative too"
    assert not close(found, all_positive), "this is the chance of positives only: add that of negatives only"
    assert not close(found, all_negative), "this is the chance of negatives only: add that of positives only"
    assert not close(found, 1 - all_positive - all_negative), "this is the chance of both classes: take one minus it"
    assert not close(found, all_positive * all_negative), (
        "a set is all positive *or* all negative: add, do not multiply"
    )
    assert right, f"with 4 negatives, 6 positives and 3 draws it is {all_positive + all_negative:.4f}"
    assert close(answer(2, 6, 3), math.comb(6, 3) / math.comb(8, 3)), "3 draws cannot all come from 2 negatives"
