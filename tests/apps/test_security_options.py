"""Certificates and tokens from the command line: the server in a process of its own, the device in this one."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from serverlight.apps.security_options import TOKEN_VARIABLE, CredentialOptions
from serverlight.runtime.tokens import hash_token, parse_clients

trustme = pytest.importorskip("trustme", reason="trustme makes the certificates of these tests")

Cli = Callable[..., Any]

RUN = ["run", "demo-vision", "--cut", "layer3.0", "--limit", "2", "--json", "-"]


@dataclass(frozen=True)
class Guarded:
    """A server that wants everything, and what a client of it has."""

    address: str
    folder: pathlib.Path
    token: str

    def words(self, *names: str) -> list[str]:
        files = {
            "ca": ["--tls-ca", str(self.folder / "ca.pem")],
            "pair": ["--tls-cert", str(self.folder / "phone.pem"), "--tls-key", str(self.folder / "phone.key")],
            "token": ["--token-file", str(self.folder / "phone.token")],
        }
        return [*RUN, "--server", self.address, *(word for name in names for word in files[name])]


@pytest.fixture
def guarded(cli: Cli, start_server: Callable[..., Any], tmp_path: pathlib.Path) -> Guarded:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    for name, identity in {"server": "127.0.0.1", "phone": "phone@example.org"}.items():
        made = authority.issue_cert(identity)
        made.private_key_pem.write_to_path(str(tmp_path / f"{name}.key"))
        (tmp_path / f"{name}.pem").write_bytes(b"".join(part.bytes() for part in made.cert_chain_pems))
    made_token = cli("token", "phone", "--file", str(tmp_path / "tokens.toml"))
    assert made_token.code == 0
    (tmp_path / "phone.token").write_text(made_token.out)
    files = {"--tls-cert": "server.pem", "--tls-key": "server.key", "--client-ca": "ca.pem", "--tokens": "tokens.toml"}
    words = [word for option, name in files.items() for word in (option, str(tmp_path / name))]
    _, ready = start_server("--cut", "layer3.0", *words)
    return Guarded(ready["address"], tmp_path, made_token.out.strip())


def test_run_through_every_guard(cli: Cli, guarded: Guarded, monkeypatch: pytest.MonkeyPatch) -> None:
    """With everything the server wants a run is a run; without any one of it, the error says what is missing."""
    outcome = cli(*guarded.words("ca", "pair", "token"))
    assert (outcome.code, outcome.err) == (0, "")
    assert json.loads(outcome.out)["requests"] == 2
    for names, complaint in {
        ("ca", "pair"): "no valid token; ask who runs the server",
        ("ca", "token"): "tls_cert: ",
        ("token",): "tls_ca: ",
    }.items():
        refused = cli(*guarded.words(*names))
        assert (refused.code, refused.out) == (2, "")
        assert complaint in refused.err
        assert refused.err.count("\n") == 1
    monkeypatch.setenv(TOKEN_VARIABLE, guarded.token)
    assert cli(*guarded.words("ca", "pair")).code == 0


def test_token_is_printed_once(cli: Cli, tmp_path: pathlib.Path) -> None:
    """Standard output has the token and nothing else, and the file its hash; --days sets its end."""
    path = tmp_path / "tokens.toml"
    made = cli("token", "phone", "--file", str(path), "--days", "30")
    assert made.code == 0
    assert made.out.count("\n") == 1
    assert made.out.strip() not in made.err + path.read_text()
    client = parse_clients(path.read_text())["phone"]
    assert client.digests == (hash_token(made.out.strip()),)
    assert client.expires is not None
    again = cli("token", "phone", "--file", str(path))
    assert (again.code, again.out) == (2, "")


def test_token_of_the_environment(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the command line says goes before the variable; an empty variable is no token."""
    monkeypatch.setenv(TOKEN_VARIABLE, "sl_variable")
    (tmp_path / "token").write_text("sl_file\n")
    assert CredentialOptions().read("localhost:1").token == "sl_variable"
    assert CredentialOptions(token="sl_option").read("localhost:1").token == "sl_option"
    assert CredentialOptions(token_file=str(tmp_path / "token")).read("localhost:1").token == "sl_file"
    monkeypatch.setenv(TOKEN_VARIABLE, "")
    assert CredentialOptions().read("localhost:1").token is None
