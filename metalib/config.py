"""Every setting of a run, in one place: the YAML file's keys and the command line's flags."""

import reprlib
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass

from metalib.checkpoint import write_atomically
from metalib.errors import BadInput
from metalib.inner import InnerLoop
from metalib.learners import LEARNERS
from metalib.parts import Adapts
from metalib.world import TEST_DOMAINS

Count = Annotated[int, Field(ge=1)]
CountOrZero = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
SHORT = reprlib.Repr()  # for values in messages
SHORT.maxlevel, SHORT.maxstring = 2, 200


def split_commas(names: object) -> object:
    """`("a,b", "c")` → `("a", "b", "c")`, so that a flag may list names with commas."""
    if isinstance(names, list | tuple) and all(isinstance(name, str) for name in names):
        return tuple(part.strip() for name in names for part in name.split(",") if part.strip())
    return names


def as_assignments(settings: object) -> object:
    """`{"epsilon": 1e-3}`, as YAML has it, → `("epsilon=0.001",)`, as flags have it; names of nested ones get dots."""
    if not isinstance(settings, dict):
        return settings
    pairs: list[str] = []
    for name, value in settings.items():
        inner = as_assignments(value)
        pairs += [f"{name}.{pair}" for pair in inner] if isinstance(inner, tuple) else [f"{name}={value}"]
    return tuple(pairs)


def parse_assignments(texts: Sequence[str], source: str) -> dict[str, str]:
    """`["epsilon=1e-3"]` → `{"epsilon": "1e-3"}`; dashes in names become underscores.

    Raises:
        BadInput: an entry that is not of the form setting=value; `source` says where it came from.
    """
    pairs = [text.partition("=") for text in texts]
    for (name, _, value), text in zip(pairs, texts, strict=True):
        if not name.strip() or not value.strip():
            raise BadInput(f"{source}: {text!r} is not of the form setting=value")
    return {name.strip().replace("-", "_"): value.strip() for name, _, value in pairs}


OWN_SETTINGS = (  # what a baseline may have of its own; the rest is the run's
    "meta_steps", "meta_batch", "train_shots", "train_queries", "inner_steps", "inner_batch", "inner_lr",
    "inner_optimizer", "inner_schedule", "adapt", "dropout", "micro_batch", "epsilon", "epsilon_final", "outer",
    "adapt_steps", "adapt_lr", "adapt_batch",
)  # fmt: skip
Names = Annotated[tuple[str, ...], BeforeValidator(split_commas)]
Assignments = Annotated[tuple[str, ...], BeforeValidator(as_assignments)]


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Config:
    """Settings of a run. Scores are fractions of 1, lengths are tokens, shots and queries are reviews per class."""

    data: str = "world"
    """`world`, `amazon`, a URL, or a file of reviews (.json, .jsonl, .csv, .parquet)."""
    conflict: Share = 0.75
    """World only: share of opinions whose sign depends on the domain."""
    cue: Share = 0.0
    """World only: how much a text gives away which domain it is from."""
    world_seed: CountOrZero = 0
    """World only: seed of the reviews."""
    test_domains: tuple[str, ...] = TEST_DOMAINS
    """Domains looked at once, at the end."""
    train_domains: tuple[str, ...] = ()
    """Domains to train on; none named = all that are not held out."""
    validation_domains: tuple[str, ...] = ()
    """Domains for choosing settings; none named = `validation_count` of the training domains, drawn by `split_seed`."""
    validation_count: CountOrZero = 3
    """How many validation domains to draw where none are named."""
    split_seed: CountOrZero = 0
    """Seed of the validation domains, of all evaluation episodes and of the order in which they are learned."""

    model: str = "tiny"
    """`tiny`, or the folder or hub name of a pretrained checkpoint."""
    max_length: Annotated[int, Field(ge=4)] = 128
    """Longer reviews are cut to this many tokens."""
    frozen_layers: CountOrZero = 0
    """So many of the lowest layers, and the embeddings, stay as they are."""

    learner: str = "reptile"
    """reptile, fomaml, maml, anil, joint, protonet, matching, siamese, relation; finetuned = no meta-training."""
    seed: CountOrZero = 0
    """Seed of the new weights, the training tasks, the minibatches and dropout."""
    meta_steps: CountOrZero = 300
    """Steps of the outer loop."""
    meta_batch: Count = 5
    """Tasks per meta-step."""
    train_shots: Count = 40
    """Reviews per class to draw from while meta-training (more than `shots` helps)."""
    train_queries: Count = 10
    """Reviews per class in the query sets of meta-training, for the learners that need them."""
    inner_steps: Count = 10
    """Steps of the inner loop while meta-training."""
    inner_batch: Count = 10
    """Reviews per inner step."""
    inner_lr: Positive = 1e-3
    """Inner learning rate α."""
    inner_optimizer: Literal["adam", "sgd"] = "adam"
    """Optimiser of the inner loop."""
    inner_schedule: Literal["constant", "linear"] = "constant"
    """Inner learning rate over the steps: constant, or in a straight line down to zero."""
    adapt: Adapts = "all"
    """What moves in the inner loop, of all that is learned: everything, the head, the head and all biases, or the head
    and low-rank updates (LoRA). What the outer loop learns stays the same."""
    lora_rank: Count = 8
    """Rank of the low-rank updates."""
    dropout: bool = False
    """Dropout in the inner loop, on or off for the whole of it."""
    micro_batch: CountOrZero = 0
    """At most so many reviews per forward pass, for small memories; the result stays the same. 0 = no limit."""
    epsilon: NotNegative | None = None
    """Outer step size ε; none = 1 where the outer optimiser is sgd, 1e-3 where it is adam. As it is a share of the
    way for the one and a learning rate for the other, a baseline with the other optimiser does not take it over."""
    epsilon_final: NotNegative | None = None
    """ε at the last meta-step, to which it goes in a straight line; none = a tenth of `epsilon`."""
    outer: Literal["auto", "sgd", "adam"] = "auto"
    """Outer optimiser; auto: sgd where directions are displacements (reptile), adam where they are gradients."""

    shots: Count = 10
    """Support reviews per class at the test."""
    queries: Count = 10
    """Query reviews per class at the test."""
    adapt_steps: CountOrZero = 20
    """Gradient steps on the support set at the test."""
    adapt_lr: Positive = 1e-3
    """Learning rate of these steps."""
    adapt_batch: Count = 10
    """Reviews per step at the test."""
    eval_episodes: Count = 210
    """Test episodes in total, over all test domains in turn."""
    validations: CountOrZero = 6
    """How often to score the validation domains while training, evenly spread; the points of the learning curve."""
    validation_episodes: Count = 30
    """Episodes of each such scoring."""

    baselines: Names = ("finetuned", "joint")
    """Learners to train and test beside this one, with as many review passes unless their meta_steps is given."""
    untrained: bool = False
    """Test every learner before its meta-training too."""
    joint: Assignments = ()
    """Settings of joint training that differ, e.g. `epsilon=1e-3`."""
    finetuned: Assignments = ()
    """Settings of `finetuned` that differ, e.g. `adapt_lr=1e-3`."""
    own: Assignments = ()
    """Settings of any learner of the run that differ, e.g. `maml.inner_lr=0.1`."""

    out: str | None = None
    """Run folder; none = the next free `runs/LEARNER-DATA-NUMBER`."""
    resume: bool = False
    """Go on from the run folder's checkpoints."""
    checkpoint_every: Count = 50
    """Meta-steps between checkpoints."""
    trackers: Names = ()
    """Accelerate's trackers to report to, e.g. tensorboard."""

    def training_loop(self) -> InnerLoop:
        """The inner loop while meta-training."""
        return InnerLoop(
            self.inner_steps, self.inner_lr, self.inner_batch, self.inner_optimizer, self.inner_schedule,
            self.dropout, self.micro_batch, self.adapt,
        )  # fmt: skip

    def adaptation_loop(self) -> InnerLoop:
        """The inner loop at the test."""
        return InnerLoop(
            self.adapt_steps, self.adapt_lr, self.adapt_batch, self.inner_optimizer, self.inner_schedule,
            self.dropout, self.micro_batch, self.adapt,
        )  # fmt: skip

    @property
    def learners(self) -> list[str]:
        """The baselines and the run's learner, each once, in the order of the tables."""
        return [*dict.fromkeys(name for name in self.baselines if name != self.learner), self.learner]

    @property
    def outer_kind(self) -> str:
        """The outer optimiser: sgd or adam."""
        return LEARNERS[self.learner].outer if self.outer == "auto" else self.outer

    @property
    def query_rows(self) -> int:
        """Query reviews per class of a training task: none where the learner does not look at them."""
        return self.train_queries if LEARNERS[self.learner].uses_query else 0

    def passes_per_step(self, classes: int = 2) -> int:
        """Reviews that go forward and backward in one meta-step."""
        support, query = classes * self.train_shots, classes * self.query_rows
        return self.meta_batch * LEARNERS[self.learner].review_passes(support, query, self.training_loop())

    def own_settings(self, name: str) -> dict[str, str]:
        """What a learner of the run has of its own, unchecked."""
        listed = {"joint": self.joint, "finetuned": ("meta_steps=0", *self.finetuned)}.get(name, ())
        dotted = parse_assignments(self.own, "own")
        for key in dotted:
            if key.partition(".")[0] not in LEARNERS or "." not in key:
                raise BadInput(f"own: {key!r} does not begin with the name of a learner, as in maml.inner_lr=0.1")
        mine = {key.removeprefix(f"{name}."): value for key, value in dotted.items() if key.startswith(f"{name}.")}
        return {**parse_assignments(listed, f"the settings of {name}"), **mine}

    def for_learner(self, name: str, classes: int = 2) -> "Config":
        """The settings with which this run trains and tests one of its learners: its own where given, else the run's.

        A baseline gets as many review passes as the run's learner (`finetuned` has none), unless `meta_steps` is given.
        """
        source = f"the settings of {name}"
        own = self.own_settings(name)
        config = make_config({**asdict(self), **own, "learner": name}, source)
        for key in own:
            if key not in OWN_SETTINGS:
                raise BadInput(f"{source}: {key} is one for the whole run — set it there, not under {name}")
        LEARNERS[name].check(config.training_loop())
        main = config if name == self.learner else self.for_learner(self.learner, classes)
        if config.outer_kind != main.outer_kind:
            first, last = (getattr(config, key) if key in own else None for key in ("epsilon", "epsilon_final"))
            config = replace(config, epsilon=first, epsilon_final=last)
        if name == "finetuned":
            if config.meta_steps:
                raise BadInput(f"{source}: meta_steps={config.meta_steps}, but it is not meta-trained — leave it out")
        elif name != self.learner != "finetuned" and "meta_steps" not in own:
            passes = main.meta_steps * main.passes_per_step(classes)
            steps = max(round(passes / config.passes_per_step(classes)), min(main.meta_steps, 1))
            config = replace(config, meta_steps=steps)
        return config


def make_config(settings: dict[str, Any], source: str) -> Config:
    """A checked `Config` from plain values.

    Raises:
        BadInput: an unknown key or a value out of its range; `source` says where the settings came from.
    """
    known = [field.name for field in fields(Config)]
    for key in settings:
        if key not in known:
            near = get_close_matches(str(key), known, 1)
            hint = f"did you mean {near[0]!r}?" if near else "`metalib train --help` lists all settings"
            raise BadInput(f"{source}: unknown setting {key!r} — {hint}")
    try:
        config = Config(**settings)
    except ValidationError as error:
        raise invalid(error, source) from error
    for setting, names in (("learner", [config.learner]), ("baselines", config.baselines)):
        for name in names:
            if name not in LEARNERS:
                near = get_close_matches(name, LEARNERS, 1)
                hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(LEARNERS)}"
                raise BadInput(f"{source}: {setting} is {name!r}, and there is no such learner — {hint}")
    return config


def invalid(error: ValidationError, source: str) -> BadInput:
    """The first of pydantic's findings as this project's error: the setting, its value, what it must be."""
    wrong = error.errors()[0]
    name = ".".join(str(part) for part in wrong["loc"])
    return BadInput(f"{source}: {name} is {SHORT.repr(wrong['input'])} — {wrong['msg'].lower()}")


def read_config(path: str | Path) -> Config:
    """Read a YAML file of settings.

    Raises:
        BadInput: no such file, not YAML, or settings that `make_config` refuses.
    """
    try:
        settings = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"config file {str(path)!r} cannot be read: {error}") from error
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:  # its constructors raise Python's own, too
        raise BadInput(f"config file {str(path)!r} is not YAML: {error}") from error
    if settings is None:
        settings = {}
    if not isinstance(settings, dict):
        raise BadInput(f"config file {str(path)!r} holds a {type(settings).__name__}, not `setting: value` lines")
    return make_config(settings, f"config file {str(path)!r}")


def write_config(config: Config, path: Path) -> None:
    """Write all settings as YAML that `read_config` reads back."""
    settings = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(config).items()}
    write_atomically(path, yaml.safe_dump(settings, sort_keys=False, allow_unicode=True).encode())
