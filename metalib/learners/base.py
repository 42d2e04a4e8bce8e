"""What every learner is: a rule (θ, task) → direction, and a way to learn a task at the test."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel

from metalib import __version__
from metalib.checkpoint import write_atomically
from metalib.inner import InnerLoop, adapt, add_gradient, untouched
from metalib.models import TokenizedReviews, seeded
from metalib.parts import merge_lora
from metalib.tasks import Task
from metalib.weights import Weights

LEARNERS: dict[str, type["Learner"]] = {}


class Learner:
    """A rule (θ, task) → direction, and a way to learn a task at the test: gradient steps, unless a subclass differs.

    Args:
        model: the classifier.
        weights: everything that is learned as one vector, standing at θ.
        training_loop: the inner loop while meta-training.
        adaptation_loop: the inner loop at the test.

    Raises:
        BadInput: the loops have settings that this learner cannot do.
    """

    name: ClassVar[str]
    outer: ClassVar[Literal["sgd", "adam"]]
    """Outer optimiser that fits: sgd for displacements, adam for gradients."""
    uses_query: ClassVar[bool] = False
    """Whether the direction looks at the query set; if not, training tasks have none."""
    is_classifier: ClassVar[bool] = True
    """Whether what is learned is the model itself, so that it opens as a text-classification pipeline."""

    def __init_subclass__(cls) -> None:
        if "name" in vars(cls):
            LEARNERS[cls.name] = cls

    def __init__(
        self, model: PreTrainedModel, weights: Weights, training_loop: InnerLoop, adaptation_loop: InnerLoop
    ) -> None:
        self.check(training_loop)
        self.model, self.weights = model, weights
        self.training_loop, self.adaptation_loop = training_loop, adaptation_loop

    @classmethod
    def check(cls, loop: InnerLoop) -> None:
        """Raise BadInput for settings of the inner loop that this learner cannot do; nothing has been trained yet."""

    @classmethod
    def own_module(cls, model: PreTrainedModel) -> torch.nn.Module | None:
        """What this learner learns beside the model, new; it will stand in the flat vector and as `model.own[name]`."""
        return None

    @classmethod
    def review_passes(cls, support: int, query: int, loop: InnerLoop) -> int:
        """Reviews that go forward and backward for one direction, from a task with so many in its two sets."""
        return loop.review_passes(support) + query

    def direction(
        self, reviews: TokenizedReviews, task: Task, seed: tuple[int, ...]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The direction (P,) of one task seen from θ, and the losses (≥1,) met on the way. The weights end at θ."""
        raise NotImplementedError

    def descent(self, loss: Callable[[], torch.Tensor], seed: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
        """−∇ loss() at the point where the weights stand, (P,), and the loss, (1,). The weights stay.

        `loss` adds its gradient to `weights.grad` and returns its value ().
        """
        with untouched(self.model, self.weights), seeded(seed, self.weights.flat.device):
            self.model.train(self.training_loop.dropout)
            self.weights.grad.zero_()  # the outer optimiser's last gradient may still stand there
            value = loss()
            return torch.neg(self.weights.grad, out=self.weights.vector()), value[None]

    def loss_on(self, reviews: TokenizedReviews, rows: np.ndarray) -> torch.Tensor:
        """The classifier's mean loss over the rows, (); its gradient is added to `weights.grad`."""
        return add_gradient(self.model, reviews, rows, self.training_loop.micro_batch)

    def fit(
        self,
        reviews: TokenizedReviews,
        support: np.ndarray,
        seed: tuple[int, ...] = (0,),
        after_step: Callable[[int], None] | None = None,
    ) -> None:
        """Learn a support set (n,) for good: the weights go from θ to φ. `after_step` as in `inner.adapt`."""
        adapt(self.model, self.weights, reviews, support, self.adaptation_loop, seed, after_step)

    def logits(self, reviews: TokenizedReviews, rows: np.ndarray) -> torch.Tensor:
        """(rows, classes) logits of the task that `fit` has learned; each depends on its own text only."""
        return reviews.logits(self.model, rows)

    def how_it_adapts(self, support: str) -> str:
        """What happens at the test, in a few words for a model's card; `support` says what with."""
        loop = self.adaptation_loop
        return f"{loop.steps} gradient steps at a learning rate of {loop.lr:g} on {support}"

    def save(self, folder: Path) -> None:
        """Write the model in Hugging Face format: a classifier where this learner is one, else the encoder.

        What an encoder leaves out (the learner's own modules, and whatever `fit` has remembered) goes into
        `learner.safetensors` beside it; `metalib.json` names the learner.
        """
        write_atomically(folder / "metalib.json", json.dumps({"learner": self.name, "metalib": __version__}).encode())
        model = merge_lora(self.model)
        state = model.state_dict()
        if self.is_classifier:
            model.save_pretrained(folder, state_dict={k: v for k, v in state.items() if not k.startswith("own.")})
            return
        model.base_model.save_pretrained(folder)
        rest = {k: v for k, v in state.items() if not k.startswith(f"{model.base_model_prefix}.")}
        save_file({name: tensor.contiguous() for name, tensor in {**rest, **self.memory()}.items()},
                  folder / "learner.safetensors")  # fmt: skip

    def memory(self) -> dict[str, torch.Tensor]:
        """What `fit` has remembered beside the weights."""
        return {}

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
                predictions[place] = self.logits(reviews, task.query).argmax(dim=-1).cpu().numpy()

        with untouched(self.model, self.weights):
            self.fit(reviews, task.support, seed, look)
        return predictions
