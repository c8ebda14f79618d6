"""Other people's tools, and what they have to bring back.

PFU_TEST_PEERS names a folder with rclone, s5cmd and aws; .ci/run installs them there.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from testing.place import LONG_AGO, MIB, ODD_NAMES, Place

PEERS = os.environ.get("PFU_TEST_PEERS", "")
needs_peers = pytest.mark.skipif(not PEERS, reason="PFU_TEST_PEERS names no other tools")


def peer(place: Place, tool: str, *arguments: Any) -> None:
    """Run another tool against the server. It must not complain by its exit code."""
    environment = {
        **place.environment,
        "RCLONE_CONFIG": os.devnull,
        "RCLONE_CONFIG_X_TYPE": "s3",
        "RCLONE_CONFIG_X_PROVIDER": "Other",
        "RCLONE_CONFIG_X_ENV_AUTH": "true",
        "RCLONE_CONFIG_X_ENDPOINT": place.endpoint,
        "RCLONE_CONFIG_X_FORCE_PATH_STYLE": "true",
        "RCLONE_CONFIG_X_LIST_VERSION": "2",
        "RCLONE_CONFIG_X_LIST_URL_ENCODE": "true",
        "S3_ENDPOINT_URL": place.endpoint,
        "AWS_ENDPOINT_URL": place.endpoint,
        "LC_ALL": "C.UTF-8",
    }
    command = [str(Path(PEERS) / tool), *map(str, arguments)]
    done = subprocess.run(
        command, cwd=place.path, env=environment, capture_output=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]


class Entry(NamedTuple):
    """What a restore has to bring back."""

    mode: int
    modified: int  # nanoseconds since the epoch
    content: bytes


def entries(root: Path) -> dict[bytes, Entry]:
    """Files and links below a folder, by the bytes of their paths."""
    found = {}
    for folder, _, _ in os.walk(os.fsencode(root)):
        for entry in os.scandir(folder):
            status = entry.stat(follow_symlinks=False)
            if entry.is_symlink():
                content = os.readlink(entry.path)
            elif entry.is_file():
                content = Path(os.fsdecode(entry.path)).read_bytes()
            else:
                continue
            path = os.path.relpath(entry.path, os.fsencode(root))
            found[path] = Entry(status.st_mode, status.st_mtime_ns, content)
    return found


def tree_to_restore(place: Place) -> None:
    for number, name in enumerate(ODD_NAMES):
        path = place.file(os.path.join(b"d" if number % 3 else b"d/e", os.fsencode(name)))
        path.write_bytes(b"%d" % number * number)
        path.chmod((0o640, 0o755, 0o600, 0o444)[number % 4])
        os.utime(path, ns=(1, LONG_AGO * 10**9 + 123456789 + number))
    large = place.file("large", os.urandom(11 * MIB))
    os.utime(large, ns=(1, 1_700_000_000_000_000_001))


def restorable(name: bytes) -> bool:
    """rclone cannot even upload a name with its own quoting sign in it."""
    return "\u201b".encode() not in name
