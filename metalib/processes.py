"""The group of processes that a run is spread over: which device, how many, signals, and a process that is gone."""

import logging
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import nn

from metalib.errors import BadInput, LostProcess

log = logging.getLogger("metalib")


def make_accelerator(trackers: Iterable[str] = (), folder: Path | None = None) -> Accelerator:
    """An Accelerator on the GPUs where there are any, else on the CPU (several processes then talk through gloo).

    Raises:
        BadInput: more processes than GPUs on this machine, or a precision that would need its losses scaled.
    """
    gpus = torch.cuda.device_count()
    told = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true")
    on_cpu = told or not (gpus or torch.backends.mps.is_available())
    local = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if local > max(gpus, 1) and not on_cpu:  # a Mac's one GPU is none of CUDA's
        raise BadInput(f"{local} processes on a machine with {max(gpus, 1)} GPU(s) — start one for each GPU, or set "
                       "ACCELERATE_USE_CPU=true in their environment")  # fmt: skip
    if restarts() and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" and not dist.is_initialized():
        join_again("gloo" if on_cpu else "nccl")
    accelerator = Accelerator(cpu=on_cpu, log_with=list(trackers) or None, project_dir=folder)
    if accelerator.mixed_precision not in ("no", "bf16"):
        raise BadInput(f"mixed_precision={accelerator.mixed_precision!r}: metalib does not scale losses — take bf16")
    return accelerator


def describe(accelerator: Accelerator, meta_batch: int) -> str:
    """Who does what, in one line."""
    ranks, precision = accelerator.num_processes, accelerator.mixed_precision.replace("no", "fp32")
    shares = [range(rank, meta_batch, ranks) for rank in range(min(ranks, 3))]
    words = [f"process {rank} task{'s' * (len(mine) != 1)} {', '.join(map(str, mine)) or 'none'}"
             for rank, mine in enumerate(shares)]  # fmt: skip
    more = "; …" if ranks > len(shares) else ""
    return (f"{ranks} process{'es' * (ranks > 1)} on {accelerator.device.type} in {precision}; "
            f"of the {meta_batch} tasks of a meta-batch, {'; '.join(words)}{more}")  # fmt: skip


def warn_of_launch(accelerator: Accelerator, meta_batch: int) -> None:
    """Log a warning where fewer processes run than were asked for, or more than there is work for."""
    # `accelerate launch` without GPUs sets these for N processes, and then starts one (its CPU path is MPI only)
    if accelerator.num_processes == 1 and "MASTER_ADDR" in os.environ and "ACCELERATE_MIXED_PRECISION" in os.environ:
        log.warning("the launcher was asked for several processes, but started this one only — on CPUs, start N with: "
                    "torchrun --nproc_per_node N -m metalib …")  # fmt: skip
    if accelerator.num_processes > meta_batch:
        log.warning("%d processes, but a meta-batch of %d tasks: %d of them have nothing to train — raise meta_batch",
                    accelerator.num_processes, meta_batch, accelerator.num_processes - meta_batch)  # fmt: skip


def restarts() -> int:
    """How often torch's elastic launcher has started this group again after one of its processes died."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))


def join_again(backend: str) -> None:
    """Form the group of processes that the elastic launcher has started again.

    The launcher lends all attempts the same key-value store. Under the same keys the processes would find the addresses
    of those that are dead and wait for them (PyTorch issue 135712), so each attempt gets keys of its own.
    """
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.PrefixStore(f"attempt {restarts()}", dist.TCPStore(address, port, is_master=False))
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group(backend, store=store, rank=rank, world_size=size)


def check_restarts(out: str | None) -> None:
    """Refuse a launch whose group could not come back after a failure (`--max_restarts`).

    Raises:
        BadInput: no run folder is named, or several machines share a store that does not survive a restart.
    """
    if int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", 0)) == 0:
        return
    if out is None:
        raise BadInput("a launch with --max_restarts needs --out, so that a group started again finds its run folder")
    if int(os.environ.get("GROUP_WORLD_SIZE", 1)) > 1 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        raise BadInput("--max_restarts on several machines needs TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in the "
                       "environment of the launchers: else a group started again waits for ever")  # fmt: skip


@contextmanager
def together(accelerator: Accelerator, when: str) -> Iterator[None]:
    """Around what all processes do at once: where one of them is gone, torch's error becomes LostProcess."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        if accelerator.num_processes == 1:
            raise
        raise LostProcess(
            f"process {accelerator.process_index} of {accelerator.num_processes}: another process is gone {when}; "
            f"the last checkpoint is whole — go on with --resume ({str(error).split('. ')[0].rpartition('] ')[2]})"
        ) from error


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Inside, SIGTERM and SIGINT (Ctrl-C) do not stop the process: they are put into the list.

    Who leaves without having looked at a signal that came is sent it again.
    """
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield came  # only the main thread may handle signals
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        for number in before:
            signal.signal(number, lambda number, frame: came.append(number))
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if came:
        signal.raise_signal(came[-1])


def from_main(accelerator: Accelerator, content: bytes) -> bytes:
    """What the main process holds, sent to all processes as plain bytes."""
    with together(accelerator, "before the first meta-step"):
        size = int(broadcast(torch.tensor(len(content), device=accelerator.device)))
        if size == 0 or accelerator.num_processes == 1:
            return content if accelerator.is_main_process else b""
        buffer = content if accelerator.is_main_process else bytes(size)
        sent = torch.frombuffer(bytearray(buffer), dtype=torch.uint8).to(accelerator.device)
        return bytes(broadcast(sent).cpu().numpy())


def refuse_differences(accelerator: Accelerator, here: bytes) -> None:
    """Raise BadInput, on all processes, where one of them works with something else than the first."""
    if anywhere(accelerator, from_main(accelerator, here) != here):
        raise BadInput("the processes have different settings, reviews or models — give every machine the same "
                       "command, YAML file, data and checkpoint")  # fmt: skip


@torch.no_grad()
def same_start(accelerator: Accelerator, model: nn.Module) -> None:
    """Give all processes the first one's parameters and buffers, whatever their machine's checkpoint holds."""
    if accelerator.num_processes > 1:
        with together(accelerator, "while the model was sent"):
            for tensor in (*model.parameters(), *model.buffers()):
                dist.broadcast(tensor.data, 0)


def anywhere(accelerator: Accelerator, here: object) -> bool:
    """Whether something is the case in any of the processes; all of them get the same answer."""
    with together(accelerator, "while all were asked"):  # at the start, and between two meta-steps
        return bool(accelerator.reduce(torch.tensor(int(bool(here)), device=accelerator.device), "sum"))
