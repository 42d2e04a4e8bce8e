"""Run folders: which one, may it be written, and what is logged into it."""

import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from filelock import FileLock, Timeout
from safetensors import SafetensorError

from metalib.checkpoint import write_atomically
from metalib.config import Config, parse_assignments, read_config, write_config
from metalib.errors import BadInput, MetalibError
from metalib.learners import LEARNERS
from metalib.processes import anywhere, check_restarts, from_main, make_accelerator, restarts

log = logging.getLogger("metalib")
FREE = ("out", "resume", "trackers", "checkpoint_every")  # settings that do not change what comes out

OTHERS = {
    "reviews": "other reviews than these — give it the same data",
    "model": "another model than this: its frozen weights differ, or how it cuts texts into tokens — give it the same",
}


def next_free_folder(config: Config, prefix: str = "") -> Path:
    """`runs/[PREFIX]LEARNER-DATA-N` with the lowest N that is not taken."""
    data = re.sub(r"[^A-Za-z0-9_-]+", "-", Path(config.data).stem)[:40] or "data"
    number = 1
    while (folder := Path("runs") / f"{prefix}{config.learner}-{data}-{number}").exists():
        number += 1
    return folder


def begin(config: Config, prefix: str = "") -> tuple[Accelerator, Config, Path]:
    """What a command that trains begins with: its processes, its settings and its folder, which is not yet made.

    A group that torch's elastic launcher has started again after a failure resumes by itself. Raises BadInput.
    """
    check_restarts(config.out)
    if prefix and (unused := [name for name in ("trackers", "untrained") if getattr(config, name)]):
        log.warning("%s: for `metalib train` alone, and without effect here", " and ".join(unused))
    accelerator = make_accelerator()
    config = replace(config, resume=config.resume or anywhere(accelerator, restarts()))
    return accelerator, config, choose_folder(config, accelerator, prefix)


def choose_folder(config: Config, accelerator: Accelerator, prefix: str = "") -> Path:
    """The run's folder, the same on all processes; not yet made.

    Raises:
        BadInput: it is there already and `resume` is not set, or it holds a run with other settings; `resume` is set,
            and no folder is named.
    """
    if config.resume and config.out is None:
        raise BadInput("--resume needs --out: name the folder of the run that is to go on")
    name = config.out or str(next_free_folder(config, prefix))
    folder = Path(from_main(accelerator, name.encode()).decode()).expanduser()
    if folder.exists() and not folder.is_dir():
        raise BadInput(f"--out {str(folder)!r} is a file — name a folder")
    unsaid = ("config.yaml.new", "train.lock")  # all that a command leaves that was killed while it began
    begun = [file for file in folder.iterdir() if file.name not in unsaid] if folder.is_dir() else []
    if begun:
        if not config.resume:
            raise BadInput(f"--out {str(folder)!r} is there already — add --resume to go on with it, or name another")
        if not (folder / "config.yaml").exists():
            raise BadInput(f"--out {str(folder)!r} is no run folder: it holds no config.yaml — name another")
        refuse_other_settings(folder, config, ("data",))  # a run knows its reviews by their hash
    named = {key.partition(".")[0] for key in parse_assignments(config.own, "own")}
    named |= {name for name in ("joint", "finetuned") if getattr(config, name)}
    for name in sorted((named & LEARNERS.keys()) - {config.learner, *config.baselines}):
        log.warning("%s has settings of its own, but is not among the learners of this run", name)
    return folder


def refuse_other_settings(folder: Path, config: Config, free: tuple[str, ...] = ()) -> None:
    """Raise BadInput where the folder was started with other settings than these, but for `FREE` and `free`."""
    if not (folder / "config.yaml").exists():
        return
    before, now = asdict(read_config(folder / "config.yaml")), asdict(config)
    for key in before:
        if before[key] != now[key] and key not in (*FREE, *free):
            raise BadInput(
                f"{str(folder)!r} was started with {key}={before[key]!r}, not {now[key]!r} — "
                "resume with the same settings, or name another --out"
            )


def trained_with(folder: Path) -> dict[str, str]:
    """Hashes of `reviews` and `model` that a learner's folder was trained with, as far as its `metrics.jsonl` says."""
    try:
        with (folder / "metrics.jsonl").open(encoding="utf-8") as file:
            line = json.loads(file.readline())
        return {what: str(line[what]) for what in ("reviews", "model") if what in line}
    except (OSError, ValueError, TypeError):  # not begun, or broken, which is told where it is read
        return {}


def refuse_others(folder: Path, given: Mapping[str, str]) -> None:
    """Raise BadInput where a learner's folder was trained with other reviews, or another model, than these hashes'."""
    before = trained_with(folder)
    for what, wrong in OTHERS.items():
        if what in before and what in given and before[what] != given[what]:
            raise BadInput(f"{str(folder)!r} was made with {wrong}, or train anew with another --out")


def check_given(folder: Path, config: Config, given: Mapping[str, str]) -> None:
    """`refuse_others` for all learners of a run."""
    for name in config.learners:
        refuse_others(learner_folder(folder, config, name), given)


def start_folder(folder: Path, config: Config) -> None:
    """Make a folder that holds its settings.

    Raises:
        BadInput: it cannot be made or written, or another run has begun it meanwhile.
    """
    if not config.resume and (folder / "config.yaml").exists():
        raise BadInput(f"--out {str(folder)!r} has just been taken by another run — start again, or name another")
    try:
        write_config(config, folder / "config.yaml")
    except MetalibError as error:
        reason = getattr(error.__cause__, "strerror", error)
        raise BadInput(f"--out {str(folder)!r} cannot be written: {reason} — name another folder") from error


@contextmanager
def alone_in(folder: Path, config: Config, accelerator: Accelerator) -> Iterator[None]:
    """Inside, the folder is there, with its settings, and no other command trains into it.

    The lock goes with the process, however that ends. On a disk that knows no locks there is none.

    Raises:
        BadInput: another command trains into it (said by all processes), or it cannot be made or written.
    """
    lock, taken = FileLock(folder / "train.lock", fallback_to_soft=False, preserve_lock_file=True), False
    if accelerator.is_main_process:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            taken = True
        except OSError as error:
            log.debug("%s is not locked: %s", folder, error)
    if anywhere(accelerator, taken):
        raise BadInput(f"--out {str(folder)!r} is being trained by another command — wait until it has ended, or name "
                       "another")  # fmt: skip
    try:
        if accelerator.is_main_process:
            start_folder(folder, config)
        accelerator.wait_for_everyone()
        yield
    finally:
        lock.release()


@contextmanager
def log_to(folder: Path, accelerator: Accelerator) -> Iterator[None]:
    """Messages go to `running_logs.log` in the folder, with clock times, from the main process only."""
    if not accelerator.is_main_process:
        yield
        return
    handler = logging.FileHandler(folder / "running_logs.log", encoding="utf-8")
    handler.handleError = lambda record: None  # type: ignore[method-assign]  # a full disk must not flood the screen
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        handler.close()


def learner_folder(folder: Path, config: Config, name: str) -> Path:
    """Where a learner of the run keeps its metrics and checkpoint."""
    return folder if name == config.learner else folder / "baselines" / name


def read_json(path: Path) -> dict[str, Any]:
    """Read what `write_json` wrote.

    Raises:
        BadInput: it is not there, or not what it was.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(f"{str(path)!r} cannot be read: {error} — `metalib evaluate` makes it again") from error
    if not isinstance(content, dict):
        raise BadInput(f"{str(path)!r} holds no JSON object — `metalib evaluate` makes it again")
    return content


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write JSON for people to read, atomically."""
    write_atomically(path, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())


def refuse_existing(out: Path) -> None:
    """Raise BadInput where the folder is there and not empty."""
    if out.exists() and not out.is_dir():
        raise BadInput(f"--out {str(out)!r} is a file — name a folder")
    if out.is_dir() and any(out.iterdir()):
        raise BadInput(f"--out {str(out)!r} is there already, and not empty — name another")


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder beside `out` that becomes `out` at the end, and is gone where anything fails."""
    out = out.resolve()
    beside = out.with_name(f"{out.name}.{os.getpid()}.new")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        beside.mkdir()
    except OSError as error:
        raise BadInput(f"--out {str(out)!r} cannot be written: {error.strerror} — name another folder") from error
    try:
        yield beside
        if out.is_dir():
            out.rmdir()  # refuses if it is not empty any more
        beside.rename(out)
    except (OSError, SafetensorError) as error:
        raise MetalibError(f"--out {str(out)!r} cannot be written: {error}") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
