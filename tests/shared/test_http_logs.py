"""The log: one line per event, and nothing in it that may not be there."""

from __future__ import annotations

import io
import json
import logging
from typing import Any

import pytest
import structlog

from shared.kit.logs import configure_logs, places


def lines_of(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def fail() -> None:
    raise ValueError("sk-iir-secret in /home/somebody")


def test_json_lines_of_both_kinds_of_loggers() -> None:
    stream = io.StringIO()
    configure_logs(stream=stream)
    structlog.get_logger("x").info("ours", path="/a\nb", number=1, odd={1})
    logging.getLogger("theirs").warning("theirs %s", 1)
    ours, theirs = lines_of(stream)
    assert (ours["event"], ours["level"], ours["path"], ours["number"]) == (
        "ours",
        "info",
        "/a\nb",
        1,
    )
    assert (theirs["event"], theirs["level"]) == ("theirs 1", "warning")
    assert ours["timestamp"].endswith("Z")


def test_text_keeps_a_value_on_its_line() -> None:
    stream = io.StringIO()
    configure_logs(stream=stream, json=False)
    structlog.get_logger("x").info("event", path="/a\n[error] forged \x1b[31m", text="ä ok")
    assert len(stream.getvalue().splitlines()) == 1
    assert "\x1b[31m" not in stream.getvalue()
    assert "ä ok" in stream.getvalue()


@pytest.mark.parametrize("as_json", [True, False])
def test_an_error_shows_its_kind_and_places_but_neither_text_nor_files(as_json: bool) -> None:
    stream = io.StringIO()
    configure_logs(stream=stream, json=as_json)
    try:
        fail()
    except ValueError as error:
        structlog.get_logger("x").exception("ours")
        structlog.get_logger("x").error("ours", exc_info=error)
        logging.getLogger("theirs").exception("theirs")
    text = stream.getvalue()
    assert len(text.splitlines()) == 3
    assert text.count("ValueError") == text.count("test_http_logs.fail:") == 3
    assert "secret" not in text
    assert "/home" not in text
    assert __file__ not in text


def test_no_error_is_no_trace() -> None:
    stream = io.StringIO()
    configure_logs(stream=stream)
    structlog.get_logger("x").error("ours", exc_info=None)
    assert "trace" not in lines_of(stream)[0]


def test_the_level_counts_for_all() -> None:
    stream = io.StringIO()
    configure_logs(stream=stream, level="warning")
    structlog.get_logger("x").info("quiet")
    logging.getLogger("theirs").info("quiet")
    logging.getLogger("uvicorn.error").warning("loud")
    assert [line["event"] for line in lines_of(stream)] == ["loud"]


def test_chatty_libraries_are_heard_from_warnings_on() -> None:
    stream = io.StringIO()
    configure_logs(stream=stream, level="debug")
    for name in ("uvicorn.error", "alembic", "httpx", "asyncio"):
        logging.getLogger(name).info("chat")
    assert stream.getvalue() == ""


def test_a_long_way_is_cut_at_its_start() -> None:
    def dive(depth: int) -> None:
        if depth:
            dive(depth - 1)
        else:
            fail()

    with pytest.raises(ValueError, match="secret") as raised:
        dive(40)
    found = places(raised.value)
    assert len(found) == 12
    assert ".fail:" in found[-1]
