"""Language models in the demo: how they write uncut, and the leanest server that we could think of, which runs all of one.

``python -m serverlight.apps.demo.writing MODEL`` serves the whole model, to which token ids go up once. It prints a line of
JSON with its address, and ends with its standard input.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import NoReturn, Self

import torch

from serverlight.errors import PeerUnavailable, ServerlightError
from serverlight.partition.decoder import DecoderHead, DecoderTail
from serverlight.partition.weights import load_head, load_tail

__all__ = ["TokenConnection", "WholeModel", "main"]

REQUEST = struct.Struct("<HHI")
"""Tokens of the prompt, tokens wanted, bytes of an id; then the ids."""

REPLY = struct.Struct("<Id")
"""A token, and the CPU time of the server process so far, in milliseconds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WholeModel:
    """A language model with all its layers in one process."""

    head: DecoderHead
    tail: DecoderTail

    @classmethod
    def load(cls, spec: str) -> Self:
        """In float32; errors are those of :func:`load_head`."""
        num_layers = load_head(spec, layers=0, dtype=torch.float32).num_layers
        return cls(
            head=load_head(spec, layers=num_layers, dtype=torch.float32),
            tail=load_tail(spec, layers=num_layers, dtype=torch.float32),
        )

    def write(self, token_ids: list[int], num_tokens: int) -> Iterator[int]:
        """The likeliest continuation, token by token, past any end token."""
        caches = self.head.new_cache(), self.tail.new_cache()
        ids = torch.tensor([token_ids])
        for _ in range(num_tokens):
            with torch.inference_mode():
                ids = self.tail(self.head(ids, caches[0]), caches[1], num_logits=1)[:, -1].argmax(-1, keepdim=True)
            yield ids.item()

    @torch.inference_mode()
    def num_likeliest(self, prompt: list[int], token_ids: list[int]) -> int:
        """How many of the tokens that follow a prompt are those that this model holds for the likeliest there."""
        states = self.head(torch.tensor([prompt + token_ids[:-1]]), self.head.new_cache())
        logits = self.tail(states, self.tail.new_cache(), num_logits=len(token_ids))
        return int((logits[0].argmax(-1) == torch.tensor(token_ids)).sum())


class TokenConnection:
    """A device's connection to a server of the whole model."""

    def __init__(self, address: str, vocab_size: int) -> None:
        host, _, port = address.rpartition(":")
        self._socket = socket.create_connection((host, int(port)))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._stream, self._id_bytes = self._socket.makefile("rb"), 2 if vocab_size <= 1 << 16 else 4

    def ask(self, token_ids: list[int], num_tokens: int) -> int:
        """Sends a prompt; returns the bytes that went up."""
        request = REQUEST.pack(len(token_ids), num_tokens, self._id_bytes)
        request += b"".join(token.to_bytes(self._id_bytes, "little") for token in token_ids)
        self._socket.sendall(request)
        return len(request)

    def answers(self, num_tokens: int) -> Generator[tuple[int, float], None, None]:
        """Each token, with the server's CPU time; raises :class:`PeerUnavailable` when the server is gone."""
        for _ in range(num_tokens):
            reply = self._stream.read(REPLY.size)
            if len(reply) < REPLY.size:
                raise PeerUnavailable("the server of the whole model has ended; see its last words")
            yield REPLY.unpack(reply)

    def close(self) -> None:
        """Hangs up."""
        self._stream.close()
        self._socket.close()


def main() -> NoReturn:
    """Serves until standard input ends."""
    torch.set_num_threads(1)
    try:
        _serve_whole(sys.argv[1])
    except ServerlightError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        os._exit(1)
    os._exit(0)  # a thread may still wait for a connection


def _serve_whole(spec: str) -> None:
    model = WholeModel.load(spec)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=_answer_all, args=(listener, model), name="serverlight-whole", daemon=True).start()
        host, port = listener.getsockname()
        _announce(f"{host}:{port}")
        sys.stdin.read()


def _answer_all(listener: socket.socket, model: WholeModel) -> None:
    """One connection after the other: the demo's own, on this machine."""
    while True:
        connection, _ = listener.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with connection, connection.makefile("rb") as stream, contextlib.suppress(ConnectionError):
            while len(request := stream.read(REQUEST.size)) == REQUEST.size:
                num_ids, num_tokens, id_bytes = REQUEST.unpack(request)
                ids = stream.read(num_ids * id_bytes)
                prompt = [int.from_bytes(ids[i : i + id_bytes], "little") for i in range(0, len(ids), id_bytes)]
                for token in model.write(prompt, num_tokens):
                    connection.sendall(REPLY.pack(token, time.process_time() * 1e3))


def _announce(address: str) -> None:
    print(json.dumps({"address": address}), flush=True)


if __name__ == "__main__":
    main()
