"""Thrift: what the frozen layers of an encoder make of a text never changes, so it is computed once and kept.

The numbers are those of the whole encoder, to rounding; a run costs a third to a half less, and where the head alone
adapts (or nothing does), a test costs one pass over each text.
"""

import copy

import numpy as np
import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from metalib.learners import Learner, MetricLearner
from metalib.models import TokenizedReviews
from metalib.weights import Weights

Known = dict[bytes, torch.Tensor]  # a text's tokens → its hidden states (tokens, hidden)


class Skip(nn.Module):
    """Stands where the embeddings or a frozen layer stood: what comes in goes out."""

    def forward(
        self, states: torch.Tensor | None = None, *_: object, inputs_embeds: torch.Tensor | None = None, **__: object
    ) -> torch.Tensor | None:
        return inputs_embeds if states is None else states


def skip_layers(model: PreTrainedModel, layers: int) -> None:
    """Let the model begin above its `layers` lowest layers: it takes their output as `inputs_embeds`."""
    encoder = model.base_model
    encoder.embeddings = Skip()
    for place in range(layers):
        encoder.encoder.layer[place] = Skip()


def lower_part(model: PreTrainedModel, layers: int) -> PreTrainedModel:
    """A copy of the embeddings and the `layers` lowest layers of a BERT."""
    encoder = copy.deepcopy(model.base_model)
    encoder.encoder.layer = encoder.encoder.layer[:layers]
    encoder.pooler = None
    return encoder.eval()


class RememberedReviews(TokenizedReviews):
    """Reviews as the hidden states that an encoder makes of them, each text computed at its first use.

    `batch` holds `inputs_embeds` (rows, longest, hidden) in the place of `input_ids`.

    Args:
        reviews: what the encoder reads.
        encoder: must not move while these reviews are in use.
        known: the memory; give the same to several sets of reviews to share it.
        first_only: keep the first token's state alone, which is all that a BERT's classifier looks at.
    """

    def __init__(
        self, reviews: TokenizedReviews, encoder: PreTrainedModel, known: Known, first_only: bool = False
    ) -> None:
        self.reviews, self.encoder, self.known = reviews, encoder, known
        self.labels, self.device, self.tokens = reviews.labels, reviews.device, reviews.tokens
        self.lengths = np.ones_like(reviews.lengths) if first_only else reviews.lengths

    def states(self, rows: np.ndarray) -> list[torch.Tensor]:
        """(tokens, hidden) of each row."""
        keys = [self.tokens[row].tobytes() for row in rows]
        missing = {key: row for key, row in zip(keys, rows, strict=True) if key not in self.known}
        waiting = sorted(missing.values(), key=lambda row: self.lengths[row])
        for start in range(0, len(waiting), 64):
            self._compute(np.asarray(waiting[start : start + 64]))
        return [self.known[key] for key in keys]

    @torch.no_grad()
    def _compute(self, rows: np.ndarray) -> None:
        inputs = self.reviews.batch(rows)
        inputs.pop("labels")
        for row, hidden in zip(rows, self.encoder(**inputs).last_hidden_state, strict=True):
            self.known[self.tokens[row].tobytes()] = hidden[: self.lengths[row]].clone()

    def batch(self, rows: np.ndarray) -> dict[str, torch.Tensor]:
        """The model's input for some rows, for a model that begins above the encoder (`skip_layers`)."""
        lengths = torch.from_numpy(self.lengths[rows])
        return {
            "inputs_embeds": pad_sequence(self.states(rows), batch_first=True),
            "attention_mask": (torch.arange(int(lengths.max())) < lengths[:, None]).long(),
            "labels": torch.from_numpy(self.labels[rows]),
        }


def above_encoder(learner: Learner, reviews: TokenizedReviews, known: Known) -> tuple[Learner, TokenizedReviews]:
    """The same learner on its classifier head alone, and the reviews as its encoder, which stays as it is, sees them.

    For learners that move nothing in the encoder while they learn a task: those that compare, and those with
    adapts="head". The encoder's weights must stay at θ while both, and `known`, the memory, are in use.
    """
    top = copy.deepcopy(learner.model)
    skip_layers(top, len(top.base_model.encoder.layer))
    lifted = type(learner)(top, Weights(top), learner.training_loop, learner.adaptation_loop)
    return lifted, RememberedReviews(reviews, learner.model.base_model, known, first_only=True)


def moves_encoder(learner: Learner) -> bool:
    """Whether learning a task changes what the encoder makes of a text."""
    return not isinstance(learner, MetricLearner) and learner.adaptation_loop.adapts != "head"
