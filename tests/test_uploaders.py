"""What every provider has to do, and how one is found by its name."""

from __future__ import annotations

import os

import pytest

import pfu
from testing.conformance import Conformance
from testing.place import BOTH_MODES, BUCKET, Place
from testing.uploaders import FolderUploader

# ======================================================================================
# The providers here
# ======================================================================================


class TestFolderUploader(Conformance):
    def uploader(self, place: Place) -> pfu.Uploader:
        return FolderUploader(place.path / "store")

    def stored(self, place: Place) -> dict[str, bytes | None]:
        folder = place.path / "store"
        files = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".meta")
        return {str(path.relative_to(folder)): path.read_bytes() for path in files}

    @BOTH_MODES
    def test_failures_are_told_apart(self, place: Place, mode: str) -> None:
        for name in ("good", "flaky", "refused"):
            place.file(name, name.encode())
        summary = self.job(place, mode).run()
        assert (summary.exit_code, summary.uploaded, summary.failed) == (1, 2, 1)
        assert [f["reason"] for f in summary.failures] == ["store refused: no such names here"]
        place.file("fatal")
        summary = self.job(place, mode).run()
        assert (summary.exit_code, summary.error) == (2, "store fatal: the folder is gone")


class TestS3Uploader(Conformance):
    def uploader(self, place: Place) -> pfu.Uploader:
        os.environ.update(place.server.environment())
        options = pfu.S3Options(endpoint_url=place.server.endpoint)
        return pfu.S3Uploader(f"s3://{BUCKET}/p", options)

    def stored(self, place: Place) -> dict[str, bytes | None]:
        return place.stored()


# ======================================================================================
# A provider that the command line names
# ======================================================================================


PROVIDER = """
from pathlib import Path
from pfu import Receipt, RetryableError, Upload, Uploader


class Folder(Uploader):
    def __init__(self, destination):
        super().__init__()
        self.destination = destination

    def put(self, upload):
        target = Path(self.destination) / upload.key
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            target.touch()
            raise RetryableError("store", upload.key, "once more")
        target.write_bytes(upload.body)
        return Receipt("etag")
"""


BROKEN_PROVIDER = """
from pfu import Uploader


class OwnError(Exception):
    def __init__(self, one, other):
        super().__init__(other)


class Broken(Uploader):
    def __init__(self, destination):
        super().__init__()
        self.destination = destination

    def open(self, connections):
        raise OwnError("a", "b")

    def put(self, upload):
        raise NotImplementedError
"""


class TestProviderByName:
    """A provider that the command line names."""

    @BOTH_MODES
    @pytest.mark.parametrize("method", ["fork", "spawn"])
    def test_a_provider_is_found_by_its_name(self, place: Place, mode: str, method: str) -> None:
        place.files(20)
        place.endpoint = ""
        (place.path / "folder.py").write_text(PROVIDER)
        place.environment["PFU_START_METHOD"] = method
        store = place.path / "store"
        run = place.run("--mode", mode, "--provider", "folder:Folder", "--json", to=str(store))
        assert (run.code, run.json["uploaded"]) == (0, 20), run.err
        stored = {
            str(p.relative_to(store)): p.read_bytes() for p in store.rglob("*") if p.is_file()
        }
        assert stored == place.local()

    @BOTH_MODES
    def test_a_bug_in_it_is_told_with_its_place(self, place: Place, mode: str) -> None:
        """An exception of its own may not even fit through a pipe."""
        place.files(3)
        place.endpoint = ""
        (place.path / "broken.py").write_text(BROKEN_PROVIDER)
        run = place.run("--mode", mode, "--provider", "broken:Broken", "--json", to="here")
        assert (run.code, run.json["pending"], run.err.count("\n")) == (1, 3, 1), run.err
        assert f"internal error: OwnError: b (broken.py:16, pfu {pfu.__version__})" in run.err

    @BOTH_MODES
    @pytest.mark.parametrize(
        "body, says",
        [
            ("return None", "upload: the provider returned no Receipt"),
            ("raise ValueError('odd')", "upload: ValueError: odd"),
            ("sys.exit('bye')", "upload: RuntimeError: SystemExit('bye')"),
            ("raise KeyboardInterrupt", "upload: RuntimeError: KeyboardInterrupt()"),
        ],
    )
    def test_what_a_put_does_is_told(self, place: Place, mode: str, body: str, says: str) -> None:
        """Of the one file, whatever it is: it ends neither the program nor a thread."""
        place.files(3)
        place.file("bad")
        place.endpoint = ""
        if_bad = (
            f"import sys\n        if upload.key == 'bad': {body}\n        return Receipt('e')\n"
        )
        source = PROVIDER.partition("        target =")[0] + "        " + if_bad
        (place.path / "folder.py").write_text(source)
        run = place.run("--mode", mode, "--provider", "folder:Folder", "--json", to="x")
        assert (run.code, run.json["uploaded"]) == (1, 3), run.err
        assert [failure["reason"] for failure in run.json["failures"]] == [says]

    @pytest.mark.parametrize(
        "source, says",
        [
            ("raise SystemExit('pip install it')", "SystemExit: pip install it"),
            ("def (", "SyntaxError: invalid syntax"),
            ("{}def __init__(self): pass\n    put = 1", "TypeError: "),
            ("{}pass", "TypeError: Can't instantiate abstract class"),
            ("{}put = 1\n    def __init__(self, to): raise KeyError(to)", "KeyError: 'x'"),
            ("{}put = 1\n    def __init__(self, to): exit('no account')", "SystemExit: no account"),
            ("class Mine: pass", "not an Uploader subclass (see docs/library.md)"),
        ],
    )
    def test_a_provider_that_cannot_be_made(self, place: Place, source: str, says: str) -> None:
        place.file("f")
        place.endpoint = ""
        begins = "from pfu import Uploader\nclass Mine(Uploader):\n    "
        (place.path / "own.py").write_text(source.replace("{}", begins))
        run = place.run("--provider", "own:Mine", to="x")
        assert (run.code, run.err.count("\n")) == (2, 1), run.err
        assert run.err.startswith(f"pfu: load provider own:Mine: {says}"), run.err
