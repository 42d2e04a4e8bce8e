"""The benchmark for a GPU: tasks a second for 1, 4 and 16 tasks at a time, in bfloat16, beside the plain way.

python benchmarks/gpu.py

Models have random weights and the sizes of BERT-base and MiniLM-L6; texts are those of the generated world. One task at
a time is the library's own inner loop. Several at a time are one forward and backward pass for all of them: weights
(n, P), `torch.func.vmap` over the gradient; dropout must be off, since it could not be drawn task by task. On two CPU
cores that is 1.2 times as fast for the tiny model, and slower for larger ones: so the library does not do it.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import tyro
from bench import Pair, flops_of, spread
from bench_report import write_tables
from torch.func import functional_call, grad, vmap
from transformers import BertConfig, BertForSequenceClassification

from metalib.checkpoint import write_atomically
from metalib.config import Config
from metalib.fast import pack
from metalib.inner import InnerLoop, minibatches
from metalib.models import TokenizedReviews
from metalib.processes import make_accelerator
from metalib.runs import load_splits
from metalib.tasks import TaskSampler
from metalib.training import Workbench, prepare
from metalib.weights import Weights

SIZES = {
    "BERT-base": {},
    "MiniLM-L6": {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536},
    "tiny": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128},
}
SHOTS, STEPS, BATCH = 10, 5, 10


def bench_of(size: str, device: torch.device) -> Workbench:
    """A workbench on the world's reviews, with a model of that size."""
    config = Config(train_shots=SHOTS, inner_steps=STEPS, inner_batch=BATCH, inner_optimizer="sgd", inner_lr=0.01)
    bench = prepare(config, load_splits(config), make_accelerator())
    torch.manual_seed(0)
    bench.model = BertForSequenceClassification(BertConfig(num_labels=2, **SIZES[size])).to(device).eval()
    pack(bench.model)
    bench.weights = Weights(bench.model)
    bench.reviews["train"] = TokenizedReviews(bench.splits.train, bench.tokenizer, 128, device)
    return bench


def together(bench: Workbench, sampler: TaskSampler, indices: list[int], loop: InnerLoop) -> torch.Tensor:
    """(n, P) directions of n tasks, all inner loops in step."""
    reviews, weights, model = bench.reviews["train"], bench.weights, bench.model
    orders = [list(minibatches(sampler[i].support, loop.batch_size, loop.steps, (sampler.seed, i))) for i in indices]
    points = weights.flat.repeat(len(indices), 1)

    def loss(point: torch.Tensor, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        return functional_call(model, weights.views(point), (), inputs).loss

    slope = vmap(grad(loss))
    for step in range(loop.steps):
        rows = np.stack([order[step] for order in orders])  # (n, batch)
        flat = reviews.batch(rows.ravel())
        inputs = {name: column.unflatten(0, rows.shape) for name, column in flat.items()}
        longest = inputs["input_ids"].shape[-1]
        keep = inputs["attention_mask"][:, :, None, None, :] > 0
        inputs["attention_mask"] = torch.where(keep, 0.0, -1e30)  # (n, batch, 1, 1, longest)
        inputs["position_ids"] = torch.arange(longest, device=points.device).expand(len(indices), 1, longest)
        inputs["token_type_ids"] = torch.zeros_like(inputs["input_ids"])
        points -= loop.lr_at(step) * slope(points, inputs)
    return points - weights.flat


def rate(function: Callable[[], object], device: torch.device, repetitions: int = 7) -> list[float]:
    """Seconds of some calls, after two that are not counted."""
    found = []
    for _ in range(repetitions + 2):
        wait(device)
        start = time.perf_counter()
        function()
        wait(device)
        found.append(time.perf_counter() - start)
    return found[2:]


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def matrix_rate(hidden: int, inside: int, tokens: int, device: torch.device) -> float:
    """FLOP/s of bfloat16 products (tokens, hidden) · (hidden, inside)."""
    a = torch.randn(tokens, hidden, device=device, dtype=torch.bfloat16)
    b = torch.randn(hidden, inside, device=device, dtype=torch.bfloat16)
    return 20 * 2 * tokens * hidden * inside / min(rate(lambda: [a @ b for _ in range(20)], device))


def measure(size: str, device: torch.device, at_a_time: tuple[int, ...]) -> list[dict]:
    """A row for each number of tasks at a time; raises where several at a time do not give what one gives."""
    bench = bench_of(size, device)
    loop, config = bench.config.training_loop(), bench.model.config
    reviews, rows = bench.reviews["train"], []
    pair = Pair(bench, SHOTS, SHOTS, BATCH, STEPS, "max_length")
    sampler = pair.sampler
    one = pair.direction(sampler[0])
    bench.model.set_attn_implementation("eager")
    several = together(bench, sampler, [0, 1], loop)[0]
    difference = float((one - several).norm() / one.norm())
    if difference > 1e-3:
        raise AssertionError(f"{size}: two tasks at a time differ by {difference:.1e} from one")
    with torch.autocast(device.type, torch.bfloat16):
        plain = rate(lambda: pair.plain_direction(sampler[0]), device)
        for count in at_a_time:
            indices = list(range(count))
            bench.model.set_attn_implementation("eager" if count > 1 else "metalib_packed")
            run = (lambda: together(bench, sampler, indices, loop)) if count > 1 else lambda: pair.direction(sampler[0])  # noqa: B023
            times = [each / count for each in rate(run, device)]
            batches = [minibatches(sampler[i].support, BATCH, STEPS, (1, i)) for i in indices]
            work = sum(flops_of(bench, each) for order in batches for each in order) / count
            tokens = count * int(np.mean([reviews.lengths[sampler[i].support].sum() / 2 for i in indices]))
            peak = matrix_rate(config.hidden_size, config.intermediate_size, tokens, device)
            rows.append({"model": size, "at_a_time": count, "tasks_per_second": spread([1 / each for each in times]),
                         "share": spread([work / each / peak for each in times]), "matrix_tflops": peak / 1e12,
                         "ratio": spread([float(np.median(plain)) / each for each in times])})  # fmt: skip
            print(rows[-1], flush=True)
    return rows


def main(out: Path = Path(__file__).parent / "results.json", sizes: tuple[str, ...] = ("BERT-base", "MiniLM-L6"),
         at_a_time: tuple[int, ...] = (1, 4, 16)) -> None:  # fmt: skip
    """Measure on the GPU (or, to try the command, on the CPU: `--sizes tiny`) and write the table."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows = [row for size in sizes for row in measure(size, device, at_a_time)]
    results = json.loads(out.read_text()) if out.exists() else {}
    results["gpu"] = {"name": torch.cuda.get_device_name() if device.type == "cuda" else "CPU", "rows": rows}
    write_atomically(out, json.dumps(results, indent=1).encode())
    write_tables(results, out.parent)


if __name__ == "__main__":
    tyro.cli(main)
