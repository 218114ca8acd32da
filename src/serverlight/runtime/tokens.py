"""Who may connect: a file of clients with hashes of their tokens, read again whenever it changes."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import hmac
import json
import logging
import os
import pathlib
import re
import secrets
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from serverlight.errors import ConfigError
from serverlight.runtime.credentials import MAX_TOKEN_CHARS
from serverlight.runtime.quotas import Quota

__all__ = ["Grant", "KnownClient", "TokenFile", "add_client", "hash_token", "parse_clients"]

_log = logging.getLogger(__name__)

_PREFIX = "sl_"
"""By which those who look for lost secrets know one of ours."""

_TOKEN_BYTES = 32
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_QUOTAS = tuple(field.name for field in dataclasses.fields(Quota))

_MAX_FILE_BYTES = 16 * 2**20


@dataclass(frozen=True, kw_only=True, slots=True)
class KnownClient:
    """One client of the file."""

    digests: tuple[str, ...]
    """SHA-256 of each token that it may show, in hexadecimal; two while one takes over from the other."""

    expires: datetime.datetime | None
    """From when on no token of it is good any more."""

    quota: Quota
    """What it may use."""


@dataclass(frozen=True, slots=True)
class Grant:
    """A token was good: whose it is, and its hash, to see later whether it still is."""

    client: str
    digest: str


def hash_token(token: str) -> str:
    """SHA-256 of a token, in hexadecimal.

    A slow, salted hash is for passwords, which people choose and others guess. A token is 256 random bits, which nobody
    guesses however fast he hashes, and no two are alike.
    """
    return hashlib.sha256(token.encode()).hexdigest()


def parse_clients(text: str) -> dict[str, KnownClient]:
    """Reads the file of docs/security.md; raises :class:`ConfigError` that says which client is wrong.

    >>> clients = parse_clients('[clients.phone]\\nsha256 = "' + hash_token("secret") + '"\\nrequests_per_s = 20')
    >>> clients["phone"].quota.requests_per_s
    20
    """
    try:
        document = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError("tokens", f"is not TOML: {error}; docs/security.md shows the format") from None
    if unknown := set(document) - {"clients", "quotas"}:
        raise ConfigError("tokens", f"unknown section {sorted(unknown)[0]!r}; there are [clients.NAME] and [quotas]")
    common = _table("quotas", document.get("quotas", {}))
    quota = _read_quota("quotas", common, {})
    entries = _table("clients", document.get("clients", {}))
    clients = {name: _read_client(name, _table(name, entry), quota) for name, entry in entries.items()}
    digests = [digest for client in clients.values() for digest in client.digests]
    if len(digests) != len(set(digests)):
        raise ConfigError("tokens", "two clients have the same token; make another with `serverlight token NAME`")
    return clients


def add_client(path: str, name: str, *, expires: datetime.datetime | None = None) -> str:
    """Makes a token, adds its hash to the file, which may be new, and returns the token; it is kept nowhere.

    Raises:
        ConfigError: the name is taken or cannot be, or the file cannot be read or written.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError("name", f"{name!r} must be 1 to 64 of A-Z a-z 0-9 . _ - and begin with a letter or digit")
    file = pathlib.Path(path)
    text = _read(path) if file.exists() else ""
    if name in parse_clients(text):
        raise ConfigError("name", f"{path} has a client {name!r}; remove its section, or choose another name")
    token = _PREFIX + secrets.token_urlsafe(_TOKEN_BYTES)
    lines = [f'[clients."{name}"]', f'sha256 = "{hash_token(token)}"']
    if expires is not None:
        lines.append(f"expires = {expires.astimezone(datetime.UTC).isoformat(timespec='seconds')}")
    section = "\n".join([*([""] if text else []), *lines, ""])
    _append(path, section if text.endswith("\n") or not text else "\n" + section)
    return token


class TokenFile:
    """The file's clients, as of the last time that it could be read.

    Raises:
        ConfigError: it cannot be read at first. Later that is logged, and what was read before goes on.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._stamp = _stamp(path)
        self._clients: Mapping[str, KnownClient] = parse_clients(_read(path))

    def refresh(self) -> None:
        """Reads the file again where it has changed."""
        stamp = _stamp(self._path)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._clients = parse_clients(_read(self._path))
            _log.info("read %d clients from %s", len(self._clients), self._path)
        except ConfigError as error:
            _log.error("%s stays as it was read before: %s", self._path, error)

    def grant(self, token: str | None, now: datetime.datetime) -> Grant | None:
        """Whose token it is; ``None`` where there is none, or it is nobody's, or out of date.

        Every hash is compared, each in constant time, so that the time taken tells nothing about any of them.
        """
        shown = hash_token(token if token is not None and len(token) <= MAX_TOKEN_CHARS else "").encode()
        found = None
        for name, digest in self._digests():
            if hmac.compare_digest(digest.encode(), shown):
                found = Grant(name, digest)
        return found if found is not None and self.holds(found, now) else None

    def holds(self, grant: Grant, now: datetime.datetime) -> bool:
        """Whether the token is still in the file, and not out of date."""
        client = self._clients.get(grant.client)
        return (
            client is not None and grant.digest in client.digests and (client.expires is None or now < client.expires)
        )

    def quota_of(self, client: str) -> Quota:
        """What a client may use; one that is not in the file has no quota."""
        known = self._clients.get(client)
        return Quota() if known is None else known.quota

    def _digests(self) -> Iterator[tuple[str, str]]:
        for name, client in self._clients.items():
            for digest in client.digests:
                yield name, digest


def _read_client(name: str, entry: Mapping[str, Any], common: Quota) -> KnownClient:
    if not _NAME.fullmatch(name):
        raise ConfigError("tokens", f"client {name!r}: a name is 1 to 64 of A-Z a-z 0-9 . _ -")
    digests = entry.get("sha256")
    digests = [digests] if isinstance(digests, str) else digests
    if not isinstance(digests, list) or not all(isinstance(d, str) and _DIGEST.fullmatch(d) for d in digests):
        raise ConfigError("tokens", f"client {name!r}: sha256 must be 64 digits 0-9 a-f, or a list of such")
    rest = {key: value for key, value in entry.items() if key not in ("sha256", "expires")}
    return KnownClient(
        digests=tuple(digests),
        expires=_read_time(name, entry.get("expires")),
        quota=_read_quota(name, rest, dataclasses.asdict(common)),
    )


def _read_quota(where: str, given: Mapping[str, Any], common: Mapping[str, Any]) -> Quota:
    if unknown := set(given) - set(_QUOTAS):
        raise ConfigError("tokens", f"{where!r}: unknown {sorted(unknown)[0]!r}; quotas are {', '.join(_QUOTAS)}")
    try:
        return Quota(**{**common, **given})
    except ConfigError as error:
        raise ConfigError("tokens", f"{where!r}: {error}") from None


def _read_time(name: str, value: object) -> datetime.datetime | None:
    """A date without a time is its first moment, a time without a zone is UTC."""
    if value is None:
        return None
    if isinstance(value, datetime.datetime):
        return value if value.tzinfo else value.replace(tzinfo=datetime.UTC)
    if isinstance(value, datetime.date):
        return datetime.datetime(value.year, value.month, value.day, tzinfo=datetime.UTC)
    raise ConfigError("tokens", f"client {name!r}: expires must be a date or a time such as 2027-01-31, without quotes")


def _table(name: str, value: object) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError("tokens", f"{name!r} must be a section, got {json.dumps(value, default=str)[:80]}")
    return value


def _read(path: str) -> str:
    try:
        with pathlib.Path(path).open("rb") as file:
            data = file.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(
            "tokens", f"cannot read {path}: {error.strerror}; `serverlight token NAME --file {path}` makes one"
        ) from None
    if len(data) > _MAX_FILE_BYTES:
        raise ConfigError("tokens", f"{path} is larger than {_MAX_FILE_BYTES} bytes; check the path")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise ConfigError("tokens", f"{path} is not UTF-8; check the path") from None


def _append(path: str, text: str) -> None:
    """Adds to the file in one piece, so that a server which reads it meanwhile sees all or nothing of it."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        with os.fdopen(descriptor, "ab", buffering=0) as file:
            file.write(text.encode())
    except OSError as error:
        raise ConfigError("file", f"cannot write {path}: {error.strerror}; check the path") from None


def _stamp(path: str) -> tuple[int, int, int] | None:
    """What changes with the file; ``None`` where it is gone."""
    try:
        status = pathlib.Path(path).stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
