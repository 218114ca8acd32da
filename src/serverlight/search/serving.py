"""A server of a model in a process of its own, for a rehearsal: it ends when its standard input does."""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import IO

from serverlight.errors import PeerUnavailable

__all__ = ["Serving", "served"]

MODULE = "serverlight.search.serving"


class Serving:
    """A server that starts while one does something else."""

    def __init__(self, process: subprocess.Popen[str], errors: IO[str]) -> None:
        self._process, self._errors = process, errors

    def address(self, cuts: Sequence[str]) -> str:
        """``HOST:PORT`` once it serves these cuts; asks it once, and waits. Raises :class:`PeerUnavailable`."""
        assert self._process.stdin
        assert self._process.stdout
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(list(cuts)) + "\n")
            self._process.stdin.flush()
        if line := self._process.stdout.readline():
            return str(json.loads(line)["address"])
        self._process.wait()
        self._errors.seek(0)
        last = (self._errors.read().strip().splitlines() or ["it said nothing"])[-1]
        raise PeerUnavailable(f"the server of the rehearsal ended: {last}; try `serverlight serve` with the same model")


@contextlib.contextmanager
def served(model: str, *, threads: int, dtype: str | None = None) -> Iterator[Serving]:
    """Starts loading a model at once; the server is gone when the block is left."""
    words = [model, "--threads", str(threads), *(["--dtype", dtype] if dtype else [])]
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            [sys.executable, "-m", MODULE, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,  # Ctrl-C is for the parent
        ) as process,
    ):
        try:
            yield Serving(process, errors)
        finally:
            assert process.stdin
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_S)
            process.kill()


STOP_S = 5.0


def main(arguments: Sequence[str] | None = None) -> None:
    """Loads, reads the cuts from standard input, says where it listens, and serves until standard input ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--dtype")
    options = parser.parse_args(arguments)

    import torch

    from serverlight.models.loader import is_language_model, load_model
    from serverlight.runtime.memory import keep_freed_memory
    from serverlight.runtime.server import Server

    keep_freed_memory()  # as `serverlight serve` does
    torch.set_num_threads(options.threads)
    if is_language_model(options.model):
        from serverlight.generation import LoadedDecoder

        dtype = getattr(torch, options.dtype) if options.dtype else None
        whole = LoadedDecoder.whole(options.model, dtype=dtype)  # devices may send token ids
        server = Server(whole, json.loads(sys.stdin.readline()))
    else:
        from serverlight.partition import partition

        model = load_model(options.model)
        parts = partition(model.module, model.example_inputs)
        server = Server(model, json.loads(sys.stdin.readline()), parts=parts)
    with server:
        print(json.dumps({"address": server.address}), flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
