"""Learners that compare: a query is given the class of the support reviews that it is most like.

All see a text as its features, the input of the classifier's last matrix (`parts.features`). Their direction is
−∇ episode loss at θ; at the test they take no gradient steps.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from metalib.errors import BadInput
from metalib.inner import InnerLoop
from metalib.learners.base import Learner
from metalib.models import TokenizedReviews
from metalib.parts import features, final_layer
from metalib.tasks import Task

TEMPERATURE = 0.1  # of cosines, which lie between −1 and 1 and would leave every softmax flat


def negative_squared_distance(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """(n, m) of −‖a_i − b_j‖²."""
    return -(a[:, None] - b[None]).square().sum(-1)


def scaled_cosine(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """(n, m) of cos(a_i, b_j) / TEMPERATURE."""
    return F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).T / TEMPERATURE


class MetricLearner(Learner):
    """Direction = −∇ loss of the query set, given the support set; the subclasses say how a query is scored."""

    outer = "adam"
    uses_query = True
    is_classifier = False

    @classmethod
    def check(cls, loop: InnerLoop) -> None:
        if loop.micro_batch:
            raise BadInput(
                f"{cls.name} with micro_batch={loop.micro_batch}: every query is compared with the whole support set, "
                "which cannot be split — lower train_shots or train_queries"
            )

    @classmethod
    def review_passes(cls, support: int, query: int, loop: InnerLoop) -> int:
        return support + query

    def scores(self, queries: torch.Tensor, support: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        """(q, classes) scores, from features (q, hidden) and (s, hidden) and the support set's classes, one-hot (s, c).

        No score depends on the order of the support set.
        """
        raise NotImplementedError

    @classmethod
    def own_module(cls, model: PreTrainedModel) -> nn.Module | None:
        """As for every learner. Raises BadInput where the model has no features, of a text of some words."""
        end = getattr(model.config, "eos_token_id", None)  # which some classifiers look for
        known = isinstance(end, int) and end < model.get_input_embeddings().num_embeddings
        words = torch.tensor([[3, 4, end if known else 3]], device=model.device)
        with torch.no_grad():
            features(model, {"input_ids": words, "attention_mask": torch.ones_like(words)})
        return None

    def loss(
        self, queries: torch.Tensor, labels: torch.Tensor, support: torch.Tensor, classes: torch.Tensor
    ) -> torch.Tensor:
        """The episode's loss (), from the same and the queries' labels (q,): cross-entropy of the scores."""
        return F.cross_entropy(self.scores(queries, support, classes), labels)

    def one_hot(self, labels: torch.Tensor) -> torch.Tensor:
        """(s,) labels → (s, classes) of zeros and ones."""
        return F.one_hot(labels, self.model.config.num_labels).float()

    def direction(
        self, reviews: TokenizedReviews, task: Task, seed: tuple[int, ...]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        def episode_loss() -> torch.Tensor:
            batch = reviews.batch(np.concatenate([task.support, task.query]))
            seen, labels, shots = features(self.model, batch), batch["labels"], len(task.support)
            loss = self.loss(seen[shots:], labels[shots:], seen[:shots], self.one_hot(labels[:shots]))
            loss.backward()
            return loss.detach()

        return self.descent(episode_loss, seed)

    def fit(
        self,
        reviews: TokenizedReviews,
        support: np.ndarray,
        seed: tuple[int, ...] = (0,),
        after_step: Callable[[int], None] | None = None,
    ) -> None:
        """Look at the support set and remember its features: no steps, so `after_step` is called with 0 alone."""
        labels = torch.from_numpy(reviews.labels[support]).to(reviews.device)
        self.remember(reviews.features(self.model, support), self.one_hot(labels))
        if after_step:
            after_step(0)

    def predict_along(
        self, reviews: TokenizedReviews, task: Task, seed: tuple[int, ...], marks: list[int]
    ) -> np.ndarray:
        """(marks, queries) predicted classes, the same at all marks, computed once; leaves no trace."""
        return np.repeat(super().predict_along(reviews, task, seed, [0]), len(marks), axis=0)

    def remember(self, support: torch.Tensor, classes: torch.Tensor) -> None:
        """Keep a support set for `logits`: features (s, hidden) and one-hot classes (s, c)."""
        self.support, self.classes = support, classes

    def memory(self) -> dict[str, torch.Tensor]:
        return {"support": self.support, "classes": self.classes}

    def how_it_adapts(self, support: str) -> str:
        return f"comparing with {support}, without gradient steps"

    @torch.no_grad()
    def logits(self, reviews: TokenizedReviews, rows: np.ndarray) -> torch.Tensor:
        seen = reviews.features(self.model, rows)
        seen = seen.split(max(2**24 // self.support.numel(), 1))  # scores may take memory of queries × support × hidden
        return torch.cat([self.scores(queries, self.support, self.classes) for queries in seen])


class Prototypical(MetricLearner):
    """Prototypical networks (Snell, Swersky & Zemel 2017, eq. 1 and 2): softmax over −‖f(q) − c_k‖².

    c_k is the mean of the features of class k. It is a linear classifier on the features (§2.4): up to a term that all
    classes share, −‖f − c‖² = 2 c·f − ‖c‖². Learning a task writes these into the model's last matrix, so that what
    comes out is an ordinary classifier. Both parts are written less their means over the classes, which shifts all
    scores alike: what is left is small, and bfloat16 does not round the differences of the scores away.
    """

    name = "protonet"
    is_classifier = True

    @classmethod
    def own_module(cls, model: PreTrainedModel) -> None:
        super().own_module(model)
        if final_layer(model).bias is None:  # −‖c‖² has no place
            raise BadInput(f"the last matrix of {type(model).__name__} has no bias — take reptile or fomaml")

    def scores(self, queries: torch.Tensor, support: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        return negative_squared_distance(queries, prototypes(support, classes))

    @torch.no_grad()
    def remember(self, support: torch.Tensor, classes: torch.Tensor) -> None:
        layer, centres = final_layer(self.model), prototypes(support, classes)
        squares = centres.square().sum(-1)
        layer.weight.copy_(2 * (centres - centres.mean(0)))
        layer.bias.copy_(squares.mean() - squares)

    def logits(self, reviews: TokenizedReviews, rows: np.ndarray) -> torch.Tensor:
        return reviews.logits(self.model, rows)


def prototypes(support: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """(c, hidden) mean features of each class, from (s, hidden) and one-hot classes (s, c)."""
    return classes.T.to(support.dtype) @ support / classes.sum(0)[:, None]


def by_class(pairs: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """(q, c, s) scores of pairs (q, s), −∞ where the support review is not of class c, from one-hot classes (s, c)."""
    return pairs[:, None] + torch.where(classes.T[None] > 0, 0.0, -torch.inf)


class Matching(MetricLearner):
    """Matching networks (Vinyals et al. 2016, eq. 1): p(y | q) = Σ_i a(q, x_i) [y_i = y], a = softmax of cosines.

    Without the paper's full context embeddings. The scores are log p(y | q), up to a term that all classes share.
    """

    name = "matching"

    def attention(self, queries: torch.Tensor, support: torch.Tensor) -> torch.Tensor:
        """(q, s) how much each query looks at each support review; each row sums to 1."""
        return scaled_cosine(queries, support).softmax(-1)

    def scores(self, queries: torch.Tensor, support: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        return by_class(scaled_cosine(queries, support), classes).logsumexp(-1)


class Siamese(MetricLearner):
    """Siamese networks (Koch, Zemel & Salakhutdinov 2015, §3.1): p(same class) = σ(w · |f(a) − f(b)| + b).

    Trained on all pairs of a query and a support review; at the test, a query has the class of its nearest pair.
    """

    name = "siamese"

    @classmethod
    def own_module(cls, model: PreTrainedModel) -> nn.Module:
        super().own_module(model)
        return nn.Linear(final_layer(model).in_features, 1)

    def pairs(self, queries: torch.Tensor, support: torch.Tensor) -> torch.Tensor:
        """(q, s) log-odds that a query and a support review are of the same class."""
        return self.model.own[self.name]((queries[:, None] - support[None]).abs()).squeeze(-1)

    def scores(self, queries: torch.Tensor, support: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        return by_class(self.pairs(queries, support), classes).amax(-1)

    def loss(
        self, queries: torch.Tensor, labels: torch.Tensor, support: torch.Tensor, classes: torch.Tensor
    ) -> torch.Tensor:
        same = classes.T[labels]  # (q, s)
        return F.binary_cross_entropy_with_logits(self.pairs(queries, support), same)


class Relation(MetricLearner):
    """Relation networks (Sung et al. 2018, eq. 1 and 2): r_k = g(C(c_k, f(q))), squared error against 1 and 0.

    c_k is the mean of the features of class k (the paper's sum, divided by the shots, so that their number may differ
    at the test), g two layers with a sigmoid at the end. C puts c, q, |c − q| and c ∘ q side by side: with c and q
    alone, the paper's first choice, an encoder that was not pretrained does not leave chance here. The scores are the
    log-odds of r, in the same order as r.
    """

    name = "relation"

    @classmethod
    def own_module(cls, model: PreTrainedModel) -> nn.Module:
        super().own_module(model)
        hidden = final_layer(model).in_features
        return nn.Sequential(nn.Linear(4 * hidden, hidden), nn.ReLU(), nn.Linear(hidden, 1))

    def scores(self, queries: torch.Tensor, support: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        centres = prototypes(support, classes)
        shape = (len(queries), len(centres), -1)
        c, q = centres[None].expand(shape), queries[:, None].expand(shape)
        return self.model.own[self.name](torch.cat([c, q, (c - q).abs(), c * q], dim=-1)).squeeze(-1)

    def loss(
        self, queries: torch.Tensor, labels: torch.Tensor, support: torch.Tensor, classes: torch.Tensor
    ) -> torch.Tensor:
        return F.mse_loss(self.scores(queries, support, classes).sigmoid(), self.one_hot(labels))
