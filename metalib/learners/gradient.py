"""Learners that adapt by gradient steps: Reptile, MAML and its relatives, joint training."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from torch import nn
from torch.func import functional_call, grad, grad_and_value
from transformers import PreTrainedModel

from metalib.errors import BadInput
from metalib.inner import InnerLoop, adapt, minibatches, untouched
from metalib.learners.base import Learner
from metalib.models import TokenizedReviews, seeded
from metalib.parts import adaptable
from metalib.tasks import Task
from metalib.weights import Weights

Parameters = dict[str, torch.Tensor]
Direction = tuple[torch.Tensor, torch.Tensor]  # (P,) and the losses (≥1,)


class Reptile(Learner):
    """Reptile (Nichol, Achiam & Schulman 2018, algorithm 2): direction = φ − θ, φ = θ after k inner steps."""

    name = "reptile"
    outer = "sgd"

    def direction(self, reviews: TokenizedReviews, task: Task, seed: tuple[int, ...]) -> Direction:
        with untouched(self.model, self.weights, displacement=True) as moved:
            losses = adapt(self.model, self.weights, reviews, task.support, self.training_loop, seed)
        return moved, losses


class FOMAML(Learner):
    """First-order MAML (Finn, Abbeel & Levine 2017, §5.2): direction = −∇ query loss, taken at φ.

    It is MAML with the inner steps' second derivatives left out. The gradient is that of everything that is learned,
    also where only a part adapts.
    """

    name = "fomaml"
    outer = "adam"
    uses_query = True

    def direction(self, reviews: TokenizedReviews, task: Task, seed: tuple[int, ...]) -> Direction:
        with untouched(self.model, self.weights):
            losses = adapt(self.model, self.weights, reviews, task.support, self.training_loop, seed)
            direction, loss = self.descent(lambda: self.loss_on(reviews, task.query), (*seed, 2))
        return direction, torch.cat([losses, loss])


@contextmanager
def differentiable_twice(model: nn.Module) -> Iterator[None]:
    """Inside, attention is computed step by step: the fused kernels have no second derivative."""
    if not isinstance(model, PreTrainedModel):
        yield
        return
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


class MAML(Learner):
    """MAML (Finn, Abbeel & Levine 2017, eq. 1): direction = −∇_θ query loss at φ(θ), through all inner steps.

    φ(θ) = θ_k with θ_0 = θ, θ_{i+1} = θ_i − α ∇ loss_i(θ_i); so ∇_θ = Π_i (I − α H_i) ∇_φ, H_i the Hessian of step i.
    The graph of all k steps is held until the end: memory grows in a straight line with k, by one more point in weight
    space and the activations of two passes over a minibatch for each step.
    """

    name = "maml"
    outer = "adam"
    uses_query = True

    @classmethod
    def check(cls, loop: InnerLoop) -> None:
        if loop.optimizer != "sgd":
            raise BadInput(
                f"{cls.name} with inner_optimizer={loop.optimizer!r}: the root in Adam has no finite derivative where "
                "a gradient is zero — take inner_optimizer=sgd and a larger inner_lr and adapt_lr (0.1, say), or fomaml"
            )
        if loop.micro_batch:
            raise BadInput(
                f"{cls.name} with micro_batch={loop.micro_batch}: all inner steps are held in memory at once, so that "
                "splitting one saves nothing — lower inner_steps or inner_batch, or take fomaml"
            )

    def direction(self, reviews: TokenizedReviews, task: Task, seed: tuple[int, ...]) -> Direction:
        loop, theta = self.training_loop, self.weights.snapshot()
        names = adaptable(self.model, self.weights.slices, loop.adapts)

        def loss(fast: Parameters, slow: Parameters, rows: np.ndarray) -> torch.Tensor:
            return functional_call(self.model, {**slow, **fast}, (), reviews.batch(rows)).loss

        def query_loss(theta: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            slow, met = self.weights.views(theta), []
            fast = {name: slow[name] for name in names}
            for step, rows in enumerate(minibatches(task.support, loop.batch_size, loop.steps, seed)):
                gradient, value = grad_and_value(loss)(fast, slow, rows)
                fast = {name: fast[name] - loop.lr_at(step) * gradient[name] for name in names}
                met.append(value)
            met.append(loss(fast, slow, task.query))
            return met[-1], torch.stack(met)

        with untouched(self.model, self.weights), differentiable_twice(self.model), seeded(seed, theta.device):
            self.model.train(loop.dropout)
            gradient, losses = grad(query_loss, has_aux=True)(theta)
        return -gradient, losses


class ANIL(MAML):
    """Almost no inner loop (Raghu et al. 2020, §4): MAML in which the head alone adapts, at the test too."""

    name = "anil"

    @classmethod
    def check(cls, loop: InnerLoop) -> None:
        super().check(loop)
        if loop.adapts not in ("all", "head"):
            raise BadInput(f"anil with adapt={loop.adapts!r}: its head adapts and nothing else — take maml for that")

    def __init__(
        self, model: PreTrainedModel, weights: Weights, training_loop: InnerLoop, adaptation_loop: InnerLoop
    ) -> None:
        loops = (replace(loop, adapts="head") for loop in (training_loop, adaptation_loop))
        super().__init__(model, weights, *loops)


class Joint(Learner):
    """Joint training on all domains at once: direction = −∇ mean loss at θ over the task's support set.

    It is what Reptile becomes with a single SGD step on the whole support set, up to the factor α
    (Nichol, Achiam & Schulman 2018, §3).
    """

    name = "joint"
    outer = "adam"

    @classmethod
    def review_passes(cls, support: int, query: int, loop: InnerLoop) -> int:
        return support

    def direction(self, reviews: TokenizedReviews, task: Task, seed: tuple[int, ...]) -> Direction:
        return self.descent(lambda: self.loss_on(reviews, task.support), seed)


class Finetuned(Learner):
    """No meta-training at all, and so no direction: the model as it was made or pretrained, adapted at the test."""

    name = "finetuned"
    outer = "sgd"

    @classmethod
    def review_passes(cls, support: int, query: int, loop: InnerLoop) -> int:
        return 0
