"""The top level of a body: what is read, what passes untouched, what is refused."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.http.errors import BadRequest, InvalidJson
from shared.http.wire import decode_object, encode_object, model_name, wants_stream, with_usage

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.text(), JSON, max_size=6))
def test_an_object_passes_with_its_meaning(values: dict[str, object]) -> None:
    again = encode_object(decode_object(json.dumps(values).encode()))
    assert json.loads(again) == values


@pytest.mark.parametrize(
    "raw",
    [
        b"1.0",
        b"1.00",
        b"1e2",
        b"-0",
        b"0.1000000000000000055511151231257827",
        b"123456789012345678901234567890",
        b"9" * 5000,
        b"1e999",
        b'{ "nested" : [ 1 , {"deep":1.10} ] , "twice":1,"twice":2 }',
        b'"\\u00e4\\ud83d\\ude00 \xc3\xa4 \\/"',
        b"[[[[]]]]",
        b"null",
    ],
)
def test_unknown_fields_and_number_formats_pass_byte_for_byte(raw: bytes) -> None:
    body = b'{"model" : "tiny", "top_k" : ' + raw + b"}"
    values = decode_object(body)
    assert bytes(values["top_k"]) == raw
    assert raw in encode_object({**values, "model": "upstream"})


def test_of_a_key_that_comes_twice_the_model_checked_is_the_model_sent() -> None:
    values = decode_object(b'{"model":"allowed","messages":[],"model":"smuggled"}')
    sent = encode_object(values)
    assert model_name(values) == json.loads(sent)["model"] == "smuggled"
    assert sent.count(b'"model"') == 1


def test_a_key_written_with_escapes_is_the_same_key() -> None:
    values = decode_object(b'{"model":"first","\\u006dodel":"second"}')
    assert model_name(values) == "second"
    assert encode_object(values).count(b'"second"') == 1
    assert b"first" not in encode_object(values)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"   \r\n",
        b"null",
        b"[]",
        b'"text"',
        b"12",
        b"{",
        b"{]",
        b'{"model":"a"} x',
        b'{"model":"a"}{"model":"b"}',
        b'{"a":NaN}',
        b'{"a":Infinity}',
        b'{"a":-}',
        b'{"a":01}',
        b"{'a':1}",
        b'{"a":1,}',
        b'{"a":"\xff"}',
        b'\xef\xbb\xbf{"a":1}',
        b'{"a":"\xed\xa0\x80"}',
        '{"a":1}'.encode("utf-16"),
        b'{"\\ud800":1}',
        b'{"model":"\\ud800"}',
        b'{"messages":[{"content":"\\udfff"}]}',
        b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"a":' * 100_000,
    ],
    ids=lambda body: repr(bytes(body[:24])),
)
def test_what_is_no_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidJson) as refused:
        decode_object(body)
    assert refused.value.status == 400
    assert "Send" in refused.value.message


def test_the_refusal_says_what_is_wrong() -> None:
    for body, text in ((b" ", "empty"), (b"{", "not valid JSON"), (b"[]", "not a JSON object")):
        with pytest.raises(InvalidJson, match=text):
            decode_object(body)
    with pytest.raises(InvalidJson, match="UTF-8"):
        decode_object(b"\xff")


@given(st.binary(max_size=200))
def test_no_bytes_do_anything_but_pass_or_be_refused(body: bytes) -> None:
    try:
        values = decode_object(body)
        model_name(values)
        wants_stream(values)
    except BadRequest as refused:
        assert json.loads(refused.body())["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b'"model":null',
        b'"model":1',
        b'"model":["tiny"]',
        b'"model":{}',
        b'"model":true',
        b'"model":""',
        b'"model":"' + b"x" * 257 + b'"',
    ],
)
def test_a_model_has_a_name(raw: bytes) -> None:
    with pytest.raises(BadRequest) as refused:
        model_name(decode_object(b"{" + raw + b"}"))
    assert refused.value.param == "model"


def test_a_name_of_256_characters_passes() -> None:
    name = "ä" * 256
    assert model_name(decode_object(json.dumps({"model": name}).encode())) == name


@pytest.mark.parametrize(
    ("raw", "wants"),
    [(b"", False), (b'"stream":null', False), (b'"stream":false', False), (b'"stream":true', True)],
)
def test_stream_is_asked_for_by_true(raw: bytes, wants: bool) -> None:
    assert wants_stream(decode_object(b"{" + raw + b"}")) is wants


@pytest.mark.parametrize("raw", [b"1", b"0", b'"true"', b"[]", b"{}", b"1.0"])
def test_any_other_stream_is_refused(raw: bytes) -> None:
    with pytest.raises(BadRequest) as refused:
        wants_stream(decode_object(b'{"stream":' + raw + b"}"))
    assert refused.value.param == "stream"


@pytest.mark.parametrize(
    ("raw", "options"),
    [
        (b"", {"include_usage": True}),
        (b'"stream_options":null', {"include_usage": True}),
        (b'"stream_options":{}', {"include_usage": True}),
        (b'"stream_options":{"include_usage":false,"x":1}', {"include_usage": True, "x": 1}),
        (b'"stream_options":{"include_usage":true}', None),
    ],
)
def test_usage_is_asked_for_unless_the_client_did(
    raw: bytes, options: dict[str, object] | None
) -> None:
    found = with_usage(decode_object(b"{" + raw + b"}"))
    assert (found if found is None else json.loads(bytes(found))) == options


@pytest.mark.parametrize("raw", [b"1", b"[]", b'"x"', b"true"])
def test_other_stream_options_are_refused(raw: bytes) -> None:
    with pytest.raises(BadRequest) as refused:
        with_usage(decode_object(b'{"stream_options":' + raw + b"}"))
    assert refused.value.param == "stream_options"
