"""The two published settings as lists of tasks: the original's three low-resource domains, and ARSC's twelve tasks."""

from collections.abc import Sequence

import numpy as np
from datasets import Dataset

from metalib.errors import BadInput
from metalib.evaluation import Episodes
from metalib.reviews import Splits, split_domains
from metalib.tasks import Task

ARSC_TARGETS = ("books", "dvd", "electronics", "kitchen_&_housewares")
ARSC_DEV_ONLY = ("music", "video")  # their train splits were not published


def class_rows(labels: np.ndarray, rows: np.ndarray) -> list[np.ndarray]:
    """The rows of each class, 0 and 1."""
    return [rows[labels[rows] == label] for label in (0, 1)]


def natural_splits(
    reviews: Dataset, domains: Sequence[str], count: int, support: int, query: int, seed: int = 0
) -> Episodes:
    """The original's episodes: `support` reviews of a domain to learn from, `query` others.

    In both the domain's class balance, where the original cuts blindly.

    `count` splits of each domain, in turn. Where a domain has more reviews than the two take, one lot of them is drawn
    and split again and again, as if there were no others.

    Raises:
        BadInput: a domain with too few reviews.
    """
    labels, names = np.asarray(reviews["label"][:]), np.asarray(reviews["domain"][:])
    lots = {}
    for place, domain in enumerate(domains):
        found = np.flatnonzero(names == domain)
        if len(found) < support + query:
            raise BadInput(f"domain {domain!r} has {len(found)} reviews; a split takes {support + query}")
        drawn = np.random.default_rng((seed, place)).permutation(found)[: support + query]
        lots[domain] = class_rows(labels, drawn)
    tasks = []
    for index in range(count * len(domains)):
        domain = domains[index % len(domains)]
        lot, generator = lots[domain], np.random.default_rng((seed, len(domains) + index))
        positive = round(support * len(lot[1]) / (support + query))
        cuts = (support - positive, positive)
        mixed = [generator.permutation(rows) for rows in lot]
        first, rest = ([rows[part] for rows, part in zip(mixed, parts, strict=True)] for parts in
                       ([slice(None, cut) for cut in cuts], [slice(cut, None) for cut in cuts]))  # fmt: skip
        tasks.append(Task(np.concatenate(first), np.concatenate(rest), domain, index))
    overlap = dict.fromkeys(domains, query / (support + query))
    return Episodes(tasks, np.stack([labels[task.query] for task in tasks]), overlap)


def arsc_splits(
    reviews: Dataset, targets: Sequence[str] = ARSC_TARGETS, held_out: Sequence[str] = (), smallest: int = 1
) -> Splits:  # fmt: skip
    """ARSC's reviews for its protocol: `train` and `validation` of non-target domains, `test` of the target tasks.

    Meta-training takes the `train` splits of the non-target domains (music and video: `dev`). No text of a target
    domain, whichever its split, is among them. `test` holds the target tasks' `train` and `test` splits as published.

    Args:
        held_out: non-target products for validation, with all their splits as published.
        smallest: a training task with fewer reviews of a class is left out.
    """
    splits = split_domains(reviews, targets, held_out or 0)
    domains, names = np.asarray(reviews["domain"][:]), np.asarray(reviews["split"][:])
    target_rows = np.isin(domains, splits.test_domains) & np.isin(names, ("train", "test"))
    validation = np.isin(domains, splits.validation_domains)
    allowed = np.where([_product(domain) in ARSC_DEV_ONLY for domain in splits.train["domain"]], "dev", "train")
    training = splits.train.select(np.flatnonzero(np.asarray(splits.train["split"][:]) == allowed))
    return Splits(training.select(_large_enough(training, smallest)), reviews.select(np.flatnonzero(validation)),
                  reviews.select(np.flatnonzero(target_rows)))  # fmt: skip


def _product(domain: str) -> str:
    return domain.rpartition(".t")[0]


def _large_enough(reviews: Dataset, smallest: int) -> np.ndarray:
    """The rows of domains that have at least `smallest` reviews of each class."""
    labels, domains = np.asarray(reviews["label"][:]), np.asarray(reviews["domain"][:])
    sizes = {domain: np.bincount(labels[domains == domain], minlength=2).min() for domain in set(domains.tolist())}
    return np.flatnonzero([sizes[domain] >= smallest for domain in domains])


def arsc_tasks(test: Dataset) -> list[Task]:
    """One task for each domain and threshold: support = its `train` split, query = the whole of its `test` split."""
    domains, names = np.asarray(test["domain"][:]), np.asarray(test["split"][:])
    return [
        Task(np.flatnonzero((domains == domain) & (names == "train")),
             np.flatnonzero((domains == domain) & (names == "test")), domain, index)
        for index, domain in enumerate(sorted(set(domains.tolist())))
    ]  # fmt: skip


def arsc_validation_tasks(validation: Dataset, draws: int, shots: int = 5, seed: int = 0) -> list[Task]:
    """Tasks like the target tasks: `draws` supports of 5 + 5 from each `train` split (`dev` where there is none)."""
    labels = np.asarray(validation["label"][:])
    tasks: list[Task] = []
    for whole in arsc_tasks(validation):
        pool = whole.support
        if not len(pool):
            pool = np.flatnonzero((np.asarray(validation["domain"][:]) == whole.domain)
                                  & (np.asarray(validation["split"][:]) == "dev"))  # fmt: skip
        for _ in range(draws):
            generator = np.random.default_rng((seed, len(tasks)))
            support = [generator.choice(rows, shots, replace=False) for rows in class_rows(labels, pool)]
            tasks.append(Task(np.concatenate(support), whole.query, whole.domain, len(tasks)))
    return tasks


def threshold(domain: str) -> str:
    """`t4` of `books.t4`: from how many stars on a review counts as positive, which is known of every task."""
    return "t" + domain.rpartition(".t")[2]


def at_thresholds(reviews: Dataset) -> dict[str, np.ndarray]:
    """Threshold → all rows of the tasks at this threshold; nothing where tasks have none."""
    domains = np.asarray(reviews["domain"][:]).astype(str)
    names = sorted({threshold(domain) for domain in set(domains.tolist()) if ".t" in domain})
    return {name: np.flatnonzero(np.char.endswith(domains, f".{name}")) for name in names}


def threshold_rows(reviews: Dataset, per_class: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Threshold → some rows of the tasks at this threshold, as many of each class."""
    labels, found = np.asarray(reviews["label"][:]), {}
    for place, (name, whole) in enumerate(at_thresholds(reviews).items()):
        classes = class_rows(labels, whole)
        size, generator = min(per_class, *map(len, classes)), np.random.default_rng((seed, place))
        found[name] = np.concatenate([generator.choice(rows, size, replace=False) for rows in classes])
    return found


def log_odds(reviews: Dataset) -> dict[str, float]:
    """Threshold → log of positive : negative reviews of the tasks at this threshold."""
    labels = np.asarray(reviews["label"][:])
    shares = {name: labels[rows].mean() for name, rows in at_thresholds(reviews).items()}
    return {name: float(np.log(share / (1 - share))) for name, share in shares.items()}
