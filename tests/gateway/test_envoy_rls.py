"""Envoy's rate limit service, asked by the real Envoy with descriptors of one's own."""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.gateways import (
    RECIPES,
    Client,
    application,
    needed,
    open_port,
    recipe,
    run_proxy,
    serve_for,
)
from tests.support.servers import free_port, temporary_folder, wait_until

pytestmark = pytest.mark.slow

RULES = """
  - name: tokens
    match: {path: "/envoy:edge/tokens/{user}"}
    by: path:user
    limit: 100/day
    algorithm: sliding_log
"""
AT_THE_END = """\
                        - apply_on_stream_done: true
                          hits_addend: {number: 99}
                          actions:
                            - request_headers: {header_name: x-user, descriptor_key: tokens}
                            - generic_key: {descriptor_key: ":done", descriptor_value: "yes"}
                        - actions:
                            - request_headers: {header_name: x-user, descriptor_key: tokens}
                http_filters:
"""


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """Envoy by its recipe, with one more descriptor, that is charged twice."""
    needed("envoy")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(temporary_folder()))
        folder.chmod(0o755)
        behind = stack.enter_context(application())
        file = folder / "rules.yaml"
        file.write_text((RECIPES / "rules-rls.yaml").read_text() + RULES)
        asked, listen = free_port(), open_port()
        stack.callback(serve_for("envoy-rls", folder, file, asked).end)
        text = recipe("envoy-rls", listen=listen, service=asked, behind=behind.server_port)
        before = "                http_filters:\n"
        assert text.count(before) == 1
        text = text.replace(before, AT_THE_END)
        stack.callback(run_proxy("envoy-rls", folder, text, listen).end)
        yield listen


def test_of_two_descriptors_one_over_the_other_is_not_charged(port: int) -> None:
    with Client(port, "127.0.1.1") as client:
        left = []
        for _ in range(12):
            answer = client.ask("/api/x", headers={"X-Plan": "free"})
            left.append((answer.status, answer.headers["ratelimit"].partition(";t=")[0]))
        # The plan is over after ten, and the rule for paths has counted no more than those.
        assert left[9:] == [(200, '"free-plan";r=0'), *[(429, '"free-plan";r=0')] * 2]
        assert client.ask("/api/x").headers["ratelimit"] == '"api";r=89'
        problem = client.ask("/api/x", headers={"X-Plan": "free"}).problem
        assert problem["violated-policies"] == ["free-plan"]


def test_a_descriptor_that_no_rule_is_for_limits_nobody(port: int) -> None:
    with Client(port, "127.0.1.2") as client:
        headers = {"X-Plan": "paid"}
        assert {client.ask("/else", headers=headers).status for _ in range(20)} == {200}


def test_what_is_known_at_the_end_of_a_stream_is_charged_then(port: int) -> None:
    with Client(port, "127.0.1.3") as client:

        def ask() -> tuple[int, str]:
            answer = client.ask("/else", headers={"X-User": "alice"})
            return answer.status, answer.headers["ratelimit"].partition(";t=")[0]

        assert ask() == (200, '"tokens";r=99')
        found = []

        def is_seen() -> bool:
            found.append(ask())
            return found[-1][0] == 429

        wait_until(is_seen, "the charge", 20)
        assert found[-1] == (429, '"tokens";r=0')
        other = client.ask("/else", headers={"X-User": "bob"})
        assert other.headers["ratelimit"] == '"tokens";r=99'
        assert json.loads(client.ask("/else", headers={"X-User": "alice"}).body)["status"] == 429
