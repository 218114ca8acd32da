"""Replicas with certificates and tokens: each asks for them, and a device that has them goes on when one is killed."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pathlib
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from serverlight.codec import CodecConfig
from serverlight.errors import CertificateMismatch, ServerlightError, Unauthenticated
from serverlight.generation import DecoderLoopback, LoadedDecoder
from serverlight.plan import Plan
from serverlight.runtime.credentials import Credentials
from serverlight.runtime.decoder_client import DecoderClient
from serverlight.runtime.tokens import add_client

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs Ray: pip install 'serverlight[ray]'"),
]
trustme = pytest.importorskip("trustme", reason="trustme makes the certificates of these tests")

CUT = "layers.4"
PROMPT, NUM_TOKENS = [1, 50, 300, 12], 30


@dataclass
class Guarded:
    """Replicas that want TLS and a token, and the folder with all files."""

    served: Any
    folder: pathlib.Path
    token: str

    def credentials(self, **others: Any) -> Credentials:
        return Credentials(**{"tls_ca": str(self.folder / "ca.pem"), "token": self.token, **others})


@pytest.fixture(scope="module")
def guarded(
    start_replicas: Callable[..., contextlib.AbstractContextManager[Any]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Guarded]:
    """Files are named as a user in their folder would, who has no idea where Ray runs replicas."""
    folder = tmp_path_factory.mktemp("guards")
    for name in ("ca", "other"):
        authority = trustme.CA()
        authority.cert_pem.write_to_path(str(folder / f"{name}.pem"))
        if name == "ca":
            made = authority.issue_cert("127.0.0.1")
            made.private_key_pem.write_to_path(str(folder / "server.key"))
            (folder / "server.pem").write_bytes(b"".join(part.bytes() for part in made.cert_chain_pems))
    token = add_client(str(folder / "tokens.toml"), "phone")
    guards = ["--tls-cert", "server.pem", "--tls-key", "server.key", "--tokens", "tokens.toml"]
    words = ["demo-lm", "--cut", CUT, "--dtype", "float32", "--replicas", "2"]
    with start_replicas(*words, *guards, folder=folder) as served:
        yield Guarded(served, folder, token)


@pytest.fixture(scope="module")
def head() -> LoadedDecoder:
    torch.set_num_threads(1)
    return LoadedDecoder.head("demo-lm", CUT, dtype=torch.float32)


@pytest.fixture(scope="module")
def plan(head: LoadedDecoder) -> Plan:
    return Plan(model=head.name, revision=head.revision, cut=CUT, codec=CodecConfig(sparsity=0.2))


def test_every_replica_asks(guarded: Guarded, head: LoadedDecoder, plan: Plan) -> None:
    """Who has no token, another's, no TLS or trusts another authority gets nowhere at any replica; a client that is added
    to the file is let in by all of them at once.
    """
    refusals: list[tuple[dict[str, Any], type[ServerlightError]]] = [
        ({"token": None}, Unauthenticated),
        ({"token": "sl_wrong"}, Unauthenticated),
        ({"tls_ca": None}, CertificateMismatch),
        ({"tls_ca": str(guarded.folder / "other.pem")}, CertificateMismatch),
    ]
    addresses = guarded.served.replicas()
    assert len(addresses) == 2
    tablet = add_client(str(guarded.folder / "tokens.toml"), "tablet")
    for address in addresses:
        for fields, kind in refusals:
            with pytest.raises(kind):
                DecoderClient([address], plan=plan, head=head, credentials=guarded.credentials(**fields)).generate(
                    PROMPT, max_new_tokens=2
                )
        for token in (guarded.token, tablet):
            client = DecoderClient([address], plan=plan, head=head, credentials=guarded.credentials(token=token))
            assert len(client.generate(PROMPT, max_new_tokens=2).token_ids) == 2


def test_device_goes_on_with_its_credentials(guarded: Guarded, head: LoadedDecoder, plan: Plan) -> None:
    """When its replica is killed, a device shows its token to the other and goes on with the same tokens; the replica that
    comes in its place asks as well.
    """
    tail = LoadedDecoder.tail("demo-lm", CUT, dtype=torch.float32)
    undisturbed = DecoderLoopback(plan, head, tail).generate(PROMPT, max_new_tokens=NUM_TOKENS)
    before = guarded.served.replicas()
    home = guarded.served.ask("/endpoint?session=me")["address"]
    heard = list[int]()

    def hear(token: int) -> None:
        heard.append(token)
        if len(heard) == 10:
            os.kill(before[home], signal.SIGKILL)

    client = DecoderClient(
        [f"{guarded.served.address}?session=me"], plan=plan, head=head, credentials=guarded.credentials()
    )
    made = client.generate(PROMPT, max_new_tokens=NUM_TOKENS, on_token=hear)
    assert made.token_ids == undisturbed
    assert made.num_recoveries >= 1
    after = guarded.served.until(lambda found: len(set(found) - {home}) == 2)
    [new] = set(after) - set(before)
    stranger = DecoderClient([new], plan=plan, head=head, credentials=guarded.credentials(token="sl_wrong"))
    with pytest.raises(Unauthenticated):
        stranger.generate(PROMPT, max_new_tokens=2)
    known = DecoderClient([new], plan=plan, head=head, credentials=guarded.credentials())
    assert known.generate(PROMPT, max_new_tokens=NUM_TOKENS).token_ids == undisturbed
