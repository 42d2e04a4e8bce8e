"""Many tasks in step on a GPU: n inner loops of a BERT as one recorded lot of calls. Measured by `benchmarks/gpu.py`.

Not in the library: it is a BERT written out by hand, with SGD and without dropout. It shows what is left to gain above
the library's own recordings (`metalib/fast.py`), which take any model, optimiser and learner.
"""

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.attention.varlen import varlen_attn

from metalib.inner import InnerLoop, minibatches
from metalib.models import TokenizedReviews
from metalib.tasks import Task
from metalib.training import Workbench

Point = dict[str, torch.Tensor]  # a BERT's parameters by name, each (n, …): n tasks' points
WORDS, POSITIONS, KINDS = (f"bert.embeddings.{kind}_embeddings.weight" for kind in ("word", "position", "token_type"))
TAILS = 8  # texts of nothing that fill a step up
BUCKET = 256  # tokens of a step are rounded up to so many


@dataclass
class Inputs:
    """A step's minibatches of n tasks, one text behind the other, task by task; tokens of nothing fill the place up.

    Attributes:
        words: (tokens,) the word's row in the table of all tasks' words.
        positions: (tokens,) its place in its text.
        ends: (texts + 1,) where texts begin and end.
        borders: (n,) where tasks end.
        tasks: (tokens,) whose token this is.
        first: (n · rows,) the first token of each text.
        labels: (n · rows,) its class.
    """

    words: torch.Tensor
    positions: torch.Tensor
    ends: torch.Tensor
    borders: torch.Tensor
    tasks: torch.Tensor
    first: torch.Tensor
    labels: torch.Tensor


class Own(torch.autograd.Function):
    """Rows (n, …) of n tasks → (tokens, …), each token its task's row; the gradient is a product, not a scatter."""

    @staticmethod
    def forward(context: Any, rows: torch.Tensor, borders: torch.Tensor, tasks: torch.Tensor) -> torch.Tensor:
        context.save_for_backward(borders, tasks)
        return rows[tasks]

    @staticmethod
    def backward(context: Any, slope: torch.Tensor) -> tuple[torch.Tensor, None, None]:  # type: ignore[override]
        borders, tasks = context.saved_tensors
        if grouped(slope):
            ones = slope.new_ones(len(slope), 16).t()  # products begin at round places
            return F.grouped_mm(ones, slope.contiguous(), offs=borders)[:, 0], None, None
        whose = torch.arange(len(borders), device=tasks.device)[:, None] == tasks
        return whose.to(slope.dtype) @ slope, None, None


def words_of(reviews: TokenizedReviews, task: Task) -> np.ndarray:
    """The words of a task's support set, each once, in order."""
    return np.unique(np.concatenate([reviews.tokens[row] for row in task.support]))


def grouped(x: torch.Tensor) -> bool:
    """Whether there are grouped matrix products for it."""
    return x.dtype == torch.bfloat16 and x.is_cuda


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, borders: torch.Tensor,
           tasks: torch.Tensor) -> torch.Tensor:  # fmt: skip
    """(tokens, in) · (n, out, in) → (tokens, out): each token through its own task's matrix."""
    if len(weight) == 1:
        return F.linear(x, weight[0], bias[0])
    if grouped(x):
        found = F.grouped_mm(x, weight.transpose(1, 2), offs=borders)
    else:
        parts = x.tensor_split(borders[:-1].cpu().long())
        found = torch.cat([part @ w.T for part, w in zip(parts, weight, strict=True)])
    return found + Own.apply(bias, borders, tasks)


def norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, borders: torch.Tensor,
         tasks: torch.Tensor) -> torch.Tensor:  # fmt: skip
    """Layer norm of (tokens, hidden), each task with its own scale."""
    if len(weight) == 1:
        return F.layer_norm(x, x.shape[-1:], weight[0], bias[0], eps=1e-12)
    own = (borders, tasks)
    return F.layer_norm(x, x.shape[-1:], eps=1e-12) * Own.apply(weight, *own) + Own.apply(bias, *own)


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, ends: torch.Tensor, longest: int) -> torch.Tensor:
    """Attention within each text: three times (tokens, heads, size) → the same."""
    if grouped(q):
        return varlen_attn(q, k, v, ends, ends, longest, longest)
    text = torch.bucketize(torch.arange(len(q), device=q.device), ends, right=True)
    q, k, v = (each.transpose(0, 1)[None] for each in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, text[:, None] == text)[0].transpose(0, 1)


def layer(x: torch.Tensor, ends: torch.Tensor, borders: torch.Tensor, tasks: torch.Tensor, longest: int, heads: int,
          part: list[torch.Tensor]) -> torch.Tensor:  # fmt: skip
    """One layer of BERT; `part` are its parameters in their order."""
    wq, bq, wk, bk, wv, bv, wo, bo, w1, b1, wi, bi, wd, bd, w2, b2 = part
    own = (borders, tasks)
    q, k, v = (linear(x, w, b, *own).unflatten(-1, (heads, -1)) for w, b in ((wq, bq), (wk, bk), (wv, bv)))
    x = norm(linear(attend(q, k, v, ends, longest).flatten(1), wo, bo, *own) + x, w1, b1, *own)
    return norm(linear(F.gelu(linear(x, wi, bi, *own)), wd, bd, *own) + x, w2, b2, *own)


class Stack:
    """n inner loops (SGD, no dropout) of a BERT in step, padding left out, each step recorded and played back.

    Of the word embeddings a task has only the rows that it needs.

    Args:
        words: at most so many different ones in a task.
    """

    def __init__(self, bench: Workbench, count: int, loop: InnerLoop, words: int,
                 dtype: torch.dtype = torch.bfloat16) -> None:  # fmt: skip
        self.bench, self.count, self.loop, self.words = bench, count, loop, words
        self.device, self.config = bench.weights.flat.device, bench.model.config
        self.shapes = bench.weights.shapes | {WORDS: torch.Size((words, self.config.hidden_size))}
        self.points = {name: torch.zeros(count, *shape, device=self.device) for name, shape in self.shapes.items()}
        self.low = {name: point.to(dtype, copy=True).requires_grad_() for name, point in self.points.items()}
        self.dtype = dtype  # of `low`, which is computed with
        self.recorded: dict[int, tuple[Inputs, torch.cuda.CUDAGraph]] = {}  # tokens of a step → its inputs, the step

    def loss(self, point: Point, inputs: Inputs) -> torch.Tensor:
        """The n tasks' mean losses, summed."""
        own, count, config = (inputs.borders, inputs.tasks), self.count, self.config
        x = F.embedding(inputs.words, point[WORDS].flatten(0, 1))
        x = x + F.embedding(inputs.positions + inputs.tasks * self.shapes[POSITIONS][0], point[POSITIONS].flatten(0, 1))
        x = x + Own.apply(point[KINDS][:, 0], *own)
        x = norm(x, *(point[f"bert.embeddings.LayerNorm.{kind}"] for kind in ("weight", "bias")), *own)
        longest = self.bench.tokenizer.model_max_length
        for number in range(config.num_hidden_layers):
            part = [each for name, each in point.items() if name.startswith(f"bert.encoder.layer.{number}.")]
            x = layer(x, inputs.ends, *own, longest, config.num_attention_heads, part)
        x = x[inputs.first].unflatten(0, (count, -1))
        for name in ("bert.pooler.dense", "classifier"):
            x = torch.baddbmm(point[f"{name}.bias"][:, None], x, point[f"{name}.weight"].transpose(1, 2))
            x = torch.tanh(x) if "pooler" in name else x
        return F.cross_entropy(x.flatten(0, 1).float(), inputs.labels, reduction="sum") / x.shape[1]

    def step(self, inputs: Inputs) -> None:
        """One step of all n tasks."""
        slopes = torch.autograd.grad(self.loss(self.low, inputs), list(self.low.values()))
        with torch.no_grad():
            for point, low, slope in zip(self.points.values(), self.low.values(), slopes, strict=True):
                point.sub_(slope, alpha=self.loop.lr)
                low.copy_(point)

    def inputs(self, lots: list[np.ndarray], words: list[np.ndarray]) -> Inputs:
        """Of a step: `lots` are the minibatches of the tasks, `words` the words of each."""
        reviews, bucket = self.bench.reviews["train"], BUCKET * max(self.count // 4, 1)
        rows = np.concatenate(lots)
        lengths = reviews.lengths[rows].astype(np.int64)
        ends = np.cumsum(lengths)
        size = bucket * -(-int(ends[-1]) // bucket)
        borders = ends[np.cumsum([len(lot) for lot in lots]) - 1]
        borders[-1] = size
        found = [np.searchsorted(known, np.concatenate([reviews.tokens[row] for row in lot])) + place * self.words
                 for place, (lot, known) in enumerate(zip(lots, words, strict=True))]  # fmt: skip
        rest = np.zeros(size - ends[-1], dtype=np.int64)
        tails = np.linspace(ends[-1], size, TAILS + 1).astype(np.int64)[1:]
        made = {
            "words": np.concatenate([*found, rest]),
            "positions": np.concatenate([np.arange(ends[-1]) - np.repeat(ends - lengths, lengths), rest]),
            "ends": np.concatenate([[0], ends, tails]).astype(np.int32),
            "borders": borders.astype(np.int32),
            "tasks": np.searchsorted(borders, np.arange(size), side="right"),
            "first": ends - lengths,
            "labels": reviews.labels[rows],
        }
        return Inputs(**{name: self.send(each) for name, each in made.items()})

    def directions(self, tasks: list[Task], seed: int = 1) -> Point:
        """φ − θ of n tasks; the order of the minibatches is the library's."""
        words = self.start(tasks)
        orders = [list(minibatches(task.support, self.loop.batch_size, self.loop.steps, (seed, task.index)))
                  for task in tasks]  # fmt: skip
        theta = {name: point.clone() for name, point in self.points.items()}
        for lots in zip(*orders, strict=True):
            self.play(self.inputs(list(lots), words))
        return {name: point.sub_(theta[name]) for name, point in self.points.items()}  # these are put anew each time

    def start(self, tasks: list[Task]) -> list[np.ndarray]:
        """Put all points to θ; returns the words of each task."""
        reviews, weights = self.bench.reviews["train"], self.bench.weights
        words = [words_of(reviews, task) for task in tasks]
        numbers = np.zeros((self.count, self.words), dtype=np.int64)
        for row, each in zip(numbers, words, strict=True):
            row[: len(each)] = each
        whole = weights.views(weights.flat)
        with torch.no_grad():
            for name, point in self.points.items():
                point.copy_(whole[WORDS][self.send(numbers)] if name == WORDS else whole[name].expand_as(point))
                self.low[name].copy_(point)
        return words

    def send(self, array: np.ndarray) -> torch.Tensor:
        """An array on the device; a GPU's copy does not wait."""
        tensor = torch.from_numpy(array)
        return tensor.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else tensor

    def play(self, inputs: Inputs) -> None:
        """A step: recorded at the first of this many tokens, played back at every later one."""
        if self.device.type != "cuda" or self.dtype != torch.bfloat16:
            self.step(inputs)
            return
        size = len(inputs.words)
        if size not in self.recorded:
            before, aside = {name: point.clone() for name, point in self.points.items()}, torch.cuda.Stream()
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):  # as recording asks for
                for _ in range(2):
                    self.step(inputs)
            torch.cuda.current_stream().wait_stream(aside)
            graph = torch.cuda.CUDAGraph()
            pool = next(iter(self.recorded.values()))[1].pool() if self.recorded else None
            with torch.cuda.graph(graph, pool=pool):
                self.step(inputs)
            with torch.no_grad():
                for name, point in before.items():
                    self.points[name].copy_(point)
                    self.low[name].copy_(point)
            self.recorded[size] = inputs, graph
        kept, graph = self.recorded[size]
        for field in fields(Inputs):
            getattr(kept, field.name).copy_(getattr(inputs, field.name))
        graph.replay()

    def same(self, found: Point, place: int, direction: torch.Tensor, task: Task) -> float:
        """‖found − direction‖ / ‖direction‖ of a task: its place here, and the library's direction (P,)."""
        views, squares = self.bench.weights.views(direction), torch.zeros(2, device=self.device)
        words = torch.from_numpy(words_of(self.bench.reviews["train"], task)).to(self.device)
        for name, points in found.items():
            here, there = points[place], views[name]
            if name == WORDS:
                here, there = here[: len(words)], there[words]
            squares += torch.stack([(here - there).square().sum(), there.square().sum()])
        return float((squares[0] / squares[1]).sqrt())
