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
