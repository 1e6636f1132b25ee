"""Uploads against a hub of our own on 127.0.0.1, which speaks the few routes that a small upload needs."""

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from core.errors import InputError
from core.models.push import PushError, push, require_repo


class Hub(BaseHTTPRequestHandler):
    """Keeps what it is given; `server.status` other than 200 refuses everything."""

    server: Any

    def log_message(self, *_: Any) -> None:
        pass

    def _answer(self, content: Any, status: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        self.server.tokens.append(self.headers.get("Authorization"))
        self._answer({"id": "me/x", "sha": "0" * 40, "siblings": [], "private": True})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.tokens.append(self.headers.get("Authorization"))
        if self.server.status != 200:
            self._answer({"error": "no"}, self.server.status)
        elif self.path == "/api/repos/create":
            self.server.created.append(json.loads(body))
            self._answer({"url": f"{self.server.url}/me/x", "name": "me/x"})
        elif "/preupload/" in self.path:
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            self._answer({"files": files})
        elif "/commit/" in self.path:
            for line in body.decode().splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    self.server.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            self._answer({"success": True, "commitOid": "1" * 40, "commitUrl": f"{self.server.url}/me/x/commit/1"})
        elif self.path == "/api/validate-yaml":
            self._answer({"errors": [], "warnings": []})
        else:
            self._answer({"error": self.path}, 404)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    from huggingface_hub import constants, hf_api

    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.status, server.created, server.files, server.tokens = 200, [], {}, []
    server.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    plain = hf_api.HfApi
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: plain(endpoint=server.url))
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "export"
    made.mkdir()
    (made / "README.md").write_text("---\nlicense: mit\n---\nhello\n")
    (made / "model.gguf").write_bytes(b"GGUF1234")
    (made / "espalier_export.json").write_text("{}")
    return made


def test_a_repository_is_made_private_and_gets_every_file_but_our_own(hub: Any, folder: Path) -> None:
    assert push(folder, "me/x") == f"{hub.url}/me/x"
    assert hub.created[0]["visibility"] == "private"
    assert set(hub.files) == {"README.md", "model.gguf"}
    assert hub.files["model.gguf"] == b"GGUF1234"
    assert "Bearer hf_test" in hub.tokens


def test_public_only_where_asked(hub: Any, folder: Path) -> None:
    push(folder, "me/x", private=False)
    assert hub.created[0]["visibility"] == "public"


@pytest.mark.parametrize(
    ("status", "said"), [(401, "not logged in"), (403, "no right to write"), (500, "refused the upload")]
)
def test_a_hub_that_refuses_is_said_and_the_export_stays(status: int, said: str, hub: Any, folder: Path) -> None:
    hub.status = status
    with pytest.raises(PushError, match=said) as caught:
        push(folder, "me/x")
    assert str(folder) in caught.value.message
    assert (folder / "model.gguf").is_file()


def test_no_network_is_said_with_where_the_export_lies(hub: Any, folder: Path) -> None:
    hub.shutdown()
    hub.server_close()
    with pytest.raises(PushError, match="cannot be reached") as caught:
        push(folder, "me/x")
    assert str(folder) in caught.value.message


def test_offline_asks_nobody(folder: Path) -> None:
    with pytest.raises(PushError, match="HF_HUB_OFFLINE"):
        push(folder, "me/x")


@pytest.mark.parametrize("name", ["a/b/c", "-x", "a b", "x" * 200, "../x"])
def test_names_that_no_repository_has_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="organisation/name"):
        require_repo(name)
