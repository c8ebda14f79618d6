"""Providers for the tests: one that stores in a folder, one that stores nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pfu


class InstantUploader(pfu.Uploader):
    """Needs no time and no thread."""

    destination = "instant://store"

    def put(self, upload: pfu.Upload) -> pfu.Receipt:
        return pfu.Receipt("etag")

    async def send(self, upload: pfu.Upload, threads: Any, posted: Any = None) -> pfu.Receipt:
        return self.put(upload)


class FolderUploader(pfu.Uploader):
    """An example of a provider: stores objects as files below a folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.destination = f"folder://{folder}"

    def put(self, upload: pfu.Upload) -> pfu.Receipt:
        target = self.folder / upload.key
        target.parent.mkdir(parents=True, exist_ok=True)
        if "fatal" in upload.key:
            raise pfu.FatalError("store", upload.key, "the folder is gone")
        if "flaky" in upload.key and not target.exists():
            target.touch()
            raise pfu.RetryableError("store", upload.key, "try again")
        if "refused" in upload.key:
            raise pfu.TransferError("store", upload.key, "no such names here")
        with open(target, "wb") as file:
            for _, body in upload.parts():
                file.write(body)
        (target.parent / f"{target.name}.meta").write_text(json.dumps(dict(upload.metadata)))
        return pfu.Receipt(f"etag of {upload.size}")
