"""
Facts about downloads: a host that does not answer is named, an error status says what to do, and nobody waits for long.
Servers on this machine take the place of the hub, of a mirror, and of the storage behind it.
"""
import os
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest
from small_runs import ROOT, refusal

from support import hub
from support.hellaswag_file import find_examples
from support.hugging_face import find_folder
from support.hub import download, explain_status
from support.tokenizer import fetch_tokenizer


@pytest.fixture
def serve(monkeypatch):
    """serve(reply) starts a server, whose reply is (status, headers), and makes it the mirror -> its requests"""
    servers = []

    def start(reply, mirror=True):
        requests = []

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                requests.append(self)
                status, headers = reply(self.path) if callable(reply) else reply
                self.send_response(status)
                for name, value in {"Content-Length": "0", **headers}.items():
                    self.send_header(name, value)
                self.end_headers()

            def log_message(self, *args):
                pass
        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        if mirror:
            monkeypatch.setenv("HF_ENDPOINT", url)
        return SimpleNamespace(host=url.removeprefix("http://"), url=url, requests=requests)
    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def empty_cache(monkeypatch):
    """Nothing has been downloaded before, the token is in no file, and a silent host gets a third of a second."""
    import huggingface_hub
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda model, file: None)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_secret")
    monkeypatch.setattr(hub, "TIMEOUT", 0.3)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    for name, value in (("HF_HUB_DISABLE_XET", "1"), ("HF_HUB_DOWNLOAD_TIMEOUT", "5")):
        monkeypatch.setenv(name, value)  # prepare() may set it: restored after the test
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def nobody():
    """The host:port of a port that nobody listens at"""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{s.getsockname()[1]}"


@pytest.fixture
def silent():
    """The host:port of a server that accepts connections and sends nothing"""
    with socket.create_server(("127.0.0.1", 0)) as s:
        yield f"127.0.0.1:{s.getsockname()[1]}"


XET = {"X-Xet-Hash": "b" * 64, "X-Linked-Size": "548105171"}


# --- a host that does not answer ------------------------------------------------------------------

def test_a_mirror_that_redirects_to_nobody(serve, nobody):
    """The line names the host to which the mirror redirects, and what to copy."""
    mirror = serve((302, {"Location": f"http://{nobody}/model.safetensors", **XET}))
    line = refusal(find_folder, "gpt2")
    assert f"cannot load gpt2: {nobody} does not answer (" in line and f"{mirror.host} redirects there" in line
    assert "try another mirror, or copy config.json and model.safetensors of openai-community/gpt2" in line
    assert line.endswith("--init_from=DIR)")


def test_hosts_that_send_nothing(serve, silent, monkeypatch):
    """The storage behind a mirror, or the mirror itself: the wait ends."""
    serve((302, {"Location": f"http://{silent}/model.safetensors", **XET}))
    assert f"{silent} does not answer (timed out); " in refusal(find_folder, "gpt2")
    monkeypatch.setenv("HF_ENDPOINT", f"http://{silent}")
    line = refusal(fetch_tokenizer, "Qwen/Qwen2-1.5B")
    assert f"cannot load the tokenizer Qwen/Qwen2-1.5B: {silent} does not answer (timed out): try" in line
    assert "copy its tokenizer.json" in line


def test_without_a_mirror_one_is_the_advice(nobody, monkeypatch):
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    monkeypatch.setattr(hub, "endpoint", lambda: f"http://{nobody}")
    assert "set HF_ENDPOINT to a mirror, or copy" in refusal(find_folder, "gpt2")


def test_without_the_network_what_is_not_in_the_cache_is_not_asked_for(serve, monkeypatch):
    """HF_HUB_OFFLINE=1 on a node of a cluster: no host is at fault. The line names the variable, and what to copy."""
    import huggingface_hub
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    mirror = serve((206, {}))
    line = refusal(find_folder, "gpt2")
    assert line.startswith("cannot load gpt2: it is not in the cache, and HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is")
    assert "unset it, or copy config.json" in line
    assert "unset it, or copy its tokenizer.json" in refusal(fetch_tokenizer, "Qwen/Qwen2-1.5B")
    with pytest.raises(hub.Offline):
        hub.reach_dataset("Rowan/hellaswag")
    assert mirror.requests == []


def test_a_dataset_whose_files_are_elsewhere(serve, nobody, monkeypatch):
    """The description arrives, the first data file does not: known before a library tries for ten minutes."""
    datasets = pytest.importorskip("datasets")
    mirror = serve(lambda path: (200, {}) if path.startswith("/api/") else (302, {"Location": f"http://{nobody}/x"}))
    files = {"train": [f"hf://datasets/Rowan/hellaswag@{'1' * 40}/data/the items.parquet"]}
    builder = SimpleNamespace(config=SimpleNamespace(data_files=files))
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda dataset, name: builder)
    with pytest.raises(hub.SilentHost, match=nobody):
        hub.reach_dataset("Rowan/hellaswag")
    assert [request.path for request in mirror.requests] == [
        "/api/datasets/Rowan/hellaswag", f"/datasets/Rowan/hellaswag/resolve/{'1' * 40}/data/the%20items.parquet"]


def test_hellaswags_second_source_names_the_host(nobody, monkeypatch, tmp_path, capsys):
    """A run goes on without HellaSwag; its warning says who did not answer, and where to put the file."""
    monkeypatch.setenv("HF_ENDPOINT", f"http://{nobody}")
    monkeypatch.setattr("support.hellaswag_file.URL", f"http://{nobody}/hellaswag_val.jsonl")
    assert find_examples(download=True, data_dir=str(tmp_path)) == []
    out = capsys.readouterr().out
    assert f"second source: cannot load Rowan/hellaswag: {nobody} does not answer" in out
    assert "copy hellaswag_val.jsonl into hellaswag/" in out


def test_a_host_that_becomes_silent_is_named_too(serve, nobody, monkeypatch):
    """The library's own error, after its last try, names nobody."""
    import huggingface_hub
    replies = [(206, {}), (302, {"Location": f"http://{nobody}/model.safetensors"})]
    serve(lambda path: replies.pop(0))

    def fail(model, file):
        raise OSError("timed out")
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    assert f"{nobody} does not answer" in refusal(find_folder, "gpt2")
    serve((206, {}))
    assert "cannot load gpt2: OSError: timed out: try again, or copy" in refusal(find_folder, "gpt2")


# --- an error status ------------------------------------------------------------------------------

@pytest.mark.parametrize("status, said", [
    (401, "needs a token: check the name, set HF_TOKEN"), (403, "request access on the page"),
    (404, "no such model, dataset or file"), (429, "wait a few minutes, or set HF_TOKEN; if you stream, fewer"),
    (503, "it is down: try again later"), (502, "it is down"), (418, "try again, or a mirror")])
def test_an_error_status_says_what_to_do(status, said, serve):
    """Another mirror is no remedy where the name is wrong or a token is missing."""
    mirror = serve((status, {}))
    line = refusal(find_folder, "gpt2-xl")
    assert f"cannot load gpt2-xl: {mirror.host} answers {status}: " in line and said in line
    assert "HF_ENDPOINT" not in line and "copy" not in line


class Reply:
    """As much as both generations of huggingface_hub have; that of requests is false for an error."""
    status_code, url = 429, "https://huggingface.co/datasets/x"

    def __bool__(self):
        return False


def test_too_many_requests_in_the_middle_of_a_stream():
    """datasets tries for some minutes, then raises an error of its own, caused by the hub's."""
    cause = OSError("429 Client Error")
    cause.response = Reply()
    error = ConnectionError("Server Disconnected")
    error.__cause__ = cause
    assert explain_status(error).startswith("huggingface.co answers 429: too many requests")
    assert explain_status(ConnectionError("Read timed out")) is None


# --- a host that answers --------------------------------------------------------------------------

def test_one_byte_is_requested_and_the_token_stays_at_the_hub(serve):
    """A file is never downloaded twice, and the storage behind a mirror learns no token."""
    storage = serve((206, {}), mirror=False)
    mirror = serve((302, {"Location": f"{storage.url}/file"}))
    hub.reach("gpt2/resolve/main/model.safetensors")
    (first,), (second,) = mirror.requests, storage.requests
    assert first.headers["Range"] == second.headers["Range"] == "bytes=0-0"
    assert first.headers["Authorization"] == "Bearer hf_secret" and second.headers["Authorization"] is None


def test_what_is_in_the_cache_needs_no_network(nobody, monkeypatch, tmp_path):
    import huggingface_hub
    monkeypatch.setenv("HF_ENDPOINT", f"http://{nobody}")
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda model, file: str(tmp_path / file))
    assert download("openai-community/gpt2", ["config.json", "model.safetensors"]) == str(tmp_path)


def test_what_is_asked_of_a_mirror():
    """
    No Xet, and six tries of 5 seconds when a file stands still, 30 in all. huggingface_hub reads these variables when
    it is imported. Whoever has set one is obeyed.
    """
    code = ("import sys; from support.hub import prepare; prepare(); assert 'huggingface_hub' not in sys.modules\n"
            "from huggingface_hub import constants\n"
            "print(constants.HF_HUB_DISABLE_XET, constants.HF_HUB_DOWNLOAD_TIMEOUT)")
    names = ("HF_ENDPOINT", "HF_HUB_DISABLE_XET", "HF_HUB_DOWNLOAD_TIMEOUT")
    env = {name: value for name, value in os.environ.items() if name not in names} | {"HF_ENDPOINT": "http://127.0.0.1:9"}
    for extra, expected in (({}, "True 5"), ({"HF_HUB_DISABLE_XET": "0", "HF_HUB_DOWNLOAD_TIMEOUT": "20"}, "False 20")):
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env={**env, **extra}, text=True,
                              capture_output=True)
        assert done.stdout.strip() == expected, done.stderr
