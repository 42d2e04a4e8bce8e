"""The fast path gives the numbers of the plain one."""

import copy
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial

import numpy as np
import pytest
import torch
from transformers import (
    AlbertConfig,
    AutoModelForSequenceClassification,
    BertConfig,
    DistilBertConfig,
    PreTrainedConfig,
    PreTrainedModel,
    RobertaConfig,
)

from metalib import fast
from metalib.inner import InnerLoop, adapt, forward_backward, untouched
from metalib.models import TINY, TokenizedReviews
from metalib.parts import add_lora, merge_lora, word_table
from metalib.weights import Weights

SIZES = {"vocab_size": 60, "max_position_embeddings": 40, "num_labels": 3, **TINY}
DISTILLED = {"vocab_size": 60, "max_position_embeddings": 40, "num_labels": 3, "dim": 64, "n_layers": 2, "n_heads": 4,
             "hidden_dim": 128}  # fmt: skip
CONFIGS = {
    "bert": BertConfig(**SIZES),
    "roberta": RobertaConfig(**SIZES),
    "distilbert": DistilBertConfig(**DISTILLED),
}
LENGTHS = [(7, 7, 7), (9, 2, 5), (30, 3), (4,)]


def make(config: PreTrainedConfig) -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_config(copy.deepcopy(config)).eval()


def batch_of(lengths: tuple[int, ...]) -> dict[str, torch.Tensor]:
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    ids = torch.randint(5, 60, mask.shape, generator=torch.Generator().manual_seed(1))
    padding = 1
    return {"input_ids": torch.where(mask > 0, ids, padding), "attention_mask": mask,
            "labels": torch.arange(len(lengths)) % 3}  # fmt: skip


def gradient(model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and the gradient of the loss, both flat."""
    model.zero_grad()
    found = model(**batch)
    found.loss.backward()
    gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return found.logits.detach(), torch.cat(gradients)


def test_a_padding_word_that_no_text_has_takes_no_other_words_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast, "WORTH_IT", 0)
    model = make(CONFIGS["bert"])  # its padding is word 0
    weights = Weights(model)
    for words, padding in (([0, 2, 5], 0), ([2, 5], None)):
        moving = fast.Moving(model, weights, list(weights.slices), lambda: torch.tensor(words))  # noqa: B023
        assert moving.padding == padding


@pytest.mark.parametrize("attend", ["text_by_text", "all_at_once"])
@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_a_packed_model_has_the_same_logits_and_gradients(name, lengths, attend, monkeypatch):
    monkeypatch.setattr(fast, "text_by_text", getattr(fast, attend))
    model, batch = make(CONFIGS[name]), batch_of(lengths)
    logits, slope = gradient(model, batch)
    assert fast.pack(model)
    packed_logits, packed_slope = gradient(model, batch)
    torch.testing.assert_close(packed_logits, logits, rtol=1e-5, atol=1e-6)
    assert (packed_slope - slope).norm() <= 1e-5 * slope.norm()


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_more_room_than_tokens_changes_nothing(name, lengths, monkeypatch):
    monkeypatch.setattr(fast, "text_by_text", fast.all_at_once)
    lengths = tuple(sorted(lengths, reverse=True))  # so that the last place is padding
    model, batch = make(CONFIGS[name]), batch_of(lengths)
    logits, slope = gradient(model, batch)
    assert fast.pack(model)
    token = fast.ROOM.set(min(sum(lengths) + 3, len(lengths) * max(lengths)))
    roomy_logits, roomy_slope = gradient(model, batch)
    fast.ROOM.reset(token)
    torch.testing.assert_close(roomy_logits, logits, rtol=1e-5, atol=1e-6)
    assert (roomy_slope - slope).norm() <= 1e-5 * slope.norm()


def test_a_batch_in_the_shape_of_a_recording_has_the_same_gradient(bench):
    rows, reviews, slopes = np.arange(7), bench.reviews["train"], []
    recorded = partial(fast.Recorder().play, parameters=list(bench.model.parameters()))
    for play in (fast.play, recorded):
        bench.weights.grad.zero_()
        loss = play(forward_backward, bench.model, reviews, rows, 0.5)
        slopes.append((loss, bench.weights.grad.clone()))
    torch.testing.assert_close(slopes[1][0], slopes[0][0])
    assert (slopes[1][1] - slopes[0][1]).norm() <= 1e-5 * slopes[0][1].norm()


def test_a_recording_that_fails_leaves_no_recording_behind(bench, monkeypatch):
    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    for name in ("graph", "stream"):
        monkeypatch.setattr(torch.cuda, name, lambda *_, **named: nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: None)
    recorder, other, calls = fast.Recorder(), fast.Recorder(), []
    other.recordings[("another model's",)] = (object(), {}, torch.zeros(()))
    monkeypatch.setattr(fast, "RECORDERS", {torch.nn.Linear(1, 1): other})

    def passes(model, inputs, share):
        calls.append(share)
        if len(calls) == 2:
            raise RuntimeError("not while a GPU records")
        return torch.ones(())

    for _ in range(3):
        assert recorder.play(passes, bench.model, bench.reviews["train"], np.arange(3), 1.0, []) == 1
    assert len(calls) == 4  # computed, not recorded, computed, computed
    assert not recorder.works
    assert not recorder.recordings and not other.recordings


def tokens_seen(model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> int:
    """Tokens that the first linear layer of the encoder's layers computes."""
    counts: list[int] = []
    layer = next(m for n, m in model.base_model.named_modules() if isinstance(m, torch.nn.Linear) and ".0." in n)
    handle = layer.register_forward_hook(lambda layer, given, output: counts.append(output[..., 0].numel()))
    model(**batch)
    handle.remove()
    return counts[0]


@pytest.mark.parametrize("name", CONFIGS)
def test_the_layers_of_a_packed_model_see_no_padding(name):
    model, batch = make(CONFIGS[name]), batch_of((30, 3, 5))
    assert tokens_seen(model, batch) == 90
    fast.pack(model)
    assert tokens_seen(model, batch) == 38


def test_a_model_that_cannot_be_packed_stays_as_it_was(monkeypatch):
    model, batch = make(AlbertConfig(**SIZES, embedding_size=16)), batch_of((9, 2, 5))
    before = gradient(model, batch)
    monkeypatch.setattr(fast.Padding, "take_out", lambda self, padded: padded.flatten(0, 1)[self.places.flip(0)][None])
    assert not fast.pack(model)
    assert all(torch.equal(a, b) for a, b in zip(before, gradient(model, batch), strict=True))
    bert = make(CONFIGS["bert"])
    before = gradient(bert, batch)
    assert not fast.pack(bert)
    assert bert.config._attn_implementation == "sdpa"
    assert all(torch.equal(a, b) for a, b in zip(before, gradient(bert, batch), strict=True))


def test_packing_leaves_other_attention_alone_and_is_not_saved(tmp_path):
    model, batch = make(CONFIGS["bert"]), batch_of((9, 2, 5))
    expected = gradient(model, batch)
    fast.pack(model)
    model.set_attn_implementation("eager")  # as MAML does, to differentiate twice
    for found, wanted in zip(gradient(model, batch), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)
    model.set_attn_implementation(fast.PACKED)
    model.save_pretrained(tmp_path)
    assert fast.PACKED not in (tmp_path / "config.json").read_text()
    opened = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    torch.testing.assert_close(opened(**batch).logits, expected[0], rtol=1e-5, atol=1e-6)


def test_a_packed_model_with_lora_can_be_merged():
    model, batch = make(CONFIGS["bert"]), batch_of((9, 2, 5))
    fast.pack(model)
    add_lora(model, 2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(0, 0.1)
        model.eval()
        torch.testing.assert_close(merge_lora(model)(**batch).logits, model(**batch).logits, rtol=1e-4, atol=1e-5)


def phi(bench, loop: InnerLoop, support: np.ndarray, looks: list | None = None) -> torch.Tensor:
    """(P,) the weights after an inner loop; `looks` collects logits of other texts on the way."""
    reviews: TokenizedReviews = bench.reviews["train"]

    def look(step: int) -> None:
        if looks is not None:
            looks.append(reviews.logits(bench.model, np.arange(200, 220)))

    with untouched(bench.model, bench.weights):
        adapt(bench.model, bench.weights, reviews, support, loop, (0, 1), look)
        return bench.weights.snapshot()


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("adapts", ["all", "bias"])
@pytest.mark.parametrize("dropout", [False, True])
def test_word_rows_change_nothing(bench, monkeypatch, optimizer, adapts, dropout):
    loop = InnerLoop(steps=4, lr=0.01, batch_size=5, optimizer=optimizer, dropout=dropout, adapts=adapts)
    support, used = np.arange(12), []
    with monkeypatch.context() as patch:
        patch.setattr(fast, "WORTH_IT", 10**12)
        whole_looks: list = []
        whole = phi(bench, loop, support, whole_looks)
    monkeypatch.setattr(fast, "WORTH_IT", 0)
    look_up: Callable = fast.Moving.look_up
    monkeypatch.setattr(fast.Moving, "look_up", lambda self, ids: used.append(len(self.words)) or look_up(self, ids))
    looks: list = []
    rows = phi(bench, loop, support, looks)
    assert bool(used) == (adapts == "all")
    assert torch.equal(rows, whole)
    assert len(looks) == 5 and all(torch.equal(a, b) for a, b in zip(looks, whole_looks, strict=True))
    assert torch.equal(bench.weights.flat, bench.theta_0)
    assert "forward" not in vars(bench.model.get_input_embeddings())


def test_word_rows_are_put_away_where_the_inner_loop_breaks(bench, monkeypatch):
    monkeypatch.setattr(fast, "WORTH_IT", 0)

    def broken(*given, **named):
        raise RuntimeError("broken")

    monkeypatch.setattr("metalib.inner.add_gradient", broken)
    with pytest.raises(RuntimeError, match="broken"):
        phi(bench, InnerLoop(2, 0.01, 5), np.arange(12))
    assert "forward" not in vars(bench.model.get_input_embeddings())
    assert torch.equal(bench.weights.flat, bench.theta_0)


def test_word_rows_are_put_away_where_a_look_on_the_way_breaks(bench, monkeypatch):
    monkeypatch.setattr(fast, "WORTH_IT", 0)

    def look(step: int) -> None:
        if step:
            raise RuntimeError("broken")

    loop = InnerLoop(2, 0.01, 5)
    with pytest.raises(RuntimeError, match="broken"), untouched(bench.model, bench.weights):
        adapt(bench.model, bench.weights, bench.reviews["train"], np.arange(12), loop, (0,), look)
    assert "forward" not in vars(bench.model.get_input_embeddings())
    assert torch.equal(bench.weights.flat, bench.theta_0)


def test_words_shared_with_another_module_are_not_taken_apart(bench):
    model = make(CONFIGS["bert"])
    names = [name for name, _ in model.named_parameters()]
    assert word_table(model, names)[0] == "bert.embeddings.word_embeddings.weight"
    assert word_table(model, [name for name in names if "word" not in name]) == ("", None)
    model.tied = torch.nn.Linear(64, 60)
    model.tied.weight = model.get_input_embeddings().weight
    assert word_table(model, [name for name, _ in model.named_parameters()]) == ("", None)


def test_a_vector_is_used_again_only_after_it_was_given_back():
    weights = Weights(torch.nn.Linear(3, 2))
    first, second = weights.vector(), weights.vector()
    assert first.data_ptr() != second.data_ptr()
    weights.give_back(first)
    weights.give_back(first)
    assert weights.vector().data_ptr() == first.data_ptr()
    third = weights.vector()
    assert third.data_ptr() not in (first.data_ptr(), second.data_ptr())
    weights.give_back(weights.flat)
    assert weights.vector().data_ptr() != weights.flat.data_ptr()


def test_a_checkpoint_is_packed_and_the_tiny_model_is_not(bench, tmp_path):
    from metalib.models import load_model

    assert bench.model.config._attn_implementation == "sdpa"
    bench.model.save_pretrained(tmp_path)
    bench.tokenizer.save_pretrained(tmp_path)
    model, _ = load_model(str(tmp_path), [], ["negative", "positive"], max_length=bench.config.max_length)
    assert model.config._attn_implementation == fast.PACKED


def test_a_vector_that_nobody_has_any_more_is_forgotten():
    weights = Weights(torch.nn.Linear(3, 4))
    for _ in range(3):
        weights.vector()  # thrown away: another tensor may soon stand at its address
    weights.give_back(torch.zeros(len(weights)))
    assert not weights._spare and not len(weights._lent)
