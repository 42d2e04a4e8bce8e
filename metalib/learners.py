"""Learners: each is a rule that turns (θ, one task) into a direction in weight space.

The outer loop averages the directions of a meta-batch and takes one step along the mean; that is all there is to
meta-learning here, and nothing else in the library knows which learner is at work.
"""

from typing import ClassVar, Literal

import numpy as np
import torch
from transformers import PreTrainedModel

from metalib.inner import InnerLoop, adapt, add_gradient, untouched
from metalib.models import TokenizedReviews, seeded
from metalib.tasks import Task
from metalib.weights import Weights


class Learner:
    """A rule (θ, task) → direction, and a way to learn a task at the test.

    Args:
        model: the classifier.
        weights: its trainable parameters as one vector, standing at θ.
        training_loop: the inner loop while meta-training.
        adaptation_loop: the inner loop at the test.
    """

    name: ClassVar[str]
    outer: ClassVar[Literal["sgd", "adam"]]
    """Outer optimiser that fits: sgd for displacements, adam for gradients."""

    def __init__(
        self, model: PreTrainedModel, weights: Weights, training_loop: InnerLoop, adaptation_loop: InnerLoop
    ) -> None:
        self.model, self.weights = model, weights
        self.training_loop, self.adaptation_loop = training_loop, adaptation_loop

    def direction(
        self, reviews: TokenizedReviews, task: Task, seed: tuple[int, ...]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The direction (P,) of one task seen from θ, and the losses (≥1,) met on the way. The weights end at θ."""
        raise NotImplementedError

    def predict(self, reviews: TokenizedReviews, task: Task, seed: tuple[int, ...]) -> np.ndarray:
        """(queries,) predicted classes after learning the support set; leaves no trace."""
        return self.predict_along(reviews, task, seed, [self.adaptation_loop.steps])[0]

    def predict_along(
        self, reviews: TokenizedReviews, task: Task, seed: tuple[int, ...], marks: list[int]
    ) -> np.ndarray:
        """(marks, queries) predicted classes after each of the numbers of adaptation steps; leaves no trace.

        The query reviews are never looked at together: each prediction depends on the support set and on its own text.
        """
        if max(marks) > self.adaptation_loop.steps:
            raise ValueError(
                f"marks up to {max(marks)}, but only {self.adaptation_loop.steps} adaptation steps are taken"
            )
        predictions = np.empty((len(marks), len(task.query)), dtype=np.int64)

        def look(step: int) -> None:
            for place in (place for place, mark in enumerate(marks) if mark == step):
                predictions[place] = reviews.logits(self.model, task.query).argmax(dim=-1).cpu().numpy()

        with untouched(self.model, self.weights):
            adapt(self.model, self.weights, reviews, task.support, self.adaptation_loop, seed, look)
        return predictions


class Reptile(Learner):
    """Reptile (Nichol, Achiam & Schulman 2018, algorithm 2): direction = φ − θ, φ = θ after k inner steps."""

    name = "reptile"
    outer = "sgd"

    def direction(
        self, reviews: TokenizedReviews, task: Task, seed: tuple[int, ...]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        theta = self.weights.snapshot()
        losses = adapt(self.model, self.weights, reviews, task.support, self.training_loop, seed)
        direction = self.weights.flat - theta
        self.weights.restore(theta)
        return direction, losses


class Joint(Learner):
    """Joint training on all domains at once: direction = −∇ mean loss at θ over the task's support set.

    It is what Reptile becomes with a single SGD step on the whole support set, up to the factor α
    (Nichol, Achiam & Schulman 2018, §3).
    """

    name = "joint"
    outer = "adam"

    def direction(
        self, reviews: TokenizedReviews, task: Task, seed: tuple[int, ...]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        loop = self.training_loop
        with untouched(self.model, self.weights), seeded(seed, self.weights.flat.device):
            self.model.train(loop.dropout)
            self.weights.grad.zero_()  # the outer optimiser's last gradient may still stand there
            loss = add_gradient(self.model, reviews, task.support, loop.micro_batch)
            return -self.weights.grad, loss[None]


class Finetuned(Learner):
    """No meta-training at all, and so no direction: the model as it was made or pretrained, adapted at the test."""

    name = "finetuned"
    outer = "sgd"


LEARNERS: dict[str, type[Learner]] = {learner.name: learner for learner in (Reptile, Joint, Finetuned)}
