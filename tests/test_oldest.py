"""The oldest Python and the oldest boto3: what is said of the one, what the other lacks."""

from __future__ import annotations

import ast
import base64
import hashlib
import os
import re
import shutil
import subprocess
from pathlib import Path

import boto3
import botocore
import pytest

import pfu
from testing.faults import Action, Fault
from testing.jobs import base64_checksums, checksum_lane
from testing.place import (
    BOTH_MODES,
    HERE,
    MIB,
    PART,
    PFU,
    Place,
)

PYENV = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"


def older_python(version: str) -> str | None:
    """Where one is that works; a shim of pyenv's may not."""
    found = shutil.which(f"python{version}")
    places = [*PYENV.glob(f"{version}.*/bin/python"), *([Path(found)] if found else [])]
    for place in places:
        told = subprocess.run([place, "--version"], capture_output=True, text=True, check=False)
        if f"Python {version}." in told.stdout + told.stderr:
            return str(place)
    return None


class TestOlderPython:
    """A Python that is too old says which one is needed."""

    @pytest.mark.parametrize("version", ["2.7", "3.6", "3.7", "3.8"])
    def test_it_is_said_which_one_is_needed(self, version: str) -> None:
        python = older_python(version)
        if python is None:
            pytest.skip(f"there is no Python {version} here")
        run = subprocess.run(
            [python, "-B", PFU, "--version"], capture_output=True, text=True, check=False
        )
        assert "Python 3.9 or later" in run.stderr
        if version == "3.8":
            said = "pfu: Python 3.9 or later is needed, and this is 3.8\n"
            assert (run.returncode, run.stderr) == (2, said)
        else:  # the first line that it cannot read says it
            assert (run.returncode, "Traceback" in run.stderr) == (1, False)

    def test_python_3_8_can_read_all_of_it(self) -> None:
        text = PFU.read_text("utf-8")
        ast.parse(text, feature_version=(3, 8))
        assert not re.search(
            r"^\s*(async )?with \($", text, re.MULTILINE
        )  # taken by ast, not by 3.8

    def test_what_older_ones_cannot_read_stands_first(self) -> None:
        lines = PFU.read_text("utf-8").splitlines()
        first = next(line for line in lines if ":=" in line)
        assert "pfu needs Python 3.9 or later" in first
        above = "\n".join(lines[: lines.index(first)])
        ast.parse(above, feature_version=(3, 4))
        assert above.isascii()


class TestOlderBoto3:
    """Every boto3 from 1.26 on, which is Debian 12's, is asked for nothing that it has not."""

    def test_it_is_given_only_settings_that_it_has(self, monkeypatch: pytest.MonkeyPatch) -> None:
        version = tuple(map(int, botocore.__version__.split(".")[:2]))
        assert pfu.has_checksum_settings() == (version >= (1, 36))
        monkeypatch.setattr("botocore.config.Config.OPTION_DEFAULTS", {"retries": None})
        assert not pfu.has_checksum_settings()

    @BOTH_MODES
    @pytest.mark.parametrize("lane", ["fast", "safe"])
    def test_every_object_goes_up_with_its_digest(self, place: Place, lane: str, mode: str) -> None:
        place.file("small", b"small")
        large = place.file("large", os.urandom(5 * MIB + 1)).read_bytes()
        checksum_lane(place, lane)
        run = place.run("--mode", mode, *PART, "--json")
        assert (run.code, run.json["uploaded"]) == (0, 2), run.err
        assert run.json["fast_lane"] == (2 if lane == "fast" else 0)
        pieces = large[: 5 * MIB], large[5 * MIB :]
        digests = [hashlib.sha256(body).digest() for body in (b"small", *pieces)]
        small, *parts = (base64.b64encode(digest).decode() for digest in digests)
        assert base64_checksums(place) == {"small": small, "large": ",".join(parts)}
        sent = [r for r in place.server.log if r.operation in ("PutObject", "UploadPart")]
        assert not any({"content-md5", "expect"} & request.headers.keys() for request in sent)

    @pytest.mark.parametrize("operation", ["CompleteMultipartUpload", "CopyObject"])
    def test_a_200_that_holds_an_error_is_one(self, place: Place, operation: str) -> None:
        file = place.file("large", os.urandom(6 * MIB))
        arguments = ("--mode", "concurrent", *PART, "--json")
        if operation == "CopyObject":
            assert place.run(*arguments).code == 0
            file.chmod(0o640)
        place.server.faults.append(Fault(Action("error200"), operation, times=1))
        run = place.run(*arguments)
        assert (run.code, place.server.count(operation)) == (0, 2), run.err

    @pytest.mark.parametrize("source", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "profile"])
    def test_an_endpoint_is_found_where_a_newer_boto3_looks(
        self, place: Place, source: str
    ) -> None:
        place.file("f")
        config = place.path / "config"
        config.write_text(f"[default]\nendpoint_url = {place.endpoint}\n")
        if source == "profile":
            place.environment["AWS_CONFIG_FILE"] = str(config)
        else:
            place.environment[source] = place.endpoint
        place.endpoint = ""
        run = place.run("--mode", "concurrent", "--json")
        assert (run.code, set(place.stored())) == (0, {"f"}), run.err

    def test_what_ci_tries_is_the_least_that_is_asked_for(self) -> None:
        text = (HERE / ".ci/run").read_text("utf-8")
        assert "boto3==1.26.27" in text
        assert "boto3>=1.26" in (HERE / "requirements.txt").read_text("utf-8")
        assert tuple(map(int, boto3.__version__.split(".")[:2])) >= (1, 26)
