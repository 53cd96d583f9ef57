"""The published suite on every server that this machine has."""

from collections.abc import Iterator

import pytest

from ratelimit import RedisStore
from ratelimit.testing import MakeStore, StoreSuite
from tests.support.servers import Binary, Server, binaries, serving


@pytest.fixture(scope="module", params=binaries(), ids=lambda binary: binary.name)
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server of each binary, for as long as its tests take."""
    binary: Binary = request.param
    with serving(binary.path) as started:
        yield started


@pytest.fixture
def make_store(server: Server) -> MakeStore:
    """A function from a clock to a store on that server."""
    return lambda clock: RedisStore(server.url, clock, deadline=10, deny_cache=0)


@pytest.mark.slow
class TestBinary(StoreSuite):
    """Every server passes the published suite."""
