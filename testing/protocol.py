"""S3's protocol as the server of the tests reads it: requests, signatures, errors, XML.

Every signature is computed again by botocore's own signer from what arrived, and every payload
digest is checked.
"""

from __future__ import annotations

import base64
import calendar
import hashlib
import http.client
import re
import struct
import time
import zlib
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import Any, Callable, NamedTuple
from urllib.parse import quote, quote_plus, unquote_to_bytes
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from botocore.auth import S3SigV4Auth, SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

MAX_SKEW = 15 * 60
NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"
ERRORS = {
    400: "AccessControlListNotSupported AuthorizationHeaderMalformed BadDigest EntityTooSmall "
    "ExpiredToken InvalidArgument InvalidPart InvalidPartOrder InvalidRequest InvalidToken "
    "InvalidURI KeyTooLongError MalformedXML MetadataTooLarge XAmzContentSHA256Mismatch",
    403: "AccessDenied InvalidAccessKeyId RequestTimeTooSkewed SignatureDoesNotMatch",
    404: "NoSuchBucket NoSuchBucketPolicy NoSuchKey NoSuchPublicAccessBlockConfiguration "
    "NoSuchObjectLockConfiguration NoSuchUpload ObjectLockConfigurationNotFoundError "
    "OwnershipControlsNotFoundError",
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
    "CopyObject COPY key - -",
    "UploadPartCopy COPY key partNumber,uploadId -",
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
    "GetObjectLockConfiguration GET bucket object-lock -",
    "GetObjectRetention GET key retention -",
    "GetObjectLegalHold GET key legal-hold -",
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
    copies = request.method == "PUT" and "x-amz-copy-source" in request.headers
    method = "COPY" if copies else request.method
    found = (
        row.name
        for row in OPERATIONS
        if row[1:3] == (method, level) and row.required <= names <= row.optional
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
