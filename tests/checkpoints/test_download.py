"""Downloads against a server on this machine: verified, cached, continued, refused."""

from __future__ import annotations

import hashlib
import os
import pwd
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import numpy as np
import pytest

from common.checkpoints.download import _SecureRedirects, download, split_hash
from common.checkpoints.file_format import save_file
from common.checkpoints.loading import read_checkpoint
from common.errors import UserError

CONTENT = np.random.default_rng(0).bytes(700_000)
HASH = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def server():
    """Serves ``content`` at every address, with ranges unless told otherwise, up to ``breaks_off_after`` bytes.

    ``raw`` is sent in place of everything.
    """
    state = SimpleNamespace(content=CONTENT, ranges=True, breaks_off_after=None, status=None, raw=None, requests=[])
    state.redirect, state.length = None, None

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            wanted = self.headers.get("Range")
            state.requests.append(wanted)
            if state.raw:
                self.wfile.write(state.raw)
                return
            if state.status:
                self.send_error(state.status)
                return
            if state.redirect:
                self.send_response(302)
                self.send_header("Location", state.redirect)
                self.end_headers()
                return
            start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and state.ranges else 0
            if wanted and state.ranges and start >= len(state.content):
                self.send_error(416)
                return
            body = state.content[start:]
            self.send_response(206 if wanted and state.ranges else 200)
            self.send_header("Content-Length", state.length or str(len(body)))
            self.end_headers()
            self.wfile.write(body[: state.breaks_off_after])

        def log_message(self, *_):
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    state.url = f"http://127.0.0.1:{http.server_port}/pale.pdparams#sha256={HASH}"
    yield state
    http.shutdown()
    http.server_close()


def test_a_file_is_fetched_verified_and_then_cached(server, tmp_path):
    first = download(server.url, tmp_path)
    assert first.read_bytes() == CONTENT
    assert first.suffix == ".pdparams"
    assert download(server.url, tmp_path) == first
    assert server.requests == [None]


@pytest.mark.parametrize("suffix", [".lock", ".part"])
def test_a_pipe_or_a_link_in_the_folder_of_downloads_is_refused(server, tmp_path, suffix):
    target = download(server.url, tmp_path)
    target.unlink()
    for make in (os.mkfifo, lambda path: path.symlink_to("/dev/null")):
        make(path := target.with_name(target.name + suffix))
        with pytest.raises(UserError, match="is not a regular file; delete it"):
            download(server.url, tmp_path)
        path.unlink()


@pytest.mark.parametrize("ranges", [True, False])
def test_a_download_that_broke_off_is_continued_or_starts_anew(server, tmp_path, ranges):
    server.ranges, server.breaks_off_after = ranges, 300_000
    with pytest.raises(UserError, match="again to resume"):
        download(server.url, tmp_path)
    server.breaks_off_after = None
    assert download(server.url, tmp_path).read_bytes() == CONTENT
    assert server.requests == [None, "bytes=300000-"]


def test_a_complete_part_that_was_not_renamed_is_taken(server, tmp_path):
    target = download(server.url, tmp_path)
    target.rename(target.with_name(target.name + ".part"))
    assert download(server.url, tmp_path).read_bytes() == CONTENT


def test_a_wrong_hash_deletes_the_file(server, tmp_path):
    server.content = CONTENT[:-1] + b"x"
    with pytest.raises(UserError, match=f"but {HASH} was expected"):
        download(server.url, tmp_path)
    assert not list(tmp_path.glob("*.pdparams*part")) + list(tmp_path.glob("*.pdparams"))


def test_of_several_downloads_of_the_same_file_one_fetches_it(server, tmp_path):
    results: list = []
    threads = [threading.Thread(target=lambda: results.append(download(server.url, tmp_path))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    assert all(path.read_bytes() == CONTENT for path in results)
    assert server.requests == [None]


def test_a_part_that_is_longer_than_the_file_is_deleted(server, tmp_path):
    target = download(server.url, tmp_path)
    target.with_name(target.name + ".part").write_bytes(CONTENT + b"x")
    target.unlink()
    with pytest.raises(UserError, match=f"but {HASH} was expected"):
        download(server.url, tmp_path)
    assert download(server.url, tmp_path).read_bytes() == CONTENT


def test_errors_of_the_server_are_one_line(server, tmp_path):
    for raw, status, part in ((b"no HTTP at all\r\n\r\n", None, "again to resume"), (None, 404, "404")):
        server.raw, server.status = raw, status
        with pytest.raises(UserError, match=part) as caught:
            download(server.url, tmp_path)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"127\.0\.0\.1"):
        download(f"http://127.0.0.1:9/x#sha256={HASH}", tmp_path)


@pytest.mark.parametrize("location", ["http://host/x", "ftp://host/x", "//host/x"])
def test_a_redirect_to_an_address_without_encryption_is_refused(server, tmp_path, location):
    server.redirect = location
    with pytest.raises(UserError, match=r"redirects to .*: only https"):
        download(server.url, tmp_path)


def test_a_redirect_from_an_encrypted_address_to_this_machine_is_refused():
    request = urllib.request.Request("https://host/x")
    with pytest.raises(UserError, match=r"redirects to http://localhost/x: only https"):
        _SecureRedirects().redirect_request(request, None, 302, "Found", {}, "http://localhost/x")


def test_a_file_that_is_longer_than_the_registry_says_is_refused_and_deleted(server, tmp_path):
    for length in (None, "abc"):
        server.length = length
        with pytest.raises(UserError, match="has more than the expected 699,999 bytes"):
            download(server.url, tmp_path, size=len(CONTENT) - 1)
        assert not list(tmp_path.glob("*.part"))
    assert download(server.url, tmp_path, size=len(CONTENT)).read_bytes() == CONTENT


def test_a_content_length_that_is_no_number_is_ignored(server, tmp_path):
    server.length = "abc"
    assert download(server.url, tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("url", "named"),
    [
        ("https://host/file.pdparams#sha256=123", "#sha256="),
        (f"http://host/file.pdparams#sha256={HASH}", "only https"),
        (f"file:///etc/passwd#sha256={HASH}", "only https"),
    ],
)
def test_addresses_without_hash_or_encryption_are_refused(url, named):
    with pytest.raises(UserError, match=named):
        split_hash(url)


def test_a_checkpoint_is_read_from_an_address(server, tmp_path, monkeypatch):
    monkeypatch.setenv("PALE_HOME", str(tmp_path / "cache"))
    save_file({"a": np.arange(3.0)}, tmp_path / "a.pdparams")
    server.content = (tmp_path / "a.pdparams").read_bytes()
    url = server.url.replace(HASH, hashlib.sha256(server.content).hexdigest())
    np.testing.assert_array_equal(read_checkpoint(url).weights["a"], [0.0, 1.0, 2.0])


def test_without_a_home_folder_the_remedy_is_named(monkeypatch):
    def fail(number):
        raise KeyError

    monkeypatch.setattr(pwd, "getpwuid", fail)  # as in a container with an unknown user id
    for name in ("HOME", "PALE_HOME"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match=r"no home folder for downloads; set \$PALE_HOME"):
        download(f"https://x.invalid/x#sha256={HASH}")


@pytest.mark.parametrize(
    "address", ["https://x.invalid/\u00e4", "https://x.invalid/\0", f"https://{'a' * 70}.invalid/x"], ids=ascii
)
def test_an_address_that_cannot_be_requested_is_an_error_of_the_user(tmp_path, address):
    with pytest.raises(UserError, match="run the same command again"):
        download(f"{address}#sha256={HASH}", tmp_path)


def test_a_redirect_to_an_impossible_address_is_an_error_of_the_user(server, tmp_path):
    server.redirect = f"https://{'a' * 70}.invalid/x"
    with pytest.raises(UserError, match="run the same command again"):
        download(server.url, tmp_path)


def test_the_name_of_the_copy_is_short_enough_for_a_file_system(server, tmp_path):
    address, _, fragment = server.url.partition("#")
    path = download(f"{address}{'a' * 300}.pdparams#{fragment}", tmp_path)
    assert path.read_bytes() == CONTENT
    assert path.suffix == ".pdparams"


def test_a_file_whose_hash_begins_alike_is_another(server, tmp_path):
    address, _, fragment = server.url.partition("#")
    download(server.url, tmp_path)
    with pytest.raises(UserError, match="was expected"):
        download(f"{address}#{fragment[:-44]}{'0' * 44}", tmp_path)
