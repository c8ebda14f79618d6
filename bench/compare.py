"""Compare pfu with other S3 uploaders on this machine: speed, CPU and memory.

One command starts a sink (nginx with its Lua module, on 127.0.0.1 only), makes sample trees, and
lets pfu (both modes) and whichever of s5cmd, rclone and aws are found upload them in turns, and the
libraries obstore, awscrt and fast-s3 if a Python that has them is named (see peers.py):

    python bench/compare.py                          # everything that is installed, 5 rounds
    python bench/compare.py --cases small --schemes http,https --rounds 5 --json result.json
    python bench/compare.py --tools pfu-parallel,s5cmd --s5cmd ~/bin/s5cmd --scale 0.1
    python bench/compare.py --libraries ~/libraries/bin/python  # obstore, awscrt, fast-s3 as well
    python bench/compare.py --busy                   # what a busy machine loses to pfu

How it is measured
- A run is the whole process from start to exit, start-up and pfu's fresh ledger included.
- The rounds go A B C A B C; medians are shown. Before them each tool runs once to warm up, and
  only that run is sampled for memory, so that sampling never disturbs a time. aws is an order of
  magnitude slower than the rest and by default has one round (`--aws-rounds`).
- CPU is user and system time as the kernel accounts it for the process and all its descendants;
  the sink's own is kept apart. Memory is the highest sum of PSS over the process tree, read every
  50 ms.
- The sink counts what arrives. A run that fails, or after which the objects or the bytes at the
  sink are not those of the tree, is shown as failed and never as a time.
- pfu runs with `--nice 0`, as all the others do. The sink and the uploader share the machine's
  cores, so what an uploader spends it takes from the sink too: the same for all.

The sink reads every body to its end before it answers, and throws it away. It can be reached by
http and https, by both with 30 ms added to each request (http30, https30), and by both through
Squid, if that is installed (--schemes httpsquid,httpssquid): under a name that Squid alone knows,
because some tools ask no proxy for 127.0.0.1.

Needs Linux, Python 3.9, nginx with its Lua module, and openssl. Nothing leaves the machine.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import datetime
import http.client
import json
import os
import platform
import re
import resource
import shlex
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
BUCKET = "bench"
REGION = "us-east-1"
SCHEMES = ("http", "https", "http30", "https30")
PROXIED = {"httpsquid": "http", "httpssquid": "https"}
NAME_BEHIND_PROXY = "sink.bench"
PEERS = ("s5cmd", "rclone", "aws")
LIBRARIES = ("obstore", "awscrt", "fast-s3")
TOOLS = ("pfu-parallel", "pfu-concurrent", *PEERS, *LIBRARIES)
BASELINE = "s5cmd"
SAMPLE_SECONDS = 0.05
ORPHAN_SECONDS = 5.0  # how long a run's left-over processes may take to end by themselves
PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


# ---------------------------------------------------------------------------------------------
# Cases: the trees that are uploaded
# ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A tree: flat directories of `files` files each, of `smallest` to `largest` bytes.

    samplegen draws sizes so that small ones are many. Here each directory takes an equal band of
    the range, so that over the whole tree sizes are spread about evenly.
    """

    name: str
    directories: int
    files: int
    smallest: int
    largest: int
    schemes: tuple[str, ...]  # those it runs on unless --schemes says otherwise
    text: str
    again: bool = False  # what is measured is a second run, which finds nothing changed

    def scaled(self, factor: float) -> Case:
        """A tree of `factor` times the bytes: of fewer files, or of smaller if few."""
        if factor == 1:
            return self
        text = f"{factor:g} of " + self.text
        if self.files > 4:
            return replace(self, text=text, files=max(1, round(self.files * factor)))
        size = max(1, round(self.largest * factor))
        return replace(self, text=text, smallest=size, largest=size)

    def band(self, directory: int) -> tuple[int, int]:
        """Smallest and largest size in a directory."""
        width = (self.largest - self.smallest) / self.directories
        low, high = (self.smallest + round(width * edge) for edge in (directory, directory + 1))
        return low, high

    @property
    def folder(self) -> str:
        sizes = f"{self.smallest}-{self.largest}"
        return f"{self.name}-{self.directories}x{self.files}-{sizes}"


CASES = {
    case.name: case
    for case in (
        Case("small", 50, 1000, KIB, 8 * KIB, SCHEMES, "50,000 files of 1 to 8 KiB"),
        Case("medium", 10, 60, 1, 512 * KIB, ("http", "https"), "600 files of up to 512 KiB"),
        Case("many", 20, 300, 1, 512 * KIB, ("http",), "6,000 files of up to 512 KiB"),
        Case("again", 50, 200, KIB, 8 * KIB, ("http",), "a rerun of 10,000 unchanged files", True),
        Case("big4", 1, 4, GIB, GIB, ("http", "https"), "4 files of 1 GiB"),
        Case("big1", 1, 1, 4 * GIB, 4 * GIB, ("http",), "1 file of 4 GiB"),
    )
}


@dataclass(frozen=True)
class Tree:
    root: Path
    files: int
    bytes: int


def make_tree(case: Case, cache: Path, samplegen: Path) -> Tree:
    """The case's tree in `cache`, made only if it is not there yet."""
    cache.mkdir(parents=True, exist_ok=True)
    root = cache / case.folder
    if not root.is_dir():
        require_space(cache, case.directories * case.files * (case.smallest + case.largest) // 2)
        say(f"making {case.name} in {root}")
        unfinished = cache / (case.folder + ".part")
        shutil.rmtree(unfinished, ignore_errors=True)
        fill_tree(case, unfinished, samplegen)
        os.sync()  # or its writing back would run beside the first rounds
        unfinished.rename(root)
    sizes = [entry.stat().st_size for entry in root.rglob("*") if entry.is_file()]
    return Tree(root, len(sizes), sum(sizes))


def fill_tree(case: Case, root: Path, samplegen: Path) -> None:
    """The only place that knows how files are made."""
    for number in range(case.directories):
        directory = root / f"dir{number:03d}"
        smallest, largest = case.band(number)
        pieces = -(-largest // GIB)  # samplegen makes files of up to 1 GiB; larger ones are joined
        sizes = ["--min-size", str(smallest // pieces), "--max-size", str(largest // pieces)]
        made = ["1", "--files", str(case.files * pieces), "--seed", str(number + 1)]
        command = [sys.executable, str(samplegen), *made, *sizes, "--root", str(directory)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            fail(f"{shlex.join(command)}: {done.stderr.strip()}")
        join_files(directory, pieces)


def join_files(directory: Path, pieces: int) -> None:
    """Appends every `pieces` files to one."""
    files = sorted(directory.iterdir()) if pieces > 1 else []
    for start in range(0, len(files), pieces):
        with open(files[start], "ab") as target:
            for path in files[start + 1 : start + pieces]:
                with open(path, "rb") as source:
                    shutil.copyfileobj(source, target, MIB)
                path.unlink()


def require_space(directory: Path, size: int) -> None:
    free = shutil.disk_usage(directory).free
    if free < size * 1.1:
        fail(f"{directory}: {size / GIB:.1f} GiB are needed, {free / GIB:.1f} are free (--work)")


# ---------------------------------------------------------------------------------------------
# Sink: an S3 that takes everything and keeps nothing
# ---------------------------------------------------------------------------------------------
#
# nginx with one Lua handler. Bodies of up to 1 MiB are read into nginx's own buffer, which for a
# small PUT is the read that brought the head. Larger ones are read from the socket in pieces of
# 64 KiB and dropped: cheaper than pieces of 256 KiB, than a buffer for the whole body and than a
# temporary file. discard_body would be cheaper still, but it answers before the body is in, so
# that nothing shows that it came. A chunked body (aws over https) has no length and is read into
# memory. What is remembered is what tools ask for after an upload: size and metadata of objects
# that came in parts.

NGINX_CONF = """
{modules}
{user}
daemon off;
worker_processes 2;
worker_rlimit_nofile {descriptors};
pid {home}/nginx.pid;
error_log {home}/error.log warn;
events {{ worker_connections {connections}; }}
http {{
    access_log off;
    server_tokens off;
    tcp_nodelay on;
    keepalive_timeout 600s;
    keepalive_requests 1000000000;
    client_max_body_size 0;
    client_header_buffer_size 16k;
    client_body_buffer_size 1m;
    client_body_temp_path {home}/body;
    proxy_temp_path {home}/proxy;
    fastcgi_temp_path {home}/fastcgi;
    uwsgi_temp_path {home}/uwsgi;
    scgi_temp_path {home}/scgi;
    lua_shared_dict counts 1m;
    lua_shared_dict uploads 32m;
    lua_socket_buffer_size 64k;
    lua_socket_log_errors off;
    ssl_certificate {home}/server.pem;
    ssl_certificate_key {home}/server.key;
    ssl_protocols TLSv1.2 TLSv1.3;
    ssl_session_cache shared:tls:8m;
    ssl_conf_command Ciphersuites TLS_AES_128_GCM_SHA256;
    {servers}
}}
"""

SERVER_CONF = """
    server {{
        listen 127.0.0.1:{port} {tls} reuseport backlog=4096;
        location / {{
            {delay}
            content_by_lua_file {home}/sink.lua;
        }}
        location @chunked {{
            set $lane chunked;
            client_body_buffer_size 64m;
            content_by_lua_file {home}/sink.lua;
        }}
    }}
"""

DELAY_CONF = "access_by_lua_block { ngx.sleep(0.03) }"

SINK_LUA = r"""
local counts, uploads = ngx.shared.counts, ngx.shared.uploads
local ETAG = '"d41d8cd98f00b204e9800998ecf8427e"'
local XMLNS = ' xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
-- Objects that HEAD and listings know: tools look at some of the first, or a rerun at all.
local REMEMBERED = counts:get("remember") or 2000
local IN_MEMORY = 1048576
local PIECE = 65536

local method = ngx.req.get_method()
local uri = ngx.var.uri
local args = ngx.var.args and ngx.req.get_uri_args() or {}
local bucket, key = uri:match("^/([^/]+)/?(.*)$")

local function answer(status, body)
  ngx.status = status
  ngx.header["Content-Length"] = body and #body or 0
  ngx.header["x-amz-request-id"] = "0000000000000000"
  if body then
    ngx.header["Content-Type"] = "application/xml"
    if method ~= "HEAD" then ngx.print(body) end
  end
  return ngx.exit(ngx.OK)
end

local function xml(name, inside)
  return answer(200, '<?xml version="1.0" encoding="UTF-8"?>\n<' .. name .. XMLNS
    .. (inside or "") .. "</" .. name .. ">")
end

local function missing(code)
  return answer(404, '<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>' .. code
    .. "</Code><Message>not here</Message></Error>")
end

local function drain(length)
  if length <= IN_MEMORY then
    ngx.req.read_body()
    return true
  end
  local stream = ngx.req.socket()
  while stream and length > 0 do
    local piece = stream:receiveany(PIECE)
    if not piece then return false end
    length = length - #piece
  end
  return length == 0
end

local function metadata()
  local lines = {}
  for name, value in pairs(ngx.req.get_headers(0)) do
    if name:sub(1, 11) == "x-amz-meta-" or name == "content-type" then
      lines[#lines + 1] = name .. "\t" .. value
    end
  end
  return table.concat(lines, "\n")
end

local function remember(size, etag, meta)
  uploads:set("object " .. uri, size .. " " .. etag .. "\n" .. meta)
end

local function put()
  local length = tonumber(ngx.var.http_content_length)
  if not length then
    ngx.req.read_body()
  elseif not drain(length) then
    return ngx.exit(ngx.ERROR)
  end
  local size = tonumber(ngx.var.http_x_amz_decoded_content_length) or length or 0
  if not key or key == "" then return answer(200) end
  counts:incr("bytes", size, 0)
  if args.uploadId then
    counts:incr("parts", 1, 0)
    uploads:incr("size " .. args.uploadId, size, 0)
  elseif counts:incr("objects", 1, 0) <= REMEMBERED then
    remember(size, ETAG, metadata())
  end
  ngx.header["ETag"] = ETAG
  return answer(200)
end

local function create_upload()
  local id = "upload" .. counts:incr("uploads", 1, 0)
  uploads:set("meta " .. id, metadata())
  return xml("InitiateMultipartUploadResult", "<Bucket>" .. bucket .. "</Bucket><Key>" .. key
    .. "</Key><UploadId>" .. id .. "</UploadId>")
end

local function complete_upload(id)
  ngx.req.read_body()
  local meta = uploads:get("meta " .. id)
  if not meta then return missing("NoSuchUpload") end
  remember(uploads:get("size " .. id) or 0, ETAG:sub(1, -2) .. '-1"', meta)
  uploads:delete("meta " .. id)
  uploads:delete("size " .. id)
  counts:incr("objects", 1, 0)
  return xml("CompleteMultipartUploadResult", "<Bucket>" .. bucket .. "</Bucket><Key>" .. key
    .. "</Key><ETag>" .. ETAG:sub(1, -2) .. '-1"' .. "</ETag>")
end

local function post()
  if not bucket then
    return xml("GetCallerIdentityResponse", "<GetCallerIdentityResult><Arn>arn:aws:iam::"
      .. "123456789012:root</Arn><UserId>bench</UserId><Account>123456789012</Account>"
      .. "</GetCallerIdentityResult>")
  elseif args.uploads then
    return create_upload()
  elseif args.uploadId then
    return complete_upload(args.uploadId)
  end
  ngx.req.read_body()
  return xml("DeleteResult")
end

local function head()
  if not key or key == "" then
    ngx.header["x-amz-bucket-region"] = "us-east-1"
    return answer(200)
  end
  local object = uploads:get("object " .. uri)
  if not object then return answer(404) end
  local size, etag, lines = object:match("^(%d+) ([^\n]+)\n(.*)$")
  for name, value in lines:gmatch("([^\t\n]+)\t([^\n]*)") do ngx.header[name] = value end
  ngx.header["ETag"] = etag
  ngx.header["Content-Length"] = size
  ngx.header["Last-Modified"] = ngx.http_time(ngx.time())
  return ngx.send_headers()
end

local BLOCKED = "<BlockPublicAcls>true</BlockPublicAcls><IgnorePublicAcls>true</IgnorePublicAcls>"
  .. "<BlockPublicPolicy>true</BlockPublicPolicy>"
  .. "<RestrictPublicBuckets>true</RestrictPublicBuckets>"

local function list()
  local prefix, delimiter = args.prefix, args.delimiter
  if not prefix or prefix == true then prefix = "" end
  if delimiter == true then delimiter = nil end
  local after = args["continuation-token"] or args["start-after"] or args.marker or ""
  local keys, lines, count, last = {}, {}, 0, nil
  for _, name in ipairs(uploads:get_keys(0)) do
    local found = name:match("^object /[^/]+/(.*)$")
    if found and found > after and found:sub(1, #prefix) == prefix then keys[#keys + 1] = found end
  end
  table.sort(keys)
  local seen = nil
  for _, found in ipairs(keys) do
    local stop = delimiter and found:find(delimiter, #prefix + 1, true)
    local folder = stop and found:sub(1, stop)
    if not folder or folder ~= seen then
      if count == 1000 then break end
      count = count + 1
      if folder then
        lines[count] = "<CommonPrefixes><Prefix>" .. folder .. "</Prefix></CommonPrefixes>"
      else
        local object = uploads:get("object /" .. bucket .. "/" .. found)
        local size, etag = object:match("^(%d+) ([^\n]+)")
        lines[count] = "<Contents><Key>" .. found .. "</Key><LastModified>"
          .. os.date("!%Y-%m-%dT%H:%M:%S.000Z") .. "</LastModified><ETag>" .. etag
          .. "</ETag><Size>" .. size .. "</Size><StorageClass>STANDARD</StorageClass></Contents>"
      end
    end
    seen, last = folder, found
  end
  local more = last and last ~= keys[#keys]
  return xml("ListBucketResult", "<Name>" .. bucket .. "</Name><Prefix>" .. prefix .. "</Prefix>"
    .. "<KeyCount>" .. count .. "</KeyCount><MaxKeys>1000</MaxKeys><IsTruncated>"
    .. tostring(more and true or false) .. "</IsTruncated>"
    .. (more and "<NextContinuationToken>" .. last .. "</NextContinuationToken>" or "")
    .. table.concat(lines))
end

local function get()
  if not bucket then return xml("ListAllMyBucketsResult", "<Buckets></Buckets>") end
  if args.uploadId then
    return xml("ListPartsResult", "<UploadId>" .. args.uploadId
      .. "</UploadId><IsTruncated>false</IsTruncated>")
  end
  if key ~= "" then return missing("NoSuchKey") end
  if args.location then return xml("LocationConstraint") end
  if args.publicAccessBlock then return xml("PublicAccessBlockConfiguration", BLOCKED) end
  if args.policyStatus then return xml("PolicyStatus", "<IsPublic>false</IsPublic>") end
  if args.acl then
    return xml("AccessControlPolicy", "<Owner><ID>bench</ID></Owner><AccessControlList/>")
  end
  if args.ownershipControls then
    return xml("OwnershipControls",
      "<Rule><ObjectOwnership>BucketOwnerEnforced</ObjectOwnership></Rule>")
  end
  if args.uploads then
    return xml("ListMultipartUploadsResult", "<IsTruncated>false</IsTruncated>")
  end
  return list()
end

local function tell()
  local names = { "requests", "objects", "parts", "bytes", "uploads" }
  for i, name in ipairs(names) do
    names[i] = '"' .. name .. '":' .. string.format("%d", counts:get(name) or 0)
  end
  local body = "{" .. table.concat(names, ",") .. "}"
  if method == "POST" then
    counts:flush_all()
    if args.remember then counts:set("remember", tonumber(args.remember)) end
    if not args.keep then uploads:flush_all() end
  end
  return answer(200, body)
end

if uri == "/_count" then return tell() end
if ngx.var.http_transfer_encoding and ngx.var.lane ~= "chunked" then return ngx.exec("@chunked") end
counts:incr("requests", 1, 0)
if method == "PUT" then return put() end
if method == "POST" then return post() end
if method == "HEAD" then return head() end
if method == "GET" then return get() end
return answer(204)
"""


@dataclass(frozen=True)
class Sink:
    """A running sink: its URLs by scheme and what it has counted."""

    process: subprocess.Popen[bytes]
    ports: dict[str, int]
    ca_bundle: Path
    proxy: str = ""  # the URL of Squid, if it runs

    def url(self, scheme: str) -> str:
        if behind := PROXIED.get(scheme):
            return f"{behind}://{NAME_BEHIND_PROXY}:{self.ports[behind]}"
        return f"{scheme.rstrip('30')}://127.0.0.1:{self.ports[scheme]}"

    def proxies(self, scheme: str) -> dict[str, str]:
        """What to set in the environment."""
        names = ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy")
        return dict.fromkeys(names, self.proxy) if scheme in PROXIED else {}

    def count(self, reset: bool = False, query: str = "") -> dict[str, int]:
        """Objects, parts, bytes and requests since the last reset; `reset` sets them to 0.

        `query`: remember=N objects, instead of the first 2,000; keep=1 those that are remembered.
        """
        connection = http.client.HTTPConnection("127.0.0.1", self.ports["http"], timeout=10)
        with contextlib.closing(connection):
            connection.request("POST" if reset else "GET", f"/_count?{query}")
            counts: dict[str, int] = json.load(connection.getresponse())
        return counts

    def cpu_seconds(self) -> float:
        return sum(p.cpu_seconds for p in processes() if p.group == self.process.pid)


@contextlib.contextmanager
def running_sink(home: Path, niceness: int = 0) -> Iterator[Sink]:
    """The sink with its files in `home`; ended by its pid when the block is left."""
    nginx, modules = nginx_with_lua()
    ports = dict(zip(SCHEMES, free_ports(len(SCHEMES))))
    make_certificates(home)
    (home / "sink.lua").write_text(SINK_LUA)
    (home / "nginx.conf").write_text(nginx_conf(home, ports, modules))
    command = [nginx, "-p", str(home), "-e", f"{home}/error.log", "-c", f"{home}/nginx.conf"]
    process = start(command, home, dict(os.environ), niceness)
    sink = Sink(process, ports, home / "ca.pem")
    try:
        wait_until_up(sink, home)
        yield sink
    finally:
        stop(process, signal.SIGTERM)


SQUID_CONF = """
http_port 127.0.0.1:{port}
hosts_file {home}/hosts
http_access allow all
cache deny all
access_log none
cache_log /dev/null
{user}
pid_filename none
pinger_enable off
shutdown_lifetime 0 seconds
max_filedescriptors 8192
"""


@contextlib.contextmanager
def with_squid(sink: Sink) -> Iterator[Sink]:
    """The same sink, which Squid reaches too."""
    squid = shutil.which("squid") or shutil.which("squid", path="/usr/sbin")
    if squid is None:
        fail("squid is missing; on Debian: apt-get install squid")
    (port,) = free_ports(1)
    user = "cache_effective_user nobody" if os.geteuid() == 0 else ""  # it does not run as root
    with tempfile.TemporaryDirectory(prefix="compare-squid-") as name:
        home = Path(name)
        home.chmod(0o755)
        names = f"{NAME_BEHIND_PROXY} {BUCKET}.{NAME_BEHIND_PROXY}"
        (home / "hosts").write_text(f"127.0.0.1 {names}\n")
        (home / "squid.conf").write_text(SQUID_CONF.format(home=home, port=port, user=user))
        command = [squid, "-n", f"compare{os.getpid()}", "-N", "-f", f"{home}/squid.conf"]
        process = start(command, home, dict(os.environ))
        try:
            wait_for_port(port)
            yield replace(sink, proxy=f"http://127.0.0.1:{port}")
        finally:
            stop(process, signal.SIGTERM)


def wait_for_port(port: int) -> None:
    for _ in range(100):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.1)
    fail("squid did not start")


def nginx_with_lua() -> tuple[str, list[str]]:
    """nginx's path and the modules that it must load to have Lua."""
    path = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
    if path is None:
        fail("nginx is missing; on Debian: apt-get install nginx libnginx-mod-http-lua")
    built = subprocess.run([path, "-V"], capture_output=True, text=True, check=True).stderr
    if "ngx_lua" in built or "openresty" in built:
        return path, []
    found = re.search(r"--modules-path=(\S+)", built)
    folder = Path(found.group(1) if found else "/usr/lib/nginx/modules")
    modules = [folder / "ndk_http_module.so", folder / "ngx_http_lua_module.so"]
    if not all(module.exists() for module in modules):
        fail("nginx has no Lua module; on Debian: apt-get install libnginx-mod-http-lua")
    return path, [str(module) for module in modules]


def nginx_conf(home: Path, ports: dict[str, int], modules: list[str]) -> str:
    descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return NGINX_CONF.format(
        home=home,
        modules="\n".join(f"load_module {module};" for module in modules),
        user="user root;" if os.geteuid() == 0 else "",  # or its workers could not read `home`
        descriptors=descriptors,
        connections=min(8192, descriptors // 2),
        servers="".join(server_conf(home, scheme, port) for scheme, port in ports.items()),
    )


def server_conf(home: Path, scheme: str, port: int) -> str:
    tls = "ssl" if scheme.startswith("https") else ""
    delay = DELAY_CONF if scheme.endswith("30") else ""
    return SERVER_CONF.format(home=home, port=port, tls=tls, delay=delay)


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def wait_until_up(sink: Sink, home: Path) -> None:
    for _ in range(100):
        if sink.process.poll() is not None:
            break
        with contextlib.suppress(OSError, http.client.HTTPException):
            sink.count(reset=True)
            return
        time.sleep(0.1)
    log = home / "error.log"
    fail("nginx did not start: " + (log.read_text().strip() if log.exists() else "no log"))


def make_certificates(home: Path) -> None:
    """A CA of its own (ca.pem) and a certificate by it for 127.0.0.1 (server.pem, server.key)."""
    if shutil.which("openssl") is None:
        fail("openssl is missing; on Debian: apt-get install openssl")
    (home / "ca.ext").write_text(
        "basicConstraints=critical,CA:TRUE\nkeyUsage=keyCertSign\nsubjectKeyIdentifier=hash\n"
    )
    (home / "server.ext").write_text(
        f"subjectAltName=IP:127.0.0.1,DNS:localhost,DNS:{NAME_BEHIND_PROXY},"
        f"DNS:{BUCKET}.{NAME_BEHIND_PROXY}\n"
        "keyUsage=digitalSignature,keyEncipherment\n"
        "extendedKeyUsage=serverAuth\n"
        "authorityKeyIdentifier=keyid\n"
    )
    signing = "-CA ca.pem -CAkey ca.key -CAcreateserial"
    for name, signed_by in (("ca", "-signkey ca.key"), ("server", signing)):
        openssl(
            home,
            f"req -newkey rsa:2048 -nodes -keyout {name}.key -out {name}.csr "
            f"-subj /CN=bench-{name}",
        )
        openssl(
            home,
            f"x509 -req -in {name}.csr -out {name}.pem -days 7 -extfile {name}.ext {signed_by}",
        )


def openssl(home: Path, arguments: str) -> None:
    done = subprocess.run(["openssl", *arguments.split()], cwd=home, capture_output=True, text=True)
    if done.returncode:
        fail(f"openssl {arguments}: {done.stderr.strip()}")


# ---------------------------------------------------------------------------------------------
# Processes: start, stop, account
# ---------------------------------------------------------------------------------------------
#
# A run is a process group of its own, led by the process that is started. Every member ends as a
# child of this program (it declares itself the subreaper of orphans), so wait4() on the group
# gives the CPU of each, exactly and once: a process hands its reaped children's to its parent.


@dataclass(frozen=True)
class ProcessInfo:
    pid: int
    parent: int
    group: int
    cpu_seconds: float


def processes() -> Iterator[ProcessInfo]:
    """All processes of the machine, from /proc."""
    ticks = os.sysconf("SC_CLK_TCK")
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                with open(f"/proc/{name}/stat", "rb") as file:
                    fields = file.read().rpartition(b")")[2].split()
                spent = int(fields[11]) + int(fields[12])
                yield ProcessInfo(int(name), int(fields[1]), int(fields[2]), spent / ticks)


def machine_cpu_seconds() -> float:
    """User, nice, system and stolen time of all cores since boot, without interrupts."""
    fields = (first_line("/proc/stat") or "").split()[1:]
    return sum(int(fields[place]) for place in (0, 1, 2, 7)) / os.sysconf("SC_CLK_TCK")


def become_subreaper() -> None:
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def raise_descriptor_limit() -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def start(
    command: Sequence[str],
    directory: Path,
    environment: dict[str, str],
    niceness: int = 0,
    output: str = "output.txt",
) -> subprocess.Popen[bytes]:
    """Starts `command` as leader of a process group; what it prints goes to `directory`."""

    def lead() -> None:
        os.setpgid(0, 0)
        os.nice(niceness)

    with open(directory / output, "wb") as stdout, open(directory / "errors.txt", "wb") as stderr:
        return subprocess.Popen(
            command,
            cwd=directory,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            preexec_fn=lead,
        )


def stop(process: subprocess.Popen[bytes], number: int) -> None:
    """Ends a process that `start` started, and its group if it does not go by itself."""
    if process.poll() is None:
        process.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
    kill_group(process.pid)
    with contextlib.suppress(ChildProcessError):
        process.wait(10)


def kill_group(group: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


@dataclass(frozen=True)
class Spent:
    """What a run took: seconds, and its exit code (negative: the signal that ended it)."""

    wall: float
    cpu: float
    code: int


def await_group(process: subprocess.Popen[bytes], began: float, limit: float) -> Spent:
    """Waits for the process and then for what it left behind; kills both after `limit` s."""
    timer = threading.Timer(limit, kill_group, [process.pid])
    timer.start()
    try:
        _, status, usage = os.wait4(process.pid, 0)
    finally:
        timer.cancel()
    wall = time.monotonic() - began
    process.returncode = exit_code(status)
    cpu = usage.ru_utime + usage.ru_stime + reap_orphans(process.pid)
    return Spent(wall, cpu, process.returncode)


def reap_orphans(group: int) -> float:
    """CPU seconds of the group's remaining processes, which are killed if they stay."""
    cpu = 0.0
    deadline = time.monotonic() + ORPHAN_SECONDS
    while True:
        try:
            pid, _, usage = os.wait4(-group, os.WNOHANG)
        except ChildProcessError:
            return cpu
        if pid:
            cpu += usage.ru_utime + usage.ru_stime
        else:
            if time.monotonic() > deadline:
                kill_group(group)
            time.sleep(0.01)


def exit_code(status: int) -> int:
    return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


class MemorySampler(threading.Thread):
    """The highest sum of PSS, in bytes, that a process group was seen to have."""

    def __init__(self, group: int) -> None:
        super().__init__(daemon=True)
        self.group = group
        self.peak = 0
        self.done = threading.Event()

    def run(self) -> None:
        while not self.done.wait(SAMPLE_SECONDS):
            members = [p.pid for p in processes() if p.group == self.group]
            self.peak = max(self.peak, sum(map(pss, members)))


def pss(pid: int) -> int:
    with contextlib.suppress(OSError), open(f"/proc/{pid}/smaps_rollup", "rb") as file:
        for line in file:
            if line.startswith(b"Pss:"):
                return int(line.split()[1]) * KIB
    return 0


@contextlib.contextmanager
def sampled(group: int, wanted: bool) -> Iterator[MemorySampler]:
    sampler = MemorySampler(group)
    if wanted:
        sampler.start()
    try:
        yield sampler
    finally:
        sampler.done.set()
        if wanted:
            sampler.join()


# ---------------------------------------------------------------------------------------------
# Tools: one plain upload of the whole tree by each
# ---------------------------------------------------------------------------------------------
#
# Each does what it does by default, but for output (none of them prints a line a file) and for
# rclone, which is spared every request, hash and comparison that the others do not make. None
# lists or looks before it writes. The libraries keep no ledger and send no metadata.


@dataclass(frozen=True)
class Tool:
    name: str
    program: list[str]
    version: str

    def command(self, root: Path, url: str, again: bool = False) -> list[str]:
        """`again`: so that a second run sends only what has changed."""
        target = f"s3://{BUCKET}/"
        if self.name == "s5cmd":
            options = ["--log", "error", "--endpoint-url", url]
            return [*self.program, *options, "sync" if again else "cp", f"{root}/", target]
        if self.name == "rclone":
            how = RCLONE_AGAIN if again else RCLONE_OPTIONS
            return [*self.program, "copy", str(root), f"bench:{BUCKET}", *how]
        if self.name == "aws":
            options = ["--only-show-errors", "--endpoint-url", url]
            verb = ["sync"] if again else ["cp", "--recursive"]
            return [*self.program, "s3", *verb, *options, str(root), target]
        if self.name in LIBRARIES:
            return [*self.program, str(root), BUCKET]
        return [*self.program, *self.pfu_options(root, url), "--nice", "0"]

    def pfu_options(self, root: Path, url: str) -> list[str]:
        mode = self.name.partition("-")[2]
        options = ["--endpoint-url", url, "--db", "fresh.db", "--json", "--mode", mode]
        return [str(root), f"s3://{BUCKET}", *options]


RCLONE_AGAIN = ("--transfers", "64", "--checkers", "64", "--s3-no-check-bucket")
RCLONE_OPTIONS = (
    *("--transfers", "64", "--checkers", "64", "--retries", "1"),
    *("--no-check-dest", "--ignore-checksum"),
    *("--s3-disable-checksum", "--s3-no-check-bucket", "--s3-no-head"),
)


def environment(url: str, ca_bundle: Path, home: Path) -> dict[str, str]:
    """This program's environment without its S3 settings, and with the sink's for all tools."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not re.match(r"(AWS|RCLONE|S3|PFU)_|.*_PROXY$", name, re.IGNORECASE)
    }
    return {
        **kept,
        "HOME": str(home),
        "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
        "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
        "AWS_REGION": REGION,
        "AWS_DEFAULT_REGION": REGION,
        "AWS_ENDPOINT_URL": url,
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CA_BUNDLE": str(ca_bundle),
        "SSL_CERT_FILE": str(ca_bundle),
        "RCLONE_CA_CERT": str(ca_bundle),
        "RCLONE_CONFIG_BENCH_TYPE": "s3",
        "RCLONE_CONFIG_BENCH_PROVIDER": "Other",
        "RCLONE_CONFIG_BENCH_ENV_AUTH": "true",
        "RCLONE_CONFIG_BENCH_REGION": REGION,
        "RCLONE_CONFIG_BENCH_ENDPOINT": url,
    }


def find_tools(options: argparse.Namespace) -> list[Tool]:
    """The tools asked for that are there, in the order of TOOLS."""
    found = [find_tool(name, options) for name in TOOLS if name in options.tools]
    return [tool for tool in found if tool is not None]


def find_tool(name: str, options: argparse.Namespace) -> Tool | None:
    if name.startswith("pfu"):
        program = [options.python, str(options.pfu)]
        if not options.pfu.exists():
            fail(f"{options.pfu}: not there (--pfu FILE)")
        return Tool(name, program, version_of([*program, "--version"]))
    if name in LIBRARIES:
        return find_library(name, options)
    path = shutil.which(str(getattr(options, name) or name))
    if path is None:
        say(f"{name}: not found, left out (--{name} PATH)")
        return None
    path = os.path.abspath(path)
    return Tool(name, [path], version_of([path, "version" if name != "aws" else "--version"]))


def find_library(name: str, options: argparse.Namespace) -> Tool | None:
    if not options.libraries:
        return None
    python = os.path.abspath(options.libraries)
    version = f"import importlib.metadata; print(importlib.metadata.version({name!r}))"
    found = version_of([python, "-c", version])
    if found == "unknown":
        say(f"{name}: {python} does not have it, left out")
        return None
    program = [python, str(Path(__file__).resolve().with_name("peers.py")), name]
    return Tool(name, program, found)


def version_of(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    lines = (done.stdout or done.stderr).strip().splitlines()
    return lines[0].strip() if lines and not done.returncode else "unknown"


# ---------------------------------------------------------------------------------------------
# Rounds
# ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """One upload. `failure` says why it does not count; pfu's own summary is in `summary`."""

    wall: float
    cpu: float
    sink_cpu: float
    other_cpu: float  # of everything else on the machine meanwhile
    requests: int
    peak_pss: int
    failure: str | None
    summary: dict[str, Any] = field(default_factory=dict)

    @property
    def other_share(self) -> float:
        """What part of the machine's cores somebody else used."""
        return self.other_cpu / self.wall / (os.cpu_count() or 1)


@dataclass
class Series:
    """All runs of one tool in one case over one scheme."""

    case: str
    scheme: str
    tool: str
    files: int
    bytes: int
    runs: list[Run] = field(default_factory=list)
    warm_up: Run | None = None

    @property
    def good(self) -> list[Run]:
        return [run for run in self.runs if run.failure is None]

    @property
    def failures(self) -> list[str]:
        return [run.failure for run in self.runs if run.failure is not None]

    @property
    def wall(self) -> float:
        return statistics.median(run.wall for run in self.good)

    @property
    def cpu(self) -> float:
        return statistics.median(run.cpu for run in self.good)

    def figures(self) -> dict[str, Any]:
        """What the table shows, in seconds, bytes and microseconds; empty without a good run."""
        if not self.good:
            return {}
        walls = [run.wall for run in self.good]
        return {
            "wall": self.wall,
            "wall_min": min(walls),
            "wall_max": max(walls),
            "files_per_second": self.files / self.wall,
            "mib_per_second": self.bytes / MIB / self.wall,
            "cpu_seconds": self.cpu,
            "cpu_us_per_file": self.cpu / self.files * 1e6,
            "sink_cpu_seconds": statistics.median(run.sink_cpu for run in self.good),
            "other_share": statistics.median(run.other_share for run in self.good),
            "requests": statistics.median(run.requests for run in self.good),
            "peak_pss_bytes": max(run.peak_pss for run in [*self.runs, self.warm_up] if run),
        }


@dataclass(frozen=True)
class Bench:
    """What every run needs."""

    options: argparse.Namespace
    sink: Sink
    home: Path

    def upload(self, tool: Tool, tree: Tree, scheme: str, sample: bool, again: bool = False) -> Run:
        """One whole upload by `tool`, or its rerun, timed, and checked at the sink."""
        url = self.sink.url(scheme)
        directory = Path(tempfile.mkdtemp(dir=self.home))
        variables = {
            **environment(url, self.sink.ca_bundle, directory),
            **self.sink.proxies(scheme),
        }
        command = tool.command(tree.root, url, again)
        self.sink.count(reset=True, query=f"remember={tree.files}" if again else "")
        if again:
            await_group(start(command, directory, variables), 0, self.options.timeout)
            self.sink.count(reset=True, query="keep=1")
        sink_before, machine_before = self.sink.cpu_seconds(), machine_cpu_seconds()
        began = time.monotonic()
        process = start(command, directory, variables)
        try:
            with sampled(process.pid, sample) as sampler:
                spent = await_group(process, began, self.options.timeout)
        finally:
            kill_group(process.pid)
        sink_cpu = self.sink.cpu_seconds() - sink_before
        other_cpu = machine_cpu_seconds() - machine_before - sink_cpu - spent.cpu
        counts = self.sink.count()
        sent = replace(tree, files=0, bytes=0) if again else tree
        run = Run(
            wall=spent.wall,
            cpu=spent.cpu,
            sink_cpu=sink_cpu,
            other_cpu=max(0.0, other_cpu),
            requests=counts["requests"],
            peak_pss=sampler.peak,
            failure=why_failed(spent, counts, sent, directory),
            summary=pfu_summary(directory) if tool.name.startswith("pfu") else {},
        )
        shutil.rmtree(directory, ignore_errors=True)
        return run

    def series(self, tools: list[Tool], case: Case, tree: Tree, scheme: str) -> list[Series]:
        """Warm-up and rounds of all tools in turns."""
        if case.again:
            tools = [tool for tool in tools if tool.name not in LIBRARIES]
        found = [Series(case.name, scheme, tool.name, tree.files, tree.bytes) for tool in tools]
        for number in range(self.options.rounds + 1):
            for tool, series in zip(tools, found):
                self.one_round(tool, tree, series, number, case.again)
        return found

    def one_round(self, tool: Tool, tree: Tree, series: Series, number: int, again: bool) -> None:
        last = self.options.aws_rounds if tool.name == "aws" else self.options.rounds
        if number > last or (tool.name == "aws" and number == 0 and last == 1):
            return
        warm_up = number == 0
        run = self.upload(tool, tree, series.scheme, warm_up or last == 1, again)
        if warm_up:
            series.warm_up = run
        else:
            series.runs.append(run)
        report_progress(series, run, "warm-up" if warm_up else f"round {number}")


def why_failed(spent: Spent, counts: dict[str, int], tree: Tree, home: Path) -> str | None:
    """Why a run must not count as one, or None."""
    if spent.code:
        return f"exit {spent.code}: {last_line(home)}"
    if counts["objects"] != tree.files:
        return f"sent {counts['objects']:,} of {tree.files:,} files"
    if counts["bytes"] != tree.bytes:
        return f"sent {counts['bytes']:,} of {tree.bytes:,} bytes"
    return None


def last_line(directory: Path) -> str:
    text = (directory / "errors.txt").read_text(errors="replace").strip()
    return text.splitlines()[-1][:200] if text else "nothing said"


def pfu_summary(directory: Path) -> dict[str, Any]:
    """What pfu said of itself with --json, without the list of failures."""
    try:
        summary = json.loads((directory / "output.txt").read_text())
    except ValueError:
        return {}
    keep = ("requests", "retries", "throttled", "fast_lane", "fast_lane_off", "cpu_seconds")
    return {name: summary[name] for name in (*keep, "peak_memory_bytes") if name in summary}


def report_progress(series: Series, run: Run, label: str) -> None:
    result = run.failure or f"{run.wall:.2f} s, CPU {run.cpu:.2f} s"
    say(f"{series.case} {series.scheme} {label}: {series.tool}: {result}")


# ---------------------------------------------------------------------------------------------
# Busy: what a machine whose cores are all busy loses to pfu
# ---------------------------------------------------------------------------------------------
#
# One process a core hashes at nice 0 for a fixed time and counts; alone, and beside pfu at its
# default niceness, in turns. pfu uploads the small tree over http, again and again, from before
# the counting starts until after it ends. The sink would be another machine's work, so it runs at
# nice 19 here; what it takes is still counted as loss to pfu.
#
# Linux's autogroups weigh niceness only within a session (setsid) unless the CPU controller of
# cgroups is in charge: at 1 in /proc/sys/kernel/sched_autogroup_enabled a job from another session
# gets its half of the CPU whatever its niceness. So both are measured: pfu in the session of the
# hashing processes, and in a session of its own, as cron would start it.

SPINNER = """
import hashlib, sys, time
block, count, end = bytes(65536), 0, time.monotonic() + float(sys.argv[1])
while time.monotonic() < end:
    hashlib.sha256(block).digest()
    count += 1
print(count)
"""


@dataclass(frozen=True)
class Busy:
    """Rounds of one pfu mode: hashes a second alone and beside it, files a second it uploaded."""

    tool: str
    own_session: bool
    alone: list[float]
    beside: list[float]
    files: list[float]

    @property
    def loss_percent(self) -> float:
        return 100 * (1 - statistics.median(self.beside) / statistics.median(self.alone))


class Uploads(threading.Thread):
    """Runs pfu again and again until it is told to stop."""

    def __init__(self, bench: Bench, tool: Tool, tree: Tree, own_session: bool) -> None:
        super().__init__(daemon=True)
        url = bench.sink.url("http")
        self.home = bench.home
        self.command = [*tool.program, *tool.pfu_options(tree.root, url)]
        if own_session:
            self.command = ["setsid", "--wait", *self.command]
        self.environment = environment(url, bench.sink.ca_bundle, bench.home)
        self.stopping = threading.Event()
        self.failure: str | None = None

    def run(self) -> None:
        while not self.stopping.is_set() and self.failure is None:
            self.once(Path(tempfile.mkdtemp(dir=self.home)))

    def once(self, directory: Path) -> None:
        process = start(self.command, directory, self.environment)
        while process.poll() is None:
            if self.stopping.wait(0.05):
                end_tree(process)
        if process.returncode and not self.stopping.is_set():
            self.failure = f"exit {process.returncode}: {last_line(directory)}"
        shutil.rmtree(directory, ignore_errors=True)


def end_tree(process: subprocess.Popen[bytes]) -> None:
    """Ends a process and all its descendants, in whatever session they are."""
    members = {process.pid}
    for _ in range(8):
        members |= {p.pid for p in processes() if p.parent in members}
    for pid in members:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def spin(seconds: float) -> float:
    """Hashes a second of one process a core, all together."""
    command = [sys.executable, "-c", SPINNER, str(seconds)]
    cores = len(os.sched_getaffinity(0))
    running = [spinner(command) for _ in range(cores)]
    try:
        return sum(int(process.communicate()[0]) for process in running) / seconds
    finally:
        for process in running:
            process.kill()
            process.wait()


def spinner(command: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)


def measure_busy(bench: Bench, tool: Tool, tree: Tree, own_session: bool) -> Busy:
    busy = Busy(tool.name, own_session, [], [], [])
    spin(1)
    for number in range(bench.options.rounds):
        busy.alone.append(spin(bench.options.busy_seconds))
        beside, files = spin_beside(bench, tool, tree, own_session)
        busy.beside.append(beside)
        busy.files.append(files)
        say(f"busy round {number + 1}: {tool.name}: {busy.alone[-1]:.0f} -> {beside:.0f} hashes/s")
    return busy


def spin_beside(bench: Bench, tool: Tool, tree: Tree, own_session: bool) -> tuple[float, float]:
    """Hashes a second beside pfu, and the files a second that pfu uploaded meanwhile."""
    bench.sink.count(reset=True)
    uploads = Uploads(bench, tool, tree, own_session)
    uploads.start()
    try:
        while not (before := bench.sink.count()["objects"]):
            if uploads.failure:
                fail(f"{tool.name}: {uploads.failure}")
            time.sleep(0.05)
        hashes = spin(bench.options.busy_seconds)
        files = bench.sink.count()["objects"] - before
    finally:
        uploads.stopping.set()
        uploads.join()
    return hashes, files / bench.options.busy_seconds


def busy_results(bench: Bench, tools: list[Tool], tree: Tree) -> list[Busy]:
    sessions = [False, True] if shutil.which("setsid") else [False]
    return [
        measure_busy(bench, tool, tree, own_session)
        for tool in tools
        if tool.name.startswith("pfu")
        for own_session in sessions
    ]


# ---------------------------------------------------------------------------------------------
# Report
# ---------------------------------------------------------------------------------------------

COLUMNS = ("wall s (min..max)", "files/s", "MiB/s", "CPU s", "CPU us/file", "PSS MB", "runs")
WIDTHS = (22, 9, 8, 8, 13, 8, 6)
NOISE = 0.1  # a share of the machine used by others from which a figure is doubtful


def print_series(case: Case, scheme: str, found: list[Series]) -> None:
    first = found[0]
    size = f"{first.files:,} files, {first.bytes / MIB:,.0f} MiB"
    print(f"\n{case.name} over {scheme}: {case.text} ({size})")
    print(f"{'':16}" + "".join(f"{name:>{width}}" for name, width in zip(COLUMNS, WIDTHS)))
    for series in found:
        print(f"{series.tool:16}" + table_row(series), flush=True)
        if series.figures().get("other_share", 0) > NOISE:
            share = series.figures()["other_share"]
            print(f"{'':16}  doubtful: others used {share:.0%} of the machine meanwhile")
        for failure in sorted(set(series.failures)):
            print(f"{'':16}  FAILED x{series.failures.count(failure)}: {failure}")


def table_row(series: Series) -> str:
    it = series.figures()
    if not it:
        return f"{'failed' if series.runs else 'not run':>{WIDTHS[0]}}"
    cells = (
        f"{it['wall']:.2f} ({it['wall_min']:.2f}..{it['wall_max']:.2f})",
        f"{it['files_per_second']:,.0f}" if series.files > 10 else "-",
        f"{it['mib_per_second']:,.0f}",
        f"{it['cpu_seconds']:.2f}",
        f"{it['cpu_us_per_file']:,.0f}" if series.files > 10 else "-",
        f"{it['peak_pss_bytes'] / 1e6:.0f}" if it["peak_pss_bytes"] else "-",
        f"{len(series.good)}/{len(series.runs)}",
    )
    return "".join(f"{cell:>{width}}" for cell, width in zip(cells, WIDTHS))


def ratios(results: list[Series]) -> list[dict[str, Any]]:
    """Each pfu mode against the baseline: times the speed, and share of the CPU."""
    by_place = {(s.case, s.scheme, s.tool): s for s in results if s.good}
    found = []
    for (case, scheme, tool), series in by_place.items():
        base = by_place.get((case, scheme, BASELINE))
        if base and tool.startswith("pfu"):
            speed, cpu = base.wall / series.wall, series.cpu / base.cpu
            found.append({"case": case, "scheme": scheme, "tool": tool, "speed": speed, "cpu": cpu})
    return found


def print_ratios(found: list[dict[str, Any]]) -> None:
    if found:
        print(f"\nRatios of medians against {BASELINE}")
    for ratio in found:
        place = f"{ratio['case']} over {ratio['scheme']}"
        figures = f"{ratio['speed']:6.2f} x the speed, {ratio['cpu']:5.2f} of the CPU"
        print(f"{place:22}{ratio['tool']:16}{figures}")


def print_busy(found: list[Busy]) -> None:
    print("\nBusy cores: one hashing process a core at nice 0, beside pfu at its default niceness")
    for busy in found:
        session = "a session of its own" if busy.own_session else "the same session"
        files = statistics.median(busy.files)
        print(
            f"{busy.tool:16}in {session:20} loses {busy.loss_percent:5.1f} %"
            f" while pfu uploads {files:,.0f} files/s"
        )
        if max(busy.alone) > (1 + NOISE) * min(busy.alone):
            spread = f"{min(busy.alone):,.0f} to {max(busy.alone):,.0f}"
            print(f"{'':16}doubtful: alone, rounds ranged from {spread} hashes/s")


def machine() -> dict[str, Any]:
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory / GIB, 1),
        "kernel": f"{platform.system()} {platform.release()}",
        "sched_autogroup_enabled": first_line("/proc/sys/kernel/sched_autogroup_enabled"),
    }


def cpu_model() -> str:
    with open("/proc/cpuinfo") as file:
        for line in file:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def first_line(path: str) -> str | None:
    with contextlib.suppress(OSError), open(path) as file:
        return file.readline().strip()
    return None


def as_json(
    options: argparse.Namespace, tools: list[Tool], results: list[Series], busy: list[Busy]
) -> dict[str, Any]:
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(["python", *sys.argv]),
        "machine": machine(),
        "versions": {
            "python": version_of([options.python, "--version"]),
            "nginx": version_of([nginx_with_lua()[0], "-v"]),
            **{tool.name: tool.version for tool in tools},
        },
        "rounds": options.rounds,
        "scale": options.scale,
        "results": [series_json(series) for series in results],
        "ratios": ratios(results),
        "busy": [{**asdict(each), "loss_percent": each.loss_percent} for each in busy],
    }


def series_json(series: Series) -> dict[str, Any]:
    return {**asdict(series), "median": series.figures(), "failures": series.failures}


# ---------------------------------------------------------------------------------------------
# Command line
# ---------------------------------------------------------------------------------------------


def fail(message: str) -> NoReturn:
    raise SystemExit(f"compare.py: {message}")


def say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def names(allowed: Sequence[str]) -> Any:
    """An argparse type: a comma-separated choice of `allowed`."""

    def parse(text: str) -> list[str]:
        chosen = [name for name in text.split(",") if name]
        unknown = ", ".join(name for name in chosen if name not in allowed)
        if unknown or not chosen:
            raise argparse.ArgumentTypeError(f"{unknown or 'nothing'}: not of {', '.join(allowed)}")
        return chosen

    return parse


def parser() -> argparse.ArgumentParser:
    here = Path(__file__).resolve().parent
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = made.add_argument
    add("--cases", type=names(list(CASES)), default=list(CASES), help=", ".join(CASES))
    schemes = [*SCHEMES, *PROXIED]
    add("--schemes", type=names(schemes), help=f"{', '.join(schemes)} (default: by case)")
    add("--tools", type=names(TOOLS), default=list(TOOLS), help=", ".join(TOOLS))
    add("--rounds", type=int, default=5, help="timed runs of each tool (default 5)")
    add("--aws-rounds", type=int, default=1, help="timed runs of aws (default 1, no warm-up)")
    add("--scale", type=float, default=1, help="this many times the bytes, for a quick look")
    add("--busy", action="store_true", help="measure what busy cores lose to pfu, nothing else")
    add("--busy-seconds", type=float, default=5, help="time of one count (default 5)")
    add("--json", type=Path, metavar="FILE", help="write the results there as well")
    add("--work", type=Path, metavar="DIR", help="keep the trees there (default: a temporary one)")
    add("--timeout", type=float, default=900, metavar="S", help="kill a run after S seconds")
    add("--python", default=sys.executable, help="the Python with boto3 that runs pfu")
    add("--pfu", type=Path, default=here.parent / "pfu.py", metavar="FILE", help="pfu.py")
    add("--libraries", metavar="PYTHON", help=f"a Python that has {', '.join(LIBRARIES)}")
    for name in PEERS:
        add(f"--{name}", metavar="PATH", help=f"the {name} program (default: from PATH)")
    return made


def checked(options: argparse.Namespace) -> argparse.Namespace:
    if options.rounds < 1 or options.aws_rounds < 1:
        fail("--rounds and --aws-rounds: at least 1")
    if not sys.platform.startswith("linux"):
        fail("needs Linux (/proc)")
    options.pfu = options.pfu.resolve()
    return options


@contextlib.contextmanager
def working_directories(options: argparse.Namespace) -> Iterator[tuple[Path, Path]]:
    """Where trees stay (--work) and where everything else of this command lives until it ends."""
    if options.work:
        options.work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.work, prefix="compare-") as name:
        home = Path(name).resolve()
        yield (options.work.resolve() if options.work else home / "trees"), home


def compare(bench: Bench, tools: list[Tool], trees: Path) -> list[Series]:
    results = []
    for name in bench.options.cases:
        case = CASES[name].scaled(bench.options.scale)
        tree = make_tree(case, trees, bench.options.pfu.with_name("samplegen.py"))
        for scheme in bench.options.schemes or case.schemes:
            found = bench.series(tools, case, tree, scheme)
            print_series(case, scheme, found)
            results += found
    print_ratios(ratios(results))
    return results


def compare_busy(bench: Bench, tools: list[Tool], trees: Path) -> list[Busy]:
    case = CASES["small"].scaled(bench.options.scale)
    tree = make_tree(case, trees, bench.options.pfu.with_name("samplegen.py"))
    found = busy_results(bench, tools, tree)
    print_busy(found)
    return found


def run(options: argparse.Namespace) -> int:
    """Everything between the command line and the exit code: 1 if any run failed."""
    tools = find_tools(options)
    results: list[Series] = []
    busy: list[Busy] = []
    with working_directories(options) as (trees, home):
        (home / "sink").mkdir()
        with contextlib.ExitStack() as running:
            sink = running.enter_context(running_sink(home / "sink", 19 if options.busy else 0))
            if PROXIED.keys() & (options.schemes or ()):
                sink = running.enter_context(with_squid(sink))
            bench = Bench(options, sink, home)
            if options.busy:
                busy = compare_busy(bench, tools, trees)
            else:
                results = compare(bench, tools, trees)
    if options.json:
        options.json.write_text(json.dumps(as_json(options, tools, results, busy), indent=1) + "\n")
    return 1 if any(series.failures for series in results) else 0


def main() -> int:
    options = checked(parser().parse_args())
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    become_subreaper()
    raise_descriptor_limit()
    try:
        return run(options)
    except KeyboardInterrupt:
        say("interrupted; the sink and its files are gone")
        return 130


if __name__ == "__main__":
    sys.exit(main())
