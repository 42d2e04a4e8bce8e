"""The number of processes is not a hyper-parameter, however they are started, and the launch says what it does."""

import os
import signal
import socket
import threading
from dataclasses import replace
from types import SimpleNamespace

import groups
import psutil
import pytest
import torch
import yaml
from filelock import FileLock

from metalib import processes, training
from metalib.checkpoint import load_checkpoint, read_lines
from metalib.errors import BadInput, LostProcess, Stopped
from metalib.processes import (
    anywhere,
    check_restarts,
    describe,
    make_accelerator,
    refuse_differences,
    stop_signals,
    together,
)
from metalib.runs import train
from metalib.training import meta_train, resume_from

ACCELERATE = [str(groups.PYTHON / "accelerate"), "launch"]


@pytest.fixture(scope="module")
def place(tmp_path_factory, reviews, config):
    """A folder in which `one` is a run by one process."""
    folder = groups.make_place(tmp_path_factory.mktemp("processes"), reviews, config)
    groups.run(folder, groups.START[1], "run.yaml", "--out", "one", "--meta-batch", "5")
    return folder


def test_two_processes_give_the_same_run(place):
    said = groups.run(place, groups.START[2], "run.yaml", "--out", "two", "--meta-batch", "5")
    assert (
        "2 processes on cpu in fp32; of the 5 tasks of a meta-batch, process 0 tasks 0, 2, 4; process 1 tasks 1, 3"
        in said
    )
    groups.assert_same_run(place / "two", place / "one")


@pytest.mark.slow
def test_all_processes_refuse_a_folder_that_is_being_trained(place):
    words = ("run.yaml", "--out", "held", "--meta-batch", "5", "--resume")
    (place / "held").mkdir()
    with FileLock(place / "held" / "train.lock"):
        (place / "held" / "config.yaml").write_bytes((place / "one" / "config.yaml").read_bytes())
        said = groups.run(place, groups.START[2], *words, code=1)
    assert "is being trained by another command" in said
    assert not (place / "held" / "metrics.jsonl").exists()


@pytest.mark.slow
@pytest.mark.parametrize("meta_batch", [4, 5])
def test_one_two_and_three_processes_give_the_same_run(place, meta_batch):
    for number in (1, 2, 3):
        words = ("run.yaml", "--out", f"{number}-{meta_batch}", "--meta-batch", str(meta_batch))
        groups.run(place, groups.START[number], *words)
        groups.assert_same_run(place / f"{number}-{meta_batch}", place / f"1-{meta_batch}")


@pytest.mark.slow
def test_one_and_two_processes_give_the_same_run_of_other_learners(place):
    words = ("run.yaml", "--learner", "maml", "--baselines", "relation,fomaml", "--inner-optimizer", "sgd",
             "--meta-batch", "5")  # fmt: skip
    for number in (1, 2):
        groups.run(place, groups.START[number], *words, "--out", f"maml-{number}")
    learners = ("", "baselines/relation", "baselines/fomaml")
    groups.assert_same_run(place / "maml-2", place / "maml-1", learners)


@pytest.mark.slow
def test_accelerate_launch_with_processes_and_with_a_config_file(place):
    flags = ["--multi_gpu", "--num_processes", "2", "--main_process_port", "0", "-m", "metalib", "train"]
    said = groups.run(place, [*ACCELERATE, *flags], "run.yaml", "--out", "accelerate", "--meta-batch", "5")
    assert "2 processes on cpu" in said and "asked for several" not in said
    groups.assert_same_run(place / "accelerate", place / "one")
    settings = {"compute_environment": "LOCAL_MACHINE", "distributed_type": "MULTI_GPU", "num_machines": 1,
                "machine_rank": 0, "main_process_port": 0, "num_processes": 2, "mixed_precision": "no",
                "use_cpu": False}  # fmt: skip
    (place / "accelerate.yaml").write_text(yaml.safe_dump(settings))
    file = ["--config_file", "accelerate.yaml", "-m", "metalib", "train"]
    assert "2 processes on cpu" in groups.run(
        place, [*ACCELERATE, *file], "run.yaml", "--out", "file", "--meta-batch", "5"
    )
    groups.assert_same_run(place / "file", place / "one")


@pytest.mark.slow
def test_a_launch_that_starts_fewer_processes_than_asked_for_is_warned_of(place):
    flags = ["--cpu", "--num_processes", "2", "-m", "metalib", "train"]
    said = groups.run(place, [*ACCELERATE, *flags], "run.yaml", "--out", "fewer", "--meta-batch", "5")
    assert "1 process on cpu" in said
    assert "asked for several processes, but started this one only" in said and "torchrun --nproc_per_node N" in said
    groups.assert_same_bytes(place / "fewer", place / "one")


@pytest.mark.slow
def test_two_machines(place):
    """Two launchers, each with a process and a working folder of its own, that meet over loopback."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    here, there = place, place / "other machine"
    there.mkdir()
    for name in ("reviews.json", "run.yaml"):
        (there / name).write_bytes((here / name).read_bytes())
    flags = ["--multi_gpu", "--num_machines", "2", "--num_processes", "2", "--main_process_ip", "127.0.0.1",
             "--main_process_port", port, "-m", "metalib", "train", "run.yaml", "--out", "machines"]  # fmt: skip
    for codes in ([1, 1], [0, 0]):  # stopped half way, then to the end: only the first machine has a checkpoint
        launchers = [
            groups.start(folder, [*ACCELERATE, "--machine_rank", rank, *flags], "--meta-batch", "5", "--resume")
            for rank, folder in (("0", here), ("1", there))
        ]
        try:
            if codes == [1, 1]:
                assert groups.wait_until(lambda: groups.steps_done(here / "machines") >= 9, launchers[0])
                psutil.Process(launchers[0].pid).children(recursive=True)[-1].send_signal(signal.SIGTERM)
            assert [each.wait(groups.LIMIT) for each in launchers] == codes, groups.words_of(here)[-2000:]
        finally:
            for each in launchers:
                groups.kill(each)
    assert "machines goes on after meta-step" in groups.words_of(here)
    assert not (there / "machines").exists()  # only the main process writes
    groups.assert_same_run(here / "machines", here / "one")


@pytest.mark.slow
def test_bf16_by_accelerates_setting(place):
    """The forward pass has another precision; the weights and the sums do not."""
    said = groups.run(place, groups.START[1], "run.yaml", "--out", "bf16", "--meta-batch", "5",
                      ACCELERATE_MIXED_PRECISION="bf16")  # fmt: skip
    assert "1 process on cpu in bf16" in said
    a, b = groups.theta(place / "bf16"), groups.theta(place / "one")
    assert a.dtype == b.dtype == processes.torch.float32
    assert 0 < float((a - b).norm() / b.norm()) < 0.2
    assert groups.tasks(place / "bf16") == groups.tasks(place / "one")


@pytest.mark.parametrize(
    "variables, out, said",
    [
        ({"TORCHELASTIC_MAX_RESTARTS": "3"}, None, "needs --out"),
        ({"TORCHELASTIC_MAX_RESTARTS": "3", "GROUP_WORLD_SIZE": "2", "TORCHELASTIC_USE_AGENT_STORE": "True"}, "runs/x",
         "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"),
    ],
)  # fmt: skip
def test_restarts_that_could_not_come_back(monkeypatch, variables, out, said):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(BadInput, match=said):
        check_restarts(out)


def test_restarts_that_can(monkeypatch):
    check_restarts(None)
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    check_restarts("runs/x")


def test_a_group_started_again_resumes_by_itself(tmp_path, monkeypatch, bench, config, reviews):
    groups.make_place(tmp_path, reviews, config)
    monkeypatch.chdir(tmp_path)
    settings = replace(config, data="reviews.json", meta_steps=2, out="run", baselines=())
    folder = train(settings)
    with pytest.raises(BadInput, match="is there already"):
        train(settings)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert train(settings) == folder


@pytest.mark.parametrize(
    "number, meta_batch, said",
    [
        (1, 2, "1 process on cpu in fp32; of the 2 tasks of a meta-batch, process 0 tasks 0, 1"),
        (2, 1, "process 0 task 0; process 1 tasks none"),
        (8, 64, "8 processes on cpu in fp32; of the 64 tasks of a meta-batch, process 0 tasks 0, 8, 16"),
    ],
)
def test_first_line(bench, monkeypatch, number, meta_batch, said):
    monkeypatch.setattr(type(bench.accelerator), "num_processes", number)
    assert said in describe(bench.accelerator, meta_batch)


def test_more_processes_than_tasks_are_warned_of(bench, monkeypatch, caplog):
    monkeypatch.setattr(processes.log, "propagate", True)
    monkeypatch.setattr(type(bench.accelerator), "num_processes", 8)
    processes.warn_of_launch(bench.accelerator, 5)
    assert "8 processes, but a meta-batch of 5 tasks: 3 of them have nothing to train" in caplog.text


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(processes.torch.cuda, "device_count", lambda: 1)
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(BadInput, match="2 processes on a machine with 1 GPU"):
        make_accelerator()


def test_a_macs_gpu_is_one(monkeypatch):
    monkeypatch.setattr(processes.torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(processes.torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(processes, "Accelerator", lambda **how: SimpleNamespace(mixed_precision="no", **how))
    for variable in ("ACCELERATE_USE_CPU", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(variable, raising=False)
    assert make_accelerator().cpu is False
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(BadInput, match=r"2 processes on a machine with 1 GPU.*ACCELERATE_USE_CPU=true"):
        make_accelerator()
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert make_accelerator().cpu is True


@pytest.mark.slow
def test_precision_that_needs_scaled_losses_is_refused(place):
    said = groups.run(place, groups.START[1], "run.yaml", "--out", "fp16", code=2, ACCELERATE_MIXED_PRECISION="fp16")
    assert "metalib: mixed_precision='fp16'" in said and "bf16" in said and not (place / "fp16").exists()


def test_a_lost_process_is_named(bench, monkeypatch):
    monkeypatch.setattr(type(bench.accelerator), "num_processes", 2)
    said = r"process 0 of 2: another process is gone at meta-step 3; .*\(Reset by peer\)"
    with pytest.raises(LostProcess, match=said), together(bench.accelerator, "at meta-step 3"):
        raise RuntimeError("[gloo/pair.cc:1] Reset by peer. Some advice.")


def test_too_little_memory_is_no_lost_process(bench, monkeypatch):
    monkeypatch.setattr(type(bench.accelerator), "num_processes", 2)
    with pytest.raises(torch.OutOfMemoryError), together(bench.accelerator, "here"):
        raise torch.OutOfMemoryError("full")


def test_all_begin_with_the_first_processs_model(config, splits, monkeypatch):
    bench = training.prepare(replace(config, frozen_layers=1), splits, make_accelerator())
    sent = []
    monkeypatch.setattr(processes.dist, "broadcast", lambda tensor, source: sent.append((tensor.fill_(7), source)))
    processes.same_start(bench.accelerator, bench.model)
    assert not sent  # alone
    monkeypatch.setattr(type(bench.accelerator), "num_processes", 2)
    processes.same_start(bench.accelerator, bench.model)
    assert all((tensor == 7).all() for tensor in (*bench.model.parameters(), *bench.model.buffers()))
    assert {source for _, source in sent} == {0} and (bench.weights.flat == 7).all()


OTHER_MODELS = """
import os
import torch
from metalib.models import load_model
from metalib.processes import make_accelerator, same_start

accelerator = make_accelerator()
model, _ = load_model("tiny", ["a text", "a text"], ["bad", "good"], seed=accelerator.process_index, frozen_layers=1)
flat = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
before = accelerator.gather(flat[None])
same_start(accelerator, model)
flat = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
after = accelerator.gather(flat[None])
assert not torch.equal(before[0], before[1]) and torch.equal(after[0], before[0]) and torch.equal(after[1], before[0])
accelerator.end_training()
"""


def test_two_processes_with_other_checkpoints_begin_alike(tmp_path):
    (tmp_path / "begin.py").write_text(OTHER_MODELS)
    groups.run(tmp_path, [*groups.START[2][:3], "begin.py"])


def test_every_start_compares_the_processes(config, splits, monkeypatch):
    monkeypatch.setattr(processes, "from_main", lambda accelerator, content: b"something else")
    with pytest.raises(BadInput, match="different settings, reviews or models"):
        training.prepare(config, splits, make_accelerator())


def test_processes_with_other_settings_or_reviews_are_refused(bench, monkeypatch):
    refuse_differences(bench.accelerator, b"same")
    monkeypatch.setattr("metalib.processes.from_main", lambda accelerator, content: b"what the first has")
    with pytest.raises(BadInput, match="the same command, YAML file, data and checkpoint"):
        refuse_differences(bench.accelerator, b"something else")


def test_a_signal_is_no_exception_that_somebody_catches_by_the_way():
    assert not issubclass(Stopped, Exception) and Stopped("x").exit_code == 143


def test_an_error_of_a_single_process_stays_what_it_is(bench):
    with pytest.raises(RuntimeError, match="out of memory"), together(bench.accelerator, "now"):
        raise RuntimeError("out of memory")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_after_the_meta_step_with_everything_saved(bench, config, tmp_path, number):
    before = signal.getsignal(number)

    def send(line):
        if line["meta_step"] == 2:
            os.kill(os.getpid(), number)

    with pytest.raises(Stopped, match="saved after meta-step 2 — go on with --resume"):
        meta_train(bench, config, tmp_path / "stopped", send)
    assert load_checkpoint(tmp_path / "stopped" / "checkpoint")[0] == 2
    assert signal.getsignal(number) is before
    meta_train(bench, replace(config, resume=True), tmp_path / "stopped")
    meta_train(bench, config, tmp_path / "whole")
    for file in ("metrics.jsonl", "checkpoint/0000006.safetensors"):
        assert (tmp_path / "stopped" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


def test_a_signal_after_the_last_look_is_not_swallowed():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        with pytest.raises(KeyboardInterrupt), stop_signals() as came:
            os.kill(os.getpid(), signal.SIGINT)
            assert came == [signal.SIGINT]
    finally:
        signal.signal(signal.SIGINT, before)


def test_signals_are_left_alone_outside_the_main_thread():
    found = []

    def work():
        with stop_signals() as came:
            found.append(came)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [[]]


def test_what_is_the_case_anywhere(bench):
    assert anywhere(bench.accelerator, [15]) is True and anywhere(bench.accelerator, []) is False


LINES = ['{"meta_step": 0}', '{"meta_step": 1}', '{"meta_step": 2}']


@pytest.mark.parametrize(
    "lines", [LINES[:2], [*LINES[:2], '{"meta_'], [LINES[0], LINES[2], LINES[1]], ["", *LINES], ["7"] * 3]
)
def test_metrics_that_do_not_belong_to_the_checkpoint(tmp_path, lines):
    (tmp_path / "metrics.jsonl").write_text("".join(line + "\n" for line in lines))
    with pytest.raises(BadInput, match=r"line \d of .*metrics.jsonl.*of meta-step 2 — restore the file, or delete"):
        read_lines(tmp_path / "metrics.jsonl", 2)


def test_lines_after_the_checkpoint_are_cut_off(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("\n".join([*LINES, '{"meta_']))
    assert read_lines(tmp_path / "metrics.jsonl", 1) == LINES[:2]


def test_a_start_from_zero_is_not_silent(tmp_path, bench, caplog, monkeypatch):
    monkeypatch.setattr(training.log, "propagate", True)
    caplog.set_level("INFO")
    (tmp_path / "metrics.jsonl").write_text("\n".join(LINES))
    step = training.OuterStep(bench.weights, "sgd")
    assert resume_from(tmp_path, step, bench.accelerator, {}) == (-1, [])
    assert "has 3 lines, but there is no checkpoint" in caplog.text
    assert "starting from the beginning" in caplog.text
