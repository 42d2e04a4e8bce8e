"""The real results: their protocol on made-up reviews, and RESULTS.md against the committed files."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset

from metalib.checkpoint import save_checkpoint
from metalib.config import Config
from metalib.inner import InnerLoop, untouched
from metalib.learners import LEARNERS
from metalib.models import TokenizedReviews, load_model
from metalib.reviews import ARSC_FEATURES, FEATURES
from metalib.tasks import Task
from metalib.weights import Weights

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import frozen  # noqa: E402
import probe  # noqa: E402
import protocols  # noqa: E402
import real  # noqa: E402
import tables  # noqa: E402
from heads import JointHeads  # noqa: E402

PRODUCTS = ("apparel", "books", "music", "toys")


def arsc(products: tuple[str, ...] = PRODUCTS) -> Dataset:
    """Made-up ARSC: 6 train, 4 dev and 5 test reviews of each task; no train split for music."""
    sizes = {"train": 6, "dev": 4, "test": 5}
    rows = [
        {"text": f"{product} {split} {n}", "label": (n + threshold) % 2, "domain": f"{product}.t{threshold}",
         "threshold": threshold, "split": split}
        for product in products for threshold in (2, 4, 5)
        for split, size in sizes.items() for n in range(size) if (product, split) != ("music", "train")
    ]  # fmt: skip
    return Dataset.from_list(rows, features=ARSC_FEATURES)


def texts_of(reviews: Dataset, rows: np.ndarray) -> list[str]:
    return [reviews[int(row)]["text"] for row in rows]


def test_arsc_supports_are_the_train_splits_and_queries_the_whole_test_splits() -> None:
    splits = protocols.arsc_splits(arsc(), ["books", "toys"])
    tasks = protocols.arsc_tasks(splits.test)
    assert [task.domain for task in tasks] == [f"{name}.t{t}" for name in ("books", "toys") for t in (2, 4, 5)]
    for task in tasks:
        product = task.domain.partition(".")[0]
        assert texts_of(splits.test, task.support) == [f"{product} train {n}" for n in range(6)]
        assert texts_of(splits.test, task.query) == [f"{product} test {n}" for n in range(5)]
        labels = [splits.test[int(row)]["label"] for row in task.query]
        assert labels == [(n + int(task.domain[-1])) % 2 for n in range(5)]


def test_arsc_meta_training_sees_train_splits_of_other_domains_and_no_text_of_a_target() -> None:
    splits = protocols.arsc_splits(arsc(), ["books", "toys"])
    seen = {(row["domain"].partition(".")[0], row["split"]) for row in splits.train}
    assert seen == {("apparel", "train"), ("music", "dev")}
    target_texts = {row["text"] for row in arsc() if row["domain"].startswith(("books", "toys"))}
    assert not target_texts & set(splits.train["text"]) and not len(splits.validation)


def test_a_training_review_that_is_also_in_a_target_domain_is_dropped_whichever_its_split() -> None:
    rows = arsc().to_list()
    for split in ("train", "dev", "test"):
        rows.append({**rows[0], "text": f"books {split} 0"})
    splits = protocols.arsc_splits(Dataset.from_list(rows, features=ARSC_FEATURES), ["books"])
    assert not any(text.startswith("books") for text in splits.train["text"])


def test_arsc_validation_domains_are_no_training_domains_and_their_tasks_look_like_the_target_tasks() -> None:
    splits = protocols.arsc_splits(arsc(), ["books"], ["music", "toys"])
    assert {row["domain"].partition(".")[0] for row in splits.train} == {"apparel"}
    tasks = protocols.arsc_validation_tasks(splits.validation, draws=2, shots=2)
    assert len(tasks) == 2 * 6 and {task.domain[:5] for task in tasks} == {"music", "toys."}
    for task in tasks:
        product = task.domain.partition(".")[0]
        support, query = (texts_of(splits.validation, rows) for rows in (task.support, task.query))
        assert query == [f"{product} test {n}" for n in range(5)]
        assert len(set(support)) == 4 and all(" dev " in t if product == "music" else " train " in t for t in support)


def test_small_training_tasks_are_left_out() -> None:
    splits = protocols.arsc_splits(arsc(), ["books"], smallest=3)
    assert {row["domain"].partition(".")[0] for row in splits.train} == {"apparel", "toys"}  # music has 2 + 2


def original(count: int = 100, positive: int = 84) -> Dataset:
    rows = [{"text": f"{name} {n}", "label": int(n < positive), "domain": name}
            for name in ("automotive", "office") for n in range(count)]  # fmt: skip
    return Dataset.from_list(rows, features=FEATURES)


def test_the_originals_splits_keep_the_class_balance_and_use_every_review_once() -> None:
    episodes = protocols.natural_splits(original(), ["automotive", "office"], 5, 80, 20)
    assert [task.domain for task in episodes.tasks[:3]] == ["automotive", "office", "automotive"]
    labels = np.asarray(original()["label"])
    for task in episodes.tasks:
        assert labels[task.support].sum() == 67 and labels[task.query].sum() == 17  # of 84
        assert len(set(task.support) | set(task.query)) == len(task.support) + len(task.query) == 100
    assert len({tuple(task.query) for task in episodes.tasks}) == 10
    assert episodes.overlap == {"automotive": 0.2, "office": 0.2}
    again = protocols.natural_splits(original(), ["automotive", "office"], 5, 80, 20)
    assert all((a.query == b.query).all() for a, b in zip(episodes.tasks, again.tasks, strict=True))


def test_a_larger_domain_is_cut_to_one_lot_and_a_smaller_one_refused() -> None:
    episodes = protocols.natural_splits(original(300, 240), ["office"], 6, 80, 20)
    assert len({int(row) for task in episodes.tasks for row in (*task.support, *task.query)}) == 100
    with pytest.raises(protocols.BadInput, match=r"'office' has 90 reviews; a split takes 100"):
        protocols.natural_splits(original(90), ["office"], 2, 80, 20)


@pytest.mark.parametrize(("learner", "adapts"), [("joint", "all"), ("joint", "head"), ("protonet", "all")])
def test_remembered_states_give_what_the_whole_encoder_gives(learner: str, adapts: str) -> None:
    texts = [f"{'good' if n % 2 else 'bad'} thing " * (n % 5 + 1) for n in range(24)]
    model, tokenizer = load_model("tiny", texts, ["negative", "positive"], frozen_layers=1)
    reviews = TokenizedReviews.in_memory(texts, tokenizer, 32, labels=[n % 2 for n in range(24)])
    task = Task(np.arange(10), np.arange(10, 24), "d", 0)
    rule = LEARNERS[learner](model, Weights(model), InnerLoop(2, 1e-2, 4), InnerLoop(3, 1e-2, 4, adapts=adapts))
    with untouched(model, rule.weights):
        rule.fit(reviews, task.support, (0, 0))
        plain = rule.logits(reviews, task.query)
    direction, _ = rule.direction(reviews, task, (0,))
    lower = frozen.lower_part(model, 1)
    frozen.skip_layers(model, 1)
    remembered = frozen.RememberedReviews(reviews, lower, {})
    (logits,) = real.task_logits(rule, remembered, [task])
    torch.testing.assert_close(torch.from_numpy(logits), plain, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(rule.direction(remembered, task, (0,))[0], direction, rtol=1e-3, atol=1e-6)


def test_a_piece_that_was_started_with_other_settings_is_refused_not_taken_for_the_new_one(tmp_path: Path) -> None:
    run = real.Run("arsc", "", "", runs=tmp_path)
    base = real.read_config(ROOT / "configs" / "arsc.yaml").for_learner("joint")
    folder = tmp_path / "arsc" / "joint-0"
    real.start_folder(folder, replace(base, baselines=(), max_length=7))
    (folder / "head.json").write_text("{}")
    splits = protocols.arsc_splits(arsc(), ["books"])
    with pytest.raises(protocols.BadInput, match=r"joint-0' was started with max_length=7, not"):
        real.run_piece(run, base, splits, [])
    real.run_piece(run, replace(base, max_length=7), splits, [])  # as it was: it is done, and nothing is trained


@pytest.fixture
def heads(monkeypatch) -> type[JointHeads]:
    """Joint training with a head for each threshold, as one of the learners."""
    monkeypatch.setitem(LEARNERS, JointHeads.name, JointHeads)
    return JointHeads


def test_a_task_trains_its_thresholds_head_and_no_other(heads, config) -> None:
    splits = protocols.arsc_splits(arsc(), ["books"])
    bench = real.prepare(replace(config, learner=heads.name, baselines=()), splits, real.make_accelerator())
    learner, (task, *_) = bench.learner(bench.config), protocols.arsc_tasks(bench.splits.train)
    before = bench.model.classifier
    direction, losses = learner.direction(bench.reviews["train"], task, (0, 0))
    assert bench.model.classifier is before
    moves = {name: bool(part.any()) for name, part in bench.weights.views(direction).items()}
    mine = f"own.heads.{protocols.threshold(task.domain)}."
    for name in (name for name in moves if name.startswith(("own.", "classifier."))):
        assert moves[name] == name.startswith(mine), name
    assert any(moved for name, moved in moves.items() if "encoder.layer" in name)
    expected = bench.model(**bench.reviews["train"].batch(task.support)).loss  # all heads begin alike
    torch.testing.assert_close(losses[0], expected)


def test_a_threshold_is_predicted_with_the_head_that_was_trained_for_it(heads, config) -> None:
    splits = protocols.arsc_splits(arsc(), ["books"])
    bench = real.prepare(replace(config, learner=heads.name, baselines=()), splits, real.make_accelerator())
    learner = bench.learner(replace(bench.config, adapt="head", adapt_steps=0))
    for place, head in enumerate(learner.model.own[heads.name].values()):
        torch.nn.init.constant_(head.bias, 0.0)
        head.bias.data[1] = 10.0 * (place - 1)  # t2 always says no, t5 always yes
    tasks = protocols.arsc_tasks(splits.test)
    found = real.all_logits(learner, bench, "test", tasks, {})
    assert set(found) == {"plain", "known"}  # known: with a head learned anew, as for any learner
    assert not np.allclose(found["known"][0], found["plain"][0])
    said = {protocols.threshold(task.domain): each.argmax(-1) for task, each in zip(tasks, found["plain"], strict=True)}
    assert not said["t2"].any() and said["t5"].all()


def test_heads_for_thresholds_are_trained_as_joint_training_is() -> None:
    base = real.read_config(ROOT / "configs" / "arsc.yaml")
    joint, heads = (real.settings_of(base, name) for name in ("joint", "heads"))
    assert replace(joint, learner="heads", adapt_steps=heads.adapt_steps, max_length=heads.max_length) == heads
    plan = [(config.learner, config.seed) for config in real.pieces(real.Run("arsc", "", ""), base)]
    assert plan[-3:] == [("heads", 0), ("heads", 1), ("heads", 2)]  # the longest texts last: one memory at a time
    assert "heads" not in {config.learner for config in real.pieces(real.Run("amazon_original", "", ""), base)}


def test_the_seeds_are_averaged_once_all_are_done(bench, config, tmp_path, monkeypatch) -> None:
    run, tested = real.Run("arsc", "", "", runs=tmp_path), []
    monkeypatch.setattr(real, "make_bench", lambda *_: bench)
    monkeypatch.setattr(real, "test_piece", lambda *given: tested.append((bench.weights.snapshot(), *given[3:])))
    for seed in range(3):
        real.run_average(run, config.for_learner("joint"), bench.splits, [])
        folder = tmp_path / "arsc" / f"joint-{seed}"
        save_checkpoint(folder / "checkpoint", 6, {"theta": bench.theta_0 * seed})
        facts = {"learner": "joint", "seed": seed, "review_passes": 10, "minutes": {"training": 2.0, "test": 1.0}}
        real.write_json(folder / "head.json", facts)
    assert not tested
    real.run_average(run, config.for_learner("joint"), bench.splits, [])
    ((point, folder, facts, minutes),) = tested
    torch.testing.assert_close(point, bench.theta_0)
    assert (folder.name, minutes, facts["averaged"], facts["review_passes"]) == ("joint-average", 6.0, 3, 30)
    assert tables.method(facts) == "joint+" and tables.learner("joint+") == "joint"


def test_half_and_all_of_a_thresholds_log_odds_are_added_to_the_margin() -> None:
    logits = [np.asarray([[0.0, -1.0], [0.0, -2.0], [0.0, 1.0], [0.0, -0.5]])]
    tasks, truth = [Task(np.arange(0), np.arange(4), "d.t2", 0)], np.asarray([1, 0, 1, 1])
    (task,) = real.task_scores({"plain": logits}, tasks, truth, {"t2": 1.5, "t4": 9.0}).values()
    assert [task[kind]["accuracy"] for kind in ("plain", "half", "odds", "always_positive")] == [0.5, 0.75, 1, 0.75]
    assert task["plain"]["balanced_accuracy"] == pytest.approx(2 / 3) and "known" not in task
    shifted = [each + np.asarray([0.0, 1.0]) for each in logits]
    (task,) = real.task_scores({"plain": logits, "known": shifted}, tasks, truth, {"t2": 1.5}).values()
    assert [task[kind]["accuracy"] for kind in ("plain", "known", "half", "odds")] == [0.5, 0.75, 1.0, 0.75]
    (task,) = real.task_scores({"plain": logits}, tasks, truth, {}).values()  # reviews without thresholds
    assert set(task) == {"plain", "always_positive"}


def test_log_odds_and_rows_are_those_of_a_threshold_in_the_training_domains() -> None:
    training = protocols.arsc_splits(arsc(("apparel", "books", "toys")), ["books"]).train
    rows = protocols.threshold_rows(training, 4)
    assert set(rows) == {"t2", "t4", "t5"}
    for name, each in rows.items():
        found = training.select(each)
        assert sorted(found["label"]) == [0] * 4 + [1] * 4 and len(set(each.tolist())) == 8
        assert all(domain.endswith(name) for domain in found["domain"])
    keep = [row for row in range(len(training)) if training[row]["domain"] != "toys.t2" or training[row]["label"]]
    odds = protocols.log_odds(training.select(keep))
    assert odds == pytest.approx({"t2": np.log(2), "t4": 0, "t5": 0})
    assert protocols.log_odds(original()) == {} and not protocols.threshold_rows(original(), 4)


def test_a_thresholds_head_is_where_its_tasks_start_and_nothing_else_moves() -> None:
    config = replace(Config(), model="tiny", test_domains=("books",), validations=0, max_length=32, frozen_layers=0)
    splits = protocols.arsc_splits(arsc(("apparel", "books", "toys")), ["books"])
    bench = real.prepare(replace(config, baselines=()), splits, real.make_accelerator())
    learner = bench.learner(replace(config, learner="joint", adapt="head", adapt_steps=0))
    tasks = protocols.arsc_tasks(splits.test)
    heads = real.threshold_heads(learner, bench, {})
    assert torch.equal(bench.weights.flat, bench.theta_0)
    assert list(heads) == ["t2", "t4", "t5"] and not any("encoder" in name for name in heads["t2"])
    found = real.all_logits(learner, bench, "test", tasks, {})
    for task, logits in zip(tasks, found["known"], strict=True):
        with untouched(bench.model, bench.weights), torch.no_grad():
            for name, parameter in heads[protocols.threshold(task.domain)].items():
                bench.weights.flat[bench.weights.slices[name]] = parameter
            expected = bench.reviews["test"].logits(bench.model, task.query)
        torch.testing.assert_close(torch.from_numpy(logits), expected, rtol=1e-4, atol=1e-5)
    assert not np.allclose(found["known"][0], found["plain"][0])
    comparing = bench.learner(replace(config, learner="protonet"))
    assert set(real.all_logits(comparing, bench, "test", tasks, {})) == {"plain"}


def test_a_sentence_vector_is_the_mean_of_its_own_tokens_and_of_length_one() -> None:
    texts = ["good thing", "a bad thing that is long, long, long"]
    model, tokenizer = load_model("tiny", texts, ["negative", "positive"])
    reviews = TokenizedReviews.in_memory(texts, tokenizer, 32)
    with torch.no_grad():
        vectors = probe.sentence_vectors(model, reviews.batch(np.arange(2)))
        for place in range(2):
            batch = reviews.batch(np.asarray([place]))
            mean = model.bert(batch["input_ids"], batch["attention_mask"]).last_hidden_state[0].mean(dim=0)
            torch.testing.assert_close(vectors[place], mean / mean.norm(), rtol=1e-4, atol=1e-5)


def test_the_probe_learns_the_support_set_or_the_thresholds_reviews_and_never_looks_at_a_query() -> None:
    config = replace(Config(), model="tiny", test_domains=("books",), validations=0, max_length=32)
    splits = protocols.arsc_splits(arsc(("apparel", "books", "toys")), ["books"])
    bench = real.prepare(replace(config, baselines=()), splits, real.make_accelerator())
    tasks = [replace(task, query=task.support) for task in protocols.arsc_tasks(splits.test)]
    found = probe.probe_logits(bench, "test", tasks, 4)
    assert {kind: [each.shape for each in lot] for kind, lot in found.items()} == {
        "plain": [(6, 2)] * 3, "known": [(6, 2)] * 3}  # fmt: skip
    reviews = bench.reviews["test"]
    rows = tasks[1].support  # t4
    vectors = reviews.compute(bench.model, rows, probe.sentence_vectors).numpy()
    expected = probe.regression(vectors, reviews.labels[rows]).decision_function(vectors)
    np.testing.assert_allclose(np.diff(found["plain"][1])[:, 0], expected, rtol=1e-4, atol=1e-6)
    learned = protocols.threshold_rows(splits.train, 4)["t4"]
    others = bench.reviews["train"].compute(bench.model, learned, probe.sentence_vectors).numpy()
    expected = probe.regression(others, bench.reviews["train"].labels[learned]).decision_function(vectors)
    np.testing.assert_allclose(np.diff(found["known"][1])[:, 0], expected, rtol=1e-4, atol=1e-6)
    apart = [replace(task, query=task.query[:1]) for task in tasks]
    for kind, lot in probe.probe_logits(bench, "test", apart, 4).items():
        np.testing.assert_allclose(np.concatenate(lot), np.stack([each[0] for each in found[kind]]), atol=1e-6)


def test_results_md_and_the_tuning_pages_are_what_the_files_in_results_say() -> None:
    for name, text in tables.pages(ROOT).items():
        assert (ROOT / name).read_text(encoding="utf-8") == text, f"{name}: run `python benchmarks/real.py tables`"
    for setting in ("amazon_original", "arsc"):
        assert (ROOT / "results" / setting / "scores.png").stat().st_size > 10_000


def test_the_committed_arsc_pieces_have_the_twelve_target_tasks_and_the_settings_of_the_config(heads) -> None:
    scores = tables.read(ROOT, "arsc/scores.json")
    base = real.read_config(ROOT / "configs" / "arsc.yaml")
    tasks = {f"{product}.t{t}" for product in protocols.ARSC_TARGETS for t in (2, 4, 5)}
    assert tuple(base.test_domains) == protocols.ARSC_TARGETS
    for piece in scores["pieces"]:
        assert {name.rpartition("/")[0] for name in piece["tasks"]} == tasks
        if piece["learner"] == probe.NAME:
            assert piece["review_passes"] == 0
            continue
        config, models = real.settings_of(base, piece["learner"]), piece.get("averaged", 1)
        assert piece["review_passes"] == models * config.meta_steps * config.passes_per_step()
        assert round(tables.mean(piece, "always_positive", "accuracy"), 1) == 78.1  # counted from the published files
    tuned = tables.read(ROOT, "arsc/tuning.json")["validation_domains"]
    assert not {domain.rpartition(".t")[0] for domain in tuned} & set(protocols.ARSC_TARGETS)


def test_the_goal_is_judged_by_what_validation_domains_choose_among_what_was_run() -> None:
    scores, tuning = tables.read(ROOT, "arsc/scores.json"), tables.read(ROOT, "arsc/tuning.json")
    run, perfect = {"joint": (5, 128), "heads": (0, 256)}, {"accuracy": 0.99, "balanced_accuracy": 0.99}
    joint = next(row for row in tuning["rows"] if row["settings"] == {
        "meta_steps": "500", "seed": "1", "adapt_steps": "5", "adapt_lr": "1e-3", "precision": "bf16"})  # fmt: skip
    for other in ({"settings": {**joint["settings"], "dropout": "true"}}, {"review_passes": 24_000},
                  {"settings": {**joint["settings"], "adapt_steps": "0"}}, {"learner": "reptile"},
                  {"settings": {**joint["settings"], "max_length": "256"}}):  # fmt: skip
        tuning["rows"].append({**joint, "odds": perfect, **other})
    assert tables.chosen(scores, tuning, run) == tables.chosen(scores, tables.read(ROOT, "arsc/tuning.json"), run)
    joint["odds"] = {"accuracy": 3.0, "balanced_accuracy": 3.0}  # so that the mean over the seeds is above all others
    assert tables.chosen(scores, tuning, run) == ("joint", "odds")
    assert tables.chosen(scores, {"rows": []}, run) is None
    assert "chose nothing. Not chosen" in tables.goal_words(scores, None)
    words = tables.goal_words(scores, ("joint", "odds"))
    assert "missed it: **joint training (and all the odds) with 86.1 and 74.9**" in words


def test_the_committed_run_of_the_originals_setting_has_enough_splits_and_its_majority() -> None:
    evaluation = tables.read(ROOT, "amazon_original/evaluation.json")
    assert evaluation["episodes"]["count"] >= 3 * 50
    assert (evaluation["episodes"]["support"], evaluation["episodes"]["query"]) == (80, 20)
    majority = evaluation["methods"]["majority"]["overall"]
    assert round(100 * majority["accuracy"]["mean"], 1) == 83.3 and majority["balanced_accuracy"]["mean"] == 0.5
    base = real.read_config(ROOT / "configs" / "amazon_original.yaml")
    for name, facts in evaluation["cost"].items():
        if name == probe.NAME:
            continue
        config = base.for_learner(name.removesuffix("*"))
        assert facts["review_passes"] == config.meta_steps * config.passes_per_step()


def test_every_learner_of_a_setting_sees_as_many_reviews() -> None:
    for setting in ("arsc", "amazon_original"):
        base = real.read_config(ROOT / "configs" / f"{setting}.yaml")
        passes = {name: each.meta_steps * each.passes_per_step() for name in (*base.baselines, base.learner)
                  for each in [base.for_learner(name)]}  # fmt: skip
        assert passes.pop("finetuned") == 0
        assert max(passes.values()) <= 1.02 * min(passes.values())
        assert isinstance(base, Config) and base.validation_count == 0  # all other domains train
