"""Users: the one text that each of them is counted under, whatever object the application has."""

from collections.abc import Mapping
from enum import IntEnum, StrEnum
from types import MappingProxyType, SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from starlette.authentication import BaseUser, SimpleUser, UnauthenticatedUser

from ratelimit.identity.users import READABLE, is_nobody, user_id

IN_ORDER = ["identity", "id", "pk", "sub", "uuid", "username"]
ONE = UUID(int=1)


class Displayed(BaseUser):
    """A user of Starlette's kind, whose class leaves ``identity`` open."""

    is_authenticated = True

    def __init__(self, display_name: str, **attributes: Any) -> None:
        self.__dict__.update(attributes)
        self._name = display_name

    @property
    def display_name(self) -> str:
        return self._name


class Loud:
    """An object whose text is another at each request."""

    def __str__(self) -> str:
        raise AssertionError("the text of an arbitrary object is never taken")

    __repr__ = __str__


@pytest.mark.parametrize("kind", [SimpleNamespace, dict, lambda **own: MappingProxyType(own)])
def test_a_stable_id_comes_before_a_name_in_objects_and_mappings(kind: Any) -> None:
    own = {name: f"the {name}" for name in IN_ORDER}
    for name in IN_ORDER:
        assert user_id(kind(**own, display_name="mallory")) == f"the {name}"
        del own[name]
    assert user_id(kind(display_name="mallory")) is None


def test_nobody_chooses_a_bucket_by_a_display_name() -> None:
    assert {user_id(Displayed(f"mallory{number}", id=7)) for number in range(6)} == {"7"}
    assert user_id(Displayed("alice", id=7)) != user_id(Displayed("alice", id=1))
    assert user_id(Displayed("alice")) is None
    assert not is_nobody(Displayed("alice"))


class Colour(StrEnum):
    RED = "red"


class Number(IntEnum):
    SEVEN = 7


class Shouting(str):
    __slots__ = ()

    def __str__(self) -> str:
        return "another at each request"


class Counted(int):
    def __str__(self) -> str:
        return "another at each request"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("ann", "ann"),
        (" ", " "),
        (7, "7"),
        (0, "0"),
        (-1, "-1"),
        (10**40, "1" + "0" * 40),
        (ONE, "00000000-0000-0000-0000-000000000001"),
        (Colour.RED, "red"),
        (Number.SEVEN, "7"),
        (Shouting("ann"), "ann"),
        (Counted(7), "7"),
    ],
)
def test_text_whole_numbers_and_uuids_are_read_alone_or_as_an_attribute(
    value: object, text: str
) -> None:
    for user in (value, SimpleNamespace(id=value), {"sub": value}):
        found = user_id(user)
        assert found == text
        assert type(found) is str


@pytest.mark.parametrize("value", [None, "", True, False, 2.5, b"ann", ["ann"], Loud(), Loud, len])
def test_a_value_of_another_type_is_passed_over_and_never_made_text(value: object) -> None:
    assert user_id(SimpleNamespace(identity=value, id=value, username="ann")) == "ann"
    assert user_id({"id": value}) is None
    assert user_id(value) is None


def test_users_of_starlette_are_told_by_their_identity() -> None:
    assert user_id(SimpleUser("ann")) == "ann"
    assert user_id(UnauthenticatedUser()) is None


@pytest.mark.parametrize(
    "user",
    [
        None,
        "",
        UnauthenticatedUser(),
        SimpleNamespace(id=7, is_authenticated=False),
        {"id": 7, "is_authenticated": False},
    ],
)
def test_a_user_who_is_not_authenticated_is_nobody(user: object) -> None:
    assert is_nobody(user)
    assert user_id(user) is None


@pytest.mark.parametrize("user", [SimpleNamespace(), {}, 2.5, ["ann"], SimpleNamespace(name="ann")])
def test_a_user_who_cannot_be_told_is_somebody_all_the_same(user: object) -> None:
    assert user_id(user) is None
    assert not is_nobody(user)


def test_a_mapping_is_read_by_its_keys_and_not_by_its_attributes() -> None:
    class Claims(dict[str, object]):
        id = "an attribute of all"

    claims: Mapping[str, object] = Claims(sub="ann")
    assert user_id(claims) == "ann"


def test_a_message_can_say_which_users_are_told_apart() -> None:
    assert READABLE.endswith("identity, id, pk, sub, uuid or username")


def test_a_fault_in_a_property_of_the_user_is_raised() -> None:
    class Detached:
        @property
        def id(self) -> int:
            raise RuntimeError("the session is closed")

    with pytest.raises(RuntimeError, match="the session is closed"):
        user_id(Detached())
