"""Checkpoints: weights, the outer optimiser's state and a few integers, in safetensors and JSON, free of pickle."""

import hashlib
import json
import logging
import os
from pathlib import Path

import torch
from safetensors.torch import load_file, save

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
        with open(beside, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise MetalibError(f"{path} cannot be written: {error} — what was there before is still whole") from error


def save_checkpoint(folder: Path, meta_step: int, tensors: dict[str, torch.Tensor]) -> None:
    """Save the state after `meta_step` steps; the JSON file comes last and makes it count."""
    folder.mkdir(parents=True, exist_ok=True)
    content = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    write_atomically(folder / f"{meta_step:07d}.safetensors", content)
    facts = {"meta_step": meta_step, "sha256": hashlib.sha256(content).hexdigest()}
    write_atomically(folder / f"{meta_step:07d}.json", json.dumps(facts).encode())
    for old in sorted(folder.glob("*.json"))[:-KEPT]:
        old.unlink()
        old.with_suffix(".safetensors").unlink(missing_ok=True)


def load_checkpoint(folder: Path) -> tuple[int, dict[str, torch.Tensor]] | None:
    """The newest whole checkpoint as (meta-steps done, tensors); None where none was ever written.

    A broken one is passed over with a warning for the one before it.

    Raises:
        BadInput: there are checkpoints, but none of them is whole.
    """
    written = sorted(folder.glob("*.json"), reverse=True)
    for path in written:
        try:
            facts = json.loads(path.read_bytes())
            weights = path.with_suffix(".safetensors")
            if hashlib.sha256(weights.read_bytes()).hexdigest() != facts["sha256"]:
                raise ValueError("its content is not what was written")
            return int(facts["meta_step"]), load_file(weights)
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("checkpoint %s is broken (%s): trying the one before it", path.stem, error)
    if written:
        raise BadInput(f"no checkpoint in {str(folder)!r} is whole — delete the folder to start from the beginning")
    return None
