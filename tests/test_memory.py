"""Memory that runs out in training, evaluation and detection: what is said then."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from voc_folder import VocFolder

from fastrcnn.errors import UserError
from fastrcnn.memory import advise, detection_advice, ran_out, training_advice
from fastrcnn.model.head import Head

Call = Callable[..., tuple[int, str, str]]

GPU = (
    "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 15.77 GiB of which 1 GiB is free. "
    "Process 77 has 14.7 GiB memory in use. See documentation for Memory Management"
)
SETTINGS = [
    "recipe=scratch",
    "model.width=0.03",
    "solver.iterations=2",
    "solver.images_per_batch=6",
    "solver.accumulate=2",
    "solver.rois_per_image=8",
    "data.short_sides=[48,64]",
    "data.long_side=100",
    "data.test_short_sides=[48]",
    "data.selective_search.side=64",
    "data.selective_search.max_boxes=40",
    "detection.rois_per_chunk=30",
    "runtime.device=cpu",
    "runtime.precision=float32",
    "runtime.workers=0",
]


def allocation_failure() -> Exception:
    """What torch itself raises where the machine has not so much."""
    try:
        torch.empty(2**50)
    except RuntimeError as error:
        return error
    raise AssertionError


def failing(error: Exception, training: bool) -> Callable:
    """A forward for Head that fails in training, or else in evaluation."""
    forward = Head.forward

    def fail(self: Head, pooled: torch.Tensor) -> torch.Tensor:
        if self.training == training:
            raise error
        return forward(self, pooled)

    return fail


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (torch.OutOfMemoryError(GPU), "Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 15.77 GiB"),
        (
            MemoryError("RoI pooling: cannot allocate memory for the gradient"),
            "RoI pooling: cannot allocate memory for the gradient",
        ),
        (MemoryError(), "out of memory on cpu.\n"),
        (allocation_failure(), "you tried to allocate 4503599627370496 bytes"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "), "is killed by signal"),
    ],
)
def test_training_says_which_sizes_to_turn_down(
    call: Call, tiny: VocFolder, monkeypatch: pytest.MonkeyPatch, error: Exception, said: str
) -> None:
    monkeypatch.setattr(Head, "forward", failing(error, training=True))
    status, out, err = call("train", "run=run", "data=custom", f"data.root={tiny.root}", *SETTINGS)
    assert (status, out) == (1, "")
    assert "Traceback" not in err
    assert "training: out of memory on cpu" in err
    assert said in err
    assert "batches of 6 images (short side up to 64 pixels, long side up to 100 pixels)" in err
    assert "solver.images_per_batch=3 solver.accumulate=4 (nearly the same gradient: batch norm" in err
    assert "runtime.checkpoint_activations=true" in err
    assert "data.short_sides=[24,32] data.long_side=50" in err


def test_evaluation_and_detection_say_theirs(
    call: Call, tiny: VocFolder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings = ["data=custom", f"data.root={tiny.root}", *SETTINGS]
    picture = next((tiny.root).rglob("c.*g"))
    with monkeypatch.context() as broken:
        broken.setattr(Head, "forward", failing(torch.OutOfMemoryError(GPU), training=False))
        status, _, err = call("train", "run=run", *settings)
        assert status == 1
        assert "detection: out of memory on cpu (CUDA out of memory. Tried to allocate 2.50 GiB" in err
        assert "training: out of memory" not in err
        assert "in chunks of up to 30 RoIs." in err
        assert "48 x 64 pixels" in err
        assert "data.test_short_sides=[24] data.long_side=32" in err
    status, _, err = call("train", "run=run", "resume=auto", *settings, "solver.iterations=2")
    assert status == 0, err
    monkeypatch.setattr(Head, "forward", failing(allocation_failure(), training=False))
    for verb in (["eval"], ["detect", f"source={picture}"]):
        status, _, err = call(*verb, "checkpoint=run", "detection.rois_per_chunk=1000")
        assert status == 1
        assert "Traceback" not in err
        assert "detection: out of memory on cpu" in err
        assert "in chunks of up to 1000 RoIs." in err


def test_elsewhere_the_verb_is_named(call: Call, tiny: VocFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError(GPU)

    monkeypatch.setattr(torch.nn.Module, "to", fail)  # another process has the GPU
    status, _, err = call("train", "run=run", "data=custom", f"data.root={tiny.root}", *SETTINGS)
    assert status == 1
    assert "fastrcnn: train: out of memory (CUDA out of memory. Tried to allocate 2.50 GiB." in err
    assert "Another process may be using the memory" in err


def test_other_errors_are_not_taken_for_it() -> None:
    error = RuntimeError("The size of tensor a (3) must match the size of tensor b (4)")
    assert not ran_out(error)
    with pytest.raises(RuntimeError, match="must match"), advise("x", torch.device("cpu"), lambda: ""):
        raise error
    with pytest.raises(UserError, match="file x is missing"), advise("x", torch.device("cpu"), lambda: ""):
        raise UserError("file x is missing")


@pytest.mark.parametrize(
    ("images", "accumulate", "said"),
    [(2, 1, "images_per_batch=1 solver.accumulate=2"), (9, 1, "images_per_batch=3 solver.accumulate=3"), (1, 4, None)],
)
def test_the_advice_keeps_the_number_of_pictures_in_a_step(images: int, accumulate: int, said: str | None) -> None:
    text = training_advice(images, accumulate, [600], 1000, 64, norm=False, recompute=True)
    assert (f"solver.{said} (the same gradient)" in text) if said else "accumulate" not in text
    assert "checkpoint_activations" not in text
    assert "data.short_sides=[300] data.long_side=500" in text


def test_a_chunk_larger_than_the_rois_is_no_half_of_what_is_needed() -> None:
    text = detection_advice([(600, 800), (1200, 1600)], 1, rois=300, rois_per_chunk=1000)
    assert "detection.rois_per_chunk=150 (the same result)" in text
    assert "data.test_short_sides=[600] data.long_side=800" in text
