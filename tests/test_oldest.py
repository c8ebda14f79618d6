"""The oldest Python and the oldest boto3: what is said of the one, what the other lacks."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from testing.place import (
    PFU,
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
