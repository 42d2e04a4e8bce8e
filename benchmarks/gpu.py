"""The benchmark for a GPU: tasks a second for 1, 4 and 16 tasks at a time, in bfloat16, beside the plain way.

python benchmarks/gpu.py --data path/to/amazon22.json --model path/to/all-MiniLM-L6-v2

Models have random weights and the sizes of BERT-base and MiniLM-L6; of `--model` only the tokenizer is used. Without
the two, texts are those of the generated world. One task at a time is the library's own inner loop; beside it stands
`stack.py`, with n tasks' inner loops in step.
"""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from bench import Pair, flops_of, spread
from bench_report import write_tables
from stack import Stack, words_of
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

from metalib.checkpoint import write_atomically
from metalib.config import Config
from metalib.fast import pack
from metalib.inner import minibatches
from metalib.models import TokenizedReviews, train_tokenizer
from metalib.processes import make_accelerator
from metalib.runs import load_splits
from metalib.tasks import Task
from metalib.training import Workbench
from metalib.weights import Weights

SIZES = {
    "BERT-base": {},
    "MiniLM-L6": {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536},
    "tiny": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128},
}
GROUPS = 5  # so many lots of tasks are measured, and as many as make LEAST tasks
LEAST = 20


def bench_of(size: str, data: str, model: str, max_length: int, device: torch.device) -> Workbench:
    """A workbench on some reviews, with a model of that size and random weights."""
    config = Config(data=data, max_length=max_length, shots=5, inner_optimizer="sgd", inner_lr=0.01)
    splits = load_splits(config)
    tokenizer = AutoTokenizer.from_pretrained(model) if model else train_tokenizer(splits.train["text"], max_length)
    torch.manual_seed(0)
    shape = BertConfig(num_labels=2, vocab_size=len(tokenizer), **SIZES[size])
    net = BertForSequenceClassification(shape).to(device).eval()
    pack(net)
    reviews = TokenizedReviews(splits.train, tokenizer, max_length, device)
    return Workbench(config, make_accelerator(), splits, net, tokenizer, Weights(net), {"train": reviews})


def times(function: Callable[[], object], repetitions: int = 1, warm: int = 1) -> list[float]:
    """Seconds of some calls, after some that are not counted."""
    found = []
    for _ in range(repetitions + warm):
        wait()
        start = time.perf_counter()
        function()
        wait()
        found.append(time.perf_counter() - start)
    return found[warm:]


def wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def product_rate(bench: Workbench, count: int, tokens: int) -> float:
    """FLOP/s of the bfloat16 products of a layer, forward and backward, for n tasks of so many tokens; the best.

    Query, key and value are one product, which is faster than three.
    """
    hidden, inside = bench.model.config.hidden_size, bench.model.config.intermediate_size
    device = bench.weights.flat.device
    shapes = [(hidden, 3 * hidden), (hidden, hidden), (hidden, inside), (inside, hidden)]

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(count, *shape, device=device, dtype=torch.bfloat16)

    given = [(random(tokens, i), random(i, o), random(tokens, o)) for i, o in shapes]

    def products() -> None:
        for x, w, g in given:
            x @ w
            g @ w.transpose(1, 2)
            x.transpose(1, 2) @ g

    work = sum(3 * 2 * count * tokens * i * o for i, o in shapes)
    play, rounds = products, 10
    if device.type == "cuda":
        products()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(rounds):
                products()
        play, work = graph.replay, work * rounds
    return work / min(times(play, 15, 3))


def measure(size: str, data: str, model: str, max_length: int, at_a_time: tuple[int, ...], batch: int,
            device: torch.device) -> Iterator[dict[str, Any]]:  # fmt: skip
    """Rows of the table, one by one; raises where the library, a stack or the plain way give another direction."""
    bench = bench_of(size, data, model, max_length, device)
    pair = Pair(bench, 10, 10, batch, 5, "max_length")
    loop, reviews = pair.config.training_loop(), bench.reviews["train"]

    def numbers(task: Task) -> tuple[int, int, int]:
        lots = list(minibatches(task.support, batch, 5, (1, task.index)))
        return (sum(flops_of(bench, rows) for rows in lots), sum(int(reviews.lengths[rows].sum()) for rows in lots),
                len(words_of(reviews, task)))  # fmt: skip

    lots = {count: max(GROUPS, LEAST // count) for count in (1, *at_a_time)}
    tasks = [pair.sampler[index] for index in range(max(count * lots[count] for count in lots))]
    work, tokens, words = np.array([numbers(task) for task in tasks]).T
    most = 256 * -(-int(words.max()) // 256)
    facts = {"model": size, "batch": batch, "max_length": max_length}
    one = [pair.direction(task).clone() for task in tasks[:2]]
    exact = Stack(bench, 2, loop, most, torch.float32)
    found = exact.directions(tasks[:2])
    difference = max(exact.same(found, place, one[place], tasks[place]) for place in (0, 1))
    del exact, found
    from_plain = float((one[0] - pair.plain_direction(tasks[0])).norm() / one[0].norm())
    if max(difference, from_plain) > 1e-3:
        raise AssertionError(f"{size}: the library's direction is not that of the stack ({difference:.1e} from it) or "
                             f"of the plain way ({from_plain:.1e})")  # fmt: skip
    with torch.autocast(device.type, torch.bfloat16, cache_enabled=False):  # kept casts would miss the steps
        plain = [times(lambda: pair.plain_direction(task), warm=not place)[0]  # noqa: B023
                 for place, task in enumerate(tasks[: lots[1]])]  # fmt: skip
        library = [np.median(times(lambda: bench.weights.give_back(pair.direction(task)), 3, 3))  # noqa: B023
                   for task in tasks[: lots[1]]]  # fmt: skip

    def row(way: str, count: int, seconds: list[float], **more: Any) -> dict[str, Any]:
        done = work[: count * lots[count]].reshape(-1, count).sum(axis=1)
        mean = float(tokens[: count * lots[count]].mean() / 5)  # of a task's step
        peak = product_rate(bench, count, int(mean))
        return {**facts, "way": way, "at_a_time": count, "difference": difference, **more, "tokens": mean,
                "tasks_per_second": spread([count / each for each in seconds]), "matrix_tflops": peak / 1e12,
                "share": spread([float(w / each / peak) for w, each in zip(done, seconds, strict=True)]),
                "all": {"share": float(done.sum() / sum(seconds) / peak),
                        "tasks_per_second": count * lots[count] / sum(seconds)},
                "plain_seconds": {**spread(plain), "mean": float(np.mean(plain))}}  # fmt: skip

    def in_step(count: int) -> tuple[list[float], float]:
        stack = Stack(bench, count, loop, most)
        groups = [tasks[i * count : (i + 1) * count] for i in range(lots[count])]
        seconds = [float(np.median(times(lambda: stack.directions(group), 3))) for group in groups]  # noqa: B023
        found = stack.directions(groups[0])  # all of it played back
        low = max(stack.same(found, place, one[place], tasks[place]) for place in range(min(count, 2)))
        if low > 0.2:
            raise AssertionError(f"{size}: {count} in step, rounded, give a direction that differs by {low:.2f}")
        return seconds, low

    yield row("library", 1, library)
    for count in at_a_time:
        seconds, low = in_step(count)
        yield row("stack", count, seconds, low_difference=low)


def main(data: str = "world", model: str = "", out: Path | None = None,
         sizes: tuple[str, ...] = ("BERT-base", "MiniLM-L6"), at_a_time: tuple[int, ...] = (1, 4, 16),
         max_length: int = 512, batches: tuple[int, ...] = (10, 20)) -> None:  # fmt: skip
    """Measure on the GPU (or, to try the command, on the CPU: `--sizes tiny`) and write the table.

    With the first of the batches all numbers of tasks at a time are measured, with the others the last of them. Where
    `out` is not given, a GPU's figures go to benchmarks/results.json, a CPU's to runs/bench/results.json.
    """
    torch.backends.cuda.matmul.allow_tf32 = False
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    here = Path(__file__).resolve().parent
    out = out or (here if device.type == "cuda" else here.parent / "runs" / "bench") / "results.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for place, batch in enumerate(batches):
        for size in sizes:
            counts = at_a_time[-1:] if place else at_a_time
            for row in measure(size, data, model, max_length, counts, batch, device):
                print(json.dumps(row), flush=True)
                rows.append(row)
                results = json.loads(out.read_text()) if out.exists() else {}
                results["gpu"] = {"name": name, "torch": torch.__version__, "rows": rows}
                write_atomically(out, json.dumps(results, indent=1).encode())
                write_tables(results, out.parent)


if __name__ == "__main__":
    tyro.cli(main)
