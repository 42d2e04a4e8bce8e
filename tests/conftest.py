"""What several test modules share: a few hundred reviews of the generated world, and a workbench on them."""

import os
import sys
from collections.abc import Iterator
from dataclasses import replace

import pytest
from datasets import Dataset

from metalib.config import Config
from metalib.processes import make_accelerator
from metalib.reviews import Splits, split_domains
from metalib.training import Workbench, prepare
from metalib.world import World

if not any("test_gpu" in word for word in sys.argv):
    os.environ.setdefault("ACCELERATE_USE_CPU", "true")  # what is tested is the same on every machine

DOMAINS = ("automotive", "baby", "books", "dvd", "music", "office_products")
TEST_DOMAINS = ("automotive", "office_products")
ROWS = 100  # of each domain: 30 negative, 70 positive ones, about


@pytest.fixture(scope="session")
def world_reviews() -> Dataset:
    """All reviews of the default world."""
    return World().reviews()


@pytest.fixture(scope="session")
def reviews(world_reviews: Dataset) -> Dataset:
    """The first 100 reviews of six domains: enough for 10 shots and 10 queries, or 20 and 0."""
    domains = world_reviews["domain"][:]
    firsts = {domain: domains.index(domain) for domain in DOMAINS}
    return world_reviews.select([row for first in firsts.values() for row in range(first, first + ROWS)])


@pytest.fixture(scope="session")
def config() -> Config:
    """A run of seconds: 6 meta-steps of 2 tasks, 4 inner steps; data is not named, take `splits`."""
    return Config(
        test_domains=TEST_DOMAINS, validation_domains=("books",), max_length=48,
        meta_steps=6, meta_batch=2, train_shots=6, inner_steps=4, inner_batch=5, inner_lr=3e-3,
        shots=5, queries=5, adapt_steps=3, adapt_lr=3e-3, adapt_batch=5,
        eval_episodes=4, validations=2, validation_episodes=3, checkpoint_every=3,
    )  # fmt: skip


@pytest.fixture(scope="session")
def splits(reviews: Dataset, config: Config) -> Splits:
    """Training: baby, dvd, music; validation: books; test: automotive, office_products."""
    return split_domains(reviews, config.test_domains, config.validation_domains, config.split_seed)


@pytest.fixture(scope="session")
def shared_bench(config: Config, splits: Splits) -> Workbench:
    """Use `bench`, which puts θ₀ back."""
    return prepare(config, splits, make_accelerator())


@pytest.fixture
def bench(shared_bench: Workbench) -> Iterator[Workbench]:
    """The tiny model on the small reviews, standing at θ₀ in evaluation mode before and after each test."""

    def put_back() -> None:
        shared_bench.weights.restore(shared_bench.theta_0)
        shared_bench.weights.grad.zero_()
        shared_bench.model.eval()

    put_back()
    yield shared_bench
    put_back()


@pytest.fixture(scope="session")
def shared_family(config: Config, splits: Splits) -> Workbench:
    """Use `family`, which puts θ₀ back."""
    return prepare(replace(config, baselines=("siamese", "relation")), splits, make_accelerator())


@pytest.fixture
def family(shared_family: Workbench) -> Iterator[Workbench]:
    """As `bench`, with the learners' own modules in the vector; at θ₀ · 3, where texts differ clearly."""
    shared_family.weights.restore(3 * shared_family.theta_0)
    shared_family.weights.grad.zero_()
    shared_family.model.eval()
    yield shared_family
