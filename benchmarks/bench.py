"""What metalib costs, beside the plain way and the limit of the hardware: every figure of `benchmarks/RESULTS.md`.

python benchmarks/bench.py --data path/to/amazon22.json --model path/to/all-MiniLM-L6-v2

Without data and model only the rows of the tiny model are measured, and written to runs/bench; with them, RESULTS.md
and the table of README.md are written anew. All is measured anew; `--resume` keeps what was finished before a stop,
and `--only` makes some measurements anew, both on the same machine only. What `gpu.py` measured stays.
"""

import copy
import gc
import json
import os
import platform
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import lru_cache, partial
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import datasets
import numpy as np
import torch
import transformers
import tyro
from accelerate import Accelerator
from bench_report import write_tables
from plain import PlainReptile
from stack import Stack, words_of
from torch.utils.flop_counter import FlopCounterMode

sys.path.append(str(Path(__file__).resolve().parents[1] / "notebooks"))
from teaching import peak_memory

from metalib import fast
from metalib.checkpoint import write_atomically
from metalib.config import Config, read_config
from metalib.fast import Moving
from metalib.inner import minibatches, untouched
from metalib.runs import load_splits
from metalib.tasks import Task, TaskSampler
from metalib.training import (
    OuterStep,
    Workbench,
    annealed,
    prepare,
    sum_directions,
    training_tasks,
    validate,
    validation_episodes,
)
from metalib.weights import Weights

HERE = Path(__file__).parent
TOLERANCE = 1e-4  # of ‖direction of metalib − direction of the plain way‖ / ‖direction‖
Measured = dict[str, Any]


def spread(values: list[float]) -> Measured:
    """Median, least and most of some repetitions."""
    return {"median": float(np.median(values)), "min": min(values), "max": max(values), "repetitions": len(values)}


def seconds(function: Callable[[], Any]) -> float:
    """How long one call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


@lru_cache
def bench_of(data: str, model: str, max_length: int, **more: Any) -> Workbench:
    """A workbench for Reptile: reviews, model and weights."""
    config = Config(data=data, model=model, max_length=max_length, shots=5, **more)
    return prepare(config, load_splits(config), Accelerator(cpu=True))


class Pair:
    """metalib and the plain way on the same tasks, inner steps and model (in evaluation mode: no dropout)."""

    def __init__(
        self, bench: Workbench, shots: int, queries: int, batch: int, steps: int, padding: str
    ) -> None:  # fmt: skip
        self.bench = bench
        self.config = replace(bench.config, train_shots=shots, inner_batch=batch, inner_steps=steps,
                              inner_optimizer="sgd", inner_lr=0.01, train_queries=queries)  # fmt: skip
        train = bench.splits.train
        columns = (train[name][:] for name in ("text", "label", "domain"))
        self.records = [{"text": t, "label": y, "domain": d} for t, y, d in zip(*columns, strict=True)]
        self.sampler = TaskSampler(train, shots, queries, seed=1)
        self.learner = bench.learner(self.config)
        config = bench.config
        model = type(bench.model)(copy.deepcopy(bench.model.config)).to(bench.accelerator.device).eval()
        model.load_state_dict(bench.model.state_dict())
        model.set_attn_implementation("sdpa")
        self.plain = PlainReptile(model, bench.tokenizer, self.records, shots, queries, steps, batch, 0.01,
                                  config.max_length, padding, optimizer=torch.optim.SGD)  # fmt: skip
        gc.collect()
        gc.freeze()  # else Python would search all of this for garbage, 0.4 s, at the cost of whichever way it hits

    def plain_direction(self, task: Task) -> torch.Tensor:
        """φ − θ (P,) of the plain way, for the same minibatches as metalib draws."""
        self.plain.draw(task.domain, task.index)  # what it would have to do to find its task
        places = {row: place for place, row in enumerate(task.support.tolist())}
        batches = minibatches(task.support, self.config.inner_batch, self.config.inner_steps, (1, task.index))
        order = [np.array([places[row] for row in rows.tolist()]) for rows in batches]
        support, query = ([self.records[row] for row in rows.tolist()] for rows in (task.support, task.query))
        fast_model = self.plain.adapted(support, query, order)
        slow = dict(self.plain.model.named_parameters())
        deltas = {name: fast.data - slow[name].data for name, fast in fast_model.named_parameters()}
        return torch.cat([deltas[name].flatten() for name in self.bench.weights.slices])

    def direction(self, task: Task) -> torch.Tensor:
        """φ − θ (P,) of metalib."""
        return self.learner.direction(self.bench.reviews["train"], task, (1, task.index))[0]

    def both(self, task: Task) -> tuple[dict[str, float], float]:
        """Seconds of both, and how far their directions differ; raises where that is much."""
        times, found = {}, {}
        for name, way in (("metalib", self.direction), ("plain", self.plain_direction)):
            times[name] = seconds(lambda: found.update({name: way(task)}))  # noqa: B023
        difference = float((found["metalib"] - found["plain"]).norm() / found["plain"].norm())
        self.bench.weights.give_back(found["metalib"])
        if difference > TOLERANCE:
            raise AssertionError(f"the two ways differ by {difference:.1e} of the direction, more than {TOLERANCE}")
        return times, difference

    def compare(self, repetitions: int) -> Measured:
        """Seconds a task of both, in turn, after one that is not counted; raises where the two directions differ."""
        with patch.object(self.plain, "padding", "longest"):  # it gives the same, and takes less time
            self.both(self.sampler[99])
        found = [self.both(self.sampler[index]) for index in range(repetitions)]
        times = {name: [took[name] for took, _ in found] for name in ("plain", "metalib")}
        worst = max(difference for _, difference in found)
        return {"plain_seconds": spread(times["plain"]), "metalib_seconds": spread(times["metalib"]),
                "ratio": ratio(times["plain"], times["metalib"]), "difference": worst}  # fmt: skip


def ratio(theirs: list[float], ours: list[float]) -> Measured:
    """Seconds to seconds: of each pair, and as `all` of all together."""
    return {**spread([a / b for a, b in zip(theirs, ours, strict=True)]), "all": sum(theirs) / sum(ours)}


def same_theta(bench: Workbench, repetitions: int, padding: str, shots: int = 10, queries: int = 10,
               batch: int = 10, steps: int = 5) -> Measured:  # fmt: skip
    """Tasks per second against the plain way, with the same θ coming out."""
    return Pair(bench, shots, queries, batch, steps, padding).compare(repetitions)


def what_pays(make: Callable[[], Workbench], tasks: int) -> Measured:
    """Seconds a task (10 + 10 support, 5 steps of 10) without each part of the fast path, to those with all of it.

    The inner optimiser is Adam, as in a run where nothing is set: it has the most to do for weights that do not move.
    """
    with patch("metalib.models.pack", lambda model: False):
        padded = Pair(make(), 10, 10, 10, 5, "longest")
    pair = Pair(make(), 10, 10, 10, 5, "longest")
    for each in (pair, padded):
        each.learner = each.bench.learner(replace(each.config, inner_optimizer="adam", inner_lr=1e-4))
    ways: dict[str, tuple[Pair, Any]] = {
        "as it is": (pair, nullcontext()),
        "padding computed in the layers": (padded, nullcontext()),
        "all word embeddings in the inner loop": (pair, patch.object(fast, "WORTH_IT", float("inf"))),
        "fresh memory for each task": (pair, patch.object(Weights, "vector", fresh)),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for index in range(-1, tasks):  # the first is not counted
        for name, (way, how) in ways.items():
            with how:
                direction = way.direction
                took = seconds(lambda: way.bench.weights.give_back(direction(way.sampler[index % 100])))  # noqa: B023
            times[name] += [took] * (index >= 0)
    whole = times.pop("as it is")
    return {"seconds": spread(whole),
            "without": {name: ratio(took, whole) for name, took in times.items()}}  # fmt: skip


def fresh(weights: Weights) -> torch.Tensor:
    """A vector (P,) of which nothing was used before."""
    return torch.empty_like(weights.flat)


def in_step(bench: Workbench, repetitions: int, count: int = 16) -> Measured:
    """Tasks one by one, as metalib takes them, to the same tasks in step (`stack.py`), in float32."""
    pair = Pair(bench, 10, 10, 10, 5, "longest")
    tasks = [pair.sampler[index] for index in range(count)]
    words = max(len(words_of(bench.reviews["train"], task)) for task in tasks)
    stack = Stack(bench, count, pair.config.training_loop(), words, torch.float32)

    def one_by_one() -> None:
        for task in tasks:
            bench.weights.give_back(pair.direction(task))

    alone = [seconds(one_by_one) for _ in range(repetitions + 1)][1:]
    together = [seconds(lambda: stack.directions(tasks)) for _ in range(repetitions + 1)][1:]
    return {"at_a_time": count, "ratio": ratio(alone, together)}


WORKER: list[Pair] = []  # of a worker's process


def start_worker() -> None:
    """In a process of its own: the tiny model and its tasks, on one thread."""
    torch.set_num_threads(1)
    WORKER.append(Pair(world_bench(), 10, 10, 10, 5, "longest"))
    WORKER[0].direction(WORKER[0].sampler[99])


def work(index: int) -> float:
    """Length of one task's direction, in a worker."""
    direction = WORKER[0].direction(WORKER[0].sampler[index])
    WORKER[0].bench.weights.give_back(direction)
    return float(direction.norm())


def in_processes(bench: Workbench, repetitions: int, tasks: int = 24) -> Measured:
    """The tiny model on all cores: metalib with a task on each, one process a core, and the plain way as it is.

    The plain way is one process; it gets one thread or all of them, whichever is faster.
    """
    cores = os.cpu_count() or 1
    pair, times = Pair(bench, 10, 10, 10, 5, "longest"), {"plain": [], "metalib": []}
    found = pair.compare(3)
    lengths = [float(pair.direction(pair.sampler[index]).norm()) for index in range(tasks)]
    with ProcessPoolExecutor(cores, get_context("spawn"), start_worker) as workers:
        list(workers.map(work, range(tasks)))  # until all have started
        for _ in range(repetitions):
            start = time.perf_counter()
            same = list(workers.map(work, range(tasks)))
            times["metalib"].append((time.perf_counter() - start) / tasks)
            np.testing.assert_allclose(same, lengths, rtol=1e-5)
            lots = []
            for threads in {1, cores}:
                torch.set_num_threads(threads)
                lots.append(seconds(lambda: [pair.plain_direction(pair.sampler[i]) for i in range(tasks)]) / tasks)
            times["plain"].append(min(lots))
    return {"plain_seconds": spread(times["plain"]), "metalib_seconds": spread(times["metalib"]), "threads": cores,
            "ratio": ratio(times["plain"], times["metalib"]), "difference": found["difference"]}  # fmt: skip


def flops_of(bench: Workbench, rows: np.ndarray) -> int:
    """Of one forward and backward pass over the tokens of some reviews, the padding not counted, from the shapes.

    A token passes through the matrices of its layers, 2 operations a weight, and meets the n tokens of its text twice
    (queries with keys, weights with values), 2 · 2 · n · hidden; backward costs twice as much as forward.
    """
    config = bench.model.config
    hidden, inside, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    lengths = bench.reviews["train"].lengths[rows].astype(np.int64)
    per_token = 2 * (4 * hidden**2 + 2 * hidden * inside)
    return int(3 * layers * (per_token * lengths.sum() + 4 * hidden * (lengths**2).sum()))


def check_flops(bench: Workbench) -> None:
    """Raise where the formula is not what torch counts for one review, which has no padding (head and pooler apart)."""
    rows = np.array([0])
    attention = bench.model.config._attn_implementation
    bench.model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter:
        bench.model(**bench.reviews["train"].batch(rows)).loss.backward()
    bench.model.set_attn_implementation(attention)
    bench.weights.grad.zero_()
    ratio = counter.get_total_flops() / flops_of(bench, rows)
    if not 0.98 < ratio < 1.02:
        raise AssertionError(f"torch counts {ratio:.3f} times the operations of the formula")


def product_rate(bench: Workbench, tokens: int) -> float:
    """FLOP/s of the matrix products of a layer, forward and backward, for so many tokens; the best of some rounds."""
    hidden, inside = bench.model.config.hidden_size, bench.model.config.intermediate_size
    shapes = [(hidden, hidden)] * 4 + [(hidden, inside), (inside, hidden)]
    given = [(torch.randn(tokens, i), torch.randn(i, o), torch.randn(tokens, o)) for i, o in shapes]
    out = [(torch.empty(tokens, o), torch.empty(tokens, i), torch.empty(i, o)) for i, o in shapes]

    def products() -> None:
        for (x, w, g), (y, dx, dw) in zip(given, out, strict=True):
            torch.mm(x, w, out=y)
            torch.mm(g, w.T, out=dx)
            torch.mm(x.T, g, out=dw)

    work = sum(3 * 2 * tokens * i * o for i, o in shapes)
    products()
    return work / min(seconds(products) for _ in range(15))


@contextmanager
def timed_passes() -> Iterator[list[float]]:
    """Inside, the seconds spent in forward and backward passes are collected."""
    spent: list[float] = []
    backward, forward = torch.Tensor.backward, transformers.BertForSequenceClassification.forward

    def wrap(function: Callable) -> Callable:
        def timed(*given: Any, **named: Any) -> Any:
            start = time.perf_counter()
            found = function(*given, **named)
            spent.append(time.perf_counter() - start)
            return found

        return timed

    with (patch.object(torch.Tensor, "backward", wrap(backward)),
          patch.object(transformers.BertForSequenceClassification, "forward", wrap(forward))):  # fmt: skip
        yield spent


def shares(bench: Workbench, repetitions: int) -> Measured:
    """Of an inner loop (10 + 10 support, 5 steps of 10): what is not forward or backward; and the FLOP/s reached."""
    check_flops(bench)
    pair = Pair(bench, 10, 10, 10, 5, "longest")
    pair.direction(pair.sampler[99])
    rest, achieved, rates = [], [], []
    for index in range(repetitions):
        task = pair.sampler[index]
        batches = list(minibatches(task.support, 10, 5, (1, index)))
        with timed_passes() as spent:
            whole = seconds(lambda: bench.weights.give_back(pair.direction(task)))  # noqa: B023
        rest.append(1 - sum(spent) / whole)
        achieved.append(sum(flops_of(bench, rows) for rows in batches) / whole)
        tokens = int(np.mean([bench.reviews["train"].lengths[rows].sum() for rows in batches]))
        rates.append(product_rate(bench, tokens))
    return {"rest": spread(rest), "gflops": spread([a / 1e9 for a in achieved]),
            "product_gflops": spread([r / 1e9 for r in rates]),
            "share_of_product_rate": spread([a / r for a, r in zip(achieved, rates, strict=True)])}  # fmt: skip


def sampling(bench: Workbench) -> Measured:
    """Tasks drawn and batched a second (10 + 10 support, 5 minibatches of 10), and what drawing many of them holds."""
    sampler, reviews = TaskSampler(bench.splits.train, 10, 10), bench.reviews["train"]

    def draw(count: int) -> None:
        for index in range(count):
            for rows in minibatches(sampler[index].support, 10, 5, (0, index)):
                reviews.batch(rows)

    draw(50)
    rates = [500 / seconds(lambda: draw(500)) for _ in range(5)]
    held = {}
    for count in (100, 1000):
        tracemalloc.start()
        draw(count)
        held[str(count)] = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
    return {"tasks_per_second": spread(rates), "bytes_held_after": held}


def lines(bench: Workbench, repetitions: int) -> Measured:
    """Seconds of an inner loop against number of tasks, shots, inner steps and text length; R² of a straight line."""
    base = {"tasks": 1, "shots": 10, "steps": 5, "tokens": 64}
    axes = {"tasks": [1, 2, 4, 8], "shots": [6, 10, 20, 40], "steps": [1, 2, 5, 10, 20], "tokens": [16, 32, 64, 128]}
    found: Measured = {}
    for axis, values in axes.items():
        points = []
        for value in values:
            point = {**base, axis: value}
            with stretched(bench.reviews["train"], point["tokens"]):
                run = inner_loops(bench, point["tasks"], point["shots"], point["steps"])
                times = [seconds(run) for _ in range(repetitions + 1)][1:]
            points.append({"x": value, "seconds": spread(times)})
        y = [point["seconds"]["median"] for point in points]
        found[axis] = {"points": points, "r2": float(np.corrcoef(values, y)[0, 1] ** 2)}
    return found


def inner_loops(bench: Workbench, tasks: int, shots: int, steps: int) -> Callable[[], None]:
    """The directions of some tasks; steps for 10 shots a class, more in proportion where there are more shots."""
    config = replace(bench.config, train_shots=shots, inner_batch=10, inner_steps=steps * shots // 10 or 1,
                     inner_optimizer="sgd", inner_lr=1e-3)  # fmt: skip
    learner, sampler = bench.learner(config), training_tasks(config, bench.splits.train)

    def run() -> None:
        for index in range(tasks):
            bench.weights.give_back(learner.direction(bench.reviews["train"], sampler[index], (0, index))[0])

    return run


@contextmanager
def stretched(reviews: Any, tokens: int) -> Iterator[None]:
    """Inside, every review has the same number of tokens: its own, cut or said again."""
    before = reviews.tokens, reviews.lengths
    reviews.tokens = [np.resize(numbers, tokens) for numbers in before[0]]
    reviews.lengths = np.full(len(before[1]), tokens)
    yield
    reviews.tokens, reviews.lengths = before


def memory(bench: Workbench, tasks: int) -> Measured:
    """Peak memory of one meta-step over some tasks (10 reviews of at most 64 tokens a minibatch).

    Counted beside the model and one minibatch's activations, in vectors of the size of θ. One was made before: the
    gradient.
    """
    config = replace(bench.config, train_shots=10, inner_steps=2, inner_batch=10, meta_batch=tasks)
    sampler, reviews = training_tasks(config, bench.splits.train), bench.reviews["train"]
    learner, outer = bench.learner(config), OuterStep(bench.weights, "sgd")
    longest = max((sampler[i].support for i in range(tasks)), key=lambda rows: reviews.lengths[rows].sum())
    rows = longest[np.argsort(reviews.lengths[longest])[-10:]]
    with untouched(bench.model, bench.weights), Moving(bench.model, bench.weights, list(bench.weights.slices),
                                                       lambda: reviews.words(rows)):  # fmt: skip
        minibatch = peak_memory(lambda: learner.loss_on(reviews, rows))

    def meta_step() -> None:
        direction, _ = sum_directions(learner, reviews, sampler, tasks, 0, bench.accelerator)
        outer(direction, 1.0)

    bench.weights._spare.clear()
    peak, size = peak_memory(meta_step), 4 * len(bench.weights)
    bench.weights.restore(bench.theta_0)
    return {"tasks": tasks, "theta_mib": size / 2**20, "minibatch_mib": minibatch / 2**20, "peak_mib": peak / 2**20,
            "in_parameters": (peak - minibatch) / size + 1}  # fmt: skip


def imports() -> Measured:
    """Seconds to import torch, metalib after it, and its `adapt`, each in a fresh process."""
    code = "import torch, time; s = time.perf_counter(); {}; print(time.perf_counter() - s)"

    def run(what: str) -> float:
        return float(subprocess.run([sys.executable, "-c", code.format(what)], capture_output=True, text=True,
                                    check=True).stdout)  # fmt: skip

    return {what: spread([run(what) for _ in range(5)]) for what in ("import metalib", "from metalib import adapt")}


def train_until(bench: Workbench, config: Config, every: int, goal: float | None, limit: int) -> list[Measured]:
    """Meta-train, validating now and then; the seconds do not count the validation. Stops at `goal` or at `limit`."""
    learner = bench.learner(config)
    bench.weights.restore(bench.theta_0)
    sampler = training_tasks(config, bench.splits.train)
    outer = OuterStep(bench.weights, learner.outer)
    episodes, curve, spent = validation_episodes(bench), [], 0.0

    def look(meta_steps: int) -> None:
        score = validate(bench, learner, episodes, meta_steps)["after"]["mean"]
        curve.append({"seconds": spent, "meta_steps": meta_steps, "score": score})

    look(0)
    for step in range(limit):
        start = time.perf_counter()
        direction, _ = sum_directions(learner, bench.reviews["train"], sampler, config.meta_batch, step,
                                      bench.accelerator)  # fmt: skip
        outer(direction, annealed(config, outer.kind, step))
        spent += time.perf_counter() - start
        if (step + 1) % every == 0 or step + 1 == limit:
            look(step + 1)
            print(config.learner, curve[-1], flush=True)
            if goal is not None and curve[-1]["score"] >= goal:
                break
    return curve


def to_plain_score(data: str, model: str, tasks: int) -> Measured:
    """Seconds until metalib, free in its method, is as good on held-out domains as the plain way after some tasks.

    The plain way's θ does not depend on its padding: every tenth task is padded to 512 tokens and timed, the others are
    padded to their longest, to save time here, and count as much.
    """
    full = bench_of(data, model, 512, validation_episodes=15, adapt_steps=5, adapt_lr=3e-4)
    pair = Pair(full, 10, 10, 10, 5, "max_length")
    pair.plain.optimizer, pair.plain.inner_lr = torch.optim.AdamW, 3e-4
    generator = np.random.default_rng(0)
    times = []
    for step in range(tasks):
        domain, timed = str(generator.choice(pair.sampler.domains)), step % 10 == 0
        pair.plain.padding = "max_length" if timed else "longest"
        took = seconds(lambda: pair.plain.meta_step([(domain, step)], epsilon=1.0))  # noqa: B023
        times += [took] * timed
        print("plain", step + 1, f"{took:.0f} s", flush=True)
    spent = tasks * float(np.median(times))
    for name, parameter in pair.plain.model.named_parameters():
        full.weights.flat[full.weights.slices[name]] = parameter.detach().flatten()
    goal = validate(full, full.learner(full.config), validation_episodes(full), tasks)["after"]["mean"]
    with TemporaryDirectory() as cache, patch.object(datasets.config, "HF_DATASETS_CACHE", cache):
        start = time.perf_counter()  # all reviews are tokenised, which the plain way does task by task
        short = bench_of(data, model, 64, validation_episodes=15, adapt_steps=5, adapt_lr=3e-4, frozen_layers=3)
        setup = time.perf_counter() - start
    config = replace(short.config, train_shots=20, inner_steps=5, inner_batch=10, inner_lr=3e-4, meta_batch=1,
                     epsilon=1.0, epsilon_final=1.0)  # fmt: skip
    curve = train_until(short, config, 4, goal, 400)
    reached = setup + curve[-1]["seconds"] if curve[-1]["score"] >= goal else None
    return {"plain": {"tasks": tasks, "seconds": spent, "score": goal}, "metalib": curve, "seconds": reached,
            "setup": setup, "ratio": spent / reached if reached else None}  # fmt: skip


def to_ninety(bench: Workbench) -> Measured:
    """Seconds until Reptile, and joint training, reach 90% of the balanced accuracy that each has at its end (tiny)."""
    found: Measured = {}
    for name in ("reptile", "joint"):
        config = bench.config.for_learner(name)
        curve = train_until(bench, config, max(config.meta_steps // 20, 1), None, config.meta_steps)
        final = curve[-1]["score"]
        at = next(point for point in curve if point["score"] >= 0.9 * final)
        found[name] = {"final": final, "seconds": at["seconds"], "all_seconds": curve[-1]["seconds"], "curve": curve}
    return found


def world_bench() -> Workbench:
    """The tiny model on the generated world, with the settings of configs/world.yaml."""
    config = replace(read_config(HERE.parent / "configs" / "world.yaml"), validation_episodes=30)
    return prepare(config, load_splits(config), Accelerator(cpu=True))


def machine() -> Measured:
    """What this is measured on."""
    model = next((line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                  if line.startswith("model name")), platform.processor())  # fmt: skip
    return {"cpu": model, "cores": os.cpu_count(), "threads": torch.get_num_threads(),
            "python": platform.python_version(), "torch": torch.__version__,
            "transformers": transformers.__version__}  # fmt: skip


def measurements(data: str, model: str) -> dict[str, Callable[[], Measured]]:
    """Name → what measures it."""
    tiny = lru_cache(world_bench)
    found: dict[str, Callable[[], Measured]] = {
        "machine": machine,
        "import": imports,
        "sampling": lambda: sampling(tiny()),
        "tiny_longest": lambda: same_theta(tiny(), 15, "longest"),
        "tiny_processes": lambda: in_processes(tiny(), 10),
        "tiny_padded": lambda: same_theta(tiny(), 15, "max_length"),
        "tiny_shares": lambda: shares(tiny(), 15),
        "tiny_in_step": lambda: in_step(tiny(), 5),
        "tiny_lines": lambda: lines(tiny(), 5),
        "tiny_to_ninety": lambda: to_ninety(tiny()),
    }
    if data and model:
        real = lambda length: bench_of(data, model, length)  # noqa: E731
        found |= {
            "minilm_longest": lambda: same_theta(real(512), 10, "longest"),
            "minilm_shares": lambda: shares(real(512), 7),
            "minilm_what_pays_512": lambda: what_pays(partial(bench_of.__wrapped__, data, model, 512), 5),
            "minilm_what_pays_64": lambda: what_pays(partial(bench_of.__wrapped__, data, model, 64), 10),
            "minilm_lines": lambda: lines(real(64), 2),
            "minilm_memory": lambda: {str(n): memory(real(64), n) for n in (1, 4, 8)},
            "minilm_512": lambda: same_theta(real(512), 10, "max_length"),
            "minilm_to_plain_score": lambda: to_plain_score(data, model, 40),
            "minilm_original": lambda: same_theta(real(512), 2, "max_length", 50, 15, 5, 100),
        }
    return found


def begin(out: Path, here: Measured, goes_on: bool) -> Measured:
    """What stands in `out` and stays: all of it, if it goes on, else what the GPU's benchmark measured there.

    Raises:
        SystemExit: it is to go on, and was measured on another machine.
    """
    before: Measured = json.loads(out.read_text()) if out.exists() else {}
    if not goes_on:
        return {name: before[name] for name in ("gpu",) if name in before}
    differs = {name for name, value in before.get("machine", here).items()
               if name in here and name != "threads" and value != here[name]}  # fmt: skip
    if differs:
        raise SystemExit(f"{out} was measured with another {', '.join(sorted(differs))} — name another file with --out")
    return before


def main(data: str = "", model: str = "", out: Path | None = None, only: tuple[str, ...] = (),
         resume: bool = False) -> None:  # fmt: skip
    """Measure, and write the tables and the figure.

    Args:
        data: reviews in the original's schema, for the rows of the real encoder.
        model: the encoder's folder.
        out: where the figures are written, tables beside them; else benchmarks/results.json, or where data and model
            are not given, runs/bench/results.json.
        only: names of measurements to be made anew; the others stay as they are.
        resume: measure only what does not stand in `out`.
    """
    datasets.disable_progress_bars()
    out = out or (HERE / "results.json" if data and model else HERE.parent / "runs" / "bench" / "results.json")
    out.parent.mkdir(parents=True, exist_ok=True)
    results, code = begin(out, machine(), resume or bool(only)), commit()
    for name, measure in measurements(data, model).items():
        if name in only or (name not in results and not only):
            print(f"{name} …", flush=True)
            threads = 1 if name.startswith("tiny") else os.cpu_count() or 1
            torch.set_num_threads(threads)
            results[name] = {"threads": threads, "commit": code, **measure()}
            write_atomically(out, json.dumps(results, indent=1).encode())
    write_tables(results, out.parent)
    print(f"written: {out.parent / 'RESULTS.md'}", flush=True)


def commit() -> str:
    """That this code was checked out from; "" where that is not known."""
    try:
        found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=HERE, capture_output=True, text=True)
    except OSError:  # no git
        return ""
    return found.stdout.strip()


if __name__ == "__main__":
    tyro.cli(main)
