"""A control: labels dealt out anew over the whole pool leave nothing to learn, and every learner falls to chance."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset

from metalib.config import Config, read_config
from metalib.evaluation import Episodes, predict_episodes, summarise
from metalib.learners import LEARNERS
from metalib.processes import make_accelerator
from metalib.reviews import split_domains
from metalib.tasks import TaskSampler
from metalib.training import Workbench, meta_train, prepare

pytestmark = pytest.mark.slow

FAMILY = Path(__file__).parent.parent / "configs" / "family.yaml"
META_STEPS, META_BATCH, EPISODES = 30, 2, 45
BOUND = 0.08  # how far from 0.5 the mean over these episodes may lie by chance


def permute(reviews: Dataset, seed: int) -> Dataset:
    """The same texts and domains; the labels of all of them together are dealt out anew."""
    labels = np.random.default_rng(seed).permutation(np.asarray(reviews["label"][:]))
    return reviews.remove_columns("label").add_column("label", labels, feature=reviews.features["label"])


@pytest.fixture(scope="module")
def family() -> Config:
    return replace(read_config(FAMILY), meta_steps=META_STEPS, meta_batch=META_BATCH, validations=0)


@pytest.fixture(scope="module")
def senseless(world_reviews: Dataset, family: Config) -> Workbench:
    """The whole family's workbench on the default world with labels that mean nothing."""
    splits = split_domains(permute(world_reviews, 0), family.test_domains, family.validation_count, family.split_seed)
    return prepare(family, splits, make_accelerator())


def leaky(episodes: Episodes) -> Episodes:
    """The same episodes, in which the support set is the query set."""
    return replace(episodes, tasks=[replace(task, support=task.query) for task in episodes.tasks])


def test_the_labels_mean_nothing_any_more(world_reviews, senseless):
    before, after = (np.asarray(reviews["label"][:]) for reviews in (world_reviews, permute(world_reviews, 0)))
    assert abs(np.corrcoef(before, after)[0, 1]) < 0.03 and before.sum() == after.sum()
    assert permute(world_reviews, 0)["text"][:] == world_reviews["text"][:]


def test_the_family_is_complete(family):
    ours = {name for name, learner in LEARNERS.items() if learner.__module__.startswith("metalib.")}
    assert {family.learner, *family.baselines} == ours


def balanced_accuracy(bench: Workbench, config: Config, folder: Path, leak: bool = False) -> dict:
    """Meta-train a learner of the family and test it as a run does: mean and 95% interval."""
    meta_train(bench, config, folder)
    sampler = TaskSampler(bench.splits.test, config.shots, config.queries, config.split_seed, in_turn=True)
    episodes = Episodes.draw(sampler, EPISODES)
    if leak:
        episodes = leaky(episodes)
    predictions = predict_episodes(
        bench.learner(config), bench.reviews["test"], episodes, [config.adapt_steps], config.split_seed
    )
    return summarise(predictions[:, 0], episodes)["overall"]["balanced_accuracy"]


def settings(family: Config, name: str) -> Config:
    config = family.for_learner(name)
    return config if name == "finetuned" else replace(config, meta_steps=META_STEPS)


@pytest.mark.parametrize("name", [n for n, learner in LEARNERS.items() if learner.__module__.startswith("metalib.")])
def test_a_learner_is_at_chance_where_labels_mean_nothing(senseless, family, tmp_path, name):
    result = balanced_accuracy(senseless, settings(family, name), tmp_path)
    assert (name == "finetuned") == torch.equal(senseless.weights.flat, senseless.theta_0)  # it has been trained
    assert abs(result["mean"] - 0.5) < BOUND, result


@pytest.mark.parametrize("name", ["joint", "siamese"])  # one that takes gradient steps, one that compares
def test_query_reviews_in_the_support_set_would_show(senseless, family, tmp_path, name):
    result = balanced_accuracy(senseless, settings(family, name), tmp_path, leak=True)
    assert result["ci95"][0] > 0.5 + BOUND, result
