"""A request for all heads and for one that does not exist.

At 64f666f, ``*`` beside an unknown head ignored the unknown one and answered with the status 200.
Now the unknown head is an error, as it is alone.
"""

import pytest

from .server import Server, photo


@pytest.mark.parametrize("heads", [("*", "no-such-head"), ("no-such-head", "*"), ("*", "cat@9")])
def test_unknown_head_beside_a_star_is_an_error(server: Server, heads: tuple[str, ...]) -> None:
    status, answer = server.predict(photo(), *heads)
    assert status == 404
    assert "has no" in answer["detail"]


def test_name_beside_a_star_is_answered(server: Server) -> None:
    status, answers = server.predict(photo(), "*", "cat@1")
    assert (status, {"cat", "dog", "cat@1"} <= set(answers)) == (200, True)
