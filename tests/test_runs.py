"""A whole run of seconds, by the command line: what it leaves, that it comes out the same again, and resuming."""

import errno
import json
import re
import shutil
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import pytest
import torch
import yaml
from datasets import Dataset
from filelock import FileLock
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

import metalib
from metalib import report, runs
from metalib.__main__ import main
from metalib.checkpoint import load_checkpoint
from metalib.config import Config, read_config, write_config
from metalib.errors import MetalibError
from metalib.evaluation import Episodes
from metalib.folders import next_free_folder
from metalib.runs import load_splits
from metalib.tasks import TaskSampler, hash_tasks
from metalib.weights import Weights

ODD = "../../x|<b>*y*"  # a test domain's name
METRICS = ("accuracy", "balanced_accuracy", "macro_f1")
METHODS = ["majority", "finetuned", "joint", "reptile"]
NAMES = {"majority": "majority class", "finetuned": "no meta-training", "joint": "joint training", "reptile": "Reptile"}


@pytest.fixture(scope="module")
def place(reviews: Dataset, config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `reviews.json`, one domain of which has an odd name, and `settings.yaml`."""
    folder = tmp_path_factory.mktemp("a") / "b" / "runs"  # so that ../../x would be seen
    folder.mkdir(parents=True)
    records = [{**r, "domain": ODD if r["domain"] == "automotive" else r["domain"]} for r in reviews.to_list()]
    (folder / "reviews.json").write_text(json.dumps(records))
    settings = replace(
        config, data=str(folder / "reviews.json"), test_domains=(ODD, "office_products"), shots=10, adapt_steps=10,
        adapt_batch=10, eval_episodes=6, validations=1, validation_episodes=2, seed=1,
    )  # fmt: skip
    write_config(settings, folder / "settings.yaml")
    return folder


@pytest.fixture(scope="module")
def run(place: Path) -> tuple[Path, list[warnings.WarningMessage]]:
    """The folder of a run, and the warnings that came while it was made."""
    with warnings.catch_warnings(record=True) as met:
        warnings.simplefilter("always")
        assert main(["train", str(place / "settings.yaml"), "--out", str(place / "run")]) == 0
    return place / "run", met


@pytest.fixture(scope="module")
def folder(run: tuple[Path, Any]) -> Path:
    return run[0]


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(folder, tmp_path / "copy")


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def contents(folder: Path, but: tuple[str, ...] = ("running_logs.log", "config.yaml")) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name not in but)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


# What a run leaves


def test_folder_holds_everything(folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == {
        "config.yaml", "metrics.jsonl", "evaluation.json", "curves.json", "report.md", "running_logs.log",
        "learning_curve.png", "adaptation_curve.png", "domains.png", "checkpoint", "model", "baselines", "train.lock",
    }  # fmt: skip
    assert {path.name for path in (folder / "baselines").iterdir()} == {"joint", "finetuned"}
    for learner in (folder, folder / "baselines" / "joint", folder / "baselines" / "finetuned"):
        settings = read_config(folder / "config.yaml").for_learner(learner.name if learner != folder else "reptile")
        lines = (learner / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["meta_step"] for line in lines] == list(range(settings.meta_steps + 1))
        found = load_checkpoint(learner / "checkpoint")
        assert found is not None and found[0] == settings.meta_steps
    log = (folder / "running_logs.log").read_text().splitlines()
    assert log and all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO ", line) for line in log)


def test_settings_stand_in_the_folder(folder: Path, place: Path) -> None:
    assert read_config(folder / "config.yaml") == replace(read_config(place / "settings.yaml"), out=str(folder))


def test_every_file_opens_as_what_it_is_and_none_is_a_pickle_or_zip(folder: Path) -> None:
    opens = {
        ".json": read, ".yaml": lambda path: yaml.safe_load(path.read_text()), ".safetensors": load_file,
        ".jsonl": lambda path: [json.loads(line) for line in path.read_text().splitlines()],
        ".md": Path.read_text, ".log": Path.read_text, ".lock": lambda path: path.read_bytes() == b"",
        ".png": lambda path: path.read_bytes().startswith(b"\x89PNG\r\n"),
    }  # fmt: skip
    for path in (path for path in folder.rglob("*") if path.is_file()):
        assert path.suffix in opens, path
        assert opens[path.suffix](path), path
        assert not is_zipfile(path)


def test_no_warning_comes_from_metalib(run: tuple[Path, list[warnings.WarningMessage]]) -> None:
    home = Path(metalib.__file__).parent
    assert [str(each) for each in run[1] if home in Path(each.filename).parents] == []


def test_model_is_the_trained_one_and_opens_as_a_pipeline(folder: Path) -> None:
    classify = pipeline("text-classification", model=str(folder / "model"), device="cpu")
    answers = classify(["A fine kettle.", "It broke."], top_k=None)
    for answer in answers:
        assert {each["label"] for each in answer} == {"negative", "positive"}
        assert sum(each["score"] for each in answer) == pytest.approx(1)
    found = load_checkpoint(folder / "checkpoint")
    model = AutoModelForSequenceClassification.from_pretrained(folder / "model")
    assert found is not None and torch.equal(Weights(model).flat, found[1]["theta"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        start = load_checkpoint(folder / "baselines" / "finetuned" / "checkpoint")
    assert start is not None and not torch.equal(start[1]["theta"], found[1]["theta"])


def test_model_card_is_filled_in(folder: Path) -> None:
    card = ModelCard.load(folder / "model" / "README.md")
    assert card.data.pipeline_tag == "text-classification" and card.data.library_name == "transformers"
    for unfilled in ("More Information Needed", "{{", "TODO", "[optional]", "nan"):
        assert unfilled not in card.text
    assert "Classes: negative, positive." in card.text
    for row in score_rows(read(folder / "evaluation.json")):
        assert row in card.text
    assert "<b>" not in card.text


# The evaluation


def test_evaluation_has_its_schema(folder: Path) -> None:
    evaluation = read(folder / "evaluation.json")
    assert evaluation.keys() == {"episodes", "unit", "methods", "paired"}
    episodes = evaluation["episodes"]
    assert {**episodes, "sha256": ""} == {"count": 6, "sha256": "", "shots": 10, "queries": 5}
    assert re.fullmatch("[0-9a-f]{64}", episodes["sha256"])
    assert list(evaluation["methods"]) == METHODS
    for entry in evaluation["methods"].values():
        assert entry.keys() == {"overall", "domains"}
        assert list(entry["domains"]) == [ODD, "office_products"]
        for scores in (entry["overall"], *entry["domains"].values()):
            assert tuple(scores) == METRICS
            for point in scores.values():
                assert point.keys() == {"mean", "ci95"}
                low, high = point["ci95"]
                assert 0 <= low <= point["mean"] <= high <= 1
    expected = [("reptile", other, metric) for other in METHODS[:-1] for metric in METRICS]
    assert [(pair["a"], pair["b"], pair["metric"]) for pair in evaluation["paired"]] == expected
    for pair in evaluation["paired"]:
        assert pair.keys() == {"a", "b", "metric", "difference", "ci95"}
        of_a, of_b = (evaluation["methods"][pair[side]]["overall"][pair["metric"]]["mean"] for side in "ab")
        assert pair["difference"] == pytest.approx(of_a - of_b)
        assert pair["ci95"][0] <= pair["difference"] <= pair["ci95"][1]
    assert evaluation["methods"]["majority"]["overall"]["accuracy"]["mean"] == 0.5
    means = {entry["overall"]["accuracy"]["mean"] for entry in evaluation["methods"].values()}
    assert len(means) >= 3  # the methods do differ: else these tests would not see a mix-up


def number(point: dict[str, Any]) -> str:
    """A score as the tables show it."""
    low, high = point["ci95"]
    return f"{100 * point['mean']:.1f}" + ("" if low == high else f" ({100 * low:.1f} to {100 * high:.1f})")


def score_rows(evaluation: dict[str, Any]) -> list[str]:
    return [
        f"| {NAMES[name]} | " + " | ".join(number(entry["overall"][metric]) for metric in METRICS) + " |"
        for name, entry in evaluation["methods"].items()
    ]


def test_numbers_of_the_report_are_those_of_the_evaluation(folder: Path) -> None:
    evaluation, report = read(folder / "evaluation.json"), (folder / "report.md").read_text()
    rows = score_rows(evaluation)
    for name, entry in evaluation["methods"].items():
        points = (entry["domains"][domain]["balanced_accuracy"] for domain in (ODD, "office_products"))
        rows.append(f"| {NAMES[name]} | " + " | ".join(map(number, points)) + " |")
    for row in rows:
        assert row + "\n" in report
    for pair in (pair for pair in evaluation["paired"] if pair["metric"] == "balanced_accuracy"):
        shown = number({"mean": pair["difference"], "ci95": pair["ci95"]})
        assert f"| {NAMES[pair['a']]} − {NAMES[pair['b']]} | {shown} | " in report
    assert evaluation["episodes"]["sha256"][:16] in report and "6 episodes" in report


def test_links_of_the_report_lead_to_files(folder: Path) -> None:
    report = (folder / "report.md").read_text()
    images = re.findall(r"!\[[^]]+\]\(([^)]+)\)", report)
    assert {"learning_curve.png", "adaptation_curve.png", "domains.png"} == set(images)
    for link in re.findall(r"\]\(([^)]+)\)", report):
        assert (folder / link).is_file(), link


def test_trackers_get_steps_that_only_grow(bench: Any, config: Config, tmp_path: Path, monkeypatch: Any) -> None:
    seen: list[tuple[int, dict[str, float]]] = []
    monkeypatch.setattr(type(bench.accelerator), "log", lambda self, numbers, step: seen.append((step, numbers)))
    small = replace(config, meta_steps=2, validations=1, joint=("meta_steps=3",))
    runs.train_learners(replace(bench, config=small), tmp_path)
    steps = [step for step, _ in seen]
    assert steps == sorted(set(steps)) and len(steps) == 1 + 4 + 3  # of finetuned, joint and reptile
    assert [numbers["reptile/meta_step"] for _, numbers in seen if "reptile/meta_step" in numbers] == [0, 1, 2]


def test_a_folder_that_cannot_be_written_is_no_traceback(folder: Path, monkeypatch: Any, capsys: Any) -> None:
    def refuse(*given: Any, **named: Any) -> None:
        raise PermissionError(13, "Permission denied", str(folder / "running_logs.log"))

    monkeypatch.setattr("metalib.folders.logging.FileHandler", refuse)
    assert main(["evaluate", str(folder)]) == 1
    said = capsys.readouterr().err
    assert "metalib: [Errno 13] Permission denied" in said and "running_logs.log" in said and "Traceback" not in said
    assert "see that it can be read and written" in said


def test_the_shot_curve_ends_where_the_reviews_do(bench: Any, config: Config) -> None:
    few = replace(bench, config=replace(config, queries=15, eval_episodes=4, adapt_steps=1))  # of 30 negatives
    assert runs.shot_curve(few, {"reptile": bench.theta_0})["reptile"]["shots"] == [1, 2, 5, 10]


def test_splits_hang_on_their_own_seed(place: Path) -> None:
    config = replace(read_config(place / "settings.yaml"), validation_domains=(), validation_count=1)
    drawn = [{load_splits(replace(config, **{name: seed})).validation_domains for seed in range(8)}
             for name in ("seed", "split_seed")]  # fmt: skip
    assert len(drawn[0]) == 1 < len(drawn[1])


def test_what_meta_training_brings_is_seen_from_the_untrained_model(place: Path) -> None:
    out = place / "untrained"
    assert main(["train", str(place / "settings.yaml"), "--out", str(out), "--untrained"]) == 0
    found = read(out / "evaluation.json")
    assert found["methods"]["untrained_reptile"] == found["methods"]["finetuned"] != found["methods"]["reptile"]
    assert ("reptile", "untrained_reptile") in {(pair["a"], pair["b"]) for pair in found["paired"]}
    model = AutoModelForSequenceClassification.from_pretrained(out / "model")
    checkpoint = load_checkpoint(out / "checkpoint")
    assert checkpoint is not None and torch.equal(Weights(model).flat, checkpoint[1]["theta"])  # the trained one


def test_odd_domain_becomes_neither_markup_nor_a_path(folder: Path, place: Path) -> None:
    report = (folder / "report.md").read_text()
    assert "| ../../x\\|&lt;b\\>\\*y\\* | office\\_products |" in report
    assert "<" not in report and ODD not in report
    tables = [line for line in report.splitlines() if line.startswith("|")]
    columns = [len(re.findall(r"(?<!\\)\|", line)) for line in tables]
    assert set(columns) == {4, 5}  # 3 columns, 4 columns
    assert {path.name for path in place.parents[1].iterdir()} == {"b"} and [*place.parent.iterdir()] == [place]


def test_hash_is_that_of_the_episodes_of_these_settings(folder: Path) -> None:
    config = read_config(folder / "config.yaml")
    test = load_splits(config).test
    sampler = TaskSampler(test, config.shots, config.queries, config.split_seed, in_turn=True)
    tasks = [sampler[index] for index in range(config.eval_episodes)]
    assert read(folder / "evaluation.json")["episodes"]["sha256"] == hash_tasks(tasks, test["text"][:])
    assert [task.domain for task in tasks] == [ODD, "office_products"] * 3


# Again


def test_the_same_command_gives_the_same_bytes(folder: Path, place: Path) -> None:
    again = place / "again"  # with --resume, where nothing is: it starts from the beginning
    assert main(["train", str(place / "settings.yaml"), "--out", str(again), "--resume"]) == 0
    expected, found = contents(folder, ("running_logs.log",)), contents(again, ("running_logs.log",))
    assert expected.keys() == found.keys()
    different = {name for name in expected if expected[name] != found[name]}
    assert different <= {"config.yaml"}  # it says where
    assert "evaluation.json" in found and "metrics.jsonl" in found


def test_evaluating_again_gives_the_same_and_adds_the_shot_curve(
    folder: Path, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tested: dict[str, set[str]] = {}
    texts = load_splits(read_config(folder / "config.yaml")).test["text"][:]
    predict = runs.predict_episodes

    def remember(learner: Any, reviews: Any, episodes: Episodes, *rest: Any) -> Any:
        tested.setdefault(learner.name, set()).add(hash_tasks(episodes.tasks, texts))
        return predict(learner, reviews, episodes, *rest)

    monkeypatch.setattr(runs, "predict_episodes", remember)
    assert main(["evaluate", str(copy)]) == 0
    before, after = contents(folder), contents(copy)
    assert {name for name in after if after[name] != before.get(name)} == {
        "curves.json", "report.md", "shot_curve.png",
    }  # fmt: skip
    # All methods were tested on the same episodes, those of the evaluation among them.
    assert set(tested) == set(METHODS) - {"majority"} and len(tested["reptile"]) == 1 + 5  # other ones for each shots
    assert tested["reptile"] == tested["joint"] == tested["finetuned"]
    assert read(copy / "evaluation.json")["episodes"]["sha256"] in tested["joint"]
    curves = read(copy / "curves.json")
    assert curves["adaptation"] == read(folder / "curves.json")["adaptation"]
    for points in curves["shots"].values():
        assert points["shots"] == [1, 2, 5, 10, 20] and len(points["balanced_accuracy"]) == 5
    assert "![shot curve](shot_curve.png)" in (copy / "report.md").read_text()
    # Resuming what is finished leaves the curve where it is.
    assert main(["train", "--out", str(copy), "--resume"]) == 0
    assert contents(copy) == after


def test_adaptation_curve_ends_at_the_score_of_the_evaluation(folder: Path) -> None:
    evaluation, curves = read(folder / "evaluation.json"), read(folder / "curves.json")
    for name, points in curves["adaptation"].items():
        assert points["steps"] == [0, 1, 2, 5, 10]
        assert points["balanced_accuracy"][-1] == evaluation["methods"][name]["overall"]["balanced_accuracy"]


@pytest.mark.parametrize("name", ["evaluation.json", "metrics.jsonl", "curves.json", "config.yaml"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", None])
def test_a_broken_file_of_a_run_is_named(copy: Path, name: str, content: bytes | None) -> None:
    """Each ends with the project's own error, or is made again; none with another exception."""
    if content is None:
        (copy / name).unlink()
    else:
        (copy / name).write_bytes(content)
    for read in (report.summary, report.write_report):
        try:
            read(copy)
        except MetalibError as error:
            assert name in str(error)


@pytest.mark.parametrize("domain", ["dvd", "books"])  # of the training, of the validation
def test_a_run_is_neither_tested_nor_resumed_on_other_reviews(
    place: Path, copy: Path, tmp_path: Path, capsys: Any, domain: str
) -> None:
    records, before = read(place / "reviews.json"), contents(copy)
    changed = next(record for record in records if record["domain"] == domain)
    changed["text"] += " light"
    (tmp_path / "reviews.json").write_text(json.dumps(records))
    for words in (["evaluate", str(copy)], ["train", "--out", str(copy), "--resume"]):
        assert main([*words, "--data", str(tmp_path / "reviews.json")]) == 2
        assert "was made with other reviews than these — give it the same data" in capsys.readouterr().err
    assert contents(copy) == before


def test_a_run_is_neither_tested_nor_resumed_with_another_model(copy: Path, capsys: Any) -> None:
    for learner in (copy, copy / "baselines" / "joint"):
        first, _, rest = (learner / "metrics.jsonl").read_text().partition("\n")
        (learner / "metrics.jsonl").write_text(json.dumps({**json.loads(first), "model": "0" * 64}) + "\n" + rest)
        before = contents(copy)
        for words in (["evaluate", str(copy)], ["train", "--out", str(copy), "--resume"]):
            assert main(words) == 2
            assert f"{str(learner)!r} was made with another model than this" in capsys.readouterr().err
        assert contents(copy) == before
        line = json.loads(first)
        (learner / "metrics.jsonl").write_text(json.dumps({k: line[k] for k in line if k != "model"}) + "\n" + rest)
    assert main(["evaluate", str(copy)]) == 0  # a run of a version that did not say it


def test_two_commands_do_not_train_into_one_folder(copy: Path, capsys: Any) -> None:
    before = contents(copy, but=())
    with FileLock(copy / "train.lock"):
        assert main(["train", "--out", str(copy), "--resume", "--checkpoint-every", "7"]) == 2
        assert "is being trained by another command — wait until it has ended" in capsys.readouterr().err
    assert contents(copy, but=()) == before
    assert main(["train", "--out", str(copy), "--resume"]) == 0


def test_a_disk_without_locks_is_trained_on_all_the_same(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: int) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", refuse)
    assert main(["train", "--out", str(copy), "--resume"]) == 0


def test_settings_of_a_learner_that_is_not_in_the_run_are_told_of(copy: Path, capsys: Any) -> None:
    settings = read_config(copy / "config.yaml")
    write_config(replace(settings, own=("maml.inner_lr=0.1", "reptile.inner_lr=0.1")), copy / "config.yaml")
    assert main(["train", "--out", str(copy), "--resume"]) == 0
    told = capsys.readouterr().err
    assert "maml has settings of its own, but is not among the learners of this run" in told
    assert "reptile has" not in told


def test_the_home_folder_is_found(place: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(place)
    shutil.copytree(place / "run", tmp_path / "run")
    assert main(["evaluate", "~/run"]) == 0
    assert main(["train", "--out=~/run", "--resume"]) == 0
    assert not (place / "~").exists()


def test_a_runs_reviews_may_be_moved(place: Path, copy: Path, tmp_path: Path, capsys: Any) -> None:
    settings, here = read_config(copy / "config.yaml"), str(tmp_path / "moved.json")
    write_config(replace(settings, data="gone.json"), copy / "config.yaml")
    shutil.copy(place / "reviews.json", here)
    for words in (["evaluate", str(copy)], ["train", "--out", str(copy), "--resume"]):
        assert main(words) == 2
        assert "say where with --data" in capsys.readouterr().err
        assert main([*words, "--data", here]) == 0
    assert read_config(copy / "config.yaml") == replace(settings, data=here, out=str(copy), resume=True)
    assert main(["train", "--out", str(copy), "--resume"]) == 0


def test_other_test_reviews_are_told_of(place: Path, copy: Path, tmp_path: Path, capsys: Any) -> None:
    records = read(place / "reviews.json")
    for record in records:
        record["text"] += " light" * (record["domain"] == "office_products")
    (tmp_path / "reviews.json").write_text(json.dumps(records))
    write_config(replace(read_config(copy / "config.yaml"), data=str(tmp_path / "reviews.json")), copy / "config.yaml")
    for told in (True, False):
        assert main(["evaluate", str(copy)]) == 0
        assert ("test reviews are others than those that it was tested on before" in capsys.readouterr().err) == told


def test_the_runs_model_cuts_texts_where_it_was_trained(folder: Path) -> None:
    assert AutoTokenizer.from_pretrained(folder / "model").model_max_length == 48


def test_resuming_a_finished_run_changes_nothing(folder: Path, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_step(*_: Any, **__: Any) -> None:
        raise AssertionError("a meta-step was taken")

    monkeypatch.setattr("metalib.training.sum_directions", no_step)
    assert main(["train", "--out", str(copy), "--resume"]) == 0
    assert contents(copy) == contents(folder)
    settings = read_config(copy / "config.yaml")
    assert replace(settings, out=str(folder), resume=False) == read_config(folder / "config.yaml")


# Folders and files


def test_runs_without_out_take_the_next_free_folder(place: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "reptile-reviews-2").mkdir(parents=True)
    quick = ["--meta-steps", "0", "--baselines", "--adapt-steps", "0", "--validations", "0"]
    for _ in range(2):
        assert main(["train", str(place / "settings.yaml"), *quick]) == 0
    made = {path.parent.name for path in (tmp_path / "runs").glob("*/report.md")}
    assert made == {"reptile-reviews-1", "reptile-reviews-3"}


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ("world", "reptile-world-1"),
        ("../a b/My reviews (2).v1.json", "reptile-My-reviews-2-v1-1"),
        ("https://example.org/x.json?a=1", "reptile-x-1"),
    ],
)
def test_names_of_folders(tmp_path: Path, monkeypatch: Any, data: str, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    chosen = next_free_folder(Config(data=data))
    assert chosen.parent == Path("runs") and chosen.name == name


def test_a_file_that_was_changed_is_read_again(place: Path, tmp_path: Path) -> None:
    config = replace(read_config(place / "settings.yaml"), data=str(tmp_path / "reviews.json"))
    records = read(place / "reviews.json")
    (tmp_path / "reviews.json").write_text(json.dumps(records))
    before = load_splits(config)
    assert load_splits(config) is before  # once is enough while it is the same
    (tmp_path / "reviews.json").write_text(json.dumps(records[:-1]))
    after = load_splits(config)
    sizes = [sum(map(len, (splits.train, splits.validation, splits.test))) for splits in (before, after)]
    assert sizes == [600, 599]
