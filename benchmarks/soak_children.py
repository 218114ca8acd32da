"""The processes of ``soak.py``: one that serves, and some that have clients. Each prints a line of JSON every second.

A child ends when its standard input does, the clients after the work that they have begun.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import psutil
import torch

from serverlight.codec import CodecConfig
from serverlight.errors import GenerationInterrupted, ServerBusy, ServerlightError
from serverlight.faults import FaultPlan, Strike
from serverlight.generation import LANGUAGE_CODEC, DecoderLoopback, LoadedDecoder
from serverlight.loopback import Loopback
from serverlight.models import LoadedModel, load_model
from serverlight.partition import Partition, partition
from serverlight.plan import Plan
from serverlight.runtime import Client, Server, ServerConfig, connect
from serverlight.runtime.decoder_client import DecoderClient
from serverlight.sampling import Sampling

LM_CUTS, VISION_CUTS = ("layers.2", "layers.4", "layers.6"), ("layer2.2", "layer3.0")
NUM_PROMPTS, PROMPT_TOKENS = 6, (3, 140)
"""Of each cut; short, and longer than one chunk."""

CLEAR_MARGIN = 0.02
"""Log-probability by which a token must lead: then rounding of another order of sums cannot change it."""

VISION_CODEC, VISION_ATOL = CodecConfig(sparsity=0.5), 1e-3
DEADLINE_MS, TRIES = 10_000, 100
"""Of a vision request, which is sent again on another stream until it is answered."""

TICK_S = 1.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("role", choices=("serve", "clients"))
    parser.add_argument("--lm", default="", help="address")
    parser.add_argument("--vision", default="", help="address")
    parser.add_argument("--numbers", type=int, nargs="*", default=[], help="of the clients in this process")
    parser.add_argument("--tokens", type=int, default=8)
    parser.add_argument("--pause", type=float, default=1.5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fault", action="append", default=[])
    args = parser.parse_args()
    torch.set_num_threads(1)
    return serve(args) if args.role == "serve" else Clients(args).run()


def tell(facts: dict[str, Any]) -> None:
    """One line, with what the process holds."""
    process = psutil.Process()
    with process.oneshot():
        held = {"rss_bytes": process.memory_info().rss, "threads": process.num_threads(), "files": process.num_fds()}
        cpu = process.cpu_times()
    print(json.dumps({**facts, **held, "cpu_s": cpu.user + cpu.system}), flush=True)


def tell_until_eof(facts: Callable[[], dict[str, Any]]) -> None:
    ended = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
    while not ended.wait(TICK_S):
        tell(facts())


# -- servers ----------------------------------------------------------------------------------------


def serve(args: argparse.Namespace) -> int:
    """A language model and a vision model, each on a port of its own."""
    faults = FaultPlan.parse(args.fault, seed=args.seed) if args.fault else None
    config = ServerConfig(max_streams=1024, max_sessions=512)
    struck = CountStrikes()
    tail = LoadedDecoder.tail("demo-lm", min(LM_CUTS))
    with (
        Server(tail, LM_CUTS, config=config, faults=faults) as lm,
        Server(load_model("demo-vision"), VISION_CUTS, config=config, faults=faults) as vision,
    ):
        print(json.dumps({"lm": lm.address, "vision": vision.address}), flush=True)
        tell_until_eof(lambda: {"lm": counters(lm), "vision": counters(vision), "faults": dict(struck.counts)})
    return 0


class CountStrikes(logging.Handler):
    """Counts the faults that servers tell in their logs; what else they tell is printed."""

    def __init__(self) -> None:
        super().__init__()
        self.counts = Counter[str]()
        logging.getLogger().addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Hears a line."""
        strike = record.args[0] if isinstance(record.args, tuple) and record.args else None
        if isinstance(strike, Strike):
            self.counts[strike.kind] += 1
        else:
            print(record.getMessage(), file=sys.stderr)


def counters(server: Server) -> dict[str, int]:
    """What must be nothing when all clients are gone."""
    core = server.core
    return {
        "streams": core.num_streams,
        "sessions": core.num_sessions,
        "kv_bytes": core.kv_bytes,
        "waiting": core.num_waiting,
    }


# -- clients ----------------------------------------------------------------------------------------


class Clients:
    """Threads with a client each: three of four write, the others send images."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._args = args
        self._counts, self._lock = Counter[str](), threading.Lock()
        self._stopping = threading.Event()
        self._wrong = list[Any]()

    def run(self) -> int:
        """Until standard input ends, and then until each has finished what it has begun."""
        works = [self._prepare(number) for number in self._args.numbers]
        threads = [threading.Thread(target=self._insist, args=(work,), daemon=True) for work in works]
        print(json.dumps({"ready": True}), flush=True)
        for thread in threads:
            thread.start()
        tell_until_eof(lambda: {"counts": dict(self._counts)})
        self._stopping.set()
        for thread in threads:
            thread.join(120)
            self._count("stuck" if thread.is_alive() else "ended")
        tell({"counts": dict(self._counts), "wrong": self._wrong[:5], "last": True})
        return 0

    def _prepare(self, number: int) -> Callable[[], None]:
        chance = random.Random(f"{self._args.seed}/{number}")
        if number % 4 == 3:
            return Viewer(self, self._args, VISION_CUTS[number // 4 % len(VISION_CUTS)], chance)
        return Writer(self, self._args, LM_CUTS[number % len(LM_CUTS)], chance)

    def _insist(self, work: Callable[[], None]) -> None:
        while not self._stopping.is_set():
            try:
                work()
            except Exception as error:  # a bug of ours, which the report must show
                self._count(f"crashed: {type(error).__name__}: {error}"[:200])

    def _count(self, what: str, number: int = 1) -> None:
        with self._lock:
            self._counts[what] += number

    count = _count

    def compare(self, what: str, is_right: bool, facts: Any) -> None:
        """Notes a finished piece of work."""
        self._count(what)
        if not is_right:
            self._count(f"wrong {what}")
            self._wrong.append(facts)

    def rest(self, chance: random.Random) -> None:
        """As a slow device or reader does; not at all when the end has come."""
        self._stopping.wait(chance.uniform(0, 2 * self._args.pause))


class Writer:
    """One generation after the other, and each is compared."""

    _known: dict[str, list[tuple[list[int], tuple[int, ...]]]] = {}

    def __init__(self, clients: Clients, args: argparse.Namespace, cut: str, chance: random.Random) -> None:
        self._clients, self._chance, self._num_tokens = clients, chance, args.tokens
        head = LoadedDecoder.head("demo-lm", cut)  # of its own: a head is one device's
        plan = Plan(model=head.name, revision=head.revision, cut=cut, codec=LANGUAGE_CODEC)
        if cut not in self._known:
            self._known[cut] = known_texts(plan, head, args.tokens)
        self._texts = self._known[cut]
        self._client = DecoderClient([args.lm, args.lm], plan=plan, head=head)

    def __call__(self) -> None:
        """One text, begun again where the first step was refused."""
        prompt, expected = self._chance.choice(self._texts)
        heard = list[int]()

        def hear(token_id: int) -> None:
            heard.append(token_id)
            self._clients.rest(self._chance)

        try:
            made = self._client.generate(prompt, max_new_tokens=self._num_tokens, on_token=hear)
        except GenerationInterrupted as error:
            self._clients.count("lost generations")
            self._clients.count(f"lost: {error}"[:200])
            return
        except ServerlightError as error:  # no token was lost: it had not begun
            self._clients.count(f"not begun: {type(error).__name__}")
            return
        self._clients.count("recoveries", made.num_recoveries)
        self._clients.compare("generations", made.token_ids == expected == tuple(heard), [prompt, made.token_ids])


def known_texts(plan: Plan, head: LoadedDecoder, num_tokens: int) -> list[tuple[list[int], tuple[int, ...]]]:
    """Prompts and their greedy texts across the cut in one process, of which every token leads clearly."""
    loop = DecoderLoopback(plan, head, LoadedDecoder.tail("demo-lm", plan.cut))
    chance, texts = random.Random(plan.cut), list[tuple[list[int], tuple[int, ...]]]()
    while len(texts) < NUM_PROMPTS:
        length = PROMPT_TOKENS[1] if len(texts) == 0 else chance.randint(PROMPT_TOKENS[0], 24)
        prompt = [chance.randrange(head.part.vocab_size) for _ in range(length)]
        made = list(loop.stream(prompt, max_new_tokens=num_tokens, sampling=Sampling(logprobs=2)))
        if all(token.top_logprobs[0][1] - token.top_logprobs[1][1] > CLEAR_MARGIN for token in made):
            texts.append((prompt, tuple(token.token_id for token in made)))
    return texts


class Viewer:
    """Image after image over one connection, until it breaks; each answer is compared."""

    _shared: tuple[LoadedModel, Partition] | None = None
    _known: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {}

    def __init__(self, clients: Clients, args: argparse.Namespace, cut: str, chance: random.Random) -> None:
        if self._shared is None:
            model = load_model("demo-vision")
            type(self)._shared = model, partition(model.module, model.example_inputs)
        assert self._shared is not None
        self._clients, self._chance, self._address, self._client = clients, chance, args.vision, None
        model, self._parts = self._shared
        self._plan = Plan(model=model.name, revision=model.revision, cut=cut, codec=VISION_CODEC)
        if cut not in self._known:
            loop, images = Loopback(self._plan, self._parts), torch.rand(8, *model.example_inputs.shape[1:])
            self._known[cut] = [(image[None], loop.infer(image[None])) for image in images]
        self._pairs = self._known[cut]

    _client: Client | None

    def __call__(self) -> None:
        """One image, sent again on another stream where that breaks."""
        image, expected = self._chance.choice(self._pairs)
        for _ in range(TRIES):
            try:
                outputs = self._connected().infer(image, deadline_ms=DEADLINE_MS)
                break
            except ServerlightError as error:
                self._clients.count(f"sent again: {type(error).__name__}")
                self._leave()
                time.sleep(error.retry_after_ms / 1e3 if isinstance(error, ServerBusy) else 0.1)
        else:
            self._clients.count("lost images")
            return
        is_right = torch.allclose(outputs, expected, atol=VISION_ATOL) and outputs.argmax() == expected.argmax()
        self._clients.compare("images", bool(is_right), outputs.tolist())
        if self._chance.random() < 0.02:
            self._leave()  # devices come and go
        self._clients.rest(self._chance)

    def _connected(self) -> Client:
        if self._client is None:
            self._client = connect(self._address, plan=self._plan, model=self._parts)
        return self._client

    def _leave(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None


if __name__ == "__main__":
    sys.exit(main())
