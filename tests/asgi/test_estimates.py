"""What a request to a language model may cost, by whatever its body declares."""

import json
from typing import Annotated, Any, get_args

import pytest
from fastapi import Depends, FastAPI, Request
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import ClientDisconnect

from ratelimit import RateLimit, RateLimiter, RateLimitMiddleware, Reservation, TokenEstimate
from ratelimit.asgi.estimates import Tokens
from tests.support.asgi import Answer, call, http_scope

OUTPUT = TokenEstimate("output-tokens", default=1_000)
NEVER = 2**42 + 1
UNITS = "tokens, input-tokens, output-tokens"


def of(body: object) -> int:
    """The estimate of a body as it is sent, which is that of the same one once it was read."""
    found = OUTPUT.of_body(json.dumps(body))
    assert OUTPUT.of_body(body) == found
    return found


@pytest.mark.parametrize(
    "name",
    [
        "max_tokens", "max_completion_tokens", "max_output_tokens", "maxOutputTokens",
        "max_new_tokens", "max_tokens_to_sample", "maxTokenCount", "num_predict", "MAX_TOKENS",
        "max-tokens",
    ],
)  # fmt: skip
def test_each_name_of_a_cap_is_known(name: str) -> None:
    assert of({name: 70}) == 70


@pytest.mark.parametrize("caps", [(80, 175), (175, 80)])
def test_of_several_caps_the_largest_holds_whichever_stands_first(caps: tuple[int, int]) -> None:
    first, second = caps
    assert of({"max_tokens": first, "max_completion_tokens": second}) == 175
    assert of({"max_tokens": first, "generationConfig": {"maxOutputTokens": second}}) == 175
    assert of({"options": {"num_predict": first}, "inferenceConfig": {"maxTokens": second}}) == 175


@pytest.mark.parametrize("caps", [(1, 90_000), (90_000, 1)])
def test_of_a_name_that_is_there_twice_the_larger_holds(caps: tuple[int, int]) -> None:
    assert OUTPUT.of_body(b'{"max_tokens": %d, "max_tokens": %d}' % caps) == 90_000
    twice = (
        b'{"generationConfig": {"maxOutputTokens": %d}, "generation_config": {"max_tokens": %d}}'
    )
    assert OUTPUT.of_body(twice % caps) == 90_000


@pytest.mark.parametrize(
    ("more", "times"),
    [
        ({"n": 4}, 4),
        ({"n": 2, "best_of": 5}, 5),
        ({"generationConfig": {"candidateCount": 3}}, 3),
        ({"n": 0}, 1),
        ({"n": -3}, 1),
        ({"n": "4"}, 4),
        ({"n": 1.5}, 2),
        ({"n": [9]}, 1),
        ({"prompt": ["a", "b", "c"]}, 3),
        ({"prompt": [[1, 2], [3]], "n": 2}, 4),
        ({"prompt": [15496, 995]}, 1),
        ({"prompt": []}, 1),
    ],
)
def test_a_cap_is_that_of_each_candidate_and_prompt(more: dict[str, Any], times: int) -> None:
    assert of({"max_tokens": 70, **more}) == 70 * times
    assert of(more) == 1_000 * times


@pytest.mark.parametrize("cap", [-1, 0, -(10**30), True, False, "many", "", [5], {"a": 1}, "nan"])
def test_a_cap_that_is_not_a_number_above_0_counts_as_none(cap: object) -> None:
    """An upstream may take -1 for no cap at all, whatever is declared beside it."""
    assert of({"max_tokens": cap}) == 1_000
    assert of({"max_tokens": cap, "max_completion_tokens": 5}) == 1_000


def test_a_cap_of_null_is_as_if_it_were_not_there() -> None:
    assert of({"max_tokens": None, "max_completion_tokens": 5}) == 5
    assert of({"max_tokens": None}) == 1_000


@pytest.mark.parametrize("cap", [10**13, 10**400, 1e300, "1e300", "Infinity", 2**63])
def test_a_cap_that_no_limit_holds_can_never_pass(cap: object) -> None:
    assert of({"max_tokens": cap}) == NEVER
    assert of({"max_tokens": 5, "n": cap}) == NEVER


@pytest.mark.parametrize(
    ("body", "tokens"),
    [
        (b'{"max_tokens": NaN}', 1_000),
        (b'{"max_tokens": Infinity}', NEVER),
        (b'{"max_tokens": -Infinity}', 1_000),
        (b'{"max_tokens": 1e999}', NEVER),
        (b'{"max_tokens": ' + b"9" * 100_000 + b"}", NEVER),
        (b'{"max_tokens": -' + b"9" * 100_000 + b"}", 1_000),
        (b'\xef\xbb\xbf{"max_tokens": 70}', 70),
        ('{"max_tokens": 70}'.encode("utf-16"), 70),
        (b'{"user": "\xff", "max_tokens": 90000}', 90_000),
        (b'{"user": "a\nb", "max_tokens": 90000}', 90_000),
        (b'{"max_tokens": 5, "a": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", NEVER),
        (b"", 1_000),
        (b"[]", 1_000),
        (b'"max_tokens"', 1_000),
        (b"max_tokens=5&n=3", 1_000),
        (b"\xff\xfe", 1_000),
    ],
)
def test_bodies_that_nobody_means_have_an_estimate_too(body: bytes, tokens: int) -> None:
    assert OUTPUT.of_body(body) == tokens


def test_a_cap_counts_where_it_belongs_alone() -> None:
    tools = [{"parameters": {"max_tokens": 9}}]
    assert of({"messages": [{"max_tokens": 9}], "tools": tools, "metadata": {"n": 5}}) == 1_000


@given(st.binary() | st.text().map(lambda text: json.dumps({"max_tokens": text}).encode()))
def test_no_body_raises(body: bytes) -> None:
    for each in get_args(Tokens):
        assert 0 <= TokenEstimate(each).of_body(body) <= NEVER


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(
        st.sampled_from(["max_tokens", "n", "options", "prompt", "maxOutputTokens"]), inner
    ),
)  # fmt: skip


@given(VALUES, st.integers(1, 10_000))
def test_whatever_else_is_declared_the_estimate_is_not_below_a_cap(value: Any, cap: int) -> None:
    for body in ({"x": value, "max_tokens": cap}, {"options": value, "max_output_tokens": cap}):
        assert OUTPUT.of_body(body) >= cap
        assert OUTPUT.of_body(json.dumps(body)) >= cap


def test_input_is_estimated_by_the_length_of_the_body() -> None:
    assert TokenEstimate("input-tokens").of_body(b"") == 0
    assert TokenEstimate("input-tokens").of_body(b"x" * 9) == 3
    assert TokenEstimate("input-tokens", bytes_per_token=1).of_body("ü") == 2
    assert TokenEstimate("input-tokens").of_body({"a": "\ud800"}) == 3  # {"a":"..."}
    whole = b'{"max_tokens": 70}'
    assert TokenEstimate().of_body(whole) == 70 + 5


def test_what_was_read_and_is_not_json_is_too_long() -> None:
    circle: list[object] = []
    circle.append(circle)
    assert TokenEstimate("input-tokens").of_body(circle) == NEVER


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"of": "token"}, f"an estimate of 'token' is not known; there are {UNITS}"),
        ({"default": 0}, "default is 0; it is 1 to 4398046511104"),
        ({"default": 1.5}, "default is a whole number, not float"),
        ({"bytes_per_token": 0}, "bytes_per_token is 0; it is 1 to 1000"),
    ],
)  # fmt: skip
def test_an_estimate_that_could_not_be_meant_is_refused(given: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError)) as error:
        TokenEstimate(**given)
    assert str(error.value) == message


def app_with(estimate: TokenEstimate, limit: str = "400/minute") -> FastAPI:
    budget = RateLimit(limit, unit="tokens", cost=estimate, name="tokens", algorithm="sliding_log")
    app = FastAPI()
    app.add_middleware(RateLimitMiddleware, limiter=RateLimiter())

    @app.post("/")
    async def complete(request: Request, made: Annotated[Reservation, Depends(budget)]) -> Any:
        return {"estimate": made.cost[0], "length": len(await request.body())}

    return app


async def post(app: FastAPI, body: bytes) -> Answer:
    message = {"type": "http.request", "body": body, "more_body": False}
    return await call(app, http_scope(method="POST"), [message])


async def test_the_cost_of_a_route_is_the_estimate_and_the_endpoint_reads_the_body_too() -> None:
    app = app_with(TokenEstimate("output-tokens"))
    body = json.dumps({"max_tokens": 58, "max_completion_tokens": 80, "n": 4}).encode()
    answer = await post(app, body)
    assert json.loads(answer.body) == {"estimate": 320, "length": len(body)}
    assert (await post(app, body)).status == 429


async def test_an_estimate_above_the_limit_is_told_that_it_never_passes() -> None:
    app = app_with(TokenEstimate("output-tokens"))
    for cap in (401, 10**30):
        answer = await post(app, b'{"max_tokens": %d}' % cap)
        assert answer.status == 429
        assert b"cost-exceeds-limit" in answer.body
        assert "retry-after" not in answer.headers


async def test_an_estimate_without_a_body_to_read_says_where_it_belongs() -> None:
    with pytest.raises(TypeError, match="which is there for a RateLimit with a unit alone"):
        await TokenEstimate()(Request(http_scope()))


async def test_a_client_that_leaves_in_the_middle_of_its_body_costs_the_default() -> None:
    async def receive() -> Any:
        return {"type": "http.disconnect"}

    with pytest.raises(ClientDisconnect):
        await Request(http_scope(), receive).body()
    assert await OUTPUT(Request(http_scope(), receive)) == 1_000
