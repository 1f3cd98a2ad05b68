"""`lpaf push` against a hub of one's own, which answers as far as an upload asks."""

import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from lpaf_jax.cli import main

ROOT = Path(__file__).parents[2]
TOKEN = "hf_" + "x" * 34


class Hub(ThreadingHTTPServer):
    """Keeps what is asked for, and the files that are committed."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.asked: list[tuple[str, str, Any]] = []
        self.files: dict[str, bytes] = {}
        self.status = 200

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Answers(BaseHTTPRequestHandler):
    server: Hub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.asked.append((self.path, self.headers.get("Authorization", ""), body))
        url = f"{self.server.address}/someone/small"
        answer: dict[str, Any] = {"url": url, "id": "someone/small", "name": "someone/small"}
        if "/preupload/" in self.path:
            files = json.loads(body)["files"]
            mode = {"uploadMode": "regular", "shouldIgnore": False}
            answer = {"files": [{"path": file["path"]} | mode for file in files]}
        elif "/commit/" in self.path:
            for line in body.decode().splitlines():
                row = json.loads(line)
                if row["key"] == "file":
                    content = base64.b64decode(row["value"]["content"])
                    self.server.files[row["value"]["path"]] = content
            answer = {"success": True, "commitOid": "0" * 40, "commitUrl": f"{url}/commit/0"}
        self._send(answer)

    def do_GET(self) -> None:
        self._send({"id": "someone/small", "sha": "0" * 40, "siblings": []})

    def _send(self, answer: Any) -> None:
        body = json.dumps(answer).encode()
        self.send_response(self.server.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[Hub]:
    server = Hub()
    Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def push(hub: Hub, tmp_path: Path, *words: str) -> Any:
    """In a process of its own: the address of the hub is read when its library is loaded."""
    kept = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
    kept |= {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": TOKEN}
    command = [sys.executable, "-m", "lpaf_jax.cli", "push", *words]
    return subprocess.run(
        command, cwd=ROOT, env=kept, capture_output=True, text=True, timeout=120, check=False
    )


def test_a_model_goes_there_whole(finished: Path, tmp_path: Path, hub: Hub) -> None:
    done = push(hub, tmp_path, str(finished), "someone/small", "--private")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"{hub.address}/someone/small"
    made = next(json.loads(body) for path, _, body in hub.asked if path.endswith("/repos/create"))
    assert made["name"] == "small"
    assert made.get("visibility", "private" if made.get("private") else "") == "private"
    assert {token for _, token, _ in hub.asked} == {f"Bearer {TOKEN}"}
    here = {file.name: file.read_bytes() for file in (finished / "model").iterdir()}
    for ours in ("state.safetensors", "answers.npz"):
        here.pop(ours, None)
    assert hub.files == here
    assert b"base_model" in hub.files["README.md"] or b"library_name" in hub.files["README.md"]
    assert TOKEN not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (401, "(401): log in with hf auth login"),
        (403, "(403): log in with hf auth login"),
        (500, "the hub refused someone/small (500)"),
    ],
)
def test_a_refusal_is_one_line(
    finished: Path, tmp_path: Path, hub: Hub, status: int, message: str
) -> None:
    hub.status = status
    done = push(hub, tmp_path, str(finished), "someone/small")
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert TOKEN not in done.stderr


def test_a_name_without_an_owner_is_refused(finished: Path, capsys: Any) -> None:
    assert main(["push", str(finished), "small"]) == 2
    assert "give owner/name" in capsys.readouterr().err
