"""The faults that the server of the tests can be asked for: what it does, and when."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Callable

from testing.protocol import Request


@dataclass(frozen=True)
class Action:
    """One way to misbehave; `kind` is one of

    error                answers `status`, `code`, `message` with `headers` (error200: with 200)
    early_error          the same before the body is read, and closes
    redirect             answers 301 or 307 (`status`) with `region` and `endpoint` (a URL) to
                         what is not signed for `region`
    reset_before_body    RST; also reset_within_body (half of it was read), reset_after_body
    garbage              bytes that are not HTTP, and closes
    hang_up              reads nothing of the body, and half-closes `seconds` later
    endless              headers that promise 1 MiB, then a byte each `seconds`
    and, after the operation was done,
    slow                 the answer comes `seconds` later
    trickle              its octets come one each `seconds`
    honest               the answer, with `headers`, and in its body for each pattern of `altered`
                         what is given for it; and its ETag is `weak`
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
    altered: Mapping[str, str] = field(default_factory=dict)
    weak: bool = False

    def __post_init__(self) -> None:
        if not KINDS.fullmatch(self.kind):
            raise ValueError(self.kind)


KINDS = re.compile(
    "error|error200|early_error|redirect|reset_(before|within|after)_body|garbage|hang_up|endless"
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


HONEST = Action("honest")
