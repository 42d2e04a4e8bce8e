"""Tokenizer and classifier: reproducible, round trips through files, any architecture, and errors that help."""

import json
import os
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from tokenizers.normalizers import BertNormalizer
from transformers import (
    AlbertConfig,
    AlbertForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
    XLNetConfig,
    XLNetForSequenceClassification,
)

from metalib import models
from metalib.errors import BadInput
from metalib.inner import InnerLoop, adapt, untouched
from metalib.models import TokenizedReviews, load_model, longest_input, train_tokenizer
from metalib.weights import Weights

LABELS = ["negative", "positive"]
TEXTS = [
    "The battery was light and the paper thin.",
    "A gripping plot, a superb cast!",
    "Awful, slow, the plot was thin.",
]
BERT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
DISTILBERT = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32}
ARCHITECTURES = {
    "bert": (BertConfig, BertForSequenceClassification, BERT),
    "albert": (AlbertConfig, AlbertForSequenceClassification, {**BERT, "embedding_size": 8}),
    "distilbert": (DistilBertConfig, DistilBertForSequenceClassification, DISTILBERT),
    "roberta": (RobertaConfig, RobertaForSequenceClassification, {**BERT, "type_vocab_size": 1}),
}


@pytest.fixture
def offline(monkeypatch):
    """No network, whatever the environment said when `huggingface_hub` was loaded."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def save_checkpoint(kind: str, bench, folder: Path) -> Path:
    """A small, untrained checkpoint of another architecture with the workbench's tokenizer beside it."""
    configuration, classifier, sizes = ARCHITECTURES[kind]
    positions = 64 + 4  # RoBERTa's positions start behind its padding's number
    config = configuration(
        vocab_size=len(bench.tokenizer),
        max_position_embeddings=positions,
        pad_token_id=0,
        initializer_range=0.3,  # logits that differ from text to text
        num_labels=2,
        **sizes,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        classifier(config).save_pretrained(folder)
    bench.tokenizer.save_pretrained(folder)
    return folder


def flat(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_the_tokenizer_is_the_same_in_another_process(reviews):
    texts = reviews["text"][:200]
    code = """
import json, sys
from metalib import models
from metalib.models import train_tokenizer
print(train_tokenizer(json.load(sys.stdin), 48).backend_tokenizer.to_str())
"""
    other_order_of_sets = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    environment = {**os.environ, "PYTHONHASHSEED": other_order_of_sets, "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, input=json.dumps(texts), env=environment, capture_output=True, text=True, check=True)
    here = train_tokenizer(texts, 48).backend_tokenizer.to_str()
    assert json.loads(run.stdout.splitlines()[-1]) == json.loads(here)


def test_the_tokenizer_spells_a_word_that_it_does_not_know():
    tokenizer = train_tokenizer([*TEXTS, "plot plot"], 48)
    assert tokenizer.tokenize("The PLOT") == ["the", "plot"]
    assert tokenizer.tokenize("slot") == ["s", "##l", "##o", "##t"]


def test_a_script_of_thousands_of_letters_leaves_room_for_the_frequent_ones():
    rare = [chr(0x4E00 + number) for number in range(3000)]  # each of them a word, as the tokenizer cuts Chinese
    tokenizer = train_tokenizer([*rare * 2, *["质量 高 质量 错"] * 3], 48)
    assert len(tokenizer) == 2000 and tokenizer.tokenize("质量错") == ["质", "量", "错"]


def test_the_same_seed_gives_equal_weights_and_leaves_torchs_random_state_alone():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one, _ = load_model("tiny", TEXTS, LABELS, seed=3, max_length=48)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    other, _ = load_model("tiny", TEXTS, LABELS, seed=3, max_length=48)
    third, _ = load_model("tiny", TEXTS, LABELS, seed=4, max_length=48)
    assert torch.equal(flat(one), flat(other))
    assert not torch.equal(flat(one), flat(third))
    assert one.config.id2label == {0: "negative", 1: "positive"}


def test_a_saved_model_comes_back_with_equal_logits(bench, tmp_path):
    bench.weights.flat.mul_(1.5)  # not what the seed would give again
    bench.model.save_pretrained(tmp_path)
    bench.tokenizer.save_pretrained(tmp_path)
    model, tokenizer = load_model(str(tmp_path), [], LABELS, seed=99, max_length=48)
    again = TokenizedReviews(bench.splits.test, tokenizer, 48)
    rows = np.arange(20)
    saved, opened = bench.model.state_dict(), model.state_dict()
    assert saved.keys() == opened.keys() and all(torch.equal(saved[name], opened[name]) for name in saved)
    logits = bench.reviews["test"].logits(bench.model, rows)  # the opened one is packed, and rounds otherwise
    torch.testing.assert_close(again.logits(model, rows), logits, rtol=1e-4, atol=1e-6)


def test_freezing_takes_the_embeddings_and_the_lowest_layers():
    model, _ = load_model("tiny", TEXTS, LABELS, frozen_layers=1, max_length=48)
    frozen = {name.split(".")[1] for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {"embeddings", "encoder"}
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (not name.startswith(("bert.embeddings.", "bert.encoder.layer.0."))), name


@pytest.mark.parametrize("kind", ["distilbert", "roberta"])
def test_freezing_finds_the_layers_of_other_architectures(bench, tmp_path, kind):
    folder = save_checkpoint(kind, bench, tmp_path)
    model, _ = load_model(str(folder), [], LABELS, frozen_layers=1, max_length=48)
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (".embeddings." not in name and ".layer.0." not in name), name


@pytest.mark.parametrize("classes", [2, 3])
def test_a_checkpoint_for_other_classes_gets_a_new_head_and_says_so(bench, tmp_path, caplog, classes):
    folder = save_checkpoint("bert", bench, tmp_path)
    old = BertForSequenceClassification.from_pretrained(folder, num_labels=classes, ignore_mismatched_sizes=True)
    old.config.problem_type = "multi_label_classification"
    old.save_pretrained(folder)
    with caplog.at_level("INFO", "metalib"):
        model, tokenizer = load_model(str(folder), [], LABELS, max_length=48)
    assert ("its head is for other classes" in caplog.text) == (classes == 3)
    assert model.classifier.out_features == 2 and model.config.id2label == dict(enumerate(LABELS))
    assert torch.equal(model.classifier.weight, old.classifier.weight) == (classes == 2)
    assert torch.equal(model.bert.encoder.layer[0].output.dense.weight, old.bert.encoder.layer[0].output.dense.weight)
    reviews = TokenizedReviews(bench.splits.test, tokenizer, 48)
    assert model(**reviews.batch(np.arange(4))).loss.shape == ()


def test_a_folder_of_metalib_whose_head_does_not_fit_is_broken(bench, tmp_path):
    folder = save_checkpoint("bert", bench, tmp_path)
    (folder / "metalib.json").write_text("{}")
    with pytest.raises(BadInput, match="cannot be opened as a model"):
        load_model(str(folder), [], ["a", "b", "c"], max_length=48)


def test_freezing_more_layers_than_there_are_is_refused():
    with pytest.raises(BadInput, match=r"frozen_layers=3.*lower it"):
        load_model("tiny", TEXTS, LABELS, frozen_layers=3, max_length=48)


def test_layers_that_share_their_weights_cannot_be_frozen_alone(bench, tmp_path):
    folder = save_checkpoint("albert", bench, tmp_path)
    with pytest.raises(BadInput, match=r"frozen_layers=1: the layers of Albert\w+ share their weights"):
        load_model(str(folder), [], LABELS, frozen_layers=1, max_length=48)
    load_model(str(folder), [], LABELS, max_length=48)


def test_a_decoders_head_looks_for_the_tokenizers_padding(bench, tmp_path):
    config = GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=len(bench.tokenizer), pad_token_id=3, num_labels=2)
    GPT2ForSequenceClassification(config).save_pretrained(tmp_path)
    bench.tokenizer.save_pretrained(tmp_path)
    model, tokenizer = load_model(str(tmp_path), [], LABELS, max_length=48)
    assert model.config.pad_token_id == tokenizer.pad_token_id == 0
    reviews = TokenizedReviews.in_memory(TEXTS, tokenizer, 48, "cpu", [0, 1, 0])
    alone = torch.cat([reviews.logits(model, np.array([row])) for row in range(3)])
    torch.testing.assert_close(reviews.logits(model, np.arange(3)), alone)


def test_a_model_that_is_padded_at_the_beginning_is_refused(bench, tmp_path):
    config = XLNetConfig(d_model=16, n_layer=1, n_head=2, d_inner=16, vocab_size=len(bench.tokenizer))
    XLNetForSequenceClassification(config).save_pretrained(tmp_path)
    bench.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(BadInput, match="XLNet is padded at the beginning"):
        load_model(str(tmp_path), [], LABELS, max_length=48)


def test_positions_that_start_behind_the_padding_are_counted(bench, tmp_path):
    model, tokenizer = load_model(str(save_checkpoint("roberta", bench, tmp_path)), [], LABELS, max_length=48)
    tokenizer.model_max_length = 10**6
    assert longest_input(model, tokenizer) == model.config.max_position_embeddings - 1 == 67


def test_an_unknown_model_is_named_with_the_remedy(offline):
    with pytest.raises(BadInput, match=r"model 'nobody/no-such-model'.*HF_HUB_OFFLINE.*downloaded.*--model tiny"):
        load_model("nobody/no-such-model", TEXTS, LABELS)


def test_a_folder_that_is_no_model_is_refused(tmp_path, offline):
    with pytest.raises(BadInput, match=r"the folder cannot be opened as a model.*--model tiny") as error:
        load_model(str(tmp_path), TEXTS, LABELS)
    assert str(tmp_path) in str(error.value)


def test_a_tokenizer_without_its_vocabulary_is_refused(bench, tmp_path):
    folder = save_checkpoint("bert", bench, tmp_path)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(BadInput, match=r"its tokenizer knows no word — its tokenizer\.json, or vocabulary, is missing"):
        load_model(str(folder), TEXTS, LABELS)


def test_a_checkpoint_is_found_in_the_home_folder(bench, tmp_path, monkeypatch):
    save_checkpoint("bert", bench, tmp_path / "mine")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_model("~/mine", TEXTS, LABELS, max_length=16)[0].config.model_type == "bert"


def test_texts_longer_than_the_model_reads_are_refused(bench, tmp_path):
    folder = save_checkpoint("bert", bench, tmp_path)  # its tokenizer says 48
    load_model(str(folder), [], LABELS, max_length=48)
    with pytest.raises(BadInput, match=r"max_length=49.*at most 48 tokens — lower it"):
        load_model(str(folder), [], LABELS, max_length=49)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_other_architectures_load_adapt_and_do_not_read_their_padding(bench, tmp_path, kind):
    model, tokenizer = load_model(str(save_checkpoint(kind, bench, tmp_path)), [], LABELS, max_length=48)
    weights = Weights(model)
    assert len(weights) == sum(parameter.numel() for parameter in model.parameters())
    reviews = TokenizedReviews(bench.splits.test, tokenizer, 48)
    rows = np.concatenate([reviews.lengths.argsort()[:5], reviews.lengths.argsort()[-5:]])
    loop = InnerLoop(steps=10, lr=1e-3, batch_size=10)
    with untouched(model, weights) as theta:
        losses = adapt(model, weights, reviews, rows, loop)
        together = reviews.logits(model, rows)
        alone = torch.cat([reviews.logits(model, rows[[place]]) for place in range(len(rows))])
        assert losses[-1] < losses[0]
        assert together.std(dim=0).min() > 0.1  # there is something to tell apart
        torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    assert torch.equal(weights.flat, theta)


def test_a_batch_is_padded_to_its_own_longest_review(bench):
    reviews = bench.reviews["test"]
    short = reviews.lengths.argsort()[:3][::-1]
    batch = reviews.batch(short)
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (3, reviews.lengths[short].max())
    assert reviews.lengths[short].max() < reviews.lengths.max()
    for place, row in enumerate(short):
        length = reviews.lengths[row]
        text = bench.splits.test["text"][int(row)]
        assert batch["input_ids"][place, :length].tolist() == bench.tokenizer(text)["input_ids"]
        assert batch["attention_mask"][place].tolist() == [1] * length + [0] * (batch["input_ids"].shape[1] - length)
        assert (batch["input_ids"][place, length:] == bench.tokenizer.pad_token_id).all()
    assert batch["labels"].tolist() == [bench.splits.test["label"][int(row)] for row in short]


def test_reviews_longer_than_max_length_are_cut(bench):
    reviews = TokenizedReviews(bench.splits.test, bench.tokenizer, 16)
    assert reviews.lengths.max() == 16
    assert all(tokens[-1] == bench.tokenizer.sep_token_id for tokens in reviews.tokens)


@pytest.mark.parametrize("training", [False, True])
def test_logits_keep_the_order_and_do_not_depend_on_batch_size_or_mode(bench, training):
    reviews, model = bench.reviews["test"], bench.model
    bench.weights.flat.mul_(3)  # logits that differ clearly from review to review
    rows = np.random.default_rng(0).permutation(len(reviews.labels))[:20]
    batch = reviews.batch(rows)
    batch.pop("labels")
    with torch.no_grad():
        expected = model(**batch).logits
    model.train(training)
    assert len({f"{value:.3f}" for value in expected[:, 0]}) > 10
    torch.testing.assert_close(reviews.logits(model, rows), expected, rtol=1e-4, atol=1e-5)
    for batch_size in (1, 7, 64):
        logits = reviews.compute(model, rows, lambda m, inputs: m(**inputs).logits, batch_size)
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
        assert model.training == training


def test_the_tokenised_reviews_are_found_again_whatever_the_order_of_the_vocabulary(reviews, tmp_path, monkeypatch):
    """Each process lists the entries of a tokenizer in another order."""
    monkeypatch.setattr(models.config, "HF_DATASETS_CACHE", tmp_path)
    tokenizer = train_tokenizer(reviews["text"][:])
    first = TokenizedReviews(reviews, tokenizer, 48)
    entries = tokenizer.get_vocab()
    monkeypatch.setattr(type(tokenizer), "get_vocab", lambda self: dict(reversed(entries.items())))
    second = TokenizedReviews(reviews, tokenizer, 48)
    assert len(list((tmp_path / "metalib").iterdir())) == 1
    assert all(np.array_equal(a, b) for a, b in zip(first.tokens, second.tokens, strict=True))


def test_another_rule_of_the_tokenizer_is_not_answered_from_the_cache(reviews, tmp_path, monkeypatch):
    monkeypatch.setattr(models.config, "HF_DATASETS_CACHE", tmp_path)
    tokenizer = train_tokenizer(reviews["text"][:])
    first = TokenizedReviews(reviews, tokenizer, 48)
    tokenizer.backend_tokenizer.normalizer = BertNormalizer(lowercase=False)  # the vocabulary stays as it is
    second = TokenizedReviews(reviews, tokenizer, 48)
    assert any(not np.array_equal(a, b) for a, b in zip(first.tokens, second.tokens, strict=True))


@pytest.mark.parametrize("kept", [0, 10, 0.5, -5])
def test_tokenised_reviews_that_were_cut_short_are_made_again(reviews, tmp_path, monkeypatch, kept):
    monkeypatch.setattr(models.config, "HF_DATASETS_CACHE", tmp_path)
    tokenizer = train_tokenizer(reviews["text"][:])
    whole = TokenizedReviews(reviews, tokenizer, 48)
    (file,) = (tmp_path / "metalib").iterdir()
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * kept) if isinstance(kept, float) else kept])
    again = TokenizedReviews(reviews, tokenizer, 48)
    assert all(np.array_equal(a, b) for a, b in zip(whole.tokens, again.tokens, strict=True))


def test_a_cache_that_cannot_be_written_is_named(reviews, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(models.config, "HF_DATASETS_CACHE", tmp_path / "file")
    with pytest.raises(BadInput, match=r"cannot be written.*set HF_HOME to a folder with room"):
        TokenizedReviews(reviews, train_tokenizer(reviews["text"][:]), 48)
