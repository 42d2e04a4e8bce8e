"""Classifying texts with a model folder: one that `metalib adapt` wrote, or the `model/` of a run."""

import json
import logging
import reprlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from metalib.errors import BadInput
from metalib.inner import InnerLoop
from metalib.learners import LEARNERS, Learner, MetricLearner
from metalib.models import TokenizedReviews, load_model, longest_input
from metalib.parts import final_layer
from metalib.processes import make_accelerator
from metalib.weights import Weights

log = logging.getLogger("metalib")
BATCH = 256  # texts that are tokenised together


@dataclass
class TextClassifier:
    """A model folder, opened.

    Attributes:
        names: the classes, in the order of their numbers.
        max_length: longer texts are cut to this many tokens.
        logits: (rows, classes) of tokenised texts.
    """

    tokenizer: PreTrainedTokenizerBase
    names: list[str]
    max_length: int
    device: torch.device
    logits: Callable[[TokenizedReviews, np.ndarray], torch.Tensor]

    def scores(self, texts: Sequence[str]) -> tuple[np.ndarray, int]:
        """(texts, classes) softmax of the logits, and how many of the texts were cut."""
        reviews = TokenizedReviews.in_memory(texts, self.tokenizer, self.max_length, self.device)
        scores = self.logits(reviews, np.arange(len(texts))).softmax(-1).cpu().numpy()
        return scores, count_cut(texts, reviews, self.tokenizer, self.max_length)

    def lines(self, texts: Sequence[str]) -> Iterator[dict[str, Any]]:
        """`{"text", "label", "score", "scores"}` of each text, in their order, with a bar where there are many."""
        cut = 0
        with tqdm(total=len(texts), desc="Predicting", unit="text", disable=len(texts) <= BATCH) as bar:
            for start in range(0, len(texts), BATCH):
                part = texts[start : start + BATCH]
                scores, more = self.scores(part)
                cut += more
                for text, row in zip(part, scores.tolist(), strict=True):
                    best = int(np.argmax(row))
                    yield {"text": text, "label": self.names[best], "score": row[best],
                           "scores": dict(zip(self.names, row, strict=True))}  # fmt: skip
                bar.update(len(part))
        warn_of_cut(cut, len(texts), self.max_length)


def predict(folder: str | Path, texts: str | Sequence[str]) -> Iterator[dict[str, Any]]:
    """Classify texts: `{"text", "label", "score", "scores": {LABEL: score}}` for each, in their order.

    The scores are the softmax of the model's logits, as in Transformers' pipelines. No text's scores depend on others.

    Raises:
        BadInput: at once, for a folder that cannot be opened, or texts that are empty or no text.
    """
    texts = [texts] if isinstance(texts, str) else list(texts)
    for number, text in enumerate(texts, start=1):
        if not isinstance(text, str):
            raise BadInput(f"text {number} is a {type(text).__name__}, {reprlib.repr(text)} — give texts, as str")
        if not text.strip():
            raise BadInput(f"text {number} is {text!r} — give a text that is not empty")
        if any("\ud800" <= sign <= "\udfff" for sign in text):
            raise BadInput(f"text {number} holds bytes that are not UTF-8 — save it as UTF-8")
    return open_model(Path(folder).expanduser()).lines(texts)


def open_model(folder: Path) -> TextClassifier:
    """Open a model folder: a classifier by Transformers alone, an encoder together with `learner.safetensors`.

    Raises:
        BadInput: it is not there, or something in it is missing or broken.
    """
    names, name = label_names(folder), learner_name(folder)
    model, tokenizer = load_model(str(folder), [], names, max_length=4)
    device = make_accelerator().device

    def logits(reviews: TokenizedReviews, rows: np.ndarray) -> torch.Tensor:
        return reviews.logits(model, rows)

    if LEARNERS[name].is_classifier:
        check_head(folder, model)
        model.to(device)
    else:
        logits = rebuild(model, folder, name, device).logits
    return TextClassifier(tokenizer, names, longest_input(model, tokenizer), device, logits)


def label_names(folder: Path) -> list[str]:
    """The classes of a model folder, in the order of their numbers. Raises BadInput where they cannot be read."""
    if (folder / "config.yaml").exists():
        raise BadInput(f"{str(folder)!r} is a run folder — give the folder of `metalib adapt`, or the run's model/")
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8"))["id2label"]
        names = [found[str(number)] for number in range(len(found))]
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else error
        raise BadInput(f"{str(folder)!r} is no model folder: its config.json cannot be read: {reason} — name what "
                       "`metalib adapt` wrote, or a run's model/, which --resume writes again") from error  # fmt: skip
    if len(names) < 2 or not all(isinstance(name, str) for name in names):
        raise BadInput(f"{str(folder)!r} is no folder of a classifier: its config.json names {len(names)} class(es)")
    return names


def learner_name(folder: Path) -> str:
    """The learner that wrote a model folder; `finetuned` for a plain classifier from elsewhere.

    Raises:
        BadInput: `metalib.json` is broken, or is missing where it is needed.
    """
    path = folder / "metalib.json"
    if not path.exists() and not (folder / "learner.safetensors").exists():
        return "finetuned"
    try:
        name = str(json.loads(path.read_text(encoding="utf-8"))["learner"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{str(folder)!r} is broken: metalib.json names no learner ({error}) — copy the whole folder "
                       "again, or adapt again") from error  # fmt: skip
    if name not in LEARNERS:
        raise BadInput(f"{str(folder)!r}: metalib has no learner {name!r} — where it is your own, start the command "
                       "with the file that defines it: python FILE.py predict …")  # fmt: skip
    return name


def check_head(folder: Path, model: PreTrainedModel) -> None:
    """Raise BadInput where the folder's weights lack the classifier, which Transformers would make up at random."""
    last = final_layer(model)
    head = next(f"{name}.weight" for name, module in model.named_modules() if module is last)
    saved: set[str] = set()
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            saved.update(file.keys())
    if head not in saved:
        raise BadInput(f"{str(folder)!r} holds no classifier: its weights lack {head!r} — copy the whole folder again, "
                       "or adapt again")  # fmt: skip


def rebuild(model: PreTrainedModel, folder: Path, name: str, device: torch.device) -> Learner:
    """The learner that `Learner.save` wrote as an encoder and `learner.safetensors`, with the task it had learned."""
    own = LEARNERS[name].own_module(model)
    if own is not None:
        model.own = torch.nn.ModuleDict({name: own})
    encoder, others = f"{model.base_model_prefix}.", tuple(f"own.{each}." for each in LEARNERS if each != name)
    try:
        state = load_file(folder / "learner.safetensors")
        support, classes = state.pop("support"), state.pop("classes")
        state = {key: tensor for key, tensor in state.items() if not key.startswith(others)}
        missing, unknown = model.load_state_dict(state, strict=False)
        missing = [key for key in missing if not key.startswith(encoder)]
        shapes = [tuple(support.shape), tuple(classes.shape)]
        if missing or unknown:
            raise ValueError(f"{[*missing, *unknown][0]!r} is missing or unknown")
        if shapes != [(len(support), final_layer(model).in_features), (len(support), model.config.num_labels)]:
            raise ValueError(f"support and classes are of the shapes {shapes}")
    except (OSError, KeyError, ValueError, RuntimeError, SafetensorError) as error:
        raise BadInput(f"{str(folder)!r} is broken: learner.safetensors does not go with it ({error}) — copy the whole "
                       "folder again, or adapt again") from error  # fmt: skip
    loop = InnerLoop(steps=0, lr=1.0, batch_size=1)
    learner = LEARNERS[name](model.to(device), Weights(model), loop, loop)
    assert isinstance(learner, MetricLearner)
    learner.remember(support.to(device), classes.to(device))
    return learner


def count_cut(
    texts: Sequence[str], reviews: TokenizedReviews, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> int:
    """How many texts have more than `max_length` tokens; `reviews` are these texts, tokenised and cut."""
    full = [texts[row] for row in np.flatnonzero(reviews.lengths == max_length).tolist()]
    if not full:
        return 0
    longer = tokenizer(full, truncation=True, max_length=max_length + 1)["input_ids"]
    return sum(len(numbers) > max_length for numbers in longer)


def warn_of_cut(cut: int, texts: int, max_length: int) -> None:
    """Log how many texts were cut, where any were."""
    if cut:
        log.warning("%d of %d texts %s longer than %d tokens: the rest of %s is not read",
                    cut, texts, "is" if cut == 1 else "are", max_length, "it" if cut == 1 else "each")  # fmt: skip
