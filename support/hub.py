"""
Downloads from the Hugging Face hub, or from the mirror that HF_ENDPOINT names. A mirror often only
redirects to another host. If that one cannot be reached, the libraries try again for many minutes,
and do not name it. So the first byte of a file is requested here first. Come here when a download
fails, or stands still.
"""
import contextlib
import os
import ssl
import urllib.error
import urllib.request
from urllib.parse import quote, urlsplit

from support.console import UserError, one_line

TIMEOUT = 30  # seconds without a byte
WHAT_TO_DO = {
    401: "there is no such model or dataset, or it needs a token: check the name, set HF_TOKEN",
    403: "no permission: request access on the page of the model or dataset, then set HF_TOKEN",
    404: "there is no such model, dataset or file: check the name",
    429: "too many requests: wait a few minutes, or set HF_TOKEN; if you stream, fewer --workers",
    503: "it is down: try again later"}


class SilentHost(OSError):
    """A host that does not answer; the text names it."""


class Offline(Exception):
    """HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set: what is not in the cache is not loaded."""


class Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects and keeps the last address."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        self.url = newurl
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def endpoint():
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


def prepare():
    """
    Call this before huggingface_hub, datasets or transformers is imported: they read the
    environment only then. Mirrors do not serve Xet, the hub's own transfer of large files, and a
    download through it would stand at 0%.
    """
    # seconds without a byte; huggingface_hub tries six times before it gives up
    os.environ.setdefault("HF_HUB_DOWNLOAD_TIMEOUT", str(TIMEOUT // 6))
    if "HF_ENDPOINT" in os.environ:
        os.environ.setdefault("HF_HUB_DISABLE_XET", "1")


def reach(path):
    """
    Request the first byte of a file on the hub (path: the part after the endpoint) through all
    redirects. SilentHost if a host does not answer, HTTPError if it answers with an error status,
    Offline if it may not be asked.
    """
    from huggingface_hub import constants, get_token
    if constants.HF_HUB_OFFLINE:
        raise Offline
    url = f"{endpoint()}/{quote(path, safe='/%')}"
    request = urllib.request.Request(url, headers={"Range": "bytes=0-0", "User-Agent": "gpt2"})
    if token := get_token():
        request.add_unredirected_header("Authorization", f"Bearer {token}")  # for the hub only
    redirects = Redirects()
    redirects.url = url
    try:
        with urllib.request.build_opener(redirects).open(request, timeout=TIMEOUT) as reply:
            reply.read(1)
    except urllib.error.HTTPError:
        raise
    except OSError as e:
        reason = getattr(e, "reason", e)  # urllib wraps only some of its errors
        if isinstance(reason, ssl.SSLCertVerificationError):
            return  # the libraries bring certificates of their own
        silent = f"{urlsplit(redirects.url).netloc} does not answer ({reason})"
        if redirects.url != url:
            silent += f"; {urlsplit(url).netloc} redirects there"
        raise SilentHost(silent) from e


def reach_dataset(dataset, name=None):
    """reach() for a dataset: its description, then the first of its data files"""
    prepare()
    reach(f"api/datasets/{dataset}")  # without an answer the next line would try for minutes
    from datasets import load_dataset_builder
    files = load_dataset_builder(dataset, name).config.data_files or {}
    for file in next(iter(files.values()), [])[:1]:  # hf://datasets/OWNER/NAME@REVISION/FILE
        reach(file.removeprefix("hf://").replace("@", "/resolve/", 1))


def download(model, files):
    """
    Files of a model on the hub -> the directory with them, in the hub's cache. If they are there
    already, the network is not used.
    """
    prepare()
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    paths = [try_to_load_from_cache(model, file) for file in files]
    if not all(isinstance(path, str) for path in paths):
        large = f"{model}/resolve/main/{files[-1]}"
        reach(large)
        try:
            paths = [hf_hub_download(model, file) for file in files]
        except Exception:  # huggingface_hub's, of many kinds
            reach(large)  # a host that has become silent in the meantime is named
            raise
    return os.path.dirname(paths[0])


@contextlib.contextmanager
def failures_explained(what, by_hand):
    """
    Whatever a download inside raises becomes one line. by_hand: what to copy, and to which place,
    if nothing else helps.
    """
    try:
        yield
    except ModuleNotFoundError:  # run_program names the package
        raise
    except Offline as e:
        raise UserError(f"cannot load {what}: it is not in the cache, and HF_HUB_OFFLINE or "
                        f"TRANSFORMERS_OFFLINE is set: unset it, or {by_hand}") from e
    except SilentHost as e:
        mirror = "try another" if "HF_ENDPOINT" in os.environ else "set HF_ENDPOINT to a"
        raise UserError(f"cannot load {what}: {e}: {mirror} mirror, or {by_hand}") from e
    except Exception as e:  # huggingface_hub's and datasets', of many kinds
        reason = explain_status(e) or f"{one_line(e)}: try again, or {by_hand}"
        raise UserError(f"cannot load {what}: {reason}") from e


def explain_status(error):
    """An exception -> the host's error status and what to do about it; None if there is none"""
    while error is not None:
        reply = getattr(error, "response", None)  # huggingface_hub's exceptions have one
        reply = error if reply is None else reply
        status = getattr(reply, "status_code", None) or getattr(reply, "code", None)
        if isinstance(status, int):
            advice = WHAT_TO_DO.get(503 if status >= 500 else status, "try again, or a mirror")
            return f"{urlsplit(str(reply.url)).netloc} answers {status}: {advice}"
        error = error.__cause__
