"""A run from its settings to its folder: check everything, train the learner and its baselines, test them, report."""

import json
import logging
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from safetensors import SafetensorError

from metalib import __version__, report
from metalib.checkpoint import load_checkpoint
from metalib.config import Config, read_config
from metalib.errors import BadInput, MetalibError
from metalib.evaluation import Episodes, compare, constant_predictions, curve, predict_episodes, summarise
from metalib.folders import alone_in, begin, check_given, learner_folder, log_to, read_json, write_json
from metalib.learners import Learner, MetricLearner
from metalib.processes import describe, make_accelerator, warn_of_launch
from metalib.reviews import Splits, load_reviews, split_domains
from metalib.tasks import TaskSampler, hash_tasks
from metalib.training import Workbench, meta_train, prepare, training_tasks
from metalib.world import World

log = logging.getLogger("metalib")
CURVE_SHOTS = (1, 2, 5, 10, 20)


def check_trackers(names: Iterable[str]) -> None:
    """Raise BadInput for a tracker that Accelerate does not know or that is not installed."""
    from accelerate.tracking import get_available_trackers

    available = [str(tracker) for tracker in get_available_trackers()]
    for name in names:
        if name not in available:
            raise BadInput(f"tracker {name!r} is not installed here or unknown — choose from {available}")


def world_of(config: Config) -> World | None:
    """The generated world that the config names, if it names one."""
    return World(config.conflict, config.cue, config.world_seed) if config.data == "world" else None


@lru_cache(maxsize=1)
def _read_and_split(source: str | World, changed: int, *split: Any) -> Splits:
    return split_domains(load_reviews(source), *split)


def load_splits(config: Config) -> Splits:
    """The reviews of a config, split by domain, and checked to be enough for every task that the run will draw."""
    file = Path(config.data).expanduser()
    changed = file.stat().st_mtime_ns if file.is_file() else 0  # a file that was written anew is read anew
    validation = config.validation_domains or config.validation_count
    split = (config.test_domains, validation, config.split_seed, config.train_domains or None)
    splits = _read_and_split(world_of(config) or config.data, changed, *split)
    for learner in (config.learner, *config.baselines):
        training_tasks(config.for_learner(learner), splits.train)
    for part in filter(len, (splits.validation, splits.test)):
        TaskSampler(part, config.shots, config.queries)
    return splits


def test_episodes(config: Config, splits: Splits) -> Episodes:
    """The episodes on which all methods are tested, test domains in turn. Raises BadInput where one has none."""
    sampler = TaskSampler(splits.test, config.shots, config.queries, config.split_seed, in_turn=True)
    return Episodes.draw(sampler, config.eval_episodes)


def train(config: Config) -> Path:
    """Meta-train, test and report; returns the run folder.

    Raises:
        BadInput: before anything is trained or written.
        NotFinite, Stopped, LostProcess: while training; what was saved up to then stays.
    """
    check_trackers(config.trackers)
    accelerator, config, folder = begin(config)
    with accelerator.main_process_first():
        splits = load_splits(config)
    test_episodes(config, splits)  # before the work
    bench = prepare(config, splits, accelerator)
    check_given(folder, config, bench.given)
    with alone_in(folder, config, accelerator), log_to(folder, accelerator):
        if config.trackers:
            accelerator = bench.accelerator = make_accelerator(config.trackers, folder)
            accelerator.init_trackers("metalib", flat_settings(config))
            accelerator.wait_for_everyone()
        log.info("%s: %s", folder, describe(accelerator, config.meta_batch))
        warn_of_launch(accelerator, config.meta_batch)
        log.info("train on %s; test on %s", ", ".join(splits.train_domains), ", ".join(splits.test_domains))
        thetas = train_learners(bench, folder)
        test(bench, thetas, folder)
        if accelerator.is_main_process:
            try:
                report.write_model(folder, trained_learner(bench, thetas), bench.tokenizer, config)
                report.write_report(folder)
            except (OSError, SafetensorError) as error:
                raise MetalibError(
                    f"{folder}: the report cannot be written: {error} — all numbers are saved; go on with --resume"
                ) from error
    accelerator.wait_for_everyone()
    accelerator.end_training()  # closes the trackers and leaves the group of processes
    return folder


def flat_settings(config: Config) -> dict[str, Any]:
    """The settings as trackers take them: numbers and strings."""
    return {k: v if isinstance(v, int | float | str) else json.dumps(v) for k, v in asdict(config).items()}


def train_learners(bench: Workbench, folder: Path) -> dict[str, torch.Tensor]:
    """Train the baselines and the learner; name → its trained θ (P,), in the order of the tables."""
    thetas: dict[str, torch.Tensor] = {}
    before = 0  # trackers want steps that only grow
    for name in bench.config.learners:
        config = bench.config.for_learner(name)

        def track(line: dict[str, Any], name: str = name, before: int = before) -> None:
            numbers = {f"{name}/{key}": value for key, value in line.items() if isinstance(value, int | float)}
            if "validation" in line:
                numbers[f"{name}/validation"] = line["validation"]["after"]["mean"]
            bench.accelerator.log(numbers, step=before + line["meta_step"])

        meta_train(bench, config, learner_folder(folder, bench.config, name), track)
        thetas[name] = bench.weights.snapshot()
        before += config.meta_steps + 1
    return thetas


def trained_learner(bench: Workbench, thetas: dict[str, torch.Tensor]) -> Learner:
    """The run's learner with the model standing at its trained θ.

    A metric learner's classifier is that of the training domains' reviews: the support sets of one task from each.
    """
    config = bench.config.for_learner(bench.config.learner)
    learner = bench.learner(config)
    bench.weights.restore(thetas[config.learner])
    if isinstance(learner, MetricLearner):
        sampler = TaskSampler(bench.splits.train, config.train_shots, 0, config.seed, in_turn=True)
        rows = [sampler[turn].support for turn in range(len(sampler.domains))]
        learner.fit(bench.reviews["train"], np.concatenate(rows))
    return learner


def read_run(folder: Path) -> Config:
    """The settings of a run folder. Raises BadInput where it is none, or has settings that are not known here."""
    if not (folder / "config.yaml").exists():
        why = "it holds no config.yaml" if folder.is_dir() else "it is not there"
        raise BadInput(f"{str(folder)!r} is not a run folder: {why}")
    try:
        return read_config(folder / "config.yaml")
    except BadInput as error:
        raise BadInput(f"{error} (this is metalib {__version__}; another version may have made the run, or a file of "
                       "yours with a learner of your own: start the command with that file)") from error  # fmt: skip


def final_theta(folder: Path, config: Config, name: str) -> torch.Tensor:
    """The trained weights (P,) of one learner of a run, from its checkpoint. Raises BadInput before it is finished."""
    found = load_checkpoint(learner_folder(folder, config, name) / "checkpoint")
    if found is None or found[0] < config.for_learner(name).meta_steps:
        raise BadInput(f"{str(folder)!r} is not finished: {name} has no final checkpoint — go on with --resume")
    return found[1]["theta"]


def load_thetas(bench: Workbench, folder: Path) -> dict[str, torch.Tensor]:
    """The trained weights of a finished run, from its checkpoints."""
    return {name: final_theta(folder, bench.config, name).to(bench.weights.flat) for name in bench.config.learners}


def curve_marks(steps: int) -> list[int]:
    """Numbers of adaptation steps at which the adaptation curve is drawn, the last one among them."""
    return sorted({0, *(mark for mark in (1, 2, 5, 10, 20, 50, 100) if mark < steps), steps})


def predict_all(
    bench: Workbench, thetas: dict[str, torch.Tensor], episodes: Episodes, marks: bool = False, shots: int | None = None
) -> dict[str, np.ndarray]:
    """Each trained learner's (episodes, marks, queries) predictions; without `marks`, only after all its steps."""
    predictions = {}
    for name, theta in thetas.items():
        config = bench.config.for_learner(name)
        bench.weights.restore(theta)
        steps = curve_marks(config.adapt_steps) if marks else [config.adapt_steps]
        words = f"Testing {name}" if shots is None else f"Testing {name}, {shots} shots"
        predictions[name] = predict_episodes(
            bench.learner(config), bench.reviews["test"], episodes, steps, config.split_seed, bench.accelerator, words
        )
    return predictions


def test(bench: Workbench, thetas: dict[str, torch.Tensor], folder: Path) -> None:
    """Test all methods on the same episodes; writes `evaluation.json` and the adaptation curves of `curves.json`."""
    config, reviews = bench.config, bench.splits.test
    episodes = test_episodes(config, bench.splits)
    along = predict_all(bench, thetas, episodes, marks=True)
    majority = int(np.bincount(bench.reviews["train"].labels).argmax())
    predictions = {"majority": constant_predictions(episodes, lambda task: np.full(len(task.query), majority))}
    predictions |= {name: steps[:, -1] for name, steps in along.items()}
    rivals = dict(predictions)
    if config.untrained:
        theta_0 = bench.theta_0
        before = predict_all(bench, {name: theta_0 for name in thetas if name != "finetuned"}, episodes)
        predictions |= {f"untrained_{name}": steps[:, -1] for name, steps in before.items()}
    if world := world_of(config):
        predictions["best_possible"] = best_possible(world, reviews, episodes)
    if not bench.accelerator.is_main_process:
        return
    evaluation: dict[str, Any] = {
        "episodes": {
            "count": len(episodes.tasks),
            "sha256": hash_tasks(episodes.tasks, reviews["text"][:]),
            "shots": config.shots,
            "queries": config.queries,
        },
        "unit": "reviews of these test domains; episodes overlap, and the intervals account for it (Nadeau & Bengio)",
        "methods": {name: summarise(predicted, episodes) for name, predicted in predictions.items()},
        "paired": [
            *compare(rivals, episodes, config.learner),
            *(pair for name in thetas if (other := f"untrained_{name}") in predictions
              for pair in compare({each: predictions[each] for each in (name, other)}, episodes, name)),
        ],
    }
    curves = {
        name: {
            "steps": curve_marks(config.for_learner(name).adapt_steps),
            "balanced_accuracy": curve(steps, episodes),
        }
        for name, steps in along.items()
    }
    with suppress(BadInput, KeyError, TypeError):  # not there yet, or broken
        if read_json(folder / "evaluation.json")["episodes"]["sha256"] != evaluation["episodes"]["sha256"]:
            log.warning("%s: the test reviews are others than those that it was tested on before", folder)
    write_json(folder / "evaluation.json", evaluation)
    drawn = folder / "curves.json"  # a shot curve from `metalib evaluate` stays
    kept = {}
    with suppress(BadInput):  # not there, or broken: drawn anew
        kept = read_json(drawn)
    write_json(drawn, {**kept, "adaptation": curves})


def best_possible(world: World, reviews: Dataset, episodes: Episodes) -> np.ndarray:
    """(episodes, queries) predictions of the rule that knows how the world was made; nobody can do better."""
    best = world.best_predictions(reviews["text"][:], reviews["domain"][:])
    return constant_predictions(episodes, lambda task: best[task.query])


def shot_curve(bench: Workbench, thetas: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Balanced accuracy against shots, as far as the test domains' reviews reach."""
    config = bench.config
    result: dict[str, Any] = {name: {"shots": [], "balanced_accuracy": []} for name in thetas}
    for shots in CURVE_SHOTS:
        try:
            sampler = TaskSampler(bench.splits.test, shots, config.queries, config.split_seed, in_turn=True)
        except BadInput:
            break
        episodes = Episodes.draw(sampler, max(config.eval_episodes // 2, len(sampler.domains)))
        for name, predicted in predict_all(bench, thetas, episodes, shots=shots).items():
            result[name]["shots"].append(shots)
            result[name]["balanced_accuracy"] += curve(predicted, episodes)
    return result


def evaluate(folder: str | Path, data: str | None = None) -> Path:
    """Test a finished run again, draw the curves that cost more (accuracy against shots), write the report anew.

    data: where the run's reviews are now, if not where they were.

    Raises:
        BadInput: it is no finished run, or was trained with other reviews or another model.
    """
    folder = Path(folder).expanduser()
    config = read_run(folder)
    config = replace(config, data=data or config.data)
    accelerator = make_accelerator()
    with accelerator.main_process_first():
        splits = load_splits(config)
    bench = prepare(config, splits, accelerator)
    thetas = load_thetas(bench, folder)
    check_given(folder, config, bench.given)
    with log_to(folder, accelerator):
        test(bench, thetas, folder)
        shots = shot_curve(bench, thetas)
        if accelerator.is_main_process:
            write_json(folder / "curves.json", {**read_json(folder / "curves.json"), "shots": shots})
            report.write_report(folder)
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return folder
