"""Checkpoints: weights, the outer optimiser's state and a few integers, in safetensors and JSON, free of pickle."""

import hashlib
import json
import logging
import os
from contextlib import suppress
from pathlib import Path

import torch
from safetensors.torch import load, save

from metalib.errors import BadInput, MetalibError

log = logging.getLogger("metalib")
KEPT = 2  # the newest and the one before it


def write_atomically(path: Path, content: bytes) -> None:
    """Write beside `path`, force it to the disk, then rename: the file is either the old one or the whole new one.

    Raises:
        MetalibError: the disk refuses (full, read-only); the old file stays as it was.
    """
    beside = path.with_name(path.name + ".new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(beside, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
        raise MetalibError(f"{path} cannot be written: {error} — what was there before is still whole") from error


def append_line(path: Path, line: str) -> None:
    """Append a line and force it to the disk.

    Raises:
        MetalibError: the disk refuses.
    """
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise MetalibError(f"{path} cannot be written: {error} — the last checkpoint is whole") from error


def save_checkpoint(folder: Path, meta_step: int, tensors: dict[str, torch.Tensor]) -> None:
    """Save the state after `meta_step` steps; the JSON file comes last and makes it count."""
    content = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    write_atomically(folder / f"{meta_step:07d}.safetensors", content)
    facts = {"meta_step": meta_step, "sha256": hashlib.sha256(content).hexdigest()}
    write_atomically(folder / f"{meta_step:07d}.json", json.dumps(facts).encode())
    for old in sorted(folder.glob("*.json"))[:-KEPT]:
        old.unlink()
        old.with_suffix(".safetensors").unlink(missing_ok=True)


def read_checkpoint(folder: Path) -> tuple[int, bytes] | None:
    """The newest whole checkpoint as (meta-steps done, safetensors); None where none was ever finished.

    A broken one is passed over with a warning for the one before it.

    Raises:
        BadInput: there are checkpoints, but none of them is whole.
    """
    files = [path for path in folder.glob("*.*") if path.suffix in (".json", ".safetensors")]
    written = sorted({path.stem for path in files}, reverse=True)
    finished = [name for name in written if (folder / f"{name}.json").exists()]
    for name in written:
        try:
            facts = json.loads((folder / f"{name}.json").read_bytes())
            content = (folder / f"{name}.safetensors").read_bytes()
            if hashlib.sha256(content).hexdigest() != facts["sha256"] or facts["meta_step"] != int(name):
                raise ValueError("its content is not what was written")
            return int(name), content
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("checkpoint %s is not whole (%s): trying the one before it", name, error)
    if finished:
        raise BadInput(f"no checkpoint in {str(folder)!r} is whole — delete this folder, and its learner starts from "
                       "the beginning with --resume")  # fmt: skip
    return None


def load_checkpoint(folder: Path) -> tuple[int, dict[str, torch.Tensor]] | None:
    """`read_checkpoint` with its tensors opened."""
    found = read_checkpoint(folder)
    return None if found is None else (found[0], load(found[1]))


def read_lines(path: Path, done: int | None) -> list[str]:
    """The lines of `metrics.jsonl` of meta-steps 0 … done, checked to be these; none where done is None."""
    written = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    if done is None:
        if len(written) > 1:
            log.warning("%s has %d lines, but there is no checkpoint to go with it", path, len(written))
        return []
    for step in range(done + 1):
        try:
            whole = json.loads(written[step])["meta_step"] == step
        except (IndexError, ValueError, KeyError, TypeError):
            whole = False
        if not whole:
            raise BadInput(
                f"line {step + 1} of {str(path)!r} is missing or broken, but the checkpoint is of meta-step {done} — "
                "restore the file, or delete it and the checkpoint beside it, and its learner starts from the beginning"
            )
    return written[: done + 1]
