"""What a meta-step costs when it is spread over GPUs: what is computed, what is sent, and how many GPUs stay busy."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AlbertConfig, AutoConfig, AutoModelForSequenceClassification, BertConfig, PretrainedConfig

from metalib.config import Config
from metalib.errors import BadInput
from metalib.models import positions
from metalib.parts import freeze_lower_layers
from metalib.report import table

SIZES: dict[str, PretrainedConfig] = {  # as published: Lan et al. 2020, table 1; Devlin et al. 2019, §3
    "albert-base": AlbertConfig(embedding_size=128, hidden_size=768, num_hidden_layers=12, num_attention_heads=12,
                                intermediate_size=3072),
    "albert-xxlarge": AlbertConfig(),
    "bert-base": BertConfig(),
    "bert-large": BertConfig(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096),
}  # fmt: skip
GBITS = (10, 25)


@dataclass(frozen=True)
class Cost:
    """Of one meta-step.

    Attributes:
        parameters: how many are trained, P.
        flops: floating-point operations of one task's inner loop, forward and backward.
        sent: bytes of the one vector that is summed over the processes: P directions and two losses a task, in float64.
    """

    parameters: int
    flops: int
    sent: int

    def sending_seconds(self, gpus: int, gbits: float) -> float:
        """A ring all-reduce: each GPU sends and receives 2 (N − 1) / N times the vector (Patarasuk & Yuan 2009, §3)."""
        return 2 * (gpus - 1) / gpus * self.sent * 8 / (gbits * 1e9)

    def busy(self, gpus: int, meta_batch: int, task_seconds: float, gbits: float) -> float:
        """Share of the time in which a GPU computes; it waits for who has the most tasks, and for the sum."""
        computing = ceil(meta_batch / gpus) * task_seconds
        return meta_batch / gpus * task_seconds / (computing + self.sending_seconds(gpus, gbits))

    def most_gpus(self, meta_batch: int, task_seconds: float, gbits: float, share: float = 0.9) -> int:
        """The largest number of GPUs that are busy for at least this share of the time."""
        return max(n for n in range(1, meta_batch + 1) if self.busy(n, meta_batch, task_seconds, gbits) >= share)


def cost_of(name: str, config: Config) -> Cost:
    """Count a model's parameters and operations, without loading or making its weights.

    Raises:
        BadInput: a name that is neither one of `SIZES` nor a checkpoint that can be opened, or settings that it cannot
            be run with.
    """
    try:
        size = SIZES[name] if name in SIZES else AutoConfig.from_pretrained(name)
        with torch.device("meta"):
            model = AutoModelForSequenceClassification.from_config(size, attn_implementation="eager")
        longest = positions(model)
        if config.max_length > longest:
            raise BadInput(f"max_length={config.max_length}: model {name!r} reads at most {longest} tokens — lower it")
        freeze_lower_layers(model, config.frozen_layers)
        rows = {"input_ids": torch.zeros(config.inner_batch, config.max_length, dtype=torch.long, device="meta")}
        labels = torch.zeros(config.inner_batch, dtype=torch.long, device="meta")
        with FlopCounterMode(display=False) as counter:
            model(**rows, labels=labels).loss.backward()
    except BadInput:
        raise
    except Exception as error:  # the hub, the disk and the file formats all raise their own
        reason = str(error).strip().partition("\n")[0]
        raise BadInput(
            f"model {name!r}: {reason} — take a checkpoint's folder, or one of {', '.join(SIZES)}"
        ) from error
    parameters = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    sent = 8 * (parameters + 2 * config.meta_batch)
    return Cost(parameters, config.inner_steps * counter.get_total_flops(), sent)


def costs_table(config: Config, models: Sequence[str], tflops: float, task_seconds: float | None = None) -> str:
    """A Markdown table: a row for each model, for the meta-batch, inner loop and text length of the settings.

    Args:
        tflops: what a GPU really does, in 10¹² operations a second; a task's time is computed from it,
        task_seconds: unless it was measured.
    """
    rows = []
    for name in models:
        cost = cost_of(name, config)
        seconds = cost.flops / (tflops * 1e12) if task_seconds is None else task_seconds
        ring = [f"{cost.sending_seconds(8, gbits):.2f}" for gbits in GBITS]
        most = [cost.most_gpus(config.meta_batch, seconds, gbits) for gbits in GBITS]
        rows.append([Path(name).name, f"{cost.parameters / 1e6:.1f}", f"{cost.sent / 1e6:.0f}", *ring,
                     f"{cost.flops / 1e12:.1f}", f"{seconds:.2f}", *most])  # fmt: skip
    head = ["model", "parameters trained, millions", "summed a meta-step, MB",
            *(f"seconds at {gbits} Gbit/s, 8 GPUs" for gbits in GBITS), "a task, TFLOP", "a task, seconds",
            *(f"GPUs 90% busy at {gbits} Gbit/s" for gbits in GBITS)]  # fmt: skip
    how = f"at {tflops:g} TFLOP/s" if task_seconds is None else "as measured"
    return (
        f"A meta-batch of {config.meta_batch} tasks, {config.inner_steps} inner steps of {config.inner_batch} reviews "
        f"of {config.max_length} tokens, {how}; each GPU in a machine of its own.\n\n" + table(head, rows)
    )
