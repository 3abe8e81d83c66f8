"""Downloads against a server of our own: resumed, checked, cached, and never half there."""

from __future__ import annotations

import hashlib
import http.server
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from replknet_ext.models import CheckpointError, download

DATA = bytes(range(256)) * 2000
SHA = hashlib.sha256(DATA).hexdigest()


class Server:
    """Serves `data` as /file.pth on 127.0.0.1; the attributes say how well."""

    def __init__(self):
        self.data = DATA
        self.ranges = True  # understands Range
        self.etag = '"1"'
        self.headers = {}  # in the place of the right ones
        self.partial = False  # answers 206 whatever was asked for
        self.stop_after = []  # bytes after which the connection drops, one entry a request
        self.status = None
        self.requests = []  # the Range header of each request

        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                outer.answer(self)

            def log_message(self, *args):
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/path/file.pth"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def answer(self, request):
        asked = request.headers.get("Range")
        self.requests.append(asked)
        if self.status is not None:
            request.send_error(self.status)
            return
        start = 0
        if asked and self.ranges and request.headers.get("If-Range", self.etag) == self.etag:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            if start >= len(self.data):
                request.send_response(416)
                request.send_header("Content-Range", f"bytes */{len(self.data)}")
                request.end_headers()
                return
        body = self.data[start:]
        headers = {"Content-Length": str(len(body))}
        if start or self.partial:
            headers["Content-Range"] = f"bytes {start}-{len(self.data) - 1}/{len(self.data)}"
        if self.etag:
            headers["ETag"] = self.etag
        request.send_response(206 if "Content-Range" in headers else 200)
        for header in (headers | self.headers).items():
            request.send_header(*header)
        request.end_headers()
        request.wfile.write(body[: self.stop_after.pop(0)] if self.stop_after else body)


@pytest.fixture
def server():
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


def names(folder):
    """Of the files in it, in the one folder of each address."""
    return sorted(p.name for p in folder.glob("*/*") if not p.name.endswith(".lock"))


def folder_of(url, cache):
    return cache / hashlib.sha256(url.encode()).hexdigest()[:16]


def test_downloads_once(server, tmp_path):
    path = download(server.url, SHA[:8], cache_dir=tmp_path / "new")
    assert path == folder_of(server.url, tmp_path / "new") / "file.pth"
    assert path.read_bytes() == DATA
    assert names(tmp_path / "new") == ["file.pth"]
    assert download(server.url, SHA.upper(), cache_dir=tmp_path / "new") == path
    assert download(server.url, cache_dir=tmp_path / "new") == path
    assert server.requests == [None]


def test_default_cache(server, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    assert download(server.url) == folder_of(server.url, tmp_path / "hub" / "checkpoints") / "file.pth"


def test_addresses_that_end_alike(server, tmp_path):
    """A file is known by its whole address."""
    first = download(server.url, cache_dir=tmp_path)
    server.data = DATA[::-1]
    for url in (server.url.replace("/path", "/other"), server.url + "?version=2"):
        second = download(url, cache_dir=tmp_path)
        assert (first.name, first.read_bytes()) == (second.name, DATA)
        assert second.read_bytes() == server.data


def test_a_cached_file_that_is_damaged_is_replaced(server, tmp_path):
    path = download(server.url, cache_dir=tmp_path)
    path.write_bytes(DATA[:-1])
    assert download(server.url, SHA, cache_dir=tmp_path) == path
    assert path.read_bytes() == DATA


def test_goes_on_after_a_drop(server, tmp_path):
    server.stop_after = [100_000, 50_000]
    assert download(server.url, SHA, cache_dir=tmp_path).read_bytes() == DATA
    assert server.requests == [None, "bytes=100000-", "bytes=150000-"]
    assert names(tmp_path) == ["file.pth"]


def test_goes_on_in_a_later_call(server, tmp_path):
    server.stop_after = [1000, 1000, 1000]
    with pytest.raises(CheckpointError, match=r"after 3,000 of 512,000 bytes.*call again"):
        download(server.url, SHA, cache_dir=tmp_path)
    assert "file.pth" not in names(tmp_path)
    assert download(server.url, SHA, cache_dir=tmp_path).read_bytes() == DATA
    assert server.requests[-1] == "bytes=3000-"


@pytest.mark.parametrize("how", ["etag", "no ranges", "another address"])
def test_starts_again_where_it_cannot_go_on(server, tmp_path, how):
    server.stop_after = [1000, 1000, 1000]
    with pytest.raises(CheckpointError):
        download(server.url, cache_dir=tmp_path)
    server.data = DATA[::-1]
    url = server.url
    if how == "etag":
        server.etag = '"2"'
    elif how == "no ranges":
        server.ranges = False
    else:
        url = server.url.replace("/path", "/other")
    assert download(url, cache_dir=tmp_path).read_bytes() == server.data  # no hash to save us


@pytest.mark.parametrize("etag", ["", 'W/"1"'])
def test_a_piece_of_another_file_is_thrown_away(server, tmp_path, etag):
    """Without a strong validator nobody can tell of which version a piece is: once more from the start."""
    server.etag = etag
    server.stop_after = [1000, 1000, 1000]
    with pytest.raises(CheckpointError, match=r"after 1,000 of 512,000 bytes$"):
        download(server.url, SHA, cache_dir=tmp_path)
    assert names(tmp_path) == []
    server.data = DATA[::-1]
    assert download(server.url, cache_dir=tmp_path).read_bytes() == server.data
    assert set(server.requests) == {None}


@pytest.mark.parametrize("length", [len(DATA), len(DATA) + 5])
def test_nothing_left_to_send(server, tmp_path, length):
    folder = folder_of(server.url, tmp_path)
    folder.mkdir()
    (folder / "file.pth.part").write_bytes((DATA + b"extra")[:length])
    (folder / "file.pth.part.version").write_text(server.etag)
    assert download(server.url, cache_dir=tmp_path).read_bytes() == DATA
    assert server.requests == [f"bytes={length}-", None]


@pytest.mark.parametrize(
    "headers",
    [{"Content-Range": "bytes 0-9/10"}, {"Content-Range": "bytes 7-9/10"}, {"Content-Range": "x"}, {"ETag": '"2"'}],
)
def test_another_part_than_was_asked_for(server, tmp_path, headers):
    server.stop_after = [1000, 1000, 1000]
    with pytest.raises(CheckpointError):
        download(server.url, cache_dir=tmp_path)
    server.headers = headers
    assert download(server.url, cache_dir=tmp_path).read_bytes() == DATA  # no hash to save us
    assert server.requests[-2:] == ["bytes=3000-", None]


def test_a_part_that_nobody_asked_for(server, tmp_path):
    server.partial = True
    with pytest.raises(CheckpointError, match="another part"):
        download(server.url, cache_dir=tmp_path)
    assert names(tmp_path) == []


@pytest.mark.parametrize("known", [True, False])
def test_links_are_not_written_through(server, tmp_path, known):
    folder, victim = folder_of(server.url, tmp_path / "cache"), tmp_path / "victim"
    folder.mkdir(parents=True)
    victim.write_bytes(b"mine")
    (folder / "file.pth.part").symlink_to(victim)
    (folder / "file.pth").symlink_to(tmp_path / "nowhere")
    if known:
        (folder / "file.pth.part.version").write_text(server.etag)
        with pytest.raises(CheckpointError, match="symbolic links"):
            download(server.url, cache_dir=tmp_path / "cache")
    else:
        (folder / "file.pth.part.version").symlink_to(victim)
        assert download(server.url, cache_dir=tmp_path / "cache").read_bytes() == DATA
    assert victim.read_bytes() == b"mine"
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("length", ["abc", "-1", "\u00b2"])
def test_lengths_that_are_none(server, tmp_path, length):
    server.headers = {"Content-Length": length}
    assert download(server.url, SHA, cache_dir=tmp_path).read_bytes() == DATA


def test_letters_beyond_ascii(server, tmp_path):
    path = download(server.url.replace("path/file", "größe/datei ü"), SHA, cache_dir=tmp_path)
    assert (path.name, path.read_bytes()) == ("datei ü.pth", DATA)


@pytest.mark.parametrize(
    "end", ["..", "%2e%2e", "a/..", "%00", "a%0ab", "a" * 300, "%ff" * 100, "\udc80", "a%2f..%2f..%2f.."]
)
def test_names_that_are_none(server, tmp_path, end):
    with pytest.raises(CheckpointError, match="url must end in the name of a file"):
        download(server.url.replace("file.pth", end), cache_dir=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("url", ["http://[::1", "http://a b/c", "http://\udc80/c", "http://h:port/c", "http:///c"])
def test_addresses_that_are_none(tmp_path, url):
    with pytest.raises(CheckpointError):
        download(url, cache_dir=tmp_path)
    assert names(tmp_path) == []


def test_a_cache_that_is_none(server, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="cannot be kept in"):
        download(server.url, cache_dir=tmp_path / "file")
    (folder_of(server.url, tmp_path) / "file.pth").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="cannot be kept in"):
        download(server.url, cache_dir=tmp_path)
    assert names(tmp_path) == ["file.pth"]


def test_wrong_hash(server, tmp_path):
    with pytest.raises(CheckpointError, match=rf"{server.url}.*begins with {SHA[:8]}.*expected was 00000000"):
        download(server.url, "00000000", cache_dir=tmp_path)
    assert names(tmp_path) == []
    assert len(server.requests) == 1


def test_not_to_be_had(server, tmp_path):
    server.status = 404
    with pytest.raises(CheckpointError, match="404"):
        download(server.url, cache_dir=tmp_path)
    assert len(server.requests) == 1  # asking again would not help
    server.http.shutdown()
    server.http.server_close()
    with pytest.raises(CheckpointError, match="cannot be downloaded"):
        download(server.url, cache_dir=tmp_path)
    assert names(tmp_path) == []
    for url in ("ftp://host/file", "file.pth", "http://127.0.0.1/", 3):
        with pytest.raises(CheckpointError, match="url must"):
            download(url, cache_dir=tmp_path)


def test_several_at_once(server, tmp_path):
    with ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(lambda _: download(server.url, SHA, cache_dir=tmp_path), range(4)))
    assert len(set(paths)) == 1
    assert paths[0].read_bytes() == DATA
    assert server.requests == [None]


def test_file_urls(tmp_path):
    path = tmp_path / "a file%20.pth"
    path.write_bytes(DATA)
    assert download(path.as_uri(), SHA[:8], cache_dir=tmp_path / "none") == path
    assert not (tmp_path / "none").exists()
    assert download(f"file:{tmp_path}/a%20file%2520.pth") == path
    with pytest.raises(CheckpointError, match="SHA-256"):
        download(path.as_uri(), "00000000")
    assert path.exists()  # not ours to delete
    with pytest.raises(CheckpointError, match="no such file"):
        download((tmp_path / "none.pth").as_uri())
    with pytest.raises(CheckpointError, match="on this machine"):
        download("file://elsewhere/a.pth")


@pytest.mark.parametrize("rich", [True, False])
def test_progress_on_a_terminal_only(server, tmp_path, capfd, monkeypatch, rich):
    download(server.url, cache_dir=tmp_path / "1")
    assert capfd.readouterr() == ("", "")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    if not rich:
        monkeypatch.setitem(__import__("sys").modules, "rich.console", None)
    download(server.url, cache_dir=tmp_path / "2", progress=False)
    assert capfd.readouterr() == ("", "")
    download(server.url, cache_dir=tmp_path / "3")
    out, err = capfd.readouterr()
    assert out == ""
    assert "file.pth" in err
    assert os.listdir(tmp_path / "3")
