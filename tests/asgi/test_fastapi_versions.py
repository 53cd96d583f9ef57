"""FastAPI before and after 0.137, which began to keep included routers as a tree."""

from pathlib import Path

import pytest

from tests.support.environments import assert_passes, dependencies, environment, version_of

ELSEWHERE = tuple(
    f"tests/asgi/{name}"
    for name in (Path(__file__).name, "test_uvicorn.py", "test_schemathesis.py")
)
"""Tests to which the version makes no difference, and which take long."""


@pytest.mark.slow
@pytest.mark.parametrize("version", ["0.136", "0.165"])
def test_the_web_layer_is_the_same_with_every_fastapi(version: str, tmp_path: Path) -> None:
    """What `make test` runs of this folder passes there, in an environment made for it.

    The oldest FastAPI stands on the oldest of all that is needed, the other on the newest.
    """
    oldest = dependencies()
    if oldest["fastapi"] == version:
        asked = [f"{name}=={each}" for name, each in oldest.items()]
    else:
        asked = [f"fastapi=={version}.*", *(name for name in oldest if name != "fastapi")]
    python = environment(tmp_path / "other", *asked)
    assert version_of(python, "fastapi").startswith(f"{version}.")
    assert_passes(python, "tests/asgi", without=ELSEWHERE)
