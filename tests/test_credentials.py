"""Credentials that end, or are revoked, on the way."""

from __future__ import annotations

import os

import pytest

from testing.faults import Action, Fault
from testing.jobs import checksum_lane
from testing.place import BOTH_MODES, BUCKET, MIB, PART, Place, assert_accounts
from testing.server import ACCESS_KEY, SECRET_KEY


def keep_credentials(place: Place, access_key: str, secret: str) -> None:
    """In a file, as an admin or an agent does who rotates them."""
    folder = place.path / "aws"
    folder.mkdir(exist_ok=True)
    text = f"[default]\naws_access_key_id={access_key}\naws_secret_access_key={secret}\n"
    (folder / "new").write_text(text)
    os.replace(folder / "new", folder / "credentials")


def rotate(place: Place, *, told: bool) -> None:
    """The old ones are worth nothing from now on."""
    place.server.credentials = {"AKIDNEW": ("new-secret", None)}
    if told:
        keep_credentials(place, "AKIDNEW", "new-secret")


def with_credentials_in_a_file(place: Place) -> None:
    keep_credentials(place, ACCESS_KEY, SECRET_KEY)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        del place.environment[name]
    place.environment["AWS_SHARED_CREDENTIALS_FILE"] = str(place.path / "aws/credentials")


CREDENTIALS_END = [  # any two of mode, lane, size and what happens meet
    ("concurrent", "fast", "small", True),
    ("concurrent", "fast", "large", False),
    ("concurrent", "safe", "small", False),
    ("concurrent", "safe", "large", True),
    ("parallel", "fast", "small", False),
    ("parallel", "fast", "large", True),
    ("parallel", "safe", "small", True),
    ("parallel", "safe", "large", False),
]


class TestCredentials:
    """Credentials that end on the way."""

    @pytest.mark.parametrize("mode, lane, size, told", CREDENTIALS_END)
    def test_credentials_that_end_are_read_again_once(
        self, place: Place, mode: str, lane: str, size: str, told: bool
    ) -> None:
        with_credentials_in_a_file(place)
        if size == "small":
            place.files(80)
        else:
            place.file("large", os.urandom(16 * MIB))
        checksum_lane(place, lane)
        is_small = size == "small"
        rotation = Action("call", function=lambda: rotate(place, told=told))
        operation = "PutObject" if is_small else "UploadPart"
        fault = Fault(rotation, operation, after=20 if is_small else 1, times=1)
        place.server.faults.insert(0, fault)
        run = place.run("--mode", mode, *PART, "--concurrency", 4, "--json")
        assert fault.applied == 1
        assert_accounts(run.json)
        place.check_ledger_is_honest()
        if told:
            assert (run.code, run.err) == (0, "")
            assert place.stored() == place.local()
            assert run.json["fast_lane"] > 0 or (lane, size) != ("fast", "small")
        else:
            assert run.code == (1 if run.json["uploaded"] else 2)
            assert run.err.splitlines()[-1].startswith("pfu: stopped: ")
            assert "InvalidAccessKeyId" in run.err
            assert (run.json["failed"], run.json["pending"] > 0) == (0, True)
            keep_credentials(place, "AKIDNEW", "new-secret")
            place.server.faults.clear()
            assert place.run("--mode", mode, *PART).code == 0
            assert place.stored() == place.local()
        assert not place.server.uploads(BUCKET)

    @BOTH_MODES
    def test_a_second_pair_that_is_refused_is_the_last(self, place: Place, mode: str) -> None:
        with_credentials_in_a_file(place)
        place.files(60)

        def give_wrong_ones() -> None:
            place.server.credentials = {"AKIDNEW": ("new-secret", None)}
            keep_credentials(place, "AKIDOTHER", "other-secret")

        action = Action("call", function=give_wrong_ones)
        place.server.faults.append(Fault(action, "PutObject", after=20, times=1))
        run = place.run("--mode", mode, "--concurrency", 4, "--json")
        assert run.code == (1 if run.json["uploaded"] else 2), run.err
        assert "InvalidAccessKeyId" in run.err
        assert (run.json["failed"], run.json["pending"] > 0) == (0, True)

    @BOTH_MODES
    def test_credentials_that_are_revoked_under_way(self, place: Place, mode: str) -> None:
        place.files(120)
        known = place.server.credentials
        revoke = Action("call", function=lambda: vars(place.server).update(credentials={}))
        place.server.faults.append(Fault(revoke, "PutObject", after=9, times=1))
        run = place.run("--mode", mode, "--concurrency", 4, "--workers", 1, "--json")
        assert run.code == (1 if run.json["uploaded"] else 2), run.err
        assert (run.json["failed"], run.json["failures"]) == (0, [])
        assert run.json["uploaded"] + run.json["pending"] == 120
        assert "InvalidAccessKeyId" in run.err
        may_be = "what is stored could not be looked at: look at: 403"  # if it was not, till then
        assert len([line for line in run.err.splitlines() if may_be not in line]) == 1, run.err
        assert place.check_ledger_is_honest() == run.json["uploaded"]
        place.server.credentials = known
        again = place.run("--mode", mode, "--json")
        assert (again.code, again.json["uploaded"]) == (0, run.json["pending"])
        assert place.stored() == place.local()
