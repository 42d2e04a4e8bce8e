"""The command line: every wrong word ends with its exit code and one clear line, before anything is trained."""

import json
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from metalib import runs, tuning
from metalib.__main__ import main
from metalib.config import Config, read_config, write_config

Refused = Callable[..., str]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reviews: Dataset, config: Config) -> Path:
    """The working folder: `good.yaml` for a run of seconds on `reviews.json`. Training in it is an error."""

    def no_training(*_: Any, **__: Any) -> None:
        raise AssertionError("training has begun")

    monkeypatch.setattr(runs, "meta_train", no_training)
    monkeypatch.setattr(tuning, "meta_train", no_training)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "reviews.json").write_text(json.dumps(reviews.to_list()))
    write_config(replace(config, data="reviews.json"), tmp_path / "good.yaml")
    return tmp_path


@pytest.fixture
def refused(here: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Run words that must be refused; returns the one line on stderr."""

    def run(*words: str) -> str:
        before = sorted(here.rglob("*"))
        code = main(words)
        shown = capsys.readouterr()
        assert code == 2
        assert shown.out == ""
        assert shown.err.startswith("metalib: ") and shown.err.count("\n") == 1, shown.err
        assert sorted(here.rglob("*")) == before  # nothing was written
        return shown.err

    return run


def test_the_good_settings_of_these_tests_do_get_to_training(here: Path) -> None:
    for words in (["train", "good.yaml"], ["tune", "good.yaml", "--grid", "inner_lr=1e-3"]):
        with pytest.raises(AssertionError, match="training has begun"):
            main(words)


# The data


def test_missing_data_file(refused: Refused) -> None:
    said = refused("train", "good.yaml", "--data", "review.json")
    assert "no file 'review.json'" in said and "did you mean 'reviews.json'?" in said


def test_data_that_is_not_json(refused: Refused, here: Path) -> None:
    (here / "broken.json").write_text("text,label\nfine,1\n")
    said = refused("train", "good.yaml", "--data", "broken.json")
    assert "broken.json: cannot be read as .json" in said and "line 1" in said


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("text", None, "2 records have no 'text': 3, 5 — fill it in"),
        ("label", None, "2 records have no 'label': 3, 5 — fill it in"),
        ("domain", None, "2 records have no 'domain': 3, 5 — fill it in"),
        ("label", "meh", "2 records have the unknown label 'meh': 3, 5 — use positive or negative"),
        ("text", "  ", "2 records have an empty text: 3, 5 — remove them or fill them"),
    ],
)
def test_bad_records(refused: Refused, here: Path, reviews: Dataset, field: str, value: Any, said: str) -> None:
    records = reviews.to_list()
    for row in (2, 4):
        records[row][field] = value
        if value is None:
            del records[row][field]
    (here / "bad.json").write_text(json.dumps(records))
    assert said in refused("train", "good.yaml", "--data", "bad.json")


def test_a_test_domain_that_is_also_a_training_domain(refused: Refused) -> None:
    said = refused("train", "good.yaml", "--test-domains", "automotive", "--train-domains", "baby", "automotive")
    assert "domain 'automotive' is both a test and a training domain" in said


@pytest.mark.parametrize(
    ("flags", "needs"),
    [
        (["--shots", "30"], "shots=30 with queries=5 needs 35"),
        (["--queries", "60"], "shots=5 with queries=60 needs 65"),
        (["--train-shots", "50"], "train_shots=50 with train_queries=0 needs 50"),
    ],
)
def test_domain_with_too_few_reviews_of_a_class(refused: Refused, flags: list[str], needs: str) -> None:
    said = refused("train", "good.yaml", *flags)
    assert "domain '" in said and " negative reviews" in said and needs in said and "lower one" in said
    assert ("training: " in said) == ("train_" in needs)


def test_too_many_shots_for_a_baseline_alone(refused: Refused, here: Path) -> None:
    (here / "own.yaml").write_text((here / "good.yaml").read_text() + "\njoint: {train_shots: 90}\n")
    assert "train_shots=90" in refused("train", "own.yaml")


def test_test_domains_that_would_not_be_tested(refused: Refused) -> None:
    said = refused("train", "good.yaml", "--eval-episodes", "1")
    assert "1 episodes are too few for 2 domains in turn — raise eval_episodes" in said
    assert "no reviews to draw tasks from" in refused("train", "good.yaml", "--test-domains")
    assert "too few for 2 domains" in refused("phase", "good.yaml", "--eval-episodes", "1", "--grid", "shots=1,2")


def test_two_columns_of_one_name(refused: Refused, here: Path) -> None:
    (here / "twins.csv").write_text("text,label,domain,text \nfine,positive,music,bad\n")
    assert "two columns are called 'text'" in refused("train", "good.yaml", "--data", "twins.csv")


def test_unknown_held_out_domains(refused: Refused) -> None:
    said = refused("train", "good.yaml", "--test-domains", "automotiv")
    assert "unknown test domain 'automotiv' — did you mean 'automotive'?" in said
    assert "unknown validation domain 'x'" in refused("train", "good.yaml", "--validation-domains", "x")


def test_domain_for_both_test_and_validation(refused: Refused) -> None:
    said = refused("train", "good.yaml", "--validation-domains", "automotive")
    assert "domain 'automotive' is both a test and a validation domain" in said


def test_no_network_for_a_model(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # as `make test` does, from the start
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    said = refused("train", "good.yaml", "--model", "some-body/some-model")
    assert "model 'some-body/some-model'" in said and "hub" in said and "HF_HUB_OFFLINE" in said
    assert "path of a downloaded checkpoint, or --model tiny" in said


def test_no_network_for_a_url(refused: Refused) -> None:
    with socket.socket() as taken:  # bound and not listening: connections are refused
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/reviews.json"
        said = refused("train", "good.yaml", "--data", url)
    assert f"{url}: cannot be downloaded" in said and "pass the file's path" in said


# Settings


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("inner_lrr: 1", ["unknown setting 'inner_lrr' — did you mean 'inner_lr'?"]),
        ("- shots: 1", ["holds a list, not `setting: value` lines"]),
        ("shots: [", ["is not YAML", "line 2"]),
        ("shots: 0", ["shots is 0", "greater than or equal to 1"]),
        ("inner_lr: .nan", ["inner_lr is nan", "finite"]),
        ("inner_lr: -1", ["inner_lr is -1", "greater than 0"]),
        ("meta_steps: many", ["meta_steps is 'many'", "integer"]),
        ("conflict: 2", ["conflict is 2", "less than or equal to 1"]),
        ("learner: mammal", ["learner is 'mammal'", "no such learner — did you mean 'maml'?"]),
        ("baselines: [nope]", ["baselines is 'nope'", "choose from reptile, "]),
    ],
)
def test_bad_config_files(refused: Refused, here: Path, text: str, said: list[str]) -> None:
    (here / "bad.yaml").write_text(text + "\n")
    shown = refused("train", "bad.yaml")
    for part in ("config file 'bad.yaml'", *said):
        assert part in shown


def test_config_file_that_cannot_be_read(refused: Refused, here: Path) -> None:
    assert "config file 'none.yaml' cannot be read: " in refused("train", "none.yaml")
    (here / "binary.yaml").write_bytes(b"shots: \xff\n")
    assert "config file 'binary.yaml' cannot be read: " in refused("train", "binary.yaml")


@pytest.mark.parametrize(
    ("flag", "value", "limit"),
    [
        ("--meta-steps", "-1", "greater than or equal to 0"),
        ("--shots", "0", "greater than or equal to 1"),
        ("--inner-lr", "-1", "greater than 0"),
        ("--inner-lr", "nan", "finite"),
        ("--conflict", "2", "less than or equal to 1"),
    ],
)
@pytest.mark.parametrize("file", [["good.yaml"], []], ids=["with a file", "without"])
def test_flags_out_of_their_range(refused: Refused, file: list[str], flag: str, value: str, limit: str) -> None:
    said = refused("train", *file, flag, value)
    assert flag.removeprefix("--").replace("-", "_") + f" is {value}" in said and limit in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train", "good.yaml", "--inner-lrr", "1"], "--inner-lr "),
        (["train", "good.yaml", "--shots", "ten"], "--shots"),
        (["train", "good.yaml", "more.yaml"], "more.yaml"),
        (["trian"], "train"),
        (["evaluate"], "PATH"),
        ([], "train, evaluate, tune"),
    ],
)
def test_words_that_are_no_command(here: Path, capsys: Any, words: list[str], said: str) -> None:
    before = sorted(here.rglob("*"))
    with pytest.raises(SystemExit) as caught:
        main(words)
    shown = capsys.readouterr()
    assert caught.value.code == 2 and said in shown.err and "Traceback" not in shown.err
    assert sorted(here.rglob("*")) == before


def test_help_lists_every_setting_as_a_flag(capsys: pytest.CaptureFixture[str]) -> None:
    def shown(*words: str) -> str:
        with pytest.raises(SystemExit) as caught:
            main([*words, "--help"])
        assert not caught.value.code
        return capsys.readouterr().out

    assert "{train,evaluate,tune" in shown()
    for command in ("train", "tune"):
        flags = set(re.findall(r"--[a-z-]+", shown(command)))
        assert {"--" + field.name.replace("_", "-") for field in fields(Config)} <= flags


def test_unknown_tracker_learner_and_baseline(refused: Refused) -> None:
    assert "learner is 'mammal', and there is no such learner — did" in refused("train", "--learner", "mammal")
    assert "tracker 'nope' is not installed here or unknown — choose" in refused("train", "--trackers", "nope")
    assert "baselines is 'nope', and there is no such learner — choose" in refused("train", "--baselines", "nope")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--learner", "maml"], "maml with inner_optimizer='adam'"),
        (["--baselines", "anil"], "anil with inner_optimizer='adam'"),
        (["--learner", "maml", "--inner-optimizer", "sgd", "--micro-batch", "2"], "maml with micro_batch=2"),
        (["--learner", "anil", "--inner-optimizer", "sgd", "--adapt", "bias"], "anil with adapt='bias'"),
        (["--baselines", "protonet", "--micro-batch", "2"], "protonet with micro_batch=2"),
        (["--own", "mamal.inner_lr=0.1"], "own: 'mamal.inner_lr' does not begin with the name of a learner"),
        (["--own", "joint.inner_lrr=0.1"], "settings of joint: unknown setting 'inner_lrr'"),
        (["--own", "joint.adapt=tail"], "settings of joint: adapt is 'tail'"),
        (["--learner", "relation", "--train-queries", "40"], "train_shots=6 with train_queries=40 needs 46"),
    ],
)
def test_settings_that_a_learner_cannot_do(refused: Refused, flags: list[str], said: str) -> None:
    assert said in refused("train", "good.yaml", *flags)


@pytest.mark.parametrize(
    ("own", "said"),
    [
        ("joint: {epsilom: 1}", "settings of joint: unknown setting 'epsilom' — did you mean 'epsilon'?"),
        ("joint: {epsilon: -1}", "settings of joint: epsilon is '-1'"),
        ("finetuned: {meta_steps: 3}", "settings of finetuned: meta_steps=3"),
    ],
)
def test_wrong_own_settings_of_a_baseline(refused: Refused, here: Path, own: str, said: str) -> None:
    (here / "own.yaml").write_text((here / "good.yaml").read_text() + f"\n{own}\n")
    assert said in refused("train", "own.yaml")


# Folders


def test_existing_run_without_resume(refused: Refused, here: Path) -> None:
    (here / "run").mkdir()
    write_config(Config(), here / "run" / "config.yaml")
    assert "--out 'run' is there already — add --resume" in refused("train", "good.yaml", "--out", "run")


def test_resuming_what_is_not_named(refused: Refused, here: Path) -> None:
    (here / "config.yaml").write_text("no setting: 1")  # somebody else's
    for words in (["train"], ["train", "good.yaml"], ["tune", "good.yaml", "--grid", "inner_lr=1e-3"],
                  ["phase", "good.yaml", "--grid", "shots=1"]):  # fmt: skip
        assert "--resume needs --out: name the folder" in refused(*words, "--resume")


def test_resuming_a_run_that_is_not_there(refused: Refused, here: Path) -> None:
    (here / "runs" / "mine").mkdir(parents=True)
    said = refused("train", "--resume", "--out", "runs/mien")
    assert "there is no run in 'runs/mien' that could go on — did you mean 'runs/mine'? Else leave --resume out" in said
    assert "go on — leave --resume out" in refused("train", "--resume", "--out", "elsewhere/x")


def test_data_in_the_place_of_the_settings(refused: Refused) -> None:
    assert "did you mean --data reviews.json?" in refused("train", "reviews.json")


def test_a_folder_that_another_run_takes_meanwhile(
    here: Path, config: Config, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare = runs.prepare

    def slowly(*given: Any) -> Any:
        (here / "run").mkdir()
        write_config(replace(config, seed=7), here / "run" / "config.yaml")
        return prepare(*given)

    monkeypatch.setattr(runs, "prepare", slowly)
    assert main(["train", "good.yaml", "--out", "run"]) == 2
    assert "'run' has just been taken by another run" in capsys.readouterr().err
    assert read_config(here / "run" / "config.yaml").seed == 7


def test_out_that_is_a_file(refused: Refused) -> None:
    assert "--out 'reviews.json' is a file — name a folder" in refused("train", "good.yaml", "--out", "reviews.json")


def test_out_that_cannot_be_made(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(here.rglob("*"))
    assert main(["train", "good.yaml", "--out", "reviews.json/run"]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("metalib: --out 'reviews.json/run' cannot be written: ")
    assert sorted(here.rglob("*")) == before


def test_resuming_with_other_settings(refused: Refused, here: Path, config: Config) -> None:
    (here / "run").mkdir()
    write_config(replace(config, data="reviews.json", out="run"), here / "run" / "config.yaml")
    said = refused("train", "good.yaml", "--out", "run", "--resume", "--seed", "3", "--shots", "4")
    assert "'run' was started with seed=0, not 3 — resume with the same settings" in said


def test_evaluating_what_is_no_finished_run(refused: Refused, here: Path, capsys: Any, config: Config) -> None:
    assert "'none' is not a run folder: it is not there" in refused("evaluate", "none")
    (here / "run").mkdir()
    assert "'run' is not a run folder: it holds no config.yaml" in refused("evaluate", "run")
    write_config(replace(config, data="reviews.json"), here / "run" / "config.yaml")
    assert main(["evaluate", "run"]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("metalib: 'run' is not finished: ") and last.endswith("go on with --resume")
    assert [path.name for path in (here / "run").iterdir()] == ["config.yaml"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "nothing to try — give at least one --grid"),
        (["--grid", "inner_lr"], "--grid: 'inner_lr' is not of the form setting=value"),
        (["--grid", "inner_lr="], "--grid: 'inner_lr=' is not of the form setting=value"),
        (["--grid", "inner_lr=,"], "nothing to try"),
        (["--grid", "inner_lrr=1"], "unknown setting 'inner_lrr' — did you mean 'inner_lr'?"),
        (["--grid", "inner_lr=-1"], "inner_lr is '-1'"),
        (["--grid", "shots=2,90"], "shots=90"),
        (["--grid", "validation_count=0,1", "--validation-domains"], "validation domains, and there are none"),
    ],
)
def test_tuning_that_cannot_be_done(refused: Refused, words: list[str], said: str) -> None:
    assert said in refused("tune", "good.yaml", *words)


def test_seeds_without_finished_runs(refused: Refused) -> None:
    assert "name the folders of finished runs" in refused("seeds")
    assert "'none' holds no evaluation.json" in refused("seeds", "none")


# While training


def test_loss_that_is_not_finite_ends_with_code_3_and_names_step_and_task(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from metalib.training import meta_train

    monkeypatch.setattr(runs, "meta_train", meta_train)
    assert main(["train", "good.yaml", "--out", "run", "--inner-lr", "1e30", "--baselines"]) == 3
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("metalib: the loss is not finite at meta-step 1, task ")
    assert "(domain '" in last and "lower inner_lr or epsilon" in last
    assert not (here / "run" / "evaluation.json").exists()


# The process


@pytest.mark.parametrize(
    "command", [[sys.executable, "-m", "metalib"], [str(Path(sys.executable).with_name("metalib"))]]
)
def test_exit_code_of_the_process(tmp_path: Path, command: list[str]) -> None:
    if not Path(command[0]).exists():
        pytest.skip("metalib is not installed here")
    done = subprocess.run(
        [*command, "train", "--shots", "0"], capture_output=True, text=True, cwd=tmp_path, timeout=300
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "metalib: command line: shots is 0 — input should be greater than or equal to 1\n"


def test_logging_is_left_as_it_was(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = len(runs.log.handlers), runs.log.level, runs.log.propagate
    main(["train", "--shots", "0"])
    assert (len(runs.log.handlers), runs.log.level, runs.log.propagate) == before
