"""The outer loop on Accelerate: tasks spread over the processes, one reduction and one step of θ per meta-step."""

import json
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from datasets import Dataset
from safetensors.torch import load
from torch import nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from metalib.checkpoint import append_line, read_checkpoint, read_lines, save_checkpoint, write_atomically
from metalib.config import Config
from metalib.errors import BadInput, MetalibError, NotFinite, Stopped
from metalib.evaluation import Episodes, curve, predict_episodes
from metalib.folders import FREE, refuse_others
from metalib.learners import LEARNERS, Learner
from metalib.models import TokenizedReviews, load_model, seeded, tokenizer_rules
from metalib.parts import add_lora
from metalib.processes import anywhere, from_main, refuse_differences, same_start, stop_signals, together
from metalib.reviews import Splits
from metalib.tasks import TaskSampler, hash_given, hash_reviews, hash_tasks
from metalib.weights import PIECE, Kept, OuterStep, Weights, pieces

log = logging.getLogger("metalib")


@dataclass
class Workbench:
    """What a run works with, made once and shared by its learners.

    Attributes:
        reviews: `train`, `validation`, `test` → their tokenised reviews.
    """

    config: Config
    accelerator: Accelerator
    splits: Splits
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    weights: Weights
    reviews: dict[str, TokenizedReviews]

    def __post_init__(self) -> None:
        self._start = Kept(self.weights.flat)

    @cached_property
    def given(self) -> dict[str, str]:
        """Hashes of what a run needs and does not keep: reviews, their tokens, frozen weights that it did not draw."""
        tensors = self.model.state_dict(keep_vars=True).values() if self.config.model != "tiny" else ()
        frozen = [tensor for tensor in tensors if not tensor.requires_grad]
        return {"reviews": hash_reviews(self.splits.train, self.splits.validation),
                "model": hash_given(frozen, self.reviews["train"], self.reviews["validation"])}  # fmt: skip

    @property
    def theta_0(self) -> torch.Tensor:
        """(P,) the weights before any training, where every learner of the run starts; read from a file at each use."""
        return self._start.read()

    def learner(self, config: Config) -> Learner:
        """The learner that a config names, on this model."""
        return LEARNERS[config.learner](self.model, self.weights, config.training_loop(), config.adaptation_loop())


def prepare(config: Config, splits: Splits, accelerator: Accelerator) -> Workbench:
    """Load the model, tokenise the reviews (once, by the first process) and put everything in its place."""
    texts, names = splits.train["text"], splits.train.features["label"].names
    with accelerator.main_process_first():
        model, tokenizer = load_model(config.model, texts, names, config.seed, config.frozen_layers, config.max_length)
        device = accelerator.device
        parts = {"train": splits.train, "validation": splits.validation, "test": splits.test}
        reviews = {k: TokenizedReviews(part, tokenizer, config.max_length, device) for k, part in parts.items()}
    extend_model(model, config)
    model.to(device)
    if accelerator.mixed_precision != "no":  # Accelerate's autocast around forward(); without DistributedDataParallel
        model = accelerator.prepare_model(model, evaluation_mode=True)
    weights = Weights(model)
    same = [(key, value) for key, value in vars(config).items() if key not in (*FREE, "data", "model")]
    shapes = [(name, tuple(tensor.shape)) for name, tensor in model.state_dict().items()]
    facts = (same, shapes, tokenizer_rules(tokenizer), hash_reviews(*parts.values()))
    refuse_differences(accelerator, repr(facts).encode())
    same_start(accelerator, model)
    return Workbench(config, accelerator, splits, model, tokenizer, weights, reviews)


def extend_model(model: PreTrainedModel, config: Config) -> None:
    """Add to the model what the learners of the run learn beside it: low-rank updates, modules of their own."""
    names = dict.fromkeys((*config.baselines, config.learner))
    with seeded((config.seed, 1)):
        if any(config.for_learner(name).adapt == "lora" for name in names):
            add_lora(model, config.lora_rank)
        own = {name: module for name in names if (module := LEARNERS[name].own_module(model)) is not None}
    if own:
        model.own = nn.ModuleDict(own)


def training_tasks(config: Config, reviews: Dataset) -> TaskSampler:
    """The endless list of tasks on which a learner is meta-trained. Raises BadInput where domains are too small."""
    try:
        return TaskSampler(reviews, config.train_shots, config.query_rows, config.seed)
    except BadInput as error:
        told = re.sub(r"\b(shots|queries)=", r"train_\1=", f"training: {error}")
        raise BadInput(f"{told} (the others can be named as train_domains)") from error


def sum_directions(
    learner: Learner,
    reviews: TokenizedReviews,
    sampler: TaskSampler,
    meta_batch: int,
    step: int,
    accelerator: Accelerator,
) -> tuple[torch.Tensor, np.ndarray]:
    """The mean direction (P,) of the tasks of meta-step `step` (from 0), and each task's first and last loss.

    Process r of N takes tasks r, r + N, … of the meta-batch. Directions and losses (meta_batch, 2) are summed over the
    processes in float64, so that the number of processes does not show in the result.

    Raises:
        LostProcess: another process did not live to take part in the sum.
    """
    precise = torch.float32 if accelerator.device.type == "mps" else torch.float64
    size = len(learner.weights)
    total = torch.zeros(size + 2 * meta_batch, dtype=precise, device=accelerator.device)
    losses = total[size:].view(meta_batch, 2)
    for place in range(accelerator.process_index, meta_batch, accelerator.num_processes):
        task = sampler[step * meta_batch + place]
        direction, met = learner.direction(reviews, task, (sampler.seed, task.index))
        if direction.shape != (size,):
            raise MetalibError(f"{learner.name}: its direction has the shape {tuple(direction.shape)}, not ({size},)")
        for part, more in zip(pieces(total[:size]), pieces(direction), strict=True):
            part += more  # in pieces: a float64 copy of the whole would be twice θ
        learner.weights.give_back(direction)
        losses[place, 0] = met[0]
        losses[place, 1] = met[-1] + 0 * met.sum()  # 0, or not finite where any loss on the way was not
    if accelerator.num_processes > 1:
        with together(accelerator, f"at meta-step {step + 1}"):
            for part in total.split(PIECE):  # Accelerate makes a copy
                part.copy_(accelerator.reduce(part, "sum"))
    return total[:size].div_(meta_batch), total[size:].view(meta_batch, 2).cpu().numpy()


def check_finite(losses: np.ndarray, sampler: TaskSampler, step: int) -> None:
    """Raise NotFinite, naming meta-step and task, where a loss (meta_batch, 2) is not a number."""
    for place in np.flatnonzero(~np.isfinite(losses).all(axis=1)):
        task = sampler[step * len(losses) + int(place)]
        raise NotFinite(
            f"the loss is not finite at meta-step {step + 1}, task {task.index} (domain {task.domain!r}) — "
            "lower inner_lr or epsilon; the last checkpoint is kept"
        )


def meta_train(
    bench: Workbench, config: Config, folder: Path, on_metrics: Callable[[dict], None] | None = None
) -> None:
    """Meta-train one learner; the weights go from θ₀ (or the folder's checkpoint) to the trained θ.

    Writes `metrics.jsonl` (one line a meta-step, free of clock times) and `checkpoint/` into `folder`. `on_metrics`
    gets each line as a dict, on every process.

    At SIGTERM or SIGINT to any of the processes, all of them finish the meta-step, save it and stop.

    Raises:
        NotFinite: a loss is not finite; says at which meta-step and task.
        Stopped: a signal came; the meta-step is saved.
        LostProcess: another process of the group is gone.
    """
    accelerator, learner = bench.accelerator, bench.learner(config)
    sampler = training_tasks(config, bench.splits.train)
    texts = bench.splits.train["text"][:]
    bench.weights.restore(bench.theta_0)
    outer_step = OuterStep(bench.weights, config.outer_kind)
    done, lines = resume_from(folder, outer_step, accelerator, bench.given) if config.resume else (-1, [])
    episodes = validation_episodes(bench)
    points = {0, *(round(config.meta_steps * i / config.validations) for i in range(1, config.validations + 1))}
    is_main, started = accelerator.is_main_process, perf_counter()

    def record(line: dict[str, Any]) -> None:
        if episodes and line["meta_step"] in points:
            line["validation"] = validate(bench, learner, episodes, line["meta_step"])
        if is_main:
            append_line(folder / "metrics.jsonl", json.dumps(line))
        if on_metrics:
            on_metrics(line)

    if is_main:
        write_atomically(folder / "metrics.jsonl", "".join(line + "\n" for line in lines).encode())
    if done < 0:
        record({"meta_step": 0, "review_passes": 0, **bench.given})
        done = 0
    bar = tqdm(total=config.meta_steps, initial=done, desc=learner.name, disable=not is_main)
    with bar, stop_signals() as came:
        for step in range(done, config.meta_steps):
            direction, losses = sum_directions(
                learner, bench.reviews["train"], sampler, config.meta_batch, step, accelerator
            )
            check_finite(losses, sampler, step)
            epsilon = annealed(config, outer_step.kind, step)
            outer_step(direction, epsilon)
            if not torch.isfinite(bench.weights.flat).all():
                raise NotFinite(f"the weights are not finite after meta-step {step + 1} — lower inner_lr or epsilon")
            tasks = [sampler[step * config.meta_batch + place] for place in range(config.meta_batch)]
            line = {
                "meta_step": step + 1,
                "review_passes": (step + 1) * config.passes_per_step(len(sampler.class_names)),
                "epsilon": epsilon,
                "first_loss": float(losses[:, 0].mean()),
                "last_loss": float(losses[:, 1].mean()),
                "direction_norm": float(direction.norm()),
                "tasks": hash_tasks(tasks, texts),
            }
            record(line)
            stop = anywhere(accelerator, came)
            if is_main and (stop or (step + 1) % config.checkpoint_every == 0 or step + 1 == config.meta_steps):
                save_checkpoint(folder / "checkpoint", step + 1, outer_step.state())
            if stop:
                raise Stopped(f"stopped by a signal: {learner.name} is saved after meta-step {step + 1} — "
                              "go on with --resume")  # fmt: skip
            bar.update()
            bar.set_postfix(loss=f"{line['last_loss']:.3f}", refresh=False)
    if is_main and config.meta_steps == 0:
        save_checkpoint(folder / "checkpoint", 0, outer_step.state())
    if steps := config.meta_steps - done:
        seconds = perf_counter() - started
        log.info("%s: %d meta-steps in %.1f s, %.3f s each, validation included",
                 learner.name, steps, seconds, seconds / steps)  # fmt: skip
    accelerator.wait_for_everyone()


def annealed(config: Config, kind: str, step: int) -> float:
    """ε of meta-step `step` (from 0): a straight line from `epsilon` to `epsilon_final` at the last step."""
    first = (1.0 if kind == "sgd" else 1e-3) if config.epsilon is None else config.epsilon
    last = first / 10 if config.epsilon_final is None else config.epsilon_final
    return first + (last - first) * step / max(config.meta_steps - 1, 1)


def resume_from(
    folder: Path, outer_step: OuterStep, accelerator: Accelerator, given: dict[str, str]
) -> tuple[int, list[str]]:
    """Load the folder's newest checkpoint: meta-steps done, and (main process only) the lines of `metrics.jsonl`.

    The main process reads it and sends it to the others, so that machines need not share a disk. Where there is no
    checkpoint yet, −1 meta-steps are done: not even the first line, of the untrained model, is written.

    Raises:
        BadInput: no checkpoint is whole, `metrics.jsonl` does not belong to it, or its hashes are not `given`.
    """
    lines: list[str] = []
    facts: dict[str, Any] = {"done": -1, "wrong": ""}
    content = b""
    if accelerator.is_main_process:
        try:
            found = read_checkpoint(folder / "checkpoint")
            lines = read_lines(folder / "metrics.jsonl", None if found is None else found[0])
            refuse_others(folder, given)
            if found is not None:
                facts["done"], content = found
        except MetalibError as error:
            facts["wrong"] = str(error)
    facts = json.loads(from_main(accelerator, json.dumps(facts).encode()))
    if facts["wrong"]:
        raise BadInput(facts["wrong"])
    content = from_main(accelerator, content)
    if content:
        outer_step.load(load(content))
        log.info("%s goes on after meta-step %d", folder, facts["done"])
    else:
        log.info("%s holds no checkpoint yet: starting from the beginning", folder)
    return facts["done"], lines


def validation_episodes(bench: Workbench) -> Episodes | None:
    """The validation domains' episodes; None where there are no validation domains."""
    config = bench.config
    if not len(bench.splits.validation) or not config.validations:
        return None
    sampler = TaskSampler(bench.splits.validation, config.shots, config.queries, config.split_seed, in_turn=True)
    return Episodes.draw(sampler, config.validation_episodes)


def validate(bench: Workbench, learner: Learner, episodes: Episodes, meta_step: int) -> dict[str, Any]:
    """Balanced accuracy before and after adapting, on the validation episodes."""
    marks = [0, learner.adaptation_loop.steps]
    predictions = predict_episodes(
        learner, bench.reviews["validation"], episodes, marks, bench.config.split_seed, bench.accelerator
    )
    before, after = curve(predictions, episodes)
    log.info("%s, meta-step %d: validation balanced accuracy %.3f before, %.3f after adapting",
             learner.name, meta_step, before["mean"], after["mean"])  # fmt: skip
    return {"before": before, "after": after}
