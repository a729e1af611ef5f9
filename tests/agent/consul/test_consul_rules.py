"""Tables for the small rules: addresses, indexes, pacing, meanings of answers, filters, durations."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.consul.address import Address, Tls, Token
from agent.consul.blocking import Pace, next_index, parse_index, server_wait, total_timeout
from agent.consul.decode import duration, seconds
from agent.consul.embedded.filter import parse
from agent.consul.embedded.state import Rejected
from agent.consul.errors import Answered, meaning
from agent.consul.protocol import CheckGone, SessionGone, TxnRefused
from agent.errors import Denied, Invalid, Missing, Refused, TdieError, Waiting


@pytest.mark.parametrize(
    ("text", "url", "again"),
    [
        ("127.0.0.1:8500", "http://127.0.0.1:8500", "127.0.0.1:8500"),
        ("consul.lan", "http://consul.lan:8500", "consul.lan:8500"),
        ("http://consul.lan", "http://consul.lan:80", "consul.lan:80"),
        ("https://consul.lan", "https://consul.lan:443", "https://consul.lan:443"),
        ("https://consul.lan:8501/", "https://consul.lan:8501", "https://consul.lan:8501"),
        ("[::1]:8500", "http://[::1]:8500", "[::1]:8500"),
        ("http://[::1]", "http://[::1]:80", "[::1]:80"),
        ("unix:///run/consul.sock", "http://localhost", "unix:///run/consul.sock"),
    ],
)
def test_addresses(text: str, url: str, again: str) -> None:
    address = Address.parse(text)
    assert (address.url, str(address)) == (url, again)
    assert Address.parse(str(address)) == address


@pytest.mark.parametrize(
    "text",
    ["ftp://x", "http://", "host:port", "host:99999", "unix://relative", "http://u:secret@h", "http://h/path", ":1"],
)
def test_addresses_that_are_none(text: str) -> None:
    with pytest.raises(Invalid):
        Address.parse(text)


def test_the_environment_is_read_as_the_consul_program_does(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("one\n")
    environ = {
        "CONSUL_HTTP_ADDR": "h:1",
        "CONSUL_HTTP_SSL": "true",
        "CONSUL_HTTP_SSL_VERIFY": "false",
        "CONSUL_CACERT": "ca.pem",
        "CONSUL_HTTP_TOKEN_FILE": str(file),
    }
    assert Address.from_environ(environ) == Address("h", 1, "https")
    assert Address.from_environ({}) == Address("127.0.0.1", 8500)
    assert Address.from_environ(environ, "other:2") == Address("other", 2, "https")
    assert Address.from_environ({}, "other") == Address("other", 8500)
    assert Tls.from_environ(environ) == Tls(ca="ca.pem", verify=False)
    assert Tls.from_environ({}).verify
    with pytest.raises(Invalid, match="CONSUL_TLS"):
        Tls.from_environ(environ).context()
    token = Token.from_environ(environ)
    assert token.reread()
    assert not token.reread()
    file.write_text("two\n")
    assert token.reread()
    assert token.value == "two"
    assert "two" not in repr(token)


@pytest.mark.parametrize(
    ("asked", "answered", "new"), [(0, 5, 5), (5, 5, 5), (5, 9, 9), (9, 5, 0), (0, 0, 1), (1, 0, 1), (7, 0, 0)]
)
def test_index_rules(asked: int, answered: int, new: int) -> None:
    assert next_index(asked, answered) == new


@pytest.mark.parametrize(("text", "index"), [("12", 12), (None, 0), ("", 0), ("-3", 0), ("x", 0), ("²", 0)])
def test_an_index_header(text: str | None, index: int) -> None:
    assert parse_index(text) == index


@given(st.floats(0.01, 600))
def test_the_answer_comes_within_the_wait(wait: float) -> None:
    asked = seconds(server_wait(wait))
    assert asked > 0
    assert asked + asked / 16 <= max(wait, 0.002)
    assert total_timeout(wait) > asked + asked / 16


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=40))
def test_no_sequence_of_answers_makes_a_busy_loop(answers: list[tuple[int, bool]]) -> None:
    """Answers that come at once and bring nothing new are asked for twice, then once a second at most."""
    pace, now, asked = Pace(), 100.0, []
    for _ in answers:
        now += pace.delay(now)
        pace.delay(now)
        pace.asked()
        asked.append(now)
        pace.answered("always the same")
    repeated = asked[1:]
    for start in range(len(repeated)):
        assert sum(1 for at in repeated if repeated[start] <= at < repeated[start] + 0.999) <= 2
    assert len(asked) < 4 or asked[-1] - asked[0] >= (len(asked) - 3) * 0.999


def test_news_is_not_held_up() -> None:
    pace = Pace()
    for n in range(50):
        assert pace.delay(1.0) == 0.0
        pace.asked()
        pace.answered(n)


@pytest.mark.parametrize(
    ("status", "body", "error", "code"),
    [
        (500, "No cluster leader", Waiting, "CONSUL_UNAVAILABLE"),
        (500, "rpc error making call: EOF", Waiting, "CONSUL_UNAVAILABLE"),
        (502, "<html>bad gateway</html>", Waiting, "CONSUL_UNAVAILABLE"),
        (429, "too many requests", Waiting, "CONSUL_UNAVAILABLE"),
        (403, "Permission denied", Denied, "CONSUL_DENIED"),
        (403, "ACL not found", Denied, "CONSUL_DENIED"),
        (500, "rpc error: Permission denied", Denied, "CONSUL_DENIED"),
        (500, 'invalid session "abc"', SessionGone, "SESSION_GONE"),
        (404, "Session id 'abc' not found", SessionGone, "SESSION_GONE"),
        (500, "Invalid Session TTL '1'", Refused, "REFUSED"),
        (500, 'CheckID "x" does not have associated TTL', CheckGone, "CHECK_GONE"),
        (404, 'Unknown check ID "x"', CheckGone, "CHECK_GONE"),
        (500, "Missing check 'x' registration", CheckGone, "CHECK_GONE"),
        (500, 'Unknown service "x"', Missing, "NOT_FOUND"),  # when ACLs are on
        (500, "Check 'x' is in critical state", Refused, "REFUSED"),
        (404, "no", Missing, "NOT_FOUND"),
        (409, "{}", TxnRefused, "TXN_REFUSED"),
        (413, "big", Refused, "CONSUL_TOO_LARGE"),
        (400, "what", Refused, "CONSUL_REFUSED"),
    ],
)
def test_what_an_answer_means(status: int, body: str, error: type[TdieError], code: str) -> None:
    found = meaning("do it", Answered(status, body))
    assert type(found) is error
    assert found.code == code
    assert "cannot do it" in str(found)


ROW = {"ServiceID": "tdie/c-1/n", "Status": "passing", "Tags": ["a"], "Service": {"Meta": {"tdie-cluster": "c-1"}}}


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ('Service.Meta["tdie-cluster"] == "c-1"', True),
        ('Service.Meta["tdie-cluster"] == "c-2"', False),
        ('Service.Meta.nothing == ""', True),
        ("Status == passing and not Tags contains b", True),
        ("Status != passing or (ServiceID matches `^tdie/c-1/`)", True),
        ('"a" in Tags', True),
        ('"b" not in Tags', True),
        ("Tags is empty", False),
        ("Service.Meta is not empty", True),
        ("ServiceID not matches `x`", True),
    ],
)
def test_filters(text: str, holds: bool) -> None:
    assert parse(text)(ROW) is holds


@pytest.mark.parametrize("text", ["", "Status", "Status ==", "(Status == a", "Status == a b", "a ~ b", "S matches `(`"])
def test_filters_that_are_none(text: str) -> None:
    with pytest.raises(Rejected):
        parse(text)


@given(st.integers(0, 10**8))
def test_durations_go_there_and_back(milliseconds: int) -> None:
    assert seconds(duration(milliseconds / 1000)) == pytest.approx(milliseconds / 1000)


def test_durations_in_go_notation() -> None:
    assert [seconds(text) for text in ("1m30s", "100ms", "2h", "1.5s", "")] == [90.0, 0.1, 7200.0, 1.5, 0.0]
    for text in ("soon", "1", "1s later", "-1s"):
        with pytest.raises(ValueError, match="duration"):
            seconds(text)
