"""The inner loop: schedule, dropout, minibatches, micro-batches, random draws, memory."""

import gc
from dataclasses import replace

import numpy as np
import psutil
import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from metalib.inner import InnerLoop, adapt, add_gradient, minibatches, untouched
from metalib.learners import Joint, Reptile
from metalib.models import load_model
from metalib.tasks import TaskSampler
from metalib.weights import Weights

LOOP = InnerLoop(steps=4, lr=1e-3, batch_size=5)


def phi(bench, loop: InnerLoop, support: np.ndarray, seed: tuple[int, ...] = (0,)) -> torch.Tensor:
    """Where `adapt` ends; the workbench is put back to where it was."""
    with untouched(bench.model, bench.weights):
        adapt(bench.model, bench.weights, bench.reviews["train"], support, loop, seed)
        return bench.weights.snapshot()


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [("linear", [4e-3, 3e-3, 2e-3, 1e-3]), ("constant", [4e-3] * 4)],
)
def test_the_learning_rate_fits_the_number_of_steps(bench, schedule, expected):
    used = []
    handle = register_optimizer_step_pre_hook(lambda optimizer, *_: used.append(optimizer.param_groups[0]["lr"]))
    try:
        phi(bench, replace(LOOP, lr=4e-3, schedule=schedule), np.arange(10))
    finally:
        handle.remove()
    assert used == pytest.approx(expected, rel=1e-12)


def test_adam_whose_first_moment_is_the_gradient_itself_takes_the_steps_of_torchs_adam_to_the_bit():
    generator = torch.Generator().manual_seed(0)
    one, other = (nn.Parameter(torch.ones(1001)) for _ in range(2))
    one.grad, other.grad = torch.zeros(1001), torch.zeros(1001)
    ours, theirs = LOOP.make_optimizer([one]), torch.optim.Adam([other], lr=LOOP.lr, betas=(0.0, 0.999), fused=True)
    for step in range(12):
        gradient = torch.randn(1001, generator=generator) * 10.0 ** (step % 5 - 3)
        for leaf, optimizer in ((one, ours), (other, theirs)):
            optimizer.zero_grad(set_to_none=False)
            leaf.grad += gradient
            optimizer.step()
        assert torch.equal(one, other)


@pytest.mark.parametrize("dropout", [False, True])
@pytest.mark.parametrize("was_training", [False, True])
def test_dropout_is_on_or_off_in_every_step_whatever_happens_in_between(bench, dropout, was_training):
    modes = {"steps": [], "looks": []}

    def note(module: nn.Dropout, *_: object) -> None:
        modes["steps" if torch.is_grad_enabled() else "looks"].append(module.training)

    def look(step: int) -> None:
        bench.reviews["train"].logits(bench.model, np.arange(3))
        if step == 2:
            bench.model.train(not dropout)  # a caller who does not put the mode back

    places = [module for module in bench.model.modules() if isinstance(module, nn.Dropout)]
    handles = [module.register_forward_hook(note) for module in places]
    bench.model.train(was_training)
    try:
        with untouched(bench.model, bench.weights):
            loop = replace(LOOP, dropout=dropout)
            adapt(bench.model, bench.weights, bench.reviews["train"], np.arange(12), loop, after_step=look)
            assert bench.model.training == was_training
    finally:
        for handle in handles:
            handle.remove()
    assert set(modes["steps"]) == {dropout}
    assert len(modes["steps"]) >= 4 * 4  # 4 steps, and two dropouts in each of two layers at least
    assert set(modes["looks"]) == {False}


def test_minibatches_use_every_row_once_a_pass_and_in_another_order_each_pass():
    rows = np.arange(100, 112)
    cuts = list(minibatches(rows, batch_size=5, steps=8, seed=(0,)))
    assert [len(cut) for cut in cuts] == [5, 5, 2, 5, 5, 2, 5, 5]
    first, second = np.concatenate(cuts[:3]), np.concatenate(cuts[3:6])
    assert sorted(first) == sorted(second) == rows.tolist()
    assert first.tolist() != second.tolist()
    assert len(set(np.concatenate(cuts[6:]))) == 10


@pytest.mark.parametrize(("batch_size", "steps"), [(5, 0), (12, 3), (50, 3)])
def test_minibatches_are_as_many_as_the_steps(batch_size, steps):
    cuts = list(minibatches(np.arange(12), batch_size, steps, seed=(0,)))
    assert [sorted(cut) for cut in cuts] == [list(range(12))] * steps


def test_the_rows_of_the_last_partial_minibatch_reach_the_model(bench):
    seen = []
    handle = bench.model.register_forward_pre_hook(
        lambda module, _, inputs: seen.append(len(inputs["labels"])), with_kwargs=True
    )
    try:
        phi(bench, replace(LOOP, micro_batch=3), np.arange(12))
    finally:
        handle.remove()
    assert seen == [3, 2, 3, 2, 2, 3, 2]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_micro_batches_give_the_gradient_and_the_loss_of_one_batch(bench, splits, dtype, tolerance):
    model, _ = load_model("tiny", splits.train["text"], ["negative", "positive"], max_length=48)
    weights = Weights(model.to(dtype))
    weights.flat.mul_(3)  # gradients that differ from row to row, the largest about 0.1
    rows = bench.reviews["train"].lengths.argsort()[::30]  # 10 rows of unlike length: other padding in each part
    assert len(rows) == 10
    gradients, losses = [], []
    for micro_batch in (0, 3, 1, 10, 64):
        weights.grad.zero_()
        losses.append(add_gradient(model, bench.reviews["train"], rows, micro_batch).item())
        gradients.append(weights.grad.clone())
    assert gradients[0].abs().max() > 0.1
    for gradient in gradients[1:]:
        torch.testing.assert_close(gradient, gradients[0], rtol=0, atol=tolerance)
    assert losses == pytest.approx([losses[0]] * 5, rel=1e-6)


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_the_same_seed_gives_the_same_phi_bit_for_bit(bench, optimizer):
    loop = replace(LOOP, dropout=True, optimizer=optimizer, lr=1e-2)
    torch.manual_seed(1)
    one = phi(bench, loop, np.arange(12), (5, 7))
    torch.manual_seed(2)  # a global state that it must not read
    np.random.seed(2)
    torch.rand(3)
    assert torch.equal(phi(bench, loop, np.arange(12), (5, 7)), one)
    assert not torch.equal(one, bench.theta_0)


def test_another_task_index_gives_another_order_and_other_dropout(bench):
    orders = {tuple(np.concatenate(list(minibatches(np.arange(12), 5, 3, (0, index))))) for index in range(20)}
    assert len(orders) == 20
    whole = InnerLoop(steps=1, lr=1e-2, batch_size=1, optimizer="sgd", dropout=True)  # no order in one row
    assert not torch.equal(phi(bench, whole, np.arange(1), (0, 1)), phi(bench, whole, np.arange(1), (0, 2)))


def test_no_optimiser_state_goes_from_one_task_to_the_next(bench):
    alone = phi(bench, LOOP, np.arange(12, 24), (0, 1))
    phi(bench, LOOP, np.arange(12), (0, 0))
    assert torch.equal(phi(bench, LOOP, np.arange(12, 24), (0, 1)), alone)


def test_adam_starts_without_momentum(bench):
    """β₁ = 0: a step along a coordinate whose gradient is 0 is 0, whatever the gradient was before."""
    optimizer = replace(LOOP, lr=0.1).make_optimizer([bench.weights.leaf()])
    bench.weights.grad.fill_(1)
    optimizer.step()
    torch.testing.assert_close(bench.weights.flat, bench.theta_0 - 0.1, rtol=0, atol=1e-6)  # α · sign of the gradient
    before = bench.weights.snapshot()
    bench.weights.grad.zero_()
    optimizer.step()
    assert torch.equal(bench.weights.flat, before)


def test_no_graph_and_no_adapted_copy_stays_alive_after_a_task(bench, splits):
    sampler = TaskSampler(splits.train, 3, 1)
    loop = InnerLoop(steps=2, lr=1e-3, batch_size=6, dropout=True)
    reptile, joint = (kind(bench.model, bench.weights, loop, loop) for kind in (Reptile, Joint))
    kept = []  # what a training loop might keep of every task

    def learn(index: int) -> None:
        for learner in (reptile, joint):
            direction, losses = learner.direction(bench.reviews["train"], sampler[index], (0, index))
            assert not direction.requires_grad and not losses.requires_grad
            kept.append(losses.sum().item())
        reptile.predict(bench.reviews["train"], sampler[index], (0, index))

    def alive() -> tuple[int, int]:
        gc.collect()
        tensors = [each for each in gc.get_objects() if issubclass(type(each), torch.Tensor)]
        return len(tensors), sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    for index in range(10):
        learn(index)
    before, resident = alive(), psutil.Process().memory_info().rss
    for index in range(10, 110):
        learn(index)
    assert alive() == before
    grown = psutil.Process().memory_info().rss - resident
    assert grown < 40 * 2**20  # a graph of these two steps is about 2 MiB: 100 tasks would be 200 MiB
