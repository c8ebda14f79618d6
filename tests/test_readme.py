"""README.md and docs/: commands work, examples run, links resolve, no option is left out."""

from __future__ import annotations

import dataclasses
import os
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


PAGES = ("README.md", *sorted(f"docs/{path.name}" for path in (HERE / "docs").glob("*.md")))
OTHERS = ("CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")
CRONTAB, UNIT = "README.md", "docs/operations.md"


def text_of(page: str) -> str:
    return (HERE / page).read_text("utf-8")


def blocks(language: str, page: str) -> list[str]:
    """The code blocks of a page in one language; those of none by an empty name."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text_of(page), re.MULTILINE | re.DOTALL)
    return [block for name, block in found if name == language]


def block_with(text: str, page: str, language: str = "") -> str:
    """The one code block of a page that has this text in it."""
    (found,) = [block for block in blocks(language, page) if text in block]
    return found


LIBRARY, PROVIDER, PROVIDER_TESTS = blocks("python", "docs/library.md")


def readme_place(place: Place) -> Place:
    """A folder as README.md supposes it: pfu.py, samples, and a bucket of that name."""
    place.server.add_bucket("my-bucket")
    place.environment["AWS_ENDPOINT_URL"] = place.server.endpoint
    place.environment["PYTHONPATH"] = str(HERE)
    place.file("a/b.txt", b"content")
    place.root.rename(place.path / "samples")
    shutil.copy(PFU, place.path)
    return place


def server_place(place: Place) -> Place:
    """The same as a server: what pages call /srv, /etc, /usr, /var and ~ is below the folder."""
    readme_place(place)
    for name in ("srv", "etc", "home", "usr/local/bin", "var/lib/pfu", "var/log"):
        (place.path / name).mkdir(parents=True)
    (place.path / "var/lib/prometheus/node-exporter").mkdir(parents=True)
    shutil.copytree(place.path / "samples", place.path / "srv/data")
    shutil.copy(PFU, place.path / "usr/local/bin")
    return place


def moved(place: Place, text: str) -> str:
    """A page's commands, for server_place()."""
    return re.sub(r"(?<![\w:./}])/(?=(?:srv|etc|home|usr/local|var)\b)", f"{place.path}/", text)


def commands() -> list[str]:
    lines = [line for page in PAGES for block in blocks("sh", page) for line in block.splitlines()]
    return [line.partition("#")[0].strip() for line in lines if line.startswith("python3 pfu.py")]


def run_shell(place: Place, script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a block of a page with sh. Its python3 is ours; its curl writes down what it is given."""
    tools = place.path / "tools"
    tools.mkdir(exist_ok=True)
    curl = 'echo "$@" >>"${0%/*}/curl.log"'
    for name, line in {"python3": f'exec {sys.executable} "$@"', "curl": curl}.items():
        (tools / name).write_text(f"#!/bin/sh\n{line}\n")
        (tools / name).chmod(0o755)
    path = f"{tools}:{os.environ['PATH']}"
    return subprocess.run(
        ["sh", "-c", script],
        cwd=place.path,
        env={**place.environment, **environment, "PATH": path},
        capture_output=True,
        text=True,
    )


def run_of_readme(place: Place, command: str, **environment: str) -> None:
    """Run a command as README.md has it. It must have nothing to complain of."""
    words = shlex.split(command)
    assert words[0].rpartition("/")[2] == "python3"
    assert words[1].rpartition("/")[2] == "pfu.py"
    words = [sys.executable, "pfu.py", *words[2:]]
    everything = {**place.environment, **environment}
    done = subprocess.run(words, cwd=place.path, env=everything, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")


def run_program(place: Place, text: str) -> subprocess.CompletedProcess[str]:
    """Run a library example."""
    readme_place(place)
    (place.path / "first.py").write_text(text)
    return subprocess.run(
        [sys.executable, "first.py"],
        cwd=place.path,
        env=place.environment,
        capture_output=True,
        text=True,
    )


class TestReadme:
    """Commands and examples."""

    def test_it_is_not_too_long(self) -> None:
        assert len(text_of("README.md").splitlines()) <= 350

    @pytest.mark.parametrize("command", commands())
    def test_the_commands_work(self, place: Place, command: str) -> None:
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

    @pytest.mark.parametrize("page", PAGES)
    def test_commands_call_python3(self, page: str) -> None:
        assert not re.search(r"\bpython (?=[\w/.-]*\.py)", text_of(page))

    def test_from_nothing_to_a_nightly_job(self, place: Place) -> None:
        server_place(place)
        (place.path / "usr/local/bin/pfu.py").unlink()
        home = str(place.path / "root")
        setup = block_with("apt install python3-boto3 cron", CRONTAB).partition("\n")[2]
        setup += block_with("~/.aws/credentials", CRONTAB)
        done = run_shell(place, moved(place, setup), HOME=home)
        assert (done.returncode, done.stderr) == (0, "")
        credentials = place.path / "root/.aws/credentials"
        assert credentials.stat().st_mode & 0o777 == 0o600
        assert "aws_secret_access_key = " in credentials.read_text()
        first = block_with("--dry-run\npython3", CRONTAB)
        done = run_shell(place, moved(place, first), HOME=home)
        assert (done.returncode, done.stderr) == (0, "")
        assert list(place.server.objects("my-bucket")) == ["data/a/b.txt"]

    def test_the_crontab_works(self, place: Place) -> None:
        server_place(place)
        command = re.search(r"^17 2 .* root  exec (python3 .*)$", text_of(CRONTAB), re.MULTILINE)
        assert command
        run_of_readme(place, moved(place, command[1]))
        log = (place.path / "var/log/pfu.log").read_text()
        assert log.count("complete: 1 seen, 1 uploaded") == 1

    def test_the_service_works(self, place: Place) -> None:
        server_place(place)
        unit = block_with("ExecStart=", UNIT, "ini").replace("\\\n", " ")
        command = re.search(r"^ExecStart=(.*)$", unit, re.MULTILINE)
        assert command
        told = dict(line.split("=", 1) for line in block_with("AWS_DEFAULT", UNIT).splitlines())
        assert told.keys() == {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"}
        run_of_readme(place, moved(place, command[1]))
        metrics = place.path / "var/lib/prometheus/node-exporter/pfu.prom"
        assert metric(metrics.read_text(), "run_uploaded_files") == 1
        writable = re.search(r"^ReadWritePaths=-(.*)$", unit, re.MULTILINE)
        assert writable
        assert f"--metrics-file {writable[1]}/pfu.prom" in command[1]

    @pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="there is no systemd here")
    def test_systemd_accepts_the_units(self, place: Place) -> None:
        for name, text in {"pfu.service": "ExecStart=", "pfu.timer": "OnCalendar="}.items():
            unit = block_with(text, UNIT, "ini")
            pfu_py = re.sub(r"/usr/bin/python3 /\S+", sys.executable, unit)
            (place.path / name).write_text(pfu_py)
            command = ["systemd-analyze", "verify", str(place.path / name)]
            done = subprocess.run(command, capture_output=True, text=True)
            assert name not in done.stderr + done.stdout

    def test_the_script_for_several_directories_works(self, place: Place) -> None:
        server_place(place)
        (place.path / "etc/hosts").write_text("x")
        (place.path / "home/me").mkdir()
        (place.path / "home/me/f").write_text("y")
        script = moved(place, block_with("for root in", UNIT, "bash"))
        script = script.replace('"${root#/}"', f'"${{root#{place.path}/}}"')
        done = run_shell(place, script)
        assert (done.returncode, done.stderr, done.stdout) == (0, "", "")
        keys = {key.partition("/")[2] for key in place.server.objects("my-bucket")}
        assert keys == {"etc/hosts", "home/me/f", "srv-data/a/b.txt"}
        (place.path / "home/me/f").write_text("changed")
        (place.path / "home").rename(place.path / "gone")
        done = run_shell(place, script)
        assert (done.returncode, "home" in done.stderr) == (1, True)
        pings = (place.path / "tools/curl.log").read_text().split()
        assert [word for word in pings if word.startswith("https:")] == [
            "https://hc-ping.example/UUID/0",
            "https://hc-ping.example/UUID/1",
        ]

    def test_root_may_be_empty_but_for_one_file(self, place: Place) -> None:
        server_place(place)
        (place.path / "srv/spool").mkdir()
        spooled = place.path / "srv/spool/job"
        spooled.write_text("x")
        keep, upload = block_with(".keep", UNIT).splitlines()
        upload = moved(place, upload)
        run_of_readme(place, upload)
        spooled.unlink()
        done = run_shell(place, upload)
        assert (done.returncode, "it is empty" in done.stderr) == (2, True)
        assert run_shell(place, moved(place, keep)).returncode == 0
        run_of_readme(place, upload)

    def test_the_array_job_works(self, place: Place) -> None:
        readme_place(place)
        for number in range(20):
            (place.path / f"samples/f{number}").write_bytes(b"x")
        job = re.search(r"--array=0-7 --wrap '(.*)'", text_of(UNIT))
        assert job
        for number in range(8):
            told = {"SLURM_ARRAY_TASK_ID": str(number), "SLURM_ARRAY_TASK_COUNT": "8"}
            run_of_readme(place, job[1].replace("/data", "samples", 1), **told)
        assert len(place.server.objects("my-bucket")) == 21
        assert place.server.count("PutObject") == 21

    def test_the_library_example_runs(self, place: Place) -> None:
        done = run_program(place, LIBRARY)
        assert (done.stdout, done.stderr) == ("complete 1 0\n", "")
        assert place.server.objects("my-bucket")["backup/a/b.txt"].body == b"content"

    def test_the_library_example_tells_of_errors(self, place: Place) -> None:
        done = run_program(place, LIBRARY.replace("my-bucket", "no-bucket"))
        assert (done.returncode, "no-bucket" in done.stderr) == (2, True)
        assert "Traceback" not in done.stderr

    def test_the_provider_is_short_and_checks_what_it_is_told(self, place: Place) -> None:
        assert len([line for line in PROVIDER.splitlines() if line]) <= 40
        readme_place(place)
        (place.path / "gcs.py").write_text(PROVIDER)
        command = ["samples", "gs://my-bucket/b", "--provider", "gcs:GoogleUploader"]
        done = subprocess.run(
            [sys.executable, "pfu.py", *command],
            cwd=place.path,
            env=place.environment,
            capture_output=True,
            text=True,
        )
        assert (done.returncode, done.stderr) == (2, "pfu: pip install google-cloud-storage\n")


# ======================================================================================
# Restores
# ======================================================================================


def restores(page: str) -> list[str]:
    """The commands of a page that download."""
    return re.findall(r"^((?:rclone|aws|s5cmd) .*\brestored/?)$", text_of(page), re.MULTILINE)


class TestRestoresOfReadme:
    """Commands that bring files back, and the script that sets what they leave out."""

    def test_there_are_commands_for_each_tool_and_any_store(self) -> None:
        assert [command.split()[0] for command in restores("README.md")] == [
            "rclone",
            "aws",
            "s5cmd",
        ]
        elsewhere = [c for c in restores("docs/restore.md") if "https://s3.example.org" in c]
        assert [command.split()[0] for command in elsewhere] == ["rclone", "aws", "s5cmd"]

    @needs_peers
    @pytest.mark.parametrize("command", [*restores("README.md"), *restores("docs/restore.md")])
    def test_they_bring_back_the_bytes(self, lenient_place: Place, command: str) -> None:
        place = readme_place(lenient_place)
        run_of_readme(place, "python3 pfu.py samples s3://my-bucket/backup")
        place.environment.update(RCLONE_S3_LIST_VERSION="2", RCLONE_S3_FORCE_PATH_STYLE="true")
        if "s3.example.org" in command:
            command = command.replace("https://s3.example.org", place.server.endpoint)
        else:
            place.environment["RCLONE_S3_ENDPOINT"] = place.server.endpoint
        tool, *words = shlex.split(command)
        peer(place, tool, *words)
        assert (place.path / "restored/a/b.txt").read_bytes() == b"content"

    def test_the_script_sets_what_rclone_leaves_out(self, place: Place) -> None:
        readme_place(place)
        samples, restored = place.path / "samples", place.path / "restored"
        (samples / "tool").write_bytes(b"x")
        (samples / "tool").chmod(0o4755)
        (samples / "link").symlink_to("tool")
        os.utime(samples / "link", ns=(1, 2_000_000_003), follow_symlinks=False)
        os.utime(samples / "a", ns=(1, 1_000_000_000_000_000_004))
        run_of_readme(
            place, "python3 pfu.py samples s3://my-bucket/backup --links --directory-markers"
        )
        shutil.copytree(samples, restored, symlinks=True, copy_function=shutil.copyfile)
        os.utime(restored / "link", ns=(1, 1), follow_symlinks=False)
        (script,) = blocks("python", "docs/restore.md")
        (place.path / "attributes.py").write_text(script)
        command = block_with("attributes.py my-bucket", "docs/restore.md").splitlines()[-1]
        done = run_shell(place, command, PYTHONWARNINGS="ignore")  # of boto3, on Python 3.9
        assert (done.returncode, done.stdout + done.stderr) == (0, "")
        names = ("tool", "link", "a", "a/b.txt")
        kept = [(place.path / "samples" / name).lstat() for name in names]
        back = [(restored / name).lstat() for name in names]
        assert [(s.st_mode, s.st_mtime_ns) for s in back] == [
            (s.st_mode, s.st_mtime_ns) for s in kept
        ]


# ======================================================================================
# Pages
# ======================================================================================


def anchors(page: str) -> set[str]:
    """What links may name in a page, as GitHub makes them of its headings."""
    text = re.sub(r"^```.*?^```", "", text_of(page), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def options_of(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--[a-z0-9][a-z0-9-]*", text))


class TestPages:
    """What README.md and docs/ say of each other and of pfu."""

    def all_options(self) -> set[str]:
        options = {o for action in pfu.make_parser()._actions for o in action.option_strings}
        return {option for option in options if option.startswith("--")}

    def test_one_page_lists_every_option_and_no_other(self) -> None:
        text = text_of("docs/options.md").replace("rclone `--metadata`", "")
        assert options_of(text) == self.all_options()

    @pytest.mark.parametrize("kind", [pfu.Summary, pfu.Verdict, pfu.CleanupResult])
    def test_every_key_of_the_json_is_listed(self, kind: type) -> None:
        keys = {
            name for line in text_of("docs/json.md").splitlines() for name in line.split("|")[1:2]
        }
        listed = set(re.findall(r"`(\w+)`", "".join(keys)))
        assert {field.name for field in dataclasses.fields(kind)} <= listed

    @pytest.mark.parametrize("page", PAGES)
    def test_commands_have_options_that_are_there(self, page: str) -> None:
        lines = re.findall(r"\bpfu\.py (.*)$", text_of(page), re.MULTILINE)
        assert options_of("\n".join(lines)) <= self.all_options()

    @pytest.mark.parametrize("page", [*PAGES, *OTHERS])
    def test_links_lead_somewhere(self, page: str) -> None:
        for target in re.findall(r"\]\((?!https?:)([^)]+)\)", text_of(page)):
            name, _, anchor = target.partition("#")
            path = (HERE / page).parent / name if name else HERE / page
            assert path.is_file(), target
            if anchor:
                assert anchor in anchors(str(path.resolve().relative_to(HERE))), target

    def test_readme_leads_to_every_page(self) -> None:
        targets = re.findall(r"\]\(([^)#]+)", text_of("README.md"))
        assert set(PAGES[1:]) <= set(targets)


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
        write_modules(place.path / "modules", {"gcs.py": PROVIDER})
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
        write_modules(folder, {"gcs.py": provider, "test_gcs.py": PROVIDER_TESTS})
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
        code, told = self.run_pytest(place, PROVIDER)
        assert (code, " 5 passed" in told) == (0, True), told
        for mode in ("concurrent", "parallel"):
            assert len(re.findall(rf"\[{mode}\] PASSED", told)) == 2, told

    def test_a_provider_that_loses_bytes_is_told_what_is_missing(self, place: Place) -> None:
        provider = PROVIDER.replace("file.write(part)", "file.write(part[1:])")
        code, told = self.run_pytest(place, provider, "-k", "what_it_has and concurrent")
        assert (code, " 1 failed" in told) == (1, True), told
        assert "assert {'f': b'ewer'} == {'f': b'newer'}" in told, told
