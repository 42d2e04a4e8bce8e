"""The plain way: Reptile for text as most people write it. Only to be measured against.

For every task the whole list of reviews is filtered, shuffled and tokenised again, padded to 512 tokens; the model is
copied with `deepcopy`, gets a new optimiser and a `DataLoader`; the query set is scored after every inner epoch; the
differences are summed parameter by parameter.
"""

import copy
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass
class PlainReptile:
    """Reptile over reviews that are a list of dicts (`text`, `label` 0 or 1, `domain`).

    Attributes:
        padding: `max_length` pads every review to `max_length` tokens, `longest` to the longest of its minibatch.
        score_queries: score the query set after every inner epoch.
        optimizer: of the inner loop; a new one for every task.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    records: list[dict]
    shots: int
    queries: int
    inner_steps: int
    inner_batch: int
    inner_lr: float
    max_length: int = 512
    padding: str = "max_length"
    score_queries: bool = True
    optimizer: type[torch.optim.Optimizer] = torch.optim.AdamW

    def draw(self, domain: str, seed: int) -> tuple[list[dict], list[dict]]:
        """A task: support and query reviews, `shots` and `queries` of each class."""
        inside = [record for record in self.records if record["domain"] == domain]
        random.Random(seed).shuffle(inside)
        support, query = [], []
        for label in sorted({record["label"] for record in inside}):
            of_label = [record for record in inside if record["label"] == label]
            support += of_label[: self.shots]
            query += of_label[self.shots : self.shots + self.queries]
        return support, query

    def tokenise(self, records: list[dict]) -> TensorDataset:
        """Token numbers, mask and labels of some reviews."""
        texts = [record["text"] for record in records]
        found = self.tokenizer(
            texts, truncation=True, max_length=self.max_length, padding=self.padding, return_tensors="pt"
        )
        labels = torch.tensor([record["label"] for record in records])
        return TensorDataset(found["input_ids"], found["attention_mask"], labels)

    def cut(self, batch: list[torch.Tensor]) -> list[torch.Tensor]:
        """A minibatch's token numbers, mask and labels, without the padding that only other minibatches need."""
        input_ids, mask, labels = batch
        longest = int(mask.sum(1).max()) if self.padding == "longest" else mask.shape[1]
        return [input_ids[:, :longest], mask[:, :longest], labels]

    def adapted(self, support: list[dict], query: list[dict], order: Sequence[np.ndarray] | None = None) -> nn.Module:
        """A copy of the model after the inner loop; `order` gives the minibatches, instead of a shuffle an epoch."""
        fast_model = copy.deepcopy(self.model)
        device = next(fast_model.parameters()).device
        optimizer = self.optimizer(fast_model.parameters(), lr=self.inner_lr)
        rows, asked = self.tokenise(support), self.tokenise(query) if query else None
        per_epoch = -(-len(rows) // self.inner_batch)
        done = 0
        while done < self.inner_steps:
            steps = min(per_epoch, self.inner_steps - done)
            sampler = None if order is None else [batch.tolist() for batch in order[done : done + steps]]
            loader = (DataLoader(rows, batch_size=self.inner_batch, shuffle=True) if sampler is None
                      else DataLoader(rows, batch_sampler=sampler))  # fmt: skip
            for _, (input_ids, mask, labels) in zip(range(steps), map(self.cut, loader), strict=False):
                loss = fast_model(
                    input_ids=input_ids.to(device), attention_mask=mask.to(device), labels=labels.to(device)
                ).loss
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            done += steps
            if asked is not None and self.score_queries:
                self.accuracy(fast_model, asked)
        return fast_model

    @torch.no_grad()
    def accuracy(self, model: nn.Module, rows: TensorDataset) -> float:
        """Share of the query set that the model gets right."""
        device = next(model.parameters()).device
        right = 0
        for input_ids, mask, labels in map(self.cut, DataLoader(rows, batch_size=self.inner_batch)):
            logits = model(input_ids=input_ids.to(device), attention_mask=mask.to(device)).logits
            right += int((logits.argmax(-1).cpu() == labels).sum())
        return right / len(rows)

    def meta_step(self, tasks: list[tuple[str, int]], epsilon: float) -> None:
        """One outer step over some tasks, each a domain and a seed."""
        sums = {name: torch.zeros_like(parameter) for name, parameter in self.model.named_parameters()}
        for domain, seed in tasks:
            fast_model = self.adapted(*self.draw(domain, seed))
            for name, parameter in fast_model.named_parameters():
                sums[name] += parameter.data - self.model.get_parameter(name).data
        for name, parameter in self.model.named_parameters():
            parameter.data += epsilon * sums[name] / len(tasks)
