from __future__ import annotations

import contextlib
import datetime
import pathlib
import re
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serverlight.errors import ConfigError
from serverlight.runtime.quotas import Quota
from serverlight.runtime.tokens import Grant, TokenFile, add_client, hash_token, parse_clients

NOW = datetime.datetime(2026, 6, 1, tzinfo=datetime.UTC)
A, B = hash_token("a"), hash_token("b")

FILE = f"""
# What clients may use that do not say otherwise.
[quotas]
requests_per_s = 20
max_sessions = 4

[clients.phone]
sha256 = "{A}"

[clients."tablet.2"]
sha256 = ["{B}", "{hash_token("c")}"]   # the new one and the old
expires = 2027-01-31
max_sessions = 1
max_kv_bytes = 1_000_000
bytes_per_s = 1e6
"""


def test_file_is_read() -> None:
    """Each client has its hashes, its end and its quotas; what it does not say comes from the common section."""
    clients = parse_clients(FILE)
    assert list(clients) == ["phone", "tablet.2"]
    assert clients["phone"].digests == (A,)
    assert clients["phone"].quota == Quota(requests_per_s=20, max_sessions=4)
    tablet = clients["tablet.2"]
    assert len(tablet.digests) == 2
    assert tablet.expires == datetime.datetime(2027, 1, 31, tzinfo=datetime.UTC)
    assert tablet.quota == Quota(requests_per_s=20, max_sessions=1, max_kv_bytes=10**6, bytes_per_s=1e6)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[clients", "is not TOML"),
        ("[client.phone]", "unknown section 'client'"),
        ("clients = 3", "'clients' must be a section"),
        ("[clients]\nphone = 'abc'", "'phone' must be a section"),
        ("[clients.phone]", "'phone': sha256 must be"),
        (f"[clients.phone]\nsha256 = '{A[:-1]}'", "'phone': sha256 must be"),
        (f"[clients.phone]\nsha256 = '{A.upper()}'", "'phone': sha256 must be"),
        ("[clients.phone]\nsha256 = [3]", "'phone': sha256 must be"),
        (f"[clients.'a b']\nsha256 = '{A}'", "client 'a b': a name is"),
        (
            f"[clients.phone]\nsha256 = '{A}'\nmax_session = 3",
            "'phone': unknown 'max_session'; quotas are max_sessions,",
        ),
        (f"[clients.phone]\nsha256 = '{A}'\nmax_sessions = 0", "'phone': max_sessions: must be"),
        (f"[clients.phone]\nsha256 = '{A}'\nexpires = '2027-01-31'", "'phone': expires must be"),
        (f"[clients.a]\nsha256 = '{A}'\n[clients.b]\nsha256 = '{A}'", "two clients have the same token"),
        ("[quotas]\nspeed = 3", "'quotas': unknown 'speed'"),
    ],
)
def test_wrong_file_is_refused(text: str, complaint: str) -> None:
    """A file that does not say what is meant is refused whole, and the message says where and why."""
    with pytest.raises(ConfigError, match=re.escape(complaint)):
        parse_clients(text)


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused(text: str) -> None:
    """No text does more than be refused."""
    with contextlib.suppress(ConfigError):
        parse_clients(text)


@given(cut=st.integers(0, len(FILE)))
def test_half_a_file_gives_nobody_more(cut: int) -> None:
    """A file that is read while it is written lets in nobody that the whole file would not."""
    try:
        clients = parse_clients(FILE[:cut])
    except ConfigError:
        return
    whole = parse_clients(FILE)
    assert all(set(client.digests) <= set(whole[name].digests) for name, client in clients.items())


def test_token_is_long_and_kept_nowhere(tmp_path: pathlib.Path) -> None:
    """A token has 256 random bits; the file has its hash, and only its owner may read it."""
    path = tmp_path / "tokens.toml"
    first, second = (add_client(str(path), name) for name in ("phone", "tablet"))
    assert first != second
    assert re.fullmatch(r"sl_[A-Za-z0-9_-]{43}", first)
    text = path.read_text()
    assert first not in text
    assert first[3:] not in text
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert {name: client.digests for name, client in parse_clients(text).items()} == {
        "phone": (hash_token(first),),
        "tablet": (hash_token(second),),
    }


@pytest.mark.parametrize("before", ["", "# mine", "# mine\n", FILE.replace("phone", "other")])
def test_adding_leaves_the_rest(tmp_path: pathlib.Path, before: str) -> None:
    """What stands in the file stays as it is, comments included."""
    path = tmp_path / "tokens.toml"
    path.write_text(before)
    token = add_client(str(path), "phone", expires=NOW)
    text = path.read_text()
    assert text.startswith(before)
    assert parse_clients(text)["phone"].digests == (hash_token(token),)
    assert parse_clients(text)["phone"].expires == NOW


@pytest.mark.parametrize("name", ["", " ", "a b", ".x", "a" * 65, "a\n[quotas]", 'a"', "ä"])
def test_name_that_cannot_be(tmp_path: pathlib.Path, name: str) -> None:
    """A name cannot break out of its line in the file."""
    with pytest.raises(ConfigError, match=r"^name: "):
        add_client(str(tmp_path / "tokens.toml"), name)
    assert not (tmp_path / "tokens.toml").exists()


def test_name_that_is_taken(tmp_path: pathlib.Path) -> None:
    """A client keeps its token until its section is removed."""
    path = str(tmp_path / "tokens.toml")
    add_client(path, "phone")
    with pytest.raises(ConfigError, match="has a client 'phone'"):
        add_client(path, "phone")


def test_grants(tmp_path: pathlib.Path) -> None:
    """Each of a client's tokens is good until it expires or is taken away; nothing else is."""
    path = tmp_path / "tokens.toml"
    path.write_text(FILE)
    tokens = TokenFile(str(path))
    assert tokens.grant("a", NOW) == Grant("phone", A)
    assert {tokens.grant(token, NOW).client for token in "bc"} == {"tablet.2"}  # type: ignore[union-attr]
    for wrong in (None, "", "d", A, "a ", "A", "a" * 600):
        assert tokens.grant(wrong, NOW) is None
    old = tokens.grant("b", NOW)
    assert old is not None
    last = datetime.datetime(2027, 1, 30, 23, 59, 59, tzinfo=datetime.UTC)
    assert tokens.holds(old, last)
    assert not tokens.holds(old, last + datetime.timedelta(seconds=1))
    assert tokens.grant("b", last + datetime.timedelta(seconds=1)) is None
    path.write_text(FILE.replace(B, hash_token("d")))
    tokens.refresh()
    assert not tokens.holds(old, NOW)
    assert tokens.grant("c", NOW)


def test_every_hash_is_compared(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whosever the token is, and whether it is anybody's, takes the same comparisons, each in constant time."""
    path = tmp_path / "tokens.toml"
    path.write_text(FILE)
    tokens, compared = TokenFile(str(path)), list[bytes]()

    def compare(ours: bytes, shown: bytes) -> bool:
        compared.append(ours)
        return ours == shown

    monkeypatch.setattr("serverlight.runtime.tokens.hmac.compare_digest", compare)
    for token in ("a", "c", "wrong", None):
        compared.clear()
        tokens.grant(token, NOW)
        assert len(compared) == 3
