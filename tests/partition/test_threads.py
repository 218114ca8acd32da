"""Several threads with one part, and several that load parts at once."""

from __future__ import annotations

import pathlib
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import pytest
import torch

pytest.importorskip("transformers")

from serverlight.generation import LANGUAGE_CODEC, DecoderLoopback, LoadedDecoder
from serverlight.plan import Plan

NUM_THREADS = 4
CUT = "layers.2"
PROMPTS = [[1 + n, 60, 3 * n, 7] for n in range(NUM_THREADS)]

_T = TypeVar("_T")


@pytest.fixture
def eager_threads() -> Iterator[None]:
    """Threads that take turns far more often than they would."""
    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval_s)


def at_once(work: Callable[[int], _T]) -> list[_T]:
    """Does it in all threads, which begin together."""
    barrier = threading.Barrier(NUM_THREADS)

    def begin(number: int) -> _T:
        barrier.wait()
        return work(number)

    with ThreadPoolExecutor(NUM_THREADS) as pool:
        return list(pool.map(begin, range(NUM_THREADS)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny Llama of random weights."""
    import transformers

    path: pathlib.Path = tmp_path_factory.mktemp("models") / "tiny-llama"
    config = transformers.LlamaConfig(
        vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(3)
        transformers.LlamaForCausalLM(config).save_pretrained(path)
    return str(path)


def loopback(head: LoadedDecoder, tail: LoadedDecoder) -> DecoderLoopback:
    return DecoderLoopback(Plan(model=head.name, revision=head.revision, cut=CUT, codec=LANGUAGE_CODEC), head, tail)


def test_threads_share_one_part(folder: str, eager_threads: None) -> None:
    """Threads that generate at once with the same head and tail get the tokens that each gets alone."""
    both = loopback(LoadedDecoder.head(folder, CUT), LoadedDecoder.tail(folder, CUT))

    def write(number: int) -> tuple[int, ...]:
        return both.generate(PROMPTS[number], max_new_tokens=24)

    assert at_once(write) == [write(number) for number in range(NUM_THREADS)]


def test_threads_load_at_once(folder: str, eager_threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts that threads load at once are whole, even where nobody has looked at the architecture before."""
    from serverlight.partition import self_check

    monkeypatch.setattr(self_check, "_known", {})
    default_dtype = torch.get_default_dtype()

    def load(number: int) -> tuple[LoadedDecoder, LoadedDecoder]:
        dtype: Any = torch.float64 if number == 0 else torch.float32  # loading sets a default for the whole process
        return LoadedDecoder.head(folder, CUT, dtype=dtype), LoadedDecoder.tail(folder, CUT, dtype=dtype)

    loaded = at_once(load)
    assert torch.get_default_dtype() == default_dtype
    assert [head.part.dtype for head, _ in loaded] == [torch.float64] + [torch.float32] * (NUM_THREADS - 1)
    alone = loopback(LoadedDecoder.head(folder, CUT), LoadedDecoder.tail(folder, CUT))
    for head, tail in loaded[1:]:
        assert loopback(head, tail).generate(PROMPTS[0], max_new_tokens=8) == alone.generate(
            PROMPTS[0], max_new_tokens=8
        )
