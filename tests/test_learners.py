"""Laws 2 and 3: adapting leaves no trace, and the directions are the papers'."""

import importlib
import random
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from metalib.inner import InnerLoop, adapt, untouched
from metalib.learners import LEARNERS, Joint, Reptile
from metalib.models import load_model
from metalib.tasks import Task, TaskSampler
from metalib.training import OuterStep, validate, validation_episodes
from metalib.weights import Weights


class Regression(nn.Module):
    """½ · mean (x · w − y)² over the rows: a quadratic in w with H = XᵀX / n."""

    def __init__(self, dimensions: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.linspace(-1, 1, dimensions, dtype=torch.float64))

    def forward(self, inputs: torch.Tensor, labels: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(loss=0.5 * (inputs @ self.w - labels).square().mean())


class Points:
    """What `adapt` asks of reviews: `batch(rows)` and a device."""

    device = torch.device("cpu")

    def __init__(self, number: int, dimensions: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.inputs = torch.randn(number, dimensions, dtype=torch.float64, generator=generator)
        self.labels = torch.randn(number, dtype=torch.float64, generator=generator)

    def batch(self, rows: np.ndarray) -> dict[str, torch.Tensor]:
        return {"inputs": self.inputs[rows], "labels": self.labels[rows]}


def a_task(bench) -> Task:
    return TaskSampler(bench.splits.validation, 5, 5)[0]


TRAINED = [name for name in LEARNERS if name != "finetuned"]


class Broken(Exception):
    pass


def state_of(bench, outer: OuterStep) -> dict[str, object]:
    """Everything that a prediction must leave as it is, copied."""
    return {
        "theta": bench.weights.snapshot(),
        "parameters": [parameter.detach().clone() for parameter in bench.model.parameters()],
        "places": [parameter.data_ptr() for parameter in bench.model.parameters()],
        "grad": bench.weights.grad.clone(),
        "buffers": [buffer.clone() for buffer in bench.model.buffers()],
        "modes": [module.training for module in bench.model.modules()],
        "torch": torch.get_rng_state(),
        "numpy": str(np.random.get_state(legacy=False)),
        "python": str(random.getstate()),
        "outer": {key: tensor.clone() for key, tensor in outer.state().items()},
    }


def assert_no_trace(before: dict[str, object], after: dict[str, object]) -> None:
    for key, value in before.items():
        if isinstance(value, str):
            assert after[key] == value, f"{key} has changed"
        else:
            torch.testing.assert_close(after[key], value, rtol=0, atol=0, msg=f"{key} has changed")


@pytest.fixture
def lively(family):
    """All learners' workbench; its model's forward passes move a buffer, dropout is on, the outer Adam has a state."""
    bench = family
    bench.model.register_buffer("passes", torch.zeros(1))
    count = bench.model.passes.numpy()  # the same memory; torch.func lets no tensor from outside be written to
    handle = bench.model.register_forward_hook(lambda *_: count.__iadd__(1) and None)
    outer = OuterStep(bench.weights, "adam")
    outer(torch.ones(len(bench.weights), dtype=torch.float64), 1e-3)
    bench.weights.grad.zero_()  # no gradient is pending
    loop = InnerLoop(steps=3, lr=1e-2, batch_size=5, optimizer="sgd", dropout=True)
    yield bench, outer, loop
    handle.remove()
    del bench.model.passes


@pytest.mark.parametrize("name", LEARNERS)
@pytest.mark.parametrize("training", [False, True])
def test_a_prediction_leaves_no_trace(lively, name, training):
    bench, outer, loop = lively
    learner = LEARNERS[name](bench.model, bench.weights, loop, loop)
    bench.model.train(training)
    before = state_of(bench, outer)
    task = a_task(bench)
    predictions = learner.predict_along(bench.reviews["validation"], task, (0, 1), [0, 3])
    assert_no_trace(before, state_of(bench, outer))
    assert np.array_equal(predictions[1], learner.predict(bench.reviews["validation"], task, (0, 1)))
    assert predictions.shape == (2, 10)


@pytest.mark.parametrize("training", [False, True])
def test_a_validation_leaves_no_trace(lively, training):
    bench, outer, loop = lively
    bench.model.train(training)
    importlib.import_module("sklearn.metrics")  # drawn in by the first validation; its import moves Python's `random`
    before = state_of(bench, outer)
    validate(bench, Reptile(bench.model, bench.weights, loop, loop), validation_episodes(bench), 1)
    assert_no_trace(before, state_of(bench, outer))


@pytest.mark.parametrize("training", [False, True])
def test_an_exception_in_the_middle_of_a_task_leaves_no_trace(lively, training):
    bench, outer, loop = lively
    bench.model.train(training)
    before = state_of(bench, outer)

    def break_off(step: int) -> None:
        if step == 2:
            assert not torch.equal(bench.weights.flat, before["theta"])  # it was on its way
            raise Broken

    with pytest.raises(Broken), untouched(bench.model, bench.weights):
        torch.rand(1)
        adapt(bench.model, bench.weights, bench.reviews["validation"], a_task(bench).support, loop, (0,), break_off)
    assert_no_trace(before, state_of(bench, outer))


@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.parametrize("training", [False, True])
def test_a_direction_is_seen_from_theta_and_leaves_theta_mode_and_random_state(lively, name, training):
    bench, outer, loop = lively
    learner = LEARNERS[name](bench.model, bench.weights, loop, loop)
    task = a_task(bench)
    bench.model.train(training)
    before = state_of(bench, outer)
    direction, losses = learner.direction(bench.reviews["validation"], task, (0, 1))
    after = state_of(bench, outer)
    for key in ("theta", "parameters", "places", "buffers", "modes", "torch", "numpy", "python", "outer"):
        assert_no_trace({key: before[key]}, after)
    again, _ = learner.direction(bench.reviews["validation"], task, (0, 1))
    assert torch.equal(direction, again)
    assert direction.isfinite().all() and direction.abs().max() > 0
    assert len(losses) == {"reptile": 3, "fomaml": 4, "maml": 4, "anil": 4}.get(name, 1)
    other, _ = learner.direction(bench.reviews["validation"], task, (0, 2))
    assert not torch.equal(direction, other)  # another dropout


@pytest.mark.parametrize("name", LEARNERS)
def test_a_prediction_depends_on_its_own_text_only(family, name):
    loop = InnerLoop(steps=3, lr=1e-2, batch_size=5, optimizer="sgd")
    learner = LEARNERS[name](family.model, family.weights, loop, loop)
    reviews, task = family.reviews["validation"], a_task(family)
    together = learner.predict(reviews, task, (0, 1))
    alone = [learner.predict(reviews, replace(task, query=task.query[[place]]), (0, 1))[0] for place in range(3)]
    assert together[:3].tolist() == alone
    with untouched(family.model, family.weights):
        learner.fit(reviews, task.support, (0, 1))
        scores = learner.logits(reviews, task.query)
        singly = torch.cat([learner.logits(reviews, task.query[[place]]) for place in range(len(task.query))])
    assert scores.std(dim=0).min() > 1e-3  # there is something to tell apart
    torch.testing.assert_close(scores, singly, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", TRAINED)
def test_a_direction_does_not_contain_a_gradient_that_was_there_before(family, name):
    bench = family
    loop = InnerLoop(steps=2, lr=1e-2, batch_size=5, optimizer="sgd")
    learner = LEARNERS[name](bench.model, bench.weights, loop, loop)
    clean, _ = learner.direction(bench.reviews["validation"], a_task(bench), (0, 1))
    bench.weights.grad.fill_(1)  # as the outer optimiser leaves it
    assert torch.equal(learner.direction(bench.reviews["validation"], a_task(bench), (0, 1))[0], clean)


@pytest.mark.parametrize("micro_batch", [0, 3])
def test_one_sgd_step_on_the_whole_support_set_is_alpha_times_the_joint_direction(bench, micro_batch):
    model, _ = load_model("tiny", bench.splits.train["text"], ["negative", "positive"], max_length=48)
    weights = Weights(model.double())
    weights.flat.mul_(5)  # gradients that differ from row to row
    loop = InnerLoop(steps=1, lr=0.37, batch_size=10, optimizer="sgd", micro_batch=micro_batch)
    task = a_task(bench)
    along, _ = Reptile(model, weights, loop, loop).direction(bench.reviews["validation"], task, (0, 1))
    joint, _ = Joint(model, weights, loop, loop).direction(bench.reviews["validation"], task, (0, 1))
    assert joint.abs().max() > 0.1
    torch.testing.assert_close(along, loop.lr * joint, rtol=0, atol=1e-12)


@pytest.mark.parametrize("schedule", ["constant", "linear"])
def test_sgd_steps_on_a_quadratic_follow_the_closed_form(schedule):
    """φ − θ* = (I − α_k H) … (I − α_1 H) (θ − θ*)."""
    model, points, k = Regression(5), Points(20, 5), 6
    weights = Weights(model)
    theta = weights.snapshot()
    hessian = points.inputs.T @ points.inputs / 20
    best = torch.linalg.solve(hessian, points.inputs.T @ points.labels / 20)
    expected = theta - best
    for step in range(k):
        alpha = 0.3 * (1 - step / k) if schedule == "linear" else 0.3
        expected = expected - alpha * hessian @ expected
    loop = InnerLoop(steps=k, lr=0.3, batch_size=20, optimizer="sgd", schedule=schedule)
    losses = adapt(model, weights, points, np.arange(20), loop)
    torch.testing.assert_close(weights.flat - best, expected, rtol=0, atol=1e-12)
    assert (losses.diff() < 0).all()
    first = 0.5 * (points.inputs @ theta - points.labels).square().mean()
    assert losses[0].item() == pytest.approx(first.item(), rel=1e-6)  # before the step, not after it
