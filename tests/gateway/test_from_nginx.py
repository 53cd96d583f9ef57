"""nginx's limit_req, converted, against the arithmetic of its module."""

import os
from random import Random
from typing import Any

import pytest

from ratelimit import Check, MemoryStore, Rule, RuleSet
from ratelimit.gateway.converted import Converted, rule_file
from ratelimit.gateway.from_nginx import MOST_BLOCKS, MOST_BYTES, from_nginx
from ratelimit.testing import ManualClock

ZONE = "limit_req_zone $binary_remote_addr zone=one:10m rate=10r/s;\n"
STATUS = "limit_req_status 429;\n"


def loaded(found: Converted) -> list[Rule]:
    """The rules, as a file of them is loaded."""
    rules = list(RuleSet.loads(rule_file(found, "nginx.conf")).rules)
    assert not [each for each in found.left if "as they came out" in each.text], found.left
    return rules


def left(text: str) -> list[tuple[int, str]]:
    return [(each.line, each.text) for each in from_nginx(text).left]


class Nginx:
    """The arithmetic of ngx_http_limit_req_module, in milliseconds and thousandths."""

    def __init__(self, rate: int, burst: int, delay: int | None) -> None:
        self.rate, self.burst, self.delay = rate * 1000, burst * 1000, delay
        self.excess, self.last = -1, 0

    def ask(self, now: int) -> tuple[bool, int]:
        excess = 0
        if self.excess >= 0:
            excess = max(0, self.excess - self.rate * (now - self.last) // 1000 + 1000)
        if excess > self.burst:
            return False, 0
        self.excess, self.last = excess, now
        if self.delay is None or excess <= self.delay * 1000:
            return True, 0
        return True, (excess - self.delay * 1000) * 1000 // self.rate


@pytest.mark.parametrize("rate", [1, 2, 10, 50, 100, 1000])
@pytest.mark.parametrize(
    ("words", "burst", "delay"),
    [
        ("", 0, 0),
        ("burst=5", 5, 0),
        ("burst=5 nodelay", 5, None),
        ("burst=12 delay=8", 12, 8),
        ("burst=3 delay=8", 3, 8),
        ("burst=1", 1, 0),
    ],
)
async def test_a_rule_lets_through_and_holds_back_what_nginx_does(
    rate: int, words: str, burst: int, delay: int | None
) -> None:
    text = f"limit_req_zone $remote_addr zone=a:1m rate={rate}r/s;\nlimit_req zone=a {words};"
    (rule,) = loaded(from_nginx(STATUS + text))
    clock = ManualClock()
    store = MemoryStore(clock=clock)
    nginx = Nginx(rate, burst, delay)
    random = Random(rate + burst)
    now = 0
    verdicts = set()
    for _ in range(300):
        step = random.choice([0, 0, 0, 1, 1000 // rate, 400 // rate, 3000 // rate])
        now += step
        clock.advance(step / 1000)
        (decision,) = await store.decide([Check(rule.limits[0], "k")])
        allowed, wait = nginx.ask(now)
        assert decision.allowed == allowed
        if allowed:
            assert decision.delay_us // 1000 == wait
        verdicts.add(allowed)
    assert verdicts == {True, False}


FILE = """\
events {}
http {
  limit_req_zone $binary_remote_addr zone=one:10m rate=1r/s;
  limit_req_zone "$http_x_api_key" zone=key:10m rate=600r/m;
  limit_req_zone ${cookie_sid}$arg_q zone=two:10m rate=5r/s;
  limit_req_zone all zone=all:10m rate=5r/s;
  limit_req_status 429;
  server {
    listen 80; server_name app.example.com WWW.example.com;
    limit_req zone=one burst=5 nodelay;
    location / { proxy_pass http://x; }
    location /api/ {
      limit_req zone=key burst=20 delay=8;
      limit_req zone=two;
      location /api/v2/ { return 200 "a;b{"; }
    }
    location = /login { limit_req zone=all burst=3; limit_req_dry_run on; }
  }
}
"""


def test_each_limit_comes_to_a_rule() -> None:
    found = from_nginx(FILE)
    assert found.left == []
    rules = {rule.name: rule for rule in loaded(found)}
    told: dict[str, Any] = {
        name: (rule.path, rule.except_, rule.by, str(rule.limits[0]), rule.mode, rule.on_missing)
        for name, rule in rules.items()
    }
    assert told == {
        "one": (
            None, ("/login", "/api/{rest:path}"), ("client",), "1/second", "enforce", "client",
        ),
        "key": ("/api/{rest:path}", (), ("header:x-api-key",), "600/minute", "enforce", "skip"),
        "two": (
            "/api/{rest:path}", (), ("cookie:sid", "query:q"), "5/second", "enforce", "skip",
        ),
        "all": ("/login", (), ("global",), "5/second", "shadow", "client"),
    }  # fmt: skip
    assert {rule.host for rule in rules.values()} == {
        frozenset({"app.example.com", "www.example.com"})
    }


IN_SERVER = f"{STATUS}{ZONE}server {{\n%s\n}}"
LEFT = {
    f"{ZONE}limit_req zone=one;":
        (2, "without limit_req_status nginx refuses with 503; a refusal is 429 here"),
    f"limit_req_status 444;\n{ZONE}limit_req zone=one;": (1, "status 444: a refusal is 429 here"),
    "limit_req zone=none;": (1, "zone 'none' is not one that could be read"),
    "limit_req_zone $request_uri zone=a:1m rate=1r/s;":
        (1, ("zone 'a' counts by $request_uri, which no rule reads, so that its limits are left "
            "out")),
    "limit_req_zone x$remote_addr zone=a:1m rate=1r/s;":
        (1, "the text 'x' in the key of zone 'a' tells nobody apart"),
    "limit_req_zone $remote_addr zone=a:1m rate=1r/h;":
        (1, "limit_req_zone without a key, a zone and a rate is not one"),
    f"{STATUS}{ZONE}limit_req zone=one later;": (3, "'later' is not known"),
    IN_SERVER % "location ~ x { limit_req zone=one; }":
        (4, "limit_req of a location that is not a path"),
    IN_SERVER % "location @x { limit_req zone=one; }":
        (4, "limit_req of a location that is not a path"),
    IN_SERVER % "if ($a) { limit_req zone=one; }": (4, "limit_req in if is not a path of a rule"),
    IN_SERVER % "server_name *.x.org; limit_req zone=one;":
        (4, "the rule is for every host, as a server_name is a pattern"),
    IN_SERVER % "limit_req zone=one; location /a { limit_req zone=one; }":
        (4, "zone 'one' is shared with line 4; the rules count apart"),
    IN_SERVER % "limit_req zone=one;\nlocation /a { limit_req zone=one; }\nlocation /a/b {}":
        (6, ("this location is left out by the rule of line 4, with one of a shorter path that has "
            "limits of its own")),
    f"{STATUS}{ZONE}limit_req zone=one;\nserver {{ limit_req zone=one; }}":
        (3, "servers and locations with limits of their own count by this rule as well"),
    "include conf.d/*;":
        (1, "include 'conf.d/*' is not read; convert what nginx -T prints, which has all files"),
    "\n\nlimit_conn addr 1;": (3, "limit_conn limits something else than requests a second"),
    "a b": (1, "the file ends within a directive"),
    "a b;\n\\": (2, "'\\\\' cannot be read; the rest of the file is left out"),
}  # fmt: skip


@pytest.mark.parametrize("text", LEFT, ids=[each[1][:40] for each in LEFT.values()])
def test_what_rules_do_not_say_is_told_with_its_line(text: str) -> None:
    assert LEFT[text] in left(text)
    loaded(from_nginx(text))


def test_quotes_comments_and_escapes_end_no_directive() -> None:
    text = f"""{STATUS}{ZONE}# limit_req zone=no;
log_format x '"$a; {{' "\\" # }}" a\\;b;  # }}
limit_req zone=one burst=1;
"""
    found = from_nginx(text)
    assert found.left == []
    assert [rule.name for rule in loaded(found)] == ["one"]


BLOCKS = MOST_BLOCKS if os.environ.get("RATELIMIT_TEST_ALL") else 500
"""At most so many are read: each is compared with each, which takes seconds of 2,000."""

HOSTILE = {
    "braces": "{" * 100_000,
    "closed": "}" * 100_000,
    "quotes": '"' * 99_999,
    "slashes": '"' + "\\" * 500_000,
    "odd": "\\" * 100_001,
    "dollars": "limit_req_zone " + "${" * 100_000 + " zone=a:1m rate=1r/s;",
    "variables": "limit_req_zone " + "$remote_addr" * 50_000 + " zone=a:1m rate=1r/s;",
    "limits": ZONE + "limit_req zone=one;" * 20_000,
    "locations": ZONE + "server { limit_req zone=one;"
    + "".join(f"location /{'a' * (number % 50)} {{ limit_req zone=one; }}"
              for number in range(2 * BLOCKS)) + "}",
    "names": ZONE + "server { server_name " + "a.b " * 100_000 + "; limit_req zone=one; }",
    "long": "x" * (MOST_BYTES + 1),
    "nul": "\0" * 1_000,
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_read_in_bounded_time_and_said(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ratelimit.gateway.from_nginx.MOST_BLOCKS", BLOCKS)
    found = from_nginx(HOSTILE[name])
    text = rule_file(found, "x")
    assert len(found.left) <= 1_025
    assert len(text) < 5_000_000
