"""Many tasks in step on a GPU: n inner loops of a BERT as one recorded lot of calls. Measured by `benchmarks/gpu.py`.

Not in the library: it is a BERT written out by hand, with SGD and without dropout. It shows what is left to gain above
the library's own recordings (`metalib/fast.py`), which take any model, optimiser and learner.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

if torch.cuda.is_available():  # Triton is there
    from attention import within_texts

from metalib.inner import InnerLoop, minibatches
from metalib.models import TokenizedReviews
from metalib.tasks import Task
from metalib.training import Workbench

Tensors = tuple[torch.Tensor, ...]
Point = dict[str, torch.Tensor]  # a BERT's parameters, each (n, …): n tasks' points
WORDS, POSITIONS, KINDS = (f"bert.embeddings.{kind}_embeddings.weight" for kind in ("word", "position", "token_type"))
NORM = ["bert.embeddings.LayerNorm.weight", "bert.embeddings.LayerNorm.bias"]
LAYER = {  # what of a layer lies together: fewer and larger calls
    "qkv": ["attention.self.query.weight", "attention.self.key.weight", "attention.self.value.weight"],
    "out": ["attention.output.dense.weight"],
    "wide": ["intermediate.dense.weight"],
    "narrow": ["output.dense.weight"],
    "vectors": ["attention.self.query.bias", "attention.self.key.bias", "attention.self.value.bias",
                "attention.output.dense.bias", "attention.output.LayerNorm.weight", "attention.output.LayerNorm.bias",
                "intermediate.dense.bias", "output.dense.bias", "output.LayerNorm.weight", "output.LayerNorm.bias"],
}  # fmt: skip
MATRICES = [part for part in LAYER if part != "vectors"]
BLOCK = 16  # tokens, all of one task; what is left of a task's last block is filled up with tokens of nothing
STEP = 64  # tokens of a step are rounded up to so many, or to so many for every eight tasks


@dataclass
class Inputs:
    """A step's minibatches of n tasks, one text behind the other, task by task, in blocks of `BLOCK` tokens.

    Attributes:
        words: (blocks, BLOCK) the word's row in the table of all tasks' words.
        positions: (blocks, BLOCK) its place in its text.
        tasks: (blocks,) whose block this is.
        borders: (n,) the tokens before the end of each task.
        texts: (tokens,) whose text a token is; what fills a task or the step up counts as a text.
        ends: (texts + 1,) the tokens before each text, and all.
        first: (n · rows,) the first token of each text.
        labels: (n · rows,) its class.
    """

    words: torch.Tensor
    positions: torch.Tensor
    tasks: torch.Tensor
    borders: torch.Tensor
    texts: torch.Tensor
    ends: torch.Tensor
    first: torch.Tensor
    labels: torch.Tensor

    def map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> "Inputs":
        """The same with something done to each of them."""
        return Inputs(**{field.name: function(getattr(self, field.name)) for field in fields(self)})


class Own(torch.autograd.Function):
    """x · scale + shift, to each task its own: (blocks, BLOCK, size) and twice (n, size), scale or none.

    The gradients of scale and shift are products with `whose` (n, tokens), which is 1 where a token is a task's.
    """

    @staticmethod
    def forward(context: Any, x: torch.Tensor, scale: torch.Tensor | None, shift: torch.Tensor, tasks: torch.Tensor,
                whose: torch.Tensor) -> torch.Tensor:  # fmt: skip
        context.scaled = scale is not None
        context.save_for_backward(whose, *((x, scale, tasks) if scale is not None else ()))
        return (x if scale is None else x * scale[tasks][:, None]) + shift[tasks][:, None]

    @staticmethod
    def backward(context: Any, slope: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        if not context.scaled:
            return slope, None, context.saved_tensors[0] @ slope.flatten(0, 1), None, None
        whose, x, scale, tasks = context.saved_tensors
        both = whose @ torch.cat([slope * x, slope], dim=-1).flatten(0, 1)
        return slope * scale[tasks][:, None], *both.chunk(2, dim=-1), None, None


class Product(torch.autograd.Function):
    """x · weightᵀ, to each task its own: (tokens, in) · (n, out, in) → (tokens, out), tokens task by task.

    `here` is the weight, or at the first step, where all tasks are at θ, that of θ alone, (1, out, in).
    """

    @staticmethod
    def forward(context: Any, x: torch.Tensor, weight: torch.Tensor, here: torch.Tensor,
                borders: torch.Tensor) -> torch.Tensor:  # fmt: skip
        context.save_for_backward(x, here, borders)
        context.alone = len(weight) == 1
        return x @ here[0].T if len(here) == 1 else grouped(x, here.transpose(1, 2), borders)

    @staticmethod
    def backward(context: Any, slope: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        x, here, borders = context.saved_tensors
        back = slope @ here[0] if len(here) == 1 else grouped(slope, here, borders)
        return back, (slope.T @ x)[None] if context.alone else grouped(slope.T, x, borders), None, None


def grouped(left: torch.Tensor, right: torch.Tensor, borders: torch.Tensor) -> torch.Tensor:
    """Products task by task: (tokens, a) · (n, a, b) → (tokens, b), or (a, tokens) · (tokens, b) → (n, a, b)."""
    if left.dtype == torch.bfloat16:
        return F.grouped_mm(left, right, offs=borders)
    cuts = borders[:-1].cpu().long()
    if right.dim() == 3:
        return torch.cat([part @ own for part, own in zip(left.tensor_split(cuts), right, strict=True)])
    return torch.stack([a @ b for a, b in zip(left.tensor_split(cuts, 1), right.tensor_split(cuts), strict=True)])


def words_of(reviews: TokenizedReviews, task: Task) -> np.ndarray:
    """The words of a task's support set, each once, in order."""
    return np.flatnonzero(np.bincount(np.concatenate([reviews.tokens[row] for row in task.support])))


def linear(x: torch.Tensor, weight: Tensors, bias: torch.Tensor, owners: Tensors) -> torch.Tensor:
    """(blocks, BLOCK, in) · (n, out, in) + (n, out) → (blocks, BLOCK, out): to each task its own matrix.

    The matrix comes as `Product` takes it: as a leaf, and as what is computed with.
    """
    borders, *own = owners
    found = Product.apply(x.flatten(0, 1), *weight, borders).unflatten(0, (-1, BLOCK))
    return found + bias[0] if len(bias) == 1 else Own.apply(found, None, bias, *own)


def norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, owners: Tensors) -> torch.Tensor:
    """Layer norm of (blocks, BLOCK, hidden), each task with its own scale."""
    if len(weight) == 1:
        return F.layer_norm(x, x.shape[-1:], weight.squeeze(0), bias.squeeze(0), eps=1e-12)
    return Own.apply(F.layer_norm(x, x.shape[-1:], eps=1e-12), weight, bias, *owners[1:])


def attend(qkv: torch.Tensor, texts: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """Attention within each text: (tokens, 3, heads, size) → (tokens, heads · size)."""
    if qkv.dtype == torch.bfloat16 and qkv.is_cuda:
        return within_texts(qkv, texts, ends)[0]
    parts = qkv.transpose(0, 2).split([length for length in ends.diff().tolist() if length], dim=2)
    found = torch.cat([F.scaled_dot_product_attention(*part.unbind(1)) for part in parts], dim=1)
    return found.transpose(0, 1).flatten(1)


def front(x: torch.Tensor, kind: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor,
          owners: Tensors) -> torch.Tensor:  # fmt: skip
    """What is done to words and positions before the first layer."""
    return norm(x + kind if len(kind) == 1 else Own.apply(x, None, kind, *owners[1:]), weight, bias, owners)


def layer(x: torch.Tensor, texts: torch.Tensor, ends: torch.Tensor, owners: Tensors, heads: int, qkv: Tensors,
          out: Tensors, wide: Tensors, narrow: Tensors, vectors: torch.Tensor) -> torch.Tensor:  # fmt: skip
    """One layer of BERT; its parameters as they lie together in `LAYER`, matrices as `linear` takes them."""
    size = x.shape[-1]
    sizes = [3 * size, size, size, size, wide[0].shape[1], size, size, size]
    b_qkv, b_out, w1, b1, b_wide, b_narrow, w2, b2 = vectors.split(sizes, dim=1)
    both = linear(x, qkv, b_qkv, owners).flatten(0, 1).unflatten(-1, (3, heads, -1))
    found = attend(both, texts, ends).unflatten(0, (-1, BLOCK))
    x = norm(linear(found, out, b_out, owners) + x, w1, b1, owners)
    return norm(linear(F.gelu(linear(x, wide, b_wide, owners)), narrow, b_narrow, owners) + x, w2, b2, owners)


def copy(points: list[torch.Tensor], theta: list[torch.Tensor]) -> None:
    """All of some points at θ."""
    for here, origin in zip(points, theta, strict=True):
        here.copy_(origin.expand_as(here))


def advance(moved: list[torch.Tensor], low: list[torch.Tensor], theta: list[torch.Tensor],
            slopes: Sequence[torch.Tensor], lr: float, first: bool, last: bool) -> None:  # fmt: skip
    """A step of SGD: `moved` is φ − θ; `low` becomes φ, rounded as it is computed with (after the last step: not)."""
    for far, here, origin, slope in zip(moved, low, theta, slopes, strict=True):
        point = (origin if first else origin + far.float()) - lr * slope.float()
        far.copy_(point - origin)
        if not last:
            here.copy_(point)


class Stack:
    """n inner loops (SGD, no dropout) of a BERT in step, padding left out, each step recorded and played back.

    Of the word embeddings a task has only the rows that it needs. In bfloat16 what is done between the products is
    compiled; of a task are kept φ, and how far it is from θ. At the first step all tasks' layers are θ's, read once.

    Args:
        words: at most so many different ones in a task.
    """

    def __init__(self, bench: Workbench, count: int, loop: InnerLoop, words: int,
                 dtype: torch.dtype = torch.bfloat16) -> None:  # fmt: skip
        self.bench, self.count, self.loop = bench, count, loop
        self.device, self.config = bench.weights.flat.device, bench.model.config
        self.shapes = bench.weights.shapes | {WORDS: torch.Size((words, self.config.hidden_size))}
        self.names = {f"{number}.{part}": [f"bert.encoder.layer.{number}.{name}" for name in names]
                      for number in range(self.config.num_hidden_layers) for part, names in LAYER.items()}  # fmt: skip
        self.names |= {name: [name] for name in self.shapes if ".layer." not in name}
        self.moved, self.low, self.theta = (
            {part: torch.zeros(count if part == WORDS else tasks, *self.shape(part), dtype=kind, device=self.device)
             for part in self.names}
            for tasks, kind in ((count, dtype), (count, dtype), (1, torch.float32))
        )  # fmt: skip
        for point in self.low.values():
            point.requires_grad_()
        self.layers = {part: torch.zeros_like(self.theta[part], dtype=dtype) for part in self.names
                       if part.partition(".")[2] in MATRICES}  # θ's matrices, rounded as they are computed with
        self.fast = dtype == torch.bfloat16 and self.device.type == "cuda"
        self.started: torch.cuda.CUDAGraph | None = None
        self.steps: dict[tuple[int, int, bool, bool], tuple[Inputs, torch.cuda.CUDAGraph]] = {}  # see `play`
        calls: tuple[Callable[..., Any], ...] = (front, layer, copy, advance)
        if self.fast:
            torch._dynamo.reset()  # what was compiled for another number of tasks
            calls = tuple(torch.compile(each, options={"max_autotune_pointwise": True}) for each in calls)
        self.front, self.layer, self.copy, self.advance = calls

    def shape(self, part: str) -> tuple[int, ...]:
        """Of what lies together there, one below the other."""
        shapes = [self.shapes[name] for name in self.names[part]]
        return sum(shape[0] for shape in shapes), *shapes[0][1:]

    def views(self, point: Point) -> Point:
        """A point by the parameters' own names."""
        cuts = {part: [self.shapes[name][0] for name in names] for part, names in self.names.items()}
        return {name: view for part, names in self.names.items()
                for name, view in zip(names, point[part].split(cuts[part], dim=1), strict=True)}  # fmt: skip

    def loss(self, inputs: Inputs, first: bool) -> torch.Tensor:
        """The n tasks' mean losses, summed; before the first step the layers' matrices are θ's."""
        point, tasks, config = self.low, inputs.tasks, self.config
        places = inputs.positions + tasks[:, None] * self.shapes[POSITIONS][0]
        x = F.embedding(inputs.words, point[WORDS].flatten(0, 1)) + F.embedding(places, point[POSITIONS].flatten(0, 1))
        whose = F.one_hot(tasks.repeat_interleave(BLOCK), self.count).to(x.dtype).T.contiguous()
        for tensor, dim in ((tasks, 0), (whose, 1), (x, 0), (inputs.texts, 0)):  # no compiling anew for another size
            torch._dynamo.maybe_mark_dynamic(tensor, dim)
        owners = (inputs.borders, tasks, whose)
        x = self.front(x, point[KINDS][:, 0], *(point[name] for name in NORM), owners)
        for number in range(config.num_hidden_layers):
            matrices = [(point[part], self.layers[part] if first else point[part].detach())
                        for part in (f"{number}.{name}" for name in MATRICES)]  # fmt: skip
            torch._dynamo.maybe_mark_dynamic(x, 0)
            x = self.layer(x, inputs.texts, inputs.ends, owners, config.num_attention_heads, *matrices,
                           point[f"{number}.vectors"])  # fmt: skip
        x = x.flatten(0, 1)[inputs.first].unflatten(0, (self.count, -1))
        for name in ("bert.pooler.dense", "classifier"):
            x = torch.baddbmm(point[f"{name}.bias"][:, None], x, point[f"{name}.weight"].transpose(1, 2))
            x = torch.tanh(x) if "pooler" in name else x
        return F.cross_entropy(x.flatten(0, 1).float(), inputs.labels, reduction="sum") / x.shape[1]

    def step(self, inputs: Inputs, first: bool, last: bool) -> None:
        """One step of all n tasks."""
        slopes = torch.autograd.grad(self.loss(inputs, first), list(self.low.values()))
        with torch.no_grad():
            points = (list(each.values()) for each in (self.moved, self.low, self.theta))
            self.advance(*points, slopes, self.loop.lr, first, last)

    @torch.no_grad()
    def start(self) -> None:
        """Put all n tasks to θ, but for their words, and for the layers' matrices, which the first step has of θ."""
        whole, views = self.bench.weights.views(self.bench.weights.flat), self.views(self.theta)
        names = [name for name in views if name != WORDS]
        torch._foreach_copy_([views[name] for name in names], [whole[name][None] for name in names])
        points = self.low | self.layers
        self.copy(*([each[part] for part in points if part != WORDS] for each in (points, self.theta)))

    @torch.no_grad()
    def start_words(self, known: list[np.ndarray]) -> None:
        """The same for the words, of which each task has its own."""
        numbers = np.zeros(self.low[WORDS].shape[:2], dtype=np.int64)
        for row, each in zip(numbers, known, strict=True):
            row[: len(each)] = each
        table = self.bench.weights.views(self.bench.weights.flat)[WORDS]
        torch.index_select(table, 0, self.send(numbers.ravel()), out=self.theta[WORDS].flatten(0, 1))
        self.low[WORDS].copy_(self.theta[WORDS])

    def send(self, array: np.ndarray) -> torch.Tensor:
        """An array on the device; a GPU's copy does not wait."""
        tensor = torch.from_numpy(array)
        return tensor.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else tensor

    def inputs(self, lots: list[np.ndarray], known: list[np.ndarray]) -> Inputs:
        """Of a step, on the CPU: `lots` are the minibatches of the tasks, `known` their words."""
        reviews, bucket = self.bench.reviews["train"], STEP * max(1, self.count // 8)
        lengths = np.array([reviews.lengths[rows] for rows in lots], dtype=np.int64)
        rests = -lengths.sum(axis=1) % BLOCK
        sizes = lengths.sum(axis=1) + rests
        borders = sizes.cumsum()
        size = bucket * -(-int(borders[-1]) // bucket)
        ends = np.array([0, *np.column_stack([lengths, rests]).cumsum(), size])
        first = ends[:-2].reshape(len(lots), -1)[:, :-1]
        numbers, places = np.zeros(size, np.int64), np.zeros(size, np.int64)
        for place, (lot, words, start) in enumerate(zip(lots, known, borders - sizes, strict=True)):
            found = np.searchsorted(words, np.concatenate([reviews.tokens[row] for row in lot]))
            numbers[start : start + len(found)] = found + place * self.low[WORDS].shape[1]
            places[start : start + len(found)] = np.concatenate([np.arange(each) for each in lengths[place]])
        borders[-1] = size
        made = Inputs(
            words=torch.from_numpy(numbers.reshape(-1, BLOCK)),
            positions=torch.from_numpy(places.reshape(-1, BLOCK)),
            tasks=torch.from_numpy(np.searchsorted(borders, np.arange(0, size, BLOCK), side="right")),
            borders=torch.from_numpy(borders.astype(np.int32)),
            texts=torch.from_numpy(np.arange(len(ends) - 1).repeat(np.diff(ends)).astype(np.int32)),
            ends=torch.from_numpy(ends.astype(np.int32)),
            first=torch.from_numpy(first.ravel()),
            labels=torch.from_numpy(reviews.labels[np.concatenate(lots)]),
        )
        return made.map(torch.Tensor.pin_memory) if self.fast else made

    def directions(self, tasks: list[Task], seed: int = 1) -> Point:
        """φ − θ of n tasks, by the parameters' names; the order of the minibatches is the library's."""
        if self.fast and not self.started:
            self.started = self.record(self.start)
        if self.started:
            self.started.replay()
        else:
            self.start()
        known = [words_of(self.bench.reviews["train"], task) for task in tasks]
        self.start_words(known)
        orders = [list(minibatches(task.support, self.loop.batch_size, self.loop.steps, (seed, task.index)))
                  for task in tasks]  # fmt: skip
        for place, lots in enumerate(zip(*orders, strict=True)):
            self.play(self.inputs(list(lots), known), place == 0, place == self.loop.steps - 1)
        return self.views(self.moved)

    def play(self, inputs: Inputs, first: bool, last: bool) -> None:
        """A step: recorded at the first of its kind, of so many blocks and texts, played back at every later one."""
        if not self.fast:
            self.step(inputs.map(lambda each: each.to(self.device)), first, last)
            return
        key = (len(inputs.tasks), len(inputs.first), first, last)
        if key not in self.steps:
            kept, both = inputs.map(torch.Tensor.cuda), (self.moved, self.low)
            before = [{part: tensor.detach().clone() for part, tensor in point.items()} for point in both]
            self.steps[key] = kept, self.record(lambda: self.step(kept, first, last))
            with torch.no_grad():
                for point, saved in zip(both, before, strict=True):
                    for part, tensor in saved.items():
                        point[part].copy_(tensor)
        kept, graph = self.steps[key]
        for field in fields(Inputs):
            getattr(kept, field.name).copy_(getattr(inputs, field.name), non_blocking=True)
        graph.replay()

    def record(self, function: Callable[[], None]) -> torch.cuda.CUDAGraph:
        """What a function does on the GPU; it is done twice before, as recording asks for."""
        graph, aside = torch.cuda.CUDAGraph(), torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(2):
                function()
        torch.cuda.current_stream().wait_stream(aside)
        with torch.cuda.graph(graph, pool=self.started.pool() if self.started else None):
            function()
        return graph

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
