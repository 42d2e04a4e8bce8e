"""The sine waves of the Reptile paper: the learners' own directions, on another model and other data than reviews.

Nichol, Achiam & Schulman (2018, §4): a task is a wave with an amplitude from U(0.1, 5) and a phase from U(0, 2π), to be
learned from 10 of its points between −5 and 5 by a network 1-64-64-1 with tanh. After 32 gradient steps from a start
found by MAML or Reptile the error over the whole wave is to be at most 1/20 of what it is from a random start, and of
what it is from the start found by joint training.
"""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from metalib.config import Config
from metalib.inner import InnerLoop, adapt, untouched
from metalib.learners import MAML, Joint, Learner, Reptile
from metalib.models import seeded
from metalib.processes import make_accelerator
from metalib.tasks import Task
from metalib.training import OuterStep, annealed, sum_directions
from metalib.weights import Weights

pytestmark = pytest.mark.slow

SEEDS = (0, 1)
SHOTS, STEPS = 10, 32  # at the test
POINTS = 50  # of each wave while meta-training
META_STEPS, META_BATCH = 4000, 4  # 16,000 waves for every learner
RATES = (0.01, 0.015, 0.02, 0.03)  # learning rates at the test; each start gets the one that suits it best
VALIDATION_WAVES, TEST_WAVES = 40, 100
GRID = torch.linspace(-5, 5, 201)[:, None]


class Network(nn.Module):
    """A curve: x (n, 1) → y (n, 1). Calling it gives the mean squared error, as `loss`."""

    def __init__(self) -> None:
        super().__init__()
        self.curve = nn.Sequential(nn.Linear(1, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(loss=(self.curve(x) - y).square().mean())


class Waves:
    """`count` waves with `support + query` points each: a source of tasks, and of the batches that their rows lead to.

    Wave i, points and all, is a pure function of (seed, i).
    """

    device = torch.device("cpu")

    def __init__(self, count: int, support: int, query: int, seed: int) -> None:
        self.seed, self.support, self.points = seed, support, support + query
        self.amplitudes, self.phases, self.x = np.empty(count), np.empty(count), np.empty((count, self.points))
        for index in range(count):
            generator = np.random.default_rng((seed, index))
            self.amplitudes[index] = generator.uniform(0.1, 5)
            self.phases[index] = generator.uniform(0, 2 * math.pi)
            self.x[index] = generator.uniform(-5, 5, self.points)

    def __getitem__(self, index: int) -> Task:
        rows = np.arange(index * self.points, (index + 1) * self.points)
        return Task(rows[: self.support], rows[self.support :], "waves", index)

    def heights(self, index: int | np.ndarray, x: torch.Tensor) -> torch.Tensor:
        amplitude, phase = (torch.as_tensor(of[index], dtype=x.dtype) for of in (self.amplitudes, self.phases))
        return amplitude * torch.sin(x + phase)

    def batch(self, rows: np.ndarray) -> dict[str, torch.Tensor]:
        x = torch.from_numpy(self.x.ravel()[rows]).float()  # (n,)
        return {"x": x[:, None], "y": self.heights(rows // self.points, x)[:, None]}


def random_start(seed: int) -> tuple[Network, Weights]:
    with seeded(seed):
        model = Network()
    return model, Weights(model)


def meta_trained(kind: type[Learner], seed: int) -> tuple[Network, Weights]:
    """The start that a learner finds, from the same random start and as many waves as every other."""
    loop, query, epsilon, epsilon_final = {
        MAML: (InnerLoop(2, 0.03, SHOTS, "sgd"), POINTS - SHOTS, 5e-3, 5e-4),
        Reptile: (InnerLoop(10, 0.02, 10, "sgd"), 0, 1.0, 0.0),
        Joint: (InnerLoop(1, 0.02, POINTS, "sgd"), 0, 1e-3, 1e-4),
    }[kind]
    model, weights = random_start(seed)
    learner, outer_step = kind(model, weights, loop, loop), OuterStep(weights, kind.outer)
    waves = Waves(META_STEPS * META_BATCH, POINTS - query, query, seed)
    config = Config(meta_steps=META_STEPS, epsilon=epsilon, epsilon_final=epsilon_final)
    accelerator = make_accelerator()
    for step in range(META_STEPS):
        direction, _ = sum_directions(learner, waves, waves, META_BATCH, step, accelerator)
        outer_step(direction, annealed(config, outer_step.kind, step))
    return model, weights


def errors(model: Network, weights: Weights, waves: Waves, count: int, lr: float) -> np.ndarray:
    """(count,) mean squared error over each whole wave, after `STEPS` steps of gradient descent on its points."""
    loop, after = InnerLoop(STEPS, lr, SHOTS, "sgd"), np.empty(count)
    for index in range(count):
        with untouched(model, weights), torch.no_grad():
            with torch.enable_grad():
                adapt(model, weights, waves, waves[index].support, loop, (waves.seed, index))
            after[index] = (model.curve(GRID) - waves.heights(index, GRID)).square().mean()
    return after


def best_errors(start: tuple[Network, Weights], seed: int, baseline: bool) -> tuple[float, np.ndarray]:
    """The learning rate that suits a start best, and its errors on the test's waves.

    It is chosen on waves kept for that; for a baseline on the test's own, so that no unlucky choice lets it look worse.
    """
    validation, test = (Waves(n, SHOTS, 0, seed + s) for n, s in ((VALIDATION_WAVES, 1000), (TEST_WAVES, 2000)))
    choose = (test, TEST_WAVES) if baseline else (validation, VALIDATION_WAVES)
    means = {lr: errors(*start, *choose, lr).mean() for lr in RATES}
    lr = min(RATES, key=lambda lr: means[lr] if math.isfinite(means[lr]) else math.inf)
    return lr, errors(*start, test, TEST_WAVES, lr)


@pytest.fixture(scope="module", params=SEEDS)
def found(request) -> dict[str, tuple[float, np.ndarray]]:
    """Start → the learning rate chosen for it and its errors (waves,) at the test."""
    seed = request.param
    starts = {kind.name: meta_trained(kind, seed) for kind in (MAML, Reptile, Joint)} | {"random": random_start(seed)}
    figures = {name: best_errors(start, seed, name in ("joint", "random")) for name, start in starts.items()}
    print(f"seed {seed}: learning rate and mean squared error:", {n: (lr, e.mean()) for n, (lr, e) in figures.items()})
    return figures


def test_a_wave_is_a_function_of_seed_and_index_and_keeps_to_the_ranges():
    few, many = Waves(3, 10, 5, seed=7), Waves(500, 10, 5, seed=7)
    task = many[2]
    assert all(torch.equal(few.batch(task.query)[key], many.batch(task.query)[key]) for key in ("x", "y"))
    assert not set(task.support) & set(task.query) and len(task.support) == 10 and len(task.query) == 5
    assert 0.1 <= many.amplitudes.min() < 0.2 and 4.9 < many.amplitudes.max() <= 5
    assert many.phases.min() < 0.1 and 6.2 < many.phases.max() < 2 * math.pi and np.abs(many.x).max() <= 5
    batch = many.batch(np.array([2 * 15 + 4]))
    expected = many.amplitudes[2] * math.sin(many.x[2, 4] + many.phases[2])
    assert batch["y"].shape == (1, 1) and batch["y"].item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("baseline", ["random", "joint"])
@pytest.mark.parametrize("name", ["maml", "reptile"])
def test_a_meta_learned_start_leaves_a_twentieth_of_the_error(found, name, baseline):
    ratio = found[name][1].mean() / found[baseline][1].mean()
    figures = {start: (lr, float(error.mean())) for start, (lr, error) in found.items()}
    assert ratio <= 1 / 20, f"{name} / {baseline} = {ratio:.4f}; learning rate and error of each start: {figures}"
