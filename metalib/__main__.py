"""The command line: `metalib train`, `evaluate`, `tune`, `phase`, `seeds`, `cost`, `adapt` and `predict`."""

import errno
import json
import logging
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated

import tyro
from pydantic import ValidationError

from metalib.config import Config, invalid, make_config, read_config
from metalib.errors import BadInput, LostProcess, MetalibError, Stopped

Settings = Annotated[Config, tyro.conf.arg(name="")]
DEFAULTS = vars(Config())


@dataclass
class Train:
    """Meta-train a learner and its baselines, test them on the held-out domains, write a run folder."""

    file: tyro.conf.Positional[Path | None] = None
    """YAML file of settings, named first; flags override what it says."""
    settings: Settings = field(default_factory=Config)


@dataclass
class Evaluate:
    """Test a finished run again and draw all its figures, those that take longer too."""

    folder: tyro.conf.Positional[Path]
    """The run folder."""
    data: str | None = None
    """Where the run's reviews are now; none = where they were."""


@dataclass
class Tune:
    """Train and score every combination of a few settings' values on the validation domains."""

    file: tyro.conf.Positional[Path | None] = None
    """YAML file of settings, named first; flags override what it says."""
    grid: tuple[str, ...] = ()
    """Values to try, e.g. `--grid inner_lr=1e-4,3e-4 inner_steps=5,10`."""
    settings: Settings = field(default_factory=Config)


@dataclass
class Phase:
    """Train the learners in every world of a grid, and compare them there at every number of shots."""

    file: tyro.conf.Positional[Path | None] = None
    """YAML file of settings, named first; flags override what it says."""
    grid: tuple[str, ...] = ()
    """Values to try, e.g. `--grid conflict=0,0.5,1 cue=0,1 shots=1,10`."""
    settings: Settings = field(default_factory=Config)


@dataclass
class Seeds:
    """One table of several finished runs that differ in their seed only: mean scores and their spread."""

    folders: tyro.conf.Positional[tuple[Path, ...]]
    """The run folders."""


@dataclass
class Cost:
    """What a meta-step costs on several GPUs: operations, what is sent, and how many GPUs stay busy."""

    models: tyro.conf.Positional[tuple[str, ...]] = ("albert-base", "bert-base", "bert-large")
    """Sizes known by name (albert-base, albert-xxlarge, bert-base, bert-large), or folders of checkpoints."""
    meta_batch: int = 64
    """Tasks per meta-step."""
    inner_steps: int = 10
    """Steps of the inner loop."""
    inner_batch: int = 10
    """Reviews per inner step."""
    max_length: int = 128
    """Tokens of a review."""
    frozen_layers: int = 0
    """So many of the lowest layers, and the embeddings, stay as they are."""
    tflops: float = 50.0
    """What one GPU does in a second, in 10¹² floating-point operations."""
    task_seconds: float | None = None
    """Seconds of one task, where they were measured (a run's log has them)."""


@dataclass
class Adapt:
    """Adapt a finished run's model to a few labelled examples of your own; writes a model folder with its card."""

    run: tyro.conf.Positional[Path]
    """The run folder."""
    data: str
    """Your examples: .json, .jsonl, .csv or .parquet, a text and a label each."""
    out: Path
    """The folder to write; one that holds something is refused."""
    shots: int | None = None
    """Learn from so many examples of each class, drawn by the seed, and test on the others; none = learn from all."""
    text_column: str = "text"
    """The column of the texts."""
    label_column: str = "label"
    """The column of the labels."""
    seed: int = 0
    """Seed of the draw, of the folds of the cross-validation, of a new head and of the gradient steps."""
    adapt_steps: int | None = None
    """Gradient steps on the examples; none = as in the run, but, if any, enough to see each example once."""
    adapt_lr: float | None = None
    """Learning rate of these steps; none = as in the run."""


@dataclass
class Predict:
    """Classify texts with a model folder; one JSON line for each on stdout."""

    folder: tyro.conf.Positional[Path]
    """What `metalib adapt` wrote, or the `model` folder of a run."""
    texts: tyro.conf.Positional[tuple[str, ...]] = ()
    """The texts."""
    file: str | None = None
    """A file of texts in their place: .txt (one a line), .json, .jsonl, .csv or .parquet."""
    text_column: str = "text"
    """The column of the texts in that file."""


Asked = Train | Evaluate | Tune | Phase | Seeds | Cost | Adapt | Predict


def parse(words: Sequence[str]) -> Asked:
    """What the words ask for: flags go before the YAML file's settings, and these before the defaults.

    A run that is resumed without a YAML file takes the settings that stand in its folder.

    Raises:
        BadInput: a config file or a setting that cannot be used.
        SystemExit: unknown flags or values that are no numbers (2), `--help` (0).
    """
    try:
        asked = tyro.cli(Asked, prog="metalib", args=words)
        if isinstance(asked, Evaluate | Seeds | Cost | Adapt | Predict):
            return asked
        file, out = asked.file, asked.settings.out
        if file is None and asked.settings.resume and out:
            file = Path(out).expanduser() / "config.yaml"
            if not file.exists():
                raise BadInput(f"there is no run in {out!r} that could go on — {alike(Path(out))}leave --resume out, "
                               "or name the YAML file, to start one")  # fmt: skip
        if file is not None:
            if file.suffix.lower() in (".csv", ".json", ".jsonl", ".ndjson", ".parquet"):
                raise BadInput(f"{str(file)!r} is no YAML file of settings — did you mean --data {file}?")
            default = replace(asked, file=asked.file, settings=read_config(file))
            asked = tyro.cli(type(asked), prog=f"metalib {words[0]}", args=words[1:], default=default)
    except ValidationError as error:
        raise invalid(error, "command line") from error
    make_config(vars(asked.settings), "command line")
    return asked


def alike(path: Path) -> str:
    """A question after a name beside the path that is like it, where there is one."""
    names = [each.name for each in path.parent.iterdir()] if path.parent.is_dir() else []
    close = [name for name in get_close_matches(path.name, names, 1) if name != path.name]
    return f"did you mean {str(path.with_name(close[0]))!r}? Else " if close else ""


def is_main() -> bool:
    """Whether this is the process that writes and shows; the folder may not be there on other machines."""
    return os.environ.get("RANK", "0") == "0"


def carry_out(asked: Asked) -> str:
    """Do it; returns the tables to show."""
    from metalib import costs, phase, report, runs, tuning  # here: `--help` and bad settings need not wait for torch

    if isinstance(asked, Cost):
        settings = {name: value for name, value in vars(asked).items() if name in DEFAULTS}
        config = make_config(settings, "command line")
        for name, value in (("tflops", asked.tflops), ("task_seconds", asked.task_seconds)):
            if value is not None and not 0 < value < float("inf"):
                raise BadInput(f"command line: {name} is {value} — give a number above 0")
        return costs.costs_table(config, asked.models, asked.tflops, asked.task_seconds)
    if isinstance(asked, Seeds):
        return report.over_seeds(asked.folders)
    if isinstance(asked, Adapt | Predict):
        with no_loading_bars():
            return apply(asked)
    if isinstance(asked, Phase):
        folder = phase.phase(asked.settings, tuning.parse_grid(asked.grid))
        tables = (folder / "phase.md").read_text(encoding="utf-8") if is_main() else ""
    elif isinstance(asked, Tune):
        folder = tuning.tune(asked.settings, tuning.parse_grid(asked.grid))
        tables = (folder / "tuning.md").read_text(encoding="utf-8") if is_main() else ""
    else:
        with no_loading_bars():
            folder = runs.evaluate(**vars(asked)) if isinstance(asked, Evaluate) else runs.train(asked.settings)
        tables = report.summary(folder) if is_main() else ""
    return f"{tables}\nEverything is in {folder}"


@contextmanager
def no_loading_bars() -> Iterator[None]:
    """Inside, Transformers draws no progress bars of loading and saving the few tensors of a model."""
    from transformers.utils import logging as transformers_logging

    before = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if before:
            transformers_logging.enable_progress_bar()


def apply(asked: Adapt | Predict) -> str:
    """Adapt, and return the scores to show; or predict, and print the lines as they come."""
    from metalib import adapting, examples, predicting

    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise BadInput(f"{type(asked).__name__.lower()} is for one process — start it without a launcher")
    if isinstance(asked, Adapt):
        folder = adapting.adapt(**vars(asked))
        return f"{adapting.summary(folder)}\nEverything is in {folder}"
    if bool(asked.texts) == (asked.file is not None):
        raise BadInput("nothing to predict, or two things — give either texts or --file")
    texts = list(asked.texts) if asked.file is None else examples.load_texts(asked.file, asked.text_column)
    plain = (sys.stdout.encoding or "").lower().replace("-", "") != "utf8"
    try:
        for line in predicting.predict(asked.folder, texts):
            print(json.dumps(line, ensure_ascii=plain))
        sys.stdout.flush()
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return ""


def stop(number: int, frame: object) -> None:
    """SIGTERM where nothing has to be finished first."""
    raise Stopped("stopped by a signal; a run goes on from what it had saved with --resume")


def main(words: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 0 done, 2 bad input, 3 a loss that is not finite, 130 or 143 stopped
    by a signal, 1 anything else."""
    speaks = os.environ.get("LOCAL_RANK", "0") == "0"  # one process of each machine
    log = logging.getLogger("metalib")
    before = log.level, log.propagate
    screen = logging.StreamHandler() if is_main() else logging.NullHandler()
    screen.setFormatter(logging.Formatter("%(message)s"))
    log.addHandler(screen)
    log.setLevel(logging.INFO)
    log.propagate = False
    on_term = signal.signal(signal.SIGTERM, stop) if threading.current_thread() is threading.main_thread() else None
    try:
        tables = carry_out(parse(sys.argv[1:] if words is None else words))
    except (MetalibError, Stopped) as error:
        if speaks or isinstance(error, LostProcess):
            print(
                "\n" * isinstance(error, LostProcess) + "metalib:",
                re.sub(r"\s*\n\s*", " ", str(error)),
                file=sys.stderr,
            )
        return error.exit_code
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT):
            raise
        print(f"metalib: {error} — see that it can be read and written, and that there is space", file=sys.stderr)
        return MetalibError.exit_code
    except KeyboardInterrupt:
        if speaks:
            print("metalib: stopped; a run goes on from what it had saved with --resume", file=sys.stderr)
        return 130
    finally:  # called from a notebook or a test, it leaves everything as it was
        if on_term is not None:
            signal.signal(signal.SIGTERM, on_term)
        log.removeHandler(screen)
        log.setLevel(before[0])
        log.propagate = before[1]
    if is_main() and tables:
        print(tables)
    return 0


if __name__ == "__main__":
    sys.exit(main())
