"""What the notebooks share: claims that are checked, source shown from the library, answers that get a hint."""

import hashlib
import inspect
import json
import os
import re
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import matplotlib.pyplot as plt
import nbformat
import numpy as np
import torch
import transformers
from accelerate import Accelerator
from IPython.display import Markdown, display
from torch.profiler import ProfilerActivity, profile

import metalib
from metalib.config import read_config
from metalib.folders import start_folder
from metalib.runs import load_splits, trained_learner
from metalib.training import Workbench, meta_train, prepare

# The same colours in every notebook, and none of those that `metalib.plots` gives to a method (same palette).
POSITIVE, NEGATIVE = "#56B4E9", "#D55E00"
SUPPORT, QUERY = "#CC79A7", "#F0E442"
HERE = Path(__file__).resolve().parent
LIBRARY = Path(metalib.__file__).parent


def setup() -> None:
    """Figures of one size and sharpness; no progress bars; one thread, so that numbers come out as they are printed."""
    torch.set_num_threads(1)
    plt.rcParams.update({"figure.figsize": (8, 4), "figure.dpi": 90, "figure.constrained_layout.use": True})
    plt.rcParams.update({"axes.grid": True, "grid.alpha": 0.3, "axes.axisbelow": True})
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()


def claim(name: str, condition: Any) -> None:
    """The assertion behind the sentence of the text that carries `<!-- claim: name -->`. Silent where it holds."""
    if not bool(condition):
        raise AssertionError(f"claim {name!r} does not hold: the sentence that carries this name is wrong")


def show_source(thing: Any) -> None:
    """Show the source of one of the library's functions, classes or methods, as it is installed here."""
    source = textwrap.dedent(inspect.getsource(thing)).rstrip()
    file = Path(inspect.getsourcefile(inspect.unwrap(thing)) or "").resolve()
    root = HERE.parent if file.is_relative_to(HERE.parent) else LIBRARY.resolve().parent
    place = file.relative_to(root).as_posix()
    display(Markdown(f"`{place}`\n\n```python\n{source}\n```"))


def attempt(check: Callable[[Any], None], answer: Any) -> None:
    """Check an answer to an exercise; where it is not right yet, print the hint instead of stopping the notebook."""
    try:
        check(answer)
    except AssertionError as hint:
        print(f"Not yet: {hint}")


def folded_solution(notebook: str, check: str) -> str:
    """The solution that stands folded away in a notebook, of the exercise with this check."""
    cells = nbformat.read(HERE / f"{notebook}.ipynb", as_version=4).cells
    place = next(i for i, cell in enumerate(cells) if f"attempt(exercises.{check}," in cell.source)
    found = re.search(r"```python\n(.+?)```", cells[place + 1].source, re.DOTALL)
    return found.group(1) if found else ""


def peak_memory(function: Callable[[], Any]) -> int:
    """The largest number of bytes that tensors on the CPU take at one time while the function runs.

    Counted from the profiler's list of what is taken and given back, so that it is the same every time.
    """
    with quiet_stderr(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        function()
    events = record.profiler.kineto_results.events()
    taken = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    return int(np.cumsum([size for _, size in taken]).max())


@contextmanager
def quiet_stderr() -> Iterator[None]:
    """Inside, what compiled code writes to the error stream is dropped; Python's own errors still come through."""
    kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)


def family_bench() -> Workbench:
    """The workbench of configs/family.yaml, on the CPU: the tiny model with all that any learner learns."""
    config = read_config(HERE.parent / "configs" / "family.yaml")
    return prepare(config, load_splits(config), Accelerator(cpu=True))


def course_bench() -> Workbench:
    """The workbench of the notebooks: the world and the tiny model of configs/course.yaml, on the CPU."""
    config = read_config(HERE.parent / "configs" / "course.yaml")
    return prepare(config, load_splits(config), Accelerator(cpu=True))


def course_path(bench: Workbench, name: str) -> Path:
    """Where `course_run` leaves a learner."""
    parts = [repr(bench.config), *(file.read_text(encoding="utf-8") for file in sorted(LIBRARY.rglob("*.py")))]
    version = hashlib.sha256("".join(parts).encode()).hexdigest()[:8]
    return HERE.parent / "runs" / f"course-{version}" / name


def course_run(bench: Workbench, name: str) -> tuple[torch.Tensor, list[dict[str, Any]]]:
    """A learner of the course, trained: its weights (P,) and the lines of its `metrics.jsonl`.

    The first call trains it and leaves it under `runs/`, the next call, in any notebook, finds it there. The folder's
    name says what it was made with (the settings and the library's source), so that an outdated one is never found.
    """
    folder = course_path(bench, name)
    meta_train(bench, replace(bench.config.for_learner(name), resume=True), folder)
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return bench.weights.snapshot(), [json.loads(line) for line in lines]


def course_folder(bench: Workbench, name: str) -> Path:
    """A learner of the course as the run folder that `metalib train` leaves, but for its test and report."""
    config = replace(bench.config.for_learner(name), baselines=())
    theta, _ = course_run(bench, name)
    folder = course_path(bench, name)
    start_folder(folder, replace(config, resume=True))  # it may stand there from the last time
    learner = trained_learner(replace(bench, config=config), {name: theta})
    learner.save(folder / "model")
    bench.tokenizer.save_pretrained(folder / "model")
    return folder
