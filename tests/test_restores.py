"""What was uploaded comes back with other people's tools: rclone, aws, s5cmd."""

from __future__ import annotations

import os

import pytest

from testing.peers import entries, needs_peers, peer, restorable, tree_to_restore
from testing.place import BUCKET, ODD_NAMES, PART, Place


class TestRestores:
    """Restores."""

    @needs_peers
    def test_rclone_restores_files_as_they_were(self, lenient_place: Place) -> None:
        place = lenient_place
        tree_to_restore(place)
        (place.root / "empty/in").mkdir(parents=True)
        (place.root / "d/link").symlink_to("e/plain.txt")
        (place.root / "dangling").symlink_to(b"../nowh\xffere\n")
        options = ["--links", "--directory-markers"]
        run = place.run("--mode", "parallel", *PART, *options, "--json")
        assert (run.code, run.json["skipped"]) == (0, 0), run.err
        assert place.run("--verify", "--checksum", *options).code == 0
        again = place.run("--mode", "concurrent", *PART, *options, "--json")
        assert (again.json["uploaded"], again.json["unchanged"]) == (0, run.json["uploaded"])
        back = place.path / "back"
        peer(
            place, "rclone", "copy", "--metadata", "--links", "--s3-directory-markers",
            "--create-empty-src-dirs", f"x:{BUCKET}/p", back,
        )  # fmt: skip
        wanted = {name: entry for name, entry in entries(place.root).items() if restorable(name)}
        found = {name: entry for name, entry in entries(back).items() if restorable(name)}
        assert len(wanted) == len(ODD_NAMES) - 1 + 3
        assert found == wanted
        assert (back / "empty/in").is_dir()

    @needs_peers
    def test_a_lost_ledger_is_made_anew_from_what_rclone_stored(self, lenient_place: Place) -> None:
        place = lenient_place
        tree_to_restore(place)
        for path in [path for path in entries(place.root) if not restorable(path)]:
            os.unlink(os.path.join(os.fsencode(place.root), path))
        peer(place, "rclone", "copy", "--metadata", place.root, f"x:{BUCKET}/p")
        run = place.run("--verify", "--json")
        assert run.json["adopted"] == len(ODD_NAMES) - 1 + 1, run.out
        assert place.run("--mode", "concurrent", "--json").json["unchanged"] == len(ODD_NAMES)

    @needs_peers
    @pytest.mark.parametrize("tool", ["aws", "s5cmd"])
    def test_other_tools_restore_the_bytes(self, lenient_place: Place, tool: str) -> None:
        place = lenient_place
        tree_to_restore(place)
        if tool == "s5cmd":  # it does not ask for a listing that can hold such a key
            next(place.root.rglob("*red")).unlink()
        assert place.run("--mode", "concurrent", *PART).code == 0
        back = place.path / "back"
        if tool == "aws":
            peer(place, "aws", "s3", "cp", "--recursive", f"s3://{BUCKET}/p", back)
        else:
            peer(place, "s5cmd", "cp", f"s3://{BUCKET}/p/*", f"{back}/")
        found = {os.fsdecode(path): entry.content for path, entry in entries(back).items()}
        assert found == place.local()
