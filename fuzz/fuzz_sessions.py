"""Coverage-guided fuzzing of the session protocol: whatever clients say and do, and in whatever order, a server keeps its promises.

    make fuzz-sessions ARGS="-runs=1000000"      # any libFuzzer option; a corpus folder may be named too

An input is a play of up to five clients on one server: which of them says hello, opens, sends steps, requests, cut or altered
messages or plain bytes, says things twice, leaves and comes again, and when the server works, forgets who is idle, or leaves. The
server is the true one behind the in-process transport, with a tiny Llama and a tiny network for images; batches run when the input
says so, on the same thread.

Findings are: an ending that is neither a reply nor an error of ours, a fault of the server's own, an answer too many or too few, a
message after the end of a stream, a limit that is passed, work that does not end, something left when all have left, memory beyond
the cap, and other answers than ever to an honest client who comes after one input in 64.
"""

from __future__ import annotations

import pathlib
import resource
import sys
import tempfile

import atheris

with atheris.instrument_imports(include=["serverlight.runtime", "serverlight.plan", "serverlight.sampling"]):
    from session_play import PLAYS, play
    from session_worlds import make_worlds

HONEST_EVERY = 64
MOST_GROWTH_BYTES = 256 << 20
"""What the process may take beyond what it has once both models are made, the fuzzer's own memory included."""


def main() -> None:
    """Runs libFuzzer with some plays on each server as seeds."""
    with tempfile.TemporaryDirectory() as folder:
        worlds = make_worlds(pathlib.Path(folder))

    def one_input(data: bytes) -> None:
        """The last byte chooses which model most clients ask for."""
        play(worlds[data[-1] & 1 if data else 0], data[:-1], honest_every=HONEST_EVERY)

    seeds = pathlib.Path(__file__).parent / "seeds-sessions"
    seeds.mkdir(exist_ok=True)
    for name, moves in PLAYS.items():
        for server in (0, 1):
            data = moves + bytes([server])
            (seeds / f"{name}-{server}").write_bytes(data)
            one_input(data)  # what is made once is made now
    resource.setrlimit(resource.RLIMIT_DATA, (_data_bytes() + MOST_GROWTH_BYTES, resource.RLIM_INFINITY))
    atheris.Setup([sys.argv[0], "-max_len=512", *sys.argv[1:], str(seeds)], one_input)
    atheris.Fuzz()


def _data_bytes() -> int:
    """Private memory of this process."""
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[5])
    return pages * resource.getpagesize()


if __name__ == "__main__":
    main()
