"""The fixtures that the tests of several modules share; conftest.py has pytest load them."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import os
import signal
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore.loaders import create_loader

import pfu
from testing.certificates import make_authority, make_certificate
from testing.faults import Action
from testing.jobs import PIECE, ChecksumFault
from testing.place import BUCKET, KIB, Place, without_pauses
from testing.server import S3Server
from testing.trials import remember_hooks

M_MMAP_THRESHOLD = -3  # malloc.h


@pytest.fixture(scope="session", autouse=True)
def signals_are_as_on_a_terminal() -> None:
    """A shell has what it starts in the background ignore SIGINT, and pfu would keep to that."""
    for number in (signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def what_was_imported_stays() -> None:
    """And is no business of the garbage collector: it would look at all of it, time after time.

    Large buffers go back to the system: what is kept of them makes each fork slower.
    """
    gc.collect()
    gc.freeze()
    with contextlib.suppress(AttributeError):  # glibc alone has it
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 256 * KIB)


@pytest.fixture
def server() -> Iterator[S3Server]:
    with S3Server(buckets=[BUCKET]) as server:
        yield server


@pytest.fixture
def place(tmp_path: Path, server: S3Server) -> Place:
    return Place(tmp_path, server)


@pytest.fixture
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing outside a test decides how botocore builds a request."""
    for name in list(os.environ):
        if name.startswith("AWS_") or name.lower().endswith(("_proxy", "_ca_bundle")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")


IN_NO_ENVIRONMENT = pytest.mark.usefixtures("no_environment")


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = tmp_path_factory.mktemp("tls")
    make_authority(root)
    for name, host in {"good": "localhost", "other": "example.com", "address": "127.0.0.1"}.items():
        make_certificate(root, name, host)
    return root


def server_context(certificates: Any, name: str) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificates / f"{name}.pem", certificates / f"{name}.key")
    return context


@pytest.fixture
def unasked(place: Place) -> Place:
    """What is stored has to be read back: no checksums are kept, and no ETag is an MD5."""
    without_pauses(place)
    place.server.faults.append(ChecksumFault(Action("error", 501, "NotImplemented")))
    place.files(pfu.MAX_UNCHECKED)
    assert place.run("--mode", "concurrent", "--sse", "aws:kms").code == 0
    return place


model_loader = functools.lru_cache(maxsize=None)(create_loader)


@pytest.fixture
def at_hand(place: Place, no_environment: None, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A place for runs in this process, which take small parts and do not pause between tries."""
    for name, value in place.server.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(pfu, "MIN_PART_SIZE", PIECE)
    place.server._store.min_part_size = PIECE
    monkeypatch.setattr(pfu, "full_jitter", lambda attempt: 0.0)
    monkeypatch.setattr("botocore.session.create_loader", model_loader)
    remember_hooks(monkeypatch)
    backoff = "botocore.retries.standard.ExponentialBackoff.delay_amount"
    monkeypatch.setattr(backoff, lambda *_: 0.0)
    return place


@pytest.fixture
def lenient_place(tmp_path: Path) -> Iterator[Place]:
    """Of other tools some do not sign what they have not to."""
    with S3Server(buckets=[BUCKET], allow_unsigned_payload=True) as server:
        yield Place(tmp_path, server)
