# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Names that the Hub does not have, and a Hub that does not answer: errors say what there is."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from helpers.hub_cache import fill_hub_cache
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HTTPError

from ultraflash_diffusers.conversion import convert_recipe
from ultraflash_diffusers.hub_files import Hub

_LISTS = b'[{"type": "file", "path": "README.md", "size": 1, "oid": "a"}]'


class StandIn(BaseHTTPRequestHandler):
    """Answers as the Hub does: `absent` is no repository, `closed` is gated, all others hold a README.md alone."""

    def do_GET(self) -> None:
        if "absent" in self.path:
            self._refuse(401, "RepoNotFound")
        elif "closed" in self.path:
            self._refuse(403, "GatedRepo")
        elif self.path.startswith("/api/models/"):
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(_LISTS)))
            self.end_headers()
            self.wfile.write(_LISTS)
        else:
            self._refuse(404, "EntryNotFound")

    do_HEAD = do_GET

    def _refuse(self, status: int, reason: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", reason)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing is printed."""


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), StandIn)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.removeprefix(constants.ENDPOINT)
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", constants.ENDPOINT + template)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield Hub(cache_dir=tmp_path / "cache")
    server.shutdown()
    server.server_close()
    thread.join()


def test_names_that_are_not_there(online: Hub, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no repository 'owner/absent' on the Hub, or it is private"):
        online.file("owner/absent", "model.pt")
    with pytest.raises(FileNotFoundError, match="'owner/there' has no file 'model.pt'; it has README.md"):
        online.file("owner/there", "model.pt")
    with pytest.raises(PermissionError, match="'model.pt' of 'owner/closed': access has to be asked for"):
        online.file("owner/closed", "model.pt")
    with pytest.raises(FileNotFoundError, match="it has README.md. If you have the files, `ultraflash convert FILE"):
        convert_recipe("longlive", tmp_path / "out", hub=online, say=lambda line: None)
    assert not list(tmp_path.glob("*out*"))


def test_no_network(online: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def unplugged(*arguments: object, **keywords: object) -> None:
        raise HTTPError("Connection refused")

    monkeypatch.setattr(HfApi, "list_repo_files", unplugged)
    with pytest.raises(FileNotFoundError, match="'owner/name' is not in the cache, and the Hub cannot be asked"):
        online.names("owner/name")
    (tmp_path / "model.pt").write_text("weights")
    fill_hub_cache(tmp_path / "cache", "owner/name", {"models/model.pt": tmp_path / "model.pt"})
    assert online.names("owner/name") == ["models/model.pt"]
