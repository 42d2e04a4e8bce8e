"""Starting runs as processes of their own, as users do."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import psutil
import torch
from datasets import Dataset
from safetensors.torch import load_file

from metalib.config import Config, write_config

PYTHON = Path(sys.executable).parent
START = {
    1: [sys.executable, "-m", "metalib", "train"],
    2: [str(PYTHON / "torchrun"), "--nproc_per_node", "2", "-m", "metalib", "train"],
    3: [str(PYTHON / "torchrun"), "--nproc_per_node", "3", "-m", "metalib", "train"],
}
LIMIT = 240  # seconds


def make_place(place: Path, reviews: Dataset, config: Config) -> Path:
    """A folder with `reviews.json` and `run.yaml`: 20 meta-steps of Reptile and joint training, dropout on."""
    (place / "reviews.json").write_text(json.dumps(reviews.to_list()))
    settings = replace(config, data="reviews.json", dropout=True, meta_steps=20, checkpoint_every=3)
    write_config(settings, place / "run.yaml")
    return place


def start(place: Path, command: Sequence[str], *words: str, **environment: str) -> subprocess.Popen:
    """Start a command in the folder, one thread a process, its words going to `words.txt`."""
    with open(place / "words.txt", "ab") as file:
        return subprocess.Popen(
            [*command, *words], cwd=place, stdout=file, stderr=file, start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **environment},
        )  # fmt: skip


def words_of(place: Path) -> str:
    """What the commands in a folder have printed."""
    return (place / "words.txt").read_text(errors="replace").replace("\r", "\n")


def run(place: Path, command: Sequence[str], *words: str, code: int = 0, **environment: str) -> str:
    """Run a command to its end and check its exit code; returns what it printed."""
    before = len(words_of(place)) if (place / "words.txt").exists() else 0
    process = start(place, command, *words, **environment)
    try:
        found = process.wait(LIMIT)
    except subprocess.TimeoutExpired:
        kill(process)
        raise
    said = words_of(place)[before:]
    assert found == code, said[-3000:]
    return said


def kill(process: subprocess.Popen) -> None:
    """Kill -9 a command with all that it has started."""
    with suppress(psutil.NoSuchProcess):  # it has come to its end by itself
        for each in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
            with suppress(psutil.NoSuchProcess):
                each.send_signal(signal.SIGKILL)
    process.wait(LIMIT)


def wait_until(ready: Callable[[], bool], process: subprocess.Popen) -> bool:
    """Wait for something, or for the end of the process; returns whether it came."""
    end = time.monotonic() + LIMIT
    while time.monotonic() < end and process.poll() is None:
        if ready():
            return True
        time.sleep(0.02)
    return ready()


def steps_done(folder: Path) -> int:
    """Meta-steps in a run folder's metrics.jsonl; −1 where there is none yet."""
    file = folder / "metrics.jsonl"
    return len(file.read_bytes().splitlines()) - 1 if file.exists() else -1


def theta(folder: Path) -> torch.Tensor:
    """The weights (P,) of the newest checkpoint of a run folder."""
    return load_file(max((folder / "checkpoint").glob("*.safetensors")))["theta"]


def tasks(folder: Path) -> list[str]:
    """The hashes of the tasks of each meta-step."""
    return [json.loads(line).get("tasks") for line in (folder / "metrics.jsonl").read_text().splitlines()]


def assert_same_run(folder: Path, reference: Path, learners: Sequence[str] = ("", "baselines/joint")) -> None:
    """The same θ to 1e-6 of its length, the same tasks, the same evaluation."""
    for learner in learners:
        a, b = theta(folder / learner).double(), theta(reference / learner).double()
        assert float((a - b).norm() / b.norm()) < 1e-6
        assert tasks(folder / learner) == tasks(reference / learner)
    assert (folder / "evaluation.json").read_bytes() == (reference / "evaluation.json").read_bytes()


def assert_same_bytes(
    folder: Path, reference: Path, learners: Sequence[str] = ("", "baselines/joint"), tested: bool = True
) -> None:
    """The same weights and metrics, and where they were tested alike the same evaluation, bit for bit."""
    for learner in learners:
        assert torch.equal(theta(folder / learner), theta(reference / learner))
        a, b = (path / learner / "metrics.jsonl" for path in (folder, reference))
        assert a.read_bytes() == b.read_bytes()
    if tested:
        assert (folder / "evaluation.json").read_bytes() == (reference / "evaluation.json").read_bytes()
