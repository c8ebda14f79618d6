"""Options that come from the environment."""

from __future__ import annotations

import contextlib
import io

import pytest

import pfu
from testing.place import BUCKET, Place


class TestEnvironment:
    """Options from the environment."""

    def test_every_option_may_come_from_the_environment(self, place: Place) -> None:
        for name in ("a.txt", "b.log", "c.tmp", "sp ace.txt"):
            place.file(name)
        place.environment.update(
            PFU_ROOT=str(place.root),
            PFU_DESTINATION=f"s3://{BUCKET}/p",
            PFU_ENDPOINT_URL=place.endpoint,
            PFU_MODE="concurrent",
            PFU_EXCLUDE="*.log 'sp ace.*'",
            PFU_JSON="1",
            PFU_QUIET="no",
            PFU_TAG="a=1 b=2",
            PFU_NICE="5",
        )
        place.endpoint = ""
        run = place.run(to=None)
        assert (run.code, set(place.stored())) == (0, {"a.txt", "c.tmp"}), run.err
        assert run.json["mode"] == "concurrent"
        assert place.server.objects(BUCKET)["p/a.txt"].headers["x-amz-tagging"] == "a=1&b=2"
        more = place.run("--mode", "parallel", "--exclude", "*.tmp", "--include", "*.log", to=None)
        assert more.json["mode"] == "parallel"
        assert set(place.stored()) == {"a.txt", "c.tmp", "b.log"}

    def test_what_is_misspelt_is_told(self, place: Place) -> None:
        place.file("f")
        place.environment["PFU_DRYRUN"] = "1"
        run = place.run("--mode", "concurrent")
        assert (run.code, "note: environment variable PFU_DRYRUN is not an option" in run.err) == (
            0,
            True,
        )
        run = place.run("--dryrun")
        assert (run.code, "did you mean --dry-run?" in run.err) == (2, True)

    def test_a_verification_is_told_as_one(self, place: Place) -> None:
        place.files(3)
        log = place.path / "log"
        assert place.run("--mode", "concurrent").code == 0
        place.file("new")
        assert place.run("--verify", "--log-file", log).code == 1
        assert "not uploaded: " in log.read_text()
        assert "differs: 4 checked, 3 verified, 0 adopted, 1 differing" in log.read_text()
        status = place.run("--status", to=None)
        assert "verification complete with failures" in status.out
        assert "4 files, 3 match, 1 differ" in status.out

    def test_no_option_takes_an_empty_value(self, place: Place) -> None:
        """A variable that a script has not set must not mean another ledger, account or store."""
        place.file("f")
        options = {action.option_strings[-1]: action for action in pfu.make_parser()._actions[3:]}
        taking = [name for name, action in options.items() if action.nargs is None]
        assert len(taking) > 30
        for name in taking:
            with contextlib.redirect_stderr(io.StringIO()) as told, pytest.raises(SystemExit):
                pfu.main([str(place.root), f"s3://{BUCKET}", name, ""])
            assert told.getvalue().startswith(f"pfu: argument {name}: "), told.getvalue()
        for name in ("--db", "--profile", "--endpoint-url", "--log-file", "--metrics-file"):
            run = place.run(name, "")
            assert (run.code, place.server.count()) == (2, 0)
            assert f"argument {name}: the value is empty" in run.err

    @pytest.mark.parametrize(
        "name, value, says",
        [
            ("PFU_MODE", "serial", "PFU_MODE: argument --mode: invalid choice: 'serial'"),
            ("PFU_QUIET", "maybe", "PFU_QUIET: invalid value 'maybe': use 1 or 0"),
            ("PFU_EXCLUDE", "'open", "PFU_EXCLUDE: No closing quotation"),
            ("PFU_NICE", "99", "PFU_NICE: argument --nice: '99' is not between 0 and 19"),
        ],
    )
    def test_what_is_wrong_in_the_environment_is_named(
        self, place: Place, name: str, value: str, says: str
    ) -> None:
        place.environment[name] = value
        run = place.run()
        assert (run.code, run.err.count("\n")) == (2, 1)
        assert says in run.err

    @pytest.mark.parametrize(
        "variables, options",
        [
            ({"PFU_QUIET": "1"}, ["--verbose"]),
            ({"PFU_VERBOSE": "1"}, ["--quiet"]),
            ({"PFU_WORKERS": "4"}, ["--mode", "concurrent"]),
            ({"PFU_EVENTS": "e"}, ["--verify"]),
            ({"PFU_EVENTS": "-"}, ["--json"]),
            ({"PFU_REMOVE_SOURCE_FILES": "1", "PFU_REMOVE_LINKED_FILES": "1"}, ["--verify"]),
            ({"PFU_LINKS": "1"}, ["--follow-symlinks"]),
            ({"PFU_SSE_KMS_KEY_ID": "k", "PFU_SSE": "aws:kms"}, ["--sse", "AES256"]),
        ],
    )
    def test_an_option_takes_precedence_over_a_variable_that_it_excludes(
        self, place: Place, variables: dict[str, str], options: list[str]
    ) -> None:
        place.file("f")
        assert place.run().code == 0
        place.environment.update(variables)
        run = place.run(*options)
        assert run.code == 0, run.err
        assert (place.root / "f").exists()

    @pytest.mark.parametrize(
        "variables, options, says",
        [
            ({"PFU_QUIET": "1", "PFU_VERBOSE": "1"}, [], "PFU_QUIET cannot be combined with PFU_V"),
            ({"PFU_VERIFY": "1"}, ["--events", "e"], "--events applies to uploads, not to --st"),
            ({"PFU_DRY_RUN": "1"}, ["--verify"], "--verify cannot be combined with PFU_DRY_RUN"),
            ({"PFU_MAX_AGE": "1d"}, ["--min-age", "2d"], "PFU_MAX_AGE is less than --min-age"),
            ({"PFU_RETAIN": "1d"}, [], "PFU_RETAIN requires --object-lock-mode"),
        ],
    )
    def test_a_variable_that_does_not_fit_is_named(
        self, place: Place, variables: dict[str, str], options: list[str], says: str
    ) -> None:
        """And never ignored where more would be sent than was meant."""
        place.environment.update(variables)
        run = place.run(*options)
        assert (run.code, run.err.count("\n"), place.server.count()) == (2, 1, 0)
        assert says in run.err

    def test_variables_of_s3_do_not_concern_a_provider(self, place: Place) -> None:
        place.environment.update(PFU_RETAIN="1d", PFU_OBJECT_LOCK_MODE="GOVERNANCE")
        place.environment["PFU_ENDPOINT_URL"], place.endpoint = place.endpoint, ""
        run = place.run("--provider", "json:dumps")
        assert (run.code, "not an Uploader subclass" in run.err) == (2, True), run.err
