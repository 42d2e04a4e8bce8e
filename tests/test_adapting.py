"""From a run and one's own examples to a folder that classifies: all learners, other classes, and what is refused."""

import csv
import json
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from scipy import stats
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GPT2Config,
    GPT2ForSequenceClassification,
    pipeline,
)
from transformers.utils import logging as transformers_logging

import metalib
from metalib import adapting, estimates, runs
from metalib.__main__ import main
from metalib.config import Config, write_config
from metalib.errors import BadInput, MetalibError, NotFinite
from metalib.examples import load_examples
from metalib.folders import start_folder
from metalib.learners import LEARNERS
from metalib.models import TokenizedReviews
from metalib.predicting import open_model
from metalib.processes import make_accelerator
from metalib.reviews import Splits
from metalib.tasks import Task, TaskSampler
from metalib.training import Workbench, prepare

MakeRun = Callable[..., tuple[Path, Workbench]]
TEXTS = ["a superb and sturdy lamp", "it broke after a week, awful", "fine"]
SGD = ("inner_optimizer=sgd", "inner_lr=0.1", "adapt_lr=0.1")


@pytest.fixture(scope="session")
def make_run(config: Config, splits: Splits, tmp_path_factory: pytest.TempPathFactory) -> MakeRun:
    """Make a run of two meta-steps as `train` leaves it, but for its test and its report; each once."""
    made: dict[Any, tuple[Path, Workbench]] = {}

    def make(name: str = "reptile", **settings: Any) -> tuple[Path, Workbench]:
        key = (name, *settings.items())
        if key not in made:
            own = tuple(f"{name}.{setting}" for setting in SGD) if name in ("maml", "anil") else ()
            steps = 0 if name == "finetuned" else 2
            run = replace(config, learner=name, baselines=(), meta_steps=steps, validations=0, own=own, **settings)
            folder = tmp_path_factory.mktemp(name)
            bench = prepare(run, splits, make_accelerator())
            start_folder(folder, run)
            thetas = runs.train_learners(bench, folder)
            runs.trained_learner(bench, thetas).save(folder / "model")
            bench.tokenizer.save_pretrained(folder / "model")
            bench.weights.restore(thetas[name])
            made[key] = folder, bench
        return made[key]

    return make


@pytest.fixture(scope="session")
def mine(splits: Splits, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`two.csv`: 6 negative and 8 positive texts; `three.jsonl`: 4 texts of each of three kinds."""
    folder = tmp_path_factory.mktemp("mine")
    texts, labels = splits.test["text"][:], np.asarray(splits.test["label"][:])
    rows = [*np.flatnonzero(labels == 1)[:8], *np.flatnonzero(labels == 0)[:6]]
    write_csv(folder / "two.csv", [(texts[row], ["negative", "positive"][labels[row]]) for row in rows])
    lines = [{"words": texts[row], "kind": ["tall", "wide", "deep"][row % 3]} for row in range(12)]
    (folder / "three.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture(autouse=True)
def few_folds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimates, "FOLDS", 2)
    monkeypatch.setattr(estimates, "REPEATS", 1)


def write_csv(path: Path, rows: list[tuple[str, str]]) -> Path:
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label"), *rows])
    return path


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# All learners


@pytest.mark.parametrize("name", LEARNERS)
def test_adapt_and_predict(name: str, make_run: MakeRun, mine: Path, tmp_path: Path, capsys: Any) -> None:
    run, bench = make_run(name)
    out = tmp_path / "out"
    assert main(["adapt", str(run), "--data", str(mine / "two.csv"), "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "Cross-validation on the examples (2 folds, 1 times)" in shown
    assert "adapted − not adapted" in shown and str(out) in shown
    facts = read(out / "metalib.json")
    assert (facts["learner"], facts["fresh_head"], facts["data"]) == (name, False, "two.csv")
    assert facts["examples"] == {"negative": 6, "positive": 8} and facts["test"] is None
    card = ModelCard.load(out / "README.md")
    assert name in card.data.tags and "two.csv" in card.text and "| negative | 6 |" in card.text

    assert main(["predict", str(out), *TEXTS]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["text"] for line in lines] == TEXTS
    for line in lines:
        assert list(line["scores"]) == ["negative", "positive"] and sum(line["scores"].values()) == pytest.approx(1)
        assert line["score"] == line["scores"][line["label"]] == max(line["scores"].values())

    # the same as the run's own learner, adapted where it was trained
    learner = runs.trained_learner(bench, {name: runs.final_theta(run, bench.config, name)})
    bench.weights.restore(runs.final_theta(run, bench.config, name))
    examples = load_examples(mine / "two.csv")
    reviews = TokenizedReviews.in_memory([*examples["text"], *TEXTS], bench.tokenizer, 48, "cpu",
                                         [*examples["label"], 0, 0, 0])  # fmt: skip
    learner.fit(reviews, np.arange(14), (0,))
    expected = learner.logits(reviews, np.arange(14, 17)).softmax(-1)
    torch.testing.assert_close(torch.tensor([list(line["scores"].values()) for line in lines]), expected,
                               rtol=0, atol=1e-5)  # fmt: skip
    if LEARNERS[name].is_classifier:
        assert_opens_in_transformers(out, lines)


def assert_opens_in_transformers(folder: Path, lines: list[dict[str, Any]]) -> None:
    found = pipeline("text-classification", model=str(folder), top_k=None)(TEXTS, truncation=True)
    assert [each[0]["label"] for each in found] == [line["label"] for line in lines]
    for each, line in zip(found, lines, strict=True):
        assert {one["label"]: one["score"] for one in each} == pytest.approx(line["scores"], abs=1e-5)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model, wrong = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    assert not any(wrong.values()) and tokenizer.model_max_length == 48
    with torch.no_grad():
        scores = model(**tokenizer(TEXTS, padding=True, return_tensors="pt")).logits.softmax(-1)
    torch.testing.assert_close(scores, torch.tensor([list(line["scores"].values()) for line in lines]),
                               rtol=0, atol=1e-5)  # fmt: skip


@pytest.mark.parametrize("name", ["reptile", "anil", "protonet", "matching", "siamese", "relation"])
def test_three_classes_of_ones_own(name: str, make_run: MakeRun, mine: Path, tmp_path: Path, caplog: Any) -> None:
    run, _ = make_run(name)
    caplog.set_level("INFO")
    out = metalib.adapt(run, mine / "three.jsonl", tmp_path / "out", text_column="words", label_column="kind")
    facts, card = read(out / "metalib.json"), (out / "README.md").read_text()
    assert facts["fresh_head"] and list(facts["cross_validation"]["methods"]) == ["adapted", "majority"]
    assert "not those of the meta-training (negative, positive)" in caplog.text
    for said in (caplog.text, card):
        assert ("fresh head" in said) == (name in ("reptile", "anil"))
    lines = list(metalib.predict(out, TEXTS))
    assert all(list(line["scores"]) == ["deep", "tall", "wide"] for line in lines)
    if LEARNERS[name].is_classifier:
        assert_opens_in_transformers(out, lines)


# ONNX

EXPORT = Path(__file__).resolve().parent.parent / "examples" / "export_onnx.py"


@pytest.mark.parametrize(("name", "file"), [("reptile", "two.csv"), ("protonet", "three.jsonl")])
def test_logits_of_onnx_are_the_models(name: str, file: str, make_run: MakeRun, mine: Path, tmp_path: Path) -> None:
    columns = {"text_column": "words", "label_column": "kind"} if file == "three.jsonl" else {}
    out = metalib.adapt(make_run(name)[0], mine / file, tmp_path / "out", **columns)
    example = runpy.run_path(str(EXPORT))
    model, tokenizer = example["load"](str(out))
    example["export"](model, tokenizer, str(tmp_path / "model.onnx"))
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["model.onnx"]  # weights inside
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    longest = "the " * 60  # cut to 48 tokens
    for texts in (["x"], TEXTS[:1], TEXTS[:2], TEXTS, [longest], [longest, "x", *TEXTS], [*TEXTS, longest] * 9):
        inputs = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        with torch.no_grad():
            expected = model(**inputs).logits
        logits = example["classify"](session, tokenizer, texts)
        assert logits.shape == (len(texts), model.config.num_labels)
        torch.testing.assert_close(torch.tensor(logits), expected, rtol=0, atol=1e-4)


def test_the_export_from_the_command_line(make_run: MakeRun, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    folder, file = make_run()[0] / "model", tmp_path / "model.onnx"
    monkeypatch.setattr(sys, "argv", ["export_onnx.py", str(folder), str(file), *TEXTS])
    runpy.run_path(str(EXPORT), run_name="__main__")
    expected = [f"{line['label']} ({line['score']:.2f}): {line['text']}" for line in metalib.predict(folder, TEXTS)]
    assert capsys.readouterr().out.splitlines() == expected


@pytest.mark.parametrize("name", ["matching", "siamese", "relation"])
def test_an_encoder_that_compares_is_not_exported(name: str, make_run: MakeRun) -> None:
    with pytest.raises(SystemExit, match="holds no classifier, so there is nothing to export: a learner that compares"):
        runpy.run_path(str(EXPORT))["load"](str(make_run(name)[0] / "model"))


# The run


@pytest.mark.parametrize("settings", [{}, {"adapt": "lora", "frozen_layers": 1}], ids=["plain", "lora, frozen"])
def test_a_run_is_opened_at_its_trained_theta_from_its_folder_alone(make_run: MakeRun, settings: Any) -> None:
    run, bench = make_run("reptile", **settings)
    theta = runs.final_theta(run, bench.config, "reptile")
    bench.weights.restore(theta)
    start = adapting.open_run(run, theta, ["negative", "positive"], 0, bench.config)
    assert torch.equal(start.learner.weights.flat, theta)
    rows = np.arange(20)
    expected = bench.reviews["test"].logits(bench.model, rows)
    torch.testing.assert_close(bench.reviews["test"].logits(start.learner.model, rows), expected, rtol=0, atol=1e-6)


def test_a_run_can_be_predicted_with_as_it_is(make_run: MakeRun) -> None:
    lines = metalib.predict(make_run("matching")[0] / "model", TEXTS)
    assert {line["label"] for line in lines} <= {"negative", "positive"}
    with pytest.raises(BadInput, match="is a run folder — give the folder of `metalib adapt`"):
        metalib.predict(make_run()[0], TEXTS)


# Labels


@pytest.mark.parametrize(
    ("names", "order"),
    [
        (["negative", "positive"], [0, 1]), (["positive", "negative"], [1, 0]), (["Negative", " POSITIVE"], [0, 1]),
        (["0", "1"], [0, 1]), (["1", "0"], [1, 0]), (["negative", "neutral"], None), (["bad", "good"], None),
        (["negative", "neutral", "positive"], None), (["-1", "1"], None),
    ],
)  # fmt: skip
def test_which_classes_are_the_same(names: list[str], order: list[int] | None) -> None:
    assert adapting.order_of(names, ["negative", "positive"]) == order


OWN = [
    ({"own": ("reptile.micro_batch=4",), "baselines": ("joint", "protonet")}, ""),
    ({"inner_optimizer": "sgd", "own": ("reptile.inner_optimizer=adam",), "baselines": ("maml",)}, ""),
    ({"adapt": "lora", "own": ("reptile.adapt=all",), "baselines": ("finetuned",)}, ".lora_A."),
]


@pytest.mark.parametrize("settings, there", OWN)
def test_what_the_learner_has_of_its_own_is_not_taken_for_its_baselines(
    config: Config, splits: Splits, mine: Path, tmp_path: Path, settings: Any, there: str
) -> None:
    run = replace(config, meta_steps=1, validations=0, **settings)
    bench = prepare(run, splits, make_accelerator())
    start_folder(tmp_path / "run", run)
    thetas = runs.train_learners(bench, tmp_path / "run")
    assert any(there in name for name in bench.weights.slices)
    runs.trained_learner(bench, thetas).save(tmp_path / "run" / "model")
    bench.tokenizer.save_pretrained(tmp_path / "run" / "model")
    out = metalib.adapt(tmp_path / "run", mine / "two.csv", tmp_path / "out")
    assert next(iter(metalib.predict(out, TEXTS)))["label"] in ("negative", "positive")


def test_a_head_without_a_bias(config: Config, splits: Splits, mine: Path, tmp_path: Path, make_run: MakeRun) -> None:
    """As decoders have it."""
    tokenizer, encoder = make_run()[1].tokenizer, tmp_path / "encoder"
    size = GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id)
    GPT2ForSequenceClassification(size).save_pretrained(encoder)
    tokenizer.save_pretrained(encoder)
    run = replace(config, model=str(encoder), meta_steps=1, validations=0, baselines=())
    bench = prepare(run, splits, make_accelerator())
    start_folder(tmp_path / "run", run)
    runs.trained_learner(bench, runs.train_learners(bench, tmp_path / "run")).save(tmp_path / "run" / "model")
    bench.tokenizer.save_pretrained(tmp_path / "run" / "model")
    for data, columns in (("two.csv", ("text", "label")), ("three.jsonl", ("words", "kind"))):
        out = metalib.adapt(tmp_path / "run", mine / data, tmp_path / data, None, *columns)
        assert [line["text"] for line in metalib.predict(out, TEXTS)] == TEXTS
        assert [name for name in load_file(out / "model.safetensors") if "score" in name] == ["score.weight"]
    for name in ("protonet", "siamese"):
        with pytest.raises(BadInput, match="GPT2ForSequenceClassification classifies every token"):
            prepare(replace(run, learner=name), splits, make_accelerator())


def test_a_new_head_without_a_step_is_refused(make_run: MakeRun, mine: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"the classes negative, positive, .* \(adapt_steps=0\) — give adapt_steps"):
        metalib.adapt(make_run()[0], mine / "three.jsonl", tmp_path / "out", None, "words", "kind", adapt_steps=0)
    assert not (tmp_path / "out").exists()


def test_many_examples_are_all_seen(make_run: MakeRun, mine: Path, tmp_path: Path, caplog: Any) -> None:
    caplog.set_level("INFO")
    rows = [{"text": f"{row['text']} {n}", "label": row["label"]} for n in range(2) for row in load_examples(
        mine / "two.csv")]  # fmt: skip
    out = metalib.adapt(make_run()[0], Dataset.from_list(rows), tmp_path / "out")
    assert "6 gradient steps, not the run's 3, so that each of the 28 examples is seen" in caplog.text
    assert "| adapt\\_steps | 6 |" in (out / "README.md").read_text()
    caplog.clear()
    metalib.adapt(make_run()[0], Dataset.from_list(rows), tmp_path / "told", adapt_steps=2)
    assert "adapt_steps=2 of 5 examples see 10 of the 28" in caplog.text
    caplog.clear()
    metalib.adapt(make_run("protonet")[0], Dataset.from_list(rows), tmp_path / "compares")
    assert "gradient steps" not in caplog.text


def test_classes_in_another_order_keep_their_head(make_run: MakeRun, mine: Path, tmp_path: Path) -> None:
    run, kind = make_run()[0], ClassLabel(names=["positive", "negative"])
    rows = [{"text": row["text"], "label": 1 - row["label"]} for row in load_examples(mine / "two.csv")]
    examples = Dataset.from_list(rows, features=Features({"text": Value("string"), "label": kind}))
    out = metalib.adapt(run, examples, tmp_path / "out", adapt_steps=0)
    for one, other in zip(metalib.predict(out, TEXTS), metalib.predict(run / "model", TEXTS), strict=True):
        assert one["label"] == other["label"] and one["scores"] == pytest.approx(other["scores"], abs=1e-6)
    found = read(out / "metalib.json")["cross_validation"]
    assert found["methods"]["adapted"] == found["methods"]["not adapted"]


def test_a_class_without_a_text_to_test_on_is_refused(make_run: MakeRun, mine: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"'negative' has 6 examples; shots=6 needs 6, and one more to test on"):
        metalib.adapt(make_run()[0], mine / "two.csv", tmp_path / "out", shots=6)
    assert not (tmp_path / "out").exists()


def test_numbers_for_labels_keep_the_head_and_stay_the_names(
    make_run: MakeRun, mine: Path, tmp_path: Path, caplog: Any
) -> None:
    caplog.set_level("INFO")
    pairs = [(row["text"], str(row["label"])) for row in load_examples(mine / "two.csv")]
    out = metalib.adapt(make_run()[0], write_csv(tmp_path / "numbers.csv", pairs), tmp_path / "numbers")
    same = metalib.adapt(make_run()[0], mine / "two.csv", tmp_path / "same")
    assert "the classes 0, 1 are taken for negative, positive" in caplog.text
    assert load_file(out / "model.safetensors").keys() == load_file(same / "model.safetensors").keys()
    for one, other in zip(metalib.predict(out, TEXTS), metalib.predict(same, TEXTS), strict=True):
        assert list(one["scores"]) == ["0", "1"] and list(one["scores"].values()) == list(other["scores"].values())


# Scores


def test_shots_leave_the_others_for_a_test(make_run: MakeRun, mine: Path, tmp_path: Path) -> None:
    out = metalib.adapt(make_run()[0], mine / "two.csv", tmp_path / "out", shots=4, seed=3)
    facts = read(out / "metalib.json")
    assert facts["examples"] == {"negative": 4, "positive": 4} and facts["test"]["texts"] == 6
    methods = facts["test"]["methods"]
    assert methods["majority"]["accuracy"]["mean"] == 4 / 6 and methods["majority"]["balanced_accuracy"]["mean"] == 0.5
    assert "Test on the 6 examples that were not learned" in (out / "README.md").read_text()
    one = metalib.adapt(make_run()[0], mine / "two.csv", tmp_path / "one", shots=1)
    assert read(one / "metalib.json")["cross_validation"] is None
    assert "too few examples to cross-validate" in (one / "README.md").read_text()


def test_other_gradient_steps_than_the_runs(make_run: MakeRun, mine: Path, tmp_path: Path, capsys: Any) -> None:
    words = ["adapt", str(make_run()[0]), "--data", str(mine / "two.csv"), "--adapt-steps"]
    assert main([*words, "0", "--out", str(tmp_path / "none")]) == 0
    before = list(metalib.predict(make_run()[0] / "model", TEXTS))
    for one, other in zip(metalib.predict(tmp_path / "none", TEXTS), before, strict=True):
        assert one["scores"] == pytest.approx(other["scores"], abs=1e-6)
    assert main([*words, "7", "--adapt-lr", "0.002", "--out", str(tmp_path / "seven")]) == 0
    card = (tmp_path / "seven" / "README.md").read_text()
    assert "7 gradient steps at a learning rate of 0.002" in card and "| adapt\\_steps | 7 |" in card
    assert main([*words, "-1", "--out", str(tmp_path / "bad")]) == 2
    assert "adapt: adapt_steps is -1" in capsys.readouterr().err
    with pytest.raises(BadInput, match="protonet compares, and takes no gradient steps — leave adapt_lr out"):
        metalib.adapt(make_run("protonet")[0], mine / "two.csv", tmp_path / "bad", adapt_lr=0.1)
    assert not (tmp_path / "bad").exists()


def test_transformers_own_bars_are_as_they_were(make_run: MakeRun, tmp_path: Path) -> None:
    assert transformers_logging.is_progress_bar_enabled()
    assert main(["predict", str(make_run()[0] / "model"), "x"]) == 0
    assert main(["predict", str(tmp_path / "none"), "x"]) == 2
    assert transformers_logging.is_progress_bar_enabled()


def test_the_same_seed_gives_the_same_folder(make_run: MakeRun, mine: Path, tmp_path: Path) -> None:
    one, two, other = (
        metalib.adapt(make_run("relation")[0], mine / "two.csv", tmp_path / name, shots=4, seed=seed)
        for name, seed in (("one", 1), ("two", 1), ("other", 2))
    )
    assert contents(one) == contents(two)
    assert contents(one)["learner.safetensors"] != contents(other)["learner.safetensors"]  # other examples were drawn


def test_a_new_head_and_the_steps_hang_on_the_seed_alone(make_run: MakeRun, mine: Path, tmp_path: Path) -> None:
    def weights(name: str, data: str, seed: int, *columns: str) -> bytes:
        torch.manual_seed(len(name))
        columns = columns or ("text", "label")
        out = metalib.adapt(make_run()[0], mine / data, tmp_path / name, None, *columns, seed=seed)
        return contents(out)["model.safetensors"]

    three = [weights(name, "three.jsonl", seed, "words", "kind") for name, seed in (("a", 1), ("aa", 1), ("aaa", 2))]
    two = [weights(name, "two.csv", seed) for name, seed in (("b", 1), ("bb", 1), ("bbb", 2))]
    for one, same, other in (three, two):
        assert one == same != other


def test_weights_that_are_not_finite_are_not_written(make_run: MakeRun, mine: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFinite, match="not finite after adapting with adapt_lr=1e\\+30 — give a lower adapt_lr"):
        metalib.adapt(make_run()[0], mine / "two.csv", tmp_path / "out", adapt_lr=1e30)
    assert not (tmp_path / "out").exists()


def test_a_published_metric_learner_compares_with_a_task_of_each_training_domain(make_run: MakeRun) -> None:
    run, bench = make_run("matching")
    config = bench.config
    tasks = TaskSampler(bench.splits.train, config.train_shots, 0, config.seed, in_turn=True)
    rows = np.concatenate([tasks[turn].support for turn in range(len(tasks.domains))])
    learner: Any = runs.trained_learner(bench, {"matching": runs.final_theta(run, config, "matching")})
    assert len(tasks.domains) == 3
    torch.testing.assert_close(learner.support, bench.reviews["train"].features(bench.model, rows))


class Coin:
    """A learner that is right about the rows it is told."""

    def __init__(self, labels: np.ndarray, wrong: set[int]) -> None:
        self.predictions = np.array([1 - y if row in wrong else y for row, y in enumerate(labels)])

    def predict(self, reviews: Any, task: Task, seed: Any) -> np.ndarray:
        assert not set(task.support) & set(task.query)
        return self.predictions[task.query]


def test_intervals_of_the_cross_validation_are_nadeau_and_bengios(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimates, "FOLDS", 5)
    monkeypatch.setattr(estimates, "REPEATS", 4)
    labels = np.repeat([0, 1], 10)
    reviews: Any = type("Reviews", (), {"labels": labels})
    coin: Any = Coin(labels, {0, 1, 2, 13})
    found = estimates.cross_validate(coin, reviews, np.arange(20), {"not adapted": 1 - labels}, 0)
    assert found is not None and (found["folds"], found["repeats"]) == (5, 4)
    entry = found["methods"]["adapted"]["accuracy"]
    assert entry["mean"] == pytest.approx(0.8)
    assert found["methods"]["not adapted"]["accuracy"]["mean"] == 0
    splits = estimates.RepeatedStratifiedKFold(n_splits=5, n_repeats=4, random_state=0).split(labels, labels)
    values = np.array([(coin.predictions == labels)[left].mean() for _, left in splits])
    half = stats.t.ppf(0.975, 19) * np.sqrt((1 / 20 + 4 / 16) * values.var(ddof=1))
    least = estimates.exact(0.8, 20, 0.95)[0]
    assert 0.8 - half < least and entry["ci95"] == pytest.approx([0.8 - half, min(0.8 + half, 1)])
    (pair,) = [p for p in found["paired"] if (p["b"], p["metric"]) == ("not adapted", "accuracy")]
    low = 0.8 - np.hypot(0.8 - least, 1 - 0.025 ** (1 / 20))  # of 20, 16 and none are right by one alone
    assert pair["difference"] == pytest.approx(0.8) and pair["ci95"] == pytest.approx([min(0.8 - half, low), 1])
    perfect: Any = Coin(labels, set())
    sure = estimates.cross_validate(perfect, reviews, np.arange(20), {"alike": labels, "never": 1 - labels}, 0)
    assert sure is not None
    low, high = sure["methods"]["adapted"]["accuracy"]["ci95"]
    assert high == 1 and low == pytest.approx(0.025 ** (1 / 20))  # all 20 right does not mean always right
    # nor does a difference that is the same in all folds have no uncertainty
    ends = {pair["b"]: pair["ci95"] for pair in sure["paired"] if pair["metric"] == "accuracy"}
    worst = 1 - 0.025 ** (1 / 20)  # none of 20
    assert ends["alike"] == pytest.approx([-worst, worst])
    assert ends["never"] == pytest.approx([1 - np.sqrt(2) * worst, 1])
    assert ends["majority"] == pytest.approx([0.025 ** (1 / 20) - 0.5, 0.5])


# What is refused, and that nothing is left behind


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--data", "none.csv"], "no file 'none.csv'"),
        (["--text-column", "body"], "no column 'body'"),
        (["--shots", "7"], "class 'negative' has 6 examples; shots=7 needs 7"),
        (["--shots", "0"], "shots=0"),
        (["--seed", "-1"], "seed=-1"),
        (["--data", "single.csv"], "single.csv"),
        (["--data", "same.csv"], "same.csv"),
        (["--out", "two.csv"], "is a file"),
        (["--out", "full"], "is there already, and not empty"),
        (["--out", "two.csv/x"], "cannot be written"),
    ],
)
def test_bad_words(make_run: MakeRun, mine: Path, tmp_path: Path, monkeypatch: Any, capsys: Any, words: list[str],
                   said: str) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "two.csv").write_bytes((mine / "two.csv").read_bytes())
    write_csv(tmp_path / "single.csv", [("a", "x"), ("b", "x"), ("c", "y")])
    write_csv(tmp_path / "same.csv", [("a", "x"), ("b", "x")])
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "kept").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    given = {"--data": "two.csv", "--out": "out", **dict(zip(words[::2], words[1::2], strict=True))}
    assert main(["adapt", str(make_run()[0]), *(word for pair in given.items() for word in pair)]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("metalib: ") and said in last
    assert sorted(tmp_path.rglob("*")) == before


def test_runs_that_cannot_be_used(make_run: MakeRun, mine: Path, tmp_path: Path, config: Config) -> None:
    def refused(folder: Path) -> str:
        with pytest.raises(BadInput) as caught:
            metalib.adapt(folder, mine / "two.csv", tmp_path / "out")
        return str(caught.value)

    assert "is not a run folder" in refused(tmp_path / "none")
    write_config(config, tmp_path / "config.yaml")
    assert "is not finished: reptile has no final checkpoint" in refused(tmp_path)
    with open(tmp_path / "config.yaml", "a") as file:
        file.write("warmth: 3\n")
    assert "unknown setting 'warmth'" in (said := refused(tmp_path)) and f"metalib {metalib.__version__}" in said
    with pytest.raises(BadInput, match="not of the same run"):
        adapting.open_run(make_run()[0], torch.zeros(3), ["negative", "positive"], 0, config)


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_folder_is_written_whole_or_not_at_all(
    make_run: MakeRun, mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def save(*_: Any) -> None:
        raise error

    monkeypatch.setattr(adapting, "card", save)
    with pytest.raises(MetalibError if isinstance(error, OSError) else KeyboardInterrupt):
        metalib.adapt(make_run()[0], mine / "two.csv", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    (tmp_path / "out").mkdir()  # an empty folder is taken
    assert metalib.adapt(make_run()[0], mine / "two.csv", tmp_path / "out", shots=1) == tmp_path / "out"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_texts_that_are_cut_are_counted(make_run: MakeRun, mine: Path, tmp_path: Path, caplog: Any) -> None:
    exactly, longer = ("the " * 46).strip(), "the " * 60
    examples = [(longer, "negative"), (exactly, "negative"), ("x", "positive"), ("y", "positive")]
    out = metalib.adapt(make_run()[0], write_csv(tmp_path / "long.csv", examples), tmp_path / "out")
    assert "1 of 4 texts is longer than 48 tokens" in caplog.text
    caplog.clear()
    list(metalib.predict(out, [longer, longer, exactly]))
    assert "2 of 3 texts are longer than 48 tokens" in caplog.text


# Predicting


def test_texts_from_files(make_run: MakeRun, tmp_path: Path, capsys: Any) -> None:
    model = str(make_run()[0] / "model")
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS) + "\n\n")
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"body": text}) + "\n" for text in TEXTS))
    write_csv(tmp_path / "texts.csv", [(text, "") for text in TEXTS])
    shown = []
    for words in (["texts.txt"], ["texts.jsonl", "--text-column", "body"], ["texts.csv"]):
        assert main(["predict", model, "--file", str(tmp_path / words[0]), *words[1:]]) == 0
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1] == shown[2] and shown[0].count("\n") == 3
    wrong = [([], "give either texts or --file"), (["a", "--file", "b.txt"], "give either texts or --file"),
             (["--file", "b.txt"], "no file 'b.txt'"), ([" "], "not empty"), (["\udcff"], "UTF-8")]  # fmt: skip
    for words, said in wrong:
        assert main(["predict", model, *words]) == 2
        caught = capsys.readouterr()
        assert caught.out == "" and said in caught.err.splitlines()[-1]


def test_scores_do_not_depend_on_the_other_texts(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    model = open_model(make_run("siamese")[0] / "model")
    together = [line["scores"] for line in model.lines(TEXTS)]
    monkeypatch.setattr("metalib.predicting.BATCH", 1)
    for one, line in zip(together, model.lines(TEXTS), strict=True):
        assert line["scores"] == pytest.approx(one, abs=1e-5)


def break_folder(folder: Path, how: str) -> None:
    rest = folder / "learner.safetensors"
    if how == "no metalib.json":
        (folder / "metalib.json").unlink()
    elif how == "another learner":
        (folder / "metalib.json").write_text('{"learner": "mammal"}')
    elif how == "no learner.safetensors":
        rest.unlink()
    elif how == "cut":
        rest.write_bytes(rest.read_bytes()[:-100])
    elif how == "no support":
        save_file({name: tensor for name, tensor in load_file(rest).items() if name != "support"}, rest)
    elif how == "no module":
        save_file({name: tensor for name, tensor in load_file(rest).items() if not name.startswith("own.")}, rest)
    elif how == "weights cut":
        path = folder / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-100])
    elif how == "no config":
        (folder / "config.json").unlink()


@pytest.mark.parametrize("how", ["no metalib.json", "another learner", "no learner.safetensors", "cut", "no support",
                                 "no module", "weights cut", "no config"])  # fmt: skip
def test_broken_folders_are_refused(how: str, make_run: MakeRun, tmp_path: Path) -> None:
    folder = shutil.copytree(make_run("relation")[0] / "model", tmp_path / "model")
    assert len(list(metalib.predict(folder, TEXTS))) == 3
    break_folder(folder, how)
    with pytest.raises(BadInput, match=r"is broken|no model folder|cannot be opened|has no learner 'mammal'"):
        metalib.predict(folder, TEXTS)


def test_a_head_that_is_missing_is_not_made_up(make_run: MakeRun, tmp_path: Path) -> None:
    folder = shutil.copytree(make_run()[0] / "model", tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith("classifier.")}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(BadInput, match=r"holds no classifier: its weights lack 'classifier.weight'"):
        metalib.predict(folder, TEXTS)


def test_importing_metalib_imports_nothing_heavy() -> None:
    code = "import sys, metalib; sys.exit(bool({'torch', 'transformers', 'datasets'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0
    with pytest.raises(AttributeError, match="nothing"):
        metalib.nothing  # noqa: B018


def test_a_rule_that_always_says_the_same_is_not_measured_to_half_a_point() -> None:
    labels = np.array([0, 0, *[1] * 29])  # folds of 15 and 16 texts: 14/15 and 15/16 are close, and say little
    reviews: Any = type("Reviews", (), {"labels": labels})
    yes: Any = Coin(labels, {0, 1})
    found = estimates.cross_validate(yes, reviews, np.arange(31), {"not adapted": np.zeros(31, dtype=int)}, 0)
    assert found is not None
    methods = {name: entry["accuracy"] for name, entry in found["methods"].items()}
    assert methods["adapted"]["ci95"] == pytest.approx(estimates.exact(29 / 31, 31, 0.95), abs=0.01)
    assert methods["majority"]["ci95"] == pytest.approx([29 / 31] * 2, abs=0.01)
    assert methods["not adapted"]["ci95"] == pytest.approx(estimates.exact(2 / 31, 31, 0.95), abs=0.01)
    (pair,) = [p for p in found["paired"] if (p["b"], p["metric"]) == ("not adapted", "accuracy")]
    assert pair["ci95"][1] - pair["ci95"][0] > 0.2


def test_a_dataset_is_checked_as_a_file_is(make_run: MakeRun, tmp_path: Path) -> None:
    rows = [{"says": f"text {n}", "mood": ("bad", "good")[n % 2]} for n in range(8)]
    out = metalib.adapt(make_run()[0], Dataset.from_list(rows), tmp_path / "x", None, "says", "mood")
    assert read(out / "metalib.json")["examples"] == {"bad": 4, "good": 4}
    kind = Features({"says": Value("string"), "mood": ClassLabel(names=["never", "good", "bad"])})
    typed = Dataset.from_list([{**row, "mood": 2 - n % 2} for n, row in enumerate(rows)], features=kind)
    assert load_examples(typed, "says", "mood").features["label"].names == ["good", "bad"]
    for more, said in (({"says": "text 1", "mood": "bad"}, "text of record 2, but another label"),
                       ({"says": None, "mood": "bad"}, "1 record has no 'says': 9"),
                       ({"says": "new", "mood": None}, "1 record has no 'mood': 9")):  # fmt: skip
        with pytest.raises(BadInput, match=said):
            load_examples(Dataset.from_list([*rows, more]), "says", "mood")
    with pytest.raises(BadInput, match="1 record has no 'mood': 9"):
        load_examples(typed.add_item({"says": "new", "mood": -1}), "says", "mood")
    with pytest.raises(BadInput, match="no column 'text' — name one of them as text_column"):
        load_examples(typed)
    with pytest.raises(BadInput, match="there are none"):
        load_examples(typed.select([]), "says", "mood")
    for other in (DatasetDict(train=typed), rows, typed.to_pandas()):
        with pytest.raises(BadInput, match=rf"are a {type(other).__name__} — give a file's path, or a datasets.Data"):
            metalib.adapt(make_run()[0], other, tmp_path / "y")
    for text in (b"abc", {"text": "x" * 1000}):
        with pytest.raises(BadInput, match=rf"text 2 is a {type(text).__name__}, .{{,100}} — give texts, as str"):
            metalib.predict(make_run()[0] / "model", ["fine", text])


def test_a_dataset_will_do(make_run: MakeRun, mine: Path, tmp_path: Path) -> None:
    examples: Dataset = load_examples(mine / "two.csv")
    one = metalib.adapt(make_run()[0], examples, tmp_path / "one")
    two = metalib.adapt(make_run()[0], mine / "two.csv", tmp_path / "two")
    assert contents(one)["model.safetensors"] == contents(two)["model.safetensors"]
