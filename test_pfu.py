"""Tests of pfu, through the command line where a user would, against a distrustful server.

Sections: the S3 server; what the tests share; the main job; rerun, resume, incremental; crashes,
signals, dying workers; what a tree may hold; trouble; privacy; output; pure parts; fast lane:
signing, gate, answers; limiter; fast lane: connections, TLS, in a run; where files are read;
uploaders; large files; more trouble; README.md; other servers.
"""

from __future__ import annotations

import argparse
import asyncio
import atexit
import base64
import bisect
import calendar
import contextlib
import ctypes
import dataclasses
import errno
import fcntl
import functools
import gc
import hashlib
import heapq
import http.client
import io
import itertools
import json
import marshal
import multiprocessing
import os
import pickle
import pty
import py_compile
import random
import re
import resource
import select
import shlex
import shutil
import signal
import socket
import sqlite3
import ssl
import stat
import string
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
import traceback
import unicodedata
import warnings
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta
from email.utils import formatdate
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Callable, NamedTuple, final
from urllib.parse import parse_qsl, quote, quote_plus, unquote_to_bytes, urlsplit
from xml.etree import ElementTree
from xml.sax.saxutils import escape

import boto3
import botocore.auth
import pytest
from botocore import UNSIGNED, xform_name
from botocore.auth import S3SigV4Auth, SigV4Auth
from botocore.awsrequest import AWSRequest, AWSResponse
from botocore.config import Config
from botocore.credentials import Credentials, ReadOnlyCredentials
from botocore.loaders import create_loader

import pfu

KIB, MIB = 1 << 10, 1 << 20

# ======================================================================================
# The S3 server
# ======================================================================================
#
# It believes nothing and misbehaves on demand. It runs asyncio in a thread of its own, speaks
# path-style S3 over HTTP/1.1 (TLS if given a context) on 127.0.0.1, and answers STS
# GetCallerIdentity on the same endpoint. Every signature is computed again by botocore's own
# signer from what arrived, and every payload digest is checked, so an object that is in this
# store was signed and delivered correctly. What it stored, what it acknowledged and every request
# it saw can be read from any thread.
#
#     with S3Server(buckets=["b"]) as server:
#         server.faults.append(Fault(Action("error", 503), operation="PutObject", times=3))
#         subprocess.run([...], env={**os.environ, **server.environment()})
#         assert server.objects("b")["a/b"].body == b"..."
#
# A request passes: head, signature, permission, bucket | fault | body, digests | operation |
# answer. What fails in the first group is refused before the body is asked for; faults see only
# genuine requests.

ACCESS_KEY = "AKIDPFUTEST"
SECRET_KEY = "pfu-test-secret"
ACCOUNT = "123456789012"
MAX_SKEW = 15 * 60
MAX_HEAD = 1 << 18
MAX_KEY_BYTES = 1024
MAX_METADATA_BYTES = 2048
MAX_PARTS = 10_000
MIN_PART_SIZE = 5 << 20
READ_SIZE = 1 << 18
NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"
RESET_ON_CLOSE = struct.pack("ii", 1, 0)
UPLOADING = {"PutObject", "UploadPart"}

KEPT_HEADERS = re.compile(
    r"x-amz-meta-.*|x-amz-storage-class|x-amz-server-side-encryption.*|x-amz-tagging|x-amz-acl"
    r"|x-amz-checksum-.*|content-(type|encoding|disposition|language)|cache-control|expires"
)
NOT_RETURNED = {"x-amz-tagging", "x-amz-acl", "x-amz-checksum-algorithm", "x-amz-checksum-type"}

ERRORS = {
    400: "AccessControlListNotSupported AuthorizationHeaderMalformed BadDigest EntityTooSmall "
    "ExpiredToken InvalidArgument InvalidPart InvalidPartOrder InvalidRequest InvalidToken "
    "InvalidURI KeyTooLongError MalformedXML MetadataTooLarge XAmzContentSHA256Mismatch",
    403: "AccessDenied InvalidAccessKeyId RequestTimeTooSkewed SignatureDoesNotMatch",
    404: "NoSuchBucket NoSuchBucketPolicy NoSuchKey NoSuchPublicAccessBlockConfiguration "
    "NoSuchUpload OwnershipControlsNotFoundError",
    409: "BucketAlreadyExists BucketAlreadyOwnedByYou",
    411: "MissingContentLength",
    412: "PreconditionFailed",
    416: "InvalidRange",
    500: "InternalError",
    501: "NotImplemented",
}
STATUS = {code: status for status, codes in ERRORS.items() for code in codes.split()}


class S3Error(Exception):
    """A refusal: one of ERRORS by its code; `extra` goes into the XML."""

    def __init__(self, code: str, message: str = "refused", **extra: str) -> None:
        super().__init__(code)
        self.status, self.code, self.message, self.extra = STATUS[code], code, message, extra


@dataclass
class Answer:
    """What goes back: `headers` without Content-Length and Date, which encode() adds."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)

    def encode(self, now: float, head_only: bool = False) -> bytes:
        lines = [f"HTTP/1.1 {self.status} {http.client.responses.get(self.status, 'Odd')}"]
        fields = {"date": formatdate(now, usegmt=True), "server": "pfu-test", **self.headers}
        if self.status != 204:
            fields.setdefault("content-length", str(len(self.body)))
        lines += [f"{name}: {value}" for name, value in fields.items()]
        head = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
        return head if head_only else head + self.body


# ---------------------------------------------------------------------------
# What tests read
# ---------------------------------------------------------------------------


class LoggedRequest(NamedTuple):
    """One request, in the order in which answers ended.

    operation: as botocore names it, '' if unknown. status: 0 if no status line was sent.
    headers: lower-case names. acknowledged: the operation was done, and an answer that says so was
    written completely to the socket of a client that had not gone.
    """

    operation: str
    bucket: str
    key: str
    query: dict[str, str]
    status: int
    headers: dict[str, str]
    acknowledged: bool


@dataclass
class StoredPart:
    """One part; body is None without keep_bodies, checksum is x-amz-checksum-sha256 as sent."""

    number: int
    size: int
    sha256: str
    etag: str
    checksum: str
    body: bytes | None
    modified: float


@dataclass
class StoredObject:
    """One object. headers: lower-case, with content-type, x-amz-meta-*, storage class and so on.

    puts: how often PutObject or CompleteMultipartUpload of this key was acknowledged.
    sha256: hex; of a multipart object without keep_bodies it is that of the parts' digests, `-` and
    their number, as its parts then hold all that is known.
    """

    body: bytes | None
    size: int
    sha256: str
    etag: str
    headers: dict[str, str]
    modified: float
    puts: int = 0
    parts: tuple[StoredPart, ...] = ()


@dataclass
class StoredUpload:
    """One unfinished multipart upload."""

    upload_id: str
    key: str
    headers: dict[str, str]
    initiated: float
    parts: dict[int, StoredPart] = field(default_factory=dict)


ALL_BLOCKED = dict.fromkeys(
    ("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets"), True
)


@dataclass
class StoredBucket:
    """One bucket, private as S3 makes them; tests may change any field.

    policy_public: None means no policy. acl_groups: URIs of groups that the ACL lets READ.
    headers: those of the CreateBucket request. part_acknowledgements: (key, upload id, number).
    """

    name: str
    owner: str = ACCOUNT
    location: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    ownership: str | None = "BucketOwnerEnforced"
    public_access_block: dict[str, bool] | None = field(default_factory=ALL_BLOCKED.copy)
    policy_public: bool | None = None
    acl_groups: list[str] = field(default_factory=list)
    objects: dict[str, StoredObject] = field(default_factory=dict)
    uploads: dict[str, StoredUpload] = field(default_factory=dict)
    part_acknowledgements: Counter[tuple[str, str, int]] = field(default_factory=Counter)
    sorted_keys: list[str] | None = None

    def put(self, key: str, stored: StoredObject) -> None:
        previous = self.objects.get(key)
        if previous is None:
            self.sorted_keys = None
        else:
            stored.puts = previous.puts
        self.objects[key] = stored

    def delete(self, key: str) -> None:
        if self.objects.pop(key, None) is not None:
            self.sorted_keys = None

    def keys(self) -> list[str]:
        """In the order of their UTF-8 bytes, which is that of their code points."""
        if self.sorted_keys is None:
            self.sorted_keys = sorted(self.objects)
        return self.sorted_keys


# ---------------------------------------------------------------------------
# Faults
# ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Action:
    """One way to misbehave; `kind` is one of

    error                answers `status`, `code`, `message` with `headers` (error200: with 200)
    early_error          the same before the body is read, and closes
    redirect             answers 301 or 307 (`status`) with `region` and `endpoint` (a URL) to
                         what is not signed for `region`
    reset_before_body    RST; also reset_within_body (half of it was read), reset_after_body
    garbage              bytes that are not HTTP, and closes
    endless              headers that promise 1 MiB, then a byte each `seconds`
    and, after the operation was done,
    slow                 the answer comes `seconds` later
    trickle              its octets come one each `seconds`
    call                 calls `function` in the server's thread, then answers
    half_headers         the answer ends within its headers; half_body: before its Content-Length
    close_after          the answer, then closes though it had not said so
    lost_ack             RST instead of the answer
    """

    kind: str
    status: int = 500
    code: str = "InternalError"
    message: str = "injected"
    headers: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0
    region: str = ""
    endpoint: str = ""
    function: Callable[[], None] | None = None

    def __post_init__(self) -> None:
        if not KINDS.fullmatch(self.kind):
            raise ValueError(self.kind)


KINDS = re.compile(
    "error|error200|early_error|redirect|reset_(before|within|after)_body|garbage|endless"
    "|slow|trickle|call|half_(headers|body)|close_after|lost_ack|honest"
)


@dataclass
class Fault:
    """When to misbehave: the first fault in server.faults that matches a request is applied.

    key: a regular expression that is searched for. times: None is for ever. after: matching
    requests to let pass first. probability: by the server's seeded generator. applied: how often
    it was.
    """

    action: Action
    operation: str | None = None
    key: str | None = None
    times: int | None = None
    after: int = 0
    probability: float = 1.0
    seen: int = 0
    applied: int = 0

    def matches(self, request: Request, generator: random.Random) -> bool:
        if not self._concerns(request) or self.applied == self.times:
            return False
        self.seen += 1
        if self.seen <= self.after or generator.random() >= self.probability:
            return False
        self.applied += 1
        return True

    def _concerns(self, request: Request) -> bool:
        if self.operation not in (None, request.operation):
            return False
        if self.action.kind == "redirect" and request.scope.region == self.action.region:
            return False
        return self.key is None or re.search(self.key, request.key) is not None


# ---------------------------------------------------------------------------
# Requests
# ---------------------------------------------------------------------------


class Operation(NamedTuple):
    """level: how deep the path goes. A query must have all of required, and none but optional."""

    name: str
    method: str
    level: str
    required: frozenset[str]
    optional: frozenset[str]


def operation_table(*rows: str) -> list[Operation]:
    """Rows are `name method level required,names optional,names`, `-` for none."""
    table = []
    for row in rows:
        name, method, level, required, optional = row.split()
        needed = frozenset(required.split(",")) - {"-"}
        table.append(
            Operation(name, method, level, needed, needed | {*optional.split(","), "x-id"})
        )
    return table


OPERATIONS = operation_table(
    "PutObject PUT key - -",
    "UploadPart PUT key partNumber,uploadId -",
    "GetObject GET key - -",
    "HeadObject HEAD key - partNumber",
    "DeleteObject DELETE key - -",
    "CreateMultipartUpload POST key uploads -",
    "CompleteMultipartUpload POST key uploadId -",
    "AbortMultipartUpload DELETE key uploadId -",
    "ListParts GET key uploadId max-parts,part-number-marker,encoding-type",
    "ListObjectsV2 GET bucket list-type"
    " prefix,delimiter,continuation-token,start-after,max-keys,encoding-type,fetch-owner",
    "ListMultipartUploads GET bucket uploads"
    " prefix,key-marker,upload-id-marker,max-uploads,encoding-type",
    "CreateBucket PUT bucket - -",
    "HeadBucket HEAD bucket - -",
    "GetBucketLocation GET bucket location -",
    "PutPublicAccessBlock PUT bucket publicAccessBlock -",
    "GetPublicAccessBlock GET bucket publicAccessBlock -",
    "GetBucketPolicyStatus GET bucket policyStatus -",
    "PutBucketOwnershipControls PUT bucket ownershipControls -",
    "GetBucketOwnershipControls GET bucket ownershipControls -",
    "GetBucketAcl GET bucket acl -",
    "GetCallerIdentity POST service - -",
)


class Scope(NamedTuple):
    """What an Authorization header says."""

    access_key: str
    date: str
    region: str
    service: str
    signed_headers: tuple[str, ...]
    signature: str


AUTHORIZATION = re.compile(
    r"AWS4-HMAC-SHA256 Credential=([^/,\s]+)/(\d{8})/([^/,\s]+)/([^/,\s]+)/aws4_request,\s*"
    r"SignedHeaders=([^,\s]+),\s*Signature=([0-9a-f]{64})"
)


class Request:
    """One request as received; the body's digests grow with receive()."""

    def __init__(self, head: bytes) -> None:
        lines = decode(head, "ascii").split("\r\n")
        self.method, _, rest = lines[0].partition(" ")
        self.target, _, version = rest.rpartition(" ")
        if version != "HTTP/1.1" or not self.target.startswith("/") or "#" in self.target:
            raise S3Error("InvalidRequest", "request line")
        self.headers = parse_headers(lines[1:])
        path, _, query = self.target.partition("?")
        raw = unquote_to_bytes(path)
        self.canonical_path = quote(raw, safe="/~")
        self.bucket, _, self.key = decode(raw, "utf-8")[1:].partition("/")
        self.query_pairs = parse_query(query)
        self.query = dict(self.query_pairs)
        self.operation = operation_of(self)
        self.scope = Scope("", "", "", "", (), "")
        self.ended = False
        self._expect_body()

    def _expect_body(self) -> None:
        self.chunks: list[bytes] = []
        self.size, self.crc32 = 0, 0
        self.sha256, self.md5 = hashlib.sha256(), hashlib.md5()
        length = self.headers.get("content-length", "0")
        if "transfer-encoding" in self.headers:
            raise S3Error("NotImplemented", "Transfer-Encoding")
        if not re.fullmatch("[0-9]{1,15}", length):
            raise S3Error("InvalidRequest", "Content-Length")
        if self.method == "PUT" and "content-length" not in self.headers:
            raise S3Error("MissingContentLength")
        self.unread = int(length)

    def receive(self, chunk: bytes, keep: bool) -> None:
        self.unread -= len(chunk)
        self.size += len(chunk)
        self.sha256.update(chunk)
        self.md5.update(chunk)
        if "x-amz-checksum-crc32" in self.headers:
            self.crc32 = zlib.crc32(chunk, self.crc32)
        if keep:
            self.chunks.append(chunk)

    @property
    def body(self) -> bytes:
        return b"".join(self.chunks)

    def logged(self, status: int, acknowledged: bool) -> LoggedRequest:
        what = (self.operation, self.bucket, self.key, self.query)
        return LoggedRequest(*what, status, self.headers, acknowledged)

    @property
    def expects_continue(self) -> bool:
        return self.headers.get("expect", "").lower() == "100-continue"


def decode(text: bytes, encoding: str) -> str:
    try:
        return text.decode(encoding)
    except UnicodeDecodeError as error:
        raise S3Error("InvalidURI", f"not {encoding}") from error


def unquoted(text: str) -> str:
    return decode(unquote_to_bytes(text), "utf-8")


def parse_headers(lines: list[str]) -> dict[str, str]:
    """Names in lower case; values of repeated names joined by commas, as they are signed."""
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name):
            raise S3Error("InvalidRequest", "header line")
        name, value = name.lower(), value.strip(" \t")
        headers[name] = f"{headers[name]},{value}" if name in headers else value
    return headers


def parse_query(query: str) -> list[tuple[str, str]]:
    pairs = []
    for pair in query.split("&") if query else ():
        name, _, value = pair.partition("=")
        pairs.append((unquoted(name), unquoted(value)))
    return pairs


def operation_of(request: Request) -> str:
    level = "key" if request.key else "bucket" if request.bucket else "service"
    names = request.query.keys()
    if "x-amz-copy-source" in request.headers:
        return ""
    found = (
        row.name
        for row in OPERATIONS
        if row[1:3] == (request.method, level) and row.required <= names <= row.optional
    )
    return next(found, "")


# ---------------------------------------------------------------------------
# Verification
# ---------------------------------------------------------------------------


def parse_authorization(request: Request) -> Scope:
    header = request.headers.get("authorization")
    if header is None:
        raise S3Error("AccessDenied", "not signed")
    match = AUTHORIZATION.fullmatch(header)
    if match is None:
        raise S3Error("AuthorizationHeaderMalformed")
    access_key, date, region, service, signed, signature = match.groups()
    return Scope(access_key, date, region, service, tuple(signed.split(";")), signature)


def expected_signature(request: Request, scope: Scope, secret: str) -> str:
    """botocore's signature of what arrived: the path and query encoded anew, the signed headers."""
    signer_class = S3SigV4Auth if scope.service == "s3" else SigV4Auth
    signer = signer_class(Credentials(scope.access_key, secret), scope.service, scope.region)
    replica = AWSRequest(
        method=request.method,
        url=f"http://{request.headers['host']}{request.canonical_path}",
        headers={name: request.headers[name] for name in scope.signed_headers},
        params=dict(request.query_pairs),
        data=request.body,
    )
    replica.context["timestamp"] = request.headers["x-amz-date"]
    text = signer.string_to_sign(replica, signer.canonical_request(replica))
    return str(signer.signature(text, replica))


def check_signature(request: Request, secret: str) -> None:
    scope = request.scope
    must = {n for n in request.headers if n.startswith("x-amz-") or n in ("host", "content-md5")}
    if missing := (must | {"host", "x-amz-date"}).difference(scope.signed_headers):
        raise S3Error("AccessDenied", f"not signed: {', '.join(sorted(missing))}")
    if absent := set(scope.signed_headers).difference(request.headers):
        raise S3Error("SignatureDoesNotMatch", f"absent: {', '.join(sorted(absent))}")
    if expected_signature(request, scope, secret) != scope.signature:
        raise S3Error("SignatureDoesNotMatch")


def check_date(request: Request, now: float) -> None:
    stamp = request.headers.get("x-amz-date", "")
    if not re.fullmatch(r"\d{8}T\d{6}Z", stamp) or stamp[:8] != request.scope.date:
        raise S3Error("AccessDenied", "x-amz-date")
    if abs(calendar.timegm(time.strptime(stamp, "%Y%m%dT%H%M%SZ")) - now) > MAX_SKEW:
        server_time = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now))
        raise S3Error("RequestTimeTooSkewed", RequestTime=stamp, ServerTime=server_time)


def check_payload_header(request: Request, unsigned_allowed: bool) -> None:
    digest = request.headers.get("x-amz-content-sha256", "")
    chunked = "aws-chunked" in request.headers.get("content-encoding", "")
    if chunked or digest.startswith("STREAMING-") or "x-amz-trailer" in request.headers:
        raise S3Error("NotImplemented", "aws-chunked")
    if digest == "UNSIGNED-PAYLOAD" and unsigned_allowed:
        return
    if not re.fullmatch("[0-9a-f]{64}", digest):
        raise S3Error("InvalidRequest", "x-amz-content-sha256")


def check_payload(request: Request) -> None:
    """Every digest that the request carries against the body that arrived."""
    claimed = request.headers.get("x-amz-content-sha256")
    if claimed not in (None, "UNSIGNED-PAYLOAD", request.sha256.hexdigest()):
        raise S3Error("XAmzContentSHA256Mismatch")
    digests = {
        "content-md5": request.md5.digest(),
        "x-amz-checksum-sha256": request.sha256.digest(),
        "x-amz-checksum-crc32": struct.pack(">I", request.crc32),
    }
    for name, digest in digests.items():
        if request.headers.get(name) not in (None, encode64(digest)):
            raise S3Error("BadDigest", name)
    for name in request.headers:
        if re.fullmatch("x-amz-checksum-(crc32c|crc64nvme|sha1)", name):
            raise S3Error("NotImplemented", name)


def encode64(digest: bytes) -> str:
    return base64.b64encode(digest).decode("ascii")


# ---------------------------------------------------------------------------
# XML
# ---------------------------------------------------------------------------


def xml(tag: str, content: Any) -> str:
    """content: text, a bool, a number, or a list of (tag with its attributes, content)."""
    if isinstance(content, list):
        inner = "".join(xml(*child) for child in content)
    elif isinstance(content, bool):
        inner = str(content).lower()
    else:
        inner = escape(str(content), {"\n": "&#10;", "\r": "&#13;", "\t": "&#9;"})
    return f"<{tag}>{inner}</{tag.partition(' ')[0]}>"


def document(tag: str, content: Any, namespace: str = NAMESPACE) -> Answer:
    text = xml(f'{tag} xmlns="{namespace}"' if namespace else tag, content)
    body = f'<?xml version="1.0" encoding="UTF-8"?>\n{text}'.encode()
    return Answer(200, body, {"content-type": "application/xml"})


def error_answer(request: Request | None, error: S3Error) -> Answer:
    fields = [("Code", error.code), ("Message", error.message), *error.extra.items()]
    if request is not None and request.scope.service == "sts":
        answer = document("ErrorResponse", [("Error", [("Type", "Sender"), *fields])], "")
    else:
        resource = request.canonical_path if request else ""
        answer = document("Error", [*fields, ("Resource", resource)], "")
    answer.status = error.status
    return answer


def parse_xml(body: bytes) -> ElementTree.Element:
    """The document with its namespaces taken off."""
    try:
        root = ElementTree.fromstring(body)
    except ElementTree.ParseError as error:
        raise S3Error("MalformedXML") from error
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
    return root


def iso_time(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(seconds))


def number_of(query: dict[str, str], name: str, default: int, most: int) -> int:
    """A number from the query, cut at `most`."""
    text = query.get(name) or str(default)
    if not re.fullmatch("[0-9]{1,9}", text):
        raise S3Error("InvalidArgument", name)
    return min(int(text), most)


def key_encoder(query: dict[str, str]) -> Callable[[str], str]:
    if "encoding-type" not in query:
        return str
    if query["encoding-type"] != "url":
        raise S3Error("InvalidArgument", "encoding-type")
    return lambda key: quote_plus(key, safe="/")


# ---------------------------------------------------------------------------
# The store: one method an operation
# ---------------------------------------------------------------------------


class Store:
    """Buckets and what S3 does with them; each operation takes a request and returns its answer."""

    def __init__(self, account: str, min_part_size: int, keep_bodies: bool) -> None:
        self.account = account
        self.min_part_size = min_part_size
        self.keep_bodies = keep_bodies
        self.buckets: dict[str, StoredBucket] = {}
        self.now: Callable[[], float] = time.time
        self._numbers = itertools.count(1)

    def perform(self, request: Request) -> Answer:
        operation: Callable[[Request], Answer] = getattr(self, xform_name(request.operation))
        return operation(request)

    def check_bucket(self, request: Request) -> None:
        if request.operation in ("CreateBucket", "GetCallerIdentity"):
            return
        expected = request.headers.get("x-amz-expected-bucket-owner")
        if expected not in (None, self.bucket(request.bucket).owner):
            raise S3Error("AccessDenied", "expected bucket owner")

    def bucket(self, name: str) -> StoredBucket:
        if name not in self.buckets:
            raise S3Error("NoSuchBucket", BucketName=name)
        return self.buckets[name]

    def put_object(self, request: Request) -> Answer:
        bucket = self.bucket(request.bucket)
        self._check_condition(bucket, request)
        headers = self._kept_headers(bucket, request)
        etag = self._etag(request.md5.digest(), headers)
        body = request.body if self.keep_bodies else None
        digest = request.sha256.hexdigest()
        bucket.put(request.key, StoredObject(body, request.size, digest, etag, headers, self.now()))
        return Answer(headers={"etag": f'"{etag}"', **returned(headers, "x-amz-")})

    @staticmethod
    def _check_condition(bucket: StoredBucket, request: Request) -> None:
        condition = request.headers.get("if-none-match")
        if "if-match" in request.headers or condition not in (None, "*"):
            raise S3Error("NotImplemented", "condition")
        if condition == "*" and request.key in bucket.objects:
            raise S3Error("PreconditionFailed", Condition="If-None-Match")

    @staticmethod
    def _kept_headers(bucket: StoredBucket, request: Request) -> dict[str, str]:
        if len(request.key.encode()) > MAX_KEY_BYTES:
            raise S3Error("KeyTooLongError")
        kept = {name: value for name, value in request.headers.items() if KEPT_HEADERS.match(name)}
        metadata = {n[11:]: v for n, v in kept.items() if n.startswith("x-amz-meta-")}
        if sum(len(name) + len(value) for name, value in metadata.items()) > MAX_METADATA_BYTES:
            raise S3Error("MetadataTooLarge")
        acl_is_off = bucket.ownership == "BucketOwnerEnforced"
        if acl_is_off and kept.get("x-amz-acl") not in (None, "bucket-owner-full-control"):
            raise S3Error("AccessControlListNotSupported")
        kept.setdefault("content-type", "binary/octet-stream")
        return kept

    @staticmethod
    def _etag(md5: bytes, headers: dict[str, str]) -> str:
        """The MD5, unless KMS encrypts."""
        encryption = headers.get("x-amz-server-side-encryption", "")
        return hashlib.md5(b"kms" + md5).hexdigest() if "kms" in encryption else md5.hex()

    def _object(self, request: Request) -> StoredObject:
        stored = self.bucket(request.bucket).objects.get(request.key)
        if stored is None:
            raise S3Error("NoSuchKey")
        return stored

    def head_object(self, request: Request) -> Answer:
        stored = self._object(request)
        answer = Answer(headers=returned(stored.headers))
        number = int(request.query.get("partNumber", 0))
        size = stored.parts[number - 1].size if number and stored.parts else stored.size
        answer.headers["content-length"] = str(size)
        answer.headers["etag"] = f'"{stored.etag}"'
        answer.headers["last-modified"] = formatdate(stored.modified, usegmt=True)
        return answer

    def get_object(self, request: Request) -> Answer:
        body = self._object(request).body
        if body is None:
            raise S3Error("NotImplemented", "bodies are not kept")
        answer = self.head_object(request)
        if "range" in request.headers:
            first, last = byte_range(request.headers["range"], len(body))
            answer.status = 206
            answer.headers["content-range"] = f"bytes {first}-{last}/{len(body)}"
            body = body[first : last + 1]
        answer.body = body
        answer.headers["content-length"] = str(len(body))
        return answer

    def delete_object(self, request: Request) -> Answer:
        self.bucket(request.bucket).delete(request.key)
        return Answer(204)

    def list_objects_v2(self, request: Request) -> Answer:
        query, encode = request.query, key_encoder(request.query)
        bucket, prefix = self.bucket(request.bucket), query.get("prefix", "")
        limit = number_of(query, "max-keys", 1000, 1000)
        delimiter, start = query.get("delimiter", ""), list_start(query)
        found = names_after(bucket.keys(), prefix, start, delimiter, limit + 1)
        keys, truncated = found[:limit], len(found) > limit > 0
        fields: list[tuple[str, Any]] = [("Name", bucket.name), ("Prefix", encode(prefix))]
        fields += [("KeyCount", len(keys)), ("MaxKeys", limit), ("IsTruncated", truncated)]
        if "encoding-type" in query:
            fields.append(("EncodingType", "url"))
        if truncated:
            fields.append(("NextContinuationToken", encode64(keys[-1].encode())))
        for key in keys:
            if delimiter and key.endswith(delimiter):
                fields.append(("CommonPrefixes", [("Prefix", encode(key))]))
                continue
            stored = bucket.objects[key]
            entry = listed("Key", encode(key), stored.etag, stored.size, stored.modified)
            storage_class = stored.headers.get("x-amz-storage-class", "STANDARD")
            fields.append(("Contents", [*entry, ("StorageClass", storage_class)]))
        return document("ListBucketResult", fields)

    def create_multipart_upload(self, request: Request) -> Answer:
        bucket = self.bucket(request.bucket)
        headers = self._kept_headers(bucket, request)
        if headers.get("x-amz-checksum-algorithm", "SHA256") != "SHA256":
            raise S3Error("NotImplemented", "checksum algorithm")
        upload_id = f"{next(self._numbers):08d}-{random.getrandbits(64):016x}"
        bucket.uploads[upload_id] = StoredUpload(upload_id, request.key, headers, self.now())
        fields = [("Bucket", bucket.name), ("Key", request.key), ("UploadId", upload_id)]
        return document("InitiateMultipartUploadResult", fields)

    def _upload(self, request: Request) -> StoredUpload:
        upload = self.bucket(request.bucket).uploads.get(request.query["uploadId"])
        if upload is None or upload.key != request.key:
            raise S3Error("NoSuchUpload", UploadId=request.query["uploadId"])
        return upload

    def upload_part(self, request: Request) -> Answer:
        upload = self._upload(request)
        number = number_of(request.query, "partNumber", 0, MAX_PARTS + 1)
        if not 1 <= number <= MAX_PARTS:
            raise S3Error("InvalidArgument", "partNumber")
        checksum = request.headers.get("x-amz-checksum-sha256", "")
        if "x-amz-checksum-algorithm" in upload.headers and not checksum:
            raise S3Error("InvalidRequest", "the upload was begun with SHA256, the part has none")
        etag = self._etag(request.md5.digest(), upload.headers)
        body = request.body if self.keep_bodies else None
        upload.parts[number] = StoredPart(
            number, request.size, request.sha256.hexdigest(), etag, checksum, body, self.now()
        )
        return Answer(headers={"etag": f'"{etag}"'})

    def complete_multipart_upload(self, request: Request) -> Answer:
        bucket, upload = self.bucket(request.bucket), self._upload(request)
        self._check_condition(bucket, request)
        parts = self._completed_parts(request, upload)
        etag = hashlib.md5(b"".join(bytes.fromhex(part.etag) for part in parts)).hexdigest()
        stored = joined(parts, f"{etag}-{len(parts)}", upload.headers, self.now())
        del bucket.uploads[upload.upload_id]
        bucket.put(upload.key, stored)
        fields = [("Bucket", bucket.name), ("Key", upload.key), ("ETag", f'"{stored.etag}"')]
        return document("CompleteMultipartUploadResult", fields)

    def _completed_parts(self, request: Request, upload: StoredUpload) -> list[StoredPart]:
        """The parts that the body names: all there, in ascending order, large enough."""
        root = parse_xml(request.body)
        elements = root.findall("Part")
        if root.tag != "CompleteMultipartUpload" or not elements:
            raise S3Error("MalformedXML")
        parts = [named_part(element, upload) for element in elements]
        numbers = [part.number for part in parts]
        if sorted(set(numbers)) != numbers:
            raise S3Error("InvalidPartOrder")
        for part in parts[:-1]:
            if part.size < self.min_part_size:
                raise S3Error("EntityTooSmall", PartNumber=str(part.number))
        return parts

    def abort_multipart_upload(self, request: Request) -> Answer:
        upload = self._upload(request)
        del self.bucket(request.bucket).uploads[upload.upload_id]
        return Answer(204)

    def list_parts(self, request: Request) -> Answer:
        upload, query = self._upload(request), request.query
        limit = number_of(query, "max-parts", 1000, 1000)
        marker = number_of(query, "part-number-marker", 0, MAX_PARTS)
        numbers = sorted(number for number in upload.parts if number > marker)
        shown = numbers[:limit]
        fields: list[tuple[str, Any]] = [("Bucket", request.bucket)]
        fields += [("Key", key_encoder(query)(upload.key)), ("UploadId", upload.upload_id)]
        fields += [("PartNumberMarker", marker), ("MaxParts", limit)]
        fields += [("IsTruncated", len(numbers) > limit)]
        fields += [("NextPartNumberMarker", shown[-1] if shown else marker)]
        for part in (upload.parts[number] for number in shown):
            entry = listed("PartNumber", str(part.number), part.etag, part.size, part.modified)
            checksum = [("ChecksumSHA256", part.checksum)] if part.checksum else []
            fields.append(("Part", [*entry, *checksum]))
        return document("ListPartsResult", fields)

    def list_multipart_uploads(self, request: Request) -> Answer:
        query, encode = request.query, key_encoder(request.query)
        bucket, prefix = self.bucket(request.bucket), query.get("prefix", "")
        limit = number_of(query, "max-uploads", 1000, 1000)
        marker = (query.get("key-marker", ""), query.get("upload-id-marker") or "\U0010ffff")
        found = sorted((u.key, u.upload_id) for u in bucket.uploads.values())
        found = [pair for pair in found if pair[0].startswith(prefix) and pair > marker]
        shown, truncated = found[:limit], len(found) > limit > 0
        fields: list[tuple[str, Any]] = [("Bucket", bucket.name), ("IsTruncated", truncated)]
        fields += [("Prefix", encode(prefix)), ("MaxUploads", limit)]
        if truncated:
            fields += [
                ("NextKeyMarker", encode(shown[-1][0])),
                ("NextUploadIdMarker", shown[-1][1]),
            ]
        for key, upload_id in shown:
            initiated = ("Initiated", iso_time(bucket.uploads[upload_id].initiated))
            fields.append(("Upload", [("Key", encode(key)), ("UploadId", upload_id), initiated]))
        return document("ListMultipartUploadsResult", fields)

    def create_bucket(self, request: Request) -> Answer:
        existing = self.buckets.get(request.bucket)
        if existing is not None:
            mine = existing.owner == self.account
            raise S3Error("BucketAlreadyOwnedByYou" if mine else "BucketAlreadyExists")
        location = ""
        if request.size:
            location = parse_xml(request.body).findtext("LocationConstraint") or ""
        ownership = request.headers.get("x-amz-object-ownership", "BucketOwnerEnforced")
        self.buckets[request.bucket] = StoredBucket(
            request.bucket, self.account, location, request.headers, ownership
        )
        return Answer(headers={"location": f"/{request.bucket}"})

    def head_bucket(self, request: Request) -> Answer:
        location = self.bucket(request.bucket).location
        return Answer(headers={"x-amz-bucket-region": location or "us-east-1"})

    def get_bucket_location(self, request: Request) -> Answer:
        return document("LocationConstraint", self.bucket(request.bucket).location)

    def put_public_access_block(self, request: Request) -> Answer:
        root = parse_xml(request.body)
        flags = {name: root.findtext(name, "false").lower() == "true" for name in ALL_BLOCKED}
        self.bucket(request.bucket).public_access_block = flags
        return Answer()

    def get_public_access_block(self, request: Request) -> Answer:
        flags = self.bucket(request.bucket).public_access_block
        if flags is None:
            raise S3Error("NoSuchPublicAccessBlockConfiguration")
        return document("PublicAccessBlockConfiguration", list(flags.items()))

    def get_bucket_policy_status(self, request: Request) -> Answer:
        public = self.bucket(request.bucket).policy_public
        if public is None:
            raise S3Error("NoSuchBucketPolicy")
        return document("PolicyStatus", [("IsPublic", public)])

    def put_bucket_ownership_controls(self, request: Request) -> Answer:
        ownership = parse_xml(request.body).findtext("Rule/ObjectOwnership")
        if ownership is None:
            raise S3Error("MalformedXML")
        self.bucket(request.bucket).ownership = ownership
        return Answer()

    def get_bucket_ownership_controls(self, request: Request) -> Answer:
        ownership = self.bucket(request.bucket).ownership
        if ownership is None:
            raise S3Error("OwnershipControlsNotFoundError")
        return document("OwnershipControls", [("Rule", [("ObjectOwnership", ownership)])])

    def get_bucket_acl(self, request: Request) -> Answer:
        bucket = self.bucket(request.bucket)
        grants = [("Grant", grant("CanonicalUser", "ID", bucket.owner, "FULL_CONTROL"))]
        grants += [("Grant", grant("Group", "URI", uri, "READ")) for uri in bucket.acl_groups]
        fields = [("Owner", [("ID", bucket.owner)]), ("AccessControlList", grants)]
        return document("AccessControlPolicy", fields)

    def get_caller_identity(self, request: Request) -> Answer:
        form = dict(parse_qsl(request.body.decode("utf-8", "replace")))
        if request.scope.service != "sts" or form.get("Action") != "GetCallerIdentity":
            raise S3Error("NotImplemented")
        arn = f"arn:aws:iam::{self.account}:user/pfu"
        fields = [("Arn", arn), ("UserId", "AIDAPFUTEST"), ("Account", self.account)]
        result = [("GetCallerIdentityResult", fields)]
        namespace = "https://sts.amazonaws.com/doc/2011-06-15/"
        return document("GetCallerIdentityResponse", result, namespace)


def returned(headers: dict[str, str], prefix: str = "") -> dict[str, str]:
    """The stored headers that an answer repeats."""
    shown = {n: v for n, v in headers.items() if n.startswith(prefix) and n not in NOT_RETURNED}
    if prefix:
        shown = {n: v for n, v in shown.items() if not n.startswith("x-amz-meta-")}
    if shown.get("x-amz-storage-class") == "STANDARD":
        del shown["x-amz-storage-class"]
    return shown


def byte_range(header: str, size: int) -> tuple[int, int]:
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", header)
    if match is None or not any(match.groups()):
        raise S3Error("InvalidArgument", "Range")
    if not match[1]:
        return max(0, size - int(match[2])), size - 1
    first, last = int(match[1]), min(int(match[2] or size), size - 1)
    if first > last:
        raise S3Error("InvalidRange")
    return first, last


def list_start(query: dict[str, str]) -> str:
    """The key after which a listing goes on."""
    if "continuation-token" not in query:
        return query.get("start-after", "")
    try:
        return base64.b64decode(query["continuation-token"], validate=True).decode("utf-8")
    except ValueError as error:
        raise S3Error("InvalidArgument", "continuation-token") from error


def keys_after(keys: list[str], prefix: str, start: str, limit: int) -> list[str]:
    first = max(bisect.bisect_right(keys, start), bisect.bisect_left(keys, prefix))
    chosen = keys[first : first + limit]
    return [key for key in chosen if key.startswith(prefix)]


def names_after(keys: list[str], prefix: str, start: str, delimiter: str, limit: int) -> list[str]:
    """Keys, and what those that have the delimiter behind the prefix have up to it."""
    if not delimiter:
        return keys_after(keys, prefix, start, limit)
    names: dict[str, None] = {}
    for key in keys_after(keys, prefix, "", len(keys)):
        cut = key.find(delimiter, len(prefix))
        name = key if cut < 0 else key[: cut + len(delimiter)]
        if name > start:
            names[name] = None
    return list(names)[:limit]


def listed(tag: str, key: str, etag: str, size: int, modified: float) -> list[tuple[str, Any]]:
    fields: list[tuple[str, Any]] = [(tag, key), ("LastModified", iso_time(modified))]
    return [*fields, ("ETag", f'"{etag}"'), ("Size", size)]


def grant(kind: str, field_name: str, grantee: str, permission: str) -> list[tuple[str, Any]]:
    schema = "http://www.w3.org/2001/XMLSchema-instance"
    tag = f'Grantee xmlns:xsi="{schema}" xsi:type="{kind}"'
    return [(tag, [(field_name, grantee)]), ("Permission", permission)]


def named_part(element: ElementTree.Element, upload: StoredUpload) -> StoredPart:
    """The uploaded part that an element of the CompleteMultipartUpload body means."""
    number, etag = element.findtext("PartNumber", ""), element.findtext("ETag", "").strip('"')
    part = upload.parts.get(int(number)) if number.isdigit() else None
    if part is None or part.etag != etag:
        raise S3Error("InvalidPart", PartNumber=number)
    checksum = element.findtext("ChecksumSHA256")
    if checksum not in (None, part.checksum):
        raise S3Error("InvalidPart", "checksum", PartNumber=number)
    if checksum is None and "x-amz-checksum-algorithm" in upload.headers:
        raise S3Error("InvalidRequest", "the upload was begun with SHA256")
    return part


def joined(parts: list[StoredPart], etag: str, headers: dict[str, str], now: float) -> StoredObject:
    bodies = [part.body for part in parts if part.body is not None]
    body = b"".join(bodies) if len(bodies) == len(parts) else None
    if body is None:
        digests = b"".join(bytes.fromhex(part.sha256) for part in parts)
        sha256 = f"{hashlib.sha256(digests).hexdigest()}-{len(parts)}"
    else:
        sha256 = hashlib.sha256(body).hexdigest()
    size = sum(part.size for part in parts)
    if "x-amz-checksum-algorithm" in headers:
        digests = b"".join(base64.b64decode(part.checksum) for part in parts)
        composite = f"{encode64(hashlib.sha256(digests).digest())}-{len(parts)}"
        headers = {**headers, "x-amz-checksum-sha256": composite}
    return StoredObject(body, size, sha256, etag, headers, now, parts=tuple(parts))


# ---------------------------------------------------------------------------
# The server
# ---------------------------------------------------------------------------


class Connection(NamedTuple):
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def is_flushed(self) -> bool:
        transport = self.writer.transport
        return not transport.is_closing() and not transport.get_write_buffer_size()

    async def send(self, octets: bytes) -> None:
        self.writer.write(octets)
        await self.writer.drain()

    def reset(self) -> None:
        raw: socket.socket = self.writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        self.writer.transport.abort()


class S3Server:
    """The server; all its settings below may be changed while it runs.

    endpoint: URL. faults: see Fault. deny, not_implemented: operations answered 403 and 501.
    expired_tokens: session tokens answered ExpiredToken. clock_offset: seconds its clock is ahead.
    verify_signatures, verify_payloads: off only to prove that a test would notice.
    log: every request. connections: accepted so far. peak_in_flight: requests served at once.
    crashes: tracebacks of the server's own errors; leaving the context raises them.
    """

    def __init__(
        self,
        buckets: tuple[str, ...] | list[str] = (),
        credentials: dict[str, tuple[str, str | None]] | None = None,
        account: str = ACCOUNT,
        port: int = 0,
        tls: ssl.SSLContext | None = None,
        keep_bodies: bool = True,
        keep_log: bool = True,
        min_part_size: int = MIN_PART_SIZE,
        allow_unsigned_payload: bool = False,
        seed: int = 0,
    ) -> None:
        self.credentials = credentials or {ACCESS_KEY: (SECRET_KEY, None)}
        self.keep_log, self.allow_unsigned_payload = keep_log, allow_unsigned_payload
        self.verify_signatures = self.verify_payloads = True
        self.faults: list[Fault] = []
        self.deny: set[str] = set()
        self.not_implemented: set[str] = set()
        self.expired_tokens: set[str] = set()
        self.clock_offset = 0.0
        self.random = random.Random(seed)
        self.crashes: list[str] = []
        self.connections = self.in_flight = self.peak_in_flight = 0
        self.endpoint = ""
        self._log: list[LoggedRequest] = []
        self._counts: Counter[str] = Counter()
        self._acknowledged: Counter[str] = Counter()
        self._port, self._tls = port, tls
        self._lock = threading.RLock()
        self._store = Store(account, min_part_size, keep_bodies)
        self._store.now = self.now
        for name in buckets:
            self.add_bucket(name)

    def __enter__(self) -> S3Server:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.stop()
        self._store.buckets.clear()  # or it waits for the garbage collector, and makes forks slow
        self._log.clear()
        if self.crashes and kind is None:
            raise RuntimeError("the S3 server failed:\n" + "\n".join(self.crashes))

    def start(self) -> S3Server:
        listener = socket.create_server(("127.0.0.1", self._port), backlog=1024)
        scheme = "https" if self._tls else "http"
        self.endpoint = f"{scheme}://127.0.0.1:{listener.getsockname()[1]}"
        self._ready, self._tasks = threading.Event(), set[Any]()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._main(listener)), name="s3server", daemon=True
        )
        self._thread.start()
        self._ready.wait(10)
        return self

    def stop(self) -> None:
        """Drops all connections; returns within 5 s whatever happens."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stopped.set)
            self._thread.join(5)

    def environment(self) -> dict[str, str]:
        """AWS_* variables with the first of the credentials, for a process that sees no others."""
        access_key, (secret, token) = next(iter(self.credentials.items()))
        variables = {
            "AWS_ACCESS_KEY_ID": access_key,
            "AWS_SECRET_ACCESS_KEY": secret,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": "/dev/null",
            "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        }
        return {**variables, "AWS_SESSION_TOKEN": token} if token else variables

    def now(self) -> float:
        return time.time() + self.clock_offset

    def add_bucket(self, name: str, owner: str | None = None) -> StoredBucket:
        with self._lock:
            bucket = StoredBucket(name, owner or self._store.account)
            return self._store.buckets.setdefault(name, bucket)

    def bucket(self, name: str) -> StoredBucket | None:
        with self._lock:
            return self._store.buckets.get(name)

    def objects(self, bucket: str) -> dict[str, StoredObject]:
        with self._lock:
            return dict(self._store.bucket(bucket).objects)

    def uploads(self, bucket: str) -> dict[str, StoredUpload]:
        """Unfinished multipart uploads by upload id."""
        with self._lock:
            return dict(self._store.bucket(bucket).uploads)

    def part_acknowledgements(self, bucket: str) -> Counter[tuple[str, str, int]]:
        """How often each (key, upload id, part number) was acknowledged."""
        with self._lock:
            return self._store.bucket(bucket).part_acknowledgements.copy()

    @property
    def log(self) -> list[LoggedRequest]:
        with self._lock:
            return list(self._log)

    def clear_log(self) -> None:
        with self._lock:
            self._log.clear()

    def count(self, operation: str | None = None) -> int:
        """Requests that ended, of one operation or of all."""
        with self._lock:
            return sum(self._counts.values()) if operation is None else self._counts[operation]

    def counts(self) -> dict[str, int]:
        with self._lock:
            return dict(self._counts)

    def acknowledged(self, operation: str) -> int:
        """Requests of one operation whose success was sent."""
        with self._lock:
            return self._acknowledged[operation]

    def wait_for(self, operation: str | None, requests: int, timeout: float = 10) -> bool:
        """Whether that many requests ended within `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while self.count(operation) < requests:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.002)
        return True

    async def _main(self, listener: socket.socket) -> None:
        self._loop, self._stopped = asyncio.get_running_loop(), asyncio.Event()
        self._loop.set_exception_handler(self._loop_failed)
        server = await asyncio.start_server(
            self._serve, sock=listener, ssl=self._tls, limit=MAX_HEAD
        )
        self._ready.set()
        await self._stopped.wait()
        server.close()
        for task in list(self._tasks):
            task.cancel()

    def _loop_failed(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Failed handshakes and broken connections are the client's, all else is the server's."""
        if not isinstance(context.get("exception"), OSError):
            self.crashes.append(f"{context}")

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task, connection = asyncio.current_task(), Connection(reader, writer)
        self._tasks.add(task)
        self.connections += 1
        writer.transport.set_write_buffer_limits(high=1 if self._tls else 0, low=0)
        try:
            while await self._exchange(connection):
                pass
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            writer.transport.abort()
        except asyncio.CancelledError:
            writer.transport.abort()
        except Exception:  # noqa: BLE001
            self.crashes.append(traceback.format_exc())
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _exchange(self, connection: Connection) -> bool:
        """One request and its answer; whether another may follow on the connection."""
        head = await connection.reader.readuntil(b"\r\n\r\n")
        try:
            request = Request(head[:-4])
        except S3Error as error:
            answer = error_answer(None, error)
            answer.headers["connection"] = "close"
            await connection.send(answer.encode(self.now()))
            return False
        self.in_flight += 1
        self.peak_in_flight = max(self.peak_in_flight, self.in_flight)
        try:
            return await self._answer(connection, request)
        except (OSError, asyncio.IncompleteReadError):
            self._record(request, 0, False)
            raise
        finally:
            self.in_flight -= 1

    async def _answer(self, connection: Connection, request: Request) -> bool:
        if request.bucket == "":
            await self._read_body(connection, request)
        refusal = self._attempt(request, self._admit)
        if refusal is not None:
            return await self._refuse(connection, request, refusal)
        fault = next((f for f in list(self.faults) if f.matches(request, self.random)), None)
        action = fault.action if fault else HONEST
        if action.kind.startswith("reset"):
            return await self._reset(connection, request, action.kind)
        if action.kind == "early_error":
            return await self._send_last(connection, request, injected(request, action))
        await self._read_body(connection, request)
        if action.kind in ("error", "error200", "redirect"):
            return await self._send(connection, request, injected(request, action), done=False)
        if action.kind in ("garbage", "endless"):
            return await self._babble(connection, request, action)
        answer = self._attempt(request, self._perform) or Answer()
        return await self._finish(connection, request, action, answer)

    def _attempt(self, request: Request, step: Callable[[Request], Answer | None]) -> Answer | None:
        try:
            with self._lock:
                return step(request)
        except S3Error as error:
            return error_answer(request, error)
        except Exception:  # noqa: BLE001
            self.crashes.append(traceback.format_exc())
            return error_answer(request, S3Error("InternalError"))

    def _admit(self, request: Request) -> None:
        """Everything that the head alone decides."""
        self._authenticate(request)
        if not request.operation or request.operation in self.not_implemented:
            raise S3Error("NotImplemented", f"{request.method} {request.target}")
        if request.operation in self.deny:
            raise S3Error("AccessDenied", request.operation)
        if request.scope.service == "s3":
            check_payload_header(request, self.allow_unsigned_payload)
        self._store.check_bucket(request)

    def _authenticate(self, request: Request) -> None:
        request.scope = parse_authorization(request)
        access_key, given = request.scope.access_key, request.headers.get("x-amz-security-token")
        if request.scope.service not in ("s3", "sts"):
            raise S3Error("AuthorizationHeaderMalformed", "service")
        if access_key not in self.credentials:
            raise S3Error("InvalidAccessKeyId", AWSAccessKeyId=access_key)
        secret, token = self.credentials[access_key]
        if given is not None and given in self.expired_tokens:
            raise S3Error("ExpiredToken")
        if given != token:
            raise S3Error("InvalidToken" if given else "InvalidAccessKeyId")
        check_date(request, self.now())
        if self.verify_signatures:
            check_signature(request, secret)

    def _perform(self, request: Request) -> Answer:
        if self.verify_payloads:
            check_payload(request)
        return self._store.perform(request)

    async def _read_body(
        self, connection: Connection, request: Request, leave: int = 0, keep: bool = True
    ) -> None:
        """Reads the body but its last `leave` octets; says 100 Continue first if awaited."""
        if request.unread and request.expects_continue:
            await connection.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        keep = keep and (self._store.keep_bodies or request.operation not in UPLOADING)
        while request.unread > leave:
            chunk = await connection.reader.read(min(request.unread - leave, READ_SIZE))
            if not chunk:
                raise ConnectionResetError
            request.receive(chunk, keep)

    async def _refuse(self, connection: Connection, request: Request, answer: Answer) -> bool:
        """Before the body if the client waits for a word, else after it so that it is heard."""
        if request.unread and request.expects_continue:
            return await self._send_last(connection, request, answer)
        await self._read_body(connection, request, keep=False)
        return await self._send(connection, request, answer, done=False)

    async def _send(
        self, connection: Connection, request: Request, answer: Answer, done: bool
    ) -> bool:
        """Sends and records; under one lock, so that who has the answer finds the record."""
        octets = answer.encode(self.now(), request.method == "HEAD")
        done = done and answer.status < 300 and not connection.reader.at_eof()
        with self._lock:
            connection.writer.write(octets)
            if connection.is_flushed():
                self._record(request, answer.status, done)
                return True
        await connection.writer.drain()
        self._record(request, answer.status, done and not connection.writer.is_closing())
        return True

    async def _send_last(self, connection: Connection, request: Request, answer: Answer) -> bool:
        answer.headers["connection"] = "close"
        await self._send(connection, request, answer, done=False)
        return False

    async def _reset(self, connection: Connection, request: Request, kind: str) -> bool:
        if kind != "reset_before_body":
            leave = (request.unread + 1) // 2 if kind == "reset_within_body" else 0
            await self._read_body(connection, request, leave, keep=False)
        self._record(request, 0, False)
        connection.reset()
        return False

    async def _babble(self, connection: Connection, request: Request, action: Action) -> bool:
        """Answers that are none, or that have no end."""
        if action.kind == "garbage":
            self._record(request, 0, False)
            await connection.send(b"\x00\xff\x15\x03 this is not HTTP\r\n\r\n" * 4)
            return False
        self._record(request, 200, False)
        promise = Answer(200, headers={"content-length": str(1 << 20)})
        await connection.send(promise.encode(self.now(), head_only=True))
        while not connection.reader.at_eof():
            await asyncio.sleep(action.seconds)
            await connection.send(b" ")
        return False

    async def _finish(
        self, connection: Connection, request: Request, action: Action, answer: Answer
    ) -> bool:
        """The operation is done; what of its answer goes out, and when."""
        if action.kind == "lost_ack":
            self._record(request, 0, False)
            connection.reset()
            return False
        if action.kind in ("half_headers", "half_body"):
            self._record(request, answer.status, False)
            await connection.send(half(answer, action.kind, self.now()))
            return False
        if action.kind == "trickle":
            self._record(request, answer.status, False)
            for octet in answer.encode(self.now()):
                await asyncio.sleep(action.seconds)
                await connection.send(bytes([octet]))
            return False
        if action.function is not None:
            action.function()
        await asyncio.sleep(action.seconds)
        await self._send(connection, request, answer, done=True)
        return action.kind != "close_after"

    def _record(self, request: Request, status: int, acknowledged: bool) -> None:
        if request.ended:
            return
        request.ended = True
        with self._lock:
            self._counts[request.operation] += 1
            if self.keep_log:
                self._log.append(request.logged(status, acknowledged))
            if acknowledged:
                self._acknowledged[request.operation] += 1
                self._count_upload(request)

    def _count_upload(self, request: Request) -> None:
        bucket = self._store.buckets.get(request.bucket)
        if bucket is None:
            return
        if request.operation == "UploadPart":
            number = int(request.query["partNumber"])
            bucket.part_acknowledgements[request.key, request.query["uploadId"], number] += 1
        elif request.operation in ("PutObject", "CompleteMultipartUpload"):
            stored = bucket.objects.get(request.key)
            if stored is not None:
                stored.puts += 1


HONEST = Action("honest")


def injected(request: Request, action: Action) -> Answer:
    """The error or redirect that an action asks for."""
    error = S3Error("InternalError")
    error.status = 200 if action.kind == "error200" else action.status
    error.code, error.message = action.code, action.message
    headers = dict(action.headers)
    if action.kind == "redirect":
        error.code = "PermanentRedirect" if action.status == 301 else "TemporaryRedirect"
        error.message = "This bucket must be addressed at the endpoint given"
        error.extra = {"Endpoint": action.endpoint.partition("//")[2], "Bucket": request.bucket}
        headers["x-amz-bucket-region"] = action.region
        if action.status == 307:
            headers["location"] = action.endpoint + request.target
    answer = error_answer(request, error)
    answer.headers.update(headers)
    return answer


def half(answer: Answer, kind: str, now: float) -> bytes:
    """The beginning of an answer: up to the middle of its headers, or of a promised body."""
    if kind == "half_headers":
        head = answer.encode(now, head_only=True)
        return head[: len(head) // 2]
    body = answer.body or b"half"
    headers = {**answer.headers, "content-length": str(2 * len(body))}
    return Answer(answer.status, body, headers).encode(now)


# ---------------------------------------------------------------------------
# As a program
# ---------------------------------------------------------------------------


# ======================================================================================
# What the tests share: trees, the command line, the ledger
# ======================================================================================

HERE = Path(__file__).resolve().parent
PFU = HERE / "pfu.py"
BUCKET = "bkt"
BOTH_MODES = pytest.mark.parametrize("mode", ["concurrent", "parallel"])
LONG_AGO = 1_600_000_000  # no file of this time is racily clean
ODD_NAMES: list[str | bytes] = [
    "plain.txt",
    "with space",
    "new\nline",
    "quote\"'",
    "percent%41",
    "plus+",
    "hash#",
    "question?",
    "amp&equal=",
    "back\\slash",
    "tilde~",
    "caf\u00e9 NFC",
    "cafe\u0301 NFD",
    "\u6771\u4eac",
    "\U0001f600",
    "\u201bquoted",
    "\uff0e",
    "\uff0e\uff0e",
    "full\uff0fslash",
    "\u2400null",
    "-dash",
    "...",
    " lead and trail ",
    "\x1b[31mred",
    "\x7f",
    b"latin-\xe9",
    b"\xff\xfe",
    b"half \xe2\x82",
]


@functools.cache
def compiled_program() -> str:
    """pfu.py, compiled once for all tests: that takes a third of the start of a run."""
    folder = tempfile.mkdtemp(prefix="pfu-test")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = os.path.join(folder, "pfu.pyc")
    py_compile.compile(str(PFU), path, doraise=True)
    return path


FORK_SERVER = """
import gc, marshal, os, random, signal, socket, struct, sys, traceback, types
import boto3, botocore.config, botocore.credentials, botocore.exceptions, botocore.loaders

program, place = sys.argv[1:]
models, load_file = {}, botocore.loaders.JSONFileLoader.load_file

def load_model(loader, path):  # each program may have one of each
    return models.pop(path, None) or load_file(loader, path)

def keep_model(loader, path):
    return models.setdefault(path, load_file(loader, path))

botocore.loaders.JSONFileLoader.load_file = keep_model
os.environ.clear()  # each program has its own
os.environ["AWS_CONFIG_FILE"] = os.environ["AWS_SHARED_CREDENTIALS_FILE"] = os.devnull
keys = {"aws_access_key_id": "x", "aws_secret_access_key": "x"}
for service in "s3", "sts":  # for what it imports and loads
    boto3.Session(**keys, region_name="us-east-1").client(service)
botocore.loaders.JSONFileLoader.load_file = load_model
sys.path[0] = os.path.dirname(program)
with open(program, "rb") as file:
    code = marshal.loads(file.read()[16:])
module = types.ModuleType("__mp_main__")  # as multiprocessing calls a main module that is imported
module.__file__ = program
sys.modules["__main__"] = sys.modules["__mp_main__"] = module
exec(code, module.__dict__)
gc.collect()
gc.freeze()

def serve(connection):
    request, descriptors, _, _ = socket.recv_fds(connection, 1 << 20, 3)
    folder, arguments, environment = marshal.loads(request)
    pid = os.fork()
    if pid:
        connection.sendall(struct.pack("i", pid))
        connection.sendall(struct.pack("i", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])))
        os._exit(0)
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    connection.close()
    listener.close()
    os.chdir(folder)
    os.environb.clear()
    os.environb.update(environment)
    random.seed()
    sys.argv = [program, *arguments]
    module.__name__ = "__main__"
    module.leave(module.main())

listener = socket.socket(socket.AF_UNIX)
listener.bind(place)
listener.listen(16)
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
print(flush=True)
while True:
    connection, _ = listener.accept()
    if os.fork():
        connection.close()
        continue
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    status = 1
    try:
        serve(connection)
    except SystemExit as end:
        status = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    os._exit(status)
"""


class ForkServer:
    """Runs the program again and again in processes that need not import anything any more.

    The start of Python and the import of boto3 take two thirds of the time of a short run. All
    else is as after an exec: arguments, environment, working directory, streams, exit code.
    """

    def __init__(self) -> None:
        self._folder = tempfile.mkdtemp(prefix="pfu-test")
        self._place = os.path.join(self._folder, "socket")
        command = [sys.executable, "-c", FORK_SERVER, compiled_program(), self._place]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert self._process.stdout
        self._process.stdout.readline()
        atexit.register(self.close)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def run(
        self, arguments: Sequence[str], folder: Path, environment: Mapping[str, str]
    ) -> tuple[int, bytes, bytes]:
        """Exit code, standard output and standard error."""
        encoded = {os.fsencode(k): os.fsencode(v) for k, v in environment.items()}
        request = marshal.dumps((str(folder), list(arguments), encoded))
        with contextlib.ExitStack() as opened:
            out, err = (opened.enter_context(tempfile.TemporaryFile()) for _ in range(2))
            nothing = opened.enter_context(open(os.devnull, "rb"))
            connection = opened.enter_context(socket.socket(socket.AF_UNIX))
            connection.connect(self._place)
            descriptors = [file.fileno() for file in (nothing, out, err)]
            socket.send_fds(connection, [request], descriptors)
            (pid,) = struct.unpack("i", connection.recv(4))
            connection.settimeout(120)
            try:
                (code,) = struct.unpack("i", connection.recv(4))
            except socket.timeout:
                os.kill(pid, signal.SIGKILL)
                raise
            return code, *(file.seek(0) or file.read() for file in (out, err))


fork_server = functools.cache(ForkServer)


def starts_like_this(environment: Mapping[str, str]) -> bool:
    """Whether Python itself would start in the same way with such an environment."""
    names = re.compile("PYTHON|LC_|LANG|LD_|PATH$|TZ$|PFU_START_METHOD$")
    return all(
        environment.get(name) == os.environ.get(name)
        for name in environment.keys() | os.environ.keys()
        if names.match(name)
    )


class Run(NamedTuple):
    """What a user sees of one run of the program."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Place:
    """A working directory with a tree in it, and the command line run there."""

    def __init__(self, path: Path, server: S3Server) -> None:
        self.path = path
        self.root = path / "tree"
        self.root.mkdir()
        self.server = server
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith("AWS_")}
        self.environment.pop("PFU_DESTINATION", None)
        self.environment["HOME"] = str(path)
        self.environment.update(server.environment())
        self.endpoint = server.endpoint

    def file(self, name: str | bytes, content: bytes = b"x", mtime: int = LONG_AGO) -> Path:
        path = Path(os.fsdecode(os.path.join(os.fsencode(self.root), os.fsencode(name))))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        os.utime(path, (mtime, mtime))
        return path

    def files(self, count: int, size: int = 100) -> None:
        for number in range(count):
            self.file(f"d{number % 7}/f{number:05}", b"%d " % number * (size // 6 + number % 5))

    def command(self, *arguments: Any, to: str | None = f"s3://{BUCKET}/p") -> list[str]:
        command = [sys.executable, compiled_program(), *map(str, arguments)]
        if to is not None:
            command[2:2] = [str(self.root), to]
        if self.endpoint and "--endpoint-url" not in command:
            command += ["--endpoint-url", self.endpoint]
        return command

    def run(self, *arguments: Any, to: str | None = f"s3://{BUCKET}/p", **options: Any) -> Run:
        """``options`` are those of subprocess.run()."""
        command = self.command(*arguments, to=to)
        if not options and starts_like_this(self.environment):
            code, out, err = fork_server().run(command[2:], self.path, self.environment)
        else:
            options.setdefault("env", self.environment)
            done = subprocess.run(
                command,
                cwd=self.path,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=120,
                check=False,
                **options,
            )
            code, out, err = done.returncode, done.stdout, done.stderr
        told = err.decode("utf-8", "surrogateescape")
        assert "Traceback" not in told, told
        return Run(code, out.decode("utf-8", "surrogateescape"), told)

    def start(self, *arguments: Any, to: str | None = f"s3://{BUCKET}/p", **options: Any) -> Any:
        return subprocess.Popen(
            self.command(*arguments, to=to),
            cwd=self.path,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )

    def rows(self, sql: str = "SELECT * FROM FileStat") -> list[dict[str, Any]]:
        with contextlib.closing(sqlite3.connect(self.path / "pfu.db")) as db:
            db.row_factory = sqlite3.Row
            return [dict(row) for row in db.execute(sql)]

    def local(self) -> dict[str, bytes]:
        """What should be in the store: key below the prefix -> bytes."""
        return {
            key_of(path.relative_to(self.root)): path.read_bytes()
            for path in self.root.rglob("*")
            if path.is_file() and not path.is_symlink()
        }

    def stored(self, prefix: str = "p/") -> dict[str, bytes | None]:
        objects = self.server.objects(BUCKET)
        return {key[len(prefix) :]: stored.body for key, stored in objects.items()}

    def check_ledger_is_honest(self, prefix: str = "p/") -> int:
        """Every row that claims success is in the store with the very bytes; returns how many."""
        objects = self.server.objects(BUCKET)
        claimed = self.rows("SELECT * FROM FileStat WHERE status = 2")
        for row in claimed:
            stored = objects[row["object_key"]]
            assert stored.puts >= 1 or stored.parts
            assert stored.size == row["file_size"]
            assert row["sha256"] == (stored.sha256 if not stored.parts else row["sha256"])
            assert stored.etag.strip('"') == row["etag"]
        return len(claimed)


def key_of(path: Path) -> str:
    """An object key as rclone writes it, told independently of pfu: one byte or rune at a time."""
    return "/".join(map(encoded_name, os.fsencode(path).split(b"/")))


def encoded_name(name: bytes) -> str:
    quote = "\u201b"
    text = name.decode("utf-8", "surrogateescape")
    encoded = ""
    for character in text:
        if "\udc80" <= character <= "\udcff":
            encoded += quote + character.encode("utf-8", "surrogateescape").hex().upper()
        elif character == quote:
            encoded += quote + character
        else:
            encoded += character
    return encoded


M_MMAP_THRESHOLD = -3  # malloc.h


@pytest.fixture(scope="session", autouse=True)
def what_was_imported_stays() -> None:
    """And is no business of the garbage collector: it would look at all of it, time after time.

    Large buffers go back to the system: what is kept of them makes each fork slower.
    """
    gc.collect()
    gc.freeze()
    with contextlib.suppress(AttributeError):  # glibc alone has it
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 256 * KIB)


@pytest.fixture
def server() -> Iterator[S3Server]:
    with S3Server(buckets=[BUCKET]) as server:
        yield server


@pytest.fixture
def place(tmp_path: Path, server: S3Server) -> Place:
    return Place(tmp_path, server)


def assert_accounts(summary: Mapping[str, Any]) -> None:
    parts = ("uploaded", "unchanged", "skipped", "failed", "pending")
    assert summary["seen"] == sum(summary[part] for part in parts), summary
    assert summary["skipped"] == sum(summary["skipped_by_reason"].values())


def children_of(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in text.split()]


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that nobody has waited for yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def drop_privilege() -> None:
    """In the child: root obeys permissions from the next exec on."""
    if os.geteuid() == 0:
        libc = ctypes.CDLL(None)
        for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
            libc.prctl(24, capability, 0, 0, 0)


# ======================================================================================
# The main job
# ======================================================================================


@BOTH_MODES
def test_uploads_a_tree_with_its_metadata(place: Place, mode: str) -> None:
    for number, name in enumerate(ODD_NAMES):
        place.file(name, b"%d" % number * number)
    for directory in (b"sub/dir with space", b"sub/\xff\xfe", "sub/caf\u00e9".encode()):
        place.file(directory + b"/in.jpg", directory)
    os.chmod(place.root / "plain.txt", 0o640)
    os.utime(place.root / "plain.txt", ns=(1, 1_700_000_000_000_000_042))

    run = place.run("--mode", mode, "--json")

    assert (run.code, run.err) == (0, "")
    assert place.stored() == place.local()
    assert_accounts(run.json)
    assert run.json["uploaded"] == len(ODD_NAMES) + 3
    assert run.json["bytes_uploaded"] == sum(map(len, place.local().values()))
    plain = place.server.objects(BUCKET)["p/plain.txt"].headers
    assert {k: v for k, v in plain.items() if k.startswith("x-amz-meta-")} == {
        "x-amz-meta-file-size": "0",
        "x-amz-meta-file-mtime": "1700000000000000042ns",
        "x-amz-meta-file-permissions": "0100640",
        "x-amz-meta-file-owner": str(os.getuid()),
        "x-amz-meta-file-group": str(os.getgid()),
        "x-amz-meta-mtime": "1700000000.000000042",
        "x-amz-meta-mode": "0100640",
        "x-amz-meta-uid": str(os.getuid()),
        "x-amz-meta-gid": str(os.getgid()),
    }
    assert plain["content-type"] == "text/plain"


@BOTH_MODES
def test_the_ledger_describes_what_is_stored(place: Place, mode: str) -> None:
    path = place.file("a/b.txt", b"hello")
    place.file(b"a/\xff", b"bytes")
    place.run("--mode", mode)
    rows = {row["object_key"]: row for row in place.rows()}
    row = rows["p/a/b.txt"]
    status = path.stat()
    assert row["file_path"] == str(path)
    assert rows["p/a/\u201bFF"]["file_path"] == os.fsencode(place.root / "a") + b"/\xff"
    assert (row["status"], row["file_size"], row["last_modified"]) == (2, 5, status.st_mtime_ns)
    assert row["permissions"] == f"0{status.st_mode:o}"
    assert row["sha256"] == hashlib.sha256(b"hello").hexdigest()
    assert row["etag"] == hashlib.md5(b"hello").hexdigest()
    assert row["error"] is None
    assert abs(row["uploaded_at"] - time.time()) < 60
    (job,) = place.rows("SELECT * FROM BatchJob")
    assert job["id"] == row["batch_id"]
    assert (job["status"], job["mode"], job["root_dir"]) == (3, mode, str(place.root))
    assert job["destination"] == f"s3://{BUCKET}/p"
    assert job["created_at"] <= job["finished_at"]
    place.check_ledger_is_honest()


def test_the_tables_have_the_columns_that_others_rely_on(place: Place) -> None:
    place.run()
    expected = {
        "FileStat": "id created_at file_size last_modified permissions file_path status batch_id "
        "object_key etag sha256 attempts error uploaded_at",
        "BatchJob": "id status created_at root_dir destination mode finished_at",
    }
    numbers = {"created_at", "file_size", "last_modified", "status", "attempts"}
    numbers |= {"uploaded_at", "finished_at"}
    for table, columns in expected.items():
        found = {row["name"]: row for row in place.rows(f"PRAGMA table_info({table})")}
        assert set(columns.split()) <= set(found)
        assert all(
            found[c]["type"] == ("INTEGER" if c in numbers else "TEXT") for c in columns.split()
        )
        assert found["id"]["pk"] == 1
    (mode,) = place.rows("PRAGMA journal_mode")[0].values()
    assert mode == "wal"
    assert oct((place.path / "pfu.db").stat().st_mode) == "0o100600"


def test_smallest_files_go_first(place: Place) -> None:
    sizes = [5000, 10, 0, 70_000, 300, 1, 20]
    for size in sizes:
        place.file(f"f{size}", b"x" * size)
    place.run("--mode", "concurrent", "--concurrency", 1)
    put = [r.key for r in place.server.log if r.operation == "PutObject"]
    assert put == [f"p/f{size}" for size in sorted(sizes)]


@BOTH_MODES
def test_many_files_in_one_directory_and_deep_ones(place: Place, mode: str) -> None:
    place.files(1500, 20)
    place.file("/".join(["deep"] * 60) + "/end", b"bottom")
    run = place.run("--mode", mode, "--json")
    assert run.code == 0
    assert run.json["uploaded"] == 1501
    assert place.stored() == place.local()
    puts = [r.key for r in place.server.log if r.operation == "PutObject"]
    assert len(puts) == len(set(puts))


@BOTH_MODES
@pytest.mark.parametrize("arguments", [("s3://bkt",), ("s3://bkt/",), ("s3://bkt/a/b/",)])
def test_destinations(place: Place, arguments: tuple[str], mode: str) -> None:
    place.file("f")
    run = place.run("--mode", mode, "--json", to=arguments[0])
    prefix = arguments[0][len("s3://bkt") :].strip("/")
    assert list(place.stored("")) == [f"{prefix}/f" if prefix else "f"]
    assert run.json["destination"] == arguments[0].rstrip("/")


def test_destination_from_the_environment(place: Place) -> None:
    place.file("f")
    place.environment["PFU_DESTINATION"] = "s3://bkt/from-environment"
    run = place.run(place.root, to=None)
    assert run.code == 0
    assert list(place.stored("")) == ["from-environment/f"]


def test_root_may_be_one_file(place: Place) -> None:
    path = place.file("only.txt", b"one")
    run = place.run(path, f"s3://{BUCKET}/p", "--json", to=None)
    assert (run.code, run.json["uploaded"]) == (0, 1)
    assert place.stored() == {"only.txt": b"one"}


@BOTH_MODES
def test_options_that_go_with_every_object(place: Place, mode: str) -> None:
    place.file("small")
    place.file("large", b"x" * (5 * MIB + 1))
    options = "--storage-class STANDARD_IA --sse aws:kms --sse-kms-key-id k1 --part-size 5M"
    assert place.run("--mode", mode, *options.split()).code == 0
    for stored in place.server.objects(BUCKET).values():
        assert stored.headers["x-amz-storage-class"] == "STANDARD_IA"
        assert stored.headers["x-amz-server-side-encryption"] == "aws:kms"
        assert stored.headers["x-amz-server-side-encryption-aws-kms-key-id"] == "k1"


@BOTH_MODES
@pytest.mark.parametrize("over", [-1, 0, 1, 5 * MIB, 5 * MIB + 1])
def test_large_files_go_up_in_parts(place: Place, mode: str, over: int) -> None:
    body = os.urandom(1 << 20) * 11
    place.file("big.iso", body[: 5 * MIB + over])
    run = place.run("--mode", mode, "--part-size", "5M", "--json")
    assert run.code == 0
    (stored,) = place.server.objects(BUCKET).values()
    assert stored.body == body[: 5 * MIB + over]
    assert bool(stored.parts) == (over > 0)
    assert stored.headers["x-amz-meta-file-size"] == str(5 * MIB + over)
    assert not place.server.uploads(BUCKET)
    assert (
        place.run("--mode", mode, "--part-size", "5M", "--json", "--checksum").json["unchanged"]
        == 1
    )


# ======================================================================================
# Rerun, resume, incremental
# ======================================================================================


def rewrite_in_place(path: Path) -> None:
    """Other bytes, same size, same time: only a hash tells."""
    status = path.stat()
    path.write_bytes(bytes(255 - byte for byte in path.read_bytes()))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


CHANGES: list[tuple[str, Callable[[Path], Any], str]] = [
    ("grown", lambda p: p.write_bytes(b"much longer than before"), "size changed"),
    ("touched", lambda p: os.utime(p, (LONG_AGO + 1, LONG_AGO + 1)), "modification time changed"),
    (
        "touched by a nanosecond",
        lambda p: os.utime(p, ns=(0, LONG_AGO * 10**9 + 1)),
        "modification time changed",
    ),
    ("older", lambda p: os.utime(p, (LONG_AGO - 9, LONG_AGO - 9)), "modification time changed"),
    ("chmod", lambda p: p.chmod(0o600), "permissions changed"),
]


@pytest.mark.parametrize("name, change, reason", CHANGES, ids=[c[0] for c in CHANGES])
def test_a_changed_file_goes_up_again(
    place: Place, name: str, change: Callable[[Path], Any], reason: str
) -> None:
    place.file("same")
    path = place.file("changing", b"first")
    place.run("--mode", "concurrent")
    change(path)
    plan = place.run("--dry-run")
    assert f"{path}  {path.stat().st_size} B  {reason}" in plan.out
    requests = place.server.count()
    run = place.run("--mode", "concurrent", "--json")
    assert (run.json["uploaded"], run.json["unchanged"]) == (1, 1)
    assert place.server.count("PutObject") == 3
    assert place.server.count() > requests
    assert place.stored() == place.local()
    assert place.run("--json").json["unchanged"] == 2


@BOTH_MODES
def test_an_unchanged_tree_costs_no_request(place: Place, mode: str) -> None:
    place.files(50)
    place.run("--mode", mode)
    requests = place.server.count()
    run = place.run("--mode", mode, "--json")
    assert (run.code, run.json["unchanged"], run.json["requests"]) == (0, 50, 0)
    assert place.server.count() == requests


@BOTH_MODES
@pytest.mark.parametrize("size", [100, 5 * MIB + 7])
def test_a_racily_clean_file_is_hashed_before_it_is_believed(
    place: Place, mode: str, size: int
) -> None:
    arguments = ("--mode", mode, "--part-size", "5M", "--json")
    path = place.file("racy", b"a" * size, mtime=int(time.time()) + 1)
    place.run(*arguments)
    assert place.rows()[0]["racy"] == 1
    puts = place.server.count("PutObject"), place.server.count("UploadPart")
    assert place.run(*arguments).json["unchanged"] == 1
    assert puts == (place.server.count("PutObject"), place.server.count("UploadPart"))
    rewrite_in_place(path)
    os.utime(path, ns=(0, place.rows()[0]["last_modified"]))
    with sqlite3.connect(place.path / "pfu.db") as db:
        db.execute("UPDATE FileStat SET racy = 1")
    assert place.run(*arguments).json["uploaded"] == 1
    assert place.stored() == place.local()


def test_checksum_finds_what_size_and_time_hide(place: Place) -> None:
    path = place.file("hidden", b"first")
    place.run("--mode", "concurrent")
    rewrite_in_place(path)
    assert place.run("--mode", "concurrent", "--json").json["unchanged"] == 1
    assert place.run("--mode", "concurrent", "--json", "--checksum").json["uploaded"] == 1
    assert place.stored() == place.local()


def test_force_uploads_all_again(place: Place) -> None:
    place.files(5)
    place.run("--mode", "concurrent")
    assert place.run("--mode", "concurrent", "--force", "--json").json["uploaded"] == 5
    assert place.server.count("PutObject") == 10


def test_each_destination_has_its_own_rows(place: Place) -> None:
    place.files(3)
    place.run("--mode", "concurrent")
    run = place.run("--mode", "concurrent", "--json", to=f"s3://{BUCKET}/other")
    assert run.json["uploaded"] == 3
    assert len(place.rows()) == 6
    assert place.run("--json").json["unchanged"] == 3


def test_another_endpoint_is_another_destination(place: Place) -> None:
    place.files(3)
    place.run("--mode", "concurrent")
    with S3Server(buckets=[BUCKET]) as other:
        arguments = ("--mode", "concurrent", "--json", "--endpoint-url", other.endpoint)
        assert place.run(*arguments).json["uploaded"] == 3
        assert len(other.objects(BUCKET)) == 3


def test_an_endpoint_from_the_environment_counts_too(place: Place) -> None:
    place.files(1)
    place.run("--mode", "concurrent")
    place.environment["AWS_ENDPOINT_URL"], place.endpoint = place.endpoint, ""
    assert place.run("--mode", "concurrent", "--json").json["unchanged"] == 1


def test_what_vanished_is_not_pending_any_more(place: Place) -> None:
    place.file("stays")
    gone = place.file("goes")
    place.server.faults.append(Fault(Action("error", 403, "AccessDenied"), key="goes"))
    assert place.run("--mode", "concurrent").code == 1
    gone.unlink()
    run = place.run("--mode", "concurrent", "--json")
    assert (run.code, run.json["seen"], run.json["unchanged"]) == (0, 1, 1)
    assert [row["object_key"] for row in place.rows()] == ["p/stays"]


# ======================================================================================
# Crashes, signals, dying workers
# ======================================================================================


@BOTH_MODES
def test_killed_at_any_moment_the_next_run_completes(place: Place, mode: str) -> None:
    place.files(400, 300)
    place.file("large", os.urandom(6 * MIB))
    arguments = ("--mode", mode, "--part-size", "5M", "--concurrency", "8")
    place.server.faults.append(Fault(Action("slow", seconds=0.1), probability=0.6))
    generator = random.Random(mode)
    kills = 0
    for _ in range(8):
        process = place.start(*arguments)
        try:
            process.wait(0.35 + generator.random() * 0.8)
        except subprocess.TimeoutExpired:
            process.kill()
            kills += 1
        process.communicate()
        if (place.path / "pfu.db").stat().st_size and kills:
            with contextlib.suppress(sqlite3.OperationalError):
                place.check_ledger_is_honest()
    place.server.faults.clear()
    run = place.run(*arguments, "--json")
    assert run.code == 0, run.err
    assert kills >= 3
    assert place.check_ledger_is_honest() == 401
    assert place.stored() == place.local()
    assert_accounts(run.json)
    jobs = place.rows("SELECT status, error FROM BatchJob ORDER BY rowid")
    assert {(5, "killed")} <= {(job["status"], job["error"]) for job in jobs}
    assert jobs[-1]["status"] == 3


@BOTH_MODES
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_cleanly(place: Place, mode: str, number: int) -> None:
    place.files(300)
    place.server.faults.append(Fault(Action("slow", seconds=0.1)))
    process = place.start("--mode", mode, "--concurrency", "4", "--json", start_new_session=True)
    assert place.server.wait_for("PutObject", 8)
    began = time.monotonic()
    os.killpg(process.pid, number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 4, err
    assert time.monotonic() - began < 10
    summary = json.loads(out)
    assert_accounts(summary)
    assert summary["pending"] > 0
    assert summary["status"] == "interrupted"
    assert f"pfu: stopped: {signal.Signals(number).name} received" in err
    assert place.check_ledger_is_honest() == summary["uploaded"] > 0
    assert place.rows("SELECT count(*) n FROM FileStat WHERE status = 1")[0]["n"] == 0
    place.server.faults.clear()
    assert place.run("--mode", mode).code == 0
    assert place.stored() == place.local()
    assert place.server.count("PutObject") <= 300 + 4


def test_a_stop_does_not_wait_for_a_store_that_hangs(place: Place) -> None:
    place.files(20)
    place.server.faults.append(Fault(Action("slow", seconds=60), operation="PutObject"))
    process = place.start("--mode", "parallel")
    time.sleep(1.5)
    began = time.monotonic()
    process.terminate()
    process.communicate(timeout=30)
    assert process.returncode == 4
    assert time.monotonic() - began < 11


@pytest.mark.parametrize(
    "operation, options, to",
    [
        ("ListObjectsV2", ["--verify"], f"s3://{BUCKET}/p"),
        ("HeadObject", ["--verify", "--checksum"], f"s3://{BUCKET}/p"),
        ("GetCallerIdentity", [], ""),
    ],
)
def test_a_stop_does_not_wait_for_a_question(
    place: Place, operation: str, options: list[str], to: str
) -> None:
    place.files(5)
    assert place.run("--mode", "concurrent").code == 0
    place.server.faults.append(Fault(Action("slow", seconds=60), operation))
    process = place.start("--json", *options, to=to)
    wait_until(lambda: place.server.in_flight > 0)
    process.terminate()
    out, err = process.communicate(timeout=15)
    assert (process.returncode, "SIGTERM received" in err) == (4, True), err
    told = json.loads(out)
    assert (told["exit_code"], "SIGTERM received" in told["error"]) == (4, True)
    assert not told.get("extra")


def test_a_stop_gives_up_what_hangs_on_one_loop_too(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pfu, "STOP_SECONDS", 0.5)
    place.files(20)
    place.server.faults.append(Fault(Action("slow", seconds=60), operation="PutObject"))
    os.environ.update(place.server.environment())
    uploader = pfu.S3Uploader(f"s3://{BUCKET}/p", pfu.S3Options(endpoint_url=place.endpoint))
    options = pfu.RunOptions(mode="concurrent", nice=0)
    job = pfu.BatchJobModel(place.root, uploader, place.path / "l.db", options)
    threading.Timer(1.5, job.stop, ["enough"]).start()
    summary = job.run()
    assert (summary.exit_code, summary.error, summary.pending) == (4, "enough", 20)


@BOTH_MODES
def test_a_second_interrupt_stops_at_once(place: Place, mode: str) -> None:
    place.files(20)
    place.server.faults.append(Fault(Action("slow", seconds=60), operation="PutObject"))
    process = place.start("--mode", mode, start_new_session=True)
    time.sleep(1.5)
    children = children_of(process.pid)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 4
    assert time.monotonic() - began < 3
    time.sleep(1)
    assert not any(map(is_alive, children))


def test_a_dying_worker_does_not_lose_the_run(place: Place) -> None:
    place.files(600)
    place.server.faults.append(Fault(Action("slow", seconds=0.02)))
    process = place.start("--workers", "2", "--concurrency", "8", "--json")
    assert place.server.wait_for("PutObject", 50)
    os.kill(children_of(process.pid)[0], signal.SIGKILL)
    assert place.server.wait_for("PutObject", 300)
    os.kill(children_of(process.pid)[-1], signal.SIGKILL)
    out, err = process.communicate(timeout=60)
    summary = json.loads(out)
    assert (process.returncode, summary["uploaded"]) == (0, 600)
    assert "2 worker process(es) died and were replaced" in err
    assert place.check_ledger_is_honest() == 600
    assert place.stored() == place.local()


@pytest.mark.parametrize("nice, expected", [((), 19), (("--nice", "5"), 5)])
def test_every_process_runs_at_low_priority(
    place: Place, nice: tuple[str, ...], expected: int
) -> None:
    place.files(100)
    place.server.faults.append(Fault(Action("slow", seconds=0.2)))
    process = place.start("--workers", "2", "--concurrency", "4", *nice)
    assert place.server.wait_for("PutObject", 8)
    pids = [process.pid, *children_of(process.pid)]
    assert [os.getpriority(os.PRIO_PROCESS, pid) for pid in pids] == [expected] * 3
    process.terminate()
    process.communicate()


def test_a_time_limit_stops_cleanly(place: Place) -> None:
    place.files(300)
    place.server.faults.append(Fault(Action("slow", seconds=0.1)))
    arguments = ("--mode", "concurrent", "--concurrency", "2", "--max-duration", "2s", "--json")
    run = place.run(*arguments)
    assert (run.code, run.json["status"]) == (4, "interrupted")
    assert "the time limit of 2 s is over" in run.err
    assert place.check_ledger_is_honest() == run.json["uploaded"] > 0


# ======================================================================================
# What a tree may hold
# ======================================================================================


def test_only_regular_files_are_opened(place: Place) -> None:
    place.file("regular")
    os.mkfifo(place.root / "fifo")
    os.symlink("regular", place.root / "link")
    os.symlink("nowhere", place.root / "broken")
    os.symlink("..", place.root / "up")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(place.root / "sock"))
        run = place.run("--mode", "concurrent", "--json")
    assert (run.code, run.json["uploaded"], run.json["skipped"]) == (0, 1, 5)
    assert run.json["skipped_by_reason"] == {"FIFO": 1, "socket": 1, "symbolic link": 3}
    assert_accounts(run.json)


def test_links_are_followed_on_demand_and_cycles_end(place: Place) -> None:
    place.file("a/regular", b"1")
    elsewhere = place.path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "target").write_bytes(b"2")
    os.symlink("regular", place.root / "a/file-link")
    os.symlink(elsewhere, place.root / "a/directory-link")
    os.symlink("..", place.root / "a/cycle")
    os.symlink("a", place.root / "twice")
    os.symlink("nowhere", place.root / "broken")
    run = place.run("--mode", "concurrent", "--json", "--follow-symlinks")
    assert run.code == 0
    files = {"regular": b"1", "file-link": b"1", "directory-link/target": b"2"}
    assert place.stored() == {f"{d}/{n}": c for d in ("a", "twice") for n, c in files.items()}
    assert run.json["skipped_by_reason"] == {
        "symbolic link into its own parents": 2,
        "broken symbolic link": 1,
    }


def test_one_file_system_stops_at_a_mount(place: Place) -> None:
    if os.stat("/dev/shm").st_dev == os.stat(place.path).st_dev:
        pytest.skip("/dev/shm is on the file system of the tests")
    place.file("here")
    with contextlib.ExitStack() as stack:
        other = Path(stack.enter_context(temporary_directory("/dev/shm")))
        (other / "there").write_bytes(b"x")
        os.symlink(other, place.root / "mount")
        arguments = ("--mode", "concurrent", "--json", "--follow-symlinks")
        assert place.run(*arguments, "--one-file-system").json["skipped_by_reason"] == {
            "other file system": 1
        }
        assert place.run(*arguments).json["uploaded"] == 1


@contextlib.contextmanager
def temporary_directory(parent: str) -> Iterator[str]:
    path = f"{parent}/pfu-test-{os.getpid()}"
    os.mkdir(path)
    try:
        yield path
    finally:
        shutil.rmtree(path)


def test_what_cannot_be_read_is_named_and_stops_nothing(place: Place) -> None:
    place.file("good")
    place.file("secret").chmod(0)
    place.file("closed/inside")
    (place.root / "closed").chmod(0)
    place.file("k" * 200 + "/" + "e" * 250 + "/" + "y" * 250 + "/" + "l" * 250 + "/" + "n" * 200)
    try:
        run = place.run("--mode", "concurrent", "--json", preexec_fn=drop_privilege)
    finally:
        (place.root / "closed").chmod(0o700)
    assert run.code == 1
    assert (run.json["uploaded"], run.json["failed"], run.json["seen"]) == (1, 3, 4)
    reasons = {failure["path"]: failure["reason"] for failure in run.json["failures"]}
    assert "Permission denied" in reasons[str(place.root / "secret")]
    assert "cannot read directory: Permission denied" in reasons[str(place.root / "closed")]
    assert [r for r in reasons.values() if "its key has 1156 bytes, S3 takes 1024" in r]
    assert run.err.count("pfu: failed: ") == 3
    (place.root / "secret").chmod(0o600)
    again = place.run("--mode", "concurrent", "--json")
    assert (again.json["uploaded"], again.json["unchanged"], again.json["failed"]) == (2, 1, 1)


def disturbances(path: Path) -> dict[str, Callable[[], Any]]:
    """Ways in which a file changes while it is read."""

    def replace_with_the_same_time() -> None:
        path.write_bytes(b"x")
        os.utime(path, (LONG_AGO, LONG_AGO))

    return {
        "grow": lambda: path.write_bytes(b"after " * 1000),
        "shrink": lambda: os.truncate(path, 10),
        "rewrite": lambda: path.write_bytes(b"BEFORE " * 100),
        "replace": replace_with_the_same_time,
        "touch": lambda: os.utime(path),
    }


def disturb_readings(
    monkeypatch: pytest.MonkeyPatch, name: str, disturb: Callable[[], Any], times: int
) -> None:
    """Have the file ``name`` changed just after it was read, so many times."""
    read, left = pfu.SourceFile.read, [times]

    def disturbed(source: pfu.SourceFile, offset: int, size: int) -> bytes:
        body = read(source, offset, size)
        if source.path.endswith(name) and left[0]:
            left[0] -= 1
            disturb()
        return body

    monkeypatch.setattr(pfu.SourceFile, "read", disturbed)


def run_within(place: Place, **options: Any) -> pfu.Summary:
    """A run in this process, with a provider that needs no network."""
    settings = pfu.RunOptions(mode="concurrent", nice=0, part_size=5 * MIB, **options)
    uploader = FolderUploader(place.path / "store")
    return pfu.BatchJobModel(place.root, uploader, place.path / "l.db", settings).run()


@pytest.mark.parametrize("kind", list(disturbances(Path())))
@pytest.mark.parametrize("size", [700, 6 * MIB])
def test_a_file_that_changes_while_it_is_read_is_read_again(
    place: Place, monkeypatch: pytest.MonkeyPatch, kind: str, size: int
) -> None:
    path = place.file("busy", b"before " * (size // 7))
    disturb_readings(monkeypatch, "busy", disturbances(path)[kind], times=2)
    summary = run_within(place)
    assert (summary.exit_code, summary.uploaded) == (0, 1), summary.failures
    assert (place.path / "store/busy").read_bytes() == path.read_bytes()
    with contextlib.closing(pfu.Ledger(place.path / "l.db", read_only=True)) as ledger:
        ((size, mtime),) = ledger._rows("SELECT file_size, last_modified FROM FileStat")
    assert (size, mtime) == (path.stat().st_size, path.stat().st_mtime_ns)


@pytest.mark.parametrize("size", [100, 6 * MIB])
def test_a_file_that_never_holds_still_fails(
    place: Place, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    path = place.file("restless", b"x" * size)
    place.file("calm")
    disturb_readings(monkeypatch, "restless", lambda: os.utime(path), times=1000)
    summary = run_within(place)
    assert (summary.exit_code, summary.failed, summary.uploaded) == (1, 1, 1)
    assert summary.failures == [
        {"path": str(path), "reason": f"read {path}: it changed while it was read"}
    ]


@BOTH_MODES
@pytest.mark.parametrize("kind", list(disturbances(Path())))
def test_a_change_after_the_reading_is_found_by_the_next_run(
    place: Place, mode: str, kind: str
) -> None:
    path = place.file("busy", b"before " * 100)
    disturb = disturbances(path)[kind]
    place.server.faults.append(
        Fault(Action("call", function=disturb), operation="PutObject", times=1)
    )
    run = place.run("--mode", mode, "--json")
    assert (run.code, run.json["uploaded"]) == (0, 1)
    assert place.stored() == {"busy": b"before " * 100}
    place.check_ledger_is_honest()
    assert place.run("--mode", mode, "--json").json["uploaded"] == 1
    assert place.stored() == place.local()


def test_a_large_file_that_changes_under_way_is_never_completed(place: Place) -> None:
    path = place.file("restless", b"x" * (11 * MIB))
    touch = Action("call", function=lambda: os.utime(path))
    place.server.faults.append(Fault(touch, operation="UploadPart"))
    run = place.run("--mode", "concurrent", "--part-size", "5M", "--json")
    assert (run.code, run.json["failed"]) == (1, 1)
    assert "it changed while it was read" in run.json["failures"][0]["reason"]
    assert not place.server.uploads(BUCKET)
    assert not place.server.objects(BUCKET)


def test_a_file_that_vanishes_between_scan_and_read_is_no_failure(place: Place) -> None:
    place.file("a", b"")
    later = place.file("later", b"later")
    place.server.faults.append(Fault(Action("call", function=later.unlink), key="p/a$", times=1))
    run = place.run("--mode", "concurrent", "--concurrency", 1, "--json")
    assert (run.code, run.json["uploaded"]) == (0, 1)
    assert run.json["skipped_by_reason"] == {"vanished": 1}
    assert_accounts(run.json)
    assert len(place.rows()) == 1


def test_a_file_that_becomes_a_fifo_hangs_nothing(place: Place) -> None:
    place.file("a", b"")
    later = place.file("later", b"later")

    def replace() -> None:
        later.unlink()
        os.mkfifo(later)

    place.server.faults.append(Fault(Action("call", function=replace), key="p/a$", times=1))
    run = place.run("--mode", "concurrent", "--concurrency", 1, "--json")
    assert (run.code, run.json["uploaded"], run.json["skipped"]) == (0, 1, 1)


def test_the_ledger_in_the_tree_is_left_out(place: Place) -> None:
    place.file("f")
    place.file("sub/pfu.db", b"not the ledger")
    run = place.run("--mode", "concurrent", "--json", "--db", place.root / "pfu.db")
    assert run.code == 0
    assert sorted(place.stored()) == ["f", "sub/pfu.db"]


@pytest.mark.parametrize("link", [os.link, os.symlink])
def test_links_to_the_ledger_and_its_lock_are_left_out(
    at_hand: Place, link: Callable[..., None]
) -> None:
    """Who closes one of these files gives away all locks that this process has on it."""
    at_hand.file("f")
    scan = pfu.ScanOptions(follow_symlinks=True)
    assert s3_job(at_hand).run().exit_code == 0
    for name in ("pfu.db", "pfu.db.lock"):
        link(at_hand.path / name, at_hand.root / f"of {name}")
    at_hand.file("g")
    held: list[bool] = []
    look = Action("call", function=lambda: held.append(is_held_elsewhere(at_hand)))
    at_hand.server.faults.append(Fault(look, "PutObject", "g$"))
    summary = s3_job(at_hand, scan=scan).run()
    assert (summary.uploaded, summary.skipped_by_reason) == (1, {pfu.OWN_LEDGER: 2})
    assert held == [True]


def is_held_elsewhere(place: Place) -> bool:
    """Asked by another process: to its own, a lock of POSIX is none."""
    code = "import pfu, sys; print(pfu.LedgerLock.is_held(sys.argv[1]))"
    run = subprocess.run(
        [sys.executable, "-c", code, place.path / "pfu.db"],
        cwd=HERE,
        capture_output=True,
        check=True,
    )
    return run.stdout == b"True\n"


# ======================================================================================
# Trouble
# ======================================================================================


def without_credentials(place: Place) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        del place.environment[name]


def wrong_secret(place: Place) -> None:
    place.environment["AWS_SECRET_ACCESS_KEY"] = "wrong"


def unknown_key(place: Place) -> None:
    place.environment["AWS_ACCESS_KEY_ID"] = "AKIDNOBODY"


def expired_token(place: Place) -> None:
    place.environment["AWS_SESSION_TOKEN"] = "old"
    place.server.expired_tokens.add("old")


def closed_port(place: Place) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        place.endpoint = f"http://127.0.0.1:{listener.getsockname()[1]}"


def all_denied(place: Place) -> None:
    place.server.deny |= {"PutObject", "HeadBucket", "ListObjectsV2", "GetPublicAccessBlock"}


def text_ledger(place: Place) -> None:
    (place.path / "pfu.db").write_text("this is no database, " * 100)


def foreign_database(place: Place) -> None:
    with sqlite3.connect(place.path / "pfu.db") as db:
        db.execute("CREATE TABLE theirs(x)")


def newer_ledger(place: Place) -> None:
    place.run("--mode", "concurrent")
    with sqlite3.connect(place.path / "pfu.db") as db:
        db.execute("PRAGMA user_version = 99")


def linked_ledger(place: Place) -> None:
    os.symlink(place.path / "target", place.path / "pfu.db")


def root_removed(place: Place) -> None:
    shutil.rmtree(place.root)


def root_is_fifo(place: Place) -> None:
    shutil.rmtree(place.root)
    os.mkfifo(place.root)


def root_emptied(place: Place) -> None:
    place.run("--mode", "concurrent")
    shutil.rmtree(place.root)
    place.root.mkdir()


def nothing(place: Place) -> None:
    """No trouble but the options."""


TROUBLE: list[tuple[Callable[[Place], None], str, int, str]] = [
    (without_credentials, "", 2, "Unable to locate credentials (set AWS_ACCESS_KEY_ID"),
    (without_credentials, "--profile nobody", 2, "profile (nobody) could not be found"),
    (wrong_secret, "", 2, "SignatureDoesNotMatch"),
    (unknown_key, "", 2, "InvalidAccessKeyId"),
    (expired_token, "", 2, "ExpiredToken"),
    (all_denied, "", 2, "AccessDenied"),
    (text_ledger, "", 2, "pfu.db: file is not a database (name another --db"),
    (foreign_database, "", 2, "pfu.db: a database of another program (name another --db)"),
    (newer_ledger, "", 2, "made by a newer pfu (schema 99) (update pfu.py)"),
    (linked_ledger, "", 2, "is a symbolic link"),
    (nothing, "--db no/such/folder/pfu.db", 2, "No such file or directory (name a file in"),
    (nothing, "--db tree", 2, "Is a directory"),
    (root_removed, "", 2, "tree: No such file or directory"),
    (root_is_fifo, "", 2, "tree: it is a FIFO (name a directory or a file)"),
    (root_emptied, "", 2, "is it mounted?"),
    (nothing, "--mode serial", 2, "argument --mode: invalid choice: 'serial'"),
    (nothing, "--no-such-option", 2, "unrecognized arguments: --no-such-option"),
    (nothing, "--nice 20", 2, "'20' is not from 0 to 19"),
    (nothing, "--workers 0", 2, "'0' is not from 1 to 256"),
    (nothing, "--concurrency -1", 2, "'-1' is not from 1 to 4096"),
    (nothing, "--part-size 4M", 2, "S3 takes parts from 5 MiB to 5 GiB"),
    (nothing, "--part-size lots", 2, "'lots' is no size: write 16M or 1.5GiB"),
    (nothing, "--max-duration soon", 2, "'soon' is no time: write 90s, 15m or 2h"),
    (nothing, "--mode concurrent --workers 2", 2, "--mode concurrent has one process"),
    (nothing, "--quiet --verbose", 2, "contradicts --verbose"),
    (nothing, "--sse-kms-key-id k", 2, "needs --sse aws:kms"),
    (nothing, "--dry-run --status", 2, "--status writes nothing"),
    (nothing, "--endpoint-url ftp://x", 2, "is no http:// or https:// URL"),
    (nothing, "--expected-bucket-owner 999999999999", 2, "AccessDenied"),
]


@pytest.mark.parametrize(
    "trouble, options, code, says", TROUBLE, ids=[f"{t[0].__name__} {t[1]}" for t in TROUBLE]
)
def test_trouble_is_one_clear_line(
    place: Place, trouble: Callable[[Place], None], options: str, code: int, says: str
) -> None:
    place.file("f", b"content")
    trouble(place)
    arguments = ["--mode", "concurrent", *options.split()]
    run = place.run(*arguments, *([] if "--quiet" in options else ["--quiet"]))
    assert says in run.err
    assert (run.code, run.err.count("\n")) == (code, 1), run.err
    assert run.err.startswith("pfu: ")


@pytest.mark.parametrize(
    "destination, says",
    [
        ("bkt", "it does not begin with s3:// (write s3://BUCKET"),
        ("s3://", "it names no bucket"),
        ("s3://x", "it names no bucket"),
        ("s3://UP_per!", "it names no bucket"),
        (
            "s3://missing-bucket",
            "missing-bucket: it is not there (check the name, or pass --create",
        ),
    ],
)
def test_destinations_that_cannot_be(place: Place, destination: str, says: str) -> None:
    place.file("f")
    run = place.run("--mode", "concurrent", to=destination)
    assert (run.code, run.err.count("\n")) == (2, 1)
    assert says in run.err


def test_no_root_no_run(place: Place) -> None:
    run = place.run(to=None)
    assert (run.code, run.err.count("\n")) == (2, 1)
    assert "ROOT is missing" in run.err


def test_an_empty_tree_is_no_trouble(place: Place) -> None:
    run = place.run("--mode", "concurrent", "--json")
    assert (run.code, run.json["seen"], run.json["status"]) == (0, 0, "complete")


def test_nothing_secret_is_said_or_written(place: Place) -> None:
    place.file("f")
    place.environment["AWS_SESSION_TOKEN"] = "token-that-is-secret"
    run = place.run("--mode", "concurrent", "--verbose", "--json")
    assert run.code == 2
    secret = place.environment["AWS_SECRET_ACCESS_KEY"]
    for text in (run.out, run.err, (place.path / "pfu.db").read_bytes().decode("latin-1")):
        assert secret not in text
        assert "token-that-is-secret" not in text


LARGE_FAULTS = [("CompleteMultipartUpload", Action("error", 400, "InvalidPart"), None, 1)]


@pytest.mark.parametrize(
    "operation, action, times, code",
    LARGE_FAULTS,
    ids=[f"{f[0]} {f[1].kind} {f[1].code}" for f in LARGE_FAULTS],
)
def test_faults_with_large_files(
    place: Place, operation: str, action: Action, times: int | None, code: int
) -> None:
    place.file("large", os.urandom(11 * MIB))
    place.file("small")
    place.server.faults.append(Fault(action, operation=operation, times=times))
    run = place.run("--mode", "concurrent", "--part-size", "5M", "--json")
    assert run.code == code, run.err
    assert run.json["uploaded"] == 2 - code
    is_kept = action.code == "AccessDenied"  # the next run may be allowed to go on with it
    assert len(place.server.uploads(BUCKET)) == is_kept
    place.check_ledger_is_honest()
    if not code:
        assert place.stored() == place.local()


# ======================================================================================
# Privacy
# ======================================================================================

ALL_USERS = "http://acs.amazonaws.com/groups/global/AllUsers"
OPEN = {"ownership": None, "public_access_block": None}
PRIVACY: list[tuple[str, dict[str, Any], set[str], str]] = [
    ("blocked", {}, set(), ""),
    ("no blocks, no policy, no ACLs", {"public_access_block": None}, set(), ""),
    ("no blocks, private ACL", OPEN, set(), ""),
    ("public policy", {**OPEN, "policy_public": True}, set(), "its policy is public"),
    ("public policy, blocked", {"policy_public": True}, set(), ""),
    ("public ACL", {**OPEN, "acl_groups": [ALL_USERS]}, set(), "its ACL is public"),
    (
        "public ACL, not in force",
        {"public_access_block": None, "acl_groups": [ALL_USERS]},
        set(),
        "",
    ),
    ("may not ask", {}, {"GetPublicAccessBlock"}, ""),
    ("may ask nothing", OPEN, {"GetPublicAccessBlock", "GetBucketPolicyStatus"}, "cannot tell"),
    ("may not ask for the ACL", OPEN, {"GetBucketAcl"}, "cannot tell"),
]


HOW_REFUSED = ["deny", "not_implemented"]


@pytest.mark.parametrize("name, state, unasked, says", PRIVACY, ids=[p[0] for p in PRIVACY])
@pytest.mark.parametrize("how", HOW_REFUSED)
def test_public_buckets_are_refused(
    place: Place, name: str, state: dict[str, Any], unasked: set[str], says: str, how: str
) -> None:
    place.file("f")
    vars(place.server.bucket(BUCKET)).update(state)
    getattr(place.server, how).update(unasked)
    run = place.run("--mode", "concurrent")
    public = "public" in says
    assert run.code == (2 if public else 0)
    assert bool(place.stored()) != public
    if says or unasked:
        assert (says or "cannot tell") in run.err
    else:
        assert run.err == ""
    if public:
        assert place.run("--mode", "concurrent", "--allow-public").code == 0
        assert place.stored() == place.local()


@pytest.mark.parametrize("mode", ["concurrent", "parallel"])
def test_the_default_bucket_is_made_private_and_owned(place: Place, mode: str) -> None:
    place.file("f")
    place.file("large", b"x" * (5 * MIB + 1))
    run = place.run("--mode", mode, "--json", "--part-size", "5M", to="")
    assert run.code == 0, run.err
    name = "pfu-123456789012-us-east-1"
    assert run.json["destination"] == f"s3://{name}"
    bucket = place.server.bucket(name)
    assert bucket and bucket.public_access_block == ALL_BLOCKED
    assert bucket.headers["x-amz-object-ownership"] == "BucketOwnerEnforced"
    assert "x-amz-acl" not in bucket.headers
    assert sorted(place.server.objects(name)) == ["f", "large"]
    writes = ("PutObject", "CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload")
    owners = {
        request.operation: request.headers.get("x-amz-expected-bucket-owner")
        for request in place.server.log
        if request.operation in writes
    }
    assert owners == dict.fromkeys(writes, "123456789012")
    assert place.run("--json", "--part-size", "5M", to="").json["unchanged"] == 2


def test_a_default_bucket_of_a_stranger_is_refused(place: Place) -> None:
    place.file("f")
    place.server.add_bucket("pfu-123456789012-us-east-1", owner="666666666666")
    run = place.run("--mode", "concurrent", to="")
    assert (run.code, run.err.count("\n")) == (2, 1)
    assert not place.server.objects("pfu-123456789012-us-east-1")


def test_a_named_bucket_is_made_only_on_demand(place: Place) -> None:
    place.file("f")
    assert place.run("--mode", "concurrent", to="s3://new-bucket").code == 2
    assert place.server.bucket("new-bucket") is None
    run = place.run(
        "--mode", "concurrent", "--create-bucket", "--region", "eu-west-1", to="s3://new-bucket"
    )
    assert run.code == 0, run.err
    bucket = place.server.bucket("new-bucket")
    assert bucket and bucket.location == "eu-west-1"
    assert bucket.public_access_block == ALL_BLOCKED


def test_the_expected_owner_goes_with_every_data_call(place: Place) -> None:
    place.file("f")
    run = place.run("--mode", "concurrent", "--expected-bucket-owner", "123456789012")
    assert run.code == 0
    assert {r.headers.get("x-amz-expected-bucket-owner") for r in place.server.log if r.bucket} == {
        "123456789012"
    }


def test_put_object_alone_is_permission_enough(place: Place) -> None:
    place.file("f")
    place.file("large", b"x" * (5 * MIB + 1))
    reads = "HeadBucket ListObjectsV2 GetObject HeadObject GetBucketAcl GetPublicAccessBlock"
    place.server.deny |= {*reads.split(), "GetBucketPolicyStatus", "GetBucketOwnershipControls"}
    run = place.run("--mode", "concurrent", "--part-size", "5M")
    assert run.code == 0
    assert "cannot tell whether it is private" in run.err
    assert place.stored() == place.local()


# ======================================================================================
# Output
# ======================================================================================


def test_without_a_terminal_only_the_summary_is_said(place: Place) -> None:
    place.files(3)
    run = place.run("--mode", "concurrent")
    assert run.err == ""
    head = f"complete: {place.root} to s3://{BUCKET}/p"
    assert run.out.startswith(f"{head}\n  3 files seen\n  3 uploaded     ")
    assert "\x1b" not in run.out
    again = place.run("--mode", "concurrent").out
    assert again.startswith(f"{head}\n  3 files seen\n  0 uploaded\n  3 unchanged\n")
    assert place.run("--mode", "concurrent", "--quiet").out == ""


def test_json_is_one_object_with_the_promised_keys(place: Place) -> None:
    place.files(3)
    summary = place.run("--json").json
    promised = (
        "version batch_id mode root destination status seen uploaded unchanged skipped failed "
        "pending bytes_uploaded elapsed_seconds cpu_seconds peak_memory_bytes requests retries "
        "throttled fast_lane fast_lane_off skipped_by_reason failures"
    )
    assert set(promised.split()) <= set(summary)
    assert summary["requests"] >= 3
    assert summary["peak_memory_bytes"] > 10 * MIB
    assert 0 < summary["cpu_seconds"] < 60


def test_the_counts_of_requests_are_those_of_the_store(place: Place) -> None:
    place.files(30)
    fault = Fault(Action("error", 503, "SlowDown"), operation="PutObject", times=4)
    place.server.faults.append(fault)
    summary = place.run("--json").json
    assert summary["requests"] == place.server.count("PutObject") == 34
    assert (summary["retries"], summary["throttled"]) == (4, 4)


class Screen:
    """A terminal with a memory, as far as pfu asks for one: it wraps, scrolls, erases, colours.

    If ``reflows``, lines are wrapped anew when it gets another size; if not, they are cut.
    """

    TOKEN = re.compile(r"\x1b\[([?\d;]*)([A-Za-z])|[^\x1b]")

    def __init__(self, columns: int, rows: int, *, reflows: bool = True) -> None:
        self.columns, self.rows, self.reflows = columns, rows, reflows
        self.lines = [""]  # all that there ever were; the screen shows the last ones
        self.is_wrapped = [False]  # whether a line goes on in the next one
        self.x = self.y = 0
        self.wraps = True
        self.styles: set[str] = set()

    def feed(self, text: str) -> None:
        position = 0
        for token in self.TOKEN.finditer(text):
            assert token.start() == position, text[position:]
            position = token.end()
            if token[2]:
                self._obey(token[1], token[2])
            elif token[0] == "\n":
                self._go_down()
            elif token[0] == "\r":
                self.x = 0
            else:
                self._put(token[0])
        assert position == len(text), text[position:]

    def _obey(self, argument: str, letter: str) -> None:
        if letter == "m":
            self.styles.add(argument)
        elif letter == "A":
            self.y = max(self.y - int(argument or 1), self.top)
        elif argument + letter in ("?7h", "?7l"):
            self.wraps = letter == "h"
        else:
            assert argument + letter in ("J", "K"), argument + letter
            self.lines[self.y] = self.lines[self.y][: self.x]
            self.is_wrapped[self.y] = False
            if letter == "J":
                del self.lines[self.y + 1 :], self.is_wrapped[self.y + 1 :]

    @property
    def top(self) -> int:
        return max(0, len(self.lines) - self.rows)

    def _go_down(self) -> None:
        self.y += 1
        if self.y == len(self.lines):
            self.lines.append("")
            self.is_wrapped.append(False)

    def _put(self, character: str) -> None:
        if self.x == self.columns and self.wraps:
            self.is_wrapped[self.y] = True
            self._go_down()
            self.x = 0
        self.x = min(self.x, self.columns - 1)
        line = self.lines[self.y].ljust(self.x)
        self.lines[self.y] = line[: self.x] + character + line[self.x + 1 :]
        self.x += 1

    def resize(self, columns: int, rows: int) -> None:
        self.columns, self.rows = columns, rows
        if not self.reflows:
            self.lines = [line[:columns] for line in self.lines]
            return
        old, before = list(zip(self.lines, self.is_wrapped)), self.y
        self.lines, self.is_wrapped, whole, place = [], [], "", 0
        for number, (line, goes_on) in enumerate(old):
            place = len(whole) + self.x if number == before else place
            if number == before:
                self.y = len(self.lines)
            whole += line
            if goes_on:
                continue
            parts = [whole[at : at + columns] for at in range(0, len(whole), columns)] or [""]
            if number == before:
                self.y, self.x = self.y + place // columns, place % columns
            self.lines += parts
            self.is_wrapped += [True] * (len(parts) - 1) + [False]
            whole = ""

    def shown(self) -> str:
        return "\n".join(line.rstrip() for line in self.lines[self.top :]).rstrip("\n")

    def history(self) -> str:
        return "\n".join(line.rstrip() for line in self.lines).rstrip("\n")


@dataclass
class Seen:
    """What a run showed on a terminal."""

    screen: Screen
    raw: str = ""
    views: list[str] = field(default_factory=list)  # after each piece of output
    out: str = ""
    code: int = -1

    def view(self, pattern: str) -> str:
        """The first view with it."""
        return next(view for view in self.views if re.search(pattern, view))

    def take(self, terminal: int) -> None:
        """Show what was written; OSError after the last of it."""
        text = os.read(terminal, 65536).decode()
        self.raw += text
        self.screen.feed(text)
        self.views.append(self.screen.shown())


def nothing_to_do(seen: Seen, process: Any, terminal: int) -> None:
    """Watch only."""


def on_terminal(
    place: Place,
    *arguments: Any,
    columns: int = 80,
    rows: int = 24,
    reflows: bool = True,
    act: Callable[[Seen, Any, int], None] = nothing_to_do,
    environment: Mapping[str, str | None] | None = None,
) -> Seen:
    """A run whose standard error is a terminal; ``act`` is called after each piece of output."""
    changed = {**place.environment, "TERM": "xterm", "NO_COLOR": None, **(environment or {})}
    terminal, slave = pty.openpty()
    seen = Seen(Screen(columns or 80, rows or 24, reflows=reflows))
    set_size(terminal, columns, rows)
    process = subprocess.Popen(
        place.command(*arguments),
        cwd=place.path,
        env={name: value for name, value in changed.items() if value is not None},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=slave,
        preexec_fn=os.setpgrp,  # as a shell does; in an orphaned group SIGTSTP stops nothing
    )
    os.close(slave)
    with contextlib.suppress(OSError):
        while select.select([terminal], [], [], 30)[0]:
            seen.take(terminal)
            act(seen, process, terminal)
    os.close(terminal)
    seen.out = process.communicate(timeout=30)[0].decode()
    seen.code = process.returncode
    return seen


def set_size(terminal: int, columns: int, rows: int) -> None:
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


def slow_and_busy(place: Place, files: int = 80) -> None:
    """A store that answers slowly, is too busy for a while, and never takes one of the files."""
    place.files(files, 3000)
    place.server.faults += [
        Fault(Action("error", 400, "InvalidRequest"), operation="PutObject", key="f00003"),
        Fault(Action("error", 503, "SlowDown"), operation="PutObject", times=8, after=20),
        Fault(Action("slow", seconds=0.15), operation="PutObject"),
    ]


SLOW = ("--mode", "concurrent", "--concurrency", "16")
FAILURE = r"pfu: failed: \S*f00003: upload .*InvalidRequest: injected"


@pytest.mark.parametrize("columns, bar", [(80, 40), (200, 50)])
def test_a_terminal_gets_a_live_view(place: Place, columns: int, bar: int) -> None:
    slow_and_busy(place)
    seen = on_terminal(place, *SLOW, columns=columns)
    assert seen.code == 1
    assert seen.view(r"^checking  the destination; 80 files, 112.8 KiB to upload$")
    headline = r"uploading  \[#+-+\]  +\d+ %"
    counts = r" +\d+ / 80 files +[\d.]+ files/s +[1-9]\d* in flight +1 failed"
    sizes = r" +[\d.]+ [KMi]*B / 112\.8 KiB +[\d.]+ [KMi]*B/s +16 at most +8 throttled"
    block = seen.view(rf"^{headline}\n{counts}\n{sizes}$").splitlines()
    assert len(re.findall(r"[#-]", block[0])) == bar
    assert [line.index("/") for line in block[1:]] == [block[1].index("/")] * 2
    assert {"1", "2", "31", "33", "0"} == seen.screen.styles
    assert re.fullmatch(FAILURE, seen.screen.history().replace("\n", ""))
    assert "\x1b" not in seen.out
    assert "complete with failures: " in seen.out and "8 throttled" in seen.out


def test_the_time_left_is_said_once_it_can_be(place: Place) -> None:
    place.files(100)
    place.server.faults.append(Fault(Action("slow", seconds=0.2), operation="PutObject"))
    seen = on_terminal(place, "--mode", "parallel", "--concurrency", "8")
    assert seen.view(r"(?m)^uploading .* %   [1-9]\d* s left$")
    assert (seen.code, seen.screen.history()) == (0, "")


@pytest.mark.parametrize("reflows", [True, False])
def test_a_terminal_that_changes_its_size_is_left_clean(place: Place, reflows: bool) -> None:
    slow_and_busy(place, 150)
    sizes = iter([(50, 24), (120, 24), (30, 12), (20, 8), (99, 30)])
    next_at = time.monotonic()

    def act(seen: Seen, process: Any, terminal: int) -> None:
        nonlocal next_at
        if "uploading" in seen.views[-1] and time.monotonic() > next_at:
            # What pfu wrote for the size that was must be on the screen before it changes.
            process.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
            while select.select([terminal], [], [], 0)[0]:
                seen.take(terminal)
            size = next(sizes, (80, 24))
            seen.screen.resize(*size)
            set_size(terminal, *size)
            process.send_signal(signal.SIGCONT)
            next_at = time.monotonic() + 0.1

    seen = on_terminal(place, *SLOW, "--verbose", reflows=reflows, act=act)
    assert next(sizes, None) is None
    assert seen.view(r"(?m)^uploading  +\d+ %")
    if reflows:
        assert seen.screen.history().startswith("pfu: 150 files to upload, ")
        assert re.fullmatch(f"pfu: 150 .*KiB{FAILURE}", seen.screen.history().replace("\n", ""))
    else:
        assert not re.search(r"loading  |in flight|throttled", seen.screen.history())


@pytest.mark.parametrize("columns, rows", [(80, 2), (20, 5), (1, 1), (0, 0)])
def test_a_tiny_terminal_is_enough(place: Place, columns: int, rows: int) -> None:
    place.files(40)
    place.server.faults.append(Fault(Action("slow", seconds=0.1), operation="PutObject"))
    seen = on_terminal(place, *SLOW, columns=columns, rows=rows)
    assert (seen.code, seen.screen.history()) == (0, "")
    assert max(view.count("\n") for view in seen.views) < max(rows - 1, 1) or not rows
    if columns == 20:
        assert seen.view(r"^uploading  +\d+ %$")


@pytest.mark.parametrize("stops", [1, 2])
def test_a_stop_leaves_the_terminal_clean(place: Place, stops: int) -> None:
    place.files(300)
    place.server.faults.append(Fault(Action("slow", seconds=0.4), operation="PutObject"))
    sent: list[float] = []

    def act(seen: Seen, process: Any, terminal: int) -> None:
        ready = "stopping " if sent else "in flight"
        if ready in seen.views[-1] and len(sent) < stops:
            sent.append(time.monotonic())
            process.send_signal(signal.SIGINT)

    seen = on_terminal(place, *SLOW, act=act)
    assert seen.code == 4
    assert seen.view(r"^stopping   \[")
    said = "pfu: stopped: SIGINT received", "pfu: stopped at once; the next run goes on"
    assert seen.screen.history() == said[stops - 1]
    assert seen.screen.wraps
    assert ("run it again: it goes on" in seen.out) == (stops == 1)


def test_a_suspended_run_leaves_the_terminal_clean(place: Place) -> None:
    place.files(60)
    place.server.faults += [
        Fault(Action("slow", seconds=3), operation="PutObject", times=1),  # still at work then
        Fault(Action("slow", seconds=0.2), operation="PutObject"),
    ]
    seen_then: list[str] = []

    def act(seen: Seen, process: Any, terminal: int) -> None:
        if "in flight" not in seen.views[-1] or seen_then:
            return
        process.send_signal(signal.SIGTSTP)
        assert os.WIFSTOPPED(os.waitpid(process.pid, os.WUNTRACED)[1])
        while select.select([terminal], [], [], 0)[0]:
            seen.screen.feed(os.read(terminal, 65536).decode())
        seen_then.append(seen.screen.shown())
        process.send_signal(signal.SIGCONT)

    seen = on_terminal(place, *SLOW, act=act)
    assert (seen_then, seen.code, seen.screen.history()) == ([""], 0, "")
    assert "in flight" in seen.views[-2]


@pytest.mark.parametrize(
    "environment, has_view, has_colours",
    [
        ({"NO_COLOR": ""}, True, True),
        ({"NO_COLOR": "1"}, True, False),
        ({"TERM": "dumb"}, False, False),
        ({"TERM": None}, False, False),
    ],
)
def test_colours_and_the_view_are_for_terminals_that_have_them(
    place: Place, environment: dict[str, str | None], has_view: bool, has_colours: bool
) -> None:
    slow_and_busy(place, 40)
    seen = on_terminal(place, *SLOW, environment=environment)
    assert (seen.code, "in flight" in seen.raw) == (1, has_view)
    assert bool(seen.screen.styles) == has_colours
    assert has_view or re.fullmatch(f"{FAILURE}\r\n", seen.raw)


@pytest.mark.parametrize("option", ["--quiet", "--json"])
def test_no_view_where_none_is_wanted(place: Place, option: str) -> None:
    slow_and_busy(place, 20)
    seen = on_terminal(place, *SLOW, option)
    assert re.fullmatch(f"{FAILURE}\r\n", seen.raw)
    assert (seen.out == "") == (option == "--quiet")


def test_what_a_dry_run_lists_and_the_view_do_not_mix(place: Place) -> None:
    place.files(1100)
    both = Screen(400, 24)  # no line wraps, whatever the path
    master, slave = pty.openpty()
    set_size(master, 400, 24)
    process = subprocess.Popen(
        place.command("--dry-run"),
        cwd=place.path,
        env={**place.environment, "TERM": "xterm", "NO_COLOR": "1"},
        stdout=slave,
        stderr=slave,
    )
    os.close(slave)
    raw = ""
    with contextlib.suppress(OSError):
        while text := os.read(master, 65536):
            raw += text.decode()
    os.close(master)
    both.feed(raw)
    assert process.wait() == 0
    lines = both.history().replace("\n", "")
    assert "scanning  500 files seen" in raw
    assert "scanning" not in lines
    assert len(re.findall(r"/d\d/f\d{5}  \d+ B  new", lines)) == 1100


def progress(**figures: int) -> pfu.Progress:
    nothing = dict.fromkeys(pfu.Progress._fields, 0)
    return pfu.Progress(**{**nothing, **figures})  # type: ignore[arg-type]


def view_after(files: int, size: int, *steps: tuple[float, pfu.Progress]) -> pfu.UploadView:
    view = pfu.UploadView(files, size)
    for seconds, step in steps:
        view.move(step, 1000 + seconds)
    return view


FULL_VIEW = (
    "1,234,567 / 2,345,678 files 12,470 files/s 4,096 in flight 1,000,000 failed "
    "8.2 TiB / 9.1 TiB 84.7 GiB/s 4,096 at most 1,000,000 throttled"
)


@pytest.mark.parametrize("stopping", [0, 1])
def test_no_line_is_longer_than_the_terminal_is_wide(stopping: int) -> None:
    figures = {"in_flight": 4096, "limit": 4096, "throttled": 10**6, "failed": 10**6}
    halfway = progress(files=1234567, bytes=9 * 10**12, stopping=stopping, **figures)
    view = view_after(2345678, 10**13, (0, progress()), (1, progress()), (100, halfway))
    assert bool(view.seconds_left()) == (not stopping)
    for columns in range(250):
        lines = [pfu.painted(line, columns, False) for line in view.lines(columns)]
        assert max(map(len, lines)) <= columns
        assert len(lines) in (1, 3)
        assert set(" ".join(lines[1:]).split()) <= set(FULL_VIEW.split())
    assert " ".join(" ".join(lines[1:]).split()) == FULL_VIEW


def test_rates_are_recent_and_time_left_follows_the_work() -> None:
    steps = [(second, progress(files=100 * second, bytes=0)) for second in range(10)]
    view = view_after(2000, 0, *steps)
    assert "    100 files/s" in pfu.painted(view.lines(100)[1], 100, False)
    assert view.seconds_left() == pytest.approx(11)
    steps += [(9 + second, progress(files=900)) for second in range(1, 30)]
    view = view_after(2000, 0, *steps)
    assert "      0 files/s" in pfu.painted(view.lines(100)[1], 100, False)
    assert view.seconds_left() == 0
    assert view_after(2000, 0, *steps[:2]).seconds_left() == 0


def test_files_that_need_not_be_sent_count_as_done() -> None:
    half = progress(files=2, bytes=200, settled_files=3, settled_bytes=300, failed=1)
    block = [pfu.painted(line, 100, False) for line in view_after(10, 1000, (0, half)).lines(100)]
    assert block[0].endswith("]   50 %")
    assert " 5 / 10 files " in block[1] and " 500 B / 1000 B " in block[2]


@BOTH_MODES
def test_progress_tells_the_requests_in_flight(at_hand: Place, mode: str) -> None:
    slow_and_busy(at_hand, 100)
    told: list[pfu.Progress] = []

    class Watcher(pfu.Observer):
        def progress(self, progress: pfu.Progress) -> None:
            told.append(progress)

    assert s3_job(at_hand, Watcher(), mode=mode, concurrency=8).run().exit_code == 1
    assert max(step.in_flight for step in told) == 8 == told[-1].limit
    assert (told[-1].in_flight, told[-1].files, told[-1].failed) == (0, 99, 1)
    assert told[-1].throttled == 8


def test_a_dead_runner_has_nothing_in_flight(place: Place) -> None:
    runner = pfu.LocalRunner(FolderUploader(place.path), pfu.EngineOptions())
    runner.gauges["in_flight"] = runner.gauges["files"] = 5
    runner.bury()
    assert (runner.figure("in_flight"), runner.figure("files")) == (0, 5)
    runner.close(kill=False)


SUMMARY = pfu.Summary(
    root="/srv/data",
    destination="s3://bucket/backup",
    status="complete with failures",
    seen=50_002,
    uploaded=12_345,
    unchanged=37_652,
    skipped=3,
    failed=2,
    bytes_uploaded=5 * 10**9,
    elapsed_seconds=130.0,
    cpu_seconds=12.14,
    peak_memory_bytes=142 * MIB,
    requests=12_360,
    retries=15,
    throttled=3,
    fast_lane=12_000,
    fast_lane_off="given up on the way: 400",
    skipped_by_reason={"symbolic link": 2, "socket": 1},
    exit_code=1,
)
SUMMARY_TEXT = """\
complete with failures: /srv/data to s3://bucket/backup
  50,002 files seen
  12,345 uploaded     4.7 GiB
  37,652 unchanged
       3 skipped      symbolic link: 2, socket: 1
       2 failed       listed above; the ledger has them all
  2 min 10 s, 95 files/s, 36.7 MiB/s
  12.1 s of CPU, 142.0 MiB of memory, 12,360 requests, 15 retried, 3 throttled
  12,000 of 12,345 by the fast lane: given up on the way: 400
next: run it again: what is not in the store is tried once more"""


def test_the_summary_is_read_at_a_glance() -> None:
    assert pfu.summary_text(SUMMARY) == SUMMARY_TEXT
    coloured = pfu.summary_text(SUMMARY, colours=True)
    assert coloured.startswith("\x1b[33mcomplete with failures\x1b[0m: /srv")
    assert "\n  \x1b[31m     2 failed\x1b[0m       listed" in coloured
    assert re.sub(r"\x1b\[\d+m", "", coloured) == SUMMARY_TEXT


def test_status_shows_the_last_runs(place: Place) -> None:
    place.files(3)
    place.run("--mode", "concurrent")
    place.run("--mode", "parallel")
    place.endpoint = ""
    run = place.run("--status", to=None)
    assert run.code == 0
    first, second = run.out.splitlines()
    assert f"complete: {place.root} to s3://{BUCKET}/p: 0 uploaded (0 B), 3 unchanged" in first
    assert ": 3 uploaded (" in second
    assert [job["mode"] for job in place.run("--status", "--json", to=None).json] == [
        "parallel",
        "concurrent",
    ]
    other = place.run("--status", "--db", "none.db", to=None)
    assert (other.code, other.err.count("\n")) == (2, 1)
    assert not (place.path / "none.db").exists()


def test_a_dry_run_says_what_would_go_and_writes_nothing(place: Place) -> None:
    new = place.file("new\x1b", b"12345")
    run = place.run("--dry-run")
    assert run.code == 0
    assert "tree/new\\x1b  5 B  new\n" in run.out
    head = f"dry run: {place.root} to s3://{BUCKET}/p"
    assert run.out.endswith(f"{head}\n  1 file seen\n  1 would go    5 B\n  1 request\n")
    assert not list(place.path.glob("pfu.db*"))
    assert place.server.count() == 0
    place.run("--mode", "concurrent")
    before = (place.path / "pfu.db").read_bytes(), place.server.count()
    os.utime(new, (1, 1))
    run = place.run("--dry-run", "--json")
    assert (run.json["pending"], run.json["bytes_uploaded"]) == (1, 5)
    assert before == ((place.path / "pfu.db").read_bytes(), place.server.count())


def test_names_are_printed_without_escapes(place: Place) -> None:
    place.file("a\x1b[31m\nb", b"1")
    place.server.faults.append(
        Fault(Action("error", 400, "InvalidRequest", "bad\x07"), operation="PutObject")
    )
    run = place.run("--mode", "concurrent")
    assert run.code == 1
    assert "tree/a\\x1b[31m\\nb: upload" in run.err
    assert "\x1b" not in run.err
    assert run.err.count("\n") == 1


def test_help_fits_the_screen(place: Place) -> None:
    place.environment["COLUMNS"] = "100"
    run = place.run("--help", to=None)
    assert run.code == 0
    assert max(map(len, run.out.splitlines())) <= 100
    assert "--dry-run" in run.out
    assert place.run("--version", to=None).out == f"pfu {pfu.__version__}\n"


# ======================================================================================
# Pure parts
# ======================================================================================


def test_a_file_takes_only_possible_steps() -> None:
    possible = {(0, 1), (1, 2), (1, 3), (1, 0), (2, 0), (3, 0)}
    for before, after in itertools.product(pfu.FileStatus, repeat=2):
        file = pfu.FileModel("i", 0, 0, 0, "", "", before, "b", "k")
        if (before, after) in possible:
            file.move_to(after)
            assert file.status is after
        else:
            with pytest.raises(ValueError, match=f"no step from {before.name} to {after.name}"):
                file.move_to(after)
            assert file.status is before


def test_a_run_takes_only_possible_steps() -> None:
    possible = {(0, 1), (1, 2), (2, 3), (2, 4), (0, 5), (1, 5), (2, 5)}
    for before, after in itertools.product(pfu.JobStatus, repeat=2):
        job = pfu.BatchJobRow("i", before, 0, "", "", "")
        if (before, after) in possible:
            job.move_to(after)
        else:
            with pytest.raises(ValueError, match="no step"):
                job.move_to(after)


def test_sql_comes_from_the_fields() -> None:
    @dataclass
    class Row(pfu.BaseModel):
        table = "T"
        indexes = {"T_n": ("n", "id")}  # noqa: RUF012
        id: str
        n: int
        text: str | None = None

    assert Row.create_sql() == [
        "CREATE TABLE IF NOT EXISTS T(id TEXT PRIMARY KEY, n INTEGER, text TEXT)",
        "CREATE INDEX IF NOT EXISTS T_n ON T(n, id)",
    ]
    assert Row.insert_sql() == "INSERT INTO T(id, n, text) VALUES(?, ?, ?)"
    assert Row.insert_sql(updating=["n"]).endswith("ON CONFLICT(id) DO UPDATE SET n=excluded.n")
    assert Row.update_sql(["n", "text"]) == "UPDATE T SET n=?, text=? WHERE id=?"
    assert Row.select_sql("WHERE n=?", ["id"]) == "SELECT id FROM T WHERE n=?"
    assert Row("a", 1).values() == ("a", 1, None)


@pytest.mark.parametrize("name", ODD_NAMES)
def test_names_are_encoded_as_rclone_does(name: str | bytes) -> None:
    encoded = pfu.encode_name(os.fsdecode(name))
    assert encoded == encoded_name(os.fsencode(name))
    encoded.encode("utf-8")


def test_encoded_names_differ_if_the_names_do() -> None:
    generator = random.Random(1)
    alphabet = [b"\xff", b"\xe2", b"\x80", b"\x9b", b"F", b"8", "\u201b".encode(), b"a"]
    names = {b"".join(generator.choices(alphabet, k=generator.randint(1, 6))) for _ in range(5000)}
    assert len({pfu.encode_name(os.fsdecode(name)) for name in names}) == len(names)


@pytest.mark.parametrize(
    "name, expected",
    [
        ("a.txt", "text/plain"),
        ("A.TXT", "text/plain"),
        ("a.jpg", "image/jpeg"),
        ("a.tar.gz", "application/gzip"),
        ("a.json", "application/json"),
        ("a", "application/octet-stream"),
        (".txt", "application/octet-stream"),
        ("a.b c", "application/octet-stream"),
        ("a.\r\nx-evil: 1", "application/octet-stream"),
    ],
)
def test_content_types(name: str, expected: str) -> None:
    assert pfu.content_type(name) == expected


AN_ACCESS_POINT = "arn:aws:s3:us-east-1:123456789012:accesspoint"


@pytest.mark.parametrize(
    "text, bucket, prefix",
    [
        ("s3://bkt", "bkt", ""),
        ("s3://bkt/a b//c/", "bkt", "a b//c/"),
        ("s3://bkt/new\nline", "bkt", "new\nline/"),
        (f"s3://{AN_ACCESS_POINT}/name/a/b", f"{AN_ACCESS_POINT}/name", "a/b/"),
        (f"s3://{AN_ACCESS_POINT}:name/a", f"{AN_ACCESS_POINT}:name", "a/"),
    ],
)
def test_what_a_destination_names(text: str, bucket: str, prefix: str) -> None:
    assert pfu.parse_destination(text) == (bucket, prefix)


@pytest.mark.parametrize(
    "text, size",
    [
        ("0", 0),
        ("512", 512),
        ("16M", 16 * MIB),
        ("1.5GiB", 3 << 29),
        ("2 kb", 2048),
        ("1t", 1 << 40),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert pfu.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "x", "-1", "1X", "1e3", "0x10", "1.2.3M", "\u0661"])
def test_no_sizes(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        pfu.parse_size(text)


@pytest.mark.parametrize(
    "size", [0, 1, 16 * MIB + 1, 160_000 * MIB + 1, 5 << 40, 10_000 * (5 << 30)]
)
def test_parts_suffice(size: int) -> None:
    part = pfu.part_size_for(size, 16 * MIB)
    assert -(-size // part) <= 10_000
    assert 5 * MIB <= part <= 5 << 30


def test_too_large_is_said_before_the_first_byte() -> None:
    assert not pfu.too_large("k" * 1024, 10_000 * (5 << 30))
    assert "its key has 1025 bytes" in pfu.too_large("\u00e9" * 512 + "k", 1)
    assert "S3 takes" in pfu.too_large("k", 10_000 * (5 << 30) + 1)


def test_the_ledger_takes_many_files_in_little_memory(tmp_path: Path) -> None:
    ledger = pfu.Ledger(tmp_path / "l.db")
    found = (pfu.Found(f"{n:032x}", f"/p/{n}", f"k{n}", n % 50, 1, "0100644") for n in range(5000))
    for batch in pfu.batches((pfu.Change(f, "new") for f in found), 500):
        ledger.take_in(batch, "job", 1)
    position, seen = (-1, ""), []
    while page := ledger.begin_page("job", position, 300, 1 << 40):
        assert len(page) <= 300
        position = (page[-1].file_size, page[-1].id)
        seen += [(file.file_size, file.id) for file in page]
    assert seen == sorted(seen)
    assert len(set(seen)) == 5000
    plan = ledger._rows("EXPLAIN QUERY PLAN " + pfu.PAGE_SQL, (0, 5, "a", "job", 10))
    assert "FileStat_pages (status=? AND (file_size,id)>(?,?))" in str(plan)
    assert "TEMP B-TREE" not in str(plan)


def test_pages_are_bounded_by_bytes_too(tmp_path: Path) -> None:
    ledger = pfu.Ledger(tmp_path / "l.db")
    sizes = [1, 10, 10, 100, 1000]
    found = [pfu.Found(f"{n}", f"/{n}", f"{n}", size) for n, size in enumerate(sizes)]
    ledger.take_in([pfu.Change(f, "new") for f in found], "job", 1)
    pages, position = [], (-1, "")
    while page := ledger.begin_page("job", position, 10, 100):
        position = (page[-1].file_size, page[-1].id)
        pages.append([file.file_size for file in page])
    assert pages == [[1, 10, 10], [100], [1000]]


def test_a_page_is_recorded_whole_or_not_at_all(tmp_path: Path) -> None:
    ledger = pfu.Ledger(tmp_path / "l.db")
    found = [pfu.Found(f"{n}", f"/{n}", f"{n}", 1) for n in range(3)]
    ledger.take_in([pfu.Change(f, "new") for f in found], "job", 1)
    page = ledger.begin_page("job", (-1, ""), 10, 100)
    for file in page:
        file.fail("reason", 1)
    page[2].error = object()  # type: ignore[assignment]
    with pytest.raises(pfu.LedgerError):
        ledger.record(page)
    ledger.fold()
    assert ledger.count("job", pfu.FileStatus.FAILED) == 0
    assert ledger.pending("job")[0] == 3


@pytest.mark.parametrize("read_only", [False, True], ids=["run", "dry run"])
def test_what_a_killed_run_recorded_is_known(tmp_path: Path, read_only: bool) -> None:
    ledger = pfu.Ledger(tmp_path / "l.db")
    ledger.take_in([pfu.Change(pfu.Found("1", "/1", "1", 7, 8), "new")], "job", 1)
    page = ledger.begin_page("job", (-1, ""), 10, 100)
    outcome = pfu.Outcome("1", pfu.OutcomeKind.UPLOADED, "", 1, 9, 10, "0100644", 11, 0, "e", "s")
    page[0].apply(outcome)
    ledger.record(page)
    ledger.close()
    ledger = pfu.Ledger(tmp_path / "l.db", read_only=read_only)
    if not read_only:
        ledger.fold()
    known = pfu.Known("1", 9, 10, "0100644", pfu.FileStatus.SUCCESS, 0, 1)
    assert ledger.known(["1"]) == {"1": known}


# ======================================================================================
# Fast lane: signing
# ======================================================================================

KEYS = pfu.Credentials("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", None)
NO_HEADERS = pfu.Headers((), ())
ODD_TEXT = "abcXYZ019-._~ !\"#$%&'()*+,/:;<=>?@[\\]^`{|}äöü€😀\u200b\u0301//../."
PRINTABLE = string.ascii_letters + string.digits + " " * 12 + string.punctuation


def headers_of(pairs: Sequence[tuple[str, str]]) -> pfu.Headers:
    return pfu.Headers(tuple(name for name, _ in pairs), tuple(value for _, value in pairs))


def odd_case(rng: random.Random) -> dict[str, Any]:
    def text(alphabet: str, longest: int, shortest: int = 0) -> str:
        return "".join(rng.choice(alphabet) for _ in range(rng.randint(shortest, longest)))

    names = rng.sample(
        [f"x-amz-meta-{text('abc-09z', 6, 1)}{n}" for n in range(9)], rng.randint(0, 9)
    )
    headers = [(name, text(PRINTABLE, 30)) for name in names]
    if rng.random() < 0.5:
        headers.insert(0, ("content-type", rng.choice(["text/plain", "image/x; a=b  c", ""])))
    bucket, port = rng.choice(["my-bucket", "a.b.c"]), rng.choice(["", ":9000"])
    host, prefix = rng.choice(
        [
            (f"s3.example.com{port}", f"/{bucket}"),
            (f"{bucket}.s3.example.com{port}", ""),
            (f"[::1]{port}", f"/base/{bucket}"),
        ]
    )
    return {
        "key": text(ODD_TEXT, 40, 1),
        "headers": headers,
        "host": host,
        "prefix": prefix,
        "scheme": rng.choice(["http", "https"]),
        "region": rng.choice(["us-east-1", "eu-central-1", "cn-north-1", "auto", "x"]),
        "static": rng.choice(
            [(), (("x-amz-storage-class", "STANDARD_IA"), ("x-amz-tagging", "a=b%20c&d=%s"))]
        ),
        "credentials": pfu.Credentials(
            text(string.ascii_uppercase, 20, 1),
            text(PRINTABLE.strip(), 40, 1),
            rng.choice([None, text(string.ascii_letters + "/+=%", 60, 1)]),
        ),
        "query": rng.choice(
            ["", "", f"partNumber={rng.randint(1, 10000)}&uploadId={text('aZ9._-~', 20)}"]
        ),
        "body": rng.randbytes(rng.randint(0, 40)) if hasattr(rng, "randbytes") else b"body",
    }


def template_for(case: dict[str, Any]) -> pfu.RequestTemplate:
    return pfu.RequestTemplate(
        scheme=case["scheme"],
        host=case["host"],
        address=("localhost", 1),
        path_prefix=case["prefix"],
        headers=case["static"],
        part_headers=case["static"],
        region=case["region"],
        service="s3",
        user_agent="pfu %s",
        ca_bundle=None,
    )


def botocore_signs(case: dict[str, Any]) -> AWSRequest:
    path = f"{case['prefix']}/{quote(case['key'], safe='/~')}"
    url = f"{case['scheme']}://{case['host']}{path}"
    request = AWSRequest("PUT", f"{url}?{case['query']}" if case["query"] else url)
    request.data = case["body"]
    for name, value in [*case["headers"], *case["static"]]:
        request.headers[name] = value
    credentials = ReadOnlyCredentials(*case["credentials"])
    S3SigV4Auth(credentials, "s3", case["region"]).add_auth(request)
    return request


def parse_head(head: bytes) -> tuple[str, dict[str, str]]:
    assert head.endswith(b"\r\n\r\n")
    first, *lines = head[:-4].decode("ascii").split("\r\n")
    pairs = [line.split(": ", 1) for line in lines]
    assert len({name.lower() for name, _ in pairs}) == len(pairs)
    return first, {name.lower(): value for name, value in pairs}


def seconds_of(timestamp: str) -> int:
    return calendar.timegm(time.strptime(timestamp, "%Y%m%dT%H%M%SZ"))


@pytest.mark.parametrize("seed", range(8))
def test_signature_equals_botocores(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(100):
        case = odd_case(rng)
        digest = hashlib.sha256(case["body"]).hexdigest()
        checksum = rng.random() < 0.5
        sums = [("x-amz-checksum-sha256", encode64(bytes.fromhex(digest)))] if checksum else []
        peer = botocore_signs({**case, "headers": [*case["headers"], *sums]})
        now = seconds_of(peer.headers["X-Amz-Date"])
        clock = itertools.repeat(now + 0.5).__next__
        writer = pfu.HeadWriter(template_for(case), case["credentials"], clock)
        headers, length = headers_of(case["headers"]), len(case["body"])
        head = writer.head(case["key"], headers, length, digest, case["query"], checksum=checksum)
        first, sent = parse_head(head)
        url = urlsplit(peer.url)
        target = f"{url.path}?{url.query}" if url.query else url.path
        assert first == f"PUT {target} HTTP/1.1"
        assert sent["authorization"] == peer.headers["Authorization"], case
        assert sent["content-length"] == str(len(case["body"]))
        assert sent["x-amz-content-sha256"] == digest
        assert sent.get("x-amz-security-token") == case["credentials"].token
        for name, value in case["headers"]:
            assert sent[name] == value


def writer_at(clock: Callable[[], float], credentials: pfu.Credentials = KEYS) -> pfu.HeadWriter:
    return pfu.HeadWriter(template_for(odd_case(random.Random(1))), credentials, clock)


def date_of(writer: pfu.HeadWriter) -> str:
    return parse_head(writer.head("k", NO_HEADERS, 0, "0" * 64))[1]["x-amz-date"]


def test_stamp_is_of_the_present_second() -> None:
    now = 1_700_000_000.9
    writer = writer_at(lambda: now)
    assert date_of(writer) == "20231114T221320Z"
    now += 0.2
    assert date_of(writer) == "20231114T221321Z"
    now -= 3600
    assert date_of(writer) == "20231114T211321Z"
    writer.clock_offset = 86400.0
    assert date_of(writer) == "20231115T211321Z"


def test_signing_key_is_derived_once_a_day(monkeypatch: pytest.MonkeyPatch) -> None:
    derived: list[str] = []
    real = pfu.signing_key

    def derive(secret_key: str, date: str, *place: str) -> bytes:
        derived.append(date)
        return real(secret_key, date, *place)

    monkeypatch.setattr(pfu, "signing_key", derive)
    now = 1_700_000_000.0
    writer = writer_at(lambda: now)
    for _ in range(50):
        now += 3600
        date_of(writer)
    assert derived == ["20231114", "20231115", "20231116", "20231117"]
    writer.use(KEYS._replace(token="t"))
    assert len(derived) == 5


@pytest.mark.parametrize(
    "given",
    [
        {"headers": headers_of([("x-amz-meta-a", "b\r\nHost: c")])},
        {"headers": headers_of([("x-amz-meta-a", "ä")])},
        {"headers": headers_of([("x-amz-meta-a", "\t")])},
        {"headers": headers_of([("x-amz-meta-a: b\r\nc", "d")])},
        {"headers": headers_of([("X-Amz-Meta-A", "b"), ("x-amz-meta-a", "c")])},
        {"sha256_hex": "0\r\n"},
        {"query": "a=b HTTP/1.1\r\n"},
        {"query": "a=ä"},
        {"key": "\udcff"},
    ],
)
def test_no_header_can_be_injected(given: dict[str, Any]) -> None:
    whole = {"key": "k", "headers": NO_HEADERS, "length": 0, "sha256_hex": "0" * 64, **given}
    with pytest.raises(ValueError, match=r"header|query|surrogates"):
        writer_at(time.time).head(**whole)


def test_key_cannot_break_the_request_line() -> None:
    head = writer_at(time.time).head("a b\r\nc?d#e%41", NO_HEADERS, 0, "0" * 64)
    assert b"/a%20b%0D%0Ac%3Fd%23e%2541 HTTP/1.1\r\n" in head


# ======================================================================================
# Fast lane: gate
# ======================================================================================


@pytest.fixture
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing outside a test decides how botocore builds a request."""
    for name in list(os.environ):
        if name.startswith("AWS_") or name.lower().endswith(("_proxy", "_ca_bundle")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")


IN_NO_ENVIRONMENT = pytest.mark.usefixtures("no_environment")


def client_for(**arguments: Any) -> Any:
    options = arguments.pop("config", {})
    config = Config(
        **{
            "request_checksum_calculation": "when_required",
            "retries": {"mode": "standard"},
            **options,
        }
    )
    return boto3.client(
        "s3",
        **{
            "region_name": "eu-central-1",
            "aws_access_key_id": KEYS.access_key,
            "aws_secret_access_key": KEYS.secret_key,
            "aws_session_token": arguments.pop("token", None),
            "config": config,
            **arguments,
        },
    )


def capture(bucket: str = "my-bucket", extra: dict[str, Any] | None = None, **client: Any) -> Any:
    token = client.get("token")
    return pfu.capture_template(
        client_for(**client), bucket, extra or {}, lambda: KEYS._replace(token=token)
    )


@IN_NO_ENVIRONMENT
def test_template_of_virtual_host() -> None:
    extra = {
        "StorageClass": "STANDARD_IA",
        "ServerSideEncryption": "AES256",
        "ExpectedBucketOwner": "123456789012",
        "Tagging": "a=b%20c",
        "CacheControl": "no-cache",
    }
    template = capture(extra=extra, token="secret-token")
    assert template.scheme == "https"
    assert template.host == "my-bucket.s3.eu-central-1.amazonaws.com"
    assert template.address == ("my-bucket.s3.eu-central-1.amazonaws.com", 443)
    assert (template.path_prefix, template.region, template.service) == ("", "eu-central-1", "s3")
    assert dict(template.headers) == {
        "cache-control": "no-cache",
        "x-amz-expected-bucket-owner": "123456789012",
        "x-amz-server-side-encryption": "AES256",
        "x-amz-storage-class": "STANDARD_IA",
        "x-amz-tagging": "a=b%20c",
    }
    assert template.part_headers == (("x-amz-expected-bucket-owner", "123456789012"),)
    assert template.user_agent.startswith("Boto3/")
    assert template.ca_bundle.endswith(".pem")
    assert pickle.loads(pickle.dumps(template)) == template
    assert "secret" not in repr(template)


@IN_NO_ENVIRONMENT
def test_template_of_path_style() -> None:
    template = capture(
        endpoint_url="http://LOCALHOST:9000/base", config={"s3": {"addressing_style": "path"}}
    )
    assert template.host == "localhost:9000"
    assert template.address == ("localhost", 9000)
    assert template.path_prefix == "/base/my-bucket"


@IN_NO_ENVIRONMENT
def test_template_keeps_the_ca_bundle(tmp_path: Any) -> None:
    assert capture(verify=str(tmp_path / "ca.pem")).ca_bundle == str(tmp_path / "ca.pem")


@IN_NO_ENVIRONMENT
def test_checksum_header_goes_along() -> None:
    digest = hashlib.sha256(pfu.PROBE_BODY).digest()
    value = base64.b64encode(digest).decode()
    template = capture(extra={"ChecksumSHA256": value})
    writer = pfu.HeadWriter(template, KEYS)
    sent = parse_head(writer.head("k", NO_HEADERS, 3, digest.hex(), checksum=True))[1]
    assert sent["x-amz-checksum-sha256"] == value
    assert "x-amz-checksum-sha256" in sent["authorization"]
    assert "x-amz-checksum-sha256" not in parse_head(writer.head("k", NO_HEADERS, 3, "0" * 64))[1]


@IN_NO_ENVIRONMENT
def test_keys_are_encoded_as_botocore_does() -> None:
    rng = random.Random(5)
    client = client_for()
    for _ in range(60):
        key = "".join(rng.choice(ODD_TEXT) for _ in range(rng.randint(1, 30)))
        urls: list[str] = []

        def intercept(request: Any, urls: list[str] = urls, **_: Any) -> Any:
            urls.append(request.url)
            return AWSResponse(request.url, 200, {}, pfu.NoContent())

        client.meta.events.register_first("before-send.s3.PutObject", intercept)
        client.put_object(Bucket="bucket", Key=key, Body=b"")
        client.meta.events.unregister("before-send.s3.PutObject", intercept)
        expected = urlsplit(urls[0]).path
        assert expected == "/" + pfu.percent_encode_key(key), key


OWNER = "arn:aws:s3:us-east-1:123456789012"


@IN_NO_ENVIRONMENT
@pytest.mark.parametrize(
    ("reason", "arguments"),
    [
        ("S3 Express", {"bucket": "data--euc1-az1--x-s3"}),
        ("several regions", {"bucket": "arn:aws:s3::123456789012:accesspoint/abc.mrap"}),
        (
            "Outposts",
            {"bucket": "arn:aws:s3-outposts:us-east-1:123456789012:outpost/op-1/accesspoint/a"},
        ),
        ("not signed", {"config": {"signature_version": UNSIGNED}}),
        ("not signed", {"config": {"signature_version": "s3"}}),
        ("Acceleration", {"config": {"s3": {"use_accelerate_endpoint": True}}}),
        ("a proxy applies", {"config": {"proxies": {"https": "http://proxy:1"}}}),
        ("client certificate", {"config": {"client_cert": "/c.pem"}}),
        ("verification is off", {"verify": False}),
        ("checksum trailers", {"config": {"request_checksum_calculation": "when_supported"}}),
        ("x-amz-checksum-crc32", {"extra": {"ChecksumCRC32": "AAAAAA=="}}),
        ("content-md5", {"extra": {"ContentMD5": "AAAAAAAAAAAAAAAAAAAAAA=="}}),
        ("cannot build", {"extra": {"NoSuchArgument": 1}}),
        ("cannot build", {"bucket": "no/bucket?"}),
    ],
)
def test_gate_is_closed(reason: str, arguments: dict[str, Any]) -> None:
    closed = capture(**arguments)
    assert isinstance(closed, pfu.GateClosed)
    assert reason in closed.reason


@IN_NO_ENVIRONMENT
def test_gate_opens_for_an_access_point_of_one_region() -> None:
    template = capture(bucket=f"{OWNER}:accesspoint/name", config={"s3": {"use_arn_region": True}})
    assert isinstance(template, pfu.RequestTemplate)
    assert template.host == "name-123456789012.s3-accesspoint.us-east-1.amazonaws.com"
    assert template.region == "us-east-1"


@IN_NO_ENVIRONMENT
def test_gate_follows_the_environments_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://proxy:3128")
    assert "a proxy applies" in capture().reason
    assert isinstance(capture(endpoint_url="http://localhost:1"), pfu.RequestTemplate)
    monkeypatch.setenv("no_proxy", "amazonaws.com")
    assert isinstance(capture(), pfu.RequestTemplate)


@IN_NO_ENVIRONMENT
def test_gate_is_closed_if_botocore_signs_differently() -> None:
    client = client_for()

    def tamper(request: Any, **_: Any) -> None:
        value = request.headers["Authorization"]
        del request.headers["Authorization"]
        request.headers["Authorization"] = value[:-4] + "0000"

    client.meta.events.register_last("request-created.s3", tamper)
    closed = pfu.capture_template(client, "my-bucket", {}, lambda: KEYS)
    assert closed == pfu.GateClosed("botocore signs differently")
    other = KEYS._replace(access_key="OTHER")
    closed = pfu.capture_template(client, "my-bucket", {}, lambda: other)
    assert closed == pfu.GateClosed("botocore signs with other credentials")


@IN_NO_ENVIRONMENT
def test_capture_leaves_no_handler_behind() -> None:
    client = client_for(
        endpoint_url="http://127.0.0.1:9", config={"retries": {"total_max_attempts": 1}}
    )
    assert isinstance(pfu.capture_template(client, "b-b-b", {}, lambda: KEYS), pfu.RequestTemplate)
    with pytest.raises(Exception, match="Could not connect"):
        client.put_object(Bucket="b-b-b", Key=pfu.PROBE_KEY)


# ======================================================================================
# Fast lane: answers
# ======================================================================================

CLEAN = b'HTTP/1.1 200 OK\r\nETag: "e"\r\nContent-Length: 0\r\n\r\n'


def answer_text(*lines: str, body: bytes = b"", status: str = "HTTP/1.1 200 OK") -> bytes:
    return "\r\n".join([status, *lines, "", ""]).encode("latin-1") + body


@pytest.mark.parametrize(
    ("received", "etag", "keep_alive"),
    [
        (CLEAN, '"e"', True),
        (answer_text("etag:x", "content-length: 0", "Connection: close"), "x", False),
        (answer_text("ETag: x", "Content-Length: 0", "Connection: Keep-Alive"), "x", True),
        (answer_text("ETag: x", "Content-Length: 5", body=b"<Yes>"), "x", True),
        (answer_text("ETag: x", "Transfer-Encoding: chunked", body=b"0\r\n\r\n"), "x", True),
        (
            answer_text(
                "ETag: x",
                "Transfer-Encoding: Chunked",
                body=b"3;a=b\r\nabc\r\n00A\r\n0123456789\r\n0\r\n\r\n",
            ),
            "x",
            True,
        ),
        (
            answer_text(
                "ETag:   x \t", "X: \xe4", "X: 2", "Content-Length: 0", status="HTTP/1.1 200 "
            ),
            "x",
            True,
        ),
        (answer_text("ETag: x", "Content-Length: 0", status="HTTP/1.1 200"), "x", True),
    ],
)
def test_clean_answers(received: bytes, etag: str, keep_alive: bool) -> None:
    for end in range(len(received)):
        assert pfu.check_answer(received[:end]) is None
    assert pfu.check_answer(received) == (etag, keep_alive)


@pytest.mark.parametrize(
    ("received", "reason"),
    [
        (b"HTTP/1.0 200 OK\r\n", "not HTTP/1.1"),
        (b"\x16\x03\x01", "not HTTP/1.1"),
        (b"HTTP/1.1 2000 OK\r\n\r\n", "not HTTP/1.1"),
        (b"HTTP/1.1 200 OK\nETag: x\r\n\r\n", "not HTTP/1.1"),
        (answer_text("ETag: x", " folded", "Content-Length: 0"), "not HTTP/1.1"),
        (answer_text("ETag : x", "Content-Length: 0"), "not HTTP/1.1"),
        (answer_text("ETag: \x00", "Content-Length: 0"), "not HTTP/1.1"),
        (answer_text("nonsense", "ETag: x", "Content-Length: 0"), "not HTTP/1.1"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 5000, "too long"),
        (answer_text("Content-Length: 0"), "without an ETag"),
        (answer_text("ETag: x"), "without a length"),
        (answer_text("ETag: x", "Content-Length: -1"), "without a length"),
        (answer_text("ETag: x", "Content-Length: 1,1"), "without a length"),
        (
            answer_text("ETag: x", "Content-Length: 0", "Transfer-Encoding: chunked"),
            "without a length",
        ),
        (answer_text("ETag: x", "Transfer-Encoding: gzip, chunked"), "without a length"),
        (answer_text("ETag: x", "Content-Length: 0", "content-length: 0"), "twice"),
        (answer_text("ETag: x", "ETag: y", "Content-Length: 0"), "twice"),
        (answer_text("ETag: x", "Content-Length: 0", body=b"x"), "longer"),
        (answer_text("ETag: x", "Content-Length: 99999999"), "longer"),
        (answer_text("ETag: x", "Content-Length: 7", body=b"<Error>"), "is an error"),
        (
            answer_text("ETag: x", "Content-Length: 1", "Content-Encoding: gzip", body=b"z"),
            "not plain",
        ),
        (answer_text("ETag: x", "Transfer-Encoding: chunked", body=b"z\r\n"), "broken chunk"),
        (answer_text("ETag: x", "Transfer-Encoding: chunked", body=b"\r\n"), "broken chunk"),
        (answer_text("ETag: x", "Transfer-Encoding: chunked", body=b"1\r\nabc"), "broken chunk"),
        (
            answer_text("ETag: x", "Transfer-Encoding: chunked", body=b"0\r\nT: t\r\n\r\n"),
            "broken chunk",
        ),
        (answer_text("ETag: x", "Transfer-Encoding: chunked", body=b"fffff\r\n"), "broken chunk"),
        (answer_text("ETag: x", "Transfer-Encoding: chunked", body=b"0\r\n\r\nx"), "after its end"),
        (
            answer_text("ETag: x", "Transfer-Encoding: chunked", body=b"7\r\n<Error>\r\n0\r\n\r\n"),
            "is an error",
        ),
        (answer_text("Content-Length: 0", status="HTTP/1.1 100 Continue"), "Continue"),
        (
            answer_text("Location: /", status="HTTP/1.1 307 Temporary Redirect"),
            "Temporary Redirect",
        ),
        (answer_text(status="HTTP/1.1 204 No Content"), "No Content"),
    ],
)
def test_other_answers_are_rejected(received: bytes, reason: str) -> None:
    with pytest.raises(pfu.Rejected) as caught:
        pfu.check_answer(received)
    assert reason in caught.value.reason
    assert not caught.value.dropped


def test_what_a_rejection_tells() -> None:
    date = "Sun, 22 Nov 2026 19:30:20 GMT"
    with pytest.raises(pfu.Rejected) as caught:
        pfu.check_answer(
            answer_text("Date: " + date, "Retry-After: 7", "x: y", status="HTTP/1.1 503 Slow Down")
        )
    problem = pickle.loads(pickle.dumps(caught.value))
    told = (problem.status, problem.reason, problem.retry_after, problem.date, problem.dropped)
    assert told == (503, "Slow Down", 7.0, date, True)
    assert str(problem) == "503 Slow Down"


def fed_in_slices(received: bytes, rng: random.Random) -> Any:
    end = 0
    while end < len(received):
        end += rng.randint(1, max(1, len(received) // 2))
        result = pfu.check_answer(received[:end])
        if result is not None:
            return result, received[:end]
    return None, received


class Readable(io.BytesIO):
    def makefile(self, *_: Any) -> Readable:
        return self


def http_client_agrees(received: bytes, accepted: Any) -> None:
    peer = http.client.HTTPResponse(Readable(received), method="PUT")  # type: ignore[arg-type]
    peer.begin()
    assert peer.status == 200
    assert (peer.getheader("ETag") or "").strip() == accepted.etag
    assert b"<Error" not in peer.read()
    assert peer.isclosed()


def mutate(received: bytes, rng: random.Random) -> bytes:
    changed = bytearray(received)
    for _ in range(rng.randint(0, 3)):
        at = rng.randrange(len(changed) + 1)
        action = rng.random()
        if action < 0.4 and at < len(changed):
            changed[at] = rng.choice(b"\r\n\0:; 0123456789abcdef\x80\xffX<")
        elif action < 0.7:
            del changed[at : at + rng.randint(1, 8)]
        else:
            changed[at:at] = rng.choice(
                [b"\r\n", b"\r\n\r\n", b"0", b": ", b"<Error>", b"\n", b"1\r\n"]
            )
    return bytes(changed)


def test_fuzzed_answers() -> None:
    rng = random.Random(7)
    seeds = [
        CLEAN,
        answer_text("x-amz-id-2: abc=", "Date: x", "ETag: x", "Server: S", "Content-Length: 0"),
        answer_text("ETag: x", "Transfer-Encoding: chunked", body=b"3\r\nabc\r\n0\r\n\r\n"),
        answer_text("ETag: x", "Content-Length: 4", body=b"abcd"),
        answer_text("Retry-After: 1", "Content-Length: 0", status="HTTP/1.1 503 Slow Down"),
    ]
    accepted = rejected = waiting = 0
    for _ in range(100_000):
        received = mutate(rng.choice(seeds), rng)
        try:
            result, used = fed_in_slices(received, rng)
        except pfu.Rejected:
            rejected += 1
            with pytest.raises(pfu.Rejected):
                pfu.check_answer(received)
            continue
        if result is None:
            waiting += 1
            assert pfu.check_answer(received) is None
            continue
        accepted += 1
        http_client_agrees(used, result)
    assert min(accepted, rejected, waiting) > 5_000


# ======================================================================================
# Limiter
# ======================================================================================

Latency = Callable[[int, int, random.Random], float]


class Simulation:
    """A closed loop of `limit` requests against a model of a store; time is simulated.

    The limiter hears of them as Engine._steer() tells it.
    """

    def __init__(self, latency: Latency, cap: float = 0.0, size: Any = None, seed: int = 1) -> None:
        self.latency = latency
        self.cap = cap
        self.tokens = self.burst = cap * 0.05
        self.size = size or (lambda rng: 4096)
        self.rng = random.Random(seed)
        self.now = self.refilled = 0.0
        self.limiter = pfu.Limiter(0.0)
        self.meter = pfu.Meter()
        self.told = 0.0
        self.counted = pfu.Tally(0, 0, 0, 0)
        self.flying: list[tuple[float, int, float, int, bool]] = []
        self.begun = self.done = self.drops = 0
        self.limits: list[tuple[float, int]] = []

    def run(self, seconds: float) -> Simulation:
        end = self.now + seconds
        while self.now < end:
            while len(self.flying) < self.limiter.limit:
                self.begin()
            self.now, _, began, size, fine = heapq.heappop(self.flying)
            if fine:
                self.done += 1
                self.meter.completed(size, began, self.now)
            else:
                self.drops += 1
                self.meter.dropped(began, self.now)
            if self.now - self.told >= pfu.TICK_SECONDS:
                self.tell()
            if not self.limits or self.limits[-1][1] != self.limiter.limit:
                self.limits.append((self.now, self.limiter.limit))
        return self

    def tell(self) -> None:
        self.told = self.now
        counted = pfu.Tally._make(getattr(self.meter, name) for name in pfu.Tally._fields)
        change = (after - before for after, before in zip(counted, self.counted))
        self.limiter.absorb(pfu.Tally._make(change), self.now)
        self.counted, self.meter.cut_at = counted, self.limiter.cut_at

    def begin(self) -> None:
        self.begun += 1
        size = self.size(self.rng)
        self.tokens = min(self.burst, self.tokens + (self.now - self.refilled) * self.cap)
        self.refilled = self.now
        fine = not self.cap or self.tokens >= 1
        self.tokens -= fine
        takes = self.latency(len(self.flying) + 1, size, self.rng) if fine else 0.02
        heapq.heappush(self.flying, (self.now + takes, self.begun, self.now, size, fine))

    def reached(self, limit: int) -> float:
        return next((when for when, reached in self.limits if reached >= limit), float("inf"))

    def mean_limit(self, since: float) -> float:
        ends = [*[when for when, _ in self.limits[1:]], self.now]
        spans = [
            (max(end, since) - max(when, since), limit)
            for (when, limit), end in zip(self.limits, ends)
        ]
        return sum(span * limit for span, limit in spans) / (self.now - since)


def steady(seconds: float) -> Latency:
    return lambda flying, size, rng: seconds


def jittered(seconds: float) -> Latency:
    return lambda flying, size, rng: seconds * rng.uniform(0.7, 1.3)


def kneed(seconds: float, knee: int) -> Latency:
    return lambda flying, size, rng: seconds * max(1.0, flying / knee) * rng.uniform(0.7, 1.3)


@pytest.mark.parametrize("latency", [steady(0.03), jittered(0.03), steady(0.1), jittered(0.1)])
def test_limit_rises_within_a_second_where_it_pays(latency: Latency) -> None:
    simulation = Simulation(latency).run(3)
    assert simulation.reached(512) < 1.2
    assert simulation.limiter.limit == 512


def test_limit_finds_a_knee() -> None:
    simulation = Simulation(kneed(0.03, 100)).run(60)
    assert 90 <= simulation.mean_limit(since=20) <= 115
    assert simulation.done >= 0.95 * 60 * 100 / 0.03


@pytest.mark.parametrize("seed", range(3))
def test_limit_holds_under_a_cap(seed: int) -> None:
    simulation = Simulation(jittered(0.03), cap=3500, seed=seed).run(60)
    assert simulation.drops < 0.004 * simulation.done
    assert simulation.done > 0.8 * 3500 * 60
    assert len([when for when, _ in simulation.limits if when > 30]) <= 12


@pytest.mark.parametrize("seed", range(4))
def test_limit_is_calm_with_sizes_of_all_kinds(seed: int) -> None:
    def latency(flying: int, size: int, rng: random.Random) -> float:
        return (0.03 + size / 50e6) * max(1.0, flying / 100) * rng.uniform(0.7, 1.3)

    def size(rng: random.Random) -> int:
        return int(min(16e6, rng.lognormvariate(9.7, 2)))

    simulation = Simulation(latency, size=size, seed=seed).run(120)
    assert 80 <= simulation.mean_limit(since=60) <= 160
    assert len([when for when, _ in simulation.limits if when > 60]) <= 16


def test_limit_follows_changed_work() -> None:
    simulation = Simulation(kneed(0.03, 50)).run(40)
    assert simulation.limiter.limit <= 70
    simulation.latency = kneed(0.03, 300)
    simulation.run(60)
    assert simulation.mean_limit(since=90) > 200


def test_limit_is_cut_when_the_store_is_in_trouble() -> None:
    simulation = Simulation(jittered(0.03)).run(3)
    simulation.cap, simulation.burst = 300.0, 10.0
    simulation.run(30)
    assert simulation.limiter.limit <= 20


def test_limit_can_be_fixed() -> None:
    simulation = Simulation(jittered(0.03))
    simulation.limiter = pfu.Limiter(0.0, 7, 7, 7)
    assert simulation.run(20).limits == [(simulation.limits[0][0], 7)]


def test_limit_does_not_rise_while_it_is_not_used() -> None:
    limiter = pfu.Limiter(0.0)
    for number in range(10_000):
        limiter.absorb(pfu.Tally(4096 + pfu.REQUEST_WORK, 1, 0.03, 0), number * 0.01)
    assert limiter.limit == 32


def test_drops_begun_before_a_cut_do_not_count() -> None:
    limiter = pfu.Limiter(0.0)
    meter = pfu.Meter()
    for _ in range(4):
        meter.dropped(1.0, 2.0)
    limiter.absorb(pfu.Tally(0, 0, meter.busy, meter.drops), 2.0)
    assert limiter.limit == 22
    meter = pfu.Meter()
    meter.cut_at = limiter.cut_at
    for _ in range(100):
        meter.dropped(1.5, 2.5)
    limiter.absorb(pfu.Tally(0, 0, meter.busy, meter.drops), 2.5)
    assert limiter.limit == 22


# ======================================================================================
# Fast lane: connections
# ======================================================================================


class LaneRequest:
    def __init__(self, head: bytes) -> None:
        first, self.headers = parse_head(head)
        self.target = first.split(" ")[1]
        self.body = b""


Behaviour = Callable[["LaneStore", LaneRequest, asyncio.StreamReader, asyncio.StreamWriter], Any]


@final
class LaneStore:
    """A tiny server; what it does with a request is a coroutine that a test gives."""

    def __init__(self, behaviour: Behaviour, context: ssl.SSLContext | None = None) -> None:
        self.behaviour = behaviour
        self.context = context
        self.requests: list[LaneRequest] = []
        self.accepted = 0
        self.writers: list[asyncio.StreamWriter] = []

    async def __aenter__(self) -> LaneStore:
        self.server = await asyncio.start_server(self.serve, "127.0.0.1", 0, ssl=self.context)
        self.port = self.server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self.server.close()
        for writer in self.writers:
            writer.transport.abort()
        await asyncio.sleep(0.02)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        self.writers.append(writer)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                request = LaneRequest(await reader.readuntil(b"\r\n\r\n"))
                self.requests.append(request)
                await self.behaviour(self, request, reader, writer)

    def template(self, ca: str | None = None, **changes: Any) -> pfu.RequestTemplate:
        case = odd_case(random.Random(3))
        case.update(host=f"localhost:{self.port}", prefix="/b", scheme="https" if ca else "http")
        changes = {"address": ("localhost", self.port), "ca_bundle": ca, **changes}
        return dataclasses.replace(template_for(case), **changes)


async def read_body(request: LaneRequest, reader: asyncio.StreamReader) -> None:
    request.body = await reader.readexactly(int(request.headers["content-length"]))
    assert hashlib.sha256(request.body).hexdigest() == request.headers["x-amz-content-sha256"]


async def fine(store: LaneStore, request: LaneRequest, reader: Any, writer: Any) -> None:
    await read_body(request, reader)
    writer.write(CLEAN)


def saying(reply: bytes, then_close: bool = False) -> Behaviour:
    async def say(store: LaneStore, request: LaneRequest, reader: Any, writer: Any) -> None:
        await read_body(request, reader)
        writer.write(reply)
        if then_close:
            writer.close()
            raise ConnectionError

    return say


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = {"SWEEP": 0.05, "STALL": 0.4, "DRAIN": 0.2, "IDLE": 0.3, "CONNECT": 0.5}
    for name, seconds in limits.items():
        monkeypatch.setattr(pfu, f"{name}_SECONDS", seconds)


async def put(
    lane: pfu.FastLane, key: str = "k", body: bytes | memoryview = b"body", **named: Any
) -> str:
    headers = headers_of([("content-type", "text/plain"), ("x-amz-meta-mode", "0100644")])
    return await lane.put(key, headers, body, hashlib.sha256(body).hexdigest(), **named)


@contextlib.asynccontextmanager
async def opened(lane: pfu.FastLane) -> AsyncIterator[pfu.FastLane]:
    await lane.open()
    try:
        yield lane
    finally:
        await lane.close()


def with_store(
    behaviour: Behaviour, scenario: Callable[[LaneStore, pfu.FastLane], Any], **named: Any
) -> Any:
    async def run() -> Any:
        async with (
            LaneStore(behaviour) as store,
            opened(pfu.FastLane(store.template(), lambda: KEYS, **named)) as lane,
        ):
            return await scenario(store, lane)

    return asyncio.run(run())


@pytest.mark.parametrize("size", [0, 1, 4096, 65536, 65537, 300_000, 5_000_000])
def test_bodies_of_all_sizes(size: int) -> None:
    async def scenario(store: LaneStore, lane: pfu.FastLane) -> None:
        body = random.Random(size).getrandbits(8 * size + 8).to_bytes(size + 1, "big")[:size]
        for given in (body, memoryview(body)):
            assert await put(lane, body=given) == '"e"'
        assert store.requests[1].body == body
        assert store.accepted == 1

    with_store(fine, scenario)


def test_last_connection_used_is_used_first() -> None:
    async def scenario(store: LaneStore, lane: pfu.FastLane) -> None:
        await asyncio.gather(*[put(lane, f"k{n}") for n in range(20)])
        assert store.accepted == lane.connections == 20
        for _ in range(20):
            await put(lane)
        assert store.accepted == 20
        assert lane.requests == 40

    with_store(fine, scenario)


def test_connection_close_is_obeyed() -> None:
    async def scenario(store: LaneStore, lane: pfu.FastLane) -> None:
        await put(lane)
        assert lane.connections == 0
        await put(lane)
        assert store.accepted == 2

    with_store(saying(CLEAN.replace(b"ETag", b"Connection: close\r\nETag")), scenario)


def test_idle_connection_that_was_closed_is_noticed() -> None:
    async def scenario(store: LaneStore, lane: pfu.FastLane) -> None:
        await put(lane)
        await asyncio.sleep(0.1)
        assert lane.connections == 0
        assert await put(lane) == '"e"'
        assert (store.accepted, lane.requests) == (2, 2)

    with_store(saying(CLEAN, then_close=True), scenario)


def test_connection_closed_as_it_is_reused_is_repeated_once() -> None:
    async def close_second(
        store: LaneStore, request: LaneRequest, reader: Any, writer: Any
    ) -> None:
        await read_body(request, reader)
        if len(store.requests) == 2:
            writer.transport.abort()
            raise ConnectionError
        writer.write(CLEAN)

    async def scenario(store: LaneStore, lane: pfu.FastLane) -> None:
        await put(lane)
        assert await put(lane) == '"e"'
        assert (store.accepted, lane.requests) == (2, 3)

    with_store(close_second, scenario)


def test_bytes_on_an_idle_connection_close_it() -> None:
    async def scenario(store: LaneStore, lane: pfu.FastLane) -> None:
        await put(lane)
        store.writers[0].write(b"HTTP/1.1 408 Request Timeout\r\n\r\n")
        await asyncio.sleep(0.05)
        assert lane.connections == 0

    with_store(fine, scenario)


@pytest.mark.parametrize(
    ("behaviour", "reason", "dropped"),
    [
        (saying(b"", then_close=True), "closed before the answer", True),
        (saying(CLEAN[:30], then_close=True), "closed before the answer", True),
        (saying(answer_text(status="HTTP/1.1 503 Slow Down")), "503 Slow Down", True),
        (saying(answer_text(status="HTTP/1.1 403 Forbidden")), "403 Forbidden", False),
        (saying(b"SSH-2.0\r\n"), "not HTTP/1.1", False),
        (saying(CLEAN + CLEAN), "longer", False),
    ],
)
def test_bad_answers(behaviour: Behaviour, reason: str, dropped: bool) -> None:
    async def scenario(store: LaneStore, lane: pfu.FastLane) -> None:
        with pytest.raises(pfu.Rejected) as caught:
            await put(lane)
        assert reason in str(caught.value)
        assert caught.value.dropped is dropped
        assert (lane.connections, lane.requests) == (0, 1)

    with_store(behaviour, scenario)


def test_answer_in_pieces() -> None:
    async def dribble(store: LaneStore, request: LaneRequest, reader: Any, writer: Any) -> None:
        await read_body(request, reader)
        for byte in CLEAN:
            writer.write(bytes([byte]))
            await asyncio.sleep(0.001)

    async def scenario(store: LaneStore, lane: pfu.FastLane) -> None:
        lane._pool.give_back(await lane._pool.connect())
        assert await put(lane) == await put(lane) == '"e"'
        assert store.accepted == 1

    with_store(dribble, scenario)


def test_early_answer_to_a_large_body_is_not_believed() -> None:
    async def hasty(store: LaneStore, request: LaneRequest, reader: Any, writer: Any) -> None:
        writer.write(CLEAN)
        await asyncio.sleep(10)

    async def scenario(store: LaneStore, lane: pfu.FastLane) -> None:
        with pytest.raises(pfu.Rejected, match="before the body was sent"):
            await put(lane, body=bytes(20_000_000))

    with_store(hasty, scenario)


@pytest.mark.parametrize("size", [10, 20_000_000])
def test_deadline_of_a_stalled_request(quick: None, size: int) -> None:
    async def silent(store: LaneStore, request: LaneRequest, reader: Any, writer: Any) -> None:
        await asyncio.sleep(60)

    async def scenario(store: LaneStore, lane: pfu.FastLane) -> None:
        began = time.monotonic()
        with pytest.raises(pfu.Rejected, match="no progress") as caught:
            await put(lane, body=bytes(size))
        assert caught.value.dropped
        assert 0.3 < time.monotonic() - began < 30
        assert lane.connections == 0

    with_store(silent, scenario)


def test_slow_body_is_not_stalled(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    # All lies in our buffer and the kernel's at once. The limits are long enough that a machine
    # which pauses does not seem to be a line that does.
    monkeypatch.setattr(pfu.Connection, "slice_size", 2 * MIB)
    for name in "STALL", "DRAIN":
        monkeypatch.setattr(pfu, f"{name}_SECONDS", 1.5)

    async def slow(store: LaneStore, request: LaneRequest, reader: Any, writer: Any) -> None:
        left = int(request.headers["content-length"])
        while left:
            left -= len(await reader.read(8 << 10))
            await asyncio.sleep(0.015)
        writer.write(CLEAN)

    async def scenario(store: LaneStore, lane: pfu.FastLane) -> None:
        store.server.sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32 << 10)
        began = time.monotonic()
        assert await put(lane, body=bytes(1_600_000)) == '"e"'
        assert time.monotonic() - began > pfu.STALL_SECONDS

    with_store(slow, scenario)


def test_idle_connections_grow_old(quick: None) -> None:
    async def scenario(store: LaneStore, lane: pfu.FastLane) -> None:
        await put(lane)
        assert lane.connections == 1
        await asyncio.sleep(0.6)
        assert lane.connections == 0

    with_store(fine, scenario)


def test_cancelled_put_closes_its_connection() -> None:
    async def silent(store: LaneStore, request: LaneRequest, reader: Any, writer: Any) -> None:
        await asyncio.sleep(10)

    async def scenario(store: LaneStore, lane: pfu.FastLane) -> None:
        task = asyncio.ensure_future(put(lane, body=bytes(10_000_000)))
        await asyncio.sleep(0.1)
        assert lane.connections == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert lane.connections == 0

    with_store(silent, scenario)


def test_nothing_listens() -> None:
    async def scenario(store: LaneStore, lane: pfu.FastLane) -> None:
        store.server.close()
        await asyncio.sleep(0.05)
        with pytest.raises(pfu.Rejected, match="cannot connect to localhost") as caught:
            lane._pool.give_back(await lane._pool.connect())
        assert not caught.value.dropped
        with pytest.raises(pfu.Rejected, match="cannot connect to localhost"):
            await put(lane)

    with_store(fine, scenario)


def test_name_is_spread_over_all_addresses() -> None:
    async def scenario() -> None:
        async with LaneStore(fine) as store:
            second = await asyncio.start_server(store.serve, "127.0.0.2", store.port)
            async with opened(pfu.FastLane(store.template(), lambda: KEYS)) as lane:

                async def resolved(*_: Any, **__: Any) -> Any:
                    hosts = ["127.0.0.1", "127.0.0.3", "127.0.0.2"]
                    return [(0, 0, 0, "", (host, store.port)) for host in hosts]

                lane._pool.loop.getaddrinfo = resolved  # type: ignore[method-assign]
                await asyncio.gather(*[put(lane, f"k{n}") for n in range(20)])
                hosts = [writer.get_extra_info("sockname")[0] for writer in store.writers]
                assert min(hosts.count("127.0.0.1"), hosts.count("127.0.0.2")) >= 5
                assert lane._pool._addresses == ["127.0.0.1", "127.0.0.2"]
            second.close()

    asyncio.run(scenario())


def test_unknown_name() -> None:
    async def scenario() -> None:
        async with LaneStore(fine) as store:
            template = store.template(address=("no-such-host.invalid", 1))
            async with opened(pfu.FastLane(template, lambda: KEYS)) as lane:
                with pytest.raises(pfu.Rejected, match="cannot resolve"):
                    await put(lane)

    asyncio.run(scenario())


def test_key_that_cannot_be_encoded_is_rejected() -> None:
    async def scenario(store: LaneStore, lane: pfu.FastLane) -> None:
        with pytest.raises(pfu.Rejected):
            await put(lane, "\udcff")
        assert await put(lane) == '"e"'
        assert store.accepted == 1

    with_store(fine, scenario)


def test_wrong_clock_is_corrected_once() -> None:
    async def strict(store: LaneStore, request: LaneRequest, reader: Any, writer: Any) -> None:
        await read_body(request, reader)
        skew = abs(seconds_of(request.headers["x-amz-date"]) - time.time())
        date = f"Date: {formatdate(usegmt=True)}"
        writer.write(CLEAN if skew < 900 else answer_text(date, status="HTTP/1.1 403 Forbidden"))

    async def scenario(store: LaneStore, lane: pfu.FastLane) -> None:
        assert set(await asyncio.gather(*[put(lane) for _ in range(5)])) == {'"e"'}
        assert lane.requests == 10
        assert lane.clock_offset == pytest.approx(7200, abs=3)
        await put(lane)
        assert lane.requests == 11

    with_store(strict, scenario, clock=lambda: time.time() - 7200)


def test_forbidden_with_a_right_clock_is_not_repeated() -> None:
    async def scenario(store: LaneStore, lane: pfu.FastLane) -> None:
        with pytest.raises(pfu.Rejected, match="403"):
            await put(lane)
        assert lane.requests == 1

    date = f"Date: {formatdate(usegmt=True)}"
    with_store(saying(answer_text(date, status="HTTP/1.1 403 Forbidden")), scenario)


@pytest.mark.parametrize("kind", [pfu.FatalError, pfu.RetryableError, pfu.SlowDownError])
def test_credentials_are_read_again(
    monkeypatch: pytest.MonkeyPatch, kind: type[pfu.TransferError]
) -> None:
    monkeypatch.setattr(pfu, "CREDENTIALS_SECONDS", 0.02)
    turn: list[pfu.Credentials | Exception] = [KEYS]
    readings = itertools.count()
    read = 0

    def source() -> pfu.Credentials:
        nonlocal read
        read = next(readings)
        if isinstance(turn[0], Exception):
            raise turn[0]
        return turn[0]

    async def put_after(lane: pfu.FastLane, now: pfu.Credentials | Exception) -> None:
        """As soon as the source has given this word three times."""
        turn[0] = now
        enough = read + 3
        while read < enough:
            await asyncio.sleep(0.01)
        assert await put(lane) == '"e"'

    async def scenario() -> None:
        async with LaneStore(fine) as store, opened(pfu.FastLane(store.template(), source)) as lane:
            await put(lane)
            await put_after(lane, kind("renew", "", "no"))
            await put_after(lane, KEYS._replace(access_key="NEW", token="t"))
        first, second, third = (request.headers for request in store.requests)
        for kept in (first, second):
            assert "AKIDEXAMPLE/" in kept["authorization"]
            assert "x-amz-security-token" not in kept
        assert "NEW/" in third["authorization"]
        assert third["x-amz-security-token"] == "t"

    asyncio.run(asyncio.wait_for(scenario(), 2))


def test_credentials_that_come_after_the_end_trouble_nobody(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(pfu, "CREDENTIALS_SECONDS", 0.01)
    asked, answered, readings = threading.Event(), threading.Event(), itertools.count()

    def source() -> pfu.Credentials:
        if next(readings):
            asked.set()
            answered.wait(10)
        return KEYS

    async def scenario() -> None:
        async with LaneStore(fine) as store, opened(pfu.FastLane(store.template(), source)):
            while not asked.is_set():
                await asyncio.sleep(0.01)

    loop, threads = asyncio.new_event_loop(), ThreadPoolExecutor(1)
    loop.set_default_executor(threads)
    loop.run_until_complete(scenario())
    loop.close()
    answered.set()
    threads.shutdown()
    assert not caplog.records


# ======================================================================================
# Fast lane: TLS
# ======================================================================================


NEW_KEY = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = tmp_path_factory.mktemp("tls")

    def openssl(command: str) -> None:
        subprocess.run(["openssl", *command.split()], cwd=root, check=True, capture_output=True)

    openssl(f"req -x509 {NEW_KEY} -nodes -days 2 -subj /CN=ca -keyout ca.key -out ca.pem")
    hosts = {"good": "DNS:localhost", "other": "DNS:example.com", "address": "IP:127.0.0.1"}
    for name, host in hosts.items():
        openssl(f"req {NEW_KEY} -nodes -subj /CN={name} -keyout {name}.key -out {name}.csr")
        (root / "ext").write_text(f"subjectAltName={host}\nauthorityKeyIdentifier=keyid\n")
        openssl(
            f"x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2"
            f" -extfile ext -out {name}.pem"
        )
    return root


def server_context(certificates: Any, name: str) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificates / f"{name}.pem", certificates / f"{name}.key")
    return context


def with_tls(
    certificates: Any,
    scenario: Callable[[LaneStore, pfu.FastLane], Any],
    name: str = "good",
    behaviour: Behaviour = fine,
    version: Any = ssl.TLSVersion.TLSv1_3,
    ca: str = "ca.pem",
) -> None:
    context = server_context(certificates, name)
    context.maximum_version = version

    async def run() -> None:
        async with LaneStore(behaviour, context) as store:
            template = store.template(ca=str(certificates / ca))
            async with opened(pfu.FastLane(template, lambda: KEYS)) as lane:
                await scenario(store, lane)

    asyncio.run(run())


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("size", [0, 4096, 65536, 65537, 5_000_000])
def test_tls(certificates: Any, version: Any, size: int) -> None:
    async def scenario(store: LaneStore, lane: pfu.FastLane) -> None:
        for _ in range(3):
            await asyncio.gather(*[put(lane, body=bytes(size)) for _ in range(3)])
        assert store.accepted == 3
        assert store.requests[-1].body == bytes(size)
        assert store.writers[0].get_extra_info("ssl_object").version() == version.name.replace(
            "v1_", "v1."
        )

    with_tls(certificates, scenario, version=version)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_tls_session_is_resumed(certificates: Any, version: Any) -> None:
    async def scenario(store: LaneStore, lane: pfu.FastLane) -> None:
        await put(lane)
        await asyncio.gather(*[put(lane) for _ in range(4)])
        reused = [writer.get_extra_info("ssl_object").session_reused for writer in store.writers]
        assert reused == [False, True, True, True]

    with_tls(certificates, scenario, version=version)


def test_tls_idle_close_is_noticed(certificates: Any) -> None:
    async def scenario(store: LaneStore, lane: pfu.FastLane) -> None:
        for _ in range(2):
            await put(lane)
            await asyncio.sleep(0.1)
            assert lane.connections == 0
        assert lane.requests == 2

    with_tls(certificates, scenario, behaviour=saying(CLEAN, then_close=True))


def test_tls_verifies_name_and_chain(certificates: Any) -> None:
    async def scenario(store: LaneStore, lane: pfu.FastLane) -> None:
        with pytest.raises(pfu.Rejected, match="CERTIFICATE_VERIFY_FAILED"):
            await put(lane)
        assert store.requests == []
        assert lane.connections == 0

    with_tls(certificates, scenario, name="other")
    with_tls(certificates, scenario, ca="other.pem")


def test_plain_server_where_tls_is_expected(certificates: Any) -> None:
    async def greet(reader: Any, writer: Any) -> None:
        writer.write(b"220 mail\r\n")

    async def scenario() -> None:
        server = await asyncio.start_server(greet, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with LaneStore(fine) as store:
            template = store.template(ca=str(certificates / "ca.pem"), address=("localhost", port))
            async with opened(pfu.FastLane(template, lambda: KEYS)) as lane:
                with pytest.raises(pfu.Rejected, match="cannot connect"):
                    await put(lane)
        server.close()

    asyncio.run(scenario())


def test_descriptor_limit_is_raised() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(200, hard), hard))
        assert pfu.descriptor_limit() == hard - pfu.RESERVED_DESCRIPTORS
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# ======================================================================================
# Fast lane: in a run
# ======================================================================================

IS_SAFE_LANE = "amz-sdk-invocation-id"  # a header that botocore sends, and the fast lane does not


class LaneFault(Fault):
    """A fault that only the fast lane meets."""

    def _concerns(self, request: Request) -> bool:
        return super()._concerns(request) and IS_SAFE_LANE not in request.headers


def puts_of(server: S3Server) -> dict[str, set[str]]:
    """The keys whose PutObject was acknowledged, by the lane that they came by."""
    lanes: dict[str, set[str]] = {"fast": set(), "safe": set()}
    for request in server.log:
        if request.operation == "PutObject" and request.acknowledged:
            lanes["safe" if IS_SAFE_LANE in request.headers else "fast"].add(request.key)
    return lanes


def closed_proxy(place: Place) -> str:
    closed_port(place)
    proxy, place.endpoint = place.endpoint, place.server.endpoint
    return proxy


def no_proxy_at_all(place: Place) -> None:
    """The normal case."""


def proxy_of_https(place: Place) -> None:
    place.environment["HTTPS_PROXY"] = closed_proxy(place)


def proxy_of_other_hosts(place: Place) -> None:
    place.environment.update(HTTP_PROXY=closed_proxy(place), NO_PROXY="127.0.0.1")


@BOTH_MODES
@pytest.mark.parametrize("prepare", [no_proxy_at_all, proxy_of_https, proxy_of_other_hosts])
def test_all_files_go_by_the_fast_lane(
    place: Place, prepare: Callable[[Place], None], mode: str
) -> None:
    place.files(40)
    prepare(place)
    run = place.run("--mode", mode, "--json")
    assert (run.code, run.err) == (0, "")
    assert (run.json["fast_lane"], run.json["uploaded"]) == (40, 40)
    assert run.json["fast_lane_off"] is None
    assert place.stored() == place.local()
    assert {lane: len(keys) for lane, keys in puts_of(place.server).items()} == {
        "fast": 40,
        "safe": 0,
    }


@BOTH_MODES
def test_large_files_count_as_fast_too(place: Place, mode: str) -> None:
    place.files(10)
    place.file("large", b"x" * (5 * MIB + 1))
    run = place.run("--mode", mode, "--part-size", "5M", "--json")
    assert run.code == 0
    assert (run.json["fast_lane"], run.json["uploaded"]) == (11, 11)
    assert run.json["fast_lane_off"] is None
    assert place.stored() == place.local()


def test_both_lanes_say_the_same_of_a_file(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ODD_NAMES:
        place.file(name, os.fsencode(name))
    arguments = ["--storage-class", "STANDARD_IA", "--expected-bucket-owner", ACCOUNT, "--json"]
    fast = place.run("--mode", "concurrent", *arguments)
    place.server.faults.append(LaneFault(Action("error", 500), operation="PutObject"))
    safe = place.run("--mode", "concurrent", "--force", *arguments, to=f"s3://{BUCKET}/q")
    assert (fast.json["fast_lane"], safe.json["fast_lane"]) == (len(ODD_NAMES), 0)
    objects = place.server.objects(BUCKET)
    assert len(objects) == 2 * len(ODD_NAMES)
    for key, stored in objects.items():
        other = objects[f"q{key[1:]}"]
        assert (stored.body, stored.etag, stored.headers) == (
            other.body,
            other.etag,
            other.headers,
        )


@pytest.mark.parametrize(
    "files, options, least, most",
    [(400, [], 16, pfu.HIGHEST_LIMIT), (100, ["--concurrency", "7"], 7, 7)],
)
def test_requests_in_flight_stay_below_the_limit(
    place: Place, files: int, options: list[str], least: int, most: int
) -> None:
    place.files(files)
    place.server.faults.append(Fault(Action("slow", seconds=0.03), operation="PutObject"))
    run = place.run("--mode", "concurrent", *options, "--json")
    assert (run.code, run.json["fast_lane"]) == (0, files)
    assert least <= place.server.peak_in_flight <= most


# -- why it is off


def behind_a_proxy(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", closed_proxy(place))


def other_credentials(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pfu.S3Uploader, "_credentials", lambda uploader: KEYS)


def as_usual(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing but the destination."""


@IN_NO_ENVIRONMENT
@pytest.mark.parametrize(
    "prepare, bucket, reason",
    [
        (as_usual, BUCKET, None),
        (behind_a_proxy, BUCKET, "a proxy applies to http://127.0.0.1:"),
        (other_credentials, BUCKET, "botocore signs with other credentials"),
        (as_usual, "data--euc1-az1--x-s3", "the bucket is S3 Express"),
        (
            as_usual,
            "arn:aws:s3::123456789012:accesspoint:a.mrap",
            "access point of several regions",
        ),
    ],
)
def test_the_gate_says_why_it_is_closed(
    place: Place,
    monkeypatch: pytest.MonkeyPatch,
    prepare: Callable[[Place, pytest.MonkeyPatch], None],
    bucket: str,
    reason: str | None,
) -> None:
    for name, value in place.server.environment().items():
        monkeypatch.setenv(name, value)
    prepare(place, monkeypatch)
    options = pfu.S3Options(endpoint_url=place.server.endpoint)
    uploader = pfu.S3Uploader(f"s3://{bucket}", options)
    uploader._open_gate(uploader._client_of("s3"))
    if reason is None:
        assert uploader.fast_lane_off is None
    else:
        assert reason in str(uploader.fast_lane_off)
    assert place.server.log == []


@IN_NO_ENVIRONMENT
@BOTH_MODES
def test_a_closed_gate_leaves_all_to_the_safe_lane(
    place: Place, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    monkeypatch.setattr(pfu, "client_refusal", lambda client: "the test says so")
    for name, value in place.server.environment().items():
        monkeypatch.setenv(name, value)
    place.files(40)
    options = pfu.S3Options(endpoint_url=place.server.endpoint)
    uploader = pfu.S3Uploader(f"s3://{BUCKET}/p", options)
    settings = pfu.RunOptions(mode=mode, nice=0)
    summary = pfu.BatchJobModel(place.root, uploader, place.path / "l.db", settings).run()
    assert (summary.exit_code, summary.uploaded) == (0, 40)
    assert (summary.fast_lane, summary.fast_lane_off) == (0, "the test says so")
    assert place.stored() == place.local()
    assert not puts_of(place.server)["fast"]


class ForgetfulUploader(pfu.S3Uploader):
    """Has credentials until it comes to the loop that uploads."""

    is_on_loop = False

    async def enter_loop(self) -> None:
        self.is_on_loop = True
        await super().enter_loop()

    def _credentials(self) -> pfu.Credentials:
        if self.is_on_loop:
            raise pfu.FatalError("read credentials", "", "they are gone")
        return super()._credentials()


@IN_NO_ENVIRONMENT
@BOTH_MODES
def test_credentials_that_vanish_before_the_first_file_end_the_run(
    place: Place, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    for name, value in place.server.environment().items():
        monkeypatch.setenv(name, value)
    place.files(3)
    options = pfu.S3Options(endpoint_url=place.server.endpoint)
    uploader = ForgetfulUploader(f"s3://{BUCKET}/p", options)
    settings = pfu.RunOptions(mode=mode, nice=0)
    summary = pfu.BatchJobModel(place.root, uploader, place.path / "l.db", settings).run()
    assert uploader.fast_lane_off is None
    assert (summary.exit_code, summary.error) == (2, "read credentials: they are gone")
    assert place.stored() == {}


# -- answers that it does not understand

NOT_UNDERSTOOD: list[tuple[str, Action, str]] = [
    ("500", Action("error", 500), "500 Internal Server Error"),
    ("500 before the body", Action("early_error", 500), "500 Internal Server Error"),
    ("200 with an error", Action("error200"), "is an error"),
    ("200 and more", Action("error", 200, headers={"content-length": "0"}), "longer than expected"),
    ("403", Action("error", 403, "AccessDenied"), "403 Forbidden"),
    ("307", Action("redirect", 307, region="eu-west-1"), "307 Temporary Redirect"),
    ("garbage", Action("garbage"), "not HTTP/1.1"),
    ("endless", Action("endless", seconds=0.1), "longer than expected"),
    ("half headers", Action("half_headers"), "closed before the answer"),
    ("half a body", Action("half_body"), "closed before the answer"),
    ("lost acknowledgement", Action("lost_ack"), "connection lost"),
    ("reset before the body", Action("reset_before_body"), "connection lost"),
    ("reset within the body", Action("reset_within_body"), "connection lost"),
]


@pytest.mark.parametrize("name, action, reason", NOT_UNDERSTOOD, ids=[c[0] for c in NOT_UNDERSTOOD])
def test_what_the_fast_lane_does_not_understand_goes_by_the_safe_one(
    place: Place, name: str, action: Action, reason: str
) -> None:
    place.files(60)
    fault = LaneFault(action, operation="PutObject")
    place.server.faults.append(fault)
    run = place.run("--mode", "concurrent", "--json")
    assert (run.code, run.err, run.json["failures"]) == (0, "", [])
    assert run.json["uploaded"] == 60
    assert place.stored() == place.local()
    place.check_ledger_is_honest()
    assert run.json["fast_lane"] == 0
    assert run.json["fast_lane_off"].startswith("given up on the way: ")
    assert reason in run.json["fast_lane_off"]
    assert fault.applied >= pfu.MAX_REFUSALS
    assert {lane: len(keys) for lane, keys in puts_of(place.server).items()} == {
        "fast": 0,
        "safe": 60,
    }


@pytest.mark.parametrize("kind", ["garbage", "half_body", "reset_within_body"])
def test_every_worker_finds_its_way(place: Place, kind: str) -> None:
    place.files(pfu.PAGE_ROWS + 100, 20)  # more than one page: both workers have something to do
    fault = LaneFault(Action(kind), operation="PutObject")
    place.server.faults.append(fault)
    run = place.run("--mode", "parallel", "--workers", 2, "--json")
    assert (run.code, run.err, run.json["failures"]) == (0, "", [])
    assert (run.json["uploaded"], run.json["fast_lane"]) == (pfu.PAGE_ROWS + 100, 0)
    assert fault.applied >= 2 * pfu.MAX_REFUSALS
    assert run.json["fast_lane_off"].startswith("given up on the way: ")
    assert place.stored() == place.local()
    place.check_ledger_is_honest()


@BOTH_MODES
@pytest.mark.parametrize("kind", ["error", "error200", "garbage", "half_headers", "half_body"])
def test_an_answer_now_and_then_costs_no_more_than_its_file(
    place: Place, mode: str, kind: str
) -> None:
    place.files(60)
    fault = LaneFault(Action(kind), operation="PutObject", times=10)
    place.server.faults.append(fault)
    run = place.run("--mode", mode, "--json")
    assert (run.code, run.err, run.json["failures"]) == (0, "", [])
    assert run.json["uploaded"] == 60
    assert place.stored() == place.local()
    assert fault.applied == 10
    assert run.json["fast_lane"] == len(puts_of(place.server)["fast"]) == 50
    assert len(puts_of(place.server)["safe"]) == 10
    assert run.json["fast_lane_off"] is None


@BOTH_MODES
def test_a_store_that_closes_without_a_word_is_understood(place: Place, mode: str) -> None:
    place.files(60)
    place.server.faults.append(LaneFault(Action("close_after"), operation="PutObject"))
    run = place.run("--mode", mode, "--json")
    assert (run.code, run.err, run.json["failures"]) == (0, "", [])
    assert (run.json["fast_lane"], run.json["fast_lane_off"]) == (60, None)
    assert place.stored() == place.local()


@dataclass
class Storm(Fault):
    """Meets no file more than three times, lest the waits for one double all too often."""

    met: Counter[str] = field(default_factory=Counter)

    def matches(self, request: Request, generator: random.Random) -> bool:
        hits = self.met[request.key] < 3 and super().matches(request, generator)
        self.met[request.key] += hits
        return hits


@BOTH_MODES
def test_storms_of_slow_down(place: Place, mode: str) -> None:
    place.files(150)
    action = Action("error", 503, "SlowDown")
    storm = Storm(action, operation="PutObject", probability=0.5, times=60)
    place.server.faults.append(storm)
    run = place.run("--mode", mode, "--json")
    assert (run.code, run.err, run.json["failures"]) == (0, "", [])
    assert (run.json["uploaded"], run.json["failed"]) == (150, 0)
    assert run.json["throttled"] == storm.applied == 60
    assert (run.json["fast_lane"], run.json["fast_lane_off"]) == (150, None)
    assert run.json["retries"] == 60
    assert place.stored() == place.local()
    place.check_ledger_is_honest()


class StubLane:
    """A fast lane whose answers are given; None is a success."""

    def __init__(self, *answers: pfu.Rejected | None) -> None:
        self.answers = iter(answers)
        self.requests = 0

    async def put(self, *_: Any, **__: Any) -> str:
        self.requests += 1
        answer = next(self.answers)
        if answer is not None:
            raise answer
        return '"fast"'


def uploader_with(
    lane: StubLane, monkeypatch: pytest.MonkeyPatch
) -> tuple[pfu.S3Uploader, Callable[[], str]]:
    """An S3Uploader with that fast lane, and a call that sends one file and returns its ETag."""
    uploader = pfu.S3Uploader(f"s3://{BUCKET}/p")
    uploader.fast_lane_off, uploader._lane = None, lane  # type: ignore[assignment]
    monkeypatch.setattr(uploader, "put", lambda upload: pfu.Receipt('"safe"'))
    source = pfu.SourceFile(__file__, pfu.FreeTree().open, pfu.Traffic().beat)
    source.close()
    upload = pfu.Upload("k", source, b"body", "0" * 64, {}, "text/plain", 5 * MIB)

    def send() -> str:
        with ThreadPoolExecutor(1) as threads:
            return asyncio.run(uploader.send(upload, threads)).etag

    return uploader, send


@pytest.mark.parametrize(
    "rejected, drops, throttled, etag",
    [
        (None, 0, 0, '"fast"'),
        (pfu.Rejected(500, "Internal Server Error"), 0, 0, '"safe"'),
        (pfu.Rejected(None, "reset", dropped=True), 1, 0, '"safe"'),
        (pfu.Rejected(503, "Slow Down", dropped=True), 1, 1, None),
        (pfu.Rejected(429, "Too Many Requests", dropped=True), 1, 1, None),
    ],
)
def test_a_rejection_is_weighed(
    monkeypatch: pytest.MonkeyPatch,
    rejected: pfu.Rejected | None,
    drops: int,
    throttled: int,
    etag: str | None,
) -> None:
    uploader, send = uploader_with(StubLane(rejected), monkeypatch)
    if etag is None:
        with pytest.raises(pfu.SlowDownError, match=str(rejected)):
            send()
    else:
        assert send() == etag
    traffic = uploader.traffic
    assert (traffic.meter.drops, traffic.throttled, traffic.fast_requests) == (drops, throttled, 1)
    assert traffic.fast_files == (etag == '"fast"')
    assert uploader.fast_lane_off is None


def test_only_refusals_in_a_row_end_the_fast_lane(monkeypatch: pytest.MonkeyPatch) -> None:
    refused = pfu.Rejected(None, "the answer is not HTTP/1.1")
    nearly = [refused] * (pfu.MAX_REFUSALS - 1)
    lane = StubLane(*nearly, None, *nearly, refused)
    uploader, send = uploader_with(lane, monkeypatch)
    for _ in range(2 * pfu.MAX_REFUSALS - 1):
        assert uploader.fast_lane_off is None
        send()
    assert send() == '"safe"'
    assert uploader.fast_lane_off == "given up on the way: the answer is not HTTP/1.1"
    sent = lane.requests
    assert send() == '"safe"'
    assert (lane.requests, uploader.traffic.fast_files) == (sent, 1)


# -- over TLS


@contextlib.contextmanager
def tls_place(tmp_path: Path, certificates: Path, ca: str) -> Iterator[Place]:
    context = server_context(certificates, "address")
    with S3Server(buckets=[BUCKET], tls=context) as server:
        place = Place(tmp_path, server)
        place.environment["AWS_CA_BUNDLE"] = str(certificates / ca)
        yield place


@BOTH_MODES
def test_a_run_over_tls(tmp_path: Path, certificates: Path, mode: str) -> None:
    with tls_place(tmp_path, certificates, "ca.pem") as place:
        place.files(50)
        run = place.run("--mode", mode, "--json")
        assert (run.code, run.err) == (0, "")
        assert (run.json["uploaded"], run.json["fast_lane"]) == (50, 50)
        assert run.json["fast_lane_off"] is None
        assert place.stored() == place.local()
        assert place.server.endpoint.startswith("https:")
        place.check_ledger_is_honest()


# ======================================================================================
# Where files are read
# ======================================================================================


def turns_in_threads(place: pfu.ReadingPlace) -> int:
    """How many of the next reads go to threads."""
    count = 0
    while not place.is_loop(100):
        count += 1
    return count


def read_slowly(place: pfu.ReadingPlace) -> int:
    """How many reads of 5 ms on the loop it takes to move to threads, at most 100."""
    for count in range(100):
        if not place.is_loop(100):
            return count
        place.took(0.005)
    raise AssertionError("reads stay on the loop")


def test_reads_begin_on_the_loop_and_stay_there_while_they_are_quick() -> None:
    place = pfu.ReadingPlace()
    for _ in range(10_000):
        assert place.is_loop(100)
        place.took(0.00001)
    assert place.is_loop(pfu.INLINE_BYTES)
    assert not place.is_loop(pfu.INLINE_BYTES + 1)


def test_one_slow_read_moves_nothing() -> None:
    place = pfu.ReadingPlace()
    place.took(0.005)
    assert place.is_loop(100)


def test_slow_reads_move_to_threads_and_are_tried_again_ever_later() -> None:
    place = pfu.ReadingPlace()
    assert 1 <= read_slowly(place) <= 3
    turns = []
    for _ in range(4):
        turns.append(1 + turns_in_threads(place))  # the 1: it was asked once, to see that it moved
        place.took(0.005)
        assert not place.is_loop(100), "one slow probe is enough"
    first = pfu.INLINE_PROBE
    assert turns == [first - 1, 2 * first - 1, 4 * first - 1, 8 * first - 1]


def test_a_quick_probe_brings_the_reads_back() -> None:
    place = pfu.ReadingPlace()
    read_slowly(place)
    turns_in_threads(place)
    for _ in range(10_000):
        place.took(0.00001)
        assert place.is_loop(100)


def test_large_files_do_not_count_as_probes() -> None:
    place = pfu.ReadingPlace()
    read_slowly(place)
    for _ in range(10 * pfu.INLINE_PROBE):
        assert not place.is_loop(pfu.INLINE_BYTES + 1)
    assert turns_in_threads(place) > pfu.INLINE_PROBE / 2


class InstantUploader(pfu.Uploader):
    """Needs no time and no thread."""

    destination = "instant://store"

    def put(self, upload: pfu.Upload) -> pfu.Receipt:
        return pfu.Receipt("etag")

    async def send(self, upload: pfu.Upload, threads: Any) -> pfu.Receipt:
        return self.put(upload)


def test_slow_reads_run_side_by_side(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    lock, readers = threading.Lock(), Counter[str]()
    real = pfu.SourceFile.read

    def read(source: pfu.SourceFile, offset: int, size: int) -> bytes:
        with lock:
            readers["now"] += 1
            readers["most"] = max(readers["most"], readers["now"])
            readers["on the loop"] += threading.current_thread() is threading.main_thread()
        time.sleep(0.005)
        with lock:
            readers["now"] -= 1
        return real(source, offset, size)

    monkeypatch.setattr(pfu.SourceFile, "read", read)
    place.files(600)
    settings = pfu.RunOptions(mode="concurrent", nice=0)
    job = pfu.BatchJobModel(place.root, InstantUploader(), place.path / "l.db", settings)
    summary = job.run()
    assert (summary.exit_code, summary.uploaded) == (0, 600)
    assert readers["most"] > 8
    assert 1 <= readers["on the loop"] < 60


# ======================================================================================
# Uploaders: what every provider has to do
# ======================================================================================


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


class Conformance:
    """What holds for every Uploader, in both modes; subclasses say how to make and inspect one."""

    def uploader(self, place: Place) -> pfu.Uploader:
        raise NotImplementedError

    def stored(self, place: Place) -> dict[str, bytes | None]:
        raise NotImplementedError

    def job(self, place: Place, mode: str) -> pfu.BatchJobModel:
        options = pfu.RunOptions(mode=mode, workers=2 if mode == "parallel" else 0, nice=0)
        options = dataclasses.replace(options, part_size=5 * MIB)
        return pfu.BatchJobModel(place.root, self.uploader(place), place.path / "l.db", options)

    @BOTH_MODES
    def test_stores_files_of_all_sizes(self, place: Place, mode: str) -> None:
        for size in (0, 1, 5 * MIB, 5 * MIB + 1):
            place.file(f"dir/f{size}", b"z" * size)
        summary = self.job(place, mode).run()
        assert (summary.exit_code, summary.uploaded) == (0, 4), summary
        assert self.stored(place) == place.local()
        assert self.job(place, mode).run().unchanged == 4

    @BOTH_MODES
    def test_stores_again_what_it_has(self, place: Place, mode: str) -> None:
        place.file("f", b"old")
        self.job(place, mode).run()
        place.file("f", b"newer")
        assert self.job(place, mode).run().uploaded == 1
        assert self.stored(place) == {"f": b"newer"}

    def test_can_be_sent_to_another_process(self, place: Place) -> None:
        uploader = self.uploader(place)
        uploader.open(2)
        copy = pickle.loads(pickle.dumps(uploader))
        assert (copy.destination, copy.prefix) == (uploader.destination, uploader.prefix)
        uploader.close()


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
# Large files: parts, resuming, leftovers
# ======================================================================================

PART = ("--part-size", "5M")


def puts_of_parts(server: S3Server, after: int = 0) -> list[tuple[str, str]]:
    """Key and number of each part that was acknowledged, in order, after so many requests."""
    return [
        (request.key, request.query["partNumber"])
        for request in server.log[after:]
        if request.operation == "UploadPart" and request.acknowledged
    ]


def run_broken_off(place: Place, parts: int, *arguments: str) -> int:
    """A run that ends once so many parts were acknowledged. Returns how many requests it made."""
    gone = Fault(Action("error", 403, "InvalidAccessKeyId"), operation="UploadPart", after=parts)
    place.server.faults.append(gone)
    run = place.run(*PART, "--concurrency", "1", *arguments)
    assert run.code == 2, run.err
    place.server.faults.clear()
    return len(place.server.log)


PART_FAULTS = [Action("error", 404, "NoSuchUpload")]


@pytest.mark.parametrize(
    "mode, lane", [("concurrent", "fast"), ("parallel", "fast"), ("concurrent", "safe")]
)
@pytest.mark.parametrize("action", PART_FAULTS, ids=[f"{a.kind} {a.code}" for a in PART_FAULTS])
def test_faults_of_parts(place: Place, mode: str, lane: str, action: Action) -> None:
    place.file("large", os.urandom(11 * MIB))
    if lane == "safe":
        place.server.faults.append(LaneFault(Action("error", 500), operation="UploadPart"))
    place.server.faults.append(Fault(action, operation="UploadPart", times=2))
    run = place.run(*PART, "--mode", mode, "--workers", 2 if mode == "parallel" else 1, "--json")
    assert (run.code, run.json["uploaded"]) == (0, 1), run.err
    if lane == "safe":
        assert run.json["fast_lane"] == 0
    assert place.stored() == place.local()
    assert not place.server.uploads(BUCKET)


EDGES = (0, 1, 5 * MIB - 1, 5 * MIB, 5 * MIB + 1, 10 * MIB, 10 * MIB + 1)


@BOTH_MODES
def test_motos_server_takes_sizes_at_every_edge(place: Place, mode: str) -> None:
    for size in EDGES:
        place.file(f"f{size}", os.urandom(size))
    place.endpoint = ""
    run = place.run(*PART, "--sandbox", "--mode", mode, "--json")
    assert (run.code, run.json["uploaded"]) == (0, len(EDGES)), run.err


@BOTH_MODES
def test_sizes_at_every_edge(place: Place, mode: str) -> None:
    for size in EDGES:
        place.file(f"f{size}", os.urandom(size))
    sparse = place.file("sparse", b"")
    os.truncate(sparse, 12 * MIB)
    run = place.run(*PART, "--mode", mode, "--json")
    assert (run.code, run.json["uploaded"], run.json["fast_lane"]) == (0, 8, 8)
    assert place.stored() == place.local()
    assert place.run(*PART, "--mode", mode, "--json").json["unchanged"] == 8


def rewrite(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def test_a_file_that_grows_large_under_way_goes_up_in_parts(place: Place) -> None:
    path = place.file("growing", b"small")
    grow = Action("call", function=lambda: rewrite(path, b"g" * (11 * MIB)))
    place.file("first", b"x")
    place.server.faults.append(Fault(grow, operation="PutObject", key="first"))
    run = place.run(*PART, "--mode", "concurrent", "--concurrency", "1", "--json")
    assert (run.code, run.json["uploaded"]) == (0, 2), run.err
    assert place.stored() == place.local()


def test_a_touch_under_way_begins_the_file_anew(place: Place) -> None:
    path = place.file("touched", os.urandom(11 * MIB))
    touch = Action("call", function=lambda: os.utime(path, (5, 5)))
    place.server.faults.append(Fault(touch, operation="UploadPart", times=1))
    run = place.run(*PART, "--mode", "concurrent", "--json")
    assert (run.code, run.json["uploaded"]) == (0, 1), run.err
    (stored,) = place.server.objects(BUCKET).values()
    assert stored.headers["x-amz-meta-file-mtime"] == "5000000000ns"
    assert not place.server.uploads(BUCKET)


def test_a_worker_that_dies_leaves_no_upload_behind(place: Place) -> None:
    for number in range(3):
        place.file(f"large{number}", os.urandom(16 * MIB))
    place.server.faults.append(Fault(Action("slow", seconds=0.3), operation="UploadPart"))
    run = place.start(*PART, "--workers", "2", "--concurrency", "2", "--json")
    wait_until(lambda: len(puts_of_parts(place.server)) > 1)
    os.kill(children_of(run.pid)[0], signal.SIGKILL)
    place.server.faults.clear()
    out, err = run.communicate(timeout=60)
    assert (run.returncode, "died and were replaced" in err) == (0, True), err
    assert json.loads(out)["uploaded"] == 3
    assert place.stored() == place.local()
    assert not place.server.uploads(BUCKET)


@BOTH_MODES
def test_an_interrupted_large_file_is_gone_on_with(place: Place, mode: str) -> None:
    place.file("large", os.urandom(30 * MIB))
    slow = Fault(Action("slow", seconds=0.4), operation="UploadPart", times=None)
    place.server.faults.append(slow)
    run = place.start(*PART, "--mode", mode, "--concurrency", "2")
    wait_until(lambda: len(puts_of_parts(place.server)) > 1)
    run.send_signal(signal.SIGINT)
    run.communicate(timeout=30)
    assert run.returncode == 4
    place.server.faults.clear()
    before = len(puts_of_parts(place.server))
    assert place.run(*PART, "--mode", mode).code == 0
    assert len(puts_of_parts(place.server)) == 6
    assert 2 <= before < 6
    assert place.stored() == place.local()


def test_cleanup_gives_up_what_the_ledger_began(place: Place) -> None:
    for number in range(2):
        place.file(f"large{number}", os.urandom(11 * MIB + number))
    gone = Fault(Action("error", 403, "AccessDenied"), operation="CompleteMultipartUpload")
    gone.times = None
    place.server.faults.append(gone)
    assert place.run(*PART, "--mode", "concurrent").code in (1, 2)
    planned = place.run("--cleanup", "--dry-run", to=None)
    assert planned.code == 0
    assert "2 unfinished uploads would be aborted, 22.0 MiB" in planned.out
    assert len(place.server.uploads(BUCKET)) == 2
    place.server.deny.add("AbortMultipartUpload")
    refused = place.run("--cleanup", to=None)
    assert (refused.code, len(refused.err.splitlines())) == (1, 2)
    place.server.deny.clear()
    done = place.run("--cleanup", "--json", to=None)
    assert (done.code, done.json["aborted"], done.json["problems"]) == (0, 2, [])
    assert not place.server.uploads(BUCKET)
    assert "0 unfinished uploads aborted" in place.run("--cleanup", to=None).out


@pytest.mark.parametrize("kind", ["lost_ack", "call"])
def test_what_an_unlucky_begin_leaves_is_given_up(place: Place, kind: str) -> None:
    path = place.file("large", os.urandom(11 * MIB))
    action = Action(kind, function=lambda: os.utime(path))
    place.server.faults.append(Fault(action, operation="CreateMultipartUpload", times=1))
    run = place.run(*PART, "--mode", "concurrent", "--json")
    assert (run.code, run.json["uploaded"]) == (0, 1), run.err
    assert place.server.count("CreateMultipartUpload") == 2
    assert not place.server.uploads(BUCKET)


def test_a_resumed_file_is_as_racy_as_it_was(place: Place) -> None:
    modified = int(time.time()) + 1  # so that a slow start is still within two seconds of it
    place.file("large", os.urandom(11 * MIB), mtime=modified)
    run_broken_off(place, 1, "--mode", "concurrent")
    time.sleep(max(0.0, modified + 2.1 - time.time()))
    assert place.run(*PART, "--mode", "concurrent").code == 0
    assert [row["racy"] for row in place.rows()] == [1]


def test_cleanup_leaves_what_was_begun_elsewhere(place: Place) -> None:
    place.file("large", os.urandom(11 * MIB))
    run_broken_off(place, 1, "--mode", "concurrent")
    with S3Server() as other:
        place.endpoint = other.endpoint
        run = place.run("--cleanup", to=None)
    assert (run.code, "another endpoint is configured" in run.err) == (1, True)
    assert len(place.rows("SELECT * FROM MultipartUpload")) == 1


def test_bwlimit_holds_on_the_safe_lane(place: Place) -> None:
    place.server.faults.append(LaneFault(Action("error", 500), operation="PutObject"))
    for number in range(40):
        place.file(f"f{number}", os.urandom(128 * KIB))
    run = place.run("--mode", "concurrent", "--bwlimit", "4M", "--json")
    assert (run.code, run.json["fast_lane"]) == (0, 0), run.err
    assert run.json["elapsed_seconds"] > 1
    assert place.stored() == place.local()


def test_cleanup_needs_a_ledger(place: Place) -> None:
    run = place.run("--cleanup", to=None)
    assert (run.code, "there is none" in run.err) == (2, True)


# -- memory and pace


def run_in_process(place: Place, observer: pfu.Observer | None = None) -> pfu.Summary:
    """A run to the server, in this process."""
    os.environ.update(place.server.environment())
    uploader = pfu.S3Uploader(f"s3://{BUCKET}/p", pfu.S3Options(endpoint_url=place.endpoint))
    options = pfu.RunOptions(mode="concurrent", nice=0, part_size=5 * MIB, concurrency=1)
    return pfu.BatchJobModel(place.root, uploader, place.path / "l.db", options, observer).run()


def test_buffers_are_used_again_and_given_up_for_others() -> None:
    budget = pfu.ByteBudget(3 * MIB)
    assert budget.take(MIB)
    first = budget.buffer(MIB)
    budget.keep(first)
    budget.give_back(MIB)
    assert budget.take(MIB)
    assert budget.buffer(MIB - 1) is first
    budget.keep(first)
    budget.give_back(MIB)
    assert budget.take(5 * MIB), "one body always passes"
    assert not budget._spare
    assert not budget.take(1)


def test_nothing_waits_for_ever_on_the_budget() -> None:
    async def scenario() -> list[int]:
        budget, order = pfu.ByteBudget(10), []

        async def use(size: int) -> None:
            if not budget.take(size):
                await budget.wait_for(size)
            await asyncio.sleep(0)
            order.append(size)
            budget.give_back(size)

        sizes = [8, 3, 100, 1, 10, 2, 50]
        await asyncio.wait_for(asyncio.gather(*map(use, sizes)), 5)
        return order

    assert asyncio.run(scenario()) == [8, 3, 100, 1, 10, 2, 50]


@pytest.mark.parametrize("limit", [96 * MIB, 1 << 40])
def test_memory_is_a_quarter_of_the_machines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    (tmp_path / "memory.max").write_text(f"{limit}\n")
    monkeypatch.setattr(pfu, "CGROUP_LIMITS", (f"{tmp_path}/memory.max{{}}", f"{tmp_path}/none"))
    pfu.memory_of_machine.cache_clear()
    engine = pfu.RunOptions(mode="concurrent", max_memory=1 << 50).engine()
    pfu.memory_of_machine.cache_clear()
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    expected = min(limit, machine) // 4 - pfu.CLIENT_MEMORY
    assert engine.memory == max(expected, 2 * pfu.MIN_PART_SIZE)
    assert engine.part_size <= engine.memory // 2


@pytest.mark.parametrize("lane", ["fast", "safe"])
def test_a_part_larger_than_memory_stays_in_its_file(
    place: Place, monkeypatch: pytest.MonkeyPatch, lane: str
) -> None:
    place.file("large", os.urandom(11 * MIB))
    if lane == "safe":
        place.server.faults.append(LaneFault(Action("error", 500), operation="UploadPart"))
    options = pfu.EngineOptions(threshold=MIB, part_size=5 * MIB, memory=4 * MIB, nice=0)
    monkeypatch.setattr(pfu.RunOptions, "engine", lambda _: options)
    summary = run_in_process(place)
    assert (summary.exit_code, summary.uploaded) == (0, 1), summary
    assert place.stored() == place.local()


@pytest.mark.parametrize("size", [8 * KIB, 64 * KIB, 256 * KIB])
def test_a_pacer_keeps_its_rate(size: int) -> None:
    pacer, now, sent = pfu.Pacer(), 100.0, 0
    pacer.rate = 20e6
    while now < 110:
        now += pacer.delay(size, now) + 1e-5
        sent += size
    assert 0.95 <= sent / 10 / 20e6 <= 1.05
    assert pacer.slice_size <= 20e6 * pfu.PACE_SLICE


def test_a_pacer_without_a_rate_never_waits() -> None:
    assert pfu.Pacer().delay(1 << 40, 1.0) == 0


@pytest.mark.parametrize("mode, content", [("parallel", "small"), ("concurrent", "large")])
def test_bwlimit_holds_for_all_processes_together(place: Place, mode: str, content: str) -> None:
    if content == "large":
        place.file("large", os.urandom(6 * MIB))
    else:
        for number in range(48):
            place.file(f"f{number}", os.urandom(128 * KIB))
    run = place.run(*PART, "--mode", mode, "--bwlimit", "4M", "--json")
    assert (run.code, place.stored() == place.local()) == (0, True)
    assert run.json["elapsed_seconds"] > 1.2


def test_progress_moves_within_one_file(place: Place) -> None:
    place.file("large", os.urandom(20 * MIB))
    place.server.faults.append(
        Fault(Action("slow", seconds=0.2), operation="UploadPart", times=None)
    )
    seen = set()

    class Watcher(pfu.Observer):
        def progress(self, progress: pfu.Progress) -> None:
            seen.add(progress.bytes)

    assert run_in_process(place, Watcher()).exit_code == 0
    assert {5 * MIB, 10 * MIB, 20 * MIB} <= seen


# ======================================================================================
# Integrity: the store keeps the digest of what it has
# ======================================================================================


class ChecksumFault(Fault):
    """A store that does not know checksums."""

    def _concerns(self, request: Request) -> bool:
        names = {"x-amz-checksum-sha256", "x-amz-checksum-algorithm"}
        has_one = names & request.headers.keys() or b"ChecksumSHA256" in request.body
        return bool(has_one) and super()._concerns(request)


def checksum_lane(place: Place, lane: str) -> None:
    if lane == "safe":
        place.server.faults.append(LaneFault(Action("error", 500)))


def base64_checksums(place: Place) -> dict[str, str]:
    """By key below the prefix; of an object in parts what its parts came with."""
    objects = place.server.objects(BUCKET).items()
    return {
        key[2:]: ",".join(part.checksum for part in stored.parts)
        or stored.headers.get("x-amz-checksum-sha256", "")
        for key, stored in objects
    }


def checksums_of(place: Place) -> dict[str, str]:
    cut = {"large": (0, 5 * MIB, 10 * MIB)}
    return {
        key: ",".join(
            encode64(
                hashlib.sha256(
                    body[start : start + 5 * MIB] if start or key == "large" else body
                ).digest()
            )
            for start in cut.get(key, (0,))
        )
        for key, body in place.local().items()
    }


@BOTH_MODES
@pytest.mark.parametrize("lane", ["fast", "safe"])
def test_objects_and_parts_are_stored_with_their_sha256(place: Place, mode: str, lane: str) -> None:
    place.files(12)
    place.file("large", os.urandom(11 * MIB))
    checksum_lane(place, lane)
    run = place.run("--mode", mode, *PART, "--json")
    assert (run.code, run.err, run.json["notes"]) == (0, "", [])
    assert run.json["fast_lane"] == (13 if lane == "fast" else 0)
    assert base64_checksums(place) == checksums_of(place)
    assert all("x-amz-trailer" not in request.headers for request in place.server.log)
    place.check_ledger_is_honest()


@pytest.mark.parametrize(
    "mode, lane, status, code",
    [
        ("concurrent", "fast", 400, "InvalidArgument"),
        ("concurrent", "safe", 501, "NotImplemented"),
        ("parallel", "fast", 403, "SignatureDoesNotMatch"),
        ("parallel", "safe", 400, "InvalidArgument"),
        ("parallel", "fast", 501, "NotImplemented"),
    ],
)
def test_one_refusal_ends_checksums_for_the_run(
    place: Place, mode: str, lane: str, status: int, code: str
) -> None:
    place.files(40)
    place.file("large", os.urandom(11 * MIB))
    fault = ChecksumFault(Action("error", status, code, "x-amz-checksum-sha256 is not known"))
    place.server.faults.append(fault)
    checksum_lane(place, lane)
    run = place.run("--mode", mode, *PART, "--json")
    assert (run.code, run.json["uploaded"], run.json["failed"]) == (0, 41, 0), run.err
    assert len(run.json["notes"]) == 1
    assert "this store refuses x-amz-checksum-sha256" in run.json["notes"][0]
    assert fault.applied >= 1
    assert set(base64_checksums(place).values()) <= {"", ",,"}
    assert place.stored() == place.local()
    if lane == "fast":
        assert run.json["fast_lane_off"] is None
    assert not place.server.uploads(BUCKET)


@pytest.mark.parametrize("operation", ["UploadPart", "CompleteMultipartUpload"])
def test_a_store_that_takes_checksums_only_at_first(place: Place, operation: str) -> None:
    place.file("large", os.urandom(11 * MIB))
    place.server.faults.append(ChecksumFault(Action("error", 400, "InvalidRequest"), operation))
    run = place.run("--mode", "concurrent", *PART, "--json")
    if operation == "UploadPart":  # a store that was promised digests and gets none refuses
        assert run.code == 1
        assert "InvalidRequest" in run.err
    place.server.faults.clear()
    assert place.run("--mode", "concurrent", *PART).code == 0
    assert place.stored() == place.local()
    assert not place.server.uploads(BUCKET)


def test_an_upload_that_was_begun_before_the_checksum_was_refused_is_aborted(
    place: Place,
) -> None:
    place.file("large", os.urandom(6 * MIB))
    place.server.faults += [
        Fault(Action("lost_ack"), "CreateMultipartUpload", times=1),
        ChecksumFault(Action("error", 501, "NotImplemented"), "CreateMultipartUpload"),
    ]
    assert place.run("--mode", "concurrent", *PART).code == 0
    assert place.stored() == place.local()
    assert not place.server.uploads(BUCKET)


def test_a_refusal_for_another_reason_leaves_checksums_on(place: Place) -> None:
    place.files(5)
    place.server.faults.append(Fault(Action("error", 400, "InvalidRequest"), key="f00003"))
    run = place.run("--mode", "concurrent", "--json")
    assert (run.code, run.json["failed"], run.json["notes"]) == (1, 1, [])
    assert all(base64_checksums(place).values())


def test_what_was_begun_without_checksums_goes_on_without(place: Place) -> None:
    place.file("large", os.urandom(16 * MIB))
    place.server.faults += [
        ChecksumFault(Action("error", 501, "NotImplemented"), "CreateMultipartUpload"),
        Fault(Action("error", 403, "AccessDenied"), "UploadPart", after=2),
    ]
    assert place.run("--mode", "concurrent", *PART).code == 2
    begun = set(place.server.uploads(BUCKET))
    place.server.faults.clear()
    assert place.run("--mode", "concurrent", *PART).code == 0
    assert {r.query["uploadId"] for r in place.server.log if "uploadId" in r.query} == begun
    assert place.stored() == place.local()


# ======================================================================================
# Credentials that end on the way
# ======================================================================================


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


@pytest.mark.parametrize("mode, lane, size, told", CREDENTIALS_END)
def test_credentials_that_end_are_read_again_once(
    place: Place, mode: str, lane: str, size: str, told: bool
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
        assert (run.code, run.err.count("\n")) == (2, 1), run.err
        assert "InvalidAccessKeyId" in run.err
        assert (run.json["failed"], run.json["pending"] > 0) == (0, True)
        keep_credentials(place, "AKIDNEW", "new-secret")
        place.server.faults.clear()
        assert place.run("--mode", mode, *PART).code == 0
        assert place.stored() == place.local()
    assert not place.server.uploads(BUCKET)


@BOTH_MODES
def test_a_second_pair_that_is_refused_is_the_last(place: Place, mode: str) -> None:
    with_credentials_in_a_file(place)
    place.files(60)

    def give_wrong_ones() -> None:
        place.server.credentials = {"AKIDNEW": ("new-secret", None)}
        keep_credentials(place, "AKIDOTHER", "other-secret")

    action = Action("call", function=give_wrong_ones)
    place.server.faults.append(Fault(action, "PutObject", after=20, times=1))
    run = place.run("--mode", mode, "--concurrency", 4, "--json")
    assert (run.code, run.err.count("\n")) == (2, 1), run.err
    assert "InvalidAccessKeyId" in run.err
    assert (run.json["failed"], run.json["pending"] > 0) == (0, True)


# ======================================================================================
# Verification: the store compared with the ledger and the tree
# ======================================================================================


def alter(place: Place, key: str, **changes: Any) -> None:
    bucket = place.server.bucket(BUCKET)
    assert bucket
    bucket.put(f"p/{key}", dataclasses.replace(bucket.objects[f"p/{key}"], **changes))


def lose(place: Place, key: str) -> None:
    bucket = place.server.bucket(BUCKET)
    assert bucket
    bucket.delete(f"p/{key}")


DAMAGES: dict[str, tuple[Callable[[Place, str], Any], str]] = {
    "d1/f00001": (lose, "missing in the store"),
    "d2/f00002": (lambda place, key: alter(place, key, size=3), "the store has another size"),
    "d3/f00003": (lambda place, key: alter(place, key, etag="x"), "the store has another ETag"),
    "new": (lambda place, key: place.file(key), "not uploaded"),
    "d5/f00005": (
        lambda place, key: place.file(key, b"changed"),
        "changed since it was uploaded",
    ),
}


def test_verify_finds_what_differs_and_the_next_run_mends_it(place: Place) -> None:
    place.files(30)
    assert place.run("--mode", "concurrent").code == 0
    for key, (damage, _) in DAMAGES.items():
        damage(place, key)
    run = place.run("--verify", "--json")
    assert (run.code, run.json["differing"], run.json["verified"]) == (1, 5, 26), run.err
    told = {found["key"][2:]: found["reason"] for found in run.json["differences"]}
    assert told == {key: says for key, (_, says) in DAMAGES.items()}
    again = place.run("--verify")
    assert (again.code, "5 differ" in again.out) == (1, True), again.out
    assert place.run("--mode", "concurrent", "--json").json["uploaded"] == 5
    assert place.run("--verify").code == 0
    assert place.stored() == place.local()


def test_half_a_listing_is_none(place: Place) -> None:
    place.files(5)
    assert place.run("--mode", "concurrent").code == 0
    half = Fault(Action("half_headers"), "ListObjectsV2", times=1)
    place.server.faults.append(half)
    run = place.run("--verify", "--json")
    assert (run.code, run.json["verified"], half.applied) == (0, 5, 1), run.err
    half.times = None
    run = place.run("--verify", "--json")
    assert (run.code, "the answer broke off" in run.err) == (2, True)
    assert {row["status"] for row in place.rows()} == {pfu.FileStatus.SUCCESS}


def test_verify_tells_of_objects_of_no_file_and_leaves_them(place: Place) -> None:
    place.files(3)
    assert place.run().code == 0
    (place.root / "d1/f00001").unlink()
    run = place.run("--verify", "--json")
    assert (run.code, run.json["extra"], run.json["extra_keys"]) == (1, 1, ["p/d1/f00001"])
    assert len(place.stored()) == 3


def put_at_once(place: Place, files: Iterable[Path], like: StoredObject) -> None:
    """Store small files as pfu does; their time and permissions are those of ``like``."""
    bucket = place.server.bucket(BUCKET)
    assert bucket is not None
    for path in files:
        body = path.read_bytes()
        digest = hashlib.sha256(body)
        headers = {**like.headers, "x-amz-checksum-sha256": encode64(digest.digest())}
        digests = digest.hexdigest(), hashlib.md5(body).hexdigest()
        key = f"p/{path.relative_to(place.root)}"
        bucket.put(key, StoredObject(body, len(body), *digests, headers, time.time()))


def test_a_lost_ledger_is_made_anew(place: Place) -> None:
    place.server.verify_signatures = False  # for speed; all other tests look at them
    place.files(500)
    place.file("large", os.urandom(5 * MIB + 1))
    for name in ODD_NAMES:
        place.file(name, os.fsencode(name))
    assert place.run(*PART).code == 0
    before = {row["id"]: row["etag"] for row in place.rows()}
    for end in ("", "-wal", "-shm"):
        (place.path / f"pfu.db{end}").unlink(missing_ok=True)
    place.files(10_000)
    more = [path for path in place.root.rglob("d?/f*") if int(path.name[1:]) >= 500]
    put_at_once(place, more, place.server.objects(BUCKET)["p/d1/f00001"])
    place.file("d1/f00001", b"changed meanwhile")
    run = place.run("--verify", "--json")
    count = 10_000 + 1 + len(ODD_NAMES)
    assert (run.code, run.json["adopted"], run.json["differing"]) == (1, count - 1, 1)
    after = {row["id"]: row["etag"] for row in place.rows()}
    assert len(after.items() & before.items()) == len(before) - 1
    puts = place.server.count("PutObject")
    run = place.run(*PART, "--json")
    assert (run.json["uploaded"], run.json["unchanged"]) == (1, count - 1)
    assert place.server.count("PutObject") == puts + 1


def with_another_start(content: bytes) -> bytes:
    return bytes([content[0] ^ 1]) + content[1:]


def alter_body(place: Place, key: str) -> None:
    stored = place.server.objects(BUCKET)[f"p/{key}"]
    assert stored.body is not None
    alter(place, key, body=with_another_start(bytes(stored.body)))


def alter_checksum(place: Place, key: str) -> None:
    headers = place.server.objects(BUCKET)[f"p/{key}"].headers
    digest, dash, parts = headers["x-amz-checksum-sha256"].partition("-")
    altered = encode64(with_another_start(base64.b64decode(digest))) + dash + parts
    alter(place, key, headers={**headers, "x-amz-checksum-sha256": altered})


@pytest.mark.parametrize("name", ["small", "large"])
@pytest.mark.parametrize("keeps_checksums", [False, True])
def test_verify_with_checksum_reads_what_it_cannot_ask(
    place: Place, name: str, keeps_checksums: bool
) -> None:
    place.file("small", b"content")
    place.file("large", os.urandom(11 * MIB))
    if not keeps_checksums:
        place.server.faults.append(ChecksumFault(Action("error", 501, "NotImplemented")))
    assert place.run(*PART).code == 0
    clean = place.run("--verify", "--checksum", "--json")
    assert (clean.code, clean.json["verified"]) == (0, 2), clean.out
    (alter_checksum if keeps_checksums else alter_body)(place, name)
    assert place.run("--verify").code == 0
    assert (place.server.count("GetObject") == 0) == keeps_checksums
    run = place.run("--verify", "--checksum", "--json")
    assert run.code == 1
    told = run.json["differences"]
    assert [d["reason"] for d in told] == ["the store has other bytes"]
    assert told[0]["path"].endswith(name)


@pytest.fixture
def unasked(place: Place) -> Place:
    """What is stored has to be read back: the store keeps no checksums."""
    without_pauses(place)
    place.server.faults.append(ChecksumFault(Action("error", 501, "NotImplemented")))
    place.files(pfu.MAX_UNSENT)
    assert place.run("--mode", "concurrent").code == 0
    return place


HALF_ANSWERS = ["half_headers", "half_body", "garbage", "error200", "lost_ack"]
LIES = {"HeadObject": {"half_body"}, "GetObject": {"error200"}}  # of the size, of the bytes


@pytest.mark.parametrize("operation", LIES)
def test_verify_asks_again(unasked: Place, operation: str) -> None:
    kinds = [kind for kind in HALF_ANSWERS if kind not in LIES[operation]]
    faults = [Fault(Action(kind), operation, f"{n}$", 2) for n, kind in enumerate(kinds)]
    unasked.server.faults += faults
    run = unasked.run("--verify", "--checksum", "--json")
    assert (run.code, run.json["verified"]) == (0, pfu.MAX_UNSENT), run.out
    assert [fault.applied for fault in faults] == [2] * len(kinds)
    (unasked.path / "pfu.db").unlink()
    for fault in faults:
        fault.applied = 0
    run = unasked.run("--verify", "--json")
    assert (run.code, run.json["adopted"]) == (0, pfu.MAX_UNSENT), run.out


def test_what_cannot_be_checked_is_not_uploaded_again(unasked: Place) -> None:
    denied, expired = (Action("error", 403, code) for code in ("AccessDenied", "ExpiredToken"))
    cases = [
        (Fault(denied, "GetObject", "0$"), 1, "cannot be checked"),
        (Fault(Action("half_headers"), "GetObject", "/f00001$"), 1, "the answer broke off"),
        (Fault(denied, "GetObject"), 2, "AccessDenied"),
        (Fault(expired, "GetObject", after=9), 2, "ExpiredToken"),
    ]
    for fault, code, says in cases:
        unasked.server.faults[:] = [fault]
        run = unasked.run("--verify", "--checksum", "--json")
        assert (run.code, says in run.out, run.err.count("\n")) == (code, True, code // 2)
        if code == 1:
            assert run.json["by_reason"] == {"cannot be checked": run.json["differing"]}
            text = "\n".join(pfu.verdict_text(pfu.Verdict(**run.json), quiet=False))
            assert re.search("cannot be checked +left as they are", text)
            assert "pending" not in text
        assert {row["status"] for row in unasked.rows()} == {pfu.FileStatus.SUCCESS}


@pytest.mark.parametrize("keeps_checksums", [False, True])
def test_verify_with_checksum_believes_no_metadata(place: Place, keeps_checksums: bool) -> None:
    """A ledger that is made anew has not seen the files' bytes."""
    if not keeps_checksums:
        place.server.faults.append(ChecksumFault(Action("error", 501, "NotImplemented")))
    place.file("small", b"hello")
    place.file("same")
    place.file("large", os.urandom(11 * MIB))
    assert place.run(*PART).code == 0
    (place.path / "pfu.db").unlink()
    rewrite_in_place(place.root / "small")
    run = place.run("--verify", "--checksum", "--json")
    assert (run.code, run.json["verified"]) == (1, 2), run.out
    assert [found["reason"] for found in run.json["differences"]] == ["the store has other bytes"]
    assert place.run(*PART, "--json").json["uploaded"] == 1
    assert place.stored() == place.local()


def test_verify_needs_a_store_that_may_be_listed(place: Place) -> None:
    place.files(2)
    assert place.run().code == 0
    place.server.deny.add("ListObjectsV2")
    run = place.run("--verify")
    assert (run.code, "AccessDenied" in run.err) == (2, True)
    status = place.run("--status", to=None)
    assert re.search(r"verification interrupted: .*\n    list .*AccessDenied", status.out)
    assert place.run("--json").json["unchanged"] == 2


# ======================================================================================
# Large files: any moment, any change, nothing left behind
# ======================================================================================

LEAST_PART = 5 * MIB
PIECE = 512 * KIB
IN_PARTS = ("--part-size", "5M", "--json")


model_loader = functools.lru_cache(maxsize=None)(create_loader)


def stall(after: int, operation: str = "UploadPart", key: str | None = None) -> Fault:
    """Lets so many requests pass and answers no further one."""
    return Fault(Action("slow", seconds=60), operation, key, after=after)


@pytest.fixture
def at_hand(place: Place, no_environment: None, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A place for runs in this process, which take small parts and do not pause between tries."""
    for name, value in place.server.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(pfu, "MIN_PART_SIZE", PIECE)
    place.server._store.min_part_size = PIECE
    monkeypatch.setattr(pfu, "full_jitter", lambda attempt: 0.0)
    monkeypatch.setattr("botocore.session.create_loader", model_loader)
    backoff = "botocore.retries.standard.ExponentialBackoff.delay_amount"
    monkeypatch.setattr(backoff, lambda *_: 0.0)
    return place


def s3_job(
    place: Place, observer: pfu.Observer | None = None, storage_class: str = "", **options: Any
) -> pfu.BatchJobModel:
    """A run in this process, to the place's own server."""
    s3 = pfu.S3Options(endpoint_url=place.endpoint, storage_class=storage_class or None)
    settings = pfu.RunOptions(**{"mode": "concurrent", "nice": 0, "part_size": PIECE, **options})
    uploader = pfu.S3Uploader(f"s3://{BUCKET}/p", s3)
    return pfu.BatchJobModel(place.root, uploader, place.path / "pfu.db", settings, observer)


def test_a_job_leaves_the_collector_of_its_program_alone(at_hand: Place) -> None:
    at_hand.files(3)
    before = gc.get_threshold()
    gc.unfreeze()
    try:
        assert s3_job(at_hand).run().uploaded == 3
        assert (gc.get_threshold(), gc.get_freeze_count()) == (before, 0)
    finally:
        gc.freeze()


def recorded(place: Place) -> int:
    return len(place.rows("SELECT id FROM Part"))


class Killed(BaseException):
    """Ends a run as SIGKILL would: it writes nothing more."""


class Witness(pfu.Observer):
    """Keeps what it is told; ends the run when it is to."""

    def __init__(self, is_to_end: Callable[[], bool] = lambda: False) -> None:
        self.is_to_end = is_to_end
        self.deadline = time.monotonic() + 30
        self.sizes: list[int] = []
        self.resumed_sizes: list[int] = []

    def progress(self, progress: pfu.Progress) -> None:
        self.sizes.append(progress.bytes)
        assert time.monotonic() < self.deadline
        if self.is_to_end():
            raise Killed

    def resumed(self, size: int) -> None:
        self.resumed_sizes.append(size)


def killed(
    place: Place, parts: int, *faults: Fault, **options: Any
) -> Counter[tuple[str, str, int]]:
    """Have a run killed once so many parts are recorded; returns the parts acknowledged."""
    place.server.faults += faults or [stall(parts)]
    with pytest.raises(Killed):
        s3_job(place, Witness(lambda: recorded(place) >= parts), **options).run()
    place.server.faults.clear()
    return place.server.part_acknowledgements(BUCKET)


def combined(stored: StoredObject) -> str:
    """What the ledger should hold of an object's bytes."""
    if not stored.parts:
        return stored.sha256
    digests = b"".join(bytes.fromhex(part.sha256) for part in stored.parts)
    return f"{hashlib.sha256(digests).hexdigest()}-{len(stored.parts)}"


def assert_all_is_there(place: Place, *failed: str) -> None:
    """The store has the very files with their metadata, and nothing unfinished is left."""
    objects = {key[2:]: stored for key, stored in place.server.objects(BUCKET).items()}
    local = {key: hashlib.sha256(body).hexdigest() for key, body in place.local().items()}
    for name in failed:
        del local[name]
    assert {key: stored.sha256 for key, stored in objects.items()} == local
    rows = place.rows("SELECT * FROM FileStat WHERE status = 2")
    assert len(rows) == len(local) == len(place.rows()) - len(failed)
    for row in rows:
        stored, status = objects[row["object_key"][2:]], os.stat(pfu.python_path(row["file_path"]))
        assert row["etag"] == stored.etag
        assert row["sha256"] == combined(stored)
        assert stored.headers["x-amz-meta-file-size"] == str(status.st_size)
        assert stored.headers["x-amz-meta-file-mtime"] == f"{status.st_mtime_ns}ns"
        assert stored.headers["x-amz-meta-mode"] == f"0{status.st_mode:o}"
    assert not place.server.uploads(BUCKET)
    assert not place.rows("SELECT id FROM MultipartUpload UNION SELECT id FROM Part")


def is_large(stored: StoredObject) -> bool:
    return len(stored.parts) > 1


def kill_group(process: Any) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def wait_until(condition: Callable[[], Any], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def without_pauses(place: Place) -> None:
    """Have the program wait for nothing before it tries again."""
    pause = "time.sleep = lambda seconds, sleep=time.sleep: sleep(min(seconds, 0.01))"
    sitecustomize(place, "import time", pause)


# -- crashes and resume


FIRST_STEPS = ("HeadBucket",)
LARGE_STEPS = ("CreateMultipartUpload", "ListParts")


def count_of(server: S3Server, operations: tuple[str, ...]) -> int:
    return sum(map(server.count, operations))


@BOTH_MODES
def test_large_files_outlive_kills_at_any_moment(place: Place, mode: str) -> None:
    for size in (11 * MIB, 13 * MIB + 1, 16 * MIB):
        place.file(f"large{size}", os.urandom(size))
    place.files(20, 300)
    arguments = ("--mode", mode, "--concurrency", "4", *IN_PARTS)
    place.server.faults.append(Fault(Action("slow", seconds=0.25), "UploadPart"))
    for operation in ("CreateMultipartUpload", "CompleteMultipartUpload"):
        place.server.faults.append(Fault(Action("slow", seconds=0.1), operation))
    generator = random.Random(mode)
    kills = in_the_middle = 0
    for number in range(5):
        operations = LARGE_STEPS if number % 2 else FIRST_STEPS
        seen = count_of(place.server, operations)
        process = place.start(*arguments, start_new_session=True)
        while process.poll() is None and count_of(place.server, operations) == seen:
            time.sleep(0.005)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(generator.random() * 0.4)
        kills += process.poll() is None
        kill_group(process)
        in_the_middle += bool(place.server.uploads(BUCKET))
    place.server.faults.clear()
    run = place.run(*arguments)
    assert (run.code, run.err) == (0, "")
    assert min(kills, in_the_middle) >= 3
    assert_all_is_there(place)
    assert sum(map(is_large, place.server.objects(BUCKET).values())) == 3
    sent = place.server.part_acknowledgements(BUCKET)
    assert len({upload_id for _, upload_id, _ in sent}) == 3
    assert len(sent) == 3 + 3 + 4
    assert sum(sent.values()) - len(sent) <= 4


def touched(place: Place) -> None:
    os.utime(place.root / "large", (LONG_AGO + 1, LONG_AGO + 1))


def other_mode(place: Place) -> None:
    (place.root / "large").chmod(0o600)


def grown(place: Place) -> None:
    path = place.root / "large"
    path.write_bytes(path.read_bytes() + os.urandom(PIECE))


def shrunk(place: Place) -> None:
    place.file("large", b"small")


def other_inode(place: Place) -> None:
    path = place.root / "large"
    copy = place.file("copy", os.urandom(path.stat().st_size))
    os.replace(copy, path)


def rewritten(place: Place) -> None:
    rewrite_in_place(place.root / "large")


def upload_of(place: Place) -> StoredUpload:
    bucket = place.server.bucket(BUCKET)
    assert bucket
    (upload,) = bucket.uploads.values()
    return upload


def vanished(place: Place) -> None:
    (place.root / "large").unlink()


def part_overwritten(place: Place) -> None:
    parts, number = upload_of(place).parts, place.rows("SELECT number FROM Part")[0]["number"]
    body = os.urandom(parts[number].size)
    etag, sha256 = hashlib.md5(body).hexdigest(), hashlib.sha256(body).hexdigest()
    parts[number] = dataclasses.replace(parts[number], body=body, etag=etag, sha256=sha256)


def part_lost(place: Place) -> None:
    del upload_of(place).parts[place.rows("SELECT number FROM Part")[0]["number"]]


def aborted(place: Place) -> None:
    vars(place.server.bucket(BUCKET))["uploads"].clear()


def aborted_beside_a_twin(place: Place) -> None:
    """An object that differs by its bytes alone is there."""
    headers, body = upload_of(place).headers, bytes((place.root / "large").stat().st_size)
    digests = hashlib.sha256(body).hexdigest(), hashlib.md5(body).hexdigest()
    twin = StoredObject(body, len(body), *digests, headers, time.time())
    vars(place.server.bucket(BUCKET))["objects"]["p/large"] = twin
    aborted(place)


def no_list(place: Place) -> None:
    place.server.deny.add("ListParts")


def half_a_list(place: Place) -> None:
    place.server.faults.append(Fault(Action("half_headers"), "ListParts", times=1))


def lists_unknown(place: Place) -> None:
    place.server.not_implemented |= {"ListParts", "ListMultipartUploads"}


def no_list_and_aborted(place: Place) -> None:
    no_list(place)
    aborted(place)


def no_head_and_aborted(place: Place) -> None:
    place.server.deny.add("HeadObject")
    aborted(place)


MEANWHILE: list[tuple[Callable[[Place], None], dict[str, Any], int, bool]] = [
    (nothing, {}, 2, True),
    (nothing, {"part_size": 2 * PIECE}, 2, True),
    (nothing, {"storage_class": "STANDARD_IA"}, 3, False),
    (touched, {}, 3, False),
    (other_mode, {}, 3, False),
    (grown, {}, 4, False),
    (shrunk, {}, 0, False),
    (other_inode, {}, 3, False),
    (rewritten, {}, 3, False),
    (part_overwritten, {}, 3, True),
    (part_lost, {}, 3, True),
    (aborted, {}, 3, False),
    (aborted_beside_a_twin, {}, 3, False),
    (no_list, {}, 2, True),
    (half_a_list, {}, 2, True),
    (lists_unknown, {}, 2, True),
    (no_list_and_aborted, {}, 3, False),
    (no_head_and_aborted, {}, 3, False),
]


@pytest.mark.parametrize(
    "meanwhile, options, sent, goes_on",
    MEANWHILE,
    ids=[" ".join([case[0].__name__, *case[1]]) for case in MEANWHILE],
)
def test_what_happened_since_the_kill_decides(
    at_hand: Place,
    meanwhile: Callable[[Place], None],
    options: dict[str, Any],
    sent: int,
    goes_on: bool,
) -> None:
    at_hand.file("large", os.urandom(3 * PIECE - 7))
    before = killed(at_hand, 1)
    first = upload_of(at_hand).upload_id
    meanwhile(at_hand)
    summary = s3_job(at_hand, **options).run()
    assert (summary.exit_code, summary.uploaded) == (0, 1), summary.failures
    assert_all_is_there(at_hand)
    new = at_hand.server.part_acknowledgements(BUCKET) - before
    assert sum(new.values()) == sent
    assert {upload_id == first for _, upload_id, _ in new} <= {goes_on}


def test_a_file_that_vanished_since_the_kill_leaves_nothing(at_hand: Place) -> None:
    at_hand.file("small")
    at_hand.file("large", os.urandom(3 * PIECE))
    killed(at_hand, 2)
    vanished(at_hand)
    summary = s3_job(at_hand).run()
    assert (summary.exit_code, summary.seen, summary.unchanged) == (0, 1, 1)
    assert at_hand.server.count("AbortMultipartUpload") == 1
    assert_all_is_there(at_hand)


def test_what_is_complete_is_not_sent_again(at_hand: Place) -> None:
    at_hand.file("large", os.urandom(3 * PIECE))
    at_hand.server.faults.append(stall(0, "CompleteMultipartUpload"))
    with pytest.raises(Killed):
        s3_job(at_hand, Witness(lambda: bool(at_hand.server.objects(BUCKET)))).run()
    for name in ("uploaded", "unchanged"):
        summary = s3_job(at_hand).run()
        assert (summary.exit_code, getattr(summary, name)) == (0, 1)
    assert set(at_hand.server.part_acknowledgements(BUCKET).values()) == {1}
    assert at_hand.server.count("CreateMultipartUpload") == 1
    assert_all_is_there(at_hand)


ODD_LARGE_NAMES: list[str | bytes] = [
    "plus+ &=%41?#'\"<>\\",
    "new\nline \t",
    b"half \xe2\x82 \xff",
    "caf\u00e9 \U0001f600",
    "\x1b[31mred",
]


@pytest.mark.parametrize("name", ODD_LARGE_NAMES)
def test_an_upload_whose_id_is_not_known_is_found(at_hand: Place, name: str | bytes) -> None:
    at_hand.file(name, os.urandom(PIECE + 1))
    killed(at_hand, 1)
    (key,) = [upload.key for upload in at_hand.server.uploads(BUCKET).values()]
    others = [StoredUpload("1", f"{key}.", {}, time.time()), StoredUpload("2", key, {}, 1e9)]
    bucket = at_hand.server.bucket(BUCKET)
    assert bucket
    bucket.uploads.update((other.upload_id, other) for other in others)
    with sqlite3.connect(at_hand.path / "pfu.db") as db:
        db.execute("UPDATE MultipartUpload SET upload_id = NULL")
        db.execute("DELETE FROM Part")
    assert s3_job(at_hand).run().exit_code == 0
    assert set(at_hand.server.uploads(BUCKET)) == {"1", "2"}
    bucket.uploads.clear()
    assert_all_is_there(at_hand)


@pytest.mark.parametrize(
    "operation, is_first, again",
    [
        ("CreateMultipartUpload", True, 3),
        ("CreateMultipartUpload", False, 3),
        ("CompleteMultipartUpload", True, 0),
    ],
    ids=["begun", "begun anew", "completed"],
)
def test_killed_before_the_answer_is_read(
    at_hand: Place, operation: str, is_first: bool, again: int
) -> None:
    at_hand.file("large", os.urandom(11 * MIB))
    if not is_first:
        killed(at_hand, 1, part_size=LEAST_PART)
        touched(at_hand)
    running: list[Any] = []
    kill = Action("call", function=lambda: os.killpg(running[0].pid, signal.SIGKILL))
    at_hand.server.faults.append(Fault(kill, operation, times=1))
    running.append(at_hand.start("--mode", "concurrent", *IN_PARTS, start_new_session=True))
    running[0].communicate(timeout=30)
    assert running[0].returncode == -signal.SIGKILL
    sent = at_hand.server.acknowledged("UploadPart")
    assert s3_job(at_hand, part_size=LEAST_PART).run().exit_code == 0
    assert at_hand.server.acknowledged("UploadPart") - sent == again
    assert_all_is_there(at_hand)


def worker_of(process: Any) -> int:
    """The one child that is not multiprocessing's own."""
    commands = {pid: Path(f"/proc/{pid}/cmdline").read_text() for pid in children_of(process.pid)}
    (worker,) = [pid for pid, command in commands.items() if "resource_tracker" not in command]
    return worker


@pytest.mark.parametrize("meanwhile", [nothing, touched])
def test_workers_that_die_under_way_leave_nothing(
    at_hand: Place, meanwhile: Callable[[Place], None]
) -> None:
    at_hand.file("large", os.urandom(11 * MIB))
    if meanwhile is not nothing:
        killed(at_hand, 1, part_size=LEAST_PART)
        meanwhile(at_hand)
    running: list[Any] = []
    kill = Action("call", function=lambda: os.kill(worker_of(running[0]), signal.SIGKILL))
    operations = ["CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload"]
    at_hand.server.faults += [Fault(kill, operation, times=1) for operation in operations]
    running.append(at_hand.start("--workers", "1", "--concurrency", "2", *IN_PARTS))
    out, err = running[0].communicate(timeout=30)
    assert [fault.applied for fault in at_hand.server.faults] == [1, 1, 1]
    assert err == "pfu: 3 worker process(es) died and were replaced\n"
    assert (running[0].returncode, json.loads(out)["uploaded"]) == (0, 1)
    assert_all_is_there(at_hand)


def test_more_parts_than_one_list_holds(at_hand: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pfu, "MIN_PART_SIZE", KIB)
    at_hand.server._store.min_part_size = KIB
    at_hand.file("large", os.urandom(1100 * KIB))
    before = killed(at_hand, 1050, part_size=KIB)
    witness = Witness()
    assert s3_job(at_hand, witness, part_size=KIB).run().exit_code == 0
    assert_all_is_there(at_hand)
    new = at_hand.server.part_acknowledgements(BUCKET) - before
    assert 0 < sum(new.values()) <= 50
    assert at_hand.server.count("ListParts") == 2
    assert sum(witness.resumed_sizes) == (1100 - sum(new.values())) * KIB


# -- faults

BOTH_LANES = pytest.mark.parametrize("lane", ["fast", "safe"])


def aborting(place: Place, key: str) -> Action:
    """Someone else aborts the upload of a key."""

    def abort() -> None:
        uploads = vars(place.server.bucket(BUCKET))["uploads"]
        for upload_id in [i for i, upload in uploads.items() if upload.key == key]:
            del uploads[upload_id]

    return Action("call", function=abort)


def test_faults_of_the_end(place: Place) -> None:
    without_pauses(place)
    other = {"content-length": "7", "etag": '"7"', "last-modified": "Sat, 21 Nov 2026 12:00:00 GMT"}
    wrong = Action("error", 200, headers=other)
    faults = {
        "error": ("CompleteMultipartUpload", Action("error200"), 2),
        "lost": ("CompleteMultipartUpload", Action("lost_ack"), 1),
        "denied": ("HeadObject", Action("error", 403), None),
        "absent": ("HeadObject", Action("error", 404), None),
        "absent too": ("HeadObject", Action("error", 404), None),
        "wrong": ("HeadObject", wrong, None),
    }
    for name, (operation, action, times) in faults.items():
        place.file(name, os.urandom(LEAST_PART + 1))
        place.server.faults.append(Fault(action, operation, f"/{name}$", times))
    run = place.run("--mode", "parallel", *IN_PARTS)
    assert (run.code, run.json["uploaded"]) == (1, 5)
    assert all(fault.applied for fault in place.server.faults)
    note = "large objects could not be checked: the store acknowledged them, and finds none of them"
    assert run.json["notes"] == [note]
    (failure,) = run.json["failures"]
    assert failure["path"] == str(place.root / "wrong")
    assert failure["reason"].endswith("the store has acknowledged it, and holds something else")
    assert not place.server.uploads(BUCKET)
    assert place.rows("SELECT count(*) n FROM MultipartUpload") == [{"n": 0}]


@BOTH_LANES
def test_an_upload_that_is_aborted_under_way_is_begun_anew(
    at_hand: Place, monkeypatch: pytest.MonkeyPatch, lane: str
) -> None:
    if lane == "safe":
        monkeypatch.setattr(pfu, "client_refusal", lambda client: "the test says so")
    at_hand.file("large", os.urandom(5 * PIECE))
    at_hand.server.faults.append(Fault(aborting(at_hand, "p/large"), "UploadPart", times=1))
    summary = s3_job(at_hand).run()
    assert (summary.exit_code, summary.uploaded) == (0, 1), summary.failures
    assert at_hand.server.faults[0].applied == 1
    assert at_hand.server.count("CreateMultipartUpload") == 2
    assert_all_is_there(at_hand)


@pytest.mark.parametrize("how", HOW_REFUSED)
def test_put_object_is_permission_enough_to_complete(at_hand: Place, how: str) -> None:
    at_hand.file("large", os.urandom(PIECE + 1))
    refused: set[str] = getattr(at_hand.server, how)
    refused |= {"HeadObject", "ListParts", "ListMultipartUploads"}
    at_hand.server.faults.append(Fault(Action("lost_ack"), "CompleteMultipartUpload", times=1))
    summary = s3_job(at_hand).run()
    assert (summary.exit_code, summary.uploaded, summary.notes) == (0, 1, [])
    assert_all_is_there(at_hand)


MAY_BE_LEFT = f"an unfinished upload may be left: list uploads to s3://{BUCKET}/p/large: "


@pytest.mark.parametrize(
    "change, cleans_up", [(nothing, False), (touched, False), (vanished, False), (vanished, True)]
)
def test_what_may_be_left_is_told_where_uploads_may_not_be_listed(
    at_hand: Place, change: Callable[[Place], None], cleans_up: bool
) -> None:
    """A run is killed before it is told the id of what it begins. It is told once."""
    at_hand.file("large", os.urandom(PIECE + 1))
    at_hand.file("other")
    stalled = stall(0, "CreateMultipartUpload")
    at_hand.server.faults.append(stalled)
    with pytest.raises(Killed):
        s3_job(at_hand, Witness(lambda: stalled.applied > 0)).run()
    at_hand.server.faults.clear()
    at_hand.server.deny.add("ListMultipartUploads")
    change(at_hand)
    if cleans_up:
        cleanup = at_hand.run("--cleanup", to=None)
        assert (cleanup.code, "0 unfinished uploads aborted" in cleanup.out) == (1, True)
        assert cleanup.err.startswith(f"pfu: {MAY_BE_LEFT}")
    else:
        summary = s3_job(at_hand).run()
        (note,) = summary.notes
        assert (summary.exit_code, note.startswith(MAY_BE_LEFT)) == (0, True)
    assert len(at_hand.server.uploads(BUCKET)) == 1
    summary = s3_job(at_hand).run()
    assert (summary.exit_code, summary.notes) == (0, [])
    requests = at_hand.server.count()
    assert s3_job(at_hand).run().exit_code == 0
    assert at_hand.server.count() == requests


@pytest.mark.parametrize("how", HOW_REFUSED)
def test_what_an_answer_that_was_lost_may_have_left_is_told(at_hand: Place, how: str) -> None:
    at_hand.file("large", os.urandom(PIECE + 1))
    at_hand.server.faults.append(Fault(Action("lost_ack"), "CreateMultipartUpload", times=1))
    getattr(at_hand.server, how).add("ListMultipartUploads")
    summary = s3_job(at_hand).run()
    (note,) = summary.notes
    assert (summary.exit_code, note.startswith(MAY_BE_LEFT)) == (0, True)
    assert len(at_hand.server.uploads(BUCKET)) == 1


@pytest.mark.parametrize("kind", ["lost_ack", "half_headers", "half_body", "garbage"])
def test_an_upload_that_was_begun_without_a_word_leaves_nothing(at_hand: Place, kind: str) -> None:
    at_hand.file("large", os.urandom(PIECE + 1))
    at_hand.server.faults.append(Fault(Action(kind), "CreateMultipartUpload", times=1))
    at_hand.server.faults.append(Fault(Action(kind), "ListMultipartUploads", times=1))
    summary = s3_job(at_hand).run()
    assert (summary.exit_code, summary.uploaded) == (0, 1)
    assert_all_is_there(at_hand)


NO_PART = Action("error", 400, "InvalidPart")
NOT_KNOWN = Action("error", 501, "NotImplemented")
NO_KEY = Action("error", 404, "NoSuchKey")
FORBIDDEN = Action("error", 403, "AccessDenied")


@pytest.mark.parametrize("refusal", [NO_PART, NOT_KNOWN, NO_KEY, FORBIDDEN], ids=lambda a: a.code)
def test_what_cannot_be_aborted_is_told_and_stops_nothing(at_hand: Place, refusal: Action) -> None:
    for name in ("changed", "gone", "lost"):
        at_hand.file(name, os.urandom(3 * PIECE))
    with pytest.raises(Killed):
        key = "p/(changed|gone)"
        at_hand.server.faults += [stall(1, key=key), stall(0, "CreateMultipartUpload", "p/lost")]
        begun = "SELECT 1 FROM MultipartUpload WHERE upload_id IS NOT NULL"
        s3_job(at_hand, Witness(lambda: len(at_hand.rows(begun)) == 2)).run()
    at_hand.server.faults.clear()
    first = {upload.key: upload.upload_id for upload in at_hand.server.uploads(BUCKET).values()}
    assert {"p/changed", "p/gone"} <= set(first)
    rewrite_in_place(at_hand.root / "changed")
    (at_hand.root / "gone").unlink()
    at_hand.server.faults.append(Fault(refusal, "AbortMultipartUpload"))
    summary = s3_job(at_hand).run()
    assert (summary.exit_code, summary.failures) == (0, [])
    assert at_hand.stored() == at_hand.local()
    told = [note for note in summary.notes if "an unfinished upload may be left: abort" in note]
    assert {key for key in first if any(f"/{key}:" in note for note in told)} == set(first)
    assert known_uploads(at_hand) == {first["p/gone"]}  # the other one's row is that of the new one
    at_hand.server.faults.clear()
    assert s3_job(at_hand).run().exit_code == 0
    assert first["p/gone"] not in at_hand.server.uploads(BUCKET)


# -- edges, and files that do not hold still


@pytest.mark.parametrize(
    "size, wanted, expected",
    [
        (0, 1, LEAST_PART),
        (1, LEAST_PART, LEAST_PART),
        (10_000 * LEAST_PART, LEAST_PART, LEAST_PART),
        (10_000 * LEAST_PART + 1, LEAST_PART, LEAST_PART + 1),
        (10_000 * LEAST_PART + 10_000, LEAST_PART, LEAST_PART + 1),
        (10_000 * LEAST_PART + 10_001, LEAST_PART, LEAST_PART + 2),
        (1 << 40, 8 * MIB, -(-(1 << 40) // 10_000)),
        (10_000 * 5 * pfu.GIB - 10_000, LEAST_PART, 5 * pfu.GIB - 1),
        (10_000 * 5 * pfu.GIB - 9_999, LEAST_PART, 5 * pfu.GIB),
        (10_000 * 5 * pfu.GIB, LEAST_PART, 5 * pfu.GIB),
        (1, 5 * pfu.GIB, 5 * pfu.GIB),
    ],
)
def test_ten_thousand_parts_suffice(size: int, wanted: int, expected: int) -> None:
    assert pfu.part_size_for(size, wanted) == expected
    assert pfu.MAX_OBJECT_SIZE == 10_000 * 5 * pfu.GIB


def test_a_file_that_no_store_can_hold_is_refused(
    at_hand: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pfu, "MAX_OBJECT_SIZE", 2 * PIECE)
    at_hand.file("fits", bytes(2 * PIECE))
    at_hand.file("too large", bytes(2 * PIECE + 1))
    later = at_hand.file("too large later", bytes(PIECE + 1))
    grow = Action("call", function=lambda: os.truncate(later, 3 * PIECE))
    at_hand.server.faults.append(Fault(grow, "HeadBucket"))
    summary = s3_job(at_hand).run()
    assert (summary.exit_code, summary.uploaded) == (1, 1)
    reasons = {failure["path"]: failure["reason"] for failure in summary.failures}
    assert list(map(os.path.basename, sorted(reasons))) == ["too large", "too large later"]
    assert all(f"bytes, S3 takes {2 * PIECE}" in reason for reason in reasons.values())
    assert {r.key for r in at_hand.server.log} == {"", "p/fits"}


def test_files_that_change_between_scan_and_read(place: Place) -> None:
    grows, shrinks, empties, vanishes, becomes_fifo = (
        place.file(name, os.urandom(size))
        for name, size in (
            ("grows", 100),
            ("shrinks", 11 * MIB),
            ("empties", 11 * MIB),
            ("vanishes", 11 * MIB),
            ("becomes a FIFO", 11 * MIB),
        )
    )

    def change() -> None:
        grows.write_bytes(os.urandom(11 * MIB))
        shrinks.write_bytes(os.urandom(LEAST_PART + 1))
        empties.write_bytes(b"")
        vanishes.unlink()
        becomes_fifo.unlink()
        os.mkfifo(becomes_fifo)

    place.server.faults.append(Fault(Action("call", function=change), "HeadBucket", times=1))
    run = place.run("--mode", "concurrent", *IN_PARTS)
    assert (run.code, run.err, run.json["uploaded"]) == (0, "", 3)
    assert run.json["skipped_by_reason"] == {"vanished": 2}
    assert_accounts(run.json)
    assert_all_is_there(place)
    assert len(place.server.objects(BUCKET)["p/grows"].parts) == 3
    puts = [request.key for request in place.server.log if request.operation == "PutObject"]
    assert "p/grows" not in puts


def test_files_that_change_while_their_parts_go_up(place: Place) -> None:
    names = ("touched", "rewritten", "grows", "vanishes", "restless")
    paths = {name: place.file(name, os.urandom(LEAST_PART + 1)) for name in names}
    changes: dict[str, Callable[[], Any]] = {
        "touched": lambda: os.utime(paths["touched"]),
        "rewritten": lambda: rewrite_in_place(paths["rewritten"]),
        "grows": lambda: paths["grows"].write_bytes(os.urandom(11 * MIB)),
        "vanishes": paths["vanishes"].unlink,
    }
    for name, change in changes.items():
        once = Action("call", function=change)
        place.server.faults.append(Fault(once, "UploadPart", f"/{name}$", times=1))
    always = Action("call", function=lambda: os.utime(paths["restless"]))
    place.server.faults.append(Fault(always, "UploadPart", "/restless$"))
    run = place.run("--mode", "parallel", *IN_PARTS)
    assert (run.code, run.json["uploaded"], run.json["failed"]) == (1, 3, 1)
    assert run.json["skipped_by_reason"] == {"vanished": 1}
    assert_accounts(run.json)
    (failure,) = run.json["failures"]
    assert failure["reason"] == f"read {paths['restless']}: it changed while it was read"
    assert not place.server.uploads(BUCKET)
    begun = Counter(r.key for r in place.server.log if r.operation == "CreateMultipartUpload")
    assert begun.pop("p/restless") == 2 * pfu.READ_ATTEMPTS
    assert begun == {"p/touched": 2, "p/rewritten": 2, "p/grows": 2, "p/vanishes": 1}
    assert_all_is_there(place, "restless")


@pytest.mark.parametrize(
    "operation, change",
    [
        ("CreateMultipartUpload", touched),
        ("CreateMultipartUpload", shrunk),
        ("CreateMultipartUpload", vanished),
        ("CompleteMultipartUpload", touched),
        ("CompleteMultipartUpload", shrunk),
    ],
)
def test_a_file_that_changes_while_the_store_answers(
    at_hand: Place, operation: str, change: Callable[[Place], None]
) -> None:
    at_hand.file("other")
    at_hand.file("large", os.urandom(3 * PIECE))
    once = Action("call", function=lambda: change(at_hand))
    at_hand.server.faults.append(Fault(once, operation, times=1))
    at_hand.server.deny.add("ListMultipartUploads")
    for _ in range(2):
        assert s3_job(at_hand).run().exit_code == 0
    assert_all_is_there(at_hand)


# -- memory


def test_the_budget_is_first_come_first_served() -> None:
    async def scenario() -> None:
        budget, order = pfu.ByteBudget(10), list[int]()

        async def wait(size: int) -> None:
            await budget.wait_for(size)
            order.append(size)

        assert budget.take(6)
        assert budget.take(4)
        waiting = [asyncio.ensure_future(wait(size)) for size in (7, 1, 0, 3, 2)]
        await asyncio.sleep(0)
        budget.give_back(4)
        assert not budget.take(0), "it would overtake"
        await asyncio.sleep(0)
        assert order == []
        budget.give_back(6)
        await asyncio.sleep(0)
        assert order == [7, 1, 0]
        budget.give_back(1)
        await asyncio.sleep(0)
        assert order == [7, 1, 0, 3]
        budget.give_back(7)
        await asyncio.gather(*waiting)
        assert order == [7, 1, 0, 3, 2]
        assert budget.take(5)
        assert not budget.take(1)

    asyncio.run(scenario())


def test_a_body_that_is_larger_than_the_budget_passes_alone() -> None:
    async def scenario() -> None:
        budget = pfu.ByteBudget(10)
        assert budget.take(1)
        assert not budget.take(25)
        giant = asyncio.ensure_future(budget.wait_for(25))
        await asyncio.sleep(0)
        assert not giant.done()
        budget.give_back(1)
        await giant
        assert not budget.take(1)
        budget.give_back(25)
        assert budget.take(10)

    asyncio.run(scenario())


@pytest.mark.parametrize("seed", range(3))
def test_nothing_waits_for_ever_and_the_budget_is_kept(seed: int) -> None:
    generator = random.Random(seed)
    held: list[int] = []

    async def hold(budget: pfu.ByteBudget, size: int) -> None:
        if not budget.take(size):
            await budget.wait_for(size)
        held.append(size)
        assert sum(held) <= 100 or [s for s in held if s] == [size]
        for _ in range(generator.randrange(4)):
            await asyncio.sleep(0)
        held.remove(size)
        budget.give_back(size)

    async def scenario() -> None:
        budget = pfu.ByteBudget(100)
        sizes = [generator.choice([0, 1, 20, 60, 100, 150]) for _ in range(400)]
        await asyncio.wait_for(asyncio.gather(*(hold(budget, size) for size in sizes)), 10)
        assert budget.take(100)

    asyncio.run(scenario())


def test_buffers_are_used_again_while_there_is_room() -> None:
    budget = pfu.ByteBudget(30)
    assert budget.take(10)
    buffer = budget.buffer(10)
    budget.keep(buffer)
    budget.give_back(10)
    for size in (10, 3):
        assert budget.take(size)
        assert budget.buffer(size) is buffer
        budget.keep(buffer)
        budget.give_back(size)
    assert budget.take(11)
    other = budget.buffer(11)
    assert len(other) == 11
    budget.keep(other)
    budget.give_back(11)
    assert budget.take(5)
    assert budget.buffer(5) is other, "the smaller one is gone"


def test_buffers_give_way_to_other_things() -> None:
    budget = pfu.ByteBudget(30)
    buffers = [bytearray(10), bytearray(10)]
    for buffer in buffers:
        budget.keep(buffer)
    assert all(budget.take(10) for _ in range(3))
    taken = [budget.buffer(10) for _ in range(3)]
    assert sum(any(one is buffer for buffer in buffers) for one in taken) == 1
    budget.give_back(30)
    budget.keep(buffers[0])
    assert budget.take(25)
    assert budget.buffer(5) is not buffers[0]


ENGINES = [
    ({"mode": "concurrent"}, 64 * pfu.GIB, (16, 8, 104)),
    ({"mode": "concurrent", "max_memory": 1}, 64 * pfu.GIB, (5, 5, 10)),
    ({"mode": "concurrent", "max_memory": 50 * MIB}, 64 * pfu.GIB, (13, 8, 26)),
    ({"mode": "concurrent"}, 256 * MIB, (16, 8, 40)),
    ({"mode": "concurrent"}, MIB, (5, 5, 10)),
    ({"mode": "concurrent", "part_size": 100 * MIB}, 64 * pfu.GIB, (52, 52, 104)),
    ({"mode": "concurrent", "part_size": 6 * MIB}, 64 * pfu.GIB, (6, 6, 104)),
    ({"workers": 2}, 64 * pfu.GIB, (16, 8, 40)),
    ({"workers": 8}, 64 * pfu.GIB, (5, 5, 10)),
    ({"workers": 8, "max_memory": pfu.GIB}, 64 * pfu.GIB, (16, 8, 104)),
    ({"workers": 8, "concurrency": 2, "max_memory": pfu.GIB}, 1 * pfu.GIB, (16, 8, 104)),
]


@pytest.mark.parametrize("options, machine, expected", ENGINES)
def test_memory_decides_what_is_large(
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
    machine: int,
    expected: tuple[int, int, int],
) -> None:
    monkeypatch.setattr(pfu, "memory_of_machine", lambda: machine)
    engine = pfu.RunOptions(**options).engine()
    found = engine.threshold, engine.part_size, engine.memory
    assert found == tuple(number * MIB for number in expected)


@pytest.mark.parametrize(
    "limits, expected",
    [
        ({"max": "1048576\n"}, 1048576),
        ({"max": "max\n", "high": "2097152\n"}, 2097152),
        ({"max": "4096\n", "slice/max": "2048\n", "slice/job/high": "max\n"}, 2048),
        ({"slice/job/max": "1024\n", "other/max": "1\n"}, 1024),
        ({"max": "0\n", "high": ""}, None),
        ({"max": "9223372036854771712\n"}, None),
        ({}, None),
    ],
)
def test_memory_of_a_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limits: dict[str, str], expected: int | None
) -> None:
    for name, text in limits.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    patterns = tuple(f"{tmp_path}{{}}/{name}" for name in ("max", "high"))
    monkeypatch.setattr(pfu, "CGROUP_LIMITS", patterns)
    monkeypatch.setattr(pfu, "_cgroups", lambda: {"", "/slice", "/slice/job"})
    pfu.memory_of_machine.cache_clear()
    found = pfu.memory_of_machine()
    pfu.memory_of_machine.cache_clear()
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert found == (expected or machine)


def tiny_memory(monkeypatch: pytest.MonkeyPatch, lane: str) -> list[type]:
    """No part fits into memory. Returns the kinds of bodies that are sent."""
    kinds: list[type] = []
    engine, send_part = pfu.RunOptions.engine, pfu.S3Uploader.send_part

    async def send(uploader: pfu.S3Uploader, part: pfu.Part, threads: Any) -> pfu.Receipt:
        kinds.append(type(part.body))
        return await send_part(uploader, part, threads)

    monkeypatch.setattr(pfu.S3Uploader, "send_part", send)
    monkeypatch.setattr(
        pfu.RunOptions, "engine", lambda self: dataclasses.replace(engine(self), memory=100 * KIB)
    )
    if lane == "safe":
        monkeypatch.setattr(pfu, "client_refusal", lambda client: "the test says so")
    return kinds


@BOTH_LANES
def test_parts_larger_than_the_memory_go_up_from_the_file(
    at_hand: Place, monkeypatch: pytest.MonkeyPatch, lane: str
) -> None:
    kinds = tiny_memory(monkeypatch, lane)
    at_hand.file("large", os.urandom(11 * MIB + 1))
    at_hand.server.faults.append(Fault(Action("reset_within_body"), "UploadPart", times=1))
    summary = s3_job(at_hand, part_size=LEAST_PART).run()
    assert (summary.exit_code, summary.fast_lane) == (0, 0), summary.failures
    assert kinds == [pfu.FileBody] * 3
    assert_all_is_there(at_hand)
    lanes = [IS_SAFE_LANE in r.headers for r in at_hand.server.log if r.operation == "UploadPart"]
    assert sorted(lanes) == ([False] * 3 + [True] if lane == "fast" else [True] * 4)


@BOTH_LANES
@pytest.mark.parametrize("kind", ["rewrite", "shrink"])
def test_a_part_that_changes_between_hash_and_sending_is_not_stored(
    at_hand: Place, monkeypatch: pytest.MonkeyPatch, lane: str, kind: str
) -> None:
    tiny_memory(monkeypatch, lane)
    path = at_hand.file("large", os.urandom(3 * PIECE))
    changes: dict[str, Callable[[Path], None]] = {
        "rewrite": rewrite_in_place,
        "shrink": lambda path: os.truncate(path, PIECE + 9),
    }
    checks = itertools.count()

    def check(source: pfu.SourceFile) -> None:
        if next(checks) == 3:
            changes[kind](path)

    monkeypatch.setattr(pfu.SourceFile, "check_unchanged", check)
    summary = s3_job(at_hand).run()
    assert (summary.exit_code, summary.uploaded) == (0, 1), summary.failures
    assert_all_is_there(at_hand)


# -- pace


def test_the_pacer_gives_turns() -> None:
    pacer = pfu.Pacer()
    assert pacer.delay(10**12, 5.0) == 0.0
    pacer.rate = 100.0
    waits = [pacer.delay(size, now) for size, now in [(10, 50.0), (5, 50.0), (20, 50.0), (1, 50.1)]]
    assert waits == pytest.approx([0.0, 0.0, 0.05, 0.15])
    assert pacer.delay(30, 90.0) == 0.0, "what was not used is lost"
    assert pacer.delay(1, 90.0) == pytest.approx(0.2)
    assert pacer.delay(1, 90.3) == 0.0


@pytest.mark.parametrize(
    "rate, size", [(0.0, 256 * KIB), (20e6, 1_000_000), (1e6, 50_000), (100.0, KIB)]
)
def test_slices_are_short(rate: float, size: int) -> None:
    pacer = pfu.Pacer()
    pacer.rate = rate
    assert pacer.slice_size == size


@pytest.mark.parametrize("senders", [1, 8, 100])
def test_the_pacer_keeps_its_rate(senders: int) -> None:
    pacer, sent = pfu.Pacer(), 0
    pacer.rate = 20e6
    ready = [(1000.0, number) for number in range(senders)]
    while ready[0][0] < 1010.0:
        now, number = heapq.heappop(ready)
        sent += pacer.slice_size
        heapq.heappush(ready, (now + pacer.delay(pacer.slice_size, now) + 0.001, number))
    in_flight = senders * pacer.slice_size
    assert 0.95 * 200e6 <= sent - in_flight <= sent <= 1.05 * 200e6 + in_flight


def test_the_safe_lane_keeps_the_rate(at_hand: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pfu, "client_refusal", lambda client: "the test says so")
    began: list[float] = []
    mark = Action("call", function=lambda: began.append(time.time()))
    at_hand.server.faults.append(Fault(mark, "HeadBucket", times=1))
    at_hand.file("large", os.urandom(2 * PIECE))
    for number in range(10):
        at_hand.file(f"small{number}", os.urandom(50 * KIB))
    assert s3_job(at_hand, bwlimit=3 * MIB).run().exit_code == 0
    assert_all_is_there(at_hand)
    ended = max(stored.modified for stored in at_hand.server.objects(BUCKET).values())
    assert ended - began[0] >= 0.35
    assert not puts_of(at_hand.server)["fast"]


# -- progress


def test_progress_within_one_large_file(at_hand: Place) -> None:
    at_hand.file("large", os.urandom(4 * PIECE))
    at_hand.server.faults.append(stall(2))
    first, second = Witness(lambda: recorded(at_hand) == 2), Witness()
    with pytest.raises(Killed):
        s3_job(at_hand, first).run()
    assert [size for size in first.sizes if 0 < size < 4 * PIECE]
    assert first.resumed_sizes == []
    at_hand.server.faults[:] = [Fault(Action("slow", seconds=0.1), "UploadPart")]
    assert s3_job(at_hand, second, concurrency=1).run().exit_code == 0
    assert second.resumed_sizes == [2 * PIECE]
    assert second.sizes == sorted(second.sizes)
    assert set(second.sizes) == {0, PIECE, 2 * PIECE}


# -- --cleanup


Unfinished = dict[str, tuple[str, int]]


@pytest.fixture
def unfinished(at_hand: Place) -> Unfinished:
    """Two uploads that a killed run left: key -> upload id, bytes that the ledger knows of."""
    at_hand.file("a", os.urandom(2 * PIECE))
    at_hand.file("b \u20ac", os.urandom(3 * PIECE))
    killed(at_hand, 3, stall(1, key="a$"), stall(2, key="b"))
    at_hand.endpoint = ""
    known = {upload.key: upload_id for upload_id, upload in at_hand.server.uploads(BUCKET).items()}
    return {"p/a": (known["p/a"], PIECE), "p/b \u20ac": (known["p/b \u20ac"], 2 * PIECE)}


def assert_told(run: Run, end: str) -> None:
    assert (run.code, run.err) == (0, "")
    *lines, last = run.out.splitlines()
    assert sorted(lines) == ["p/a of s3://bkt/p  512.0 KiB", "p/b \u20ac of s3://bkt/p  1.0 MiB"]
    assert last == end


def known_uploads(place: Place) -> set[str]:
    rows = place.rows("SELECT upload_id FROM MultipartUpload")
    return {pfu.UploadHandle.read(row["upload_id"]).upload_id for row in rows}


def test_cleanup_aborts_what_a_killed_run_left(at_hand: Place, unfinished: Unfinished) -> None:
    ids = {upload_id for upload_id, _ in unfinished.values()}
    planned = at_hand.run("--cleanup", "--dry-run", to=None)
    assert_told(planned, "2 unfinished uploads would be aborted, 1.5 MiB")
    assert set(at_hand.server.uploads(BUCKET)) == known_uploads(at_hand) == ids
    assert_told(at_hand.run("--cleanup", to=None), "2 unfinished uploads aborted, 1.5 MiB")
    assert not at_hand.server.uploads(BUCKET)
    assert not known_uploads(at_hand)
    assert recorded(at_hand) == 0
    requests = at_hand.server.count()
    again = at_hand.run("--cleanup", to=None)
    assert (again.code, again.out) == (0, "0 unfinished uploads aborted, 0 B\n")
    assert at_hand.server.count() == requests


def test_cleanup_is_quiet_if_asked(at_hand: Place, unfinished: Unfinished) -> None:
    log = at_hand.path / "log"
    run = at_hand.run("--cleanup", "--quiet", "--log-file", log, to=None)
    assert (run.code, run.out, run.err) == (0, "", "")
    assert "2 unfinished uploads aborted" in log.read_text()


def test_cleanup_of_the_default_bucket_names_its_owner(place: Place) -> None:
    place.file("large", os.urandom(LEAST_PART + 1))
    place.server.faults.append(stall(1))
    process = place.start("--mode", "concurrent", *IN_PARTS, to="")
    wait_until(lambda: place.server.acknowledged("UploadPart") == 1)
    process.kill()
    process.wait()
    place.server.faults.clear()
    assert place.run("--cleanup", to=None).code == 0
    owners = {
        request.headers.get("x-amz-expected-bucket-owner")
        for request in place.server.log
        if request.operation in ("AbortMultipartUpload", "ListMultipartUploads")
    }
    assert owners == {"123456789012"}


def test_cleanup_in_json(at_hand: Place, unfinished: Unfinished) -> None:
    run = at_hand.run("--cleanup", "--json", to=None)
    assert (run.code, run.err, run.out.count("\n")) == (0, "", 1)
    assert (run.json["aborted"], run.json["bytes"], run.json["problems"]) == (2, 3 * PIECE, [])
    rows = {row["key"]: (row["upload_id"], row["bytes"]) for row in run.json["uploads"]}
    assert rows == unfinished
    assert {row["destination"] for row in run.json["uploads"]} == {f"s3://{BUCKET}/p"}
    assert not at_hand.server.uploads(BUCKET)


def unreachable(place: Place) -> None:
    place.server.stop()


def one_refused(place: Place) -> None:
    denied = Action("error", 403, "AccessDenied")
    place.server.faults.append(Fault(denied, "AbortMultipartUpload", "a$"))


@pytest.mark.parametrize(
    "trouble, says, left",
    [
        (unreachable, "Could not connect to the endpoint URL", 2),
        (closed_port, "and another endpoint is configured", 2),
        (one_refused, "AccessDenied", 1),
    ],
)
def test_cleanup_forgets_nothing_that_it_could_not_abort(
    at_hand: Place,
    unfinished: Unfinished,
    trouble: Callable[[Place], None],
    says: str,
    left: int,
) -> None:
    without_pauses(at_hand)
    trouble(at_hand)
    run = at_hand.run("--cleanup", to=None)
    assert (run.code, run.err.count("\n")) == (1, left)
    assert all(line.startswith("pfu: ") and says in line for line in run.err.splitlines())
    assert len(known_uploads(at_hand)) == len(at_hand.server.uploads(BUCKET)) == left
    assert recorded(at_hand) == (3 if left == 2 else 1)
    assert f"{2 - left} unfinished upload" in run.out


def test_cleanup_finds_an_upload_whose_id_is_not_known(
    at_hand: Place, unfinished: Unfinished
) -> None:
    with sqlite3.connect(at_hand.path / "pfu.db") as db:
        db.execute("UPDATE MultipartUpload SET upload_id = NULL")
    assert at_hand.run("--cleanup", to=None).code == 0
    assert not at_hand.server.uploads(BUCKET)
    assert not known_uploads(at_hand)


def test_cleanup_after_a_sandbox_that_is_no_more(at_hand: Place, unfinished: Unfinished) -> None:
    with sqlite3.connect(at_hand.path / "pfu.db") as db:
        db.execute("UPDATE MultipartUpload SET endpoint = 'sandbox' WHERE object_key = 'p/a'")
    run = at_hand.run("--cleanup", to=None)
    assert (run.code, run.err) == (0, "")
    assert [upload.key for upload in at_hand.server.uploads(BUCKET).values()] == ["p/a"]
    assert not known_uploads(at_hand)


def test_cleanup_without_a_ledger_makes_none(place: Place) -> None:
    run = place.run("--cleanup", to=None)
    assert (run.code, run.err) == (
        2,
        "pfu: read ledger pfu.db: there is none (name one with --db)\n",
    )
    assert not list(place.path.glob("pfu.db*"))


# ======================================================================================
# More trouble: changes under way, odd figures, broken surroundings
# ======================================================================================

# -- what changes between scan and read

TOUCHED_AT = LONG_AGO * 10**9 + 123_456_789
META_CHANGES: dict[str, Callable[[Path], Any]] = {
    "touch": lambda path: os.utime(path, ns=(0, TOUCHED_AT)),
    "chmod": lambda path: path.chmod(0o600),
}


def assert_told_alike(place: Place, path: Path) -> None:
    """File, object and ledger agree on time and mode."""
    mtime, mode = path.stat().st_mtime_ns, f"0{path.stat().st_mode:o}"
    (row,), (stored,) = place.rows(), place.server.objects(BUCKET).values()
    assert (row["last_modified"], row["permissions"]) == (mtime, mode)
    assert stored.headers["x-amz-meta-file-mtime"] == f"{mtime}ns"
    assert stored.headers["x-amz-meta-mode"] == mode


@pytest.mark.parametrize(
    "mode, change, why, size",
    [
        ("concurrent", "touch", "racy", 100),
        ("concurrent", "chmod", "--checksum", 5 * MIB + 1),
        ("parallel", "touch", "--checksum", 100),
        ("parallel", "chmod", "racy", 5 * MIB + 1),
    ],
)
def test_the_same_bytes_with_other_metadata_go_up_again(
    place: Place, mode: str, change: str, why: str, size: int
) -> None:
    arguments = ["--mode", mode, "--part-size", "5M", "--json"]
    racy = why == "racy"
    path = place.file("f", b"x" * size, mtime=int(time.time()) + 1 if racy else LONG_AGO)
    place.run(*arguments)
    after_the_scan = Action("call", function=lambda: META_CHANGES[change](path))
    place.server.faults.append(Fault(after_the_scan, operation="HeadBucket", times=1))
    run = place.run(*arguments, *([] if racy else [why]))
    assert place.server.faults[0].applied == 1
    assert (run.code, run.json["uploaded"], run.json["unchanged"]) == (0, 1, 0)
    assert_told_alike(place, path)


# -- figures that a database, a division or a sign does not expect


def test_a_time_after_the_year_2262(place: Place) -> None:
    path = place.file("future", b"later")
    os.utime(path, ns=(0, 10_000_000_000 * 10**9))
    if path.stat().st_mtime_ns != 10_000_000_000 * 10**9:
        pytest.skip("the file system keeps no such time")
    for expected in ("uploaded", "unchanged"):
        run = place.run("--mode", "concurrent", "--json")
        assert (run.code, run.err, run.json[expected]) == (0, "", 1)
    assert place.server.count("PutObject") == 1
    (stored,) = place.server.objects(BUCKET).values()
    assert stored.headers["x-amz-meta-file-mtime"] == "10000000000000000000ns"
    assert stored.headers["x-amz-meta-mtime"] == "10000000000.000000000"
    rewrite_in_place(path)
    assert place.run("--mode", "concurrent", "--json").json["uploaded"] == 1
    assert place.stored() == place.local()


def status_of(**fields: int) -> Any:
    """What os.stat() might say."""
    common = {"st_mode": 0o100644, "st_size": 1, "st_uid": 2, "st_gid": 3, "st_mtime_ns": 0}
    return SimpleNamespace(**{**common, **fields})


@pytest.mark.parametrize("number", [0, 1, 1 << 62, 1 << 63, (1 << 63) + 5, (1 << 64) - 1])
def test_figures_of_64_bits_fit_the_ledger(tmp_path: Path, number: int) -> None:
    status = status_of(st_ino=number, st_mtime_ns=number)
    inode, mtime = pfu.ledger_inode(status), pfu.ledger_time(status)
    past = pfu.ledger_time(status_of(st_mtime_ns=-number))
    with contextlib.closing(sqlite3.connect(":memory:")) as db:
        (kept,) = db.execute("SELECT ?, ?, ?", (inode, mtime, past))
    assert kept == (inode, mtime, past)
    assert mtime == -past == min(number, (1 << 63) - 1)
    assert inode == number % (1 << 63)


@pytest.mark.parametrize(
    "mtime, text",
    [
        (-1_500_000_000, "-1.500000000"),
        (-1, "-0.000000001"),
        (-1_000_000_000, "-1.000000000"),
        (0, "0.000000000"),
        (1_500_000_000, "1.500000000"),
    ],
)
def test_times_before_1970_are_written_as_a_number(mtime: int, text: str) -> None:
    metadata = pfu.object_metadata(status_of(st_mtime_ns=mtime), 1)
    assert (metadata["mtime"], metadata["file-mtime"]) == (text, f"{mtime}ns")


@pytest.mark.parametrize("busy", [0.0, -0.001])
@pytest.mark.parametrize("work", [0.0, 1e6])
def test_the_limiter_divides_by_no_zero(busy: float, work: float) -> None:
    limiter = pfu.Limiter(0.0)
    limiter.absorb(pfu.Tally(1e6, 1000, 30.0, 0), 1.0)
    before = limiter.limit
    limiter.absorb(pfu.Tally(work, 1000, busy, 0), 5.0)
    assert limiter.limit == before
    for second in range(10, 40):
        limit = limiter.limit
        limiter.absorb(pfu.Tally(1e6 * limit, 1000 * limit, limit, 0), float(second))
    assert limiter.limit > before


# -- connections and slots that do not end as they should


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_server_that_hangs_up_after_the_handshake(certificates: Any, version: Any) -> None:
    context = server_context(certificates, "good")
    context.maximum_version = version
    accepted: list[Any] = []

    async def hang_up(reader: Any, writer: Any) -> None:
        accepted.append(writer)
        writer.close()

    async def scenario() -> None:
        server = await asyncio.start_server(hang_up, "127.0.0.1", 0, ssl=context)
        store = LaneStore(fine)
        store.port = server.sockets[0].getsockname()[1]
        template = store.template(ca=str(certificates / "ca.pem"))
        async with opened(pfu.FastLane(template, lambda: KEYS)) as lane:
            for _ in range(5):
                with pytest.raises(pfu.Rejected):
                    await asyncio.wait_for(put(lane), 1)
            assert lane.connections == 0
        server.close()

    asyncio.run(scenario())
    assert len(accepted) <= 10


@pytest.mark.parametrize("attempts", [1, 5])
def test_a_slot_that_swallows_a_cancel_holds_up_nothing(
    monkeypatch: pytest.MonkeyPatch, attempts: int
) -> None:
    monkeypatch.setattr(pfu, "CANCEL_ATTEMPTS", attempts, raising=False)
    wait = asyncio.wait
    monkeypatch.setattr(asyncio, "wait", lambda tasks, timeout: wait(tasks, timeout=timeout / 10))

    async def stubborn() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(60)
        await asyncio.sleep(60)

    async def scenario() -> None:
        runner = pfu.PageRunner(InstantUploader(), pfu.EngineOptions(), pfu.Gauges())
        slot = asyncio.ensure_future(stubborn())
        runner._slots.add(slot)
        await asyncio.sleep(0)
        await asyncio.wait_for(runner.close(), 1)
        assert slot.cancelled() == (attempts > 1)

    asyncio.run(scenario())


# -- a stop while the tree is scanned


class StopsTheScan(pfu.Observer):
    """Stops its job as soon as it hears of the scan."""

    job: pfu.BatchJobModel

    def scanned(self, files: int) -> None:
        self.job.stop("enough")


def job_within(place: Place, observer: pfu.Observer | None = None, **options: Any) -> Any:
    """A run in this process, with a provider that needs no network."""
    settings = pfu.RunOptions(**{"mode": "concurrent", "nice": 0, **options})
    uploader = FolderUploader(place.path / "store")
    return pfu.BatchJobModel(place.root, uploader, place.path / "l.db", settings, observer)


@pytest.mark.parametrize("call", ["run", "dry_run"])
def test_a_stop_ends_the_scan(place: Place, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    found, looked_at = pfu.Scan._found, itertools.count()

    def look(scan: pfu.Scan, *given: Any) -> pfu.Found:
        next(looked_at)
        return found(scan, *given)

    monkeypatch.setattr(pfu.Scan, "_found", look)
    place.files(3000, 6)
    observer = StopsTheScan()
    job = observer.job = job_within(place, observer)
    summary = getattr(job, call)()
    assert (summary.exit_code, summary.error) == (4, "enough")
    assert 0 < summary.seen <= next(looked_at) < 3000
    assert not (place.path / "store").exists()


@pytest.mark.parametrize("call", ["run", "dry_run"])
def test_a_stop_before_the_scan_is_not_an_empty_tree(place: Place, call: str) -> None:
    place.files(3)
    assert job_within(place).run().uploaded == 3
    job = job_within(place)
    job.stop("never mind")
    summary = getattr(job, call)()
    assert (summary.exit_code, summary.error, summary.seen) == (4, "never mind", 0)
    assert job_within(place).run().unchanged == 3


@pytest.mark.parametrize("options", ["--dry-run", "--mode parallel"])
def test_the_time_limit_holds_for_the_scan_too(place: Place, options: str) -> None:
    place.files(600, 6)
    run = place.run(*options.split(), "--max-duration", "0.00001s", "--json")
    assert (run.code, run.json["exit_code"], run.json["seen"]) == (4, 4, 0)
    assert run.err == "pfu: stopped: the time limit of 1e-05 s is over\n"


# -- one line, whatever is broken


def credential_process(place: Place, command: str) -> None:
    without_credentials(place)
    (place.path / "config").write_text(f"[default]\ncredential_process = {command}\n")
    place.environment["AWS_CONFIG_FILE"] = str(place.path / "config")


def closed_root(place: Place) -> dict[str, Any]:
    place.root.chmod(0)
    return {"preexec_fn": drop_privilege}


def removed_folder(place: Place) -> dict[str, Any]:
    def enter() -> None:
        os.mkdir("gone")
        os.chdir("gone")
        os.rmdir("../gone")

    return {"preexec_fn": enter}


def odd_destination(place: Place) -> dict[str, Any]:
    return {"to": f"s3://{BUCKET}/\udcff"}


def odd_start_method(place: Place) -> None:
    place.environment["PFU_START_METHOD"] = "nonsense"


def sitecustomize(place: Place, *lines: str) -> None:
    """Have every Python that starts run these lines first."""
    (place.path / "site").mkdir()
    (place.path / "site/sitecustomize.py").write_text("\n".join(lines))
    place.environment["PYTHONPATH"] = str(place.path / "site")


def without_boto3(place: Place) -> None:
    sitecustomize(
        place, "import sys", "sys.path[:] = [p for p in sys.path if 'site-packages' not in p]"
    )


def dying_workers(place: Place) -> None:
    place.environment["PFU_START_METHOD"] = "spawn"
    sitecustomize(place, "import os, sys", "'--multiprocessing-fork' in sys.argv and os._exit(1)")


Trouble = Callable[[Place], Any]
MORE_TROUBLE: list[tuple[str, Trouble, str, str]] = [
    ("root closed", closed_root, "", "read root "),
    ("root closed, dry run", closed_root, "--dry-run", "tree: Permission denied"),
    (
        "no such credential_process",
        lambda place: credential_process(place, "/no/such/program"),
        "",
        "/no/such/program: No such file or directory (check the AWS configuration",
    ),
    (
        "credential_process that may not be run",
        lambda place: credential_process(place, "/etc/passwd"),
        "--mode concurrent",
        "Permission denied",
    ),
    (
        "garbage of a credential_process",
        lambda place: credential_process(place, "echo garbage"),
        "",
        "(check the AWS configuration",
    ),
    (
        "no object of a credential_process",
        lambda place: credential_process(place, "echo []"),
        "",
        "credential",
    ),
    ("no working directory", removed_folder, "--db x.db", "the working directory is gone"),
    ("destination not UTF-8", odd_destination, "", "it is not UTF-8"),
    ("start method", odd_start_method, "", "PFU_START_METHOD is no way to start a worker"),
    ("size of 22 digits", nothing, f"--max-memory {'9' * 21}T", "is no size"),
    ("size of 400 digits", nothing, f"--max-memory {'9' * 400}", "is no size"),
    ("time of 400 digits", nothing, f"--max-duration {'9' * 400}", "is no time"),
    ("no boto3", without_boto3, "", "import boto3: it is not installed (pip install boto3)"),
    ("workers die", dying_workers, "--workers 2", "(--mode concurrent needs no workers)"),
]


@pytest.mark.parametrize(
    "name, trouble, options, says", MORE_TROUBLE, ids=[row[0] for row in MORE_TROUBLE]
)
def test_broken_surroundings_are_one_clear_line(
    place: Place, name: str, trouble: Trouble, options: str, says: str
) -> None:
    place.file("f", b"content")
    given = trouble(place) or {}
    run = place.run(*options.split(), "--json", **given)
    assert says in run.err
    assert (run.code, run.err.count("\n")) == (2, 1), run.err
    assert run.err.startswith("pfu: ")
    assert "internal error" not in run.err
    if run.out:
        assert (run.json["exit_code"], run.json["failed"]) == (2, 0)
    assert place.stored() == {}


def test_a_destination_of_the_environment_that_is_not_utf_8(place: Place) -> None:
    place.environment["PFU_DESTINATION"] = f"s3://{BUCKET}/\udcff"
    run = place.run(place.root, to=None)
    assert (run.code, run.err.count("\n")) == (2, 1)
    assert "s3://bkt/\\xff: it is not UTF-8" in run.err


PASSWORD = "pa55word"
LEAKS = [
    ("--endpoint-url", f"http://user:{PASSWORD}@127.0.0.1:1"),
    ("--endpoint-url", f"http://{PASSWORD}@127.0.0.1:1/path"),
    ("--endpoint-url", f"user:{PASSWORD}@127.0.0.1:1"),
    ("--endpoint-url", f"http://user:{PASSWORD}@[::1"),
    ("AWS_ENDPOINT_URL", f"http://user:{PASSWORD}@127.0.0.1:1"),
    ("AWS_ENDPOINT_URL", f"user:{PASSWORD}@127.0.0.1:1"),
    ("endpoint_url", f"http://user:{PASSWORD}@127.0.0.1:1"),
]


def give_endpoint(place: Place, source: str, url: str) -> list[str]:
    """By an option, a variable, or the configuration file; returns the arguments for it."""
    place.endpoint = ""
    if source.startswith("--"):
        return [source, url]
    if source == "endpoint_url":
        (place.path / "config").write_text(f"[default]\nendpoint_url = {url}\n")
        source, url = "AWS_CONFIG_FILE", str(place.path / "config")
    place.environment[source] = url
    return []


@pytest.mark.parametrize("source, url", LEAKS)
def test_a_password_in_the_endpoint_is_not_repeated(place: Place, source: str, url: str) -> None:
    place.file("f")
    run = place.run(*give_endpoint(place, source, url), "--json")
    assert (run.code, run.json["exit_code"], run.err.count("\n")) == (2, 2, 1), run.err
    assert "internal error" not in run.err
    written = [path.read_bytes().decode("latin-1") for path in place.path.glob("*.db*")]
    assert not any(PASSWORD in text for text in (run.out, run.err, *written))


NO_PROCESS = BlockingIOError(11, "Resource temporarily unavailable")


@pytest.mark.parametrize(
    "problem, started", [(NO_PROCESS, 1), (RuntimeError("can't start new thread"), 0)]
)
def test_workers_that_the_system_refuses(
    place: Place, monkeypatch: pytest.MonkeyPatch, problem: Exception, started: int
) -> None:
    submit, left = ProcessPoolExecutor.submit, [started]

    def refuse(pool: Any, *given: Any) -> Any:
        left[0] -= 1
        if left[0] >= 0:
            return submit(pool, *given)
        raise problem

    place.files(3)
    monkeypatch.setattr(ProcessPoolExecutor, "submit", refuse)
    summary = job_within(place, mode="parallel", workers=2).run()
    assert summary.exit_code == 2
    assert str(summary.error) == f"start worker: {problem} (--mode concurrent needs no workers)"
    assert (summary.failed, summary.pending, summary.failures) == (0, 3, [])
    assert not multiprocessing.active_children()
    assert job_within(place).run().uploaded == 3


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("workers", [1, 3])
def test_workers_that_die_before_they_start(
    place: Place, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.setenv("PFU_START_METHOD", "fork")
    monkeypatch.setattr(pfu, "_start_worker", lambda *_: os._exit(1))
    place.files(3)
    summary = job_within(place, mode="parallel", workers=workers).run()
    assert (summary.exit_code, summary.failed, summary.pending) == (2, 0, 3)
    assert "of them died at once (--mode concurrent needs no workers)" in str(summary.error)
    assert not multiprocessing.active_children()
    assert job_within(place).run().uploaded == 3


# -- nobody listens


def redirected(place: Place, redirection: str, *arguments: Any) -> Run:
    command = ["sh", "-c", f'exec "$@" {redirection}', "sh", *place.command(*arguments)]
    done = subprocess.run(
        command, cwd=place.path, env=place.environment, capture_output=True, text=True, timeout=30
    )
    assert "Traceback" not in done.stderr
    return Run(done.returncode, done.stdout, done.stderr)


FULL = "pfu: cannot write to standard output: No space left on device\n"


@pytest.mark.parametrize(
    "mode, redirection, says",
    [
        ("concurrent", ">&-", ""),
        ("parallel", "2>&-", ""),
        ("parallel", "<&- >&- 2>&-", ""),
        ("concurrent", ">/dev/full", FULL),
        ("parallel", "2>/dev/full", ""),
        ("concurrent", ">/dev/full 2>&1", ""),
    ],
)
def test_output_that_nobody_takes_fails_no_upload(
    place: Place, mode: str, redirection: str, says: str
) -> None:
    place.files(30)
    run = redirected(place, redirection, "--mode", mode, "--verbose")
    assert run.code == 0
    assert says in run.err
    assert place.stored() == place.local()
    assert place.check_ledger_is_honest() == 30


@pytest.mark.parametrize("options", ["--dry-run", "--json", "--status"])
def test_a_full_disk_for_what_is_asked_is_told(place: Place, options: str) -> None:
    place.files(3)
    place.run("--mode", "concurrent")
    run = redirected(place, ">/dev/full", *options.split())
    assert (run.code, run.err) == (0, FULL)


def test_what_cannot_be_said_keeps_its_exit_code(place: Place) -> None:
    assert redirected(place, "2>/dev/full", "--no-such-option").code == 2
    assert redirected(place, "2>/dev/full", "--db", "no/such/folder/x.db").code == 2


@pytest.mark.parametrize("options", ["--mode concurrent", "--dry-run"])
def test_a_reader_that_has_gone_is_no_trouble(place: Place, options: str) -> None:
    place.files(3)
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as gone:
        done = subprocess.run(
            place.command(*options.split()),
            cwd=place.path,
            env=place.environment,
            stdout=gone,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert (done.returncode, done.stderr) == (0, b"")
    assert place.stored() == ({} if "--dry-run" in options else place.local())


@pytest.mark.parametrize("options, code", [("--mode concurrent", 1), ("--dry-run", 0)])
def test_names_that_the_terminal_cannot_show(place: Place, options: str, code: int) -> None:
    place.file("caf\u00e9", b"1")
    place.file("plain", b"22")
    place.environment["PYTHONIOENCODING"] = "ascii"
    fault = Fault(Action("error", 400, "InvalidRequest"), operation="PutObject", key="caf")
    place.server.faults.append(fault)
    run = place.run(*options.split())
    assert run.code == code, run.err
    assert "caf\\xe9" in (run.err if code else run.out)
    assert list(place.stored()) == (["plain"] if code else [])


# -- ledgers that hold odd things, or nothing


def test_a_root_whose_name_is_not_utf_8(place: Place) -> None:
    place.root = place.root.rename(os.fsdecode(os.fsencode(place.path) + b"/tree\xff"))
    place.file("f")
    assert place.run("--mode", "concurrent").code == 0
    assert place.run("--mode", "concurrent", "--json").json["unchanged"] == 1
    plan = place.run("--dry-run")
    assert (plan.code, plan.err) == (0, "")
    assert "  1 file seen\n  0 would go " in plan.out
    place.endpoint = ""
    status = place.run("--status", to=None)
    assert (status.code, status.err) == (0, "")
    assert f"{place.path}/tree\\xff to s3://{BUCKET}/p: 1 uploaded" in status.out
    jobs = place.run("--status", "--json", to=None).json
    assert {job["root_dir"] for job in jobs} == {str(place.root)}


def test_the_status_of_a_run_that_goes_on_and_of_one_that_was_killed(place: Place) -> None:
    place.file("f")
    stalled = Fault(Action("slow", seconds=60), "PutObject")
    place.server.faults.append(stalled)
    running = place.start("--mode", "concurrent", start_new_session=True)
    wait_until(lambda: stalled.applied)
    status = place.run("--status", to=None)
    assert (status.code, f"  uploading: {place.root} to " in status.out) == (0, True)
    os.killpg(running.pid, signal.SIGKILL)
    running.communicate()
    for _ in range(2):  # asking writes nothing
        status = place.run("--status", to=None)
        assert (status.code, status.err) == (0, "")
        assert f"  interrupted: {place.root} to " in status.out
        assert status.out.endswith("\n    killed\n")
        assert place.rows("SELECT status FROM BatchJob")[0]["status"] == pfu.JobStatus.UPLOADING
    (job,) = place.run("--status", "--json", to=None).json
    assert (job["status"], job["error"]) == (pfu.JobStatus.INTERRUPTED, "killed")


def test_who_only_asks_whether_a_ledger_is_held_stops_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / "pfu.db")
    assert not pfu.LedgerLock.is_held(path)
    code = f"import pfu\nlock = pfu.LedgerLock({path!r})\nprint('held', flush=True)\ninput()"
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], cwd=HERE, stdin=pipe, stdout=pipe) as other:
        assert other.stdout and other.stdout.readline() == b"held\n"
        assert pfu.LedgerLock.is_held(path)
        # The one who asks is done while the one who wants it waits.
        monkeypatch.setattr(time, "sleep", lambda seconds: other.communicate(b"\n") and None)
        pfu.LedgerLock(path).close()
    assert not pfu.LedgerLock.is_held(path)


@pytest.mark.parametrize("options", ["--status", "--dry-run", "--status --json"])
def test_an_empty_ledger_file_is_an_empty_ledger(place: Place, options: str) -> None:
    place.file("f")
    (place.path / "pfu.db").touch()
    run = place.run(*options.split())
    assert (run.code, run.err) == (0, "")
    assert [path.name for path in place.path.glob("pfu.db*")] == ["pfu.db"]
    assert (place.path / "pfu.db").stat().st_size == 0


@BOTH_MODES
def test_a_hash_is_not_believed_once_an_engine_had_the_file(place: Place, mode: str) -> None:
    place.file("f", b"content")
    place.run("--mode", mode)
    with contextlib.closing(sqlite3.connect(place.path / "pfu.db")) as db, db:
        db.execute("UPDATE FileStat SET status = ?", (pfu.FileStatus.IN_PROGRESS,))
    run = place.run("--mode", mode, "--json")
    assert (run.code, run.json["uploaded"]) == (0, 1)
    assert place.server.count("PutObject") == 2
    place.check_ledger_is_honest()


@pytest.mark.parametrize("attempts, kept", [(0, ("e", "h")), (1, (None, None))])
@pytest.mark.parametrize("kind", [pfu.OutcomeKind.RELEASED, pfu.OutcomeKind.FATAL])
def test_a_file_that_was_tried_loses_its_hash(
    kind: pfu.OutcomeKind, attempts: int, kept: tuple[Any, Any]
) -> None:
    file = pfu.FileModel("i", 0, 0, 0, "", "", pfu.FileStatus.IN_PROGRESS, "b", "k")
    file.etag, file.sha256 = "e", "h"
    file.apply(pfu.Outcome("i", kind, "", attempts))
    assert (file.status, file.etag, file.sha256) == (pfu.FileStatus.PENDING, *kept)


@pytest.mark.parametrize("name", ["own.db", "own.db.lock"])
def test_a_root_that_is_the_ledger_is_left_out(place: Place, name: str) -> None:
    (place.root / "own.db").touch()
    root = place.root / name
    root.touch()
    arguments = ("--mode", "concurrent", "--db", "tree/own.db", "--json")
    run = place.run(root, f"s3://{BUCKET}/p", *arguments, to=None)
    assert run.code == 0, run.err
    assert run.json["skipped_by_reason"] == {"pfu's own ledger": 1}
    assert_accounts(run.json)
    assert place.stored() == {}


def test_json_of_a_run_that_finds_the_ledger_locked(place: Place) -> None:
    place.file("f")
    with contextlib.closing(pfu.LedgerLock(str(place.path / "pfu.db"))):
        run = place.run("--json")
    assert (run.code, run.json["exit_code"], run.json["status"]) == (3, 3, "could not start")
    assert f"in use by process {os.getpid()}" in run.json["error"]


# -- refusals

REFUSED = Action("error", 400, "InvalidRequest")
DENIED = Action("error", 403, "AccessDenied")
REFUSALS: list[tuple[str, dict[str, Action], int]] = [
    ("403 is but a name", {"a403": REFUSED, "b": DENIED}, 1),
    ("AccessDenied is but a name", {"AccessDenied": REFUSED, "b": DENIED}, 1),
    ("all denied", {"a": DENIED, "b": DENIED, "c": DENIED}, 2),
]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_what_prepares_holds_nothing_open(
    at_hand: Place, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    monkeypatch.setattr(pfu, "start_method", lambda: method)
    preparation = pfu.Preparation(s3_job(at_hand).uploader)
    assert preparation.is_done(60)
    assert preparation.result() == []
    preparation.close()
    assert preparation._answer.closed and preparation._answering.closed


def test_what_a_store_cannot_take_stops_nothing(at_hand: Place) -> None:
    for number in range(pfu.MAX_DENIED + 5):
        at_hand.file(f"d{number}/f")
    at_hand.server.faults.append(Fault(Action("error", 501, "NotImplemented"), "PutObject", "/$"))
    scan = pfu.ScanOptions(directory_markers=True)
    summary = s3_job(at_hand, scan=scan, concurrency=2).run()
    assert (summary.exit_code, summary.uploaded) == (1, pfu.MAX_DENIED + 5)


@BOTH_MODES
@pytest.mark.parametrize("name, answers, code", REFUSALS, ids=[row[0] for row in REFUSALS])
def test_only_a_run_that_is_denied_altogether_could_not_start(
    place: Place, mode: str, name: str, answers: dict[str, Action], code: int
) -> None:
    for path, action in answers.items():
        place.file(path)
        place.server.faults.append(Fault(action, "PutObject", f"^p/{path}$"))
    run = place.run("--mode", mode, "--workers", 1, "--json")
    assert (run.code, run.json["exit_code"]) == (code, code), run.err
    assert_accounts(run.json)
    assert place.check_ledger_is_honest() == run.json["uploaded"]


class UnreachableUploader(InstantUploader):
    """Stores nothing."""

    def put(self, upload: pfu.Upload) -> pfu.Receipt:
        raise pfu.RetryableError("store", upload.source.path, "no answer")


def test_a_store_that_does_not_answer_denies_nothing(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pfu, "SEND_ATTEMPTS", 1)
    for number in range(3):
        place.file(f"403/{number}")
    settings = pfu.RunOptions(mode="concurrent", nice=0)
    job = pfu.BatchJobModel(place.root, UnreachableUploader(), place.path / "l.db", settings)
    summary = job.run()
    assert (summary.exit_code, summary.failed, summary.error) == (1, 3, None)


@BOTH_MODES
def test_credentials_that_are_revoked_under_way(place: Place, mode: str) -> None:
    place.files(120)
    known = place.server.credentials
    revoke = Action("call", function=lambda: vars(place.server).update(credentials={}))
    place.server.faults.append(Fault(revoke, "PutObject", after=9, times=1))
    run = place.run("--mode", mode, "--concurrency", 4, "--workers", 1, "--json")
    assert (run.code, run.json["failed"], run.json["failures"]) == (2, 0, []), run.err
    assert run.json["uploaded"] + run.json["pending"] == 120
    assert run.json["uploaded"] >= 9
    assert "InvalidAccessKeyId" in run.err
    assert run.err.count("\n") == 1
    assert place.check_ledger_is_honest() == run.json["uploaded"]
    place.server.credentials = known
    again = place.run("--mode", mode, "--json")
    assert (again.code, again.json["uploaded"]) == (0, run.json["pending"])
    assert place.stored() == place.local()


def test_one_request_needs_one_worker(place: Place) -> None:
    place.files(45)
    place.server.faults.append(Fault(Action("slow", seconds=0.01), operation="PutObject"))
    process = place.start("--concurrency", "1", "--workers", "8", "--json")
    assert place.server.wait_for("PutObject", 3)
    assert len(children_of(process.pid)) == 1
    out, err = process.communicate(timeout=30)
    assert (process.returncode, json.loads(out)["uploaded"], err) == (0, 45, "")
    assert place.server.peak_in_flight == 1
    assert place.stored() == place.local()


# ======================================================================================
# Never hangs
# ======================================================================================


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is silent for a second is given up."""
    monkeypatch.setattr(pfu, "WATCH_SECONDS", 1.0)
    monkeypatch.setattr(pfu, "GIVE_UP_SECONDS", 0.5)
    monkeypatch.setattr(pfu, "STOP_SECONDS", 0.2)
    monkeypatch.setattr(pfu.Watchdog, "TICK", 0.05)


@IN_NO_ENVIRONMENT
@pytest.mark.parametrize("seconds, retries", [(0.5, 1), (5.0, 0)])
def test_the_safe_lane_leaves_a_slow_line_time(
    at_hand: Place, monkeypatch: pytest.MonkeyPatch, seconds: float, retries: int
) -> None:
    assert pfu.SLOW_LINE_SECONDS > 2 * pfu.READ_SECONDS
    monkeypatch.setattr(pfu, "SLOW_LINE_SECONDS", seconds)
    monkeypatch.setattr(pfu, "client_refusal", lambda client: "the test says so")
    at_hand.files(1)
    at_hand.server.faults.append(Fault(Action("slow", seconds=1.5), "PutObject", times=1))
    summary = s3_job(at_hand, mode="concurrent").run()
    assert (summary.uploaded, summary.retries) == (1, retries)


@IN_NO_ENVIRONMENT
@pytest.mark.usefixtures("impatient")
@BOTH_MODES
@pytest.mark.parametrize("size", ["small", "large"])
def test_a_store_that_never_ends_its_answers_ends_the_run(
    at_hand: Place, monkeypatch: pytest.MonkeyPatch, mode: str, size: str
) -> None:
    monkeypatch.setenv("PFU_START_METHOD", "fork")
    monkeypatch.setattr(pfu, "client_refusal", lambda client: "the test says so")
    at_hand.file("file", b"x" if size == "small" else os.urandom(3 * PIECE))
    operation = "PutObject" if size == "small" else "UploadPart"
    at_hand.server.faults.append(Fault(Action("endless", seconds=0.05), operation))
    summary = s3_job(at_hand, mode=mode, workers=1).run()
    assert (summary.exit_code, summary.pending, summary.failed) == (4, 1, 0), summary
    assert str(summary.error).startswith(
        "nothing has moved for 1 s: waiting for 1 files on the way"
    )
    assert "p/file" in str(summary.error)
    at_hand.server.faults.clear()
    assert s3_job(at_hand, mode=mode).run().exit_code == 0
    assert at_hand.stored() == at_hand.local()


@pytest.mark.usefixtures("impatient")
def test_a_store_that_says_nothing_of_its_bucket_ends_the_run(at_hand: Place) -> None:
    at_hand.file("file")
    at_hand.server.faults.append(Fault(Action("slow", seconds=30), "HeadBucket"))
    summary = s3_job(at_hand).run()
    assert (summary.exit_code, summary.pending) == (4, 1), summary
    assert "waiting for the store to answer about s3://bkt/p" in str(summary.error)


class Deaf(InstantUploader):
    """Blocks its event loop, as a disk that does not answer would."""

    def __init__(self) -> None:
        super().__init__()
        self.released = threading.Event()

    async def send(self, upload: pfu.Upload, threads: Any) -> pfu.Receipt:
        self.released.wait(30)
        return await super().send(upload, threads)


class Listener(pfu.Observer):
    """Lets the uploader go on when it hears that the run is stuck."""

    def __init__(self, uploader: Deaf) -> None:
        self.uploader = uploader
        self.heard = ""

    def stuck(self, reason: str) -> None:
        self.heard = reason
        self.uploader.released.set()


@pytest.mark.usefixtures("impatient")
def test_a_run_that_does_not_even_stop_is_told_to_be_stuck(place: Place) -> None:
    place.file("file")
    uploader = Deaf()
    listener = Listener(uploader)
    options = pfu.RunOptions(mode="concurrent", nice=0)
    summary = pfu.BatchJobModel(place.root, uploader, place.path / "l.db", options, listener).run()
    assert summary.exit_code == 4
    assert listener.heard.startswith("nothing has moved for 2 s: waiting for 1 files on the way")


def test_a_process_that_was_stopped_for_an_hour_is_not_stuck(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, slept = itertools.count(0, 3600), itertools.count()
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    monkeypatch.setattr("time.sleep", lambda seconds: next(slept))
    watchdog = pfu.Watchdog(lambda: 0, lambda: None, lambda: None)
    watchdog._wait_until_still(100.0)
    assert next(slept) == 50  # looks, each worth two seconds at most


def test_what_moves_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    moves = itertools.chain(range(100), itertools.repeat(0))
    slept = itertools.count()
    monkeypatch.setattr("time.sleep", lambda seconds: next(slept))
    clock = itertools.count(0, 1)
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    watchdog = pfu.Watchdog(lambda: next(moves), lambda: None, lambda: None)
    watchdog._wait_until_still(10.0)
    assert next(slept) == 110


@pytest.mark.parametrize(
    "etag, headers, is_whole",
    [
        ('"abc"', {"content-length": "0"}, True),
        ('"abc-2"', {"transfer-encoding": "chunked"}, True),
        ("abc", {"content-length": "0"}, True),  # some stores do not quote it
        ('"abc', {"content-length": "0"}, False),
        ('abc"', {"content-length": "0"}, False),
        ('"', {"content-length": "0"}, False),
        ('""', {"content-length": "0"}, False),
        (None, {"content-length": "0"}, False),
        ('"abc"', {}, False),
    ],
)
def test_half_an_answer_is_no_acknowledgement(
    etag: str | None, headers: dict[str, str], is_whole: bool
) -> None:
    answer = {"ETag": etag, "ResponseMetadata": {"HTTPHeaders": headers}}
    if is_whole:
        assert pfu.etag_of(answer) == str(etag).strip('"')
    else:
        with pytest.raises(pfu.TransferError, match="it broke off"):
            pfu.etag_of(answer)


# ======================================================================================
# Security: ROOT is not left, nothing planted is followed, nothing secret is told
# ======================================================================================


def secret_folder(place: Place) -> Path:
    folder = place.path / "secret"
    folder.mkdir()
    (folder / "f").write_bytes(b"not for the world")
    return folder


class Swapper(pfu.Observer):
    """Puts something else in the place of a path once the scan is over."""

    def __init__(self, swap: Callable[[], object]) -> None:
        self.swap = swap

    def uploading(self, files: int, size: int) -> None:
        self.swap()


def swap_for_link(path: Path, target: Path) -> None:
    path.rename(path.with_name("was"))
    path.symlink_to(target)


@BOTH_MODES
@pytest.mark.parametrize("level", ["a", "a/b", "a/b/f"])
@pytest.mark.parametrize("size", [10, 3 * PIECE])
def test_no_link_that_is_swapped_in_leads_out_of_root(
    at_hand: Place, monkeypatch: pytest.MonkeyPatch, mode: str, level: str, size: int
) -> None:
    monkeypatch.setenv("PFU_START_METHOD", "fork")
    for name in ("a/b/f", "c/f"):
        at_hand.file(name, b"x" * size)
    outside = at_hand.path / "outside"
    shutil.copytree(at_hand.root / "a", outside)
    secret = b"s" * size
    (outside / "b/f").write_bytes(secret)
    (outside / "f").write_bytes(secret)
    path = at_hand.root / level
    target = outside / level[2:] if level != "a" else outside
    summary = s3_job(at_hand, Swapper(lambda: swap_for_link(path, target)), mode=mode).run()
    assert (summary.exit_code, summary.uploaded) == (0, 1), summary
    assert summary.skipped_by_reason == {"vanished": 1}
    assert at_hand.stored() == {"c/f": b"x" * size}
    assert secret not in at_hand.stored().values()


def test_links_are_followed_where_that_was_asked_for(place: Place) -> None:
    folder = secret_folder(place)
    (place.root / "link").symlink_to(folder)
    assert place.run("--mode", "concurrent", "--follow-symlinks").code == 0
    assert place.stored() == {"link/f": b"not for the world"}


def test_a_single_file_may_be_named_by_a_link(place: Place) -> None:
    file = secret_folder(place) / "f"
    shutil.rmtree(place.root)
    place.root.symlink_to(file)
    run = place.run("--mode", "concurrent", "--json")
    assert (run.code, run.json["uploaded"]) == (0, 1), run.err
    assert place.stored() == {"tree": b"not for the world"}


def test_a_folder_that_was_replaced_meanwhile_is_read_as_it_is_now(at_hand: Place) -> None:
    for name in ("d/a", "d/b"):
        at_hand.file(name, name.encode() * 10)
    tree = pfu.Tree(pfu.Root(str(at_hand.root), pfu._place(str(at_hand.root))))
    os.close(tree.open(str(at_hand.root / "d/a")))
    (at_hand.root / "d").rename(at_hand.path / "old")
    (at_hand.path / "old/b").unlink()
    at_hand.file("d/b", b"new")
    fd = tree.open(str(at_hand.root / "d/b"))
    assert os.read(fd, 10) == b"new"
    os.close(fd)
    tree.close()


def open_below(directory: Path) -> list[str]:
    """What this process holds open of it."""
    found = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            found.append(os.readlink(f"/proc/self/fd/{fd}"))
    return [name for name in found if Path(name).is_relative_to(directory)]


def test_the_tree_keeps_few_directories_open(at_hand: Place) -> None:
    names = [f"{a}/{b}/{c}/f" for a in "xyz" for b in range(10) for c in range(10)]
    for name in names:
        at_hand.file(name, name.encode())
    tree = pfu.Tree(pfu.Root(str(at_hand.root), pfu._place(str(at_hand.root))))
    for name in random.Random(1).sample(names * 3, 900):
        fd = tree.open(str(at_hand.root / name))
        assert os.read(fd, 100) == name.encode()
        os.close(fd)
    assert 0 < len(open_below(at_hand.root)) <= pfu.KEPT_DIRECTORIES + 1
    tree.close()
    assert open_below(at_hand.root) == []


def remove_root(place: Place) -> None:
    shutil.rmtree(place.root)


def replace_root(place: Place) -> None:
    place.root.rename(place.path / "was")
    place.root.mkdir()


@BOTH_MODES
@pytest.mark.parametrize("trouble", [remove_root, replace_root])
@pytest.mark.parametrize("size", [10, 3 * PIECE])
def test_a_root_that_goes_away_is_no_finished_run(
    at_hand: Place,
    monkeypatch: pytest.MonkeyPatch,
    mode: str,
    trouble: Callable[[Place], None],
    size: int,
) -> None:
    monkeypatch.setenv("PFU_START_METHOD", "fork")
    for number in range(5):
        at_hand.file(f"d{number}/f", b"x" * size)
    summary = s3_job(at_hand, Swapper(lambda: trouble(at_hand)), mode=mode).run()
    assert (summary.exit_code, summary.uploaded, summary.failed) == (2, 0, 0), summary
    assert "read root" in str(summary.error)
    assert "is it mounted?" in str(summary.error)
    assert (summary.pending, summary.skipped) == (5, 0)
    assert len(at_hand.rows()) == 5


def test_a_root_that_goes_away_while_it_is_scanned(at_hand: Place) -> None:
    at_hand.files(20)
    observer = pfu.Observer()
    observer.scanned = lambda files: at_hand.root.exists() and replace_root(at_hand)  # type: ignore
    job = s3_job(at_hand, observer)
    observer.scanned = lambda files: Path(job.root_dir).rename(at_hand.path / "gone")  # type: ignore
    summary = job.run()
    assert summary.exit_code == 2
    assert "is it mounted?" in str(summary.error)


@pytest.mark.parametrize("end", ["", "-wal", "-shm", "-journal", ".lock"])
def test_no_link_is_followed_where_the_ledger_lies(place: Place, end: str) -> None:
    place.file("f")
    victim = place.path / "victim"
    victim.write_bytes(b"precious")
    (place.path / f"pfu.db{end}").symlink_to(victim)
    run = place.run("--mode", "concurrent")
    assert (run.code, run.err.count("\n")) == (2, 1), run.err
    assert "it is a symbolic link (remove it, or name another --db)" in run.err
    assert victim.read_bytes() == b"precious"


def test_the_files_of_the_ledger_are_for_their_owner_alone(place: Place) -> None:
    place.files(30)
    os.umask(os.umask(0))
    place.server.faults.append(Fault(Action("slow", seconds=1), "PutObject"))
    run = place.start("--mode", "concurrent")
    assert place.server.wait_for("HeadBucket", 1)
    time.sleep(0.3)
    modes = {path.name: path.stat().st_mode & 0o777 for path in place.path.glob("pfu.db*")}
    run.communicate(timeout=60)
    assert set(modes) == {"pfu.db", "pfu.db-wal", "pfu.db-shm", "pfu.db.lock"}
    assert set(modes.values()) == {0o600}


def test_a_store_without_encryption_is_warned_about(
    at_hand: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_hand.file("f")
    monkeypatch.setattr(pfu, "is_loopback", lambda host: host != "127.0.0.1")
    summary = s3_job(at_hand).run()
    assert [note for note in summary.notes if "is not encrypted" in note]
    monkeypatch.undo()


@pytest.mark.parametrize(
    "host, is_here",
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("localhost", True),
        ("10.0.0.1", False),
        ("0.0.0.0", False),
        ("nowhere.invalid", False),
    ],
)
def test_what_is_loopback(host: str, is_here: bool) -> None:
    assert pfu.is_loopback(host) == is_here


def test_a_store_cannot_command_the_terminal(place: Place) -> None:
    place.files(3)
    text = "\x1b]0;owned\x07 \u202e \x9b31m"
    place.server.faults.append(Fault(Action("error", 400, "InvalidRequest", text)))
    run = place.run("--mode", "concurrent", "--verbose")
    assert run.code in (1, 2)
    assert not [c for c in run.err + run.out if not c.isprintable() and c != "\n"]


def test_credentials_are_not_shown_in_any_error() -> None:
    credentials = pfu.Credentials("AKID", "very-secret", "token-secret")
    shown = f"{credentials} {credentials!r} {pfu.internal_error(KeyError(credentials))}"
    assert "secret" not in shown


IAM_ACTIONS = {
    **dict.fromkeys(
        ("PutObject", "CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload"),
        "s3:PutObject",
    ),
    "AbortMultipartUpload": "s3:AbortMultipartUpload",
    "ListParts": "s3:ListMultipartUploadParts",
    "ListMultipartUploads": "s3:ListBucketMultipartUploads",
    **dict.fromkeys(("HeadBucket", "ListObjectsV2"), "s3:ListBucket"),
    **dict.fromkeys(("HeadObject", "GetObject"), "s3:GetObject"),
    "GetPublicAccessBlock": "s3:GetBucketPublicAccessBlock",
    "GetBucketPolicyStatus": "s3:GetBucketPolicyStatus",
    "GetBucketOwnershipControls": "s3:GetBucketOwnershipControls",
    "GetBucketAcl": "s3:GetBucketAcl",
}


def policy_of_readme() -> dict[str, Any]:
    text = (HERE / "README.md").read_text("utf-8")
    policy: dict[str, Any] = json.loads(
        next(block for block in re.findall(r"```json\n(.*?)```", text, re.S) if "Action" in block)
    )
    return policy


def test_the_policy_in_the_readme_is_just_what_is_used(place: Place) -> None:
    vars(place.server.bucket(BUCKET)).update(OPEN)
    place.files(3)
    large = place.file("large", os.urandom(11 * MIB))
    place.server.faults.append(Fault(Action("error", 403, "AccessDenied"), "UploadPart", after=1))
    assert place.run("--mode", "concurrent", *PART).code == 1
    place.server.faults.clear()
    place.server.faults.append(ChecksumFault(Action("error", 501, "NotImplemented")))
    os.utime(large, (LONG_AGO, LONG_AGO))  # its inode has changed: begun anew, the other aborted
    assert place.run("--mode", "concurrent", *PART).code == 0
    assert place.run("--verify", "--checksum").code == 0
    place.file("large", os.urandom(6 * MIB))
    place.server.faults.append(stall(1))
    run = place.start("--mode", "concurrent", *PART)
    assert place.server.wait_for("CreateMultipartUpload", 3)
    time.sleep(0.5)
    run.kill()
    run.communicate()
    place.server.faults.clear()
    assert place.run("--mode", "concurrent", *PART).code == 0
    named = {
        action for statement in policy_of_readme()["Statement"] for action in statement["Action"]
    }
    assert {IAM_ACTIONS[request.operation] for request in place.server.log} == named


class EnforcingStore:
    """moto's S3 and IAM, which let nobody do what no policy allows."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", pfu.SANDBOX_SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        port = self.process.stdout.readline().strip()
        self.endpoint = f"http://127.0.0.1:{port}"
        self.address = ("127.0.0.1", int(port))

    def client(self, service: str) -> Any:
        keys = {"aws_access_key_id": "a", "aws_secret_access_key": "b"}
        return boto3.client(service, endpoint_url=self.endpoint, region_name="us-east-1", **keys)

    def user_with(self, policy: Mapping[str, Any]) -> dict[str, str]:
        """A bucket, and the environment of a user who may do just this."""
        bucket = "my-bucket"
        self.client("s3").create_bucket(Bucket=bucket)
        self.client("s3").put_public_access_block(
            Bucket=bucket, PublicAccessBlockConfiguration=pfu.ALL_BLOCKS
        )
        iam = self.client("iam")
        iam.create_user(UserName="u")
        key = iam.create_access_key(UserName="u")["AccessKey"]
        iam.put_user_policy(UserName="u", PolicyName="p", PolicyDocument=json.dumps(policy))
        connection = http.client.HTTPConnection(*self.address)
        connection.request("POST", "/moto-api/reset-auth", "0", {"Content-Type": "text/plain"})
        assert connection.getresponse().status == 200
        names = ("AccessKeyId", "SecretAccessKey")
        return dict(zip(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), map(key.get, names)))

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.mark.parametrize("statements", [1, 3])
def test_the_policy_in_the_readme_is_enough_where_it_is_enforced(
    place: Place, statements: int
) -> None:
    policy = policy_of_readme()
    policy["Statement"] = policy["Statement"][:statements]
    place.file("small")
    place.file("large", os.urandom(6 * MIB))
    store = EnforcingStore()
    try:
        place.environment.update(store.user_with(policy))
        place.endpoint = store.endpoint
        run = place.run("--mode", "concurrent", *PART, to="s3://my-bucket/backup")
        assert (run.code, "cannot tell" in run.err) == (0, statements == 1), run.err
        verified = place.run("--verify", "--checksum", to="s3://my-bucket/backup")
        if sys.version_info >= (3, 10):  # moto for 3.9 takes the signature of a listing for wrong
            assert verified.code == (2 if statements == 1 else 0), verified.err
        other = place.run("--mode", "concurrent", "--db", "x.db", to="s3://my-bucket/other")
        assert (other.code, "AccessDenied" in other.err) == (2, True)
    finally:
        store.close()


# ======================================================================================
# What is taken: filters, shares
# ======================================================================================

TREE = (
    *("a.txt", "b.log", "keep.log", "logs/x.log", "logs/y.txt", "logs/deep/z.log"),
    *("src/main.c", "src/main.o", "src/lib/util.o", "src/lib/util.c", "tmp/t", "x[1].txt"),
    *("docs/a/b/c.md", "docs/c.md", "c.md", "[odd]", "sp ace.txt", "#hash", "!bang"),
)
PATTERNS = [
    ["*.log"],
    ["*.log", "!keep.log"],
    ["/a.txt"],
    ["logs"],
    ["logs/"],
    ["logs/*", "!logs/deep"],
    ["logs/**"],
    ["**/c.md"],
    ["docs/**/c.md"],
    ["docs/*/c.md"],
    ["src/**/*.o", "!src/lib/util.o"],
    ["*.[co]"],
    ["*.[!c]"],
    ["?.txt"],
    [r"x\[1\].txt"],
    ["x[[]1].txt"],
    [r"\#hash", r"\!bang"],
    ["**"],
    ["*", "!*.txt"],
    ["/*", "!/src", "/src/*", "!/src/lib"],
    ["sp*"],
    ["[odd]"],
    ["a.txt/"],
    ["lib/"],
    ["src/lib"],
]


def taken_by_git(place: Place, lines: Sequence[str]) -> set[str]:
    """What git would not ignore: the judge of .gitignore's format."""
    (place.root / ".gitignore").write_text("\n".join(lines))
    command = ["git", "-c", "core.excludesFile=/dev/null", "ls-files", "-z", "--others"]
    subprocess.run(["git", "init", "-q"], cwd=place.root, check=True)
    told = subprocess.run(
        [*command, "--exclude-per-directory=.gitignore"],
        cwd=place.root,
        capture_output=True,
        check=True,
    ).stdout
    shutil.rmtree(place.root / ".git")
    (place.root / ".gitignore").unlink()
    return {os.fsdecode(name) for name in told.split(b"\0") if name} - {".gitignore"}


def scanned(place: Place, options: pfu.ScanOptions) -> set[str]:
    found = pfu.Scan(str(place.root), "to", "", options)
    return {entry.key for entry in found}


@pytest.mark.skipif(not shutil.which("git"), reason="git is the judge")
@pytest.mark.parametrize("lines", PATTERNS, ids=[" ".join(lines) for lines in PATTERNS])
def test_patterns_mean_what_they_mean_to_git(place: Place, lines: list[str]) -> None:
    for name in TREE:
        place.file(name)
    patterns = place.path / "patterns"
    patterns.write_text("# comment\n\n" + "\n".join(lines))
    rules = tuple(pfu.rules_of_file(str(patterns)))
    assert scanned(place, pfu.ScanOptions(rules=rules)) == taken_by_git(place, lines)


FILTERS: list[tuple[str, set[str]]] = [
    ("--exclude *.log", {*TREE} - {"b.log", "keep.log", "logs/x.log", "logs/deep/z.log"}),
    (
        "--exclude *.log --include keep.log",
        {*TREE} - {"b.log", "logs/x.log", "logs/deep/z.log"},
    ),
    ("--include *.c", {"src/main.c", "src/lib/util.c"}),
    ("--include docs/", {"docs/a/b/c.md", "docs/c.md"}),
    ("--include src --exclude *.o", {"src/main.c", "src/lib/util.c"}),
    ("--include *.c --exclude lib", {"src/main.c"}),
    ("--exclude /* --include /a.txt", {"a.txt"}),
    ("--exclude-from patterns --include tmp", {*TREE} - {"c.md", "docs/c.md", "docs/a/b/c.md"}),
]


@pytest.mark.parametrize("options, taken", FILTERS, ids=[f[0] for f in FILTERS])
def test_filters_in_their_order(place: Place, options: str, taken: set[str]) -> None:
    for name in TREE:
        place.file(name)
    (place.path / "patterns").write_text("tmp\n*.md\n")
    run = place.run("--mode", "concurrent", "--json", *options.split())
    assert run.code == 0, run.err
    assert set(place.stored()) == taken
    assert run.json["skipped_by_reason"]["excluded"] > 0
    assert_accounts(run.json)


def test_an_excluded_directory_is_never_opened(place: Place) -> None:
    place.file("closed/f")
    place.file("f")
    (place.root / "closed").chmod(0)
    try:
        run = place.run("--mode", "concurrent", "--json", preexec_fn=drop_privilege)
        assert (run.code, run.json["failed"]) == (1, 1)
        run = place.run(
            "--mode", "concurrent", "--json", "--exclude", "closed", preexec_fn=drop_privilege
        )
    finally:
        (place.root / "closed").chmod(0o755)
    assert (run.code, run.json["skipped_by_reason"]) == (0, {"excluded": 1})


LIMITS: list[tuple[str, set[str], str]] = [
    ("--min-age 1d", {"old", "big"}, "newer than --min-age"),
    ("--max-age 1d", {"new"}, "older than --max-age"),
    ("--min-size 1K", {"big"}, "below --min-size"),
    ("--max-size 1K", {"old", "new"}, "above --max-size"),
    ("--max-size 0", set(), "above --max-size"),
]


@pytest.mark.parametrize("options, taken, reason", LIMITS, ids=[f[0] for f in LIMITS])
def test_limits_of_age_and_size(place: Place, options: str, taken: set[str], reason: str) -> None:
    place.file("old")
    place.file("big", b"x" * 5000)
    place.file("new", mtime=int(time.time()))
    run = place.run("--mode", "concurrent", "--json", *options.split())
    assert (run.code, set(place.stored())) == (0, taken)
    assert run.json["skipped_by_reason"] == {reason: 3 - len(taken)}
    assert_accounts(run.json)


def test_filters_hold_for_a_single_file(place: Place) -> None:
    shutil.rmtree(place.root)
    place.root.write_bytes(b"x")
    run = place.run("--mode", "concurrent", "--json", "--exclude", "tree")
    assert (run.code, run.json["skipped"], place.stored()) == (0, 1, {})


WRONG_FILTERS = [
    ("--exclude [z-a]", "bad character range"),
    ("--exclude /", "the pattern is empty"),
    ("--exclude-from nowhere", "nowhere: No such file or directory"),
    ("--min-size 2K --max-size 1K", "--max-size is below --min-size"),
    ("--min-age 2d --max-age 1d", "--max-age is below --min-age"),
    ("--links --follow-symlinks", "--links contradicts --follow-symlinks"),
    ("--shard 3/2", "there is no share 3 of 2"),
    ("--shard auto", "is no share: write K/N"),
    ("--shard 0/2", "is no share"),
    ("--tag novalue", "is no tag: write K=V"),
    ("--tag a=1 --tag a=2", "S3 takes 10 different tags at most"),
    ("--content-type *.x", "is no GLOB=TYPE"),
    ("--content-type *.x=text", "is no GLOB=TYPE"),
    ("--bwlimit 10", "is below 1K a second"),
    ("--provider nothing", "it is no MODULE:CLASS"),
    ("--provider nothing:Here", "No module named 'nothing'"),
    ("--provider json:dumps", "it is no Uploader"),
    ("--provider json:dumps --storage-class X", "--storage-class is for S3, not for --provider"),
]


@pytest.mark.parametrize("options, says", WRONG_FILTERS, ids=[f[0] for f in WRONG_FILTERS])
def test_options_that_make_no_sense(place: Place, options: str, says: str) -> None:
    place.endpoint = ""
    place.file("f")
    run = place.run(*options.split())
    assert (run.code, run.err.count("\n")) == (2, 1), run.err
    assert says in run.err


@pytest.mark.parametrize("shards", [1, 2, 5])
def test_shares_of_a_tree_make_the_whole(place: Place, shards: int) -> None:
    place.files(60)
    keys: list[set[str]] = []
    for number in range(1, shards + 1):
        run = place.run("--mode", "concurrent", "--shard", f"{number}/{shards}", "--json")
        assert run.code == 0, run.err
        before: set[str] = set().union(*keys)
        keys.append(set(place.stored()) - before)
        assert len(keys[-1]) == run.json["seen"] == run.json["uploaded"]
        assert (place.path / f"pfu.{number}-of-{shards}.db").exists()
    assert set().union(*keys) == set(place.local())
    assert place.server.count("PutObject") == 60
    assert min(map(len, keys)) > 0


def test_a_share_is_verified_alone(place: Place) -> None:
    place.files(20)
    place.root.joinpath("link").symlink_to("d1")
    arguments = ["--mode", "concurrent", "--links", "--directory-markers", "--shard"]
    for share in ("1/2", "2/2"):
        assert place.run(*arguments, share).code == 0
    checked = 0
    for share in ("1/2", "2/2"):
        run = place.run(*arguments, share, "--verify", "--json")
        assert (run.code, run.json["extra"], run.json["objects"]) == (0, 0, 28), run.out
        checked += run.json["checked"]
    assert checked == 28
    (place.root / "d1/f00001").unlink()
    for share in ("1/2", "2/2"):
        run = place.run(*arguments, share, "--verify", "--json")
        assert (run.code, run.json["extra_keys"]) == (1, ["p/d1/f00001"])


def test_a_share_that_has_become_empty_is_no_empty_root(place: Place) -> None:
    names = [f"f{number}" for number in range(20)]
    own = [name for name in names if pfu.Shard(1, 2).has(name.encode())]
    arguments = ["--mode", "concurrent", "--shard", "1/2", "--json"]
    for name in names:
        place.file(name)
    assert place.run(*arguments).json["uploaded"] == len(own)
    for name in own:
        (place.root / name).unlink()
    assert (place.run(*arguments).code, len(place.local())) == (0, 20 - len(own))
    for path in place.root.iterdir():
        path.unlink()
    run = place.run(*arguments)
    assert (run.code, "is it mounted?" in run.err) == (2, True)


@pytest.mark.parametrize("shards", [1, 3])
def test_a_single_file_has_one_share(place: Place, shards: int) -> None:
    path = str(place.file("only"))
    for number in range(1, shards + 1):
        command = place.command("--mode", "concurrent", "--shard", f"{number}/{shards}")
        command[command.index(str(place.root))] = path
        done = subprocess.run(command, cwd=place.path, env=place.environment, check=False)
        assert done.returncode == 0
    assert place.server.count("PutObject") == 1
    assert set(place.stored()) == {"only"}


def test_ledgers_of_all_shares_are_left_out(place: Place) -> None:
    place.files(10)
    arguments = ["--mode", "concurrent", "--json", "--shard"]
    for number in (1, 2, 1, 2):
        command = place.command(*arguments, f"{number}/2")
        done = subprocess.run(command, cwd=place.root, env=place.environment, capture_output=True)
        assert done.returncode == 0, done.stderr
    assert set(place.stored()) == set(place.local()) - {
        path.name for path in place.root.glob("pfu.*")
    }


ARRAYS: list[tuple[str, dict[str, str], pfu.Shard]] = [
    ("auto", {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "8"}, pfu.Shard(4, 8)),
    (
        "auto",
        {
            "SLURM_ARRAY_TASK_ID": "14",
            "SLURM_ARRAY_TASK_MIN": "10",
            "SLURM_ARRAY_TASK_STEP": "2",
            "SLURM_ARRAY_TASK_COUNT": "5",
        },
        pfu.Shard(3, 5),
    ),
    (
        "auto",
        {"AWS_BATCH_JOB_ARRAY_INDEX": "0", "AWS_BATCH_JOB_ARRAY_SIZE": "4"},
        pfu.Shard(1, 4),
    ),
    ("auto/6", {"JOB_COMPLETION_INDEX": "5"}, pfu.Shard(6, 6)),
]


@pytest.mark.parametrize("text, told, shard", ARRAYS)
def test_a_job_of_an_array_knows_its_share(
    monkeypatch: pytest.MonkeyPatch, text: str, told: dict[str, str], shard: pfu.Shard
) -> None:
    for names in pfu.ARRAY_JOBS:
        for name in filter(None, names):
            monkeypatch.delenv(name, raising=False)
    with pytest.raises(argparse.ArgumentTypeError):
        pfu.parse_shard(text)
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    assert pfu.parse_shard(text) == shard


# ======================================================================================
# What is said of objects: options of S3, in both lanes
# ======================================================================================

SAID: list[tuple[str, dict[str, str]]] = [
    ("--storage-class GLACIER_IR", {"x-amz-storage-class": "GLACIER_IR"}),
    ("--sse AES256", {"x-amz-server-side-encryption": "AES256"}),
    (
        "--sse aws:kms --sse-kms-key-id key/1",
        {
            "x-amz-server-side-encryption": "aws:kms",
            "x-amz-server-side-encryption-aws-kms-key-id": "key/1",
        },
    ),
    ("--cache-control max-age=60,public", {"cache-control": "max-age=60,public"}),
    ("--tag team=a+b/c --tag keep=7y", {"x-amz-tagging": "team=a%2Bb%2Fc&keep=7y"}),
    ("--content-type *=text/x-all --content-type *.md=text/a", {"content-type": "text/x-all"}),
    ("--content-type /d/**=image/x", {"content-type": "image/x"}),
]


@pytest.mark.parametrize("lane", ["fast", "safe"])
@pytest.mark.parametrize("options, headers", SAID, ids=[s[0] for s in SAID])
def test_what_is_said_of_objects(
    place: Place, lane: str, options: str, headers: dict[str, str]
) -> None:
    place.file("d/small.txt", b"x")
    place.file("d/large.bin", os.urandom(5 * MIB + 1))
    checksum_lane(place, lane)
    run = place.run("--mode", "concurrent", *PART, *options.split(), "--json")
    assert run.code == 0, run.err
    assert run.json["fast_lane"] == (2 if lane == "fast" else 0)
    assert len(place.server.objects(BUCKET)) == 2
    for stored in place.server.objects(BUCKET).values():
        assert headers.items() <= stored.headers.items()


@pytest.mark.parametrize("lane", ["fast", "safe"])
def test_the_requester_pays_for_every_request_about_objects(place: Place, lane: str) -> None:
    place.file("small")
    place.file("large", os.urandom(5 * MIB + 1))
    checksum_lane(place, lane)
    assert place.run("--mode", "concurrent", *PART, "--requester-pays").code == 0
    assert place.run("--verify", "--checksum", "--requester-pays").code == 0
    told = {
        request.operation
        for request in place.server.log
        if request.headers.get("x-amz-request-payer") == "requester"
    }
    assert told >= {"PutObject", "UploadPart", "CompleteMultipartUpload", "ListObjectsV2"}
    silent = {request.operation for request in place.server.log} - told
    assert silent == {"HeadBucket", "GetPublicAccessBlock"}


# ======================================================================================
# Logs, metrics, the environment, providers
# ======================================================================================


def test_every_option_may_come_from_the_environment(place: Place) -> None:
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


def test_what_is_misspelt_is_told(place: Place) -> None:
    place.file("f")
    place.environment["PFU_DRYRUN"] = "1"
    run = place.run("--mode", "concurrent")
    assert (run.code, "note: PFU_DRYRUN in the environment is no option" in run.err) == (0, True)
    run = place.run("--dryrun")
    assert (run.code, "did you mean --dry-run?" in run.err) == (2, True)


def test_a_verification_is_told_as_one(place: Place) -> None:
    place.files(3)
    log = place.path / "log"
    assert place.run("--mode", "concurrent").code == 0
    place.file("new")
    assert place.run("--verify", "--log-file", log).code == 1
    assert "not uploaded: " in log.read_text()
    assert "differs: 4 checked, 3 verified, 0 adopted, 1 differing" in log.read_text()
    status = place.run("--status", to=None)
    assert "verification complete with failures" in status.out
    assert "4 files, 3 as they are, 1 differ" in status.out


@pytest.mark.parametrize(
    "name, value, says",
    [
        ("PFU_MODE", "serial", "PFU_MODE: argument --mode: invalid choice: 'serial'"),
        ("PFU_QUIET", "maybe", "PFU_QUIET: 'maybe' is neither 1 nor 0"),
        ("PFU_EXCLUDE", "'open", "PFU_EXCLUDE: No closing quotation"),
        ("PFU_NICE", "99", "PFU_NICE: argument --nice: '99' is not from 0 to 19"),
    ],
)
def test_what_is_wrong_in_the_environment_is_named(
    place: Place, name: str, value: str, says: str
) -> None:
    place.environment[name] = value
    run = place.run()
    assert (run.code, run.err.count("\n")) == (2, 1)
    assert says in run.err


def test_the_log_has_a_line_for_everything_that_is_said(place: Place) -> None:
    place.files(5)
    place.server.faults.append(Fault(Action("error", 400, "InvalidRequest"), key="f00003"))
    log = place.path / "log"
    for _ in range(2):
        assert place.run("--mode", "concurrent", "--quiet", "--log-file", log).code == 1
    lines = log.read_text().splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[+-]\d{4} ", line) for line in lines)
    assert len([line for line in lines if "InvalidRequest" in line]) == 2
    ends = [line for line in lines if "exit code 1" in line]
    assert len(ends) == 2
    assert "5 seen, 4 uploaded" in ends[0]
    assert log.stat().st_mode & 0o777 == 0o600


def test_the_log_rotates_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pfu, "LOG_BYTES", 1000)
    log = pfu.LogFile(str(tmp_path / "log"))
    for number in range(500):
        assert log.write(f"line {number}\nof many") == ""
    log.close()
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["log", *(f"log.{n}" for n in range(1, pfu.LOG_FILES + 1))]
    assert all(path.stat().st_size <= 1000 for path in tmp_path.iterdir())
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}
    assert "line 499\\nof many" in (tmp_path / "log").read_text()


def test_own_files_are_left_out_wherever_they_are(place: Place) -> None:
    place.files(3)
    own = ["--log-file", place.root / "pfu.log", "--metrics-file", place.root / "m.prom"]
    for _ in range(2):
        run = place.run("--mode", "concurrent", "--json", "--db", place.root / "l.db", *own)
        assert run.code == 0, run.err
    assert len(place.stored()) == 3
    assert run.json["skipped_by_reason"]["pfu's own ledger"] >= 4


@pytest.mark.parametrize("kind", ["folder", "link"])
@pytest.mark.parametrize("option", ["--log-file", "--metrics-file"])
def test_own_files_that_cannot_be_written(place: Place, option: str, kind: str) -> None:
    place.file("f")
    victim = place.path / "victim"
    victim.write_text("precious")
    path = place.path / "there"
    if kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(victim)
    run = place.run("--mode", "concurrent", option, path)
    assert victim.read_text() == "precious"
    if (option, kind) == ("--metrics-file", "link"):  # the link itself is replaced
        assert (run.code, run.err) == (0, "")
    else:
        assert (run.code, run.err.count("\n")) == (2, 1)
        assert str(path) in run.err


def metric(text: str, name: str) -> float:
    found = re.search(rf"^pfu_{name}\{{[^}}]*\}} (\S+)$", text, re.MULTILINE)
    assert found, text
    return float(found[1])


def test_metrics_tell_that_there_is_no_log(place: Place) -> None:
    place.file("f")
    metrics = place.path / "m.prom"
    run = place.run("--log-file", place.path / "no" / "x", "--metrics-file", metrics, "--json")
    assert (run.code, run.err.count("\n"), run.json["exit_code"]) == (2, 1, 2), run.err
    assert "pfu_" in metrics.read_text()


def test_metrics_of_a_success_and_of_a_failure(place: Place) -> None:
    place.files(5)
    path = place.path / "pfu.prom"
    arguments = ["--mode", "concurrent", "--metrics-file", path]
    before = time.time()
    assert place.run(*arguments).code == 0
    first = path.read_text()
    assert metric(first, "run_uploaded_files") == 5
    assert metric(first, "run_exit_code") == metric(first, "run_failed_files") == 0
    assert before - 1 < metric(first, "last_success_timestamp_seconds") < time.time() + 1
    assert path.stat().st_mode & 0o777 == 0o644
    place.file("more")
    place.server.faults.append(Fault(Action("error", 400, "InvalidRequest"), key="more"))
    assert place.run(*arguments).code == 1
    place.server.deny.add("PutObject")
    wrong_secret(place)
    assert place.run(*arguments).code == 2
    last = path.read_text()
    assert metric(last, "run_exit_code") == 2
    name = "last_success_timestamp_seconds"
    assert metric(last, name) == metric(first, name) < metric(last, "last_run_timestamp_seconds")
    kinds = re.findall(r"^# TYPE (pfu_\w+) gauge$", last, re.MULTILINE)
    assert kinds == re.findall(r"^(pfu_\w+)\{", last, re.MULTILINE)


def test_a_dry_run_tells_requests_and_their_price(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.files(3)
    place.file("large", b"x" * (11 * MIB))
    run = place.run("--dry-run", "--json", *PART)
    assert (run.json["requests"], run.json["request_cost_usd"]) == (3 + 5, None)
    assert run.json["pending"] == 4
    uploader = pfu.S3Uploader("s3://bkt", pfu.S3Options(storage_class="DEEP_ARCHIVE"))
    assert uploader.request_cost(1_000_000) == 50.0
    assert pfu.S3Uploader("s3://bkt").request_cost(50_000) == 0.25


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


@BOTH_MODES
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_provider_is_found_by_its_name(place: Place, mode: str, method: str) -> None:
    place.files(20)
    place.endpoint = ""
    (place.path / "folder.py").write_text(PROVIDER)
    place.environment["PFU_START_METHOD"] = method
    store = place.path / "store"
    run = place.run("--mode", mode, "--provider", "folder:Folder", "--json", to=str(store))
    assert (run.code, run.json["uploaded"]) == (0, 20), run.err
    stored = {str(p.relative_to(store)): p.read_bytes() for p in store.rglob("*") if p.is_file()}
    assert stored == place.local()


# ======================================================================================
# Restores, with other people's tools
# ======================================================================================
#
# PFU_TEST_PEERS names a folder with rclone, s5cmd and aws; .ci/run installs them there.

PEERS = os.environ.get("PFU_TEST_PEERS", "")
needs_peers = pytest.mark.skipif(not PEERS, reason="PFU_TEST_PEERS names no other tools")


@pytest.fixture
def lenient_place(tmp_path: Path) -> Iterator[Place]:
    """Of other tools some do not sign what they have not to."""
    with S3Server(buckets=[BUCKET], allow_unsigned_payload=True) as server:
        yield Place(tmp_path, server)


def peer(place: Place, tool: str, *arguments: Any) -> None:
    """Run another tool against the server. It must not complain by its exit code."""
    environment = {
        **place.environment,
        "RCLONE_CONFIG": os.devnull,
        "RCLONE_CONFIG_X_TYPE": "s3",
        "RCLONE_CONFIG_X_PROVIDER": "Other",
        "RCLONE_CONFIG_X_ENV_AUTH": "true",
        "RCLONE_CONFIG_X_ENDPOINT": place.endpoint,
        "RCLONE_CONFIG_X_FORCE_PATH_STYLE": "true",
        "RCLONE_CONFIG_X_LIST_VERSION": "2",
        "RCLONE_CONFIG_X_LIST_URL_ENCODE": "true",
        "S3_ENDPOINT_URL": place.endpoint,
        "AWS_ENDPOINT_URL": place.endpoint,
        "LC_ALL": "C.UTF-8",
    }
    command = [str(Path(PEERS) / tool), *map(str, arguments)]
    done = subprocess.run(
        command, cwd=place.path, env=environment, capture_output=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]


class Entry(NamedTuple):
    """What a restore has to bring back."""

    mode: int
    modified: int  # nanoseconds since the epoch
    content: bytes


def entries(root: Path) -> dict[bytes, Entry]:
    """Files and links below a folder, by the bytes of their paths."""
    found = {}
    for folder, _, _ in os.walk(os.fsencode(root)):
        for entry in os.scandir(folder):
            status = entry.stat(follow_symlinks=False)
            if entry.is_symlink():
                content = os.readlink(entry.path)
            elif entry.is_file():
                content = Path(os.fsdecode(entry.path)).read_bytes()
            else:
                continue
            path = os.path.relpath(entry.path, os.fsencode(root))
            found[path] = Entry(status.st_mode, status.st_mtime_ns, content)
    return found


def tree_to_restore(place: Place) -> None:
    for number, name in enumerate(ODD_NAMES):
        path = place.file(os.path.join(b"d" if number % 3 else b"d/e", os.fsencode(name)))
        path.write_bytes(b"%d" % number * number)
        path.chmod((0o640, 0o755, 0o600, 0o444)[number % 4])
        os.utime(path, ns=(1, LONG_AGO * 10**9 + 123456789 + number))
    large = place.file("large", os.urandom(11 * MIB))
    os.utime(large, ns=(1, 1_700_000_000_000_000_001))


def restorable(name: bytes) -> bool:
    """rclone cannot even upload a name with its own quoting sign in it."""
    return "\u201b".encode() not in name


@needs_peers
def test_rclone_restores_files_as_they_were(lenient_place: Place) -> None:
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
def test_a_lost_ledger_is_made_anew_from_what_rclone_stored(lenient_place: Place) -> None:
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
def test_other_tools_restore_the_bytes(lenient_place: Place, tool: str) -> None:
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


# ======================================================================================
# Fuzz
# ======================================================================================
#
# More than a million inputs, the same in every run. What comes from outside is either taken for
# what it is, strictly, or refused in pfu's own words: answers of a store, ledgers, options, names.
#
# An answer is judged by judged() too, which is slow and takes one step after the other: both must
# accept the same ones, with the same ETag. A ledger must work or raise LedgerError.

MUTATED_ANSWERS = 330_000
COMPOSED_ANSWERS = 170_000
FED_PREFIXES = 400_000
OPTION_NUMBERS = 60_000
ENDS = 60_000
COMMAND_LINES = 10_000
DAMAGED_LEDGERS = 2_400
ODD_ROWS = 1_900
ODD_RUNS = 24
ODD_FILE_NAMES = 100_000
ODD_HEADS = 20_000

Mutator = Callable[[bytes, random.Random], bytes]


def test_a_million_inputs_are_tried() -> None:
    answers = MUTATED_ANSWERS + COMPOSED_ANSWERS + FED_PREFIXES
    options = OPTION_NUMBERS + ENDS + COMMAND_LINES
    assert answers + options + DAMAGED_LEDGERS + ODD_ROWS >= 1_000_000


# -- answers

TOKEN = frozenset(b"!#$%&'*+.^_`|~-" + string.ascii_letters.encode() + string.digits.encode())
CONTROLS = frozenset(range(32)) - {9} | {127}
SINGLE = (
    *(b"content-length", b"transfer-encoding", b"content-encoding"),
    *(b"etag", b"connection", b"retry-after", b"date"),
)
LONGEST_HEAD, LONGEST_BODY, MOST_CHUNKS = 16 * KIB, 64 * KIB, 64


def judged(received: bytes) -> str | None:
    """The ETag of an answer that is strictly right, complete, and all there is; else None."""
    head, blank, body = received.partition(b"\r\n\r\n")
    if not blank or len(head) + 4 > LONGEST_HEAD:
        return None
    status, *lines = head.split(b"\r\n")
    fields = judged_fields(lines)
    if status != b"HTTP/1.1 200" and not status.startswith(b"HTTP/1.1 200 "):
        return None
    if CONTROLS & set(status) or fields is None or b"content-encoding" in fields:
        return None
    content = judged_body(fields, body)
    if content is None or b"<Error" in content:
        return None
    etag = fields.get(b"etag", b"")
    return etag.decode("latin-1") if etag.strip(b'"') else None


def judged_fields(lines: Sequence[bytes]) -> dict[bytes, bytes] | None:
    fields: dict[bytes, bytes] = {}
    for line in lines:
        name, colon, value = line.partition(b":")
        if not colon or not name or set(name) - TOKEN or CONTROLS & set(value):
            return None
        if name.lower() in SINGLE and name.lower() in fields:
            return None
        fields[name.lower()] = value.strip(b" \t")
    return fields


def judged_body(fields: Mapping[bytes, bytes], body: bytes) -> bytes | None:
    length, encoding = fields.get(b"content-length"), fields.get(b"transfer-encoding")
    if len(body) > LONGEST_BODY or (length is None) == (encoding is None):
        return None
    if length is not None:
        is_number = set(length) <= set(b"0123456789") and 1 <= len(length) <= 9
        return body if is_number and int(length) == len(body) else None
    return judged_chunks(body) if encoding is not None and encoding.lower() == b"chunked" else None


def judged_chunks(rest: bytes) -> bytes | None:
    """No trailers, no long extensions, and no more chunks than anybody sends."""
    content = b""
    for _ in range(MOST_CHUNKS):
        line, _, rest = rest.partition(b"\r\n")
        number, _, extension = line.partition(b";")
        size, padding = number.rstrip(b" \t"), len(number) - len(number.rstrip(b" \t"))
        if not 1 <= len(size) <= 6 or set(size.lower()) - set(b"0123456789abcdef"):
            return None
        if CONTROLS & set(extension) or any(byte > 126 for byte in extension):
            return None
        if padding > 8 or len(extension) > 240 or rest[int(size, 16) :][:2] != b"\r\n":
            return None
        content += rest[: int(size, 16)]
        rest = rest[int(size, 16) + 2 :]
        if not int(size, 16):
            return None if rest else content
    return None


VALID_ANSWERS = [
    CLEAN,
    answer_text("x-amz-id-2: abc=", "Date: x", "ETag: x", "Server: S", "Content-Length: 0"),
    answer_text('ETag: W/"1-2"', "Connection: close", "Content-Length: 7", body=b"<Yes/>\n"),
    answer_text('etag:"\xe4"', "TRANSFER-ENCODING:chunked", body=b"0\r\n\r\n"),
    answer_text("ETag: x", "Transfer-Encoding: chunked", body=b"3\r\nabc\r\n0\r\n\r\n"),
    answer_text(
        *('ETag: "e"', "Transfer-Encoding:\tChunked", "X: ;"),
        body=b"00A \t;a=b\r\n\r\n\r\n<Error\r\n0;z\r\n\r\n".replace(b"<Error", b"<Erro."),
    ),
    answer_text("ETag: x", "Content-Length: 00010", body=b"\r\n\r\n\0\xff\r\n<E"),
    answer_text("Content-Length: 0", "ETag: x", status="HTTP/1.1 200"),
]
OTHER_ANSWERS = [
    *VALID_ANSWERS,
    answer_text(status="HTTP/1.1 100 Continue"),
    answer_text("Retry-After: 1", "Content-Length: 0", status="HTTP/1.1 503 Slow Down"),
    answer_text("ETag: x", "Content-Length: 12", body=b"<Error>..</E"),
    answer_text("ETag: x", "Transfer-Encoding: chunked", body=b"1;x\r\na\r\n0\r\nETag: t\r\n\r\n"),
    b"HTTP/1.0 200 OK\r\nETag: x\r\n\r\n",
    b"HTTP/1.1 200 OK\nETag: x\nContent-Length: 0\n\n",
]
PIECES = [
    *(b"\r", b"\n", b"\r\n", b"\n\n", b"\r\n\r\n"),
    *(b"\0", b" ", b"\t", b":", b";", b"\x7f", b"\x0b"),
    *(b"0", b"-", b"+", b"0x", b",", b"_", b"9" * 20, b"\x80", b"\xff", b"\xc2\xb2"),
    *(b"<Error>", b"\r\nETag: y", b"\r\nContent-Length: 0", b"\r\nContent-Length: 1"),
    *(b"\r\nTransfer-Encoding: chunked", b"\r\nContent-Encoding: gzip", b"\r\n folded", b"\r\n\t:"),
    *(b"0\r\n\r\n", b"1\r\na\r\n", b"0\r\nT: t\r\n\r\n", b";e=" + b"x" * 300, b" " * 20),
    *(b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 200 OK\r\n", CLEAN, b"X: " + b"y" * 17_000),
]


def with_flipped_bit(text: bytes, rng: random.Random) -> bytes:
    at = int(rng.random() * len(text))
    return b"%s%c%s" % (text[:at], text[at] ^ 1 << int(rng.random() * 8), text[at + 1 :])


def with_piece(text: bytes, rng: random.Random) -> bytes:
    at = int(rng.random() * (len(text) + 1))
    return text[:at] + PIECES[int(rng.random() * len(PIECES))] + text[at:]


def with_replaced_byte(text: bytes, rng: random.Random) -> bytes:
    at = int(rng.random() * len(text))
    piece = PIECES[int(rng.random() * 20)]
    return text[:at] + piece + text[at + len(piece) :]


def without_some(text: bytes, rng: random.Random) -> bytes:
    at = int(rng.random() * len(text))
    return text[:at] + text[at + 1 + int(rng.random() * 8) :]


def with_some_twice(text: bytes, rng: random.Random) -> bytes:
    start = int(rng.random() * len(text))
    end = start + int(rng.random() * 40)
    return text[:end] + text[start:]


def truncated(text: bytes, rng: random.Random) -> bytes:
    return text[: int(rng.random() * len(text))]


def spliced(text: bytes, rng: random.Random) -> bytes:
    other = OTHER_ANSWERS[int(rng.random() * len(OTHER_ANSWERS))]
    return text[: int(rng.random() * len(text))] + other[int(rng.random() * len(other)) :]


def pipelined(text: bytes, rng: random.Random) -> bytes:
    other = OTHER_ANSWERS[int(rng.random() * len(OTHER_ANSWERS))]
    return text + other if rng.random() < 0.5 else other + text


def unchanged(text: bytes, rng: random.Random) -> bytes:
    return text


MUTATORS: list[Mutator] = [
    *(with_flipped_bit, with_flipped_bit, with_piece, with_piece, with_replaced_byte),
    *(without_some, with_some_twice, truncated, spliced, pipelined, unchanged),
]


def mutated_answer(rng: random.Random) -> bytes:
    text = OTHER_ANSWERS[int(rng.random() * len(OTHER_ANSWERS))]
    for _ in range(1 + int(rng.random() * 2.5)):
        text = MUTATORS[int(rng.random() * len(MUTATORS))](text, rng) or b"H"
    return text


LENGTHS = [
    *("0", "1", "2", "3", "00", "003", "65536", "65537", "999999999", "9" * 10, "9" * 5000),
    *("-1", "-0", "+0", "+3", "0x0", "0x3", "3.0", "3e0", "3 ", " 3", "3,3", "3, 3", "3;3", "3 3"),
    *("", "\u00b3", "3\x00", "3_0", "NaN", "\u0663"),
]
STATUS_LINES = [
    *["HTTP/1.1 200 OK"] * 12,
    *("HTTP/1.1 200", "HTTP/1.1 200 ", "HTTP/1.1 200 \xe4", "HTTP/1.1 200\tOK", "HTTP/1.1  200 OK"),
    *("HTTP/1.0 200 OK", "HTTP/2 200", "http/1.1 200 OK", "HTTP/1.1 201 Created", "HTTP/1.1 2000"),
    *("HTTP/1.1 020 OK", "HTTP/1.1 +20 OK", "HTTP/1.1 304 Not Modified", "HTTP/1.1 200 \x00", ""),
    *(" HTTP/1.1 200 OK", "HTTP/1.1 200 OK\r", "HTTP/1.1 200 OK\n", "HTTP/1.1 503 Slow Down"),
]
HEADER_LINES = [
    *['ETag: "e"', "ETag: x", "etag:\tx "] * 6,
    *("Content-Length: 3", "Transfer-Encoding: chunked", "Content-Length: 0") * 6,
    *("Date: x", "Connection: close", "Server: S", "X: \xe4", "X:", "Retry-After: 1", "X: y"),
    *('ETag: ""', "ETag:", "ETag: \t", "ETag : x"),
    *(" ETag: x", "E\xe4Tag: x", "X-ETag: x", 'ETag: "'),
    *("ETag", "ETag=x", "ETag: \x01", "ETag: \x7f", "ETag: x\ry", "ETag: x\ny", "\tfolded", ": x"),
    *("Transfer-Encoding: gzip", "Transfer-Encoding: chunked, chunked", "Transfer-Encoding:"),
    *("Transfer-Encoding: xchunked", "Transfer-Encoding: identity", "Transfer-Encoding: CHUNKED\t"),
    *("Content-Encoding: gzip", "Content-Encoding:", "Content-Length : 3", "Content_Length: 3"),
    *(f"Content-Length: {length}" for length in LENGTHS),
    "X: " + "y" * 9_000,
]
BODIES = [
    *[b"", b"abc", b"0\r\n\r\n", b"3\r\nabc\r\n0\r\n\r\n"] * 4,
    *(b"3;a=b\r\nabc\r\n0;c\r\n\r\n", b"0\r\nX: y\r\n\r\n", b"0\r\n\r\n" + CLEAN, CLEAN, b"\r\n"),
    *(b"3\nabc\n0\n\n", b"3\r\nabcd\r\n0\r\n\r\n"),
    *(b"3\r\nab\r\n0\r\n\r\n", b"-3\r\nabc\r\n0\r\n\r\n"),
    *(b"+3\r\nabc\r\n0\r\n\r\n", b"0x3\r\nabc\r\n0\r\n\r\n", b" 3\r\nabc\r\n0\r\n\r\n"),
    *(b"3 \r\nabc\r\n0\t\r\n\r\n", b"3\r\nabc\r\n"),
    *(b"3\r\nabc\r\n0\r\n", b"fffffff\r\n", b"10001\r\n"),
    b"00003\r\nabc\r\n000000\r\n\r\n",
    *(b"0000003\r\nabc\r\n0\r\n\r\n", b"3;\x00\r\nabc\r\n0\r\n\r\n"),
    *(b"3;" + b"x" * size + b"\r\nabc\r\n0\r\n\r\n" for size in (240, 241, 300)),
    *(b"3" + b" " * size + b"\r\nabc\r\n0\r\n\r\n" for size in (8, 9, 300)),
    *(b"1\r\nx\r\n" * size + b"0\r\n\r\n" for size in (63, 64, 2_000)),
    *(b"x" * size for size in (65536, 65537)),
    *(b"<Error>", b"7\r\n<Error>\r\n0\r\n\r\n"),
    *(b"3\r\n<Er\r\n3\r\nror\r\n0\r\n\r\n", b"<error", b"\0"),
]
LINE_ENDS = ["\r\n", "\n", "\r", "\r\r\n", "\n\r", "\r\n ", "\x0b\r\n", "\r\n\x00"]
RIGHT_BODIES: list[tuple[str, bytes]] = [
    ("Content-Length: 0", b""),
    ("content-length:3", b"abc"),
    ("Content-Length:\t03 ", b"\r\n\0"),
    ("Transfer-Encoding: chunked", b"0\r\n\r\n"),
    ("Transfer-Encoding: chunked", b"3\r\nabc\r\n0\r\n\r\n"),
    ("X: y\r\nTransfer-Encoding: Chunked", b"3;a=b\r\nabc\r\n0;c\r\n\r\n"),
]


def composed_answer(rng: random.Random) -> bytes:
    """A right one, in which up to two things are replaced by others, which may be right too."""
    choice = rng.choice
    length, body = choice(RIGHT_BODIES)
    status, lines, end = STATUS_LINES[0], [choice(HEADER_LINES[:3]), length], "\r\n"
    for _ in range(int(rng.random() * 3)):
        oddity = int(rng.random() * 10)
        if oddity == 0:
            status = choice(STATUS_LINES)
        elif oddity < 4:
            lines.insert(int(rng.random() * 3), choice(HEADER_LINES))
        elif oddity < 6:
            lines[int(rng.random() * 2)] = choice(HEADER_LINES)
        elif oddity < 9:
            body = choice(BODIES)
        else:
            end = choice(LINE_ENDS)
    return end.join([status, *lines, "", ""]).encode("latin-1", "replace") + body


def verdict_on(received: bytes) -> pfu.Answer | pfu.Rejected | None:
    """What check_answer() says; any exception but its own is let through."""
    try:
        return pfu.check_answer(received)
    except pfu.Rejected as rejected:
        return rejected


def count_verdicts(answers: Iterator[bytes]) -> Counter[str]:
    """What check_answer() says of each, which has to be what judged() says."""
    said: Counter[str] = Counter()
    for received in answers:
        verdict = verdict_on(received)
        etag = verdict.etag if isinstance(verdict, pfu.Answer) else None
        assert etag == judged(received), received
        said[type(verdict).__name__] += 1
        if isinstance(verdict, pfu.Answer) and said["Answer"] % 16 == 0 and received.isascii():
            http_client_agrees(received, verdict)
    return said


@pytest.mark.parametrize("seed", [1, 2])
def test_no_mutated_answer_is_believed_that_is_not_right(seed: int) -> None:
    rng = random.Random(seed)
    said = count_verdicts(mutated_answer(rng) for _ in range(MUTATED_ANSWERS // 2))
    assert sum(said.values()) == MUTATED_ANSWERS // 2
    assert min(said[kind] for kind in ("Answer", "Rejected", "NoneType")) > 5_000, said


@pytest.mark.parametrize("seed", [3, 4])
def test_no_composed_answer_is_believed_that_is_not_right(seed: int) -> None:
    rng = random.Random(seed)
    said = count_verdicts(composed_answer(rng) for _ in range(COMPOSED_ANSWERS // 2))
    assert sum(said.values()) == COMPOSED_ANSWERS // 2
    assert min(said[kind] for kind in ("Answer", "Rejected", "NoneType")) > 5_000, said


def test_an_answer_in_pieces_gets_the_verdict_of_the_whole() -> None:
    """Nothing, then one verdict that more bytes do not change, unless they follow the end."""
    rng, fed, ended = random.Random(5), 0, Counter[str]()
    while fed < FED_PREFIXES:
        received = (mutated_answer(rng) if rng.random() < 0.7 else composed_answer(rng))[:20_000]
        step = 1 + len(received) // 400
        verdicts = [verdict_on(received[:end]) for end in range(0, len(received), step)]
        verdicts.append(verdict_on(received))
        fed += len(verdicts)
        kinds = [type(verdict).__name__ for verdict in verdicts]
        shape = [kind for kind, _ in itertools.groupby(kinds)]
        assert shape[0] == "NoneType", received
        assert shape[1:] in ([], ["Answer"], ["Rejected"], ["Answer", "Rejected"]), received
        assert kinds.count("Answer") <= 1, received
        ended[" ".join(shape[1:])] += 1
    assert fed >= FED_PREFIXES
    assert len(ended) == 4, ended


LONG_HEAD = b"HTTP/1.1 200 OK\r\nETag: e\r\n" + b"a:\r\n" * 4_000
CHUNKED = b"HTTP/1.1 200 OK\r\nETag: e\r\nTransfer-Encoding: chunked\r\n\r\n"
LONG_ANSWERS = {
    "head": LONG_HEAD + b"a:" + b"y" * KIB,
    "spaces": b"HTTP/1.1 200 OK\r\nX:" + b" " * 17 * KIB,
    "head and body": LONG_HEAD + b"Content-Length: 65536\r\n\r\n" + b"x" * 65_535,
    "body": answer_text("ETag: e", "Content-Length: 65536", body=b"x" * 65_535),
    "blank lines": answer_text("ETag: e", "Content-Length: 65536", body=b"\r\n" * 32_767),
    "chunk": CHUNKED + b"10000\r\n" + b"x" * 65_000,
    "chunks": CHUNKED + b"1\r\nx\r\n" * 10_900,
    "few chunks": CHUNKED + b"400;" + b"e" * 30 + b"\r\n" + (b"x" * 1024 + b"\r\n400\r\n") * 63,
    "extension": CHUNKED + b"1;" + b"e" * 65_000,
    "digits": answer_text("Content-Length: " + "9" * 16_000, "ETag: e"),
}


@pytest.mark.parametrize("kind", LONG_ANSWERS)
def test_an_answer_that_dribbles_in_costs_little(kind: str) -> None:
    """All its bytes are looked at each time: what that costs must stay small."""
    received = LONG_ANSWERS[kind]
    began = time.process_time()
    for end in range(0, len(received), 32):
        verdict_on(received[:end])
    assert time.process_time() - began < 5


# -- options

ODD_STRINGS = [
    *("", " ", "\0", "\n", "\t", "\x1b[31m", "\x7f", "\x85", "\xa0", "\u2028", "\u202e", "\ufeff"),
    *("\ud800", "\udcff", "\u0663", "\u00b2", "\uff11", "\u212a", "\u017f", "\u0131", "\u0130"),
    *("%", "%s", "{}", "$(x)", "`x`", ";", "|", "&"),
    *("*", "~", "'", '"', "\\", "..", "/", "//", "@"),
    *("-", "--", "-1", "+1", "0x10", "1e3", "1_0", "nan", "inf", "9" * 16, "9" * 400, "x" * 2_000),
]
NUMBER_PIECES = [
    *(*string.digits, ".", "1.5", "16", "512", "999999999", "0" * 15),
    *(*"KMGTkmgtiBbsd", "iB", "MiB", "kb", " ", "-", "+", "e", "x", "_", ",", *ODD_STRINGS[:21]),
]
SIZES = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40}  # powers of two
SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}


def pieces(rng: random.Random, of: Sequence[str], most: int) -> str:
    return "".join(of[int(rng.random() * len(of))] for _ in range(int(rng.random() * (most + 1))))


def judged_number(text: str) -> Fraction | None:
    whole, dot, rest = text.rstrip(" \t\n\r\f\v").partition(".")
    for digits in (whole, rest) if dot else (whole,):
        if not 1 <= len(digits) <= 15 or set(digits) - set(string.digits):
            return None
    return Fraction(f"{whole}.{rest or 0}")


def judged_size(text: str) -> Fraction | None:
    text = text.strip()
    if not text.isascii():
        return None
    text = text.lower()
    text = text[:-2] if text.endswith("ib") else text[:-1] if text.endswith("b") else text
    unit = text[-1:] if text[-1:] in SIZES else ""
    number = judged_number(text[: len(text) - len(unit)])
    return None if number is None else number * 2 ** SIZES[unit]


def judged_time(text: str) -> Fraction | None:
    text = text.strip()
    unit = text[-1:] if text[-1:] in SECONDS else ""
    number = judged_number(text[: len(text) - len(unit)])
    return None if number is None else number * SECONDS[unit]


def judged_workers(text: str) -> Fraction | None:
    is_number = 1 <= len(text) <= 9 and not set(text) - set(string.digits)
    return Fraction(text) if is_number and 1 <= int(text) <= 256 else None


@pytest.mark.parametrize(
    "parse, judge",
    [
        (pfu.parse_size, judged_size),
        (pfu.parse_time, judged_time),
        (pfu.in_range(1, 256), judged_workers),
    ],
    ids=["size", "time", "count"],
)
def test_only_numbers_are_taken_for_numbers(
    parse: Callable[[str], float], judge: Callable[[str], Fraction | None]
) -> None:
    rng, said = random.Random(6), Counter[bool]()
    for _ in range(OPTION_NUMBERS // 3):
        text = pieces(rng, NUMBER_PIECES, 5)
        try:
            number = parse(text)
        except argparse.ArgumentTypeError as error:
            assert pfu.printable(str(error)).isprintable()
            assert judge(text) is None, text
            said[False] += 1
            continue
        exact = judge(text)
        assert exact is not None, text
        assert abs(number - exact) <= (exact != int(exact)) + exact / 2**50, text
        assert (number > 0) == (exact > 0), text
        said[True] += 1
    assert sum(said.values()) == OPTION_NUMBERS // 3
    assert min(said.values()) > 200, said


END_PIECES = [
    *("s3://", "s3:/", "S3://", "bkt", "my-bucket", "a.b", "A_b", "x", "/", "//", "/p/q", "/p q\n"),
    *("arn:", "arn:aws:s3:eu-central-1:1:accesspoint/", "arn:aws:s3:::b", ":accesspoint", "1" * 64),
    *("http://", "https://", "ftp://", "host", "127.0.0.1"),
    *("[::1]", "[::1%e]", "[", "]", ":", "::1"),
    *(":80", ":0", ":65535", ":65536", ":99999", ":x", "?q", "#f", "user@", "u:p@", "/%0d%0a", "."),
    *ODD_STRINGS,
]
LETTERS_AND_DIGITS = frozenset(string.ascii_letters + string.digits)
HEX_DIGITS = frozenset(string.hexdigits)


def odd_end(rng: random.Random) -> str:
    begins = ("s3://", "s3://bkt", "s3://bkt/", "http://", "https://host", "http://127.0.0.1:", "")
    return rng.choice(begins) + pieces(rng, END_PIECES, 4)


def is_destination(text: str, bucket: str, prefix: str) -> bool:
    more = frozenset("._-:/") if bucket[:4].lower() == "arn:" else frozenset("._-")
    return (
        f"s3://{bucket}/{prefix}".rstrip("/") == text.rstrip("/")
        and set(bucket) <= LETTERS_AND_DIGITS | more
        and 3 <= len(bucket) <= (2048 if ":" in more else 63)
        and (not prefix or (prefix.endswith("/") and not prefix.endswith("//")) or prefix == "/")
        and not any("\ud800" <= character <= "\udfff" for character in text)
    )


def is_endpoint(url: str) -> bool:
    """By hand: scheme, host, port, path, all of them ASCII that is seen."""
    scheme, _, rest = url.partition("://")
    authority, _, path = rest.partition("/")
    host, colon, port = authority, "", ""
    if not authority.endswith("]") and ":" in authority:
        host, colon, port = authority.rpartition(":")
    if scheme not in ("http", "https") or set(path) - set(SEEN) or set("?#@") & set(url):
        return False
    if colon and (set(port) - set(string.digits) or not 1 <= len(port) <= 5):
        return False
    return is_host(host) and (not colon or 0 < int(port) < 65536)


def is_host(host: str) -> bool:
    if host.startswith("["):
        address, _, zone = host[1:-1].partition("%")
        is_address = bool(address) and set(address) <= HEX_DIGITS | set(":.")
        return host.endswith("]") and is_address and (zone.isalnum() or "%" not in host)
    labels = host[: -1 if host.endswith(".") else None].split(".")
    allowed = LETTERS_AND_DIGITS | set("_-")
    return all(0 < len(label) <= 63 and set(label) <= allowed for label in labels)


SEEN = "".join(map(chr, range(33, 127)))


def test_only_ends_are_taken_for_ends() -> None:
    """A destination, or an endpoint."""
    rng, said = random.Random(8), Counter[str]()
    for _ in range(ENDS):
        text = odd_end(rng)
        try:
            bucket, prefix = pfu.parse_destination(text)
        except pfu.UsageError as error:
            assert str(error).isprintable()
        else:
            assert is_destination(text, bucket, prefix), text
            said["destination"] += 1
        try:
            pfu.check_endpoint(text)
        except pfu.UsageError as error:
            assert str(error).isprintable()
            assert not is_endpoint(text), text
        else:
            assert is_endpoint(text), text
            said["endpoint"] += 1
    assert min(said["destination"], said["endpoint"]) > 500, said


def option_words() -> list[str]:
    """All options of the program, as its own parser has them, and what may follow them."""
    actions = pfu.make_parser()._actions
    names = [name for action in actions for name in action.option_strings]
    choices = [choice for action in actions for choice in action.choices or ()]
    return sorted(names) * 2 + choices + ["tree", "s3://bkt/p", "8M", "5M", "2", "1", "90s", "K1"]


def command_line(rng: random.Random, words: Sequence[str]) -> list[str]:
    line = ["tree"] if rng.random() < 0.8 else []
    for _ in range(int(rng.random() * 5)):
        kind = rng.random()
        word = words[int(rng.random() * len(words))]
        if kind > 0.9:
            word = ODD_STRINGS[int(rng.random() * len(ODD_STRINGS))]
        elif kind > 0.8 and word.startswith("--"):  # argparse of 3.9 stumbles over -h=
            word += "=" * (rng.random() < 0.7) + pieces(rng, ODD_STRINGS, 1)
        line.append(word)
    return line


def refusal_of(line: list[str], parser: argparse.ArgumentParser) -> str | argparse.Namespace:
    """The options, or what pfu says of them."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            options = parser.parse_args(line)
        pfu.check_options(options)
    except SystemExit as end:
        assert end.code == 2 or {"-h", "--help", "--version"} & set(line), line
        return said.getvalue() if end.code else "pfu: help\n"
    except pfu.UsageError as error:
        return f"pfu: {error}\n"
    return options


def assert_sane(options: argparse.Namespace) -> None:
    """Nothing was let through that contradicts itself, or that no run can do."""
    run, s3 = pfu.run_options(options), pfu.s3_options(options)
    assert options.root or options.status or options.cleanup
    assert options.status + options.cleanup + options.verify <= 1
    assert not (options.dry_run and (options.status or options.verify))
    assert not (options.sandbox and (s3.endpoint_url or s3.profile or options.verify))
    assert not (options.quiet and options.verbose)
    assert run.mode in ("parallel", "concurrent") and 0 <= run.nice <= 19
    assert 0 <= run.workers <= 256 and 0 <= run.concurrency <= 4096
    assert run.mode == "parallel" or run.workers <= 1
    assert run.part_size == 0 or 5 * MIB <= run.part_size <= 5 << 30
    assert min(run.max_memory, run.bwlimit, run.max_duration) >= 0
    assert run.engine().part_size >= 5 * MIB and run.processes() >= 1
    assert not s3.endpoint_url or is_endpoint(s3.endpoint_url)
    assert not s3.sse_kms_key_id or s3.sse == "aws:kms"
    for text in s3.put_arguments().values():
        assert text.isascii() and text.isprintable(), text


def test_odd_command_lines_are_refused_in_one_line() -> None:
    rng, parser, words = random.Random(9), pfu.make_parser(), option_words()
    said: Counter[bool] = Counter()
    for _ in range(COMMAND_LINES):
        line = command_line(rng, words)
        answer = refusal_of(line, parser)
        said[isinstance(answer, str)] += 1
        if isinstance(answer, argparse.Namespace):
            answer.rules = [rule for rule in answer.rules if isinstance(rule, pfu.Rule)]
            assert_sane(answer)
            continue
        assert answer.startswith("pfu: ") and answer.endswith("\n"), line
        assert answer[:-1].isprintable(), (line, answer)
    assert sum(said.values()) == COMMAND_LINES
    assert min(said.values()) > 2_000, said


# -- names and metadata

HOSTILE_PIECES: list[bytes] = [
    *(b"\r\n", b"\n", b"\r", b"\x1b[31m", b"\x1b]0;t\x07", b"\x7f", b"\x08", b"\t", b" ", b"\x0b"),
    *(b"\r\nHost: x\r\n\r\n", b" HTTP/1.1\r\n", b"?x", b"#x", b"%0d%0a", b"%", b"%s", b"&", b"+"),
    *(c.encode() for c in "\x80\x85\x9b\u200b\u200e\u2028\u2029\u202a\u202e\u2066\u2069\ufeff\xad"),
    *(c.encode() for c in "\u201b\u2400\uff0e\uff0f\xe4\u6771\U0001f600\U000e0041\ufffe\ue000"),
    *(b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xc0\xaf"),
    *(b"\xe2\x80", b"\xf4\x90\x80\x80", b"\xed\xb3\xbf"),
    *("\u201bFF".encode(), "\u201b\u201bFF".encode()),
    *("\u201bff".encode(), b"a", b"FF", b".", b".."),
    *(b".txt", b".html", b".gz", b".tar.gz", b".svgz"),
    *(b".\r\n", b".\xe4", b".json\n", b"." + b"x" * 17),
]


def hostile_name(rng: random.Random) -> bytes:
    """Any bytes but NUL and slash."""
    if rng.random() < 0.3:
        name = bytes(1 + int(rng.random() * 255) for _ in range(int(rng.random() * 12)))
    else:
        name = b"".join(rng.choice(HOSTILE_PIECES) for _ in range(1 + int(rng.random() * 5)))
    return name.replace(b"/", b"") or b"a"


def decoded_name(key: str) -> bytes:
    """What rclone makes of a part of a key: the inverse of its encoding of names, told anew."""
    name, at = b"", 0
    while at < len(key):
        if key[at] != "\u201b":
            name, at = name + key[at].encode(), at + 1
        elif len(key) > at + 2 and not set(key[at + 1 : at + 3]) - set("0123456789ABCDEF"):
            name, at = name + bytes.fromhex(key[at + 1 : at + 3]), at + 3
        else:
            name, at = name + key[at + 1].encode(), at + 2
    return name


UNSEEN = frozenset(("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"))  # Unicode's general categories
METADATA_NAMES = (
    *("file-size", "file-mtime", "file-permissions", "file-owner", "file-group"),
    *("mtime", "mode", "uid", "gid"),
)
HEADER_NAMES = ("content-type", *(f"x-amz-meta-{name}" for name in METADATA_NAMES))
SENT_NAMES = frozenset(
    [
        *(*HEADER_NAMES, "host", "user-agent", "authorization", "content-length"),
        *("x-amz-date", "x-amz-content-sha256"),
    ]
)


def assert_on_one_line(text: str) -> None:
    assert text.isprintable(), ascii(text)
    if not text.isascii():
        assert not UNSEEN & set(map(unicodedata.category, text)), ascii(text)


def assert_one_request(head: bytes, path: bytes, values: Sequence[str]) -> None:
    """One request line for ``path``, exactly the headers that belong to it, and no line more."""
    assert set(head) <= set(range(32, 127)) | {10, 13}
    lines = len(SENT_NAMES) + 2
    assert head.count(b"\r\n") == head.count(b"\n") == head.count(b"\r") == lines, head
    first, sent = parse_head(head)
    method, target, version = first.split(" ")
    assert (method, version) == ("PUT", "HTTP/1.1")
    assert unquote_to_bytes(target) == path and not set(target) & set("?#"), head
    assert sent.keys() == SENT_NAMES, head
    assert [sent[name] for name in HEADER_NAMES] == list(values)


def odd_status(rng: random.Random) -> os.stat_result:
    """What fstat may say of a file: any owner, mode, size and time."""
    numbers = [rng.getrandbits(1 + int(rng.random() * 32)) for _ in range(10)]
    numbers[0] = stat.S_IFREG | numbers[0] & 0o7777
    times = {"st_mtime_ns": rng.getrandbits(70) - (1 << 69)}
    return os.stat_result(numbers, times)


def head_writer() -> pfu.HeadWriter:
    case = {**odd_case(random.Random(1)), "static": (), "prefix": "/b"}
    return pfu.HeadWriter(template_for(case), KEYS, lambda: 1_700_000_000.0)


@pytest.mark.parametrize("seed", [10, 11])
def test_no_name_becomes_a_header_or_moves_a_cursor(seed: int) -> None:
    rng, writer, tried = random.Random(seed), head_writer(), 0
    metadata: list[tuple[str, ...]] = []
    for _ in range(100):
        told = pfu.object_metadata(odd_status(rng), 1)
        assert tuple(told) == METADATA_NAMES
        metadata.append(tuple(told.values()))
    names: dict[str, bytes] = {}
    for _ in range(ODD_FILE_NAMES // 2):
        name = hostile_name(rng)
        text = os.fsdecode(name)
        key = pfu.encode_name(text)
        assert decoded_name(key) == name
        assert names.setdefault(key, name) == name
        assert_on_one_line(pfu.printable(text))
        assert_on_one_line(str(pfu.SourceError("read", text, text)))
        values = (pfu.content_type(f"/d.d/{text}"), *rng.choice(metadata))
        assert "/" in values[0] and values[0].isascii() and values[0].isprintable()
        head = writer.head(key, pfu.Headers(HEADER_NAMES, values), 7, "0" * 64)
        assert_one_request(head, b"/b/" + key.encode(), values)
        tried += 1
    assert tried == ODD_FILE_NAMES // 2
    assert len(names) > tried // 4


def test_no_value_becomes_a_header() -> None:
    """Whatever is given as key, name or value of a header, or as query: one request, or none."""
    rng, writer = random.Random(12), head_writer()
    refused, written = 0, 0
    for _ in range(ODD_HEADS):
        text = hostile_name(rng).decode("utf-8", "surrogateescape")
        place = int(rng.random() * 4)
        names = (*HEADER_NAMES[:-1], text if place == 0 else HEADER_NAMES[-1])
        values = ("text/plain", *("0" for _ in METADATA_NAMES[1:]), text if place == 1 else "1")
        query, key = text if place == 2 else "", text if place == 3 else "k"
        try:
            head = writer.head(key, pfu.Headers(names, values), 0, "0" * 64, query)
        except ValueError:
            refused += 1
            continue
        assert head.count(b"\n") == head.count(b"\r\n") == len(SENT_NAMES) + 2, head
        assert len(parse_head(head)[0].split(" ")) == 3, head
        assert place < 3 or unquote_to_bytes(head.split()[1]) == b"/b/" + key.encode()
        written += 1
    assert refused + written == ODD_HEADS
    assert min(refused, written) > 1_000


# -- ledgers


@pytest.fixture
def unsynced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ledgers that do not wait for the disk: these tests open thousands of them."""
    connect = pfu.Ledger._connect

    def connect_unsynced(ledger: pfu.Ledger) -> sqlite3.Connection:
        db = connect(ledger)
        db.execute("PRAGMA synchronous=OFF")
        return db

    monkeypatch.setattr(pfu.Ledger, "_connect", connect_unsynced)


FILE_IDS = [f"{number:032x}" for number in range(60)]
BATCH_ID, EARLIER_ID = "b" * 32, "a" * 32
ODD_VALUES = [
    *("NULL", "-1", "0", "1", "2", "3", "7", "99", "1.5", "9e999", "-9e999", "''", "'x'", "'a/b'"),
    *(str((1 << 63) - 1), str(-(1 << 63)), "253402300800", "x''", "x'00ff'", "x'e0'", "char(0)"),
    *("CAST(x'ff41' AS TEXT)", "CAST(x'eda080' AS TEXT)", "char(27)||'[31m'", "char(10)||'pfu: x'"),
    *("char(0x202e)", "hex(zeroblob(9000))", "'s3://'", "'http://x:y'", "zeroblob(100)"),
]


def write_ledger(path: Path) -> None:
    """One of every kind: files of every status, runs, uploads, parts, outcomes not folded."""
    ledger = pfu.Ledger(path)
    place = ("s3://bkt/p", "http://127.0.0.1:9")
    for batch_id, status in ((EARLIER_ID, 5), (BATCH_ID, 2)):
        ledger.save_job(
            pfu.BatchJobRow(
                *(batch_id, pfu.JobStatus(status), LONG_AGO, "/tree", "s3://bkt/p", "parallel"),
                endpoint=place[1],
                error="killed",
            )
        )
    with ledger.together():
        for number, file_id in enumerate(FILE_IDS):
            ledger._db.execute(
                pfu.FileModel.insert_sql(),
                (
                    *(file_id, LONG_AGO, number * 1000, number, "0100644", f"/tree/{number}"),
                    *(number % 4, BATCH_ID, f"p/{number}", "e", "0" * 64, 1, "cannot read: x"),
                    *(LONG_AGO, number, number % 2),
                ),
            )
    ledger.save_uploads(
        pfu.UploadModel(file_id, "u", LONG_AGO, EARLIER_ID, *place, f"p/{n}")
        for n, file_id in enumerate(FILE_IDS[:8])
    )
    ledger.record_parts(
        pfu.PartModel(pfu.part_id(file_id, number), number, 5 * MIB, "e", "0" * 64)
        for file_id in FILE_IDS[:8]
        for number in (1, 2, 3)
    )
    ledger.record([file_row(file_id) for file_id in FILE_IDS[30:40]])
    ledger.close()


def file_row(file_id: str) -> pfu.FileModel:
    status = pfu.FileStatus.SUCCESS
    fixed = (file_id, 1, 2, 3, "0100644", "/tree/x", status, BATCH_ID, "p/x")
    return pfu.FileModel(*fixed, etag="e", sha256="0" * 64)


JOB = pfu.BatchJobRow(
    *(BATCH_ID, pfu.JobStatus.UPLOADING, LONG_AGO, "/tree", "s3://bkt/p", "parallel"),
    endpoint="http://127.0.0.1:9",
)
READINGS: dict[str, Callable[[pfu.Ledger], Any]] = {
    "last_jobs": lambda ledger: list(pfu.jobs_text(ledger.last_jobs(10))),
    "known": lambda ledger: ledger.known(FILE_IDS),
    "stored": lambda ledger: ledger.stored(FILE_IDS),
    "has_uploads": lambda ledger: ledger.has_uploads(JOB),
    "pending": lambda ledger: ledger.pending(BATCH_ID),
    "failures": lambda ledger: list(map(failure_text, ledger.failures(BATCH_ID, 100))),
    "count": lambda ledger: ledger.count(BATCH_ID, pfu.FileStatus.FAILED),
    "unfinished_uploads": lambda ledger: endless(ledger.unfinished_uploads()),
    "left_over_uploads": lambda ledger: endless(ledger.left_over_uploads(JOB)),
    "unfinished_upload": lambda ledger: list(map(ledger.unfinished_upload, FILE_IDS[:8])),
    "parts": lambda ledger: [pfu.combined_sha256(stored_parts(ledger, i)) for i in FILE_IDS[:8]],
}
WRITINGS: dict[str, Callable[[pfu.Ledger], Any]] = {
    "fold": lambda ledger: ledger.fold(),
    "interrupt": lambda ledger: ledger.interrupt_unfinished_jobs(),
    "begin_page": lambda ledger: all_pages(ledger),
    "retry": lambda ledger: ledger.retry_failed(BATCH_ID),
    "release": lambda ledger: ledger.release_in_progress(BATCH_ID),
    "forget": lambda ledger: ledger.forget_endpoint("http://127.0.0.1:9"),
    "save_job": lambda ledger: ledger.save_job(JOB),
}


def failure_text(failure: tuple[str, str]) -> str:
    return f"{pfu.printable(failure[0])}: {pfu.printable(failure[1])}"


def endless(uploads: Iterator[pfu.UploadModel]) -> list[pfu.UploadModel]:
    found = list(itertools.islice(uploads, 1_000))
    assert len(found) < 1_000
    for upload in found:
        assert f"{upload.object_key} of {upload.destination}".encode("utf-8", "surrogateescape")
        pfu.bytes_text(upload.part_size)
    return found


def stored_parts(ledger: pfu.Ledger, file_id: str) -> list[pfu.StoredPart]:
    parts = [pfu.StoredPart(p.number, p.part_size, p.etag, p.sha256) for p in ledger.parts(file_id)]
    assert sum(part.size + part.number for part in parts) >= 0 or parts
    return parts


def all_pages(ledger: pfu.Ledger) -> None:
    """As a run takes them, so that the tasks are made too."""
    after, pages = (-1, ""), 0
    while page := ledger.begin_page(BATCH_ID, after, 20, 1 << 40):
        after, pages = (page[-1].file_size, page[-1].id), pages + 1
        assert pages < 1_000
        for task in map(pfu.task_of, page):
            assert pickle.loads(pickle.dumps(task)) == task
            assert len(os.fsencode(task.path) + task.key.encode()) + task.size >= task.size
        ledger.record(page)


def try_ledger(path: Path, *, read_only: bool) -> Counter[str]:
    """Read, and write unless ``read_only``, all that can be; count what worked."""
    said: Counter[str] = Counter()
    began = time.monotonic()
    try:
        ledger = pfu.Ledger(path, read_only=read_only)
    except pfu.LedgerError as error:
        assert_on_one_line(str(error))
        return Counter(refused=1)
    for name, use in (READINGS if read_only else {**READINGS, **WRITINGS}).items():
        try:
            use(ledger)
            said[name] += 1
        except pfu.LedgerError as error:
            assert_on_one_line(str(error))
            said["error"] += 1
    ledger.close()
    assert time.monotonic() - began < 20
    return said


def damaged(content: bytes, rng: random.Random) -> bytes:
    """A ledger file after a disk, or somebody, was at it."""
    text, size = bytearray(content), len(content)
    for _ in range(1 + int(rng.random() * 3)):
        kind, at = int(rng.random() * 8), int(rng.random() * size)
        page = at - at % 4096
        if kind < 2:
            text[at] ^= 1 << int(rng.random() * 8)
        elif kind == 2:
            text[at : at + 64] = bytes(len(text[at : at + 64]))
        elif kind == 3:
            text[page : page + 12] = bytes(int(rng.random() * 256) for _ in range(12))
        elif kind == 4:
            other = int(rng.random() * size) // 4096 * 4096
            text[page : page + 4096] = text[other : other + 4096]
        elif kind == 5:
            text[int(rng.random() * 100)] = rng.choice((0, 1, 2, 3, 4, 64, 255))  # the header
        elif kind == 6:
            text[page + 8 : page + 40] = text[page + 8 : page + 40][::-1]  # places of the rows
        elif rng.random() < 0.3:
            del text[at:]
            size = max(1, len(text))
            text = text or bytearray(b"S")
    return bytes(text)


def put_ledger(path: Path, content: bytes) -> None:
    """A new file: to overwrite one may take the time of a disk."""
    for end in pfu.LEDGER_SUFFIXES:
        Path(f"{path}{end}").unlink(missing_ok=True)
    path.write_bytes(content)


@pytest.mark.parametrize("read_only", [True, False])
def test_a_damaged_ledger_works_or_says_so(
    tmp_path: Path, unsynced: None, capsys: pytest.CaptureFixture[str], read_only: bool
) -> None:
    rng, path, said = random.Random(13), tmp_path / "l.db", Counter[str]()
    write_ledger(path)
    content = path.read_bytes()
    count = DAMAGED_LEDGERS * 2 // 3 if read_only else DAMAGED_LEDGERS // 3
    for _ in range(count):
        put_ledger(path, damaged(content, rng))
        said.update(try_ledger(path, read_only=read_only))
        if said["tried"] % 8 == 0:
            assert_program_copes(path, rng, capsys)
        said["tried"] += 1
    assert said["tried"] == count
    assert min(said["refused"], said["error"], said["last_jobs"], said["known"]) > count // 20, said


def changed_rows(path: Path, rng: random.Random, table: str, column: str, value: str) -> None:
    """As somebody may have written them by SQL; some may be refused, as ids differ."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA synchronous=OFF")
        where = rng.choice(["", "WHERE rowid % 2", "WHERE rowid=2"])
        db.execute(f"UPDATE OR IGNORE {table} SET {column}={value} {where}")


def odd_rows(rng: random.Random) -> Iterator[tuple[str, str, str]]:
    """Every column with every odd value."""
    models: list[type[pfu.BaseModel]]
    models = [pfu.FileModel, pfu.BatchJobRow, pfu.UploadModel, pfu.PartModel, pfu.OutcomeRow]
    columns = [(model.table, column) for model in models for column in model.columns()]
    cases = [(*place, value) for place in columns for value in ODD_VALUES]
    rng.shuffle(cases)
    assert len(cases) <= ODD_ROWS
    return itertools.islice(itertools.cycle(cases), ODD_ROWS)


def test_odd_rows_of_a_ledger_work_or_it_says_so(
    tmp_path: Path, unsynced: None, capsys: pytest.CaptureFixture[str]
) -> None:
    rng, path, tried, said = random.Random(14), tmp_path / "l.db", 0, Counter[str]()
    write_ledger(path)
    content = path.read_bytes()
    for table, column, value in odd_rows(rng):
        put_ledger(path, content)
        changed_rows(path, rng, table, column, value)
        try:
            said += try_ledger(path, read_only=True)
            if tried % 8 == 0:
                assert_program_copes(path, rng, capsys)
            elif tried % 4 == 1:
                said += try_ledger(path, read_only=False)
        except Exception as error:
            raise AssertionError(f"{table}.{column} = {value}") from error
        tried += 1
    assert tried == ODD_ROWS
    assert said["error"] > ODD_ROWS // 10, said
    assert min(said[name] for name in WRITINGS) > ODD_ROWS // 6, said


def assert_program_copes(
    path: Path, rng: random.Random, capsys: pytest.CaptureFixture[str]
) -> None:
    """--status and --cleanup --dry-run: what they say, or one line of why not."""
    action = rng.choice([["--status"], ["--cleanup", "--dry-run"]])
    code = pfu.main([*action, *rng.choice([[], ["--json"]]), "--db", str(path)])
    out, err = capsys.readouterr()
    assert "internal error" not in err and "Traceback" not in err, err
    assert (code, err.count("\n")) in ((0, 0), (2, 1)), err
    for line in (out + err).splitlines():
        assert_on_one_line(line)


def test_a_run_with_odd_rows_uploads_all_or_says_why_not(place: Place, unsynced: None) -> None:
    """A row is believed only if it is as pfu writes it; all other files go up again."""
    rng, path, said = random.Random(15), place.path / "l.db", Counter[str]()
    place.files(8)
    settings = pfu.RunOptions(mode="concurrent", nice=0)

    def run() -> pfu.Summary:
        return pfu.BatchJobModel(place.root, InstantUploader(), path, settings).run()

    assert run().uploaded == 8
    content = path.read_bytes()
    cases = [(column, value) for column in pfu.FileModel.columns() for value in ODD_VALUES]
    for column, value in [("status", "99"), ("racy", "7"), *rng.sample(cases, ODD_RUNS - 2)]:
        put_ledger(path, content)
        changed_rows(path, rng, "FileStat", column, value)
        summary = run()
        assert "internal error" not in f"{summary.error} {summary.failures}", (column, value)
        said["stopped" if summary.error else "complete"] += 1
        if not summary.error:
            assert (summary.exit_code, summary.seen, run().unchanged) == (0, 8, 8), (column, value)
    assert sum(said.values()) == ODD_RUNS and said["complete"] > ODD_RUNS // 2, said


@pytest.mark.parametrize("column, value", [("status", "99"), ("racy", "NULL"), ("status", "'x'")])
def test_a_row_of_no_known_status_is_not_believed(place: Place, column: str, value: str) -> None:
    place.file("f")
    settings = pfu.RunOptions(mode="concurrent", nice=0)
    for expected in (1, 1):
        job = pfu.BatchJobModel(place.root, InstantUploader(), place.path / "pfu.db", settings)
        assert job.run().uploaded == expected
        with contextlib.closing(sqlite3.connect(place.path / "pfu.db")) as db, db:
            db.execute(f"UPDATE FileStat SET {column}={value}")


def test_a_lock_that_is_held_may_name_anybody(tmp_path: Path) -> None:
    lock = tmp_path / f"l.db{pfu.LOCK_SUFFIX}"
    lock.write_bytes(b"\xff\x1b[31m\n")
    script = (
        "import fcntl, sys\nfile = open(sys.argv[1], 'r+')\nfcntl.lockf(file, fcntl.LOCK_EX)\n"
        "print(1, flush=True)\nsys.stdin.read()"
    )
    command = [sys.executable, "-c", script, str(lock)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout and holder.stdout.readline()
        with pytest.raises(pfu.LockedError) as caught:
            pfu.LedgerLock(str(tmp_path / "l.db"))
        assert_on_one_line(str(caught.value))
        holder.communicate()


@pytest.mark.parametrize("text", ["00dc4100", "feff"], ids=["half a pair", "no character"])
def test_an_upload_that_comes_after_itself_hangs_nothing(tmp_path: Path, text: str) -> None:
    """What SQLite gives as UTF-8 of a damaged UTF-16 text sorts before the text."""
    path = tmp_path / "l.db"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA encoding='UTF-16le'")
        for sql in pfu.UploadModel.create_sql():
            db.execute(sql)
        db.execute(f"PRAGMA application_id={pfu.APPLICATION_ID}")
        db.execute(f"PRAGMA user_version={pfu.SCHEMA_VERSION}")
        row = ("u", LONG_AGO, EARLIER_ID, "s3://bkt/p", "", "p/x", 1, 1, 1, 1, "")
        marks = ", ".join("?" * len(row))
        db.execute(f"INSERT INTO MultipartUpload VALUES(CAST(x'{text}' AS TEXT), {marks})", row)
    ledger = pfu.Ledger(path, read_only=True)
    with pytest.raises(pfu.LedgerError, match=r"MultipartUpload\.id"):
        endless(ledger.unfinished_uploads())
    ledger.close()


# ======================================================================================
# Other systems: what Linux has and others have not
# ======================================================================================


LACKING = ("pread", "preadv", "nice", "getsid", "sysconf")


@IN_NO_ENVIRONMENT
@pytest.mark.parametrize("size", [10, 3 * PIECE])
def test_a_run_where_much_is_lacking(
    at_hand: Place, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    for name in LACKING:
        monkeypatch.delattr(os, name, raising=False)
    monkeypatch.setattr(pfu, "HAS_PREADV", False)
    monkeypatch.setattr(pfu, "HAS_DIR_FD", False)
    monkeypatch.setattr(pfu, "NO_FOLLOW", 0)
    monkeypatch.setitem(sys.modules, "resource", None)
    for name in ("a/f", "b/c/f", "f"):
        at_hand.file(name, os.urandom(size))
    (at_hand.root / "link").symlink_to("f")
    summary = s3_job(at_hand, nice=19).run()
    assert (summary.exit_code, summary.uploaded) == (0, 3), summary
    assert at_hand.stored() == at_hand.local()
    assert s3_job(at_hand).run().unchanged == 3


# ======================================================================================
# Faults: every one, in both modes, in both lanes, small and large
# ======================================================================================
#
# A way is a mode, a lane and a size of files. The program is forked from this process, so that
# nothing has to be imported again; it has none of this process's descriptors, and what is patched
# here or in a trial's `patches` holds there and in its workers. Nobody waits between two tries.
# After each run: the code, what is said, the accounts, and an honest ledger. Then a run without the
# fault brings all that is missing, and sends nothing again that the ledger knows of.

Patch = Callable[[], object]


class Way(NamedTuple):
    """How files go up."""

    mode: str
    lane: str
    size: str


MODES, LANES, WAY_SIZES = ("concurrent", "parallel"), ("fast", "safe"), ("small", "large")
WAYS = [Way(*way) for way in itertools.product(MODES, LANES, WAY_SIZES)]
EVERY_WAY = pytest.mark.parametrize("trial", WAYS, ids="-".join, indirect=True)
PARALLEL = [way for way in WAYS if way.mode == "parallel"]
SMALL, LARGE = ([way for way in WAYS if way.size == size] for size in WAY_SIZES)
FAST_SMALL = [way for way in SMALL if way.lane == "fast"]
OTHERS = [way for way in WAYS if way not in FAST_SMALL]
EVEN = [way for way in WAYS if sum(map(bool, map(str.count, way, ("p", "safe", "large")))) % 2 == 0]
ODD = [way for way in WAYS if way not in EVEN]  # any two of mode, lane and size meet in both
TWO = [Way("concurrent", "fast", "small"), Way("parallel", "safe", "large")]
LEAST_PIECE = 64 * KIB
DATA_STEPS = {"PutObject", "CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload"}


@dataclass
class Moment(Fault):
    """Is no fault, but the moment when one begins."""

    begins: Patch = lambda: None

    def matches(self, request: Request, generator: random.Random) -> bool:
        if self.applied == 0 and super().matches(request, generator):
            self.begins()
        return False


class Trial(Place):
    """A place where the program goes one way."""

    # Its first use imports a module: in a server's thread at the moment of a fork, it would be
    # half imported for ever in the child.
    time.strptime("2000", "%Y")

    def __init__(self, path: Path, server: S3Server, way: Way) -> None:
        path.mkdir(exist_ok=True)
        super().__init__(path, server)
        server._store.min_part_size = LEAST_PIECE
        self.way = way
        self.operation = "PutObject" if way.size == "small" else "UploadPart"
        self.patches: list[Patch] = []
        self.is_on = multiprocessing.RawValue("b", 0)  # what the program and its workers see of it
        self.pids: list[int] = []
        self.groups: list[int] = []
        self.repair: Patch = lambda: None
        if way.lane == "safe":
            self.patch("client_refusal", lambda client: "the test says so")

    def patch(self, name: str, value: object) -> None:
        """Another value for one of pfu's names, in the program."""
        self.patches.append(functools.partial(setattr, pfu, name, value))

    def tree(self, files: int = 12) -> None:
        """Files of the size of the way: small ones, or a third as many in three parts each."""
        for number in range(files if self.way.size == "small" else files // 3):
            self.file(f"f{number:03}", self.content())

    def content(self, parts: int = 3) -> bytes:
        return os.urandom(100 if self.way.size == "small" else (parts - 1) * LEAST_PIECE + 1)

    def program(self, *arguments: object) -> list[str]:
        options = ["--mode", self.way.mode, "--part-size", LEAST_PIECE, "--nice", 0, "--json"]
        options += ["--workers", 2] if self.way.mode == "parallel" else []
        return self.command(*options, *arguments)[2:]

    def launch(self, *arguments: object) -> int:
        """Fork the program; returns its process id, which is that of its group too."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # this process has threads
            pid = os.fork()
        if pid == 0:
            try:
                self._be_the_program(arguments)
            except BaseException:  # noqa: BLE001
                traceback.print_exc()
            finally:
                os._exit(70)
        self.pids.append(pid)
        self.groups.append(pid)
        return pid

    def _be_the_program(self, arguments: Sequence[object]) -> None:
        os.setsid()
        gc.freeze()  # nor is anything of this process looked at again
        written = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        streams = [os.open(os.devnull, os.O_RDONLY)]
        streams += [os.open(self.path / name, written) for name in self._outputs(os.getpid())]
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
        for number in map(int, os.listdir("/proc/self/fd")):
            with contextlib.suppress(OSError):  # the one that listed them
                if stat.S_ISSOCK(os.fstat(number).st_mode):
                    os.dup2(0, number)
        for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
            file = open(descriptor, "w" if descriptor else "r")  # noqa: SIM115
            setattr(sys, name, file)
        os.chdir(self.path)
        os.environ.update(self.environment)
        for patch in self.patches:
            patch()
        pfu.leave(pfu.main(self.program(*arguments)))

    def _outputs(self, pid: int) -> tuple[str, str]:
        return f"out.{pid}", f"err.{pid}"

    def end_of(self, pid: int, seconds: float = 30) -> Run:
        """What the program has said when it has ended."""
        deadline = time.monotonic() + seconds
        ended, status = os.waitpid(pid, os.WNOHANG)
        while not ended:
            assert time.monotonic() < deadline, "it does not end"
            time.sleep(0.002)
            ended, status = os.waitpid(pid, os.WNOHANG)
        self.pids.remove(pid)
        out, err = ((self.path / name).read_text() for name in self._outputs(pid))
        assert "Traceback" not in err, err
        return Run(os.waitstatus_to_exitcode(status), out, err)

    def run(self, *arguments: Any, **_: Any) -> Run:
        return self.end_of(self.launch(*arguments))

    def close(self) -> None:
        """End all that is left: programs, and workers that outlived theirs."""
        for group in self.groups:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)
        for pid in self.pids:
            os.waitpid(pid, 0)

    def in_the_middle(self, function: Patch, after: int = 3) -> None:
        """Have a function called, in the server's thread, when so many requests have come."""
        self.server.faults.insert(0, Moment(HONEST, self.operation, after=after, begins=function))

    def turn_on(self) -> None:
        self.is_on.value = 1

    def mend(self) -> None:
        """No fault any more."""
        self.repair()
        self.repair = lambda: None
        self.server.faults.clear()
        self.is_on.value = 0

    def acknowledged(self) -> dict[tuple[str, str, int], int]:
        """What the ledger knows to be in the store, and how often the store said so.

        Key, upload id and number of a part; of a whole file, the key alone.
        """
        objects, parts = self.server.objects(BUCKET), self.server.part_acknowledgements(BUCKET)
        files = self.rows(
            "SELECT object_key FROM FileStat WHERE status = 2 UNION SELECT object_key FROM Outcome "
            "JOIN FileStat ON FileStat.id = file_id WHERE Outcome.status = 2"
        )
        rows = self.rows(
            "SELECT object_key, upload_id, number FROM Part JOIN MultipartUpload "
            "ON MultipartUpload.id = substr(Part.id, 1, instr(Part.id, '/') - 1)"
        )
        known = {(row["object_key"], row["upload_id"], row["number"]) for row in rows}
        return {part: parts[part] for part in known} | {
            (row["object_key"], "", 0): objects[row["object_key"]].puts for row in files
        }

    def first_lanes(self) -> set[str]:
        """The lanes that the bytes of each file were sent by at first."""
        lanes: dict[str, str] = {}
        for request in self.server.log:
            if request.operation == self.operation:
                lanes.setdefault(request.key, "safe" if IS_SAFE_LANE in request.headers else "fast")
        return set(lanes.values())


def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small parts, no pauses between two tries, and botocore's models and plug-ins loaded once."""
    monkeypatch.setattr(pfu, "MIN_PART_SIZE", LEAST_PIECE)
    monkeypatch.setattr(pfu, "full_jitter", lambda attempt: 0.0)
    backoff = "botocore.retries.standard.ExponentialBackoff.delay_amount"
    monkeypatch.setattr(backoff, lambda *_: 0.0)
    session = common_session()  # in this process, so that all others have it
    monkeypatch.setattr(pfu.S3Uploader, "_session_of", lambda uploader: session)


@pytest.fixture
def hurried(no_environment: None, monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)


@functools.cache
def common_session() -> Any:
    """Reads the environment as late as its clients are made."""
    session = boto3.Session()
    session.client("s3", region_name="us-east-1", aws_access_key_id="x", aws_secret_access_key="x")
    return session


@contextlib.contextmanager
def trial_of(path: Path, way: Way, tls: ssl.SSLContext | None = None) -> Iterator[Trial]:
    with S3Server(buckets=[BUCKET], tls=tls) as server:
        trial = Trial(path, server, way)
        try:
            yield trial
        finally:
            trial.close()


@pytest.fixture
def trial(request: Any, tmp_path: Path, hurried: None) -> Iterator[Trial]:
    with trial_of(tmp_path, request.param) as trial:
        yield trial


@pytest.fixture
def trials(tmp_path: Path, hurried: None) -> Iterator[list[Trial]]:
    """All ways side by side, for faults that are waited for."""
    with contextlib.ExitStack() as closing:
        yield [closing.enter_context(trial_of(tmp_path / "-".join(way), way)) for way in WAYS]


def assert_said(run: Run, code: int, says: str = "") -> Any:
    """The code, one line for each thing that is told, and accounts that are right."""
    assert run.code == code, (run.err, run.out)
    assert says in run.err
    summary, lines = run.json, run.err.splitlines()
    assert all(line.startswith("pfu: ") for line in lines)
    reasons = [failure["reason"] for failure in summary["failures"]]
    told = {*summary["notes"], *reasons, *filter(None, [summary["error"]])}
    assert all(any(reason in line for line in lines) for reason in told), lines
    assert len(lines) <= len(summary["notes"]) + len(reasons) + bool(summary["error"]), lines
    assert "internal error" not in run.err
    assert summary["exit_code"] == code
    assert_accounts(summary)
    return summary


def assert_recovers(trial: Trial) -> None:
    """Without the fault the next run brings all, and nothing again that the ledger knows of."""
    trial.mend()
    trial.check_ledger_is_honest()
    before = trial.acknowledged()
    assert_said(trial.run(), 0)
    assert_all_is_there(trial)
    objects, parts = trial.server.objects(BUCKET), trial.server.part_acknowledgements(BUCKET)
    for (key, upload_id, number), count in before.items():
        assert count == (parts[key, upload_id, number] if upload_id else objects[key].puts)


# -- a storm of ten seconds, which begins here and is looked at in the end


@dataclass
class TenSeconds(Fault):
    """From the first request that matches, for ten seconds."""

    ends: float = 0.0

    def matches(self, request: Request, generator: random.Random) -> bool:
        if not self.ends and self._concerns(request):
            self.ends = time.monotonic() + 10
        return time.monotonic() < self.ends and super().matches(request, generator)

    def _concerns(self, request: Request) -> bool:
        return request.operation in DATA_STEPS


@pytest.fixture(scope="module")
def storms(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Trial]]:
    """Every file and every part is answered 503, while other tests go on."""
    with contextlib.ExitStack() as closing:
        monkeypatch = closing.enter_context(pytest.MonkeyPatch.context())
        for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
            monkeypatch.setenv(name, "/nonexistent")
        hurry(monkeypatch)
        monkeypatch.setattr(pfu, "full_jitter", lambda attempt: random.uniform(0, 1))
        trials = [
            closing.enter_context(trial_of(tmp_path_factory.mktemp("-".join(way)), way))
            for way in EVEN
        ]
        for trial in trials:
            trial.tree()
            trial.server.faults.append(TenSeconds(Action("error", 503, "SlowDown")))
            trial.launch()
        monkeypatch.undo()
        yield trials


# -- answers of the store that pass

PASSING: dict[str, Action] = {
    "500": Action("error", 500, "InternalError"),
    "500 before the body": Action("early_error", 500, "InternalError"),
    "500 of no known kind": Action("error", 500, "Mystery"),
    "502": Action("error", 502, "BadGateway"),
    "503": Action("error", 503, "SlowDown"),
    "503 before the body": Action("early_error", 503, "SlowDown"),
    "503 of no known kind": Action("error", 503, "Mystery"),
    "503 of a service": Action("error", 503, "ServiceUnavailable"),
    "504": Action("error", 504, "GatewayTimeout"),
    "429": Action("error", 429, "TooManyRequests"),
    "509": Action("error", 509, "BandwidthLimitExceeded"),
    "400 for a slow body": Action("error", 400, "RequestTimeout"),
    "400 for half a body": Action("error", 400, "IncompleteBody"),
    "bad digest": Action("error", 400, "BadDigest"),
    "other digest": Action("error", 400, "XAmzContentSHA256Mismatch"),
    "conflict": Action("error", 409, "OperationAborted"),
    "200 and an error": Action("error200"),
    "reset before the body": Action("reset_before_body"),
    "reset within the body": Action("reset_within_body"),
    "reset after the body": Action("reset_after_body"),
    "half headers": Action("half_headers"),
    "half a body": Action("half_body"),
    "no HTTP": Action("garbage"),
    "lost acknowledgement": Action("lost_ack"),
    "closed afterwards": Action("close_after"),
}
BOTO_STEPS = ("CreateMultipartUpload", "CompleteMultipartUpload")  # by the safe lane in any way


def give_each_file_a_fault(trial: Trial, actions: Mapping[str, Action], times: int | None) -> None:
    """One file for each action and operation that it can befall."""
    trial.patch("MAX_REFUSALS", sys.maxsize)  # the fast lane meets them all
    steps = BOTO_STEPS if trial.way == ("concurrent", "safe", "large") else ()
    for (name, action), operation in itertools.product(actions.items(), (trial.operation, *steps)):
        trial.file(f"{operation}/{name}", trial.content(parts=2))
        few = times and min(times, 3 if operation in BOTO_STEPS else times)
        trial.server.faults.append(Fault(action, operation, f"/{operation}/{name}$", few))


@pytest.mark.usefixtures("storms")
@EVERY_WAY
def test_faults_that_pass_cost_no_file(trial: Trial) -> None:
    give_each_file_a_fault(trial, PASSING, times=6)  # botocore alone tries four times
    summary = assert_said(trial.run(), 0)
    assert summary["uploaded"] == len(trial.server.faults)
    assert [fault for fault in trial.server.faults if not fault.applied] == []
    assert trial.first_lanes() == {trial.way.lane}
    assert_recovers(trial)


# -- answers of the store that one file does not outlive

CLOSED = "Connection was closed before we received a valid response"
LASTING: dict[str, tuple[Action, str]] = {
    "403": (Action("error", 403, "AccessDenied"), "AccessDenied"),
    "403 of no known kind": (Action("error", 403, "Mystery"), "Mystery"),
    "400": (Action("error", 400, "InvalidRequest"), "InvalidRequest"),
    "413": (Action("error", 413, "EntityTooLarge"), "EntityTooLarge"),
    "500": (Action("error", 500, "InternalError"), "InternalError"),
    "500 before the body": (Action("early_error", 500, "InternalError"), "InternalError"),
    "502": (Action("error", 502, "BadGateway"), "BadGateway"),
    "503": (Action("error", 503, "SlowDown"), "SlowDown|503 Service Unavailable"),
    "504": (Action("error", 504, "GatewayTimeout"), "GatewayTimeout"),
    "429": (Action("error", 429, "TooManyRequests"), "TooManyRequests|429 Too Many Requests"),
    "509": (Action("error", 509, "BandwidthLimitExceeded"), "BandwidthLimitExceeded|509 "),
    "bad digest": (Action("error", 400, "BadDigest"), "BadDigest"),
    "200 and an error": (Action("error200"), "InternalError"),
    "reset before the body": (Action("reset_before_body"), CLOSED),
    "reset within the body": (Action("reset_within_body"), CLOSED),
    "reset after the body": (Action("reset_after_body"), CLOSED),
    "half headers": (Action("half_headers"), "broke off|404"),
    "half a body": (Action("half_body"), ""),
    "no HTTP": (Action("garbage"), CLOSED),
    "lost acknowledgement": (Action("lost_ack"), CLOSED),
}
HARMLESS = {  # the store has done it, and may say so when it is asked
    "CreateMultipartUpload/half a body",
    "CompleteMultipartUpload/half a body",
    "CompleteMultipartUpload/half headers",
    "CompleteMultipartUpload/lost acknowledgement",
}


@EVERY_WAY
def test_faults_that_last_cost_their_file_alone(trial: Trial) -> None:
    for name, value in {"THROTTLED_SECONDS": 0.05, "SEND_ATTEMPTS": 1}.items():
        trial.patch(name, value)
    trial.file("smallest", b"is the first")
    give_each_file_a_fault(trial, {name: action for name, (action, _) in LASTING.items()}, None)
    summary = assert_said(trial.run(), 1)
    failures = {os.path.relpath(f["path"], trial.root): f["reason"] for f in summary["failures"]}
    assert set(trial.local()) - set(failures) - HARMLESS == {"smallest"}
    for path, reason in failures.items():
        assert re.search(LASTING[os.path.basename(path)][1], reason)
    assert trial.first_lanes() == {trial.way.lane}
    assert_recovers(trial)


@pytest.mark.parametrize("trial", TWO, ids="-".join, indirect=True)
def test_what_is_not_taken_is_not_denied(trial: Trial) -> None:
    """One refusal after many files that the store was not able to take ends no run."""
    trial.patch("SEND_ATTEMPTS", 1)
    for number in range(pfu.MAX_DENIED + 5):
        trial.file(f"f{number}", trial.content(parts=2))
    trial.file("last", trial.content(parts=2) + b"which is larger")
    trial.server.faults += [
        Fault(Action("error", 403, "AccessDenied"), key="/last$"),
        Fault(Action("error", 500, "InternalError"), key="/f"),
    ]
    summary = assert_said(trial.run("--concurrency", 2), 1, "AccessDenied")
    assert summary["failed"] == len(trial.local())
    assert_recovers(trial)


# -- what ends or breaks while files go up


def refuse_connections(trial: Trial) -> None:
    """The server ends, with all its connections."""
    trial.in_the_middle(lambda: trial.server._stopped.set())
    trial.server._port = int(trial.endpoint.rpartition(":")[2])

    def start_again() -> None:
        trial.server.stop()
        trial.server.start()

    trial.repair = start_again


def delete_bucket(trial: Trial) -> None:
    trial.server.faults.append(Fault(Action("error", 404, "NoSuchBucket"), after=9))


def deny_all(trial: Trial) -> None:
    trial.in_the_middle(lambda: trial.server.deny.update(DATA_STEPS))
    trial.repair = trial.server.deny.clear


def set_store_clock(trial: Trial) -> None:
    trial.in_the_middle(lambda: vars(trial.server).update(clock_offset=3600))
    trial.repair = lambda: vars(trial.server).update(clock_offset=0)


def step_clock(trial: Trial, seconds: int, of_botocore: bool = True) -> None:
    """The machine's clock goes back."""
    clock, clock_ns, datetime_of = time.time, time.time_ns, botocore.auth.get_current_datetime

    def patch() -> None:
        time.time = lambda: clock() - seconds * trial.is_on.value
        time.time_ns = lambda: clock_ns() - seconds * 10**9 * trial.is_on.value
        pfu.FastLane.__init__.__defaults__ = (time.time, None)
        botocore.auth.get_current_datetime = lambda *given: (
            datetime_of(*given) - timedelta(seconds=seconds * of_botocore * trial.is_on.value)
        )

    trial.patches.append(patch)
    trial.in_the_middle(trial.turn_on)


def forget_names(trial: Trial) -> None:
    """No name can be resolved any more, and every request needs a connection."""
    resolve = socket.getaddrinfo

    def look_up(host: Any, *given: Any, **named: Any) -> Any:
        if trial.is_on.value:
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return resolve("127.0.0.1" if host == "localhost" else host, *given, **named)

    trial.endpoint = trial.endpoint.replace("127.0.0.1", "localhost")
    trial.patch("RESOLVE_SECONDS", 0.0)
    trial.patches.append(lambda: setattr(socket, "getaddrinfo", look_up))
    trial.server.faults.append(Fault(Action("close_after")))
    trial.in_the_middle(trial.turn_on)


def redirect(trial: Trial) -> None:
    action = Action("redirect", 301, region="eu-west-1", endpoint=trial.endpoint)
    trial.server.faults.append(Fault(action, after=9))


def refuse_region(trial: Trial) -> None:
    """As a store does that does not say which region is the right one."""
    action = Action("error", 400, "AuthorizationHeaderMalformed")
    trial.server.faults.append(Fault(action, after=9))


NO_CONNECTION = "Could not connect to the endpoint URL"
UNDER_WAY: list[tuple[str, Callable[[Trial], None], Sequence[Way], int, str]] = [
    ("connections refused", refuse_connections, EVEN, 1, NO_CONNECTION),
    ("bucket deleted", delete_bucket, ODD, 2, "NoSuchBucket"),
    ("all denied", deny_all, SMALL, 1, "AccessDenied"),
    ("all denied", deny_all, LARGE, 2, "AccessDenied"),  # not one file went up
    ("redirected", redirect, EVEN, 0, ""),
    ("region refused", refuse_region, ODD, 2, "AuthorizationHeaderMalformed"),
    ("store an hour ahead", set_store_clock, FAST_SMALL, 0, ""),
    ("store an hour ahead", set_store_clock, OTHERS, 2, "RequestTimeTooSkewed"),
    ("clock ten minutes back", lambda trial: step_clock(trial, 600), EVEN, 0, ""),
    ("time() an hour back", lambda trial: step_clock(trial, 3600, False), ODD, 0, ""),
    ("no names", forget_names, FAST_SMALL, 0, ""),  # it keeps the addresses that it knows
    ("no names", forget_names, OTHERS, 1, NO_CONNECTION),
]


@pytest.mark.parametrize(
    "trial, breaks, code, says",
    [(way, breaks, code, says) for _, breaks, ways, code, says in UNDER_WAY for way in ways],
    ids=["-".join((row[0], *way)) for row in UNDER_WAY for way in row[2]],
    indirect=["trial"],
)
def test_what_breaks_under_way(
    trial: Trial, breaks: Callable[[Trial], None], code: int, says: str
) -> None:
    trial.tree()
    breaks(trial)
    run = trial.run("--concurrency", 2)
    trial.mend()
    summary = assert_said(run, code, says)
    assert summary["uploaded"] < len(trial.local()) or not code
    assert trial.acknowledged()
    assert trial.first_lanes() == {trial.way.lane}
    assert_recovers(trial)


# -- certificates, which neither lane accepts


@pytest.fixture(scope="module")
def bad_certificates(certificates: Path) -> Path:
    """One that has expired, and one of an authority that nobody knows."""

    def openssl(command: str) -> None:
        subprocess.run(
            ["openssl", *command.split()], cwd=certificates, check=True, capture_output=True
        )

    (certificates / "ext").write_text("subjectAltName=IP:127.0.0.1\n")
    openssl(f"req {NEW_KEY} -nodes -subj /CN=expired -keyout expired.key -out expired.csr")
    signed = "-CA ca.pem -CAkey ca.key -CAcreateserial -extfile ext -out expired.pem"
    openssl(f"x509 -req -in expired.csr -days -1 {signed}")
    openssl(
        f"req -x509 {NEW_KEY} -nodes -days 2 -subj /CN=stranger -addext subjectAltName=IP:127.0.0.1"
        " -keyout stranger.key -out stranger.pem"
    )
    return certificates


@contextlib.contextmanager
def tls_trial(path: Path, certificates: Path, way: Way) -> Iterator[tuple[Trial, ssl.SSLContext]]:
    """A trial over TLS, and the server's context: no session outlives its connection."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / "address.pem", certificates / "address.key")
    context.num_tickets = 0
    with trial_of(path, way, context) as trial:
        trial.environment["AWS_CA_BUNDLE"] = str(certificates / "ca.pem")
        trial.tree()
        trial.server.faults.append(Fault(Action("close_after")))
        yield trial, context


CERTIFICATES = [("expired", EVEN), ("stranger", ODD), ("other", EVEN[1:3])]  # for another host


@pytest.mark.parametrize(
    "name, way",
    [(name, way) for name, ways in CERTIFICATES for way in ways],
    ids=["-".join((name, *way)) for name, ways in CERTIFICATES for way in ways],
)
def test_a_certificate_that_goes_bad_is_not_accepted(
    tmp_path: Path, bad_certificates: Path, hurried: None, name: str, way: Way
) -> None:
    bad = server_context(bad_certificates, name)
    with tls_trial(tmp_path, bad_certificates, way) as (trial, context):
        seen: list[int] = []

        def exchange_certificate() -> None:
            seen.append(len(trial.server.log))
            context.sni_callback = lambda connection, *_: setattr(connection, "context", bad)

        trial.in_the_middle(exchange_certificate)
        run = trial.run("--concurrency", 2)
        assert_said(run, 2, "(the certificate is not trusted;")
        assert len(trial.server.log) - seen[0] <= 2  # those that had their connection
        assert trial.first_lanes() == {way.lane}
        context.sni_callback = None
        assert_recovers(trial)


# -- what breaks before anything is sent


def from_the_start(trial: Trial, breaks: Callable[[Trial], None]) -> None:
    """The same as under way, but at once."""
    vars(trial)["in_the_middle"] = lambda function: function()
    breaks(trial)


def refuse_from_the_start(trial: Trial) -> None:
    trial.server._port = int(trial.endpoint.rpartition(":")[2])
    trial.server.stop()
    trial.repair = trial.server.start


def refuse_all(trial: Trial) -> None:
    trial.server.faults.append(Fault(Action("error", 503, "SlowDown")))


def reset_all(trial: Trial) -> None:
    trial.server.faults.append(Fault(Action("reset_before_body")))


def no_descriptors(trial: Trial, count: int) -> None:
    def limit() -> None:
        there = len(os.listdir("/proc/self/fd"))
        resource.setrlimit(resource.RLIMIT_NOFILE, (there + count, there + count))

    trial.patches.append(limit)


def no_process(trial: Trial) -> None:
    """Only who is not root is held to it; it can do no more than read and write everything."""

    def become_nobody() -> None:
        libc = ctypes.CDLL(None)
        libc.prctl(8, 1, 0, 0, 0)  # PR_SET_KEEPCAPS
        os.setresuid(54321, 54321, 54321)
        kept = struct.pack("6I", 6, 6, 0, 0, 0, 0)  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        assert libc.capset(struct.pack("Ii", 0x20080522, 0), kept) == 0
        resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))

    trial.patches.append(become_nobody)


def no_worker(trial: Trial) -> None:
    fork, forks = os.fork, itertools.count(1)

    def refuse() -> int:
        if next(forks) == 3:
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        return fork()

    trial.patches.append(lambda: setattr(os, "fork", refuse))


FROM_THE_START: list[tuple[str, Callable[[Trial], None], Sequence[Way], int, str]] = [
    ("connections refused", refuse_from_the_start, TWO, 2, NO_CONNECTION),
    ("connections reset", reset_all, TWO, 2, CLOSED),
    ("no names", lambda t: from_the_start(t, forget_names), TWO, 2, NO_CONNECTION),
    ("hour ahead", lambda t: from_the_start(t, set_store_clock), TWO, 2, "RequestTimeTooSkewed"),
    ("all 503", refuse_all, TWO, 2, "SlowDown|503"),
    ("no process", no_process, EVEN, 2, "Resource temporarily unavailable"),
    ("no second worker", no_worker, PARALLEL, 2, "needs no workers"),
    ("no descriptors", lambda trial: no_descriptors(trial, 4), ODD, 2, "Too many open files"),
]


@pytest.mark.parametrize(
    "trial, breaks, code, says",
    [(way, breaks, code, says) for _, breaks, ways, code, says in FROM_THE_START for way in ways],
    ids=["-".join((row[0], *way)) for row in FROM_THE_START for way in row[2]],
    indirect=["trial"],
)
def test_what_breaks_before_anything_is_sent(
    trial: Trial, breaks: Callable[[Trial], None], code: int, says: str
) -> None:
    if breaks is no_process and os.geteuid():
        pytest.skip("only root can become another user")
    trial.tree()
    patches = list(trial.patches)
    breaks(trial)
    run = trial.run()
    trial.patches = patches
    summary = assert_said(run, code)
    assert re.search(says, str(summary["error"]))
    assert (summary["uploaded"], summary["failed"]) == (0, 0)
    assert_recovers(trial)


@pytest.mark.parametrize("name", ["expired", "stranger", "other"])
@pytest.mark.parametrize("way", TWO, ids="-".join)
def test_a_bad_certificate_is_not_accepted(
    tmp_path: Path, bad_certificates: Path, hurried: None, name: str, way: Way
) -> None:
    with tls_trial(tmp_path, bad_certificates, way) as (trial, context):
        bad = server_context(bad_certificates, name)
        context.sni_callback = lambda connection, *_: setattr(connection, "context", bad)
        assert_said(trial.run(), 2, "(the certificate is not trusted;")
        assert trial.server.log == []
        context.sni_callback = None
        assert_recovers(trial)


@pytest.mark.parametrize("trial", TWO, ids="-".join, indirect=True)
def test_a_child_that_can_start_no_thread_says_nothing(trial: Trial) -> None:
    """What prepares the run is done by the program itself then; workers are necessary."""
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == "pfu-parent":
            raise RuntimeError("can't start new thread")
        start(thread)

    trial.environment["PFU_START_METHOD"] = "fork"
    trial.tree()
    patches = list(trial.patches)
    trial.patches.append(lambda: setattr(threading.Thread, "start", refuse))
    run = trial.run()
    trial.patches = patches
    if trial.way.mode == "concurrent":
        assert_said(run, 0)
    else:
        assert_said(run, 2, "start worker: 3 of them died at once")
    assert_recovers(trial)


# -- files that cannot be read, or shrink

READS = ("pread", "preadv")


class Reads:
    """What the program's os.pread(), os.preadv() and os.fstat() do with one file."""

    def __init__(self, path: Path, before: Callable[[Path], None], reads: Sequence[str]) -> None:
        self.path, self.inode, self.before, self.reads = path, path.stat().st_ino, before, reads

    def __call__(self) -> None:
        self.functions = {name: getattr(os, name) for name in (*READS, "fstat")}
        for name in self.reads:
            setattr(os, name, functools.partial(self.read, name))

    def read(self, name: str, number: int, *given: Any) -> Any:
        if self.functions["fstat"](number).st_ino == self.inode:
            self.before(self.path)
        return self.functions[name](number, *given)


def fail(number: int) -> Callable[[Path], None]:
    def raise_it(path: Path) -> None:
        raise OSError(number, os.strerror(number))

    return raise_it


def cut_once(path: Path) -> None:
    if path.stat().st_size > 1:
        os.truncate(path, 1)
        os.utime(path, (LONG_AGO, LONG_AGO))


def cut_always(path: Path) -> None:
    """It shrinks while it is read, each time."""
    size = path.stat().st_size
    os.truncate(path, size - 1)


READING: list[tuple[str, Callable[[Path], None], Sequence[str], Sequence[Way], int, str]] = [
    ("EIO", fail(errno.EIO), READS, ODD, 1, "Input/output error"),
    ("ESTALE of fstat", fail(errno.ESTALE), ("fstat",), EVEN, 1, "Stale file handle"),
    ("shrinks once", cut_once, READS, ODD, 0, ""),
    ("shrinks always", cut_always, READS, EVEN, 1, "while it was read"),
]


@pytest.mark.parametrize(
    "trial, before, reads, code, says",
    [(way, *row[1:3], *row[4:]) for row in READING for way in row[3]],
    ids=["-".join((row[0], *way)) for row in READING for way in row[3]],
    indirect=["trial"],
)
def test_what_cannot_be_read_costs_its_file_alone(
    trial: Trial, before: Callable[[Path], None], reads: Sequence[str], code: int, says: str
) -> None:
    trial.tree()
    path = trial.file("unlucky", trial.content())
    patches = list(trial.patches)
    trial.patches.append(Reads(path, before, reads))
    summary = assert_said(trial.run(), code, says)
    assert summary["failed"] == code
    assert [failure["path"] for failure in summary["failures"]] == [str(path)] * code
    assert len(trial.server.objects(BUCKET)) == len(trial.local()) - code
    assert trial.first_lanes() == {trial.way.lane}
    trial.patches = patches
    assert_recovers(trial)


@pytest.mark.parametrize("trial", LARGE, ids="-".join, indirect=True)
def test_a_part_that_cannot_be_read_as_it_is_sent(trial: Trial, monkeypatch: Any) -> None:
    """It does not fit into memory: it is hashed first, and read again to be sent."""
    engine = pfu.RunOptions.engine
    monkeypatch.setattr(
        pfu.RunOptions, "engine", lambda self: dataclasses.replace(engine(self), memory=KIB)
    )
    trial.tree()
    path = trial.file("unlucky", trial.content())
    sent = pfu.FileBody.read

    def read(body: pfu.FileBody) -> bytes:
        if trial.is_on.value and body._source.path == str(path):
            raise pfu.SourceError("read", str(path), os.strerror(errno.EIO))
        return sent(body)

    monkeypatch.setattr(pfu.FileBody, "read", read)
    trial.turn_on()
    summary = assert_said(trial.run(), 1, "Input/output error")
    assert [failure["path"] for failure in summary["failures"]] == [str(path)]
    assert_recovers(trial)


# -- the ledger


def cut(trial: Trial) -> None:
    os.truncate(trial.path / "pfu.db", 8192)


def overwrite(trial: Trial) -> None:
    with open(trial.path / "pfu.db", "r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 40_000)


def write_text(trial: Trial) -> None:
    (trial.path / "pfu.db").write_text("this is no database, " * 1000)


LEDGERS = [
    (cut, "move this file away"),
    (overwrite, "move this file away"),
    (write_text, "file is not a database (name another --db"),
]


@pytest.mark.parametrize("trial", FAST_SMALL, ids="-".join, indirect=True)
@pytest.mark.parametrize("damage, says", LEDGERS, ids=[row[0].__name__ for row in LEDGERS])
def test_a_damaged_ledger_is_told(trial: Trial, damage: Callable[[Trial], None], says: str) -> None:
    for number in range(120):
        trial.file(f"f{number}", b"content")
    assert_said(trial.run(), 0)
    damage(trial)
    sent = len(trial.server.log)
    assert_said(trial.run(), 2, says)
    assert len(trial.server.log) == sent
    (trial.path / "pfu.db").unlink()
    assert_said(trial.run(), 0)
    assert_all_is_there(trial)


@pytest.mark.parametrize("trial", TWO, ids="-".join, indirect=True)
@pytest.mark.parametrize("known", [False, True])
def test_a_ledger_in_a_folder_that_is_read_only(trial: Trial, known: bool) -> None:
    trial.tree()
    if known:
        assert_said(trial.run(), 0)
    folder = trial.path / "ledger"
    folder.mkdir(mode=0o700)

    def drop_all_capabilities() -> None:
        given = struct.pack("Ii", 0x20080522, 0), bytes(24)
        assert os.geteuid() or ctypes.CDLL(None).capset(*given) == 0

    trial.patches.append(drop_all_capabilities)
    if known:
        for path in trial.path.glob("pfu.db*"):
            path.rename(folder / path.name)
    folder.chmod(0o500)
    run = trial.run("--db", folder / "pfu.db")
    assert_said(run, 2, "write a readonly database" if known else "Permission denied")
    folder.chmod(0o700)
    assert trial.run("--db", folder / "pfu.db").code == 0
    assert {k[2:] for k in trial.server.objects(BUCKET)} == set(trial.local())


@pytest.mark.parametrize("trial", ODD, ids="-".join, indirect=True)
def test_a_disk_that_is_full_under_the_ledger(trial: Trial) -> None:
    trial.tree(24)

    def fill() -> None:
        size = max(path.stat().st_size for path in trial.path.glob("pfu.db*"))
        limit = size, resource.RLIM_INFINITY
        resource.prlimit(trial.pids[0], resource.RLIMIT_FSIZE, limit)

    trial.in_the_middle(fill)
    run = trial.run("--concurrency", 2)
    assert run.code in (2, 4)
    assert_said(run, run.code, "pfu.db: d")
    assert_recovers(trial)


# -- processes


@EVERY_WAY
def test_a_program_that_is_killed_leaves_no_worker(trial: Trial) -> None:
    trial.tree()
    children: list[int] = []

    def kill() -> None:
        children.extend(children_of(trial.pids[0]))
        os.kill(trial.pids[0], signal.SIGKILL)

    trial.in_the_middle(kill)
    trial.server.faults.append(Fault(Action("slow", seconds=0.05), trial.operation))
    run = trial.run("--concurrency", 2)
    assert (run.code, run.err) == (-signal.SIGKILL, "")
    assert len(children) == (2 if trial.way.mode == "parallel" else 0)
    wait_until(lambda: not any(map(is_alive, children)))
    assert_recovers(trial)


@pytest.mark.parametrize("trial", PARALLEL, ids="-".join, indirect=True)
def test_a_worker_that_is_killed_is_replaced(trial: Trial) -> None:
    trial.environment["PFU_START_METHOD"] = "fork"
    trial.tree()
    trial.in_the_middle(lambda: os.kill(children_of(trial.pids[0])[0], signal.SIGKILL))
    trial.server.faults.append(Fault(Action("slow", seconds=0.02), trial.operation))
    summary = assert_said(trial.run("--concurrency", 4), 0, "1 worker process(es) died")
    assert summary["uploaded"] == len(trial.local())
    assert_recovers(trial)


@pytest.mark.parametrize("trial", TWO, ids="-".join, indirect=True)
def test_a_preparation_that_is_killed_is_done_again(trial: Trial) -> None:
    trial.tree()
    kill = Moment(HONEST, "HeadBucket")
    kill.begins = lambda: os.kill(children_of(trial.pids[0])[0], signal.SIGKILL)
    trial.server.faults.append(kill)
    assert_said(trial.run(), 0)
    assert kill.applied == 1
    assert_recovers(trial)


@pytest.mark.parametrize("trial", EVEN, ids="-".join, indirect=True)
def test_of_two_runs_at_once_one_goes_on(trial: Trial) -> None:
    trial.tree()
    trial.server.faults.append(Fault(Action("slow", seconds=0.3), trial.operation, times=8))
    first = trial.launch("--concurrency", 2)
    assert trial.server.wait_for(trial.operation, 1)
    second = trial.run()
    assert (second.code, second.json["exit_code"], second.err.count("\n")) == (3, 3, 1)
    assert f"in use by process {first}, started 20" in second.err
    assert_said(trial.end_of(first), 0)
    assert_recovers(trial)


# -- what is waited for, all ways side by side


def run_side_by_side(trials: list[Trial], meanwhile: Patch, *arguments: object) -> dict[Way, Run]:
    for trial in trials:
        trial.tree()
        trial.launch(*arguments)
    meanwhile()
    return {trial.way: trial.end_of(trial.pids[0]) for trial in trials}


def test_processes_that_are_stopped_go_on(trials: list[Trial]) -> None:
    """For longer than the store keeps silent before it is given up."""

    def stop_and_continue() -> None:
        for trial in trials:
            assert trial.server.wait_for(trial.operation, 2)
            os.killpg(trial.pids[0], signal.SIGSTOP)
        time.sleep(2)
        for trial in trials:
            os.killpg(trial.pids[0], signal.SIGCONT)

    for trial in trials:
        trial.server.faults.append(Fault(Action("slow", seconds=0.05), trial.operation))
    runs = run_side_by_side(trials, stop_and_continue, "--concurrency", 2)
    for trial in trials:
        summary = assert_said(runs[trial.way], 0)
        assert summary["uploaded"] == len(trial.local())
        assert summary["elapsed_seconds"] > 2
        assert_recovers(trial)


def answer_late(trials: list[Trial], action: Action, answers: int) -> None:
    """Once, for one file. ``answers``: how many the store has begun to it, at least."""
    for trial in trials:
        trial.file("slow", trial.content())
        trial.server.faults.append(Fault(action, trial.operation, "/slow$", times=1))
        for name, value in {"STALL": 0.5, "SLOW_LINE": 0.5, "SWEEP": 0.1}.items():
            trial.patch(f"{name}_SECONDS", value)
    runs = run_side_by_side(trials, lambda: None)
    for trial in trials:
        summary = assert_said(runs[trial.way], 0)
        assert summary["uploaded"] == len(trial.local())
        asked = Counter(
            (r.key, r.query.get("partNumber"))
            for r in trial.server.log
            if r.operation == trial.operation and r.key == "p/slow"
        )
        assert max(asked.values()) >= answers
        assert_recovers(trial)


def test_an_answer_that_does_not_come_is_given_up(trials: list[Trial]) -> None:
    answer_late(trials, Action("slow", seconds=60), 1)


def test_an_answer_that_comes_octet_by_octet_is_given_up_by_the_fast_lane(
    trials: list[Trial],
) -> None:
    fast = [trial for trial in trials if trial.way.lane == "fast"]
    answer_late(fast, Action("trickle", seconds=0.02), 2)


@pytest.mark.usefixtures("hurried")
def test_ten_seconds_of_slow_down_fail_nothing(storms: list[Trial]) -> None:
    for trial in storms:
        summary = assert_said(trial.end_of(trial.pids[0]), 0)
        assert summary["uploaded"] == len(trial.local())
        assert summary["throttled"] == trial.server.faults[0].applied > 10
        assert summary["elapsed_seconds"] > 10
        assert_recovers(trial)


# ======================================================================================
# README.md
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


@pytest.mark.parametrize("command", commands())
def test_the_commands_of_the_readme_work(place: Place, command: str) -> None:
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


def test_the_crontab_of_the_readme_works(place: Place) -> None:
    readme_place(place)
    (place.path / "samples").rename(place.path / "data")
    command = re.search(r"&& exec (python3 pfu.py .*)$", text_of_readme(), re.MULTILINE)
    assert command
    run_of_readme(place, command[1].replace("/var/log", str(place.path)))
    assert (place.path / "pfu.log").read_text().count("complete: 1 seen, 1 uploaded") == 1


def test_the_service_of_the_readme_works(place: Place) -> None:
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


def test_the_array_job_of_the_readme_works(place: Place) -> None:
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
def test_the_restores_of_the_readme_work(lenient_place: Place, tool: str) -> None:
    place = readme_place(lenient_place)
    run_of_readme(place, "python pfu.py samples s3://my-bucket/backup")
    command = re.search(rf"^{tool} (.*)$", text_of_readme(), re.MULTILINE)
    assert command
    place.environment.update(RCLONE_S3_ENDPOINT=place.server.endpoint, RCLONE_S3_LIST_VERSION="2")
    place.environment.update(RCLONE_S3_PROVIDER="Other")
    peer(place, tool, *shlex.split(command[1]))
    assert (place.path / "restored/a/b.txt").read_bytes() == b"content"


def test_the_library_example_of_the_readme_runs(place: Place) -> None:
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

class Bucket:
    def __init__(self, folder):
        self.folder = folder
    def blob(self, key):
        return Blob(self.folder / key)

class Blob:
    etag = "etag"
    def __init__(self, path):
        self.path, self.metadata = path, None
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


class TestProviderOfReadme(Conformance):
    """The one for Google Cloud Storage, with a Google that is a folder."""

    @pytest.fixture(autouse=True)
    def google(self, place: Place, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        for name, text in {**GOOGLE, "gcs.py": blocks("python")[1]}.items():
            path = place.path / "modules" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
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


def test_the_provider_of_the_readme_is_short_and_checks_what_it_is_told(place: Place) -> None:
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


def test_the_readme_tells_of_every_option() -> None:
    text = text_of_readme()
    common = {"--help", "--version", "--verbose", "--json", "--db", "--workers", "--profile"}
    common |= {"--mode", "--max-memory", "--sandbox", "--create-bucket", "--requester-pays"}
    options = {o for action in pfu.make_parser()._actions for o in action.option_strings}
    missing = {o for o in options if o.startswith("--") and o not in text} - common
    assert missing == set()


# ======================================================================================
# The picture of the benchmark
# ======================================================================================

CHART = HERE / "bench" / "chart.py"
SVG = "{http://www.w3.org/2000/svg}"
SMALL_TREE, LARGE_TREE = (50_000, 230_375_938), (4, 4 << 30)
SMALL_RUNS = {
    "pfu-parallel": (3.0066, 4.2795),
    "pfu-concurrent": (3.7494, 3.3934),
    "s5cmd": (7.8568, 9.6694),
    "rclone": (7.9131, 12.8404),
}
LARGE_RUNS = {"pfu-parallel": (2.5211, 3.8484), "rclone": (4.8481, 8.3446)}


def measured_series(
    tool: str, wall: float, cpu: float, case: str = "small", scheme: str = "http", **changes: Any
) -> dict[str, Any]:
    """A series of three runs as compare.py writes it: 4 % around the median."""
    files, size = LARGE_TREE if case == "large" else SMALL_TREE
    spread = (0.96, 1, 1.04)
    return {
        "case": case,
        "scheme": scheme,
        "tool": tool,
        "files": files,
        "bytes": size,
        "runs": [{"wall": wall * it, "cpu": cpu * it, "failure": None} for it in spread],
        "median": {"wall": wall, "cpu_seconds": cpu, "other_share": 0.0},
        **changes,
    }


def failed_series(tool: str, **changes: Any) -> dict[str, Any]:
    run = {"wall": 900.0, "cpu": 1.0, "failure": "exit 1: no route"}
    return measured_series(tool, 1, 1, runs=[run] * 3, median={}, **changes)


def measured_tools(runs: dict[str, tuple[float, float]], **changes: Any) -> list[dict[str, Any]]:
    return [measured_series(tool, wall, cpu, **changes) for tool, (wall, cpu) in runs.items()]


def benchmark_json(series: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    return {
        "date": "2026-11-23T00:17:06+00:00",
        "machine": {"cpu": "AMD EPYC", "cores": 2},
        "versions": {
            "python": "Python 3.13.0",
            "nginx": "nginx version: nginx/1.22.1",
            "pfu-parallel": "pfu 0.1.0",
            "s5cmd": "v2.3.0-991c9fb",
        },
        "rounds": 3,
        "results": series,
        **changes,
    }


def run_chart(folder: Path, *results: dict[str, Any]) -> subprocess.CompletedProcess[bytes]:
    paths = [folder / f"{number}.json" for number in range(len(results))]
    for path, result in zip(paths, results):
        path.write_text(json.dumps(result))
    return subprocess.run([sys.executable, "-S", CHART, *paths], capture_output=True)


def draw_chart(folder: Path, *results: dict[str, Any]) -> ElementTree.Element:
    done = run_chart(folder, *results)
    assert done.returncode == 0, done.stderr.decode()
    return ElementTree.fromstring(done.stdout)


def chart_texts(svg: ElementTree.Element) -> list[str]:
    return [element.text or "" for element in svg.iter(f"{SVG}text")]


def chart_rows(svg: ElementTree.Element) -> list[list[str]]:
    """The words of each tool's row: its name, then what stands at the end of its bars."""
    return [chart_texts(row) for row in svg.iter(f"{SVG}g")]


def bar_widths(svg: ElementTree.Element) -> list[list[float]]:
    rows = svg.iter(f"{SVG}g")
    return [[float(bar.get("width", "")) for bar in row.iter(f"{SVG}rect")] for row in rows]


def test_the_chart_shows_every_figure_and_what_it_was_measured_on(tmp_path: Path) -> None:
    small = benchmark_json(measured_tools(SMALL_RUNS))
    large = benchmark_json(measured_tools(LARGE_RUNS, case="large"))
    svg = draw_chart(tmp_path, small, large)
    assert chart_rows(svg) == [
        ["pfu parallel", "16,630", "86"],
        ["pfu concurrent", "13,335", "68"],
        ["s5cmd", "6,364", "193"],
        ["rclone", "6,319", "257"],
        ["pfu parallel", "1,625", "0.96"],
        ["rclone", "845", "2.09"],
    ]
    words = "\n".join(chart_texts(svg))
    assert "Small files: pfu is 2.1 to 2.6 times as fast\nas the best other tool" in words
    assert "Large files: 1.9 times." in words
    assert "2026-11-23: 2 cores (AMD EPYC)" in words
    assert "3 rounds" in words
    assert words.count("pfu 0.1.0, s5cmd 2.3.0, Python 3.13.0, nginx 1.22.1") == 1


def test_the_bars_of_a_chart_start_at_zero_and_are_as_long_as_the_figures(tmp_path: Path) -> None:
    slow = {"pfu-parallel": (20.0, 50.0), "s5cmd": (5.0, 5.0)}
    series = [*measured_tools(SMALL_RUNS), *measured_tools(slow, scheme="https")]
    svg = draw_chart(tmp_path, benchmark_json(series))
    runs = [*SMALL_RUNS.values(), *slow.values()]
    widths = bar_widths(svg)
    for (wall, cpu), (speed_width, cpu_width) in zip(runs, widths):
        assert speed_width * wall == pytest.approx(widths[0][0] * runs[0][0], rel=0.01)
        assert cpu_width / cpu == pytest.approx(widths[0][1] / runs[0][1], rel=0.01)
    assert len({bar.get("x") for bar in svg.iter(f"{SVG}rect")}) == 2
    assert "pfu 0.25 to 2.6 ×" in chart_texts(svg)


def test_the_same_results_make_the_same_chart(tmp_path: Path) -> None:
    result = benchmark_json(measured_tools(SMALL_RUNS))
    first = run_chart(tmp_path, result).stdout
    assert first == run_chart(tmp_path, result).stdout
    assert len(first) < 30_000
    assert b"prefers-color-scheme: dark" in first
    assert not re.search(rb"<script|<image|href|url\(|@import|@font-face", first)
    svg = ElementTree.fromstring(first)
    assert [svg[0].tag, svg[1].tag] == [f"{SVG}title", f"{SVG}desc"]
    assert svg[0].text and svg[1].text


def test_odd_names_in_a_chart_are_escaped(tmp_path: Path) -> None:
    odd = "<b>&\"'\x00\ud800"
    series = measured_series(odd, 3, 3, scheme="</svg>&amp; " * 30)
    svg = draw_chart(tmp_path, benchmark_json([series], machine={"cpu": odd, "cores": 1}))
    assert chart_rows(svg) == [["<b>&\"'\ufffd\ufffd", "16,667", "60"]]
    words = chart_texts(svg)
    assert "</svg>&amp; </svg>&amp;" in " ".join(words)
    assert any(odd[:6] in text and "1 core (" in text for text in words)
    assert max(map(len, words)) < 90


def test_a_failed_series_has_no_bar_and_no_ratio(tmp_path: Path) -> None:
    partly = measured_series("rclone", 4, 4)
    partly["runs"].append({"wall": 0.001, "cpu": 99.0, "failure": "exit 1"})
    never = measured_series("aws", 1, 1, runs=[], median={})
    failed = failed_series("pfu-parallel")
    svg = draw_chart(tmp_path, benchmark_json([failed, partly, never]))
    rows = [["pfu parallel", "failed"], ["rclone", "12,500", "80"], ["aws", "not run"]]
    assert chart_rows(svg) == rows
    assert [len(row) for row in bar_widths(svg)] == [0, 2, 0]
    words = " ".join(chart_texts(svg))
    assert "http (rclone: 1 of 4 runs failed)" in words
    assert "×" not in words


@pytest.mark.parametrize("tool", ["pfu-parallel", "s5cmd"])
def test_a_chart_of_one_tool_compares_nothing(tmp_path: Path, tool: str) -> None:
    svg = draw_chart(tmp_path, benchmark_json([measured_series(tool, 4, 4, scheme="http30")]))
    assert len(chart_rows(svg)) == 1
    words = " ".join(chart_texts(svg))
    assert "http, 30 ms added to each request" in words
    assert "×" not in words
    assert "times" not in words


def test_what_is_no_result_makes_no_chart(tmp_path: Path) -> None:
    for result, said in (({}, "not written by compare.py"), (benchmark_json([]), "no results")):
        done = run_chart(tmp_path, result)
        assert (done.returncode, done.stdout) == (1, b"")
        assert said in done.stderr.decode()
        assert done.stderr.count(b"\n") == 1


def test_the_picture_in_the_readme_is_there() -> None:
    text = (HERE / "bench/comparison.svg").read_text("utf-8")
    assert ElementTree.fromstring(text).tag.endswith("svg")
    for shown in ("pfu parallel", "pfu concurrent", "s5cmd", "rclone", "small files"):
        assert shown in text
    assert "](bench/comparison.svg)" in text_of_readme()


# ======================================================================================
# Other servers
# ======================================================================================


@BOTH_MODES
def test_the_sandbox_needs_no_account(place: Place, mode: str) -> None:
    place.endpoint = ""
    place.environment = {k: v for k, v in place.environment.items() if not k.startswith("AWS_")}
    place.files(12)
    run = place.run(place.root, "--mode", mode, "--sandbox", to=None)
    assert (run.code, run.err) == (0, "")
    assert "  12 files seen\n  12 uploaded " in run.out
    assert "The sandbox holds 12 objects" in run.out
    assert f"file-mtime={LONG_AGO}000000000ns" in run.out
    again = place.run(place.root, "--mode", mode, "--sandbox", "--json", to=None)
    assert again.json["uploaded"] == 12
    assert len(place.rows()) == 12


def test_the_sandbox_ends_with_the_run(place: Place) -> None:
    place.endpoint = ""
    place.files(2000)
    process = place.start(place.root, "--sandbox", "--mode", "concurrent", to=None)
    deadline = time.monotonic() + 30
    while not (children := children_of(process.pid)):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(1)
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 10
    while any(map(is_alive, children)):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_without_moto_the_sandbox_says_what_to_install(place: Place) -> None:
    place.endpoint = ""
    (place.path / "moto.py").write_text("raise ModuleNotFoundError('No module named moto')")
    place.environment["PYTHONPATH"] = str(place.path)
    run = place.run(place.root, "--sandbox", to=None)
    assert (run.code, run.err.count("\n")) == (2, 1)
    assert "moto is not installed (pip install -r requirements.txt)" in run.err


@BOTH_MODES
def test_localstack(place: Place, mode: str) -> None:
    endpoint = os.environ.get("PFU_TEST_LOCALSTACK")
    if not endpoint:
        pytest.skip("PFU_TEST_LOCALSTACK names no LocalStack")
    place.endpoint = endpoint
    place.environment.update(AWS_ACCESS_KEY_ID="test", AWS_SECRET_ACCESS_KEY="test")
    for name in ODD_NAMES:
        if b"\xff" not in os.fsencode(name):
            place.file(name, os.fsencode(name))
    for size in EDGES:
        place.file(f"edges/{size}", os.urandom(size))
    bucket = f"s3://pfu-test-{mode}-{os.getpid()}"
    arguments = ("--mode", mode, "--create-bucket", "--part-size", "5M", "--json")
    run = place.run(*arguments, to=bucket)
    assert run.code == 0, run.err
    assert run.json["uploaded"] == len(place.local())
    client = boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id="test",
        aws_secret_access_key="test",
    )
    for key, body in place.local().items():
        stored = client.get_object(Bucket=bucket[5:], Key=key)
        assert stored["Body"].read() == body
        assert stored["Metadata"]["file-size"] == str(len(body))
    assert place.run(*arguments, to=bucket).json["unchanged"] == len(place.local())


# ======================================================================================
# Several processes: python test_pfu.py FOLDER, as often as one likes, share the tests
# ======================================================================================


class Share:
    """The tests wait more than they work: each is run by the process that is the first to ask."""

    def __init__(self, folder: str) -> None:
        """``folder`` is empty at first, and the same for all processes."""
        self.folder = folder

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """As pytest's own; it has to know of each test which one comes after it."""
        own = filter(self.is_first, session.items)
        item = next(own, None)
        while item is not None:
            following = next(own, None)
            session.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            item = following
        return True

    def is_first(self, item: pytest.Item) -> bool:
        """Whether no other process has asked for this test."""
        name = hashlib.sha256(item.nodeid.encode("utf-8", "surrogatepass")).hexdigest()
        try:
            os.close(os.open(os.path.join(self.folder, name), os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        return True


if __name__ == "__main__":
    sys.exit(pytest.main([__file__], plugins=[Share(sys.argv[1])]))
