"""What a meta-step costs: parameters and operations counted, sums and shares by their formulas."""

from math import ceil
from pathlib import Path

import pytest
from transformers import BertConfig, BertForSequenceClassification, GPT2Config

from metalib.__main__ import main
from metalib.config import Config
from metalib.costs import Cost, cost_of, costs_table
from metalib.errors import BadInput

PUBLISHED = {"albert-base": 11.7e6, "albert-xxlarge": 222.6e6, "bert-base": 109.5e6, "bert-large": 335.1e6}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_those_of_the_published_models(name):
    """With a head for two classes: google-bert/bert-base-uncased has 109,482,240 without it, albert-base 11,683,584."""
    assert cost_of(name, Config()).parameters == pytest.approx(PUBLISHED[name], rel=0.01)


def test_counts_of_bert_base_to_the_last_one():
    assert cost_of("bert-base", Config()).parameters == 109_482_240 + 2 * 768 + 2
    assert cost_of("albert-base", Config()).parameters == 11_683_584 + 2 * 768 + 2


def test_operations_are_about_six_per_weight_and_token_and_albert_uses_its_weights_twelve_times():
    config = Config(inner_steps=1, inner_batch=10, max_length=128)
    encoder = 12 * (4 * 768 * 768 + 2 * 768 * 3072)
    for name in ("bert-base", "albert-base"):
        assert cost_of(name, config).flops == pytest.approx(6 * encoder * 10 * 128, rel=0.1)
    assert cost_of("bert-base", Config(inner_steps=7, inner_batch=10)).flops == 7 * cost_of("bert-base", config).flops


def test_frozen_layers_are_not_sent():
    whole, part = (cost_of("bert-base", Config(frozen_layers=n)) for n in (0, 6))
    assert part.parameters < 0.5 * whole.parameters and part.flops < whole.flops


def test_sent_is_the_vector_of_the_reduction():
    cost = cost_of("bert-base", Config(meta_batch=64))
    assert cost.sent == 8 * (cost.parameters + 2 * 64)


def test_ring_all_reduce_by_hand():
    cost = Cost(parameters=0, flops=0, sent=1_000_000_000)  # 8 Gbit
    assert cost.sending_seconds(1, 10) == 0
    assert cost.sending_seconds(2, 10) == pytest.approx(0.8)  # each GPU sends its half and the sum of its half
    assert cost.sending_seconds(8, 10) == pytest.approx(1.4)
    assert cost.sending_seconds(8, 25) == pytest.approx(1.4 / 2.5)


def test_busy_by_hand():
    cost = Cost(parameters=0, flops=0, sent=1_000_000_000)
    assert cost.busy(1, 64, 1.0, 10) == 1
    assert cost.busy(2, 64, 1.0, 10) == pytest.approx(32 / 32.8)
    assert cost.busy(3, 64, 1.0, 1e9) == pytest.approx((64 / 3) / 22)  # 22, 21 and 21 tasks
    assert cost.most_gpus(64, 1.0, 1e9) == 64
    most = cost.most_gpus(64, 1.0, 10)
    assert (64 / most) / (ceil(64 / most) + cost.sending_seconds(most, 10)) >= 0.9
    assert all((64 / n) / (ceil(64 / n) + cost.sending_seconds(n, 10)) < 0.9 for n in range(most + 1, 65))


def test_one_gpu_is_always_busy():
    assert Cost(parameters=0, flops=0, sent=10**12).most_gpus(64, 1e-6, 10) == 1


def test_a_folder_with_a_checkpoint(tmp_path):
    small = BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, vocab_size=50)
    model = BertForSequenceClassification(small)
    model.save_pretrained(tmp_path / "small")
    cost = cost_of(str(tmp_path / "small"), Config())
    assert cost.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert "| small |" in costs_table(Config(), [str(tmp_path / "small")], 50)


@pytest.mark.parametrize("harm", ["not there", "no config", "broken config"])
def test_models_that_cannot_be_opened(tmp_path, harm, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = tmp_path / "model"
    if harm != "not there":
        folder.mkdir()
    if harm == "broken config":
        (folder / "config.json").write_text("{")
    with pytest.raises(BadInput, match=r"model '.*model'.*take a checkpoint's folder, or one of albert-base"):
        cost_of(str(folder), Config())


def test_the_table_in_results_is_what_the_command_says(capsys):
    assert main(["cost", "albert-base", "albert-xxlarge", "bert-base", "bert-large"]) == 0
    assert (Path(__file__).parent.parent / "results" / "costs.md").read_text() == capsys.readouterr().out


def test_what_a_model_cannot_be_counted_with(capsys, tmp_path):
    assert main(["cost", "bert-base", "--max-length", "1024"]) == 2
    assert "max_length=1024: model 'bert-base' reads at most 512 tokens — lower it" in capsys.readouterr().err
    GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=50).save_pretrained(tmp_path / "decoder")
    with pytest.raises(BadInput, match=r"decoder': Cannot handle batch sizes > 1 if no padding token"):
        cost_of(str(tmp_path / "decoder"), Config(max_length=16))


def test_measured_seconds_and_wrong_settings(capsys):
    assert main(["cost", "bert-base", "--task-seconds", "0.5"]) == 0
    assert "as measured" in capsys.readouterr().out
    assert main(["cost", "bert-base", "--meta-batch", "0"]) == 2
    assert "meta_batch is 0" in capsys.readouterr().err
    assert main(["cost", "bert-base", "--tflops", "0"]) == 2
    assert "tflops is 0.0 — give a number above 0" in capsys.readouterr().err
