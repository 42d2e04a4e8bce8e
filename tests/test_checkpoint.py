"""Checkpoints: whole or absent, free of pickle, two at most."""

import json
import os

import pytest
import torch

from metalib import checkpoint
from metalib.checkpoint import load_checkpoint, save_checkpoint, write_atomically
from metalib.errors import BadInput, MetalibError


def tensors(number: float) -> dict[str, torch.Tensor]:
    return {"theta": torch.full((5,), number), "outer.step": torch.tensor(number, dtype=torch.float64)}


def test_what_is_saved_comes_back(tmp_path):
    save_checkpoint(tmp_path / "new" / "folder", 7, tensors(1.5))
    done, found = load_checkpoint(tmp_path / "new" / "folder")
    assert done == 7
    assert found.keys() == tensors(1.5).keys()
    for name, tensor in tensors(1.5).items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0)


def test_only_the_two_newest_are_kept_and_none_holds_pickle(tmp_path):
    for step in (50, 100, 1000, 20000):
        save_checkpoint(tmp_path, step, tensors(step))
        names = sorted(path.name for path in tmp_path.iterdir())
        assert all(name.endswith((".safetensors", ".json")) for name in names)
        assert len(names) <= 4
    assert names == [f"{step:07d}.{kind}" for step in (1000, 20000) for kind in ("json", "safetensors")]
    assert load_checkpoint(tmp_path)[0] == 20000


def test_no_checkpoint_is_none(tmp_path):
    assert load_checkpoint(tmp_path) is None
    assert load_checkpoint(tmp_path / "not there") is None


def cut(path):
    path.write_bytes(path.read_bytes()[:-3])


def flip(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


BREAKS = {
    "weights cut short": lambda folder: cut(folder / "0000006.safetensors"),
    "weights with another bit": lambda folder: flip(folder / "0000006.safetensors"),
    "weights missing": lambda folder: (folder / "0000006.safetensors").unlink(),
    "facts missing": lambda folder: (folder / "0000006.json").unlink(),
    "facts of another meta-step": lambda folder: (folder / "0000006.json").write_bytes(
        (folder / "0000006.json").read_bytes().replace(b'"meta_step": 6', b'"meta_step": 7')
    ),
    "facts cut short": lambda folder: cut(folder / "0000006.json"),
    "facts empty": lambda folder: (folder / "0000006.json").write_bytes(b""),
    "facts of another kind": lambda folder: (folder / "0000006.json").write_bytes(b"[]"),
    "facts incomplete": lambda folder: (folder / "0000006.json").write_bytes(b"{}"),
}


@pytest.mark.parametrize("harm", BREAKS)
def test_a_broken_checkpoint_gives_way_to_the_one_before_it_with_a_warning(tmp_path, caplog, monkeypatch, harm):
    monkeypatch.setattr(checkpoint.log, "propagate", True)
    for step in (3, 6):
        save_checkpoint(tmp_path, step, tensors(step))
    BREAKS[harm](tmp_path)
    done, found = load_checkpoint(tmp_path)
    assert done == 3 and torch.equal(found["theta"], tensors(3)["theta"])
    assert "checkpoint 0000006 is not whole" in caplog.text


def test_where_all_are_broken_nothing_is_guessed(tmp_path):
    for step in (3, 6):
        save_checkpoint(tmp_path, step, tensors(step))
        cut(tmp_path / f"{step:07d}.safetensors")
    with pytest.raises(BadInput, match="whole — delete this folder") as error:
        load_checkpoint(tmp_path)
    assert str(tmp_path) in str(error.value)


def test_a_process_killed_while_saving_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    """Killed before each of the four steps that reach the disk: two files written, two renamed."""
    save_checkpoint(tmp_path, 3, tensors(3))
    real = {name: getattr(os, name) for name in ("fsync", "replace")}

    class Killed(BaseException):
        pass

    for last in range(4):
        calls = []

        def counted(name, *arguments, calls=calls, last=last):
            if len(calls) == last:
                raise Killed
            calls.append(name)
            return real[name](*arguments)

        for name in real:
            monkeypatch.setattr(checkpoint.os, name, lambda *arguments, name=name: counted(name, *arguments))
        with pytest.raises(Killed):
            save_checkpoint(tmp_path, 6, tensors(6))
        assert calls == ["fsync", "replace", "fsync", "replace"][:last]  # on the disk before it gets its name
        done, found = load_checkpoint(tmp_path)
        assert done == 3 and torch.equal(found["theta"], tensors(3)["theta"])
    monkeypatch.undo()
    save_checkpoint(tmp_path, 6, tensors(6))
    assert load_checkpoint(tmp_path)[0] == 6


def test_a_disk_that_refuses_leaves_the_old_file_and_nothing_beside_it(tmp_path, monkeypatch):
    write_atomically(tmp_path / "facts.json", b"old")

    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.os, "fsync", refuse)
    with pytest.raises(MetalibError, match=r"facts\.json cannot be written.*No space left"):
        write_atomically(tmp_path / "facts.json", json.dumps([1]).encode())
    assert [path.name for path in tmp_path.iterdir()] == ["facts.json"]
    assert (tmp_path / "facts.json").read_bytes() == b"old"
