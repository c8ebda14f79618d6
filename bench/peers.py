"""Upload a tree by a library that has no program of its own: python peers.py LIBRARY ROOT BUCKET

For bench/compare.py, which runs this with a Python that has obstore (Rust), awscrt (the C library
behind the AWS CLI's fast mode) or fast-s3 (pure Python). Endpoint, region, keys and CA come from
the environment, as for the AWS CLI. Each does the least that uploads a tree: 64 requests at once,
no ledger, no metadata, no look at the bucket; awscrt and obstore over http send no digest of the
body. Exits with 1 if a file fails.
"""

from __future__ import annotations

import asyncio
import os
import sys
import urllib.parse
from collections.abc import Iterator
from concurrent.futures import Future
from importlib import import_module
from pathlib import Path
from typing import Any, Callable

AT_ONCE = 64


def files_of(root: Path) -> Iterator[tuple[Path, str]]:
    """Each file and its key."""
    for folder, _, names in os.walk(root):
        for name in names:
            path = Path(folder, name)
            yield path, path.relative_to(root).as_posix()


def by_obstore(root: Path, bucket: str) -> None:
    obstore = import_module("obstore")
    # It takes no CA of ours.
    client = {"allow_http": True, "allow_invalid_certificates": True}
    url = os.environ["AWS_ENDPOINT_URL"]
    store = import_module("obstore.store").S3Store(
        bucket, endpoint=url, virtual_hosted_style_request=False, client_options=client
    )
    waiting = files_of(root)

    async def slot() -> None:
        for path, key in waiting:
            await obstore.put_async(store, key, path)

    async def all_slots() -> None:
        await asyncio.gather(*(slot() for _ in range(AT_ONCE)))

    asyncio.run(all_slots())


def by_awscrt(root: Path, bucket: str) -> None:
    auth, http, io, s3 = map(
        import_module, (f"awscrt.{name}" for name in ("auth", "http", "io", "s3"))
    )
    url = urllib.parse.urlsplit(os.environ["AWS_ENDPOINT_URL"])
    region = os.environ["AWS_REGION"]
    provider = auth.AwsCredentialsProvider.new_environment()
    signing = s3.create_default_s3_signing_config(region=region, credential_provider=provider)
    tls, mode = None, s3.S3RequestTlsMode.DISABLED
    if url.scheme == "https":
        options = io.TlsContextOptions()
        options.override_default_trust_store_from_path(None, os.environ["AWS_CA_BUNDLE"])
        tls = io.ClientTlsContext(options).new_connection_options()
        mode = s3.S3RequestTlsMode.ENABLED
    client = s3.S3Client(
        region=region, signing_config=signing, tls_mode=mode, tls_connection_options=tls
    )

    def put(path: Path, key: str) -> Future[Any]:
        headers = [("Host", url.netloc), ("Content-Length", str(path.stat().st_size))]
        target = f"/{bucket}/{urllib.parse.quote(key)}"
        request = http.HttpRequest("PUT", target, http.HttpHeaders(headers))
        kind = s3.S3RequestType.PUT_OBJECT
        done: Future[Any] = client.make_request(
            type=kind, request=request, send_filepath=str(path)
        ).finished_future
        return done

    in_turns(put, root, AT_ONCE)


def in_turns(put: Callable[[Path, str], Future[Any]], root: Path, at_once: int) -> None:
    """So many at a time, the oldest awaited first."""
    under_way: list[Future[Any]] = []
    for path, key in files_of(root):
        under_way.append(put(path, key))
        if len(under_way) == at_once:
            under_way.pop(0).result()
    for done in under_way:
        done.result()


def by_fast_s3(root: Path, bucket: str) -> None:
    with import_module("fast_s3").Uploader(
        endpoint_url=os.environ["AWS_ENDPOINT_URL"],
        aws_access_key_id=os.environ["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=os.environ["AWS_SECRET_ACCESS_KEY"],
        region_name=os.environ["AWS_REGION"],
        bucket_name=bucket,
        concurrency=AT_ONCE,
        verify_ssl=False,
    ) as uploader:
        paths, keys = zip(*files_of(root))
        uploader.queue_upload(list(paths), list(keys))
        failed = [result for result in uploader.await_upload() if result.exception]
    if failed:
        raise SystemExit(f"{len(failed)} files failed: {failed[0].exception}")


LIBRARIES = {"obstore": by_obstore, "awscrt": by_awscrt, "fast-s3": by_fast_s3}

if __name__ == "__main__":
    LIBRARIES[sys.argv[1]](Path(sys.argv[2]), sys.argv[3])
    os._exit(0)  # obstore's threads now and then abort when the interpreter ends
