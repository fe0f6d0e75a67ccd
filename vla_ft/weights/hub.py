"""Asks a hub (huggingface.co, or whatever ``HF_ENDPOINT`` names) what a repository holds, and where its files are.

The library speaks the protocol: revisions, redirects, proxies, certificates, retries. Two things it no longer does, or
does in a way that does not fit here: since version 1.x it throws a file away that was interrupted, and where ``hf_xet``
is installed it fetches from other servers in pieces that cannot be continued either. So the bytes come over plain
HTTPS with ranges (``transfer.py``), which every hub and mirror serves.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

from huggingface_hub import HfApi, get_hf_file_metadata, hf_hub_url
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,  # type: ignore[attr-defined]  # the base of what the HTTP client raises, whichever client it is
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import build_hf_headers

from vla_ft.errors import UserError
from vla_ft.weights.catalogue import Entry
from vla_ft.weights.places import FileRecord

TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
"""The only places a token is taken from; it is sent to the hub's own host alone and printed nowhere."""
_ANSWER_SECONDS = 20.0


@dataclass(frozen=True)
class Location:
    """Where a file's bytes are to be had."""

    url: str
    headers: Mapping[str, str]


def endpoint() -> str:
    """The hub's address. Raises UserError when ``HF_ENDPOINT`` is none."""
    named = os.environ.get("HF_ENDPOINT", "").strip().rstrip("/")
    if not named:
        return "https://huggingface.co"
    try:
        right = urlsplit(named).scheme in ("http", "https") and bool(host_of(named))
    except ValueError:  # its port is no number
        right = False
    if not right:
        shown = named.rpartition("@")[2]  # what stands before an @ may be a password
        raise UserError(f"HF_ENDPOINT is '{shown}', which is no address. Give it whole: HF_ENDPOINT=https://HOST.")
    return named


def host_of(url: str) -> str:
    """Host and port of an address, without the name and password that may stand before them."""
    parts = urlsplit(url)
    return (parts.hostname or "") + (f":{parts.port}" if parts.port else "")


def token() -> str | None:
    """The access token of the environment, or None. A token that was stored by a login is not used."""
    return next((value for name in TOKENS if (value := os.environ.get(name, "").strip())), None)


def offline() -> bool:
    """Whether the environment forbids the network."""
    values = (os.environ.get(name, "").upper() for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))
    return any(value in ("1", "ON", "YES", "TRUE") for value in values)


def list_files(entry: Entry) -> tuple[str | None, dict[str, FileRecord]]:
    """The commit (None for a plain address) and the wanted files of an entry, as their server lists them."""
    if entry.url is not None:
        with translated(entry, entry.url):
            size = get_hf_file_metadata(entry.url, token=False, timeout=_ANSWER_SECONDS).size
        if size is None:
            raise UserError(f"{entry.url} does not say how large it is, which a file of weights does. Is it a page?")
        return None, {entry.files[0]: FileRecord(size)}
    assert entry.repository is not None
    with translated(entry, endpoint()):
        api = HfApi(endpoint=endpoint(), token=token() or False)
        ask = api.dataset_info if entry.kind == "dataset" else api.model_info
        info = ask(entry.repository, revision=entry.revision or "main", files_metadata=True, timeout=_ANSWER_SECONDS)
    files = {}
    for sibling in info.siblings or []:
        if entry.wants(sibling.rfilename) and sibling.size is not None:
            sha256 = sibling.lfs.sha256 if sibling.lfs else None
            files[sibling.rfilename] = FileRecord(sibling.size, sha256, None if sha256 else sibling.blob_id)
    return info.sha, files


def locate(entry: Entry, path: str, revision: str | None, expected: FileRecord) -> Location:
    """Where a file of a commit is. Raises UserError when the server gives another one for it."""
    if entry.url is not None:
        return Location(entry.url, {"Accept-Encoding": "identity"})
    assert entry.repository is not None and revision is not None
    url = hf_hub_url(entry.repository, path, repo_type=entry.kind, revision=revision, endpoint=endpoint())
    with translated(entry, endpoint()):
        found = get_hf_file_metadata(url, token=token() or False, timeout=_ANSWER_SECONDS, endpoint=endpoint())
    if found.commit_hash != revision or found.etag not in (expected.blob, expected.sha256):
        raise UserError(
            f"{host_of(url)} answers with another file for {path} of {entry.repository}: commit "
            f"{found.commit_hash}, tag {found.etag}; expected {revision}, {expected.blob or expected.sha256}. "
            "It was not downloaded."
        )
    headers = build_hf_headers(token=token() or False)
    headers["Accept-Encoding"] = "identity"  # a range of a compressed answer is no range of the file
    if urlsplit(found.location).netloc != urlsplit(url).netloc:
        headers.pop("authorization", None)  # the address of the storage carries its own permission
    return Location(found.location, headers)


@contextmanager
def translated(entry: Entry, where: str) -> Iterator[None]:
    """Turn what the library raises into one sentence each."""
    host = host_of(where)
    try:
        yield
    except GatedRepoError:
        raise gated(entry) from None
    except RevisionNotFoundError:
        raise UserError(
            f"{entry.origin} has no revision '{entry.revision or 'main'}' at {host}; no other was taken. "
            f"Its branches and commits are on {entry.page}."
        ) from None
    except RemoteEntryNotFoundError as error:
        raise UserError(f"{host} no longer has a file of {entry.origin}: {_first_line(error)}") from None
    except RepositoryNotFoundError:
        hint = "the account of your token cannot see it" if token() else "it is private: then set HF_TOKEN to a token"
        raise UserError(
            f"{host} has no repository {entry.origin} that you may see. It is mistyped, or {hint}."
        ) from None
    except HfHubHTTPError as error:
        if error.response.status_code == 401 and token():
            raise UserError(
                f"{host} does not accept the token in {_token_name()}. Make a new one, or unset it."
            ) from None
        raise UserError(f"{host} answered {error.response.status_code} for {entry.origin}. Try again later.") from None
    except (OfflineModeIsEnabled, HTTPError) as error:
        raise unreachable(entry, host, f"{type(error).__name__}: {_first_line(error)}") from None
    except HFValidationError as error:
        raise UserError(f"'{entry.origin}' cannot be a repository's name: {_first_line(error)}") from None
    except (ValueError, KeyError) as error:
        raise UserError(
            f"{host} does not answer as a hub does ({type(error).__name__}: {_first_line(error)}). A page to log in to "
            "the network may stand in between, or HF_ENDPOINT names another server."
        ) from None


def gated(entry: Entry) -> UserError:
    """What it takes to get weights whose licence must be accepted."""
    asked = f"accept it with your account on {entry.page}"
    if token():
        return UserError(
            f"{entry.origin} is given only to who accepted its licence ({entry.license}), and the account of the token "
            f"in {_token_name()} has not, or the token may not read gated repositories: {asked}, then run again."
        )
    return UserError(
        f"{entry.origin} is given only to who accepted its licence ({entry.license}): {asked}, then set HF_TOKEN to a "
        "token of that account (right: read) and run again."
    )


def unreachable(entry: Entry, host: str, why: str) -> UserError:
    """No network: what to do with and without."""
    from vla_ft.weights.places import place_of

    place = place_of(entry)
    named = " HF_ENDPOINT names it." if os.environ.get("HF_ENDPOINT") and host == host_of(endpoint()) else ""
    return UserError(
        f"Cannot reach {host} ({why}).{named} Without network: run `{entry.command} to=DIR` on a machine that has it, "
        f"copy DIR here as {place} (or set VLA_FT_WEIGHTS to the folder above it), and run this command again: it "
        "checks every hash and needs no network. What has arrived already is kept."
    )


def _token_name() -> str:
    return next(name for name in TOKENS if os.environ.get(name, "").strip())


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in _bare(str(error)).splitlines() if line.strip()), "no reason given")


def _bare(text: str) -> str:
    """A text without the names and passwords in its addresses."""
    return re.sub(r"(?<=://)[^/@\s]+@", "", text)


def _hide_passwords(message: logging.LogRecord) -> bool:
    message.msg, message.args = _bare(message.getMessage()), ()
    return True


for _speaks in ("huggingface_hub.utils._http", "huggingface_hub.file_download"):  # they print addresses when they retry
    logging.getLogger(_speaks).addFilter(_hide_passwords)
