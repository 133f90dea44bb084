"""Checkpoints: whole or refused."""

from __future__ import annotations

import errno
import hashlib
import io
import os
from pathlib import Path

import pytest
import torch

from fastrcnn.errors import UserError
from fastrcnn.training import checkpoint


class Hostile:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.folder),)


def content(step: int = 7) -> dict:
    """What a run saves, in small: with an optimiser's state."""
    layer = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD([{"params": layer.parameters(), "lr_factor": 2.0}], lr=0.1, momentum=0.9)
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return {
        "step": step,
        "best": 0.25,
        "classes": ["cat", "dog"],
        "config": {"solver": {"lr": 0.1, "lr_steps": [1, 2], "weights": None}},
        "model": layer.state_dict(),
        "optimizer": optimizer.state_dict(),
    }


def signed(body: bytes) -> bytes:
    return body + checkpoint.MAGIC + hashlib.sha256(body).hexdigest().encode()


def names(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()}


def test_round_trip(tmp_path: Path) -> None:
    before = content()
    path = tmp_path / "not" / "there" / "step-7.pt"
    checkpoint.save(path, before)
    after = checkpoint.load(path)
    assert {k: after[k] for k in ("step", "best", "classes", "config")} == {
        k: before[k] for k in ("step", "best", "classes", "config")
    }
    assert all(torch.equal(after["model"][k], before["model"][k]) for k in ("weight", "bias"))
    momentum = before["optimizer"]["state"][0]["momentum_buffer"]
    assert torch.equal(after["optimizer"]["state"][0]["momentum_buffer"], momentum)
    assert after["optimizer"]["param_groups"] == before["optimizer"]["param_groups"]
    assert names(path.parent) == {"step-7.pt"}, "no temporary file stays"


@pytest.mark.parametrize("kept", [0, 10, 100, -100, -1])
def test_a_file_cut_short_is_refused(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "step-7.pt"
    checkpoint.save(path, content())
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(UserError, match="truncated") as caught:
        checkpoint.load(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("where", [0.0, 0.3, 0.6, 0.9])
def test_a_flipped_bit_is_noticed(tmp_path: Path, where: float) -> None:
    path = tmp_path / "step-7.pt"
    checkpoint.save(path, content())
    data = bytearray(path.read_bytes())
    data[int(where * (len(data) - 100))] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="checksum does not match"):
        checkpoint.load(path)


def test_a_flipped_bit_of_the_checksum_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "step-7.pt"
    checkpoint.save(path, content())
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="checksum does not match"):
        checkpoint.load(path)


def test_a_file_that_is_not_ours_is_refused(tmp_path: Path) -> None:
    torch.save(content(), tmp_path / "theirs.pt")
    (tmp_path / "text.pt").write_text("hello")
    for name in ("theirs.pt", "text.pt"):
        with pytest.raises(UserError, match="not a fastrcnn checkpoint"):
            checkpoint.load(tmp_path / name)


def test_a_hostile_file_with_a_right_checksum_is_refused_and_nothing_is_run(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save({"format": checkpoint.FORMAT, "model": Hostile(tmp_path / "made")}, buffer)
    (tmp_path / "step-1.pt").write_bytes(signed(buffer.getvalue()))
    with pytest.raises(UserError, match="cannot be read safely"):
        checkpoint.load(tmp_path / "step-1.pt")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("inside", [{"format": 999}, {}, [1, 2]])
def test_another_format_is_refused(tmp_path: Path, inside: object) -> None:
    buffer = io.BytesIO()
    torch.save(inside, buffer)
    (tmp_path / "x.pt").write_bytes(signed(buffer.getvalue()))
    with pytest.raises(UserError, match="reads only format 2"):
        checkpoint.load(tmp_path / "x.pt")


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        checkpoint.load(tmp_path / "nothing.pt")
    with pytest.raises(UserError, match="cannot be read"):
        checkpoint.load(tmp_path)


def test_a_full_disk_leaves_the_old_checkpoint_and_no_remains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "best.pt"
    checkpoint.save(path, content(1))
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left on device"):
        checkpoint.save(path, content(2))
    assert path.read_bytes() == before
    assert names(tmp_path) == {"best.pt"}


def test_a_folder_that_cannot_be_written_to_is_said(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file in the folder's place")
    with pytest.raises(UserError, match="cannot be written"):
        checkpoint.save(tmp_path / "checkpoints" / "step-1.pt", content())
    assert (tmp_path / "checkpoints").read_text() == "a file in the folder's place"


def test_an_interruption_while_writing_leaves_the_old_checkpoint_and_no_remains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "best.pt"
    checkpoint.save(path, content(1))

    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(path, content(2))
    assert checkpoint.load(path)["step"] == 1
    assert names(tmp_path) == {"best.pt"}


def test_order_is_by_number_and_other_files_are_left_out(tmp_path: Path) -> None:
    for name in ("step-9.pt", "step-100.pt", "step-20.pt", "best.pt", "step-x.pt", "step-5.pt.tmp"):
        (tmp_path / name).touch()
    assert [p.name for p in checkpoint.in_order(tmp_path)] == ["step-100.pt", "step-20.pt", "step-9.pt"]


def test_only_the_last_are_kept_and_the_best(tmp_path: Path) -> None:
    for number, name in enumerate(("best.pt", "step-100.pt", "step-20.pt", "step-9.pt")):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, ns=(number, number))  # a clock that was set back makes the last the oldest
    checkpoint.keep_last(tmp_path, 2, 100)
    assert names(tmp_path) == {"best.pt", "step-20.pt", "step-100.pt"}


def test_a_broken_checkpoint_of_a_higher_step_does_not_drive_out_what_was_written_since(tmp_path: Path) -> None:
    for name in ("step-50.pt", "step-100.pt", "step-60.pt"):  # 100 was passed over on resuming
        (tmp_path / name).touch()
    checkpoint.keep_last(tmp_path, 1, 60)
    assert names(tmp_path) == {"step-60.pt", "step-100.pt"}
    (tmp_path / "step-110.pt").touch()
    checkpoint.keep_last(tmp_path, 1, 110)
    assert names(tmp_path) == {"step-110.pt"}


def test_the_newest_sound_checkpoint_passes_over_broken_ones_and_says_so(tmp_path: Path) -> None:
    for step in (9, 20, 100):
        checkpoint.save(tmp_path / f"step-{step}.pt", content(step))
    (tmp_path / "step-100.pt").write_bytes(b"cut")
    path, found, refused = checkpoint.newest_sound(tmp_path)
    assert path == tmp_path / "step-20.pt"
    assert found["step"] == 20
    assert len(refused) == 1
    assert "step-100.pt" in refused[0]


def test_no_sound_checkpoint_is_an_error_that_says_why(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"contains no step-N\.pt file"):
        checkpoint.newest_sound(tmp_path)
    (tmp_path / "step-3.pt").write_bytes(b"cut")
    with pytest.raises(UserError, match=r"(?s)no checkpoint from which.*step-3\.pt.*truncated"):
        checkpoint.newest_sound(tmp_path)
    with pytest.raises(UserError, match="no checkpoint"):
        checkpoint.newest_sound(tmp_path / "nowhere")


def test_what_a_user_means_by_a_run(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    with pytest.raises(UserError, match="contains no checkpoint"):
        checkpoint.resolve(tmp_path / "run")
    for name in ("step-9.pt", "step-20.pt"):
        (folder / name).touch()
    assert checkpoint.resolve(tmp_path / "run") == folder / "step-20.pt"
    (folder / "best.pt").touch()
    assert checkpoint.resolve(tmp_path / "run") == folder / "best.pt"
    assert checkpoint.resolve(folder) == folder / "best.pt"
    assert checkpoint.resolve(folder / "step-9.pt") == folder / "step-9.pt"
    with pytest.raises(UserError, match="nothing does not exist"):
        checkpoint.resolve(tmp_path / "nothing")
