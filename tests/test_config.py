"""Settings: where they come from, what is refused, and what each learner of a run gets."""

from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pytest

from metalib.__main__ import Train, parse
from metalib.config import Config, make_config, read_config, write_config
from metalib.errors import BadInput
from metalib.learners import LEARNERS


def settings(*words: str) -> Config:
    asked = parse(["train", *words])
    assert isinstance(asked, Train)
    return asked.settings


def yaml(folder: Path, text: str) -> str:
    path = folder / "settings.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_flags_go_before_the_yaml_file_and_this_before_the_defaults(tmp_path: Path) -> None:
    file = yaml(tmp_path, "shots: 7\nqueries: 8\n")
    for words in ([file, "--shots", "3"], ["--shots", "3", file]):
        assert settings(*words) == Config(shots=3, queries=8)
    assert settings(file, "--shots", str(Config().shots)).shots == Config().shots  # also back to the default


def test_an_empty_file_means_the_defaults(tmp_path: Path) -> None:
    assert settings(yaml(tmp_path, "# nothing\n")) == settings() == Config()


def test_numbers_that_yaml_takes_for_texts_are_numbers(tmp_path: Path) -> None:
    config = read_config(yaml(tmp_path, "inner_lr: 1e-4\nepsilon: 1e-3\nmeta_steps: 20\n"))
    assert (config.inner_lr, config.epsilon, config.meta_steps) == (1e-4, 1e-3, 20)
    joint = read_config(yaml(tmp_path, "joint: {epsilon: 1e-4}\n")).for_learner("joint")
    assert joint.epsilon == 1e-4


@pytest.mark.parametrize("words", [["joint,finetuned"], ["joint", "finetuned"], ["joint,", "finetuned"]])
def test_names_may_be_separated_by_commas_or_spaces(words: list[str]) -> None:
    config = settings("--baselines", *words, "--trackers", *words)
    assert config.baselines == config.trackers == ("joint", "finetuned")


def test_no_baselines_at_all() -> None:
    assert settings("--baselines").baselines == ()


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    config = Config(
        data="a b: [ü].json", test_domains=("yes", "../x", "12"), validation_domains=("a, b",), inner_lr=1e-07,
        epsilon=0.5, epsilon_final=0.0, baselines=("joint",), joint={"epsilon": 1e-3, "inner_optimizer": "sgd"},
        trackers=("tensorboard",), out="runs/ä", resume=True, dropout=True,
    )  # fmt: skip
    default = Config()
    same = {f.name for f in fields(Config) if getattr(config, f.name) == getattr(default, f.name)}
    for name in ("data", "test_domains", "validation_domains", "joint", "out"):
        assert name not in same  # the odd values are in it
    for each in (config, default):
        write_config(each, tmp_path / "config.yaml")
        assert read_config(tmp_path / "config.yaml") == each


def test_resuming_takes_the_settings_of_the_folder(tmp_path: Path) -> None:
    write_config(Config(shots=3, seed=4), tmp_path / "config.yaml")
    assert settings("--out", str(tmp_path), "--resume") == Config(shots=3, seed=4, out=str(tmp_path), resume=True)
    assert settings("--out", str(tmp_path)).shots == Config().shots  # not without --resume
    other = tmp_path / "other"
    other.mkdir()
    file = yaml(other, "shots: 9\n")
    assert settings(file, "--out", str(tmp_path), "--resume").shots == 9  # a named file counts


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"inner_lrr": 1}, ["unknown setting 'inner_lrr'", "did you mean 'inner_lr'?"]),
        ({"xyzzy": 1}, ["unknown setting 'xyzzy'", "--help"]),
        ({3: 1}, ["unknown setting 3"]),
        ({"meta_steps": -1}, ["meta_steps is -1", "greater than or equal to 0"]),
        ({"meta_steps": "many"}, ["meta_steps is 'many'", "integer"]),
        ({"meta_batch": 0}, ["meta_batch is 0", "greater than or equal to 1"]),
        ({"shots": 0}, ["shots is 0", "greater than or equal to 1"]),
        ({"shots": 1.5}, ["shots is 1.5", "integer"]),
        ({"inner_lr": 0}, ["inner_lr is 0", "greater than 0"]),
        ({"adapt_lr": -1}, ["adapt_lr is -1", "greater than 0"]),
        ({"inner_lr": float("nan")}, ["inner_lr is nan", "finite"]),
        ({"epsilon": float("inf")}, ["epsilon is inf", "finite"]),
        ({"conflict": 2}, ["conflict is 2", "less than or equal to 1"]),
        ({"learner": "mammal"}, ["learner is 'mammal'", "no such learner — did you mean 'maml'?"]),
        ({"baselines": ["joint", "nope"]}, ["baselines is 'nope'", "choose from reptile, "]),
        ({"joint": 3}, ["joint is 3"]),
        ({"own": 3}, ["own is 3"]),
        ({"adapt": "tail"}, ["adapt is 'tail'", "'head', 'bias' or 'lora'"]),
        ({"lora_rank": 0}, ["lora_rank is 0", "greater than or equal to 1"]),
    ],
)
def test_settings_that_cannot_be_used(given: dict[Any, Any], said: list[str]) -> None:
    with pytest.raises(BadInput) as caught:
        make_config(given, "config file 'a.yaml'")
    for part in ("config file 'a.yaml'", *said):
        assert part in str(caught.value)


def test_own_settings_of_a_baseline_apply_to_it_alone() -> None:
    config = Config(joint={"epsilon": 0.5, "adapt_lr": 0.2}, finetuned={"adapt_lr": 0.1})
    joint, finetuned = config.for_learner("joint"), config.for_learner("finetuned")
    assert (joint.learner, joint.epsilon, joint.adapt_lr) == ("joint", 0.5, 0.2)
    assert (finetuned.learner, finetuned.epsilon, finetuned.adapt_lr) == ("finetuned", None, 0.1)
    assert config.for_learner("reptile") == config
    changed = {key for key, value in asdict(joint).items() if value != asdict(config)[key]}
    assert changed == {"learner", "epsilon", "adapt_lr", "meta_steps"}


def test_own_settings_of_a_baseline_as_a_flag() -> None:
    joint = settings("--joint", "epsilon=1e-3", "adapt-batch=4", "--seed", "3").for_learner("joint")
    assert (joint.epsilon, joint.adapt_batch, joint.seed) == (1e-3, 4, 3)
    with pytest.raises(BadInput, match="settings of joint: 'epsilon' is not of the form setting=value"):
        settings("--joint", "epsilon").for_learner("joint")


@pytest.mark.parametrize("text", ["", "joint: {train_shots: 10}\n", "joint: {train_shots: 10, adapt_lr: 0.5}\n"])
def test_own_settings_as_a_flag_replace_all_those_of_the_yaml_file(tmp_path: Path, text: str) -> None:
    config = settings(yaml(tmp_path, text), "--joint", "train_shots=40", "epsilon=1e-3")
    assert config.joint == ("train_shots=40", "epsilon=1e-3")
    joint = config.for_learner("joint")
    assert (joint.train_shots, joint.epsilon, joint.adapt_lr) == (40, 1e-3, Config().adapt_lr)


def test_joint_training_gets_as_many_review_passes_as_the_learner() -> None:
    config = Config(meta_steps=300, meta_batch=5, inner_steps=10, inner_batch=10, train_shots=40)
    joint = config.for_learner("joint")
    passes = 300 * 5 * 10 * 10
    assert joint.meta_steps == 375 and passes == 375 * 5 * 2 * 40
    assert config.meta_steps * config.passes_per_step() == joint.meta_steps * joint.passes_per_step() == passes
    odd = replace(config, joint={"meta_batch": 7, "train_shots": 13}).for_learner("joint")
    assert abs(odd.meta_steps * odd.passes_per_step() - passes) <= odd.passes_per_step() / 2
    assert replace(config, joint={"meta_steps": 12}).for_learner("joint").meta_steps == 12
    assert replace(config, learner="joint").for_learner("joint").meta_steps == 300  # it is the learner itself


def test_finetuned_is_not_meta_trained() -> None:
    assert Config().for_learner("finetuned").meta_steps == 0
    assert Config(learner="finetuned").for_learner("finetuned").meta_steps == 0
    with pytest.raises(BadInput, match="meta_steps=3"):
        Config(finetuned={"meta_steps": 3}).for_learner("finetuned")


def test_a_step_size_of_the_one_outer_optimiser_is_none_of_the_other() -> None:
    config = Config(epsilon=0.5, epsilon_final=0.1, baselines=("joint", "finetuned", "fomaml"))
    assert (config.for_learner("reptile").epsilon, config.for_learner("reptile").epsilon_final) == (0.5, 0.1)
    assert (config.for_learner("joint").epsilon, config.for_learner("joint").epsilon_final) == (None, None)
    own = replace(config, joint=("epsilon=1e-4",)).for_learner("joint")
    assert (own.epsilon, own.epsilon_final) == (1e-4, None)
    gradients = Config(learner="fomaml", epsilon=3e-3, baselines=("joint", "reptile"))
    assert gradients.for_learner("joint").epsilon == 3e-3 and gradients.for_learner("reptile").epsilon is None
    own = replace(config, own=("reptile.outer=adam",))
    assert own.for_learner("joint").epsilon == 0.5
    assert replace(config, outer="adam").for_learner("joint").epsilon == 0.5  # then it is a learning rate for both


def test_without_a_meta_trained_learner_a_baseline_has_its_own_length() -> None:
    assert Config(learner="finetuned", meta_steps=7).for_learner("joint").meta_steps == 7
    assert Config(meta_steps=0).for_learner("joint").meta_steps == 0  # nobody is trained
    assert Config(meta_steps=1, train_shots=1, inner_steps=1, inner_batch=1).for_learner("joint").meta_steps == 1


def test_each_learner_of_a_run_stands_once_in_the_tables() -> None:
    assert Config(learner="joint", baselines=("maml", "joint", "anil", "maml")).learners == ["maml", "anil", "joint"]


def test_a_wrong_setting_of_a_baseline_names_the_baseline() -> None:
    with pytest.raises(BadInput, match=r"settings of joint: unknown setting 'epsilom' — did you mean 'epsilon'"):
        Config(joint={"epsilom": 1}).for_learner("joint")


def test_own_settings_of_any_learner_are_the_same_as_yaml_and_as_a_flag(tmp_path: Path) -> None:
    nested = read_config(yaml(tmp_path, "own: {maml: {inner_lr: 0.1, inner_optimizer: sgd}, reptile: {seed: 1}}\n"))
    flags = settings("--own", "maml.inner_lr=0.1", "maml.inner_optimizer=sgd", "reptile.seed=1")
    assert nested == flags
    maml, fomaml = (replace(flags, own=flags.own[:2]).for_learner(name) for name in ("maml", "fomaml"))
    assert (maml.inner_lr, maml.inner_optimizer) == (0.1, "sgd")
    assert (fomaml.inner_lr, fomaml.inner_optimizer) == (Config().inner_lr, "adam")
    write_config(flags, tmp_path / "config.yaml")
    assert read_config(tmp_path / "config.yaml") == flags
    with pytest.raises(BadInput, match="settings of reptile: seed is one for the whole run"):
        flags.for_learner("reptile")


@pytest.mark.parametrize("main", ["reptile", "maml", "protonet", "joint"])
def test_every_baseline_gets_as_many_review_passes_as_the_learner(main: str) -> None:
    config = Config(learner=main, inner_optimizer="sgd", meta_steps=120, inner_steps=7, train_queries=9)
    queries = 5 * 2 * 9  # of a meta-batch
    passes = {"reptile": 350, "maml": 350 + queries, "protonet": 400 + queries, "joint": 400}[main] * 120
    for name in LEARNERS:
        mine = config.for_learner(name)
        if name == "finetuned":
            assert mine.meta_steps == 0
        else:
            assert abs(mine.meta_steps * mine.passes_per_step() - passes) <= mine.passes_per_step() / 2, name


@pytest.mark.parametrize(
    ("given", "name", "said"),
    [
        ({}, "maml", "maml with inner_optimizer='adam'.*take inner_optimizer=sgd"),
        ({}, "anil", "anil with inner_optimizer='adam'"),
        ({"inner_optimizer": "sgd", "micro_batch": 2}, "maml", "maml with micro_batch=2"),
        ({"inner_optimizer": "sgd", "adapt": "bias"}, "anil", "anil with adapt='bias'.*take maml"),
        ({"own": {"anil": {"inner_optimizer": "sgd", "adapt": "lora"}}}, "anil", "anil with adapt='lora'"),
        *(({"micro_batch": 2}, n, f"{n} with micro_batch=2") for n in ("protonet", "matching", "siamese", "relation")),
        ({"own": {"mamal": {"inner_lr": 0.1}}}, "reptile", "'mamal.inner_lr' does not begin with the name"),
        ({"own": {"reptile": {"inner_lrr": 0.1}}}, "reptile", "settings of reptile: unknown setting 'inner_lrr'"),
        ({"own": {"reptile": {"shots": 1}}}, "reptile", "shots is one for the whole run"),
        ({"own": ("reptile.epsilon",)}, "reptile", "'reptile.epsilon' is not of the form setting=value"),
    ],
)
def test_what_a_learner_cannot_do(given: dict[str, Any], name: str, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        Config(**given).for_learner(name)
