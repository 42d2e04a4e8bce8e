"""The checks of the exercises.

Each `check_…` takes the learner's function. It prints one line where the answer is right, and raises AssertionError
with a hint that names the mistake where it is not. In the notebooks, `teaching.attempt` prints that hint.
"""

import copy
import itertools
import math
import runpy
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cache, wraps
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from accelerate import Accelerator

import metalib.__main__
from metalib.config import Config
from metalib.learners import LEARNERS, Learner
from metalib.models import TokenizedReviews, load_model
from metalib.reviews import split_domains
from metalib.training import Workbench, extend_model, meta_train, training_tasks
from metalib.weights import Weights
from metalib.world import World


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
    assert close(answer(np.array([0, 1, 2, 2]), np.array([0, 1, 1, 2])), 2.5 / 3), (
        "there may be more classes than two: go through all class numbers that are in the labels"
    )


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
    pairs = [*itertools.product(range(4), range(300)), *((0, 10**power) for power in range(3, 7))]
    assert len({tuple(rows(*pair)) for pair in pairs}) == len(pairs), (
        "two different pairs give the same task: seed with the pair (seed, index) itself, not with a number made of it"
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


# 03_inner_loop


@exercise
def check_learn_task(answer: Callable[..., np.ndarray]) -> None:
    """φ is where the steps lead, and the weights stand at θ again."""
    theta, alpha = np.array([0.5, -1.0]), 0.1
    x = np.array([[1.0, 2.0], [0.5, -1.0], [-1.0, 1.5], [2.0, 0.5], [1.5, -0.5]])
    y = np.array([1.0, 2.0, -1.0, 0.5, 3.0])
    batches = [np.array([0, 1]), np.array([2, 3, 4]), np.array([1, 3])]

    def gradient(weights: np.ndarray, rows: np.ndarray) -> np.ndarray:
        return x[rows].T @ (x[rows] @ weights - y[rows]) / len(rows)

    def descend(step: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> np.ndarray:
        phi = theta
        for rows in batches:
            phi = phi - alpha * step(phi, rows)
        return phi

    weights = theta.copy()
    found = answer(weights, x, y, batches, alpha)
    right, everything = descend(gradient), np.arange(len(x))
    assert found is not None, "your function returns None; did you forget `return`?"
    assert np.shape(found) == (2,), f"return φ, an array of shape (2,), not something of shape {np.shape(found)}"
    assert same(weights, theta), (
        "weights not restored: `phi = weights` is a second name for the same array, and `-=` writes into it; copy first"
    )
    assert not same(found, theta), "you return θ: return φ, where the steps lead (a copy, if you restore afterwards)"
    assert not same(found, descend(lambda phi, rows: -gradient(phi, rows))), "flipped sign: go against the gradient"
    heap, pile = theta, np.zeros(2)
    for rows in batches:
        pile = pile + gradient(heap, rows)
        heap = heap - alpha * pile
    assert not same(found, heap), "gradients pile up: begin every step with a new gradient, do not add to the last one"
    assert not same(found, descend(lambda phi, rows: gradient(theta, rows))), (
        "every gradient is taken at θ: take each where the step before it has led"
    )
    assert not same(found, descend(lambda phi, rows: gradient(phi, everything))), (
        "each step uses all examples: use those of its minibatch"
    )
    assert not same(found, descend(lambda phi, rows: gradient(phi, rows) * len(rows))), (
        "you add the gradients of the examples: the loss is their mean, so divide by the size of the minibatch"
    )
    assert not same(found, descend(lambda phi, rows: gradient(phi, rows) * len(rows) / len(x))), (
        "you divide by the number of all examples: divide by the size of the minibatch"
    )
    assert not same(found, theta - alpha * gradient(theta, batches[0])), (
        "only the first step is taken: does `return` stand inside the loop?"
    )
    assert not same(found, right - theta), "this is φ − θ: return φ itself"
    assert same(found, right), f"φ should be {right.round(4)}, yours is {np.round(found, 4)}"


@exercise
def check_gradient_in_parts(answer: Callable[..., np.ndarray]) -> None:
    """parts that count by their size give the gradient of the whole."""
    each = np.array([[1.0, -2.0], [4.0, 0.5], [-3.0, 2.0], [2.5, 6.0], [0.5, -1.0], [7.0, 3.0], [-2.0, 8.0]])
    largest, asked = 3, []

    def gradient(part: np.ndarray) -> np.ndarray:
        assert len(part) > 0, "you ask for the gradient of an empty part: stop where the rows end"
        assert len(part) <= largest, f"{len(part)} rows at once, where at most {largest} fit: cut `rows` into parts"
        asked.append(list(part))
        return each[part].mean(0)

    rows = np.array([6, 2, 0, 5, 1, 3, 4])
    found = answer(gradient, rows, largest)
    assert found is not None, "your function returns None; did you forget `return`?"
    means = [each[rows[start : start + largest]].mean(0) for start in range(0, len(rows), largest)]
    right = each[rows].mean(0)
    assert not same(found, np.mean(means, 0)), (
        "mean of means: the last part has 1 row and counts as much as 3; weight each part by its size"
    )
    assert not same(found, np.sum(means, 0)), "you add the means of the parts: weight each by its share of the rows"
    assert not same(found, each[rows].sum(0)), "this is the gradient of the summed loss: divide by the number of rows"
    assert not same(found, np.mean(means[:-1], 0)), "the last, smaller part is dropped: its rows count, too"
    assert not same(found, np.sum(means[:-1], 0) * largest / len(rows)), (
        "the last, smaller part is dropped: its rows count, too"
    )
    assert not (same(found, means[-1]) or same(found, means[-1] / len(rows))), (
        "only the last part is left: each part overwrites the one before; add them up"
    )
    assert not same(found, np.sum(means, 0) * largest / len(rows)), (
        "every part is weighted as if it were full: weight by the rows that it holds"
    )
    seen = sorted(row for part in asked for row in part)
    assert seen == sorted(rows.tolist()), f"each row once: you asked for the parts {asked}"
    assert same(found, right), f"the gradient should be {right.round(4)}, yours is {np.round(found, 4)}"
    whole = answer(gradient, rows[:3], largest)
    assert same(whole, each[rows[:3]].mean(0)), "where all rows fit, the gradient is that of the one part"


# 04_reptile_outer_update


def same(found: Any, wanted: Any) -> bool:
    """Whether an answer is an array of the right shape and values, up to rounding."""
    return np.shape(found) == np.shape(wanted) and np.allclose(found, wanted, rtol=1e-9, atol=1e-12)


@exercise
def check_reptile_step(answer: Callable[..., None]) -> None:
    """θ moves by ε times the mean of φ − θ, and every task starts from θ."""
    theta, epsilon = np.array([1.0, -2.0, 0.5]), 0.3
    targets = [np.array([3.0, 0.0, 1.0]), np.array([-1.0, 2.5, 5.0]), np.array([0.0, 1.0, -4.0])]

    def adapt(weights: np.ndarray, target: np.ndarray) -> None:
        weights += 0.5 * (target - weights)

    weights = theta.copy()
    returned = answer(weights, targets, adapt, epsilon)
    phis = np.stack([theta + 0.5 * (target - theta) for target in targets])  # (tasks, P)
    mean = phis.mean(0)
    right = theta + epsilon * (mean - theta)
    chain, serial = [theta], theta
    for target in targets:
        chain.append(chain[-1] + 0.5 * (target - chain[-1]))
        serial = serial + epsilon * 0.5 * (target - serial)
    assert not (same(weights, theta) and same(returned, right)), (
        "the new θ is returned, but the weights stay where they are: write into them, `weights[:] = …`"
    )
    assert not same(weights, theta), (
        "the weights end where they began: every φ that you keep must be a copy, and the step must be written into "
        "`weights[:]`"
    )
    aliased = chain[-1] + epsilon * (np.mean(chain[1:], 0) - chain[-1])
    assert not (same(weights, chain[-1]) or same(weights, aliased)), (
        "`theta = weights` is a second name for the same numbers, not a copy: adapting moves both"
    )
    unrestored = [theta + epsilon * (np.mean(chain[1:], 0) - theta), theta + epsilon * (chain[-1] - theta) / 3]
    unrestored += [chain[-1] + epsilon * (np.mean(chain[1:], 0) - theta), chain[-1] + epsilon * (chain[-1] - theta) / 3]
    assert not any(same(weights, wrong) for wrong in unrestored), (
        "weights not restored: put them back to θ before each task, else the second task starts from the first φ"
    )
    assert not same(weights, phis[-1] + epsilon * (mean - theta)), (
        "weights not restored after the last task: the step must start from θ, yours starts from the last φ"
    )
    assert not same(weights, serial), (
        "this is algorithm 1, one task after the other: here all tasks of the meta-batch start from the same θ"
    )
    assert not same(weights, theta - epsilon * (mean - theta)), "flipped sign: θ moves towards φ, along φ − θ"
    assert not same(weights, theta + epsilon * (phis - theta).sum(0)), "you add the directions: take their mean"
    assert not same(weights, theta + epsilon * (phis - theta).mean(1)), (
        "mean over the wrong axis: average over the tasks, not over the weights"
    )
    assert not (same(weights, epsilon * mean) or same(weights, theta + epsilon * mean)), (
        "ε times φ: the step is ε times the difference φ − θ"
    )
    assert not same(weights, epsilon * theta + (1 - epsilon) * mean), (
        "ε and 1 − ε are exchanged: at ε = 0 nothing moves"
    )
    assert not same(weights, mean), "ε is left out: this is the mean of the φ"
    assert same(weights, right), f"the weights should end at {right.round(4)}, yours are at {np.round(weights, 4)}"


@exercise
def check_fomaml_direction(answer: Callable[..., np.ndarray]) -> None:
    """the direction of first-order MAML is downhill on the query minibatch, seen from φ."""
    theta, alpha = np.array([1.0, -0.5]), 0.1
    batches = [np.array([2.0, 1.0]), np.array([-1.0, 0.5]), np.array([0.5, -2.0])]

    def gradient(weights: np.ndarray, batch: np.ndarray) -> np.ndarray:
        return (weights - batch) + (weights - batch) ** 3

    before = theta.copy()
    found = answer(theta, batches, gradient, alpha)
    assert found is not None, "your function returns None; did you forget `return`?"
    assert same(theta, before), "θ itself has moved: `phi -= …` writes into θ; start from a copy"
    path = [theta]  # where the inner steps lead, the query included
    for batch in batches:
        path.append(path[-1] - alpha * gradient(path[-1], batch))
    right = -gradient(path[-2], batches[-1])
    assert not same(found, -right), "flipped sign: the direction goes downhill, against the gradient"
    assert not same(found, -gradient(theta, batches[-1])), "this is the gradient at θ: take it at φ"
    assert not same(found, -gradient(path[-1], batches[-1])), (
        "the query minibatch is among the inner steps: stop before it, φ must not have seen it"
    )
    assert not (same(found, path[-1] - theta) or same(found, (path[-1] - theta) / alpha)), (
        "this is Reptile's direction, all gradients together: first-order MAML takes the last one only"
    )
    assert not same(found, path[-2] - theta), "this is φ − θ: the direction is a gradient on the query minibatch"
    first = theta
    for batch in batches[1:]:
        first = first - alpha * gradient(first, batch)
    assert not same(found, -gradient(first, batches[0])), "the query is the last minibatch, not the first"
    assert not same(found, alpha * right), "one α too many: the direction is the gradient itself, the step comes later"
    fixed = theta - alpha * sum(gradient(theta, batch) for batch in batches[:-1])
    assert not same(found, -gradient(fixed, batches[-1])), (
        "every inner gradient is taken at θ: take each where the step before it has led"
    )
    assert same(found, right), f"the direction should be {right.round(4)}, yours is {np.round(found, 4)}"


# 05_evaluation


@exercise
def check_overall_score(answer: Callable[..., float]) -> None:
    """argmax over the classes, balanced in each episode, then a mean over episodes, then one over domains."""
    # Two queries and two classes: here an argmax over the queries has the right shape, too.
    logits = np.array([[[2.0, 3.0], [1.0, 4.0]], [[5.0, 1.0], [0.0, 2.0]], [[1.0, 2.0], [0.0, 0.5]]])
    labels = np.array([[0, 1], [0, 1], [0, 1]])
    found = answer(logits, labels, ["a", "a", "a"])
    right = close(found, 4 / 6)
    assert not close(found, np.mean(logits.argmax(1) == labels)), (
        "argmax over the wrong axis, the queries: the classes are the last axis"
    )
    assert right, f"of 6 balanced predictions 4 are right, which is {4 / 6:.4f}; yours is {float(found):.4f}"

    predictions = np.array([[1, 1, 1, 0, 0], [0, 1, 0, 0, 0], [1, 1, 1, 1, 1], [1, 0, 1, 1, 1]])
    labels = np.array([[0, 1, 1, 1, 1], [0, 1, 1, 1, 1], [0, 0, 0, 1, 1], [1, 1, 1, 1, 1]])
    domains = ["a", "a", "a", "b"]
    hits = predictions == labels
    recalls = [[hit[truth == c].mean() for c in np.unique(truth)] for hit, truth in zip(hits, labels, strict=True)]
    scores = [np.mean(recall) for recall in recalls]
    wanted = np.mean([np.mean(scores[:3]), scores[3]])
    found = answer(np.eye(2)[predictions], labels, domains)
    right = close(found, wanted)
    pooled = np.mean([hits[labels == c].mean() for c in (0, 1)])
    assert not (close(found, hits.mean()) or close(found, np.mean([hits[:3].mean(), hits[3].mean()]))), (
        "this is plain accuracy: take the share of right answers in each class of an episode first"
    )
    by_domain = [np.mean([hits[:3][labels[:3] == c].mean() for c in (0, 1)]), scores[3]]
    assert not (close(found, pooled) or close(found, np.mean(by_domain))), (
        "the predictions of several episodes are pooled: score each episode by itself, then average"
    )
    assert not close(found, np.mean(scores)), (
        "mean over the wrong tasks: all episodes count alike, so that a domain with many of them weighs more; average "
        "within each domain first"
    )
    assert not close(found, np.sum([np.mean(scores[:3]), scores[3]])), "you add the domains: take their mean"
    missing = hits[3].mean() / 2  # its only class, and a zero
    assert not close(found, np.mean([np.mean(scores[:3]), missing])), (
        "an episode without negative reviews gets a recall of 0 for them: average over the classes that occur"
    )
    assert not np.isnan(found), "a class that does not occur in an episode gives 0 / 0: leave it out there"
    assert right, f"with three episodes of domain a and one of b it is {wanted:.4f}, yours is {float(found):.4f}"
    assert close(answer(np.eye(3)[[[0, 1, 2, 2]]], np.array([[0, 1, 1, 2]]), ["a"]), 2.5 / 3), (
        "there may be more classes than two: go through all that are in an episode's labels"
    )


@exercise
def check_paired_difference(answer: Callable[..., tuple[float, float]]) -> None:
    """each episode is its own partner, and the standard error knows of the overlap."""
    first = {4: 0.90, 0: 0.70, 3: 0.80, 1: 0.95, 2: 0.60}
    second = {0: 0.60, 1: 0.75, 2: 0.55, 3: 0.80, 4: 0.65}
    overlap, count = 0.2, 5
    a, b = (np.array([scores[episode] for episode in range(count)]) for scores in (first, second))
    difference = a - b
    factor = 1 / count + overlap / (1 - overlap)
    found = answer(first, second, overlap)
    assert found is not None, "your function returns None; did you forget `return`?"
    assert np.shape(found) == (2,), "return two numbers: the mean difference and its standard error"
    mean, error = found
    assert not close(mean, -difference.mean()), "flipped sign: it is first − second"
    assert close(mean, difference.mean()), f"the mean difference is {difference.mean():.4f}, yours is {float(mean):.4f}"
    right = close(error, np.sqrt(factor * difference.var(ddof=1)))
    shuffled = np.array(list(first.values())) - np.array(list(second.values()))
    assert not any(close(error, np.sqrt(factor * shuffled.var(ddof=d))) for d in (0, 1)), (
        "episodes matched in the wrong order: the two dictionaries list them differently; match them by their number"
    )
    assert not any(close(error, np.sqrt(factor * (a.var(ddof=d) + b.var(ddof=d)))) for d in (0, 1)), (
        "this is the unpaired variance, s² of first plus s² of second: take the variance of the differences"
    )
    assert not any(close(error, difference.std(ddof=d)) for d in (0, 1)), (
        "this is the standard deviation of one episode, not the standard error of the mean: multiply s² by the factor"
    )
    assert not close(error, np.sqrt(factor * difference.var(ddof=0))), (
        "this is the population variance, divided by J: the sample variance is divided by J − 1, `ddof=1`"
    )
    assert not any(close(error, np.sqrt(difference.var(ddof=d) / count)) for d in (0, 1)), (
        "naive: without the overlap term this takes the episodes for independent; add ρ / (1 − ρ) to 1 / J"
    )
    assert not any(close(error, np.sqrt((1 / count + overlap) * difference.var(ddof=d))) for d in (0, 1)), (
        "you add ρ: it is ρ / (1 − ρ), since s² sees only a share 1 − ρ of the variance"
    )
    assert not any(close(error, factor * difference.var(ddof=d)) for d in (0, 1)), (
        "this is the variance of the mean: take its square root"
    )
    assert right, f"the standard error is {np.sqrt(factor * difference.var(ddof=1)):.4f}, yours is {float(error):.4f}"


# 06_many_gpus


@exercise
def check_contribution(answer: Callable[..., np.ndarray]) -> None:
    """the parts add up to the mean direction, however many processes there are."""
    for meta_batch, processes in ((5, 2), (5, 3), (4, 2), (1, 1), (2, 3)):
        directions = np.random.default_rng(meta_batch).normal(size=(meta_batch, 6)).astype(np.float32)
        learned: list[list[int]] = [[] for _ in range(processes)]

        def direction_of(place: int, mine: list[int], directions: np.ndarray = directions) -> np.ndarray:
            assert 0 <= place < len(directions), f"there is no task {place} in a meta-batch of {len(directions)}"
            mine.append(int(place))
            return directions[place].copy()

        parts = []
        for rank, mine in enumerate(learned):
            part = answer(lambda place, mine=mine: direction_of(place, mine), 6, meta_batch, rank, processes)
            assert part is not None, "your function returns None; did you forget `return`?"
            shares = f"process {rank} of {processes}, meta-batch {meta_batch}"
            assert np.shape(part) == (6,), (
                f"{shares}: return an array of `size` numbers, not something of shape {np.shape(part)}; a process that "
                "has no task sends zeros"
            )
            assert np.asarray(part).dtype == np.float64, (
                f"{shares}: the part is {np.asarray(part).dtype}; add up in float64, e.g. from `np.zeros(size)` on"
            )
            parts.append(np.asarray(part))
        places = sorted(place for mine in learned for place in mine)
        missing = sorted(set(range(meta_batch)) - set(places))
        twice = sorted({place for place in places if places.count(place) > 1})
        assert not missing, f"meta-batch {meta_batch}, {processes} processes: nobody learns task {missing[0]}"
        assert not twice, (
            f"meta-batch {meta_batch}, {processes} processes: task {twice[0]} is learned more than once; each process "
            "learns its own tasks only"
        )
        assert max(map(len, learned)) - min(map(len, learned)) <= 1, (
            f"meta-batch {meta_batch}, {processes} processes: they learn {[len(mine) for mine in learned]} tasks; "
            "share them out evenly, rank, rank + processes, …"
        )
        total, right = np.sum(parts, axis=0), directions.mean(axis=0, dtype=np.float64)
        means = [directions[mine].mean(axis=0, dtype=np.float64) for mine in learned if mine]
        if np.allclose(total, right, rtol=0, atol=1e-12):
            continue
        assert not np.allclose(total, right * meta_batch), "the parts add up to the sum of the directions: divide it"
        assert not np.allclose(total, right * meta_batch / processes), (
            "you divide by the number of processes: divide by the number of tasks"
        )
        assert not np.allclose(total, np.sum(means, axis=0)), (
            "you return the mean of a process's own directions: the sum of these means is no mean of all"
        )
        assert not np.allclose(total, np.sum(means, axis=0) / processes), (
            f"a mean of means: with {meta_batch} tasks on {processes} processes, the tasks of those with fewer count "
            "for more"
        )
        near = np.allclose(total, right, rtol=0, atol=1e-6)
        assert not near, "right up to rounding: add up in float64 from the start"
        raise AssertionError(f"meta-batch {meta_batch}, {processes} processes: the parts do not add up to the mean")


@exercise
def check_meta_step_seconds(answer: Callable[[int, int, int, float, float], float]) -> None:
    """the slowest GPU's tasks, then the ring."""
    numbers, meta_batch, gpus, seconds, gbits = 100_000_000, 64, 24, 0.5, 10.0
    computing, bits = 3 * seconds, 64 * numbers
    sending = 2 * 23 / 24 * bits / (gbits * 1e9)
    found = answer(numbers, meta_batch, gpus, seconds, gbits)
    right = close(found, computing + sending)
    rest = float(found) - computing
    assert not close(found, computing), "this is the computing alone: add the time for sending"
    assert not close(found, sending), "this is the sending alone: add the time for computing"
    assert not close(float(found) - sending, 64 / 24 * seconds) and not close(float(found) - sending, 2 * seconds), (
        "64 tasks on 24 GPUs: some GPU has 3 of them, and all wait for it; round up with `math.ceil`"
    )
    assert not close(float(found) - sending, 64 * seconds), "the tasks are learned side by side, by all the GPUs"
    assert not close(rest, sending / 8), "networks count bits, not bytes: times 8"
    assert not close(rest, sending / 2), (
        "the sending takes half of what it should: a float64 has 8 bytes (not 4), and every piece goes round the ring "
        "twice, first to be summed, then to be handed on"
    )
    assert not close(rest, sending * 24 / 23), "a GPU sends 2 (N − 1) / N times the vector: it keeps one piece in N"
    assert not close(rest, sending * 24), "in each round a GPU sends one piece of N, not the whole vector"
    assert not close(rest, bits / (gbits * 1e9)), (
        "a GPU sends 2 (N − 1) / N times the vector, not once the vector: it goes round to be summed, then to be "
        "handed on"
    )
    assert not close(rest, sending * 1e9 / 2**30), "1 Gbit is 10⁹ bits, not 2³⁰"
    assert right, f"here the computing takes {computing} s and the sending {sending:.3f} s"
    assert close(answer(numbers, 5, 1, seconds, gbits), 5 * seconds), "a single GPU sends nothing"


# 07_other_learners


@exercise
def check_linear_prototypes(answer: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]) -> None:
    """the matrix and the bias score as the distances to the prototypes do."""
    rng = np.random.default_rng(0)
    support, queries = rng.normal(size=(9, 4)) + 1, rng.normal(size=(6, 4))
    labels = np.array([0, 2, 1, 0, 2, 1, 2, 2, 0])
    centres = np.stack([support[labels == k].mean(0) for k in range(3)])  # (classes, hidden)
    found = answer(support, labels)
    assert found is not None, "your function returns None; did you forget `return`?"
    assert isinstance(found, tuple) and len(found) == 2, "return two arrays: W of shape (classes, hidden), and b"
    w, b = (np.asarray(part) for part in found)
    assert w.shape != (4, 3), "W is (hidden, classes): its rows belong to the classes, transpose it"
    assert w.shape == (3, 4), f"W must be (classes, hidden) = (3, 4), yours is {w.shape}"
    assert b.shape == (3,), f"b must hold one number for each class, (3,), yours is {b.shape}"

    def alike(w: np.ndarray, b: np.ndarray, other_w: np.ndarray, other_b: np.ndarray) -> bool:
        """Whether the scores differ by no more than what all classes share."""
        gap = queries @ (w - other_w).T + (b - other_b)  # (queries, classes)
        return bool(np.allclose(gap, gap[:, :1]))

    norms = (centres**2).sum(1)
    sums = centres * np.bincount(labels)[:, None]
    assert not alike(w, b, centres, -norms), "the factor 2 is missing: −‖f − c‖² has 2 c·f in it"
    assert not alike(w, b, centres, -norms / 2), (
        "the ranking is right, but all scores are halved: keep the factor 2, so that the softmax is the same, too"
    )
    assert not alike(w, b, 2 * centres, norms), "b has the wrong sign: it is −‖c‖²"
    assert not alike(w, b, 2 * centres, 0 * norms), "b is left out: −‖c‖² differs from class to class"
    assert not alike(w, b, 2 * centres, -np.sqrt(norms)), "the norm in b must be squared"
    assert not alike(w, b, -2 * centres, norms), "flipped sign: these are distances, and near must score high"
    assert not alike(w, b, 2 * sums, -(sums**2).sum(1)), "you add the features of a class: a prototype is their mean"
    assert alike(w, b, 2 * centres, -norms), "the scores do not differ between classes as −‖f − c‖² does"


@exercise
def check_maml_direction(answer: Callable[..., np.ndarray]) -> None:
    """the direction of MAML is that of first-order MAML, sent back through every inner step."""
    rng = np.random.default_rng(1)
    theta, alpha, kinds = rng.normal(size=3), 0.15, range(4)
    roots, centres = rng.normal(size=(4, 3, 3)), rng.normal(size=(4, 3))
    batches = list(kinds)

    def gradient(weights: np.ndarray, batch: int) -> np.ndarray:
        away = weights - centres[batch]
        return roots[batch] @ roots[batch].T @ away + 0.5 * away**3

    def hessian(weights: np.ndarray, batch: int) -> np.ndarray:
        return roots[batch] @ roots[batch].T + np.diag(1.5 * (weights - centres[batch]) ** 2)

    before = theta.copy()
    found = answer(theta, batches, gradient, hessian, alpha)
    assert found is not None, "your function returns None; did you forget `return`?"
    assert same(theta, before), "θ itself has moved: `phi -= …` writes into θ; start from a copy"
    path = [theta]
    for batch in batches:
        path.append(path[-1] - alpha * gradient(path[-1], batch))
    last, one = gradient(path[-2], batches[-1]), np.eye(3)

    def back(factors: list[np.ndarray]) -> np.ndarray:
        """The factors of the first step stand leftmost."""
        end = last
        for factor in reversed(factors):
            end = factor @ end
        return -end

    hessians = [hessian(path[step], batch) for step, batch in enumerate(batches[:-1])]
    factors = [one - alpha * h for h in hessians]
    right = back(factors)
    late = [one - alpha * hessian(path[step + 1], batch) for step, batch in enumerate(batches[:-1])]
    assert np.shape(found) == (3,), f"return one direction of shape (3,), not something of shape {np.shape(found)}"
    assert not same(found, -right), "flipped sign: the direction goes downhill, against the gradient"
    assert not same(found, -last), "this is first-order MAML: the factors I − α H are missing"
    assert not same(found, back(factors[::-1])), (
        "the factors stand in the wrong order: go back from the query, so that the last inner step's comes first"
    )
    assert not same(found, back([one + alpha * h for h in hessians])), "each factor is I − α H, with a minus"
    assert not same(found, back([one - h for h in hessians])), "α is missing: each factor is I − α H"
    assert not same(found, back([one - alpha * hessian(theta, batch) for batch in batches[:-1]])), (
        "every Hessian is taken at θ: take each where its step began"
    )
    assert not same(found, back(late)), "each Hessian is taken one step too late: take it where its step began"
    assert not same(found, back([*factors, one - alpha * hessian(path[-2], batches[-1])])), (
        "the query minibatch has a factor, too: it is no inner step"
    )
    assert not same(found, back(factors[-1:])), "only the last inner step has a factor: all of them have"
    assert not same(found, back([one * f for f in factors])), "`*` multiplies number by number: use `@`"
    assert same(found, right), f"the direction should be {right.round(4)}, yours is {np.round(found, 4)}"


MOST_LINES = 40


@exercise
def check_tenth_learner(answer: str | Path) -> None:
    """one file, a rule of its own: it trains through the outer loop, and leaves no trace."""
    file = Path(answer)
    lines = file.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= MOST_LINES, f"the file has {len(lines)} lines: {MOST_LINES} at most"
    with library_as_it_was() as (before, changed):
        kind = only_learner_in(file, before)
        assert not changed(), f"your file changes {changed()[0]}: leave the library alone, inherit from its classes"
        bench = small_bench(kind.name)
        config = bench.config.for_learner(kind.name)
        learner, reviews = bench.learner(config), bench.reviews["train"]
        tasks = [training_tasks(config, bench.splits.train)[index] for index in (0, 1)]
        dice, mode = torch.get_rng_state(), bench.model.training

        def direction(task: int) -> np.ndarray:
            found = learner.direction(reviews, tasks[task], (0, task))
            assert isinstance(found, tuple) and len(found) == 2, "`direction` returns two tensors: direction and losses"
            assert found[0].shape == bench.theta_0.shape, (
                f"the direction has the shape {tuple(found[0].shape)}, but θ has {tuple(bench.theta_0.shape)}"
            )
            assert torch.equal(bench.weights.flat, bench.theta_0), (
                "the weights do not end at θ: put them back, `self.weights.restore(theta)`, or work inside `untouched`"
            )
            assert found[1].dim() == 1 and len(found[1]) >= 1, "the losses are a tensor of shape (n,), n at least 1"
            return found[0].detach().clone().numpy()

        first, second = direction(0), direction(1)
        assert np.isfinite(first).all(), "the direction has numbers in it that are not finite"
        assert first.any(), "the direction is zero: θ would never move"
        assert np.array_equal(direction(0), first), (
            "the same task and seed gave another direction: draw inside `seeded(seed)`, keep nothing from task to task"
        )
        assert not np.array_equal(first, second), "two tasks gave the same direction: look at `task`"
        assert torch.equal(torch.get_rng_state(), dice), "the random state has moved: draw inside `seeded(seed)`"
        assert bench.model.training == mode, "the model is in another mode than before: work inside `untouched`"
        classes = learner.predict(bench.reviews["test"], a_test_task(bench), (0, 0))
        assert set(classes.tolist()) <= {0, 1}, f"the classes are 0 and 1; you predict {sorted(set(classes.tolist()))}"
        assert torch.equal(bench.weights.flat, bench.theta_0), "a prediction has left its trace in the weights"
        with tempfile.TemporaryDirectory() as folder:
            meta_train(bench, config, Path(folder))
        assert not torch.equal(bench.weights.flat, bench.theta_0), "after some meta-steps θ is where it was"


@contextmanager
def library_as_it_was() -> Iterator[tuple[dict[str, type[Learner]], Callable[[], list[str]]]]:
    """Yields the learners that there are, and what tells which things of the library are not what they were.

    Afterwards all of it is what it was.
    """
    learners = dict(LEARNERS)
    owners = [module for name, module in sys.modules.items() if name.partition(".")[0] == "metalib"]
    held = [(owner, name, value) for owner in (*owners, *learners.values()) for name, value in vars(owner).items()]

    def changed() -> list[str]:
        return [f"{owner.__name__}.{name}" for owner, name, value in held if vars(owner).get(name) is not value]

    try:
        yield learners, changed
    finally:
        for owner, name, value in held:
            if vars(owner).get(name) is not value:
                setattr(owner, name, value)
        LEARNERS.clear()
        LEARNERS.update(learners)


def only_learner_in(file: Path, before: dict[str, type[Learner]]) -> type[Learner]:
    """The learner that the file defines, found where all are; and a check that the file can be run."""
    with mock.patch.object(metalib.__main__, "main", return_value=0) as started:
        try:
            runpy.run_path(str(file), run_name="tenth")
        except SystemExit:
            raise AssertionError("importing your file ends the program: write `if __name__ == '__main__':`") from None
        assert not started.called, "importing your file starts a run: write `if __name__ == '__main__':` before it"
        found = {name: kind for name, kind in LEARNERS.items() if before.get(name) is not kind}
        taken = sorted(set(found) & set(before))
        assert not taken, f"the name {taken[:1]} is taken: choose another"
        assert found, "no learner is defined: inherit from `Learner` or one of its subclasses, and give it a `name`"
        assert len(found) == 1, f"one learner is wanted, yours are {sorted(found)}"
        kind = next(iter(found.values()))
        assert getattr(kind, "outer", None) in ("sgd", "adam"), "give it an outer optimiser: outer = 'sgd' or 'adam'"
        with suppress(SystemExit):
            runpy.run_path(str(file), run_name="__main__")
        assert started.called, "the file starts nothing when it is run: let it end with a call of metalib's `main`"
    return kind


@cache
def small_data() -> tuple[Config, Any, Any, Any]:
    """Settings of a run of seconds, a few reviews of six domains, and a tiny model that nobody has touched."""
    config = Config(
        test_domains=("automotive",), validation_domains=("books",), max_length=48, baselines=(), meta_steps=2,
        meta_batch=2, train_shots=6, train_queries=5, inner_steps=3, inner_batch=5, shots=5, queries=5, adapt_steps=3,
        validations=0,
    )  # fmt: skip
    everything = World().reviews()
    domains = everything["domain"][:]
    firsts = [domains.index(domain) for domain in ("automotive", "baby", "books", "dvd", "music")]
    reviews = everything.select([row for first in firsts for row in range(first, first + 100)])
    splits = split_domains(reviews, config.test_domains, config.validation_domains, config.split_seed)
    names = splits.train.features["label"].names
    return config, splits, names, load_model("tiny", splits.train["text"], names, 0, 0, config.max_length)


def small_bench(name: str) -> Workbench:
    """A workbench for one learner, made anew each time."""
    config, splits, _, (model, tokenizer) = small_data()
    config, model = replace(config, learner=name), copy.deepcopy(model)
    extend_model(model, config)
    parts = {"train": splits.train, "validation": splits.validation, "test": splits.test}
    reviews = {part: TokenizedReviews(rows, tokenizer, config.max_length) for part, rows in parts.items()}
    weights = Weights(model)
    return Workbench(config, Accelerator(cpu=True), splits, model, tokenizer, weights, reviews)


def a_test_task(bench: Workbench) -> Any:
    """A task of the test domain."""
    return training_tasks(replace(bench.config, train_shots=5, learner="fomaml"), bench.splits.test)[0]


# 08_when_does_it_pay


@exercise
def check_who_wins(answer: Callable[[dict[str, Any]], str]) -> None:
    """surely above joint training, and by the simultaneous interval."""

    def pair(a: str, b: str, difference: float, narrow: float, wide: float | None) -> dict[str, Any]:
        ends = [None, None] if wide is None else [difference - wide, difference + wide]
        plain = [difference - narrow, difference + narrow]
        return {"a": a, "b": b, "difference": difference, "ci95": plain, "simultaneous": ends}

    def ask(pairs: list[dict[str, Any]], **means: float) -> str:
        entries = {name: {"mean": mean, "ci95": [mean - 0.1, mean + 0.1]} for name, mean in means.items()}
        found = answer({"shots": 5, "episodes": 60, "methods": entries, "paired": pairs})
        assert found is not None, "your function returns None; did you forget `return`? No winner is 'joint'"
        assert isinstance(found, str), f"return a learner's name, not {type(found).__name__}"
        return found

    sure, vague = pair("reptile", "joint", 0.05, 0.02, 0.03), pair("protonet", "joint", 0.07, 0.06, 0.08)
    found = ask([vague, sure, pair("protonet", "reptile", 0.02, 0.03, 0.04)], joint=0.8, reptile=0.85, protonet=0.87)
    assert found != "protonet", (
        "protonet has the largest difference, but its simultaneous interval, -0.01 to 0.15, reaches below zero: the "
        "plain `ci95` and the mean do not settle it"
    )
    assert found == "reptile", f"reptile alone is surely above joint training here; you answer {found!r}"
    both = [sure, pair("protonet", "joint", 0.09, 0.02, 0.03), pair("protonet", "reptile", 0.04, 0.01, 0.02)]
    found = ask(both, joint=0.8, reptile=0.85, protonet=0.89)
    assert found == "protonet", (
        f"two learners are surely above joint training, protonet by 0.09 and reptile by 0.05; you answer {found!r}: "
        "take the larger difference"
    )
    close_call = [pair("reptile", "joint", 0.03, 0.02, 0.04), pair("protonet", "joint", -0.02, 0.01, 0.02)]
    rest = pair("reptile", "protonet", 0.05, 0.01, 0.02)
    found = ask([*close_call, rest], joint=0.8, reptile=0.83, protonet=0.78)
    assert found == "joint", (
        "nobody is surely above joint training, that reptile is above protonet does not count, and neither does its "
        f"plain `ci95`; you answer {found!r}"
    )
    found = ask([pair("reptile", "joint", 0.4, 0.1, None)], joint=0.5, reptile=0.9)
    assert found == "joint", "an interval with the ends None says nothing: no winner there"
    found = ask([pair("reptile", "joint", -0.05, 0.01, 0.02)], joint=0.9, reptile=0.85)
    assert found == "joint", "reptile is surely *below* joint training here: that is no win"


@exercise
def check_known_beforehand(answer: Callable[[float, float], float]) -> None:
    """so much can be known of a new domain before its support set is seen."""

    def share(known: float, counts: tuple[int, ...] = (2, 3, 4), tie: float = 0.5) -> float:
        total = 0.0
        for n in counts:
            for j in range(n + 1):
                chance = math.comb(n, j) * known**j * (1 - known) ** (n - j) / len(counts)
                for a in range(j + 1):
                    worth = 1.0 if 2 * a > j else tie if 2 * a == j else 0.0
                    total += chance * worth * math.comb(j, a) * 0.92**a * 0.08 ** (j - a)
        return total

    found = answer(0.5, 0.8)
    known = 0.5 * 0.6
    right = close(found, share(known))
    assert not close(found, 100 * share(known)), "a share of 1, please, not percent"
    assert not close(found, share(0.5)), "you leave out the cue: with it, some of the other words are private"
    assert not close(found, share(0.5 * 0.2)), "only half of the cue is the share of private words: 1 − u / 2"
    assert not close(found, share(0.6)), "you leave out the conflict: contrary words are not known beforehand"
    assert not close(found, share(1 - known)), "flipped: you count the words that are *not* known"
    assert not close(found, share(known, tie=0.0)), "a tie is half right: a coin is tossed; you count it as wrong"
    assert not close(found, share(known, tie=1.0)), "a tie is half right: a coin is tossed; you count it as right"
    assert not close(found, share(known, (3,))), "three words are the mean: take 2, 3 and 4, a third each"
    assert not close(found, share(known, (1,))), "this is a review of one word: take 2, 3 and 4, a third each"
    assert not close(found, 3 * share(known)), "each number of words has the probability 1/3"
    assert right, f"at conflict 0.5 and cue 0.8 it is {share(known):.4f}, yours is {float(found):.4f}"
    for conflict, cue in ((0.0, 0.0), (1.0, 0.3), (0.75, 0.0)):
        wanted = share((1 - conflict) * (1 - cue / 2))
        assert close(answer(conflict, cue), wanted), f"at conflict {conflict} and cue {cue} it is {wanted:.4f}"


# 09_your_own_domain


@exercise
def check_to_answers(answer: Callable[[np.ndarray, list[str]], list[tuple[str, float]]]) -> None:
    """each text has its most likely class, and that class's share of the softmax."""
    names = ["bad", "mixed", "good"]
    logits = np.array([[2.0, 0.5, 1.0], [-1.0, 0.5, 3.0], [0.2, 0.4, 0.1], [0.0, 0.3, -0.2]])
    powers = np.exp(logits)
    wanted = powers / powers.sum(axis=1, keepdims=True)
    before = logits.copy()
    found = answer(logits, names)
    assert found is not None, "your function returns None; did you forget `return`?"
    assert np.array_equal(logits, before), "the logits that came in have changed: work on a copy"
    found = list(found)
    assert len(found) == 4, f"four texts need four answers; yours are {len(found)}"
    assert all(len(one) == 2 for one in found), "each answer is a pair: (label, score)"
    labels, scores = [one[0] for one in found], np.array([float(one[1]) for one in found])
    assert all(label in names for label in labels), f"give the class's name, not {labels[0]!r}"
    assert labels != [names[row.argmin()] for row in logits], "these are the least likely classes: argmax, not argmin"
    assert labels == ["bad", "good", "mixed", "mixed"], (
        f"the labels should be bad, good, mixed, mixed; yours are {labels}: take the argmax along the classes, axis 1"
    )
    best = [0, 2, 1, 1]
    rows = np.arange(4)
    assert not np.allclose(scores, logits[rows, best]), "these are the logits themselves: take their softmax"
    assert not np.allclose(scores, powers[rows, best]), "divide the powers by their sum: the scores of a text sum to 1"
    assert not np.allclose(scores, (powers / powers.sum(axis=0))[rows, best]), (
        "you divide by the sum over the texts: a text's scores must not depend on its neighbours; sum over axis 1"
    )
    assert not np.allclose(scores, (powers / powers.sum())[rows, best]), (
        "you divide by the sum of everything: the scores of *each* text sum to 1; sum over axis 1"
    )
    assert not np.allclose(scores, wanted[:, -1]), "these are the last class's scores: give those of the named class"
    assert np.allclose(scores, wanted[rows, best]), (
        f"the first score is {wanted[0, 0]:.4f}, yours is {scores[0]:.4f}: exp(logit) over the sum of exp(logits)"
    )
    with np.errstate(all="ignore"):
        (label, score), (other, lower) = answer(np.array([[1000.0, 999.0, 0.0], [0.0, 1.0, 2.0]]), names)
    assert label == "bad" and math.isclose(float(score), 1 / (1 + math.exp(-1)), rel_tol=1e-6), (
        "a logit of 1000 overflows: exp(1000) is infinite. Take each row's largest logit away first; the softmax is "
        "the same"
    )
    assert other == "good" and math.isclose(float(lower), 1 / (1 + math.exp(-1) + math.exp(-2)), rel_tol=1e-6), (
        "beside a text with a logit of 1000, an ordinary one gets no score: take away each row's own largest logit"
    )


@exercise
def check_labels_needed(answer: Callable[[list[float], float], int]) -> None:
    """so many test texts of each class make an interval of that width."""
    recalls, half = [0.9, 0.7], 0.04
    z, spread = 1.96, 0.9 * 0.1 + 0.7 * 0.3
    found = answer(recalls, half)
    assert found is not None, "your function returns None; did you forget `return`?"
    assert np.ndim(found) == 0, f"return one number, not something of shape {np.shape(found)}"
    assert float(found).is_integer(), f"there are no {float(found):.2f} texts: round up"
    assert found != math.floor(z**2 * spread / 4 / half**2), "rounded down, it is one text too few: round up"
    wrong = {
        z**2 * spread / half**2: "you add the variances of the recalls: the mean of two has a quarter of that sum",
        z**2 * spread / 2 / half**2: "the variance of a mean of two is their sum over 2², not over 2",
        spread / 4 / half**2: "a 95% interval is 1.96 standard errors to each side; you take one",
        z**2 * spread / half**2 / 16: "half_width is the way to *one* side, not the whole width of the interval",
        z**2 * (0.9 + 0.7) / 4 / half**2: "a share r has the variance r (1 − r) / n, not r / n",
        z**2 * (0.8 * 0.2) / 2 / half**2: "each class has a variance of its own: do not average the recalls first",
        z * math.sqrt(spread) / 2 / half: "solve for n: the width shrinks with the *root* of n, so square it",
    }
    for value, hint in wrong.items():
        assert found != math.ceil(value), hint
    wanted = math.ceil(z**2 * spread / 4 / half**2)
    assert found != 2 * wanted, "these are the texts of both classes together: say how many of *each*"
    assert found == wanted, f"for recalls of 0.9 and 0.7 and ± 4 points it is {wanted} of each class, yours is {found}"
    three = answer([0.9, 0.7, 0.8], half)
    assert three == 123, f"with three classes, the mean's variance is the summed one over 9: 123, not {three}"
