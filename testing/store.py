"""What the server of the tests stores, and what S3 does with it: one method an operation."""

from __future__ import annotations

import base64
import bisect
import hashlib
import itertools
import random
import re
import time
from collections import Counter
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import Any, Callable
from urllib.parse import parse_qsl, unquote
from xml.etree import ElementTree

from botocore import xform_name

from testing.protocol import (
    Answer,
    Request,
    S3Error,
    document,
    encode64,
    iso_time,
    key_encoder,
    number_of,
    parse_xml,
)

ACCOUNT = "123456789012"
MAX_KEY_BYTES = 1024
MAX_METADATA_BYTES = 2048
MAX_PARTS = 10_000
MAX_COPY = 5 << 30
CHECKSUM = "x-amz-checksum-sha256"
MIN_PART_SIZE = 5 << 20
KEPT_HEADERS = re.compile(
    r"x-amz-meta-.*|x-amz-storage-class|x-amz-server-side-encryption.*|x-amz-tagging$|x-amz-acl"
    r"|x-amz-object-lock-.*|x-amz-checksum-.*|content-(type|encoding|disposition|language)|cache-control|expires"
)
NOT_RETURNED = {"x-amz-tagging", "x-amz-acl", "x-amz-checksum-algorithm", "x-amz-checksum-type"}


# ---------------------------------------------------------------------------
# What tests read
# ---------------------------------------------------------------------------


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

    def digest(self, part_size: int | None) -> str:
        """SHA-256 as a ledger that knows the object by parts of that size should have it.

        A copy is in one piece: how it was once cut, the ledger alone knows.
        """
        if part_size is None:
            assert not self.parts
            return self.sha256
        assert self.body is not None
        assert {part.size for part in self.parts[:-1]} <= {part_size}
        cuts = range(0, max(1, len(self.body)), part_size)
        digests = [hashlib.sha256(self.body[cut : cut + part_size]).digest() for cut in cuts]
        return f"{hashlib.sha256(b''.join(digests)).hexdigest()}-{len(digests)}"


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
    object_lock: bool = False
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
# The operations
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

    def copy_object(self, request: Request) -> Answer:
        """A copy is an object in one piece, whatever its source was.

        Where bodies are not kept it is known by the source's parts alone, and so is the copy.
        """
        source = self._source_of_copy(request)
        bucket = self.bucket(request.bucket)
        headers = source.headers
        if request.headers.get("x-amz-metadata-directive") == "REPLACE":
            headers = self._kept_headers(bucket, request)
        elif bucket.objects.get(request.key) is source:
            raise S3Error("InvalidRequest", "a copy onto itself that changes nothing")
        if source.size > MAX_COPY:
            raise S3Error("InvalidRequest", "the source is larger than 5 GiB")
        body = source.body
        etag = self._etag(hashlib.md5(body or b"").digest(), headers) if body else source.etag
        summed = headers.pop("x-amz-checksum-algorithm", "") or source.headers.get(CHECKSUM, "")
        if body is not None and summed:
            headers = {**headers, CHECKSUM: encode64(hashlib.sha256(body).digest())}
        parts = source.parts if body is None else ()
        copy = StoredObject(
            *(body, source.size, source.sha256, etag, headers, self.now()), parts=parts
        )
        bucket.put(request.key, copy)
        return document("CopyObjectResult", [("ETag", f'"{etag}"')])

    def upload_part_copy(self, request: Request) -> Answer:
        source, upload = self._source_of_copy(request), self._upload(request)
        assert source.body is not None
        first, last = byte_range(request.headers["x-amz-copy-source-range"], source.size)
        body = source.body[first : last + 1]
        number, etag = int(request.query["partNumber"]), hashlib.md5(body).hexdigest()
        digest = hashlib.sha256(body)
        checksum = encode64(digest.digest())
        upload.parts[number] = StoredPart(
            number, len(body), digest.hexdigest(), etag, checksum, body, self.now()
        )
        return document("CopyPartResult", [("ETag", f'"{etag}"')])

    def _source_of_copy(self, request: Request) -> StoredObject:
        name = unquote(request.headers["x-amz-copy-source"]).lstrip("/")
        bucket, _, key = name.partition("/")
        source = self.bucket(bucket).objects.get(key)
        if source is None:
            raise S3Error("NoSuchKey")
        if request.headers.get("x-amz-copy-source-if-match", f'"{source.etag}"').strip('"') != (
            source.etag
        ):
            raise S3Error("PreconditionFailed", Condition="x-amz-copy-source-If-Match")
        return source

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
        locks = any(name.startswith("x-amz-object-lock-") for name in kept)
        if locks and not bucket.object_lock:
            raise S3Error("InvalidRequest", "Bucket is missing Object Lock Configuration")
        summed = {"content-md5", CHECKSUM, "x-amz-checksum-algorithm"} & request.headers.keys()
        if locks and not summed and request.operation == "PutObject":
            raise S3Error("InvalidRequest", "Content-MD5 OR x-amz-checksum- is required")
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
        lock = request.headers.get("x-amz-bucket-object-lock-enabled", "false")
        self.buckets[request.bucket].object_lock = lock.lower() == "true"
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

    def get_object_lock_configuration(self, request: Request) -> Answer:
        if not self.bucket(request.bucket).object_lock:
            raise S3Error("ObjectLockConfigurationNotFoundError")
        return document("ObjectLockConfiguration", [("ObjectLockEnabled", "Enabled")])

    def get_object_retention(self, request: Request) -> Answer:
        headers = self._object(request).headers
        mode = headers.get("x-amz-object-lock-mode")
        if not mode:
            raise S3Error("NoSuchObjectLockConfiguration")
        until = headers["x-amz-object-lock-retain-until-date"]
        return document("Retention", [("Mode", mode), ("RetainUntilDate", until)])

    def get_object_legal_hold(self, request: Request) -> Answer:
        headers = self._object(request).headers
        if "x-amz-object-lock-legal-hold" not in headers:
            raise S3Error("NoSuchObjectLockConfiguration")
        return document("LegalHold", [("Status", headers["x-amz-object-lock-legal-hold"])])

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
