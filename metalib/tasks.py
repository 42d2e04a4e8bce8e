"""Tasks: one domain, a few labelled reviews to learn from (support) and others to be tested on (query)."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from textwrap import shorten

import numpy as np
import torch
from datasets import Dataset

from metalib.errors import BadInput
from metalib.models import TokenizedReviews


@dataclass(frozen=True)
class Task:
    """One task (an *episode* when it is used for evaluation).

    `support` (classes * shots,) and `query` (classes * queries,) are row numbers into the reviews that the sampler
    was given; each class has equally many rows in both, class by class.
    """

    support: np.ndarray
    query: np.ndarray
    domain: str
    index: int


class TaskSampler:
    """An endless list of tasks: `sampler[i]` is a pure function of (reviews, shots, queries, seed, i).

    No state moves when a task is drawn, so any process can draw any task in any order, today or after a restart.

    Args:
        reviews: columns `text`, `label` (ClassLabel) and `domain`; texts are unique within a domain.
        shots: labelled reviews per class in the support set.
        queries: reviews per class in the query set; 0 where a learner needs none.
        seed: of this list of tasks.
        in_turn: task i comes from domain i mod (number of domains), instead of a random one.

    Raises:
        BadInput: no reviews, or domains with too few of a class for shots + queries.
    """

    def __init__(self, reviews: Dataset, shots: int, queries: int, seed: int = 0, in_turn: bool = False) -> None:
        if shots < 1 or queries < 0:
            raise BadInput(f"shots={shots} with queries={queries}: shots must be at least 1, queries at least 0")
        if len(reviews) == 0:
            raise BadInput("there are no reviews to draw tasks from — name at least one domain for this split")
        self.shots, self.queries, self.seed, self.in_turn = shots, queries, seed, in_turn
        self.class_names: list[str] = reviews.features["label"].names
        self.labels = np.asarray(reviews["label"][:])
        domains = np.asarray(reviews["domain"][:])
        self.domains: list[str] = sorted(set(domains.tolist()))
        self.pools = {
            domain: [np.flatnonzero((domains == domain) & (self.labels == label))
                     for label in range(len(self.class_names))]
            for domain in self.domains
        }  # fmt: skip
        needed = shots + queries
        few = {domain: f"domain {domain!r} has {min(found)} {found[min(found)]} reviews"
               for domain, pool in self.pools.items()
               if min(found := {len(rows): name for rows, name in zip(pool, self.class_names, strict=True)}) < needed}
        if few:
            named = shorten(", ".join(few), 600, placeholder=" …")
            more = f", and so on ({len(few)} of {len(self.pools)} domains: {named})" if len(few) > 5 else ""
            raise BadInput(f"{', '.join(list(few.values())[:5])}{more}; shots={shots} with queries={queries} needs "
                           f"{needed} — lower one of them, or leave these domains out")  # fmt: skip

    def __getitem__(self, index: int) -> Task:
        if index < 0:
            raise IndexError(f"task index {index} is negative; tasks count from 0")
        generator = np.random.default_rng((self.seed, index))
        turn = index if self.in_turn else int(generator.integers(len(self.domains)))
        domain = self.domains[turn % len(self.domains)]
        # Without replacement, support before query: the two cannot share a review.
        drawn = [generator.choice(rows, self.shots + self.queries, replace=False) for rows in self.pools[domain]]
        return Task(
            support=np.concatenate([rows[: self.shots] for rows in drawn]),
            query=np.concatenate([rows[self.shots :] for rows in drawn]),
            domain=domain,
            index=index,
        )

    def query_share(self, domain: str) -> float:
        """Share of a class's reviews in one query set, averaged over the classes: how much two episodes overlap."""
        return float(np.mean([self.queries / len(rows) for rows in self.pools[domain]]))


def hash_reviews(*parts: Dataset) -> str:
    """SHA-256 over the texts, labels and domains of some sets of reviews, in order."""
    digest = hashlib.sha256()
    for reviews in parts:
        digest.update(b"%d\0" % len(reviews))
        for review in zip(*(reviews[name][:] for name in ("text", "label", "domain")), strict=True):
            digest.update(repr(review).encode())
    return digest.hexdigest()


def hash_given(weights: Iterable[torch.Tensor], *reviews: TokenizedReviews) -> str:
    """SHA-256 over what training leaves as it is: some weights, in order, and the tokens of some sets of reviews."""
    digest = hashlib.sha256()
    for tensor in weights:
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    for tokens in (tokens for part in reviews for tokens in part.tokens):
        digest.update(b"%d\0" % len(tokens) + tokens.tobytes())
    return digest.hexdigest()


def hash_tasks(tasks: Iterable[Task], texts: Sequence[str]) -> str:
    """SHA-256 over what the tasks are made of (domains and texts, in order): equal hashes mean equal tasks."""
    digest = hashlib.sha256()
    for task in tasks:
        digest.update(task.domain.encode() + b"\0")
        for part in (task.support, task.query):
            for row in part:
                text = texts[row].encode(errors="surrogatepass")
                digest.update(len(text).to_bytes(4, "big") + text)
            digest.update(b"\1")
    return digest.hexdigest()
