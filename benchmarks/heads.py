"""Joint training that is told the threshold: a head for each of ARSC's three, and one encoder below them."""

import torch
from protocols import threshold
from torch import nn
from transformers import PreTrainedModel

from metalib.learners.base import Learner
from metalib.learners.gradient import Direction, Joint
from metalib.models import TokenizedReviews
from metalib.parts import final_layer
from metalib.tasks import Task

Heads = dict[str, dict[str, torch.Tensor]]  # threshold → the head's parameters, by their names in the classifier
THRESHOLDS = ("t2", "t4", "t5")


class JointHeads(Joint):
    """Joint training, a task's loss being that of its threshold's head (multi-task learning; Caruana 1997).

    Of a review with three stars, tasks of one domain say yes at t2 and no at t4. One head must take the mean of both.
    """

    @classmethod
    def own_module(cls, model: PreTrainedModel) -> nn.Module:
        head = final_layer(model)
        own = nn.ModuleDict({name: nn.Linear(head.in_features, head.out_features) for name in THRESHOLDS})
        for each in own.values():
            each.load_state_dict(head.state_dict())
        return own

    def direction(self, reviews: TokenizedReviews, task: Task, seed: tuple[int, ...]) -> Direction:
        before, self.model.classifier = self.model.classifier, self.model.own[self.name][threshold(task.domain)]
        try:
            return super().direction(reviews, task, seed)
        finally:
            self.model.classifier = before


JointHeads.name = "heads"  # given here: so it is not among the library's learners, where nothing asks for it


def own_heads(learner: Learner) -> Heads:
    """The heads that a learner has trained for the thresholds; none, unless it is a `JointHeads`."""
    if not isinstance(learner, JointHeads):
        return {}
    return {place: {f"classifier.{name}": parameter.detach().flatten().clone()
                    for name, parameter in head.named_parameters()}
            for place, head in learner.model.own[learner.name].items()}  # fmt: skip
