"""Files that are made of another file."""

from __future__ import annotations

from pathlib import Path

from fastrcnn.files import write_derived


def test_a_name_as_long_as_a_file_system_takes_is_written(tmp_path: Path) -> None:
    output = tmp_path / f"{'x' * 252}.pt"
    with write_derived(output, "source") as part:
        part.write_bytes(b"1")
    assert output.read_bytes() == b"1"
    assert len(list(tmp_path.iterdir())) == 2  # it, and what says what it was made of
