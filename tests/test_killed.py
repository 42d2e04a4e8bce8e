"""Nothing is lost: killed at any moment, on a full disk or by a signal, a run goes on and ends as if nothing had been.

The reference is the same run, never interrupted; everything is compared bit for bit.
"""

import random
import shutil
import signal
import subprocess

import groups
import psutil
import pytest

pytestmark = pytest.mark.slow

# Kills itself (kill -9) at the n-th time that something is forced to the disk: in the middle of writing a checkpoint,
# the metrics or the settings, before the new file gets its name.
KILLED_WHILE_WRITING = """
import os, signal, sys
from metalib.__main__ import main
left, real = int(os.environ["WRITES"]), os.fsync
def fsync(file):
    global left
    left -= 1
    os.kill(os.getpid(), signal.SIGKILL) if left == 0 else real(file)
os.fsync = fsync
sys.exit(main())
"""


@pytest.fixture(scope="module", params=["one process", "two processes"])
def place(request, tmp_path_factory, reviews, config):
    """A folder in which `whole` is a run that was never interrupted."""
    folder = groups.make_place(tmp_path_factory.mktemp("killed"), reviews, config)
    command = groups.START[1 if request.param == "one process" else 2]
    groups.run(folder, command, "run.yaml", "--out", "whole")
    return folder, command


def test_killed_at_random_moments(place):
    """kill -9 of everything, five times for each number of processes."""
    folder, command = place
    moments = random.Random(0)
    for _ in range(5):
        process = groups.start(folder, command, "run.yaml", "--out", "killed", "--resume")
        wanted = groups.steps_done(folder / "killed") + moments.randrange(0, 8)
        groups.wait_until(lambda wanted=wanted: groups.steps_done(folder / "killed") >= wanted, process)
        groups.kill(process)
    groups.run(folder, command, "run.yaml", "--out", "killed", "--resume")
    groups.assert_same_bytes(folder / "killed", folder / "whole")


def test_killed_while_writing(place):
    """kill -9 before a file that is being written gets its name, at five of the first writes after a start."""
    folder, command = place
    if command is not groups.START[1]:
        pytest.skip("only the main process writes: one process is enough")
    moments = random.Random(1)
    killer = [command[0], "-c", KILLED_WHILE_WRITING, "train"]
    for write in (1, 2, *(moments.randrange(3, 30) for _ in range(3))):
        groups.run(folder, killer, "run.yaml", "--out", "writing", "--resume", code=-signal.SIGKILL, WRITES=str(write))
    groups.run(folder, command, "run.yaml", "--out", "writing", "--resume")
    groups.assert_same_bytes(folder / "writing", folder / "whole")


def test_a_rank_is_killed_and_the_group_comes_back(place):
    """kill -9 of one of two processes under torch's elastic launcher, five times in one launch."""
    folder, command = place
    if command is groups.START[1]:
        pytest.skip("takes two processes")
    moments = random.Random(2)
    command = [command[0], "--max_restarts", "5", *command[1:]]
    process = groups.start(folder, command, "run.yaml", "--out", "ranks")
    for _ in range(5):
        ranks: list[psutil.Process] = []
        wanted = max(groups.steps_done(folder / "ranks"), 0) + moments.randrange(1, 4)

        def ready(ranks=ranks, wanted=wanted):
            ranks[:] = [each for each in psutil.Process(process.pid).children(recursive=True) if each.is_running()]
            return len(ranks) >= 2 and groups.steps_done(folder / "ranks") >= wanted

        groups.wait_until(ready, process)
        victim = moments.choice(ranks)
        victim.kill()
        groups.wait_until(lambda victim=victim: not psutil.pid_exists(victim.pid), process)
    assert process.wait(groups.LIMIT) == 0, groups.words_of(folder)[-3000:]
    assert "another process is gone" in groups.words_of(folder)
    groups.assert_same_bytes(folder / "ranks", folder / "whole")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_by_a_signal(place, number):
    folder, command = place
    out = f"stopped-{number.name}"
    process = groups.start(folder, command, "run.yaml", "--out", out, "--resume")
    assert groups.wait_until(lambda: groups.steps_done(folder / out / "baselines" / "joint") >= 4, process)
    process.send_signal(number)
    assert process.wait(groups.LIMIT) != 0
    assert "metalib: stopped by a signal: joint is saved after meta-step" in groups.words_of(folder)
    groups.run(folder, command, "run.yaml", "--out", out, "--resume")
    groups.assert_same_bytes(folder / out, folder / "whole")


def test_resumed_with_other_numbers_of_processes(place):
    folder, command = place
    if command is groups.START[1]:
        pytest.skip("starts with two processes")
    process = groups.start(folder, command, "run.yaml", "--out", "begun")
    assert groups.wait_until(lambda: groups.steps_done(folder / "begun") >= 7, process)
    groups.kill(process)
    for number in (1, 3):
        shutil.copytree(folder / "begun", folder / f"resumed-{number}")
        groups.run(folder, groups.START[number], "run.yaml", "--out", f"resumed-{number}", "--resume")
        groups.assert_same_run(folder / f"resumed-{number}", folder / "whole")


def test_a_full_disk(place):
    """On a disk with room for two checkpoints and a half, the third one stops the run; the second one is whole."""
    folder, command = place
    size = next((folder / "whole" / "checkpoint").glob("*.safetensors")).stat().st_size
    (folder / "disk").mkdir()
    mount = f"mount -t tmpfs -o size={int(2.5 * size) // 1024}k tmpfs disk"
    if subprocess.run(["unshare", "-rm", "sh", "-c", mount], cwd=folder, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    words = 'run.yaml --out disk/run --baselines ""'
    script = f"{mount} && {' '.join(command)} {words}; code=$?; cp -r disk/run saved; exit $code"
    said = groups.run(folder, ["unshare", "-rm", "sh", "-c", script], code=1)
    assert "No space left on device" in said and "still whole" in said
    groups.run(folder, command, *["run.yaml", "--out", "saved", "--resume"], "--baselines", "")
    assert "saved goes on after meta-step 6" in groups.words_of(folder)
    groups.assert_same_bytes(folder / "saved", folder / "whole", learners=[""], tested=False)  # without joint training
