"""From a finished run and a few labelled examples of one's own to a classifier for them, with its card."""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from huggingface_hub import ModelCard, ModelCardData
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from metalib import __version__
from metalib.config import Config, make_config
from metalib.errors import BadInput, NotFinite
from metalib.estimates import Scores, cross_validate, results, test_rest
from metalib.examples import check_counts, count, load_examples
from metalib.folders import new_folder, read_json, refuse_existing, write_json
from metalib.learners import LEARNERS, Learner, MetricLearner
from metalib.models import TokenizedReviews, load_model, seeded
from metalib.parts import final_layer
from metalib.plots import label
from metalib.predicting import count_cut, label_names, open_model, warn_of_cut
from metalib.processes import make_accelerator
from metalib.report import escape, table
from metalib.runs import final_theta, read_run
from metalib.training import extend_model
from metalib.weights import Weights

log = logging.getLogger("metalib")
SETTINGS = ("learner", "model", "max_length", "adapt", "adapt_steps", "adapt_lr", "adapt_batch", "inner_optimizer",
            "inner_schedule", "dropout", "frozen_layers")  # fmt: skip
RENAME = " (where they mean the same, call them so, or 0, 1, …, to go on with the trained one)"
SCORES = "The scores of its predictions order the classes; they are no probabilities.\n"


@dataclass
class Start:
    """A run's learner at its trained θ, with as many classes as the examples have.

    Attributes:
        names: the examples' classes, in the order of the model's numbers.
        is_fresh: whether the model's head is a new one, because these are not the classes of the meta-training.
    """

    config: Config
    learner: Learner
    tokenizer: PreTrainedTokenizerBase
    names: list[str]
    is_fresh: bool


def adapt(
    run: str | Path,
    data: str | Path | Dataset,
    out: str | Path,
    shots: int | None = None,
    text_column: str = "text",
    label_column: str = "label",
    seed: int = 0,
    adapt_steps: int | None = None,
    adapt_lr: float | None = None,
) -> Path:
    """Adapt a finished run's learner to labelled examples; returns the folder of the adapted model.

    Args:
        run: the run folder.
        data: a file that `load_examples` reads, or a dataset.
        out: the folder to write; not there yet, or empty.
        shots: learn from so many examples of each class, drawn by the seed; the others are a test. None: from all.
        text_column, label_column: names of the columns of the text and of the label.
        seed: of the draw, of the folds, of a new head, and of the gradient steps.
        adapt_steps, adapt_lr: number and learning rate of the gradient steps; None: as in the run, but, if it takes
            any, enough to see each example once.

    Raises:
        BadInput: before anything is written: an unfinished run, data that cannot be used, a folder that is there.
        NotFinite: the weights became NaN or infinite.
    """
    run, out = Path(run).expanduser(), Path(out).expanduser()
    name = Path(data).name if isinstance(data, str | Path) else "the examples"
    refuse_existing(out)
    for setting, number, least in (("shots", shots, 1), ("seed", seed, 0)):
        if number is not None and not least <= number < 2**32:
            raise BadInput(f"{setting}={number} — give a whole number from {least} on")
    settings = read_run(run)
    config = with_steps(settings, adapt_steps, adapt_lr)
    theta = final_theta(run, settings, config.learner)
    examples = load_examples(data, text_column, label_column)
    check_counts(examples, shots, name)
    rows = shots * len(examples.features["label"].names) if shots else len(examples)
    config = see_all(config, rows, adapt_steps is not None)
    start = open_run(run, theta, examples.features["label"].names, seed, config)
    reviews = tokenise(examples, start)
    learn, rest = draw(reviews.labels, shots, seed)
    with new_folder(out) as folder:
        tests = measure(run, start, reviews, examples["text"][:], learn, rest, seed)
        start.learner.fit(reviews, learn, (seed,))
        if not torch.isfinite(start.learner.weights.flat).all():
            raise NotFinite(f"the weights are not finite after adapting with adapt_lr={start.config.adapt_lr:g} — "
                            "give a lower adapt_lr")  # fmt: skip
        facts = {"run": run.resolve().name, "data": name, "seed": int(seed), "shots": shots and int(shots), **tests}
        write(folder, start, dict(facts, fresh_head=start.is_fresh, examples=count(reviews.labels[learn], start.names)))
    return out


def with_steps(config: Config, adapt_steps: int | None, adapt_lr: float | None) -> Config:
    """The settings of the run's learner, with other gradient steps where given. Raises BadInput."""
    given = {k: v for k, v in {"adapt_steps": adapt_steps, "adapt_lr": adapt_lr}.items() if v is not None}
    if given and issubclass(LEARNERS[config.learner], MetricLearner):
        raise BadInput(f"{config.learner} compares, and takes no gradient steps — leave {' and '.join(given)} out")
    return make_config({**asdict(config.for_learner(config.learner)), **given}, "adapt")


def see_all(config: Config, rows: int, is_given: bool) -> Config:
    """The settings with steps enough to see each of so many examples once; with fewer and a warning where given so."""
    needed = -(-rows // config.adapt_batch)
    if issubclass(LEARNERS[config.learner], MetricLearner) or not 0 < config.adapt_steps < needed:
        return config
    if is_given:
        log.warning("adapt_steps=%d of %d examples see %d of the %d", config.adapt_steps, config.adapt_batch,
                    config.adapt_steps * config.adapt_batch, rows)  # fmt: skip
        return config
    log.info("%d gradient steps, not the run's %d, so that each of the %d examples is seen", needed,
             config.adapt_steps, rows)  # fmt: skip
    return replace(config, adapt_steps=needed)


def order_of(names: Sequence[str], known: Sequence[str]) -> list[int] | None:
    """Each name's number among the known classes, by name or by number; None where they are other classes."""
    given = [name.strip().lower() for name in names]
    for words in ([name.lower() for name in known], [str(number) for number in range(len(known))]):
        if sorted(given) == sorted(words):
            return [words.index(name) for name in given]
    return None


def open_run(folder: Path, theta: torch.Tensor, names: Sequence[str], seed: int, config: Config) -> Start:
    """The run's learner at θ (P,), with its own settings `config`; for other classes than its own, with a new head."""
    known = label_names(folder / "model")
    model, tokenizer = load_trained(folder, read_run(folder), known, theta)
    order = order_of(names, known)
    if order is None:
        if config.adapt_steps == 0 and not issubclass(LEARNERS[config.learner], MetricLearner):
            raise BadInput(f"the run knows the classes {', '.join(known)}, and without a gradient step nobody learns "
                           "others (adapt_steps=0) — give adapt_steps")  # fmt: skip
        new_head(model, len(names), seed)
    else:
        names = [names[order.index(number)] for number in range(len(known))]
    model.config.id2label = dict(enumerate(names))
    model.config.label2id = {name: number for number, name in enumerate(names)}
    weights = Weights(model.to(make_accelerator().device))
    learner = LEARNERS[config.learner](model, weights, config.training_loop(), config.adaptation_loop())
    if order is None:
        head = "" if isinstance(learner, MetricLearner) else (
            f": a fresh head learns them from these examples alone{RENAME if len(names) == len(known) else ''}")
        log.info("the classes are not those of the meta-training (%s)%s", ", ".join(known), head)
    elif list(names) != known:
        log.info("the classes %s are taken for %s", ", ".join(names), ", ".join(known))
    return Start(config, learner, tokenizer, list(names), order is None)


def load_trained(
    folder: Path, config: Config, known: Sequence[str], theta: torch.Tensor
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model as it was in the run, frozen weights from `model/` and all others from θ (P,), and its tokenizer."""
    source = str(folder / "model")
    model, tokenizer = load_model(source, [], known, config.seed, config.frozen_layers, config.max_length)
    extend_model(model, config)
    weights = Weights(model)
    if len(weights) != len(theta):
        raise BadInput(f"{str(folder)!r}: its checkpoint has {len(theta)} weights, its model {len(weights)} — "
                       "they are not of the same run")  # fmt: skip
    weights.restore(theta)
    unmerge_frozen(model)
    return model, tokenizer


def unmerge_frozen(model: PreTrainedModel) -> None:
    """Take the low-rank updates out of frozen matrices, into which `Learner.save` had merged them."""
    for module in model.modules():
        if hasattr(module, "get_delta_weight") and not module.get_base_layer().weight.requires_grad:
            module.get_base_layer().weight.data -= module.get_delta_weight("default")


def new_head(model: PreTrainedModel, classes: int, seed: int) -> None:
    """Put a new last matrix of so many classes on the model, drawn as the model draws its own."""
    old = final_layer(model)
    name = next(name for name, module in model.named_modules() if module is old)
    head = nn.Linear(old.in_features, classes, bias=old.bias is not None)
    with seeded((seed, 3)):
        model._init_weights(head)
    model.set_submodule(name, head)
    model.config.num_labels = model.num_labels = classes


def tokenise(examples: Dataset, start: Start) -> TokenizedReviews:
    """The examples as tokens, with their classes as the model numbers them; says how many texts were cut."""
    texts, length = examples["text"][:], start.config.max_length
    names = examples.features["label"].names
    labels = [start.names.index(names[number]) for number in examples["label"][:]]
    reviews = TokenizedReviews.in_memory(texts, start.tokenizer, length, start.learner.weights.flat.device, labels)
    warn_of_cut(count_cut(texts, reviews, start.tokenizer, length), len(texts), length)
    return reviews


def draw(labels: np.ndarray, shots: int | None, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows to learn from, `shots` of each class or all of them, and the other rows."""
    rows = np.arange(len(labels))
    if shots is None:
        return rows, rows[:0]
    generator = np.random.default_rng((seed, 4))
    drawn = [generator.choice(rows[labels == number], shots, replace=False) for number in np.unique(labels)]
    learn = np.sort(np.concatenate(drawn))
    return learn, np.setdiff1d(rows, learn)


def measure(
    run: Path,
    start: Start,
    reviews: TokenizedReviews,
    texts: list[str],
    learn: np.ndarray,
    rest: np.ndarray,
    seed: int,
) -> dict[str, Scores | None]:
    """Scores by cross-validation on the examples that are learned, and on the others, where that can be done.

    The rival of the adapted model is the run's model as it is, where the classes are the same; else the majority class.
    """
    rivals = {}
    if not start.is_fresh:
        rivals["not adapted"] = open_model(run / "model").scores(texts)[0].argmax(-1)
    return {
        "cross_validation": cross_validate(start.learner, reviews, learn, rivals, seed),
        "test": test_rest(start.learner, reviews, learn, rest, rivals, seed),
    }


def write(folder: Path, start: Start, facts: dict[str, Any]) -> None:
    """Write the model, its tokenizer, all numbers (`metalib.json`) and the card."""
    start.learner.save(folder)
    start.tokenizer.model_max_length = start.config.max_length  # so that a pipeline cuts where the learner did
    start.tokenizer.save_pretrained(folder)
    facts = {"learner": start.learner.name, "metalib": __version__, **facts}
    write_json(folder / "metalib.json", facts)
    ModelCard(card(start, facts)).save(folder / "README.md")


def card(start: Start, facts: dict[str, Any]) -> str:
    """The model's card, filled from the run."""
    config, learner = start.config, start.learner
    data = ModelCardData(library_name="transformers", tags=["meta-learning", "few-shot", learner.name],
                         pipeline_tag="text-classification" if learner.is_classifier else "feature-extraction",
                         )  # fmt: skip
    use = 'pipeline("text-classification", model=FOLDER)("…", truncation=True)'
    settings = [[name, value] for name, value in asdict(config).items() if name in SETTINGS]
    return f"""---
{data.to_yaml()}
---
# A classifier of texts into {escape(", ".join(start.names))}

Meta-trained with {escape(label(learner.name))} on {escape(Path(config.data).name)} (run {escape(facts["run"])}), then
adapted to {escape(facts["data"])}: {learner.how_it_adapts("the examples below")}.
{how_classes_go(start)}

Use: `metalib predict FOLDER "…"`{f", or `{use}`" if learner.is_classifier else ""}.

## Learned from

{table(["class", "examples"], list(facts["examples"].items()))}
## How well it does

{results(facts)}
## Limits

The scores speak of texts like those in {escape(facts["data"])}, and of no others. With so few examples the intervals
are wide and rough; a test on examples that were not learned is better. Texts are cut to {config.max_length} tokens.
{"" if learner.is_classifier else SCORES}
## Settings

{table(["setting", "value"], [*settings, ["seed of the adaptation", facts["seed"]], ["metalib", facts["metalib"]]])}"""


def how_classes_go(start: Start) -> str:
    """What became of the meta-trained head, in a sentence."""
    if not start.is_fresh:
        return "The classes are those of the meta-training."
    if isinstance(start.learner, MetricLearner):
        return "The classes are not those of the meta-training; comparing needs no head."
    return "The classes are not those of the meta-training: a fresh head has learned them from these examples alone."


def summary(folder: Path) -> str:
    """The scores of an adapted model, for a terminal."""
    return results(read_json(folder / "metalib.json"), str)
