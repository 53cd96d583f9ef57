"""The stores with the oldest and the newest versions of what they stand on, and those between."""

from pathlib import Path

import pytest

from ratelimit.stores.redis.installed import TESTED
from tests.support.environments import assert_passes, dependencies, environment, version_of

WITHOUT = (str(Path(__file__).relative_to(Path(__file__).parents[2])),)


def test_the_oldest_redis_py_that_is_tested_is_the_oldest_that_may_be_installed() -> None:
    assert TESTED.startswith(f"{dependencies()['redis']} to ")


@pytest.mark.slow
def test_stores_and_rules_are_the_same_with_the_oldest_of_every_dependency(tmp_path: Path) -> None:
    """Of those in pyproject.toml, the extras among them."""
    oldest = dependencies()
    python = environment(tmp_path, *(f"{name}=={version}" for name, version in oldest.items()))
    for name, version in oldest.items():
        assert f"{version_of(python, name)}.0".startswith(f"{version}.")
    assert_passes(python, "tests/stores", "tests/rules", without=WITHOUT)


@pytest.mark.slow
def test_stores_and_rules_are_the_same_with_the_newest_of_every_dependency(tmp_path: Path) -> None:
    """Whatever was released since, and a release of redis-py above all."""
    python = environment(tmp_path, "--upgrade", *dependencies())
    assert_passes(python, "tests/stores", "tests/rules", without=WITHOUT)


@pytest.mark.slow
@pytest.mark.parametrize("version", ["5.3.0", "6.4", "7.4.1", "8.0.0", "8.0.1"])
def test_stores_are_the_same_with_every_redis_py(version: str, tmp_path: Path) -> None:
    """Each of the releases between is another one inside."""
    others = [name for name in dependencies() if name != "redis"]
    python = environment(tmp_path, f"redis=={version}", *others)
    assert version_of(python, "redis").startswith(version)
    assert_passes(python, "tests/stores/redis", without=WITHOUT)
