"""README.md: its commands work, its examples run, it tells of every option."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

import pfu
from testing.conformance import Conformance
from testing.peers import needs_peers, peer
from testing.place import BOTH_MODES, HERE, PFU, Place, metric

# ======================================================================================
# Commands and examples
# ======================================================================================


def blocks(language: str) -> list[str]:
    """The code blocks of README.md in one language."""
    text = (HERE / "README.md").read_text()
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def readme_place(place: Place) -> Place:
    """A folder as README.md supposes it: pfu.py, samples, and a bucket of that name."""
    place.server.add_bucket("my-bucket")
    place.environment["AWS_ENDPOINT_URL"] = place.server.endpoint
    place.environment["PYTHONPATH"] = str(HERE)
    place.file("a/b.txt", b"content")
    place.root.rename(place.path / "samples")
    shutil.copy(PFU, place.path)
    return place


def commands() -> list[str]:
    lines = "\n".join(blocks("sh")).splitlines()
    return [line.partition("#")[0].strip() for line in lines if line.startswith("python pfu.py")]


def run_of_readme(place: Place, command: str, **environment: str) -> None:
    """Run a command as README.md has it. It must have nothing to complain of."""
    words = shlex.split(command)
    assert words[0].rpartition("/")[2] in ("python", "python3")
    words = [sys.executable, "pfu.py", *words[2:]]
    everything = {**place.environment, **environment}
    done = subprocess.run(words, cwd=place.path, env=everything, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")


def text_of_readme() -> str:
    return (HERE / "README.md").read_text("utf-8")


class TestReadme:
    """Commands and examples."""

    @pytest.mark.parametrize("command", commands())
    def test_the_commands_of_the_readme_work(self, place: Place, command: str) -> None:
        readme_place(place)
        needs_a_run = {"--status", "--cleanup", "--verify"} & set(command.split())
        if needs_a_run:
            subprocess.run(
                [sys.executable, "pfu.py", "samples", "s3://my-bucket/backup"],
                cwd=place.path,
                env=place.environment,
                check=True,
            )
        run_of_readme(place, command)

    def test_the_crontab_of_the_readme_works(self, place: Place) -> None:
        readme_place(place)
        (place.path / "samples").rename(place.path / "data")
        command = re.search(r"&& exec (python3 pfu.py .*)$", text_of_readme(), re.MULTILINE)
        assert command
        run_of_readme(place, command[1].replace("/var/log", str(place.path)))
        assert (place.path / "pfu.log").read_text().count("complete: 1 seen, 1 uploaded") == 1

    def test_the_service_of_the_readme_works(self, place: Place) -> None:
        readme_place(place)
        unit = text_of_readme()
        environment = dict(
            pair.split("=", 1)
            for line in re.findall(r"^Environment=(.*)$", unit, re.MULTILINE)
            for pair in line.replace("/var/lib/pfu", str(place.path)).split()
        )
        command = re.search(r"^ExecStart=(.*)$", unit, re.MULTILINE)
        assert command
        data = command[1].replace("/srv/data", str(place.path / "samples"))
        run_of_readme(place, data, **environment)
        assert metric((place.path / "pfu.prom").read_text(), "run_uploaded_files") == 1

    def test_the_array_job_of_the_readme_works(self, place: Place) -> None:
        readme_place(place)
        for number in range(20):
            (place.path / f"samples/f{number}").write_bytes(b"x")
        job = re.search(r"--array=0-7 --wrap '(.*)'", text_of_readme())
        assert job
        for number in range(8):
            told = {"SLURM_ARRAY_TASK_ID": str(number), "SLURM_ARRAY_TASK_COUNT": "8"}
            run_of_readme(place, job[1].replace("/data", "samples", 1), **told)
        assert len(place.server.objects("my-bucket")) == 21
        assert place.server.count("PutObject") == 21

    @needs_peers
    @pytest.mark.parametrize("tool", ["rclone", "aws", "s5cmd"])
    def test_the_restores_of_the_readme_work(self, lenient_place: Place, tool: str) -> None:
        place = readme_place(lenient_place)
        run_of_readme(place, "python pfu.py samples s3://my-bucket/backup")
        command = re.search(rf"^{tool} (.*)$", text_of_readme(), re.MULTILINE)
        assert command
        place.environment.update(
            RCLONE_S3_ENDPOINT=place.server.endpoint, RCLONE_S3_LIST_VERSION="2"
        )
        place.environment.update(RCLONE_S3_PROVIDER="Other")
        peer(place, tool, *shlex.split(command[1]))
        assert (place.path / "restored/a/b.txt").read_bytes() == b"content"

    def test_the_library_example_of_the_readme_runs(self, place: Place) -> None:
        readme_place(place)
        (place.path / "first.py").write_text(blocks("python")[0])
        done = subprocess.run(
            [sys.executable, "first.py"],
            cwd=place.path,
            env=place.environment,
            capture_output=True,
            text=True,
        )
        assert (done.stdout, done.stderr) == ("complete 1 0\n", "")
        assert place.server.objects("my-bucket")["backup/a/b.txt"].body == b"content"

    def test_the_provider_of_the_readme_is_short_and_checks_what_it_is_told(
        self, place: Place
    ) -> None:
        assert len([line for line in blocks("python")[1].splitlines() if line]) <= 40
        readme_place(place)
        (place.path / "gcs.py").write_text(blocks("python")[1])
        command = ["samples", "gs://my-bucket/b", "--provider", "gcs:GoogleUploader"]
        done = subprocess.run(
            [sys.executable, "pfu.py", *command],
            cwd=place.path,
            env=place.environment,
            capture_output=True,
            text=True,
        )
        assert (done.returncode, done.stderr) == (2, "pfu: pip install google-cloud-storage\n")

    def test_the_readme_tells_of_every_option(self) -> None:
        text = text_of_readme()
        common = {"--help", "--version", "--verbose", "--json", "--db", "--workers", "--profile"}
        common |= {"--mode", "--max-memory", "--sandbox", "--create-bucket", "--requester-pays"}
        options = {o for action in pfu.make_parser()._actions for o in action.option_strings}
        missing = {o for o in options if o.startswith("--") and o not in text} - common
        assert missing == set()


# ======================================================================================
# The provider
# ======================================================================================


GOOGLE = {
    "google/__init__.py": "",
    "google/cloud/__init__.py": "",
    "google/api_core/__init__.py": "",
    "google/api_core/exceptions.py": """
class GoogleAPICallError(Exception): pass
class Unauthorized(GoogleAPICallError): pass
class Forbidden(GoogleAPICallError): pass
class NotFound(GoogleAPICallError): pass
""",
    "google/cloud/storage.py": """
import os
from pathlib import Path
from google.api_core import exceptions

class Client:
    def bucket(self, name):
        return Bucket(Path(os.environ["FAKE_GOOGLE"]) / name)
    def list_blobs(self, name, prefix):
        folder = self.bucket(name).folder
        files = (path for path in folder.rglob("*") if path.is_file())
        blobs = (Blob(path, path.relative_to(folder).as_posix()) for path in files)
        return (blob for blob in blobs if blob.name.startswith(prefix))

class Bucket:
    def __init__(self, folder):
        self.folder = folder
    def blob(self, key):
        return Blob(self.folder / key, key)

class Blob:
    etag = "etag"
    def __init__(self, path, name):
        self.path, self.name, self.metadata = path, name, None
    def download_as_bytes(self):
        return self.path.read_bytes()
    def open(self, mode, content_type, checksum):
        assert self.metadata["file-size"] and content_type and checksum == "crc32c"
        if "forbidden" in self.path.name:
            raise exceptions.Forbidden("not you")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if "flaky" in self.path.name and not self.path.exists():
            self.path.touch()
            raise exceptions.GoogleAPICallError("once more")
        return self.path.open(mode)
""",
}


def write_modules(folder: Path, modules: Mapping[str, str]) -> None:
    """The modules, and a Google for them."""
    for name, text in {**GOOGLE, **modules}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


class TestProviderOfReadme(Conformance):
    """The one for Google Cloud Storage, with a Google that is a folder."""

    @pytest.fixture(autouse=True)
    def google(self, place: Place, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        write_modules(place.path / "modules", {"gcs.py": blocks("python")[1]})
        monkeypatch.syspath_prepend(str(place.path / "modules"))
        monkeypatch.setenv("FAKE_GOOGLE", str(place.path / "google"))
        yield
        for name in [n for n in sys.modules if n == "gcs" or n.partition(".")[0] == "google"]:
            del sys.modules[name]

    def uploader(self, place: Place) -> pfu.Uploader:
        import gcs  # type: ignore[import-not-found]

        uploader: pfu.Uploader = gcs.GoogleUploader("gs://bucket/p")
        return uploader

    def stored(self, place: Place) -> dict[str, bytes | None]:
        folder = place.path / "google/bucket/p"
        files = (path for path in folder.rglob("*") if path.is_file())
        return {str(path.relative_to(folder)): path.read_bytes() for path in files}

    @BOTH_MODES
    def test_errors_are_told_apart(self, place: Place, mode: str) -> None:
        place.file("flaky")
        assert self.job(place, mode).run().exit_code == 0
        assert self.stored(place) == place.local()
        place.file("forbidden")
        summary = self.job(place, mode).run()
        assert (summary.exit_code, summary.error) == (2, "upload p/forbidden: not you")


class TestConformanceFromOutside:
    """The tests that README.md has for its provider, in a folder that has nothing of ours."""

    def run_pytest(self, place: Place, provider: str, *arguments: str) -> tuple[int, str]:
        clone, folder = place.path / "clone", place.path / "elsewhere"
        shutil.copytree(HERE / "testing", clone / "testing")
        shutil.copy(PFU, clone)
        write_modules(folder, {"gcs.py": provider, "test_gcs.py": blocks("python")[2]})
        environment = {k: v for k, v in place.environment.items() if not k.startswith("PYTEST_")}
        environment.update(PYTHONPATH=str(clone), FAKE_GOOGLE=str(place.path / "google"))
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-v", *arguments],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        return done.returncode, done.stdout + done.stderr

    def test_a_provider_passes_in_both_modes(self, place: Place) -> None:
        code, told = self.run_pytest(place, blocks("python")[1])
        assert (code, " 5 passed" in told) == (0, True), told
        for mode in ("concurrent", "parallel"):
            assert len(re.findall(rf"\[{mode}\] PASSED", told)) == 2, told

    def test_a_provider_that_loses_bytes_is_told_what_is_missing(self, place: Place) -> None:
        provider = blocks("python")[1].replace("file.write(part)", "file.write(part[1:])")
        code, told = self.run_pytest(place, provider, "-k", "what_it_has and concurrent")
        assert (code, " 1 failed" in told) == (1, True), told
        assert "assert {'f': b'ewer'} == {'f': b'newer'}" in told, told
