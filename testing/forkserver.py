"""A process that has imported boto3 and pfu, and forks: python forkserver.py PROGRAM SOCKET.

testing.place.ForkServer says why. Each connection is one run of the program: what comes is where
and how, with its three streams; what goes back is its process id, then its exit code.
"""

from __future__ import annotations

import sys

sys.path.pop(0)  # testing/ is no place for modules of others

import contextlib
import functools
import gc
import marshal
import os
import random
import select
import signal
import socket
import struct
import traceback
import types
from importlib import import_module
from typing import Any, Callable, NoReturn

import boto3
import botocore.awsrequest
import botocore.compat
import botocore.endpoint_provider
import botocore.hooks
import botocore.session

LATE = (
    *("asyncio", "concurrent.futures.process", "ctypes", "email.utils", "encodings.idna"),
    *("multiprocessing.popen_fork", "multiprocessing.sharedctypes"),
)
KEYS = {"aws_access_key_id": "x", "aws_secret_access_key": "x"}


def remember() -> None:
    """What botocore reads from its files, and learns of its own functions, comes once."""
    loader = botocore.session.create_loader()
    botocore.session.create_loader = lambda search_path=None: loader
    takes_all = functools.lru_cache(maxsize=None)(botocore.compat.accepts_kwargs)
    botocore.compat.accepts_kwargs = botocore.hooks.accepts_kwargs = takes_all
    alias = functools.lru_cache(maxsize=None)(botocore.hooks.EventAliaser(None)._alias_event_name)
    botocore.hooks.EventAliaser._alias_event_name = lambda aliaser, name: alias(name)
    botocore.endpoint_provider.RuleSet = made_once(botocore.endpoint_provider.RuleSet)


def made_once(rule_set: Any) -> Any:
    """By the rules that it is made of, which the loader keeps."""
    made: dict[int, Any] = {}

    def make(**given: Any) -> Any:
        name = id(given["rules"])
        if name not in made:
            made[name] = rule_set(**given)
        return made[name]

    return make


def warm_up() -> None:
    """Make clients, and requests that are answered here, for all that is imported and compiled."""
    for service in "sts", "s3":
        client = boto3.Session(**KEYS, region_name="us-east-1").client(service)
        client.meta.events.register("before-send", answered)
    client.head_bucket(Bucket="bkt")
    client.get_bucket_policy_status(Bucket="bkt")
    client.put_object(Bucket="bkt", Key="key", Body=b"x", Metadata={"a": "b"})


def answered(request: Any, **_: Any) -> Any:
    return botocore.awsrequest.AWSResponse(request.url, 200, {}, types.SimpleNamespace(stream=list))


def load(program: str) -> Any:
    """The module, called as multiprocessing calls a main module that it imports."""
    with open(program, "rb") as file:
        code = marshal.loads(file.read()[16:])
    sys.path.insert(0, os.path.dirname(program))
    module: Any = types.ModuleType("__mp_main__")
    module.__file__ = program
    sys.modules["__main__"] = sys.modules["__mp_main__"] = module
    exec(code, module.__dict__)
    module.make_parser().format_usage()  # for the patterns that it compiles
    return module


def stream_like(stream: Any, descriptor: int) -> Any:
    """What Python makes of a descriptor when it starts."""
    mode = "w" if descriptor else "r"
    new: Any = open(descriptor, mode, encoding=stream.encoding, errors=stream.errors)  # noqa: SIM115
    new.reconfigure(line_buffering=descriptor == 2 or new.isatty())
    return new


class Server:
    """Forks a process for each run; its own end comes when standard input ends."""

    def __init__(self, module: Any, place: str) -> None:
        self.module = module
        self.running: dict[int, socket.socket] = {}
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(place)
        self.listener.listen(16)
        self.ended, woken = socket.socketpair()
        self.woken = woken
        woken.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(woken.fileno())

    def serve(self) -> None:
        while True:
            ready = select.select([sys.stdin, self.listener, self.ended], [], [])[0]
            if sys.stdin in ready:
                return
            if self.ended in ready:
                self.ended.recv(4096)
                self.reap()
            if self.listener in ready:
                self.start(self.listener.accept()[0])

    def reap(self) -> None:
        while self.running:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            with self.running.pop(pid) as connection, contextlib.suppress(OSError):
                connection.sendall(struct.pack("i", os.waitstatus_to_exitcode(status)))

    def start(self, connection: socket.socket) -> None:
        request, streams, _, _ = socket.recv_fds(connection, 1 << 20, 3)
        pid = os.fork()
        if pid:
            for descriptor in streams:
                os.close(descriptor)
            connection.sendall(struct.pack("i", pid))
            self.running[pid] = connection
            return
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for kept in (connection, self.listener, self.ended, self.woken, *self.running.values()):
            kept.close()
        end_with(functools.partial(be_the_program, self.module, request, streams))


def end_with(run: Callable[[], object]) -> NoReturn:
    status = 1
    try:
        run()
    except SystemExit as end:
        status = int(end.code or 0)
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
    sys.stdout.flush()
    os._exit(status)


def be_the_program(module: Any, request: bytes, streams: list[int]) -> None:
    folder, arguments, environment, changes, leads = marshal.loads(request)
    for descriptor, (source, name) in enumerate(zip(streams, ("stdin", "stdout", "stderr"))):
        os.dup2(source, descriptor)
        os.close(source)
        setattr(sys, name, stream_like(getattr(sys, name), descriptor))
        setattr(sys, f"__{name}__", getattr(sys, name))
    if leads:
        (os.setsid if leads == "session" else os.setpgrp)()
    os.chdir(folder)
    os.environb.clear()
    os.environb.update(environment)
    random.seed()
    sys.argv = [module.__file__, *arguments]
    exec(changes, module.__dict__)
    module.__name__ = "__main__"
    module.leave(module.main())


def main(program: str, place: str) -> None:
    os.environ.clear()  # each run has its own
    os.environ["AWS_CONFIG_FILE"] = os.environ["AWS_SHARED_CREDENTIALS_FILE"] = os.devnull
    for name in LATE:
        import_module(name)
    remember()
    warm_up()
    server = Server(load(program), place)
    gc.collect()
    gc.freeze()
    gc.get_freeze_count = lambda: 1  # it would look at each of them
    print(flush=True)
    server.serve()


main(*sys.argv[1:])
