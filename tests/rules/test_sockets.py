"""The option `websocket`: limits on what comes over an open WebSocket."""

from fractions import Fraction
from typing import Any

import pytest

from ratelimit import Limit, Rule, RuleSet
from ratelimit.rules.sockets import Messages, most_ahead

BUCKET = Limit("10/second", algorithm="token_bucket")


def chat(**websocket: Any) -> Rule:
    return Rule("chat", "5/minute", websocket=websocket)  # type: ignore[arg-type]  # also mistakes


def test_a_rule_and_a_rule_file_say_the_same() -> None:
    text = """
version: 1
rules:
  - name: chat
    limit: 5/minute
    websocket: {messages: 10/second, bytes: 64000/second burst 128000, on_excess: pause}
"""
    rule = chat(messages="10/second", bytes="64000/second burst 128000", on_excess="pause")
    assert RuleSet.loads(text).rules == (rule,)
    size = Limit("64000/second", algorithm="token_bucket", burst=128_000)
    assert rule.websocket == Messages(BUCKET, size, "pause")


def test_a_connection_is_closed_where_nothing_else_is_said() -> None:
    assert chat(messages=BUCKET).websocket == Messages(BUCKET, None, "close")


def test_a_regions_share_is_also_that_of_messages() -> None:
    rule = chat(messages="10/second").in_force(Fraction(1, 2), 64)
    assert rule.websocket is not None
    assert rule.websocket.messages == BUCKET.scaled(Fraction(1, 2))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "websocket limits nothing"),
        ({"on_excess": "drop"}, "websocket limits nothing"),
        ({"messages": "10"}, "'10' is not a limit"),
        ({"messages": Limit("1/second")}, "counted by a sliding_counter"),
        ({"messages": "1/second; 9/hour"}, "it is one limit"),
        ({"bytes": 64_000}, "bytes is text, not int"),
        ({"bytes": "1/second", "on_excess": "wait"}, "it is 'close', 'drop' or 'pause'"),
        ({"byte": "1/second"}, "did you mean 'bytes'"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_a_sentence(given: dict[str, Any], words: str) -> None:
    with pytest.raises((ValueError, TypeError), match=words):
        chat(**given)


@pytest.mark.parametrize("given", ["10/second", 3, ["messages"]])
def test_the_option_is_a_mapping(given: Any) -> None:
    with pytest.raises(TypeError, match="websocket is a mapping"):
        Rule("chat", "5/minute", websocket=given)


@pytest.mark.parametrize(
    ("text", "most"), [("1/second", 0), ("19/second", 0), ("20/second", 1), ("64000/second", 6399)]
)
def test_a_worker_holds_less_than_a_tenth_of_a_bucket(text: str, most: int) -> None:
    assert most_ahead(Limit(text, algorithm="token_bucket")) == most


def test_no_other_rule_is_told_under_the_name_of_a_limit_on_messages() -> None:
    with pytest.raises(ValueError, match="would both be shown to clients as 'chat:messages'"):
        RuleSet([chat(messages="1/second"), Rule("chat:messages", "1/second")])
    RuleSet([chat(messages="1/second"), Rule("chat:bytes", "1/second")])
