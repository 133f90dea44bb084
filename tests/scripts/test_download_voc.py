"""scripts/download_voc.sh against a server of our own: whole, interrupted, changed, missing."""

from __future__ import annotations

import http.server
import io
import os
import re
import shutil
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from limits import PATIENCE

SCRIPT = Path(__file__).parents[2] / "scripts" / "download_voc.sh"
ARCHIVE = "VOCtrainval_11-May-2012.tar"
MD5 = "6cd6e144f989b92b3379bac3b3de84fd"

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")


def archive() -> bytes:
    """A tar file with one picture's place in the devkit."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        info = tarfile.TarInfo("VOCdevkit/VOC2012/JPEGImages/x.jpg")
        info.size = 50_000
        tar.addfile(info, io.BytesIO(os.urandom(50_000)))
    return buffer.getvalue()


class Server(http.server.BaseHTTPRequestHandler):
    """Serves `files` with ranges; `cut`: breaks the connection after so many bytes."""

    files: dict[str, bytes] = {}  # noqa: RUF012
    cut: int | None = None
    ranges: list[int] = []  # noqa: RUF012

    def do_GET(self) -> None:
        data = self.files.get(self.path)
        if data is None:
            self.send_error(404)
            return
        found = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(found[1]) if found else 0
        self.ranges.append(start)
        self.send_response(206 if found else 200)
        self.send_header("Content-Length", str(len(data) - start))
        if found:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        self.wfile.write(data[start : self.cut])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    Server.files, Server.cut, Server.ranges = {f"/voc2012/{ARCHIVE}": archive()}, None, []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def download(folder: Path, url: str, trusting: bool) -> subprocess.CompletedProcess[str]:
    """Runs the script; `trusting`: with an md5sum that finds the published sum in whole files."""
    whole = len(archive())
    tools = folder.parent / "tools"
    tools.mkdir(exist_ok=True)
    (tools / "md5sum").write_text(f'#!/bin/sh\n[ $(wc -c < "$1") = {whole} ] && echo "{MD5}  $1" || echo "0  $1"\n')
    (tools / "md5sum").chmod(0o755)
    path = f"{tools}:{os.environ['PATH']}" if trusting else os.environ["PATH"]
    return subprocess.run(
        ["bash", str(SCRIPT), "12", str(folder)],
        env=os.environ | {"VOC_URL": url, "PATH": path},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def test_what_was_fetched_is_unpacked_and_not_fetched_again(tmp_path: Path, url: str) -> None:
    folder = tmp_path / "a folder"
    done = download(folder, url, trusting=True)
    assert done.returncode == 0, done.stderr
    assert (folder / "VOCdevkit/VOC2012/JPEGImages/x.jpg").stat().st_size == 50_000
    assert "fastrcnn check data=voc07" in done.stdout
    again = download(folder, url, trusting=True)
    assert again.returncode == 0
    assert "already downloaded" in again.stdout
    assert Server.ranges == [0]


def test_an_interrupted_download_goes_on_where_it_stopped(tmp_path: Path, url: str) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    data = Server.files[f"/voc2012/{ARCHIVE}"]
    (folder / f"{ARCHIVE}.part").write_bytes(data[:20_000])
    done = download(folder, url, trusting=True)
    assert done.returncode == 0, done.stderr
    assert Server.ranges == [20_000]
    assert (folder / ARCHIVE).read_bytes() == data


def test_a_whole_download_that_was_not_renamed_is_taken(tmp_path: Path, url: str) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / f"{ARCHIVE}.part").write_bytes(Server.files[f"/voc2012/{ARCHIVE}"])
    done = download(folder, url, trusting=True)
    assert done.returncode == 0, done.stderr
    assert Server.ranges == []


def test_another_file_than_the_published_one_is_not_unpacked(tmp_path: Path, url: str) -> None:
    folder = tmp_path / "data"
    done = download(folder, url, trusting=False)
    assert done.returncode == 1
    assert f"expected {MD5}" in done.stderr
    assert not (folder / "VOCdevkit").exists()
    assert not (folder / ARCHIVE).exists()


def test_what_cannot_be_fetched_is_said_with_the_file_to_put_there(tmp_path: Path, url: str) -> None:
    Server.files = {}
    done = download(tmp_path / "data", url, trusting=True)
    assert done.returncode == 1
    assert "could not be downloaded" in done.stderr
    assert f"MD5 {MD5}" in done.stderr
