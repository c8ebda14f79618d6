"""What pfu's tests stand on, and what a provider's author tests his own with: Conformance.

protocol, store, faults, server   an S3 server that verifies all it gets, and misbehaves on demand
place, fixtures, terminal         where a test runs: a tree, the command line, the ledger, a screen
jobs, uploaders, conformance      runs in the process of the tests; providers
lane                              what the pure parts of the fast lane are tested with
trials, tables                    every fault, on every way that files may go up
fuzz                              odd inputs, and slow judges
peers                             other people's tools
"""

import pkgutil

import pytest

for found in pkgutil.iter_modules(__path__):
    pytest.register_assert_rewrite(f"testing.{found.name}")

from testing.conformance import Conformance  # noqa: E402
from testing.faults import Action, Fault  # noqa: E402
from testing.place import Place  # noqa: E402
from testing.server import S3Server  # noqa: E402

__all__ = ["Action", "Conformance", "Fault", "Place", "S3Server"]
