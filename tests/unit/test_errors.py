"""The error table: every row is usable, and what a client reads of it."""

import json
import logging

import pytest

from gateway.errors import ERRORS, ApiError
from gateway.rows import Rejection


@pytest.mark.parametrize("code", ERRORS)
def test_every_row_makes_an_answer(code: str) -> None:
    error = ApiError(code)
    answer = json.loads(error.body("r-1"))
    assert 400 <= error.status < 600
    assert (answer["code"], answer["requestId"]) == (code, "r-1")
    assert answer["message"].endswith(".")
    assert answer.keys() <= {"code", "message", "hint", "requestId"}
    assert error.log_level in (logging.INFO, logging.WARNING, logging.ERROR)


def test_a_server_error_says_when_to_come_back() -> None:
    for code, kind in ERRORS.items():
        if kind.status >= 500:
            assert int(ApiError(code).headers()["Retry-After"]) >= 1


def test_what_is_given_replaces_what_the_table_says() -> None:
    error = ApiError("overloaded", "Full.", pointer="/a", hint="Wait.", retry_after_s=0)
    assert json.loads(error.body("r")) == {
        "code": "overloaded",
        "message": "Full.",
        "hint": "Wait.",
        "pointer": "/a",
        "requestId": "r",
    }
    assert error.headers() == {"Retry-After": "0"}
    assert ApiError("not_found").headers() == {}


def test_a_rejection_becomes_the_error_of_its_request() -> None:
    error = ApiError.of_event(Rejection("event_too_large", "Too large.", ""))
    assert (error.status, error.message) == (413, "Too large.")
    assert "pointer" not in json.loads(error.body("r"))


def test_a_code_that_is_not_in_the_table_is_a_mistake_of_ours() -> None:
    with pytest.raises(KeyError):
        ApiError("no_such_code")
