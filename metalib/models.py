"""Models: a tokenizer and a text classifier, tiny and made here or pretrained and loaded."""

import hashlib
import json
import logging
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import transformers
from datasets import Dataset, config
from pyarrow import ArrowInvalid
from tokenizers import BertWordPieceTokenizer
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertTokenizerFast,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from metalib.errors import BadInput
from metalib.fast import pack
from metalib.parts import features, freeze_lower_layers

log = logging.getLogger("metalib")
TINY = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}


@contextmanager
def seeded(seed: int | tuple[int, ...], device: torch.device | None = None) -> Iterator[None]:
    """Inside, torch's random draws (dropout, new layers) follow from `seed` alone; outside, nothing has moved."""
    number = int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0])
    cuda = [device] if device is not None and device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        if device is None or device.type == "cpu":
            torch.default_generator.manual_seed(number)  # `torch.manual_seed` asks for every kind of device: slow
        else:
            torch.manual_seed(number)
        yield


def train_tokenizer(texts: Sequence[str], max_length: int = 128, vocabulary: int = 2000) -> BertTokenizerFast:
    """A lower-casing WordPiece tokenizer whose entries are the texts' characters and their most frequent words.

    A word that is not an entry is read letter by letter. Where not all fit in, the most frequent letters take an eighth
    of the entries, and an eighth within a word, so that scripts with thousands of them leave room for words. Entries
    come in a fixed order, so that the same texts always give the same tokenizer (the trainers of `tokenizers` break
    ties at random, differently in every process).
    """
    word_piece = BertWordPieceTokenizer(lowercase=True)
    count: Counter[str] = Counter()
    for text in texts:
        words = word_piece.pre_tokenizer.pre_tokenize_str(word_piece.normalizer.normalize_str(text))
        count.update(word for word, _ in words)
    letters_of: Counter[str] = Counter()
    for word, number in count.items():
        letters_of.update({letter: number * word.count(letter) for letter in set(word)})
    letters = sorted(letters_of)
    frequent = sorted((word for word in count if count[word] > 1), key=lambda word: (-count[word], word))
    if 5 + 2 * len(letters) + len(frequent) > vocabulary:
        letters = sorted(sorted(letters, key=lambda letter: (-letters_of[letter], letter))[: vocabulary // 8])
    entries = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *letters,
        *(f"##{letter}" for letter in letters),
        *frequent,
    ]
    numbers = {entry: number for number, entry in enumerate([*dict.fromkeys(entries)][:vocabulary])}
    return BertTokenizerFast(vocab=numbers, do_lower_case=True, model_max_length=max_length)


def load_model(
    name: str,
    texts: Sequence[str],
    labels: Sequence[str],
    seed: int = 0,
    frozen_layers: int = 0,
    max_length: int = 128,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A sequence classifier and its tokenizer.

    Args:
        name: `tiny` (a BERT of 2 layers and 64 units, made here, its tokenizer learned from `texts`), or a folder
            or hub name of any checkpoint that `AutoModelForSequenceClassification` opens.
        texts: training texts, read by the tiny tokenizer only.
        labels: class names in the order of their numbers.
        seed: of the weights that are not pretrained (all of them, or a new classifier head).
        frozen_layers: this many of the lowest layers, and the embeddings below them, stay as they are.
        max_length: tokens of the longest text that the model will be given.

    Raises:
        BadInput: the checkpoint cannot be found or opened, has fewer layers than are to be frozen, or cannot read
            texts of `max_length` tokens.
    """
    heads = {
        "num_labels": len(labels),
        "id2label": dict(enumerate(labels)),
        "label2id": {name: number for number, name in enumerate(labels)},
        "problem_type": "single_label_classification",
    }
    with seeded(seed):
        if name == "tiny":
            tokenizer: PreTrainedTokenizerBase = train_tokenizer(texts, max_length)
            config = BertConfig(vocab_size=len(tokenizer), max_position_embeddings=max_length, **TINY, **heads)
            model: PreTrainedModel = BertForSequenceClassification(config)
        else:
            model, tokenizer = _load_checkpoint(name, heads)
    longest = longest_input(model, tokenizer)
    if max_length > longest:
        raise BadInput(f"max_length={max_length}: model {name!r} reads at most {longest} tokens — lower it")
    model.eval()
    if name != "tiny":  # there, the texts are of like length, and the layers cost less than the packing
        pack(model)
    freeze_lower_layers(model, frozen_layers)
    return model, tokenizer


def positions_of(model: PreTrainedModel) -> torch.nn.Module | None:
    """A BERT's or RoBERTa's table of positions."""
    return getattr(getattr(model.base_model, "embeddings", None), "position_embeddings", None)


def longest_input(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """Tokens of the longest text that both can read."""
    return int(min(tokenizer.model_max_length, positions(model)))


def positions(model: PreTrainedModel) -> int:
    """Tokens of the longest text that the model can read."""
    padding = getattr(positions_of(model), "padding_idx", None)
    skipped = 0 if padding is None else padding + 1  # RoBERTa's positions start after its padding number
    return (getattr(model.config, "max_position_embeddings", None) or sys.maxsize) - skipped


def _load_checkpoint(name: str, heads: dict) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    verbosity, place = transformers.logging.get_verbosity(), os.path.expanduser(name)
    transformers.logging.set_verbosity_error()  # a new classifier head is what is wanted: no warning about it
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False)
        model, found = AutoModelForSequenceClassification.from_pretrained(
            place, dtype=torch.float32, use_safetensors=True, trust_remote_code=False, output_loading_info=True,
            ignore_mismatched_sizes=not (Path(place) / "metalib.json").exists(), **heads,
        )  # weights that are pickles, and code that comes with a model, are refused  # fmt: skip
        if found["mismatched_keys"]:
            log.info("model %r: its head is for other classes, and a new one takes its place", name)
    except Exception as error:  # the hub, the disk and the file formats all raise their own
        what = (
            "the folder cannot be opened as a model"
            if Path(place).is_dir()
            else "no such folder, and it cannot be had from the hub"
        )
        offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") else ""
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise BadInput(
            f"model {name!r}: {what}{offline}: {reason} — give the path of a downloaded checkpoint, or --model tiny "
            "(for a run whose checkpoint was moved: correct `model` in its config.yaml)"
        ) from error
    finally:
        transformers.logging.set_verbosity(verbosity)
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)):  # what Transformers makes where no vocabulary lies
        raise BadInput(f"model {name!r}: its tokenizer knows no word — its tokenizer.json, or vocabulary, is missing")
    if tokenizer.pad_token_id is None:
        raise BadInput(f"model {name!r}: its tokenizer has no padding token, so texts cannot share a batch — set one")
    if model.config.model_type == "xlnet":
        raise BadInput(f"model {name!r}: XLNet is padded at the beginning, metalib pads at the end — take another")
    if model.config.pad_token_id is None or getattr(positions_of(model), "padding_idx", None) is None:
        model.config.pad_token_id = tokenizer.pad_token_id  # a decoder's head looks for it
    return model, tokenizer


def tokenizer_rules(tokenizer: PreTrainedTokenizerBase) -> str:
    """All that makes it cut texts as it does, its vocabulary too, but for the settings of its last call."""
    rules = json.loads(tokenizer.backend_tokenizer.to_str()) if tokenizer.is_fast else tokenizer.get_vocab()
    return json.dumps({k: v for k, v in rules.items() if k not in ("truncation", "padding")}, sort_keys=True)


class TokenizedReviews:
    """Reviews as token numbers, tokenised once; `batch` pads only to the longest review of that batch.

    Attributes:
        labels: (n,) class number of each review.
        lengths: (n,) tokens of each review, special ones included.
    """

    def __init__(
        self,
        reviews: Dataset,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        device: torch.device | str = "cpu",
    ):
        def encode(columns: dict) -> dict:
            return {"input_ids": tokenizer(columns["text"], truncation=True, max_length=max_length)["input_ids"]}

        what = (tokenizer, tokenizer_rules(tokenizer), transformers.__version__, max_length, reviews["text"][:])
        key = hashlib.sha256(repr(what).encode()).hexdigest()
        cache = Path(config.HF_DATASETS_CACHE) / "metalib" / f"{key}.arrow"  # the next run, or process, finds it there
        how: dict = {"batched": True, "remove_columns": reviews.column_names, "desc": "Tokenising",
                     "cache_file_name": str(cache), "new_fingerprint": key}  # fmt: skip
        try:
            cache.parent.mkdir(parents=True, exist_ok=True)
            try:
                encoded = reviews.map(encode, **how)
            except (ArrowInvalid, OSError):  # what stands there was cut short
                encoded = reviews.map(encode, load_from_cache_file=False, **how)
        except OSError as error:
            raise BadInput(f"{cache.parent} cannot be written: {error} — set HF_HOME to a folder with room") from error
        self.labels = np.asarray(reviews["label"][:], dtype=np.int64)
        column = encoded.data.column("input_ids").combine_chunks() if len(reviews) else None
        self.lengths = np.diff(column.offsets) if column is not None else np.zeros(0, dtype=np.int64)
        self.tokens = np.split(column.flatten().to_numpy(), column.offsets[1:-1]) if column is not None else []
        self.padding = tokenizer.pad_token_id
        self.device = torch.device(device)

    @classmethod
    def in_memory(
        cls,
        texts: Sequence[str],
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        device: torch.device | str = "cpu",
        labels: Sequence[int] | None = None,
    ) -> "TokenizedReviews":
        """A few texts, tokenised here and now and not kept on the disk; labels are 0 where there are none."""
        made = cls.__new__(cls)
        encoded = tokenizer(list(texts), truncation=True, max_length=max_length)["input_ids"]
        made.tokens = [np.asarray(numbers) for numbers in encoded]
        made.lengths = np.asarray([len(numbers) for numbers in encoded])
        made.labels = np.zeros(len(texts), dtype=np.int64) if labels is None else np.asarray(labels, dtype=np.int64)
        made.padding, made.device = tokenizer.pad_token_id, torch.device(device)
        return made

    def batch(self, rows: np.ndarray, longest: int = 0) -> dict[str, torch.Tensor]:
        """The model's input for some rows: `input_ids` and `attention_mask` (rows, longest), `labels` (rows,).

        They are padded to `longest` tokens; 0: to the longest among them.
        """
        lengths = self.lengths[rows]
        mask = np.arange(longest or lengths.max()) < lengths[:, None]
        input_ids = np.full(mask.shape, self.padding)
        input_ids[mask] = np.concatenate([self.tokens[row] for row in rows])
        columns = {
            "input_ids": input_ids,
            "attention_mask": mask.astype(np.int64),
            "labels": self.labels[rows],
        }
        return {name: torch.from_numpy(column).to(self.device) for name, column in columns.items()}

    def words(self, rows: np.ndarray) -> torch.Tensor:
        """(words,) numbers of the words in some rows and of the padding, each once, sorted."""
        numbers = np.unique(np.concatenate([[self.padding], *(self.tokens[row] for row in rows)]))
        return torch.from_numpy(numbers).to(self.device)

    @torch.no_grad()
    def compute(
        self,
        model: PreTrainedModel,
        rows: np.ndarray,
        function: Callable[[PreTrainedModel, dict[str, torch.Tensor]], torch.Tensor],
        batch_size: int = 64,
    ) -> torch.Tensor:
        """(rows, …) of `function(model, batch)`, without dropout; batches of like length, order kept."""
        was_training = model.training
        model.eval()
        order = np.argsort(self.lengths[rows], kind="stable")
        parts = [function(model, self.batch(rows[order[start : start + batch_size]]))
                 for start in range(0, len(rows), batch_size)]  # fmt: skip
        model.train(was_training)
        return torch.cat(parts)[torch.from_numpy(np.argsort(order))]

    def logits(self, model: PreTrainedModel, rows: np.ndarray) -> torch.Tensor:
        """(rows, classes) logits of the model as it is."""

        def forward(model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
            inputs.pop("labels")
            return model(**inputs).logits.float()

        return self.compute(model, rows, forward)

    def features(self, model: PreTrainedModel, rows: np.ndarray) -> torch.Tensor:
        """(rows, hidden) features of the model as it is."""
        return self.compute(model, rows, features)
