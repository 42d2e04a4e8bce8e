"""The inner loop: from θ, a few gradient steps on one support set, to φ."""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from metalib import fast
from metalib.models import TokenizedReviews, seeded
from metalib.parts import Adapts, adaptable
from metalib.weights import Weights


@dataclass(frozen=True)
class InnerLoop:
    """How one task is learned.

    Attributes:
        steps: gradient steps k.
        lr: inner learning rate α of the first step.
        batch_size: reviews per step, drawn afresh from the support set in every step.
        optimizer: `adam` (β₁ = 0, as in the Reptile paper, §6; its state is made anew for each task) or `sgd`.
        schedule: `constant`, or `linear`: α falls in a straight line and would reach 0 after exactly `steps` steps.
        dropout: on or off, for the whole inner loop.
        micro_batch: at most so many reviews in one forward pass; the gradient of a step stays the same. 0 = no split.
        adapts: which of the weights move (see `parts.adaptable`); the others stay at θ.
    """

    steps: int
    lr: float
    batch_size: int
    optimizer: Literal["adam", "sgd"] = "adam"
    schedule: Literal["constant", "linear"] = "constant"
    dropout: bool = False
    micro_batch: int = 0
    adapts: Adapts = "all"

    def make_optimizer(self, leaves: list[nn.Parameter]) -> torch.optim.Optimizer:
        """A new optimiser over leaves such as `weights.leaf()`."""
        if self.optimizer == "sgd":
            return torch.optim.SGD(leaves, lr=self.lr)
        fused = leaves[0].device.type != "mps"
        adam = torch.optim.Adam(leaves, lr=self.lr, betas=(0.0, 0.999), fused=fused)
        for leaf in leaves:  # with β₁ = 0 the mean of the gradients is the gradient: no memory of its own
            step = torch.zeros((), device=leaf.device if fused else "cpu")
            adam.state[leaf] = {"step": step, "exp_avg": leaf.grad, "exp_avg_sq": torch.zeros_like(leaf)}
        return adam

    def lr_at(self, step: int) -> float:
        """Inner learning rate of step 0, 1, …, steps − 1."""
        return self.lr * (1 - step / self.steps) if self.schedule == "linear" else self.lr

    def review_passes(self, rows: int) -> int:
        """How many reviews all steps see together: the last minibatch of a shuffle of `rows` reviews may be smaller."""
        shuffles, rest = divmod(self.steps, -(-rows // self.batch_size))
        return shuffles * rows + rest * self.batch_size


def minibatches(rows: np.ndarray, batch_size: int, steps: int, seed: tuple[int, ...]) -> Iterator[np.ndarray]:
    """`steps` minibatches of the rows: shuffled, cut, all used (the last, smaller cut too), then shuffled again."""
    generator = np.random.default_rng((*seed, 1))  # not the stream from which the task itself was drawn
    step = 0
    while step < steps:
        shuffled = generator.permutation(rows)
        for start in range(0, len(rows), batch_size):
            if step == steps:
                return
            yield shuffled[start : start + batch_size]
            step += 1


def forward_backward(model: PreTrainedModel, inputs: dict[str, torch.Tensor], share: float) -> torch.Tensor:
    """Add `share` times the gradient of a batch's mean loss to the weights' `grad`; returns as much of the loss."""
    loss = model(**inputs).loss * share
    loss.backward()
    return loss.detach()


def add_gradient(
    model: PreTrainedModel, reviews: TokenizedReviews, rows: np.ndarray, micro_batch: int = 0
) -> torch.Tensor:
    """Add the gradient of the mean loss over the rows to the weights' `grad`; returns that loss, shape ().

    Micro-batches are weighted by their size, so that the last, smaller one counts for what it holds.
    """
    size = micro_batch or len(rows)
    total = torch.zeros((), device=reviews.device)
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        total += fast.play(forward_backward, model, reviews, part, len(part) / len(rows))
    return total


def adapt(
    model: PreTrainedModel,
    weights: Weights,
    reviews: TokenizedReviews,
    support: np.ndarray,
    loop: InnerLoop,
    seed: tuple[int, ...] = (0,),
    after_step: Callable[[int], None] | None = None,
) -> torch.Tensor:
    """Learn one support set: the weights go from θ, where they are, to φ, where they stay (see `untouched`).

    Args:
        model: the classifier whose parameters are views into `weights`.
        reviews: where the row numbers of `support` lead to.
        support: (n,) rows to learn from.
        loop: number of steps, learning rate and the rest.
        seed: of the order of the minibatches and of dropout.
        after_step: called with 0 before the first step and with 1 … k after each, e.g. to draw a curve.

    Returns:
        (k,) the loss of each step's minibatch before the step, detached. Not checked for being finite.
    """
    names = adaptable(model, weights.slices, loop.adapts)
    losses = torch.zeros(loop.steps, device=weights.flat.device)
    if after_step:
        after_step(0)
    was_training = model.training
    moving = fast.Moving(model, weights, names, lambda: reviews.words(support))
    optimizer = loop.make_optimizer(moving.leaves)
    with seeded(seed, weights.flat.device), only(model, names), moving:
        model.train(loop.dropout)
        for step, rows in enumerate(minibatches(support, loop.batch_size, loop.steps, seed)):
            optimizer.zero_grad(set_to_none=False)
            losses[step] = add_gradient(model, reviews, rows, loop.micro_batch)
            optimizer.param_groups[0]["lr"] = loop.lr_at(step)
            optimizer.step()
            if after_step:
                with moving.whole():
                    after_step(step + 1)
                model.train(loop.dropout)  # in whatever mode that has left it
    if was_training != loop.dropout:
        model.train(was_training)
    return losses


@contextmanager
def only(model: nn.Module, names: Collection[str]) -> Iterator[None]:
    """Inside, gradients are computed for these parameters alone: what does not adapt costs no backward pass."""
    kept = set(names)
    others = [p for name, p in model.named_parameters() if p.requires_grad and name not in kept]
    for parameter in others:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in others:
            parameter.requires_grad_(True)


@contextmanager
def untouched(model: PreTrainedModel, weights: Weights, displacement: bool = False) -> Iterator[torch.Tensor]:
    """Whatever is done inside leaves no trace: weights, buffers, mode and random state are put back.

    Yields θ (P,), the point to which the weights will return; copy it to keep it. With `displacement` the same vector
    holds φ − θ afterwards, how far the weights had moved, and is the caller's (`weights.give_back`).
    """
    theta = weights.vector().copy_(weights.flat)
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    was_training = model.training
    cuda = [weights.flat.device] if weights.flat.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=cuda):
            yield theta
    finally:
        if displacement:
            weights.exchange(theta)
        else:
            weights.restore(theta)
            weights.give_back(theta)
        weights.grad.zero_()
        for buffer, before in buffers:
            buffer.copy_(before)
        if model.training != was_training:
            model.train(was_training)
