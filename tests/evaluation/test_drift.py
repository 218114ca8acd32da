"""Tests of serverlight.evaluation.drift."""

from __future__ import annotations

import json
import lzma
import pathlib

import numpy as np
import pytest
import torch

transformers = pytest.importorskip("transformers")

from serverlight.apps.bench_plots import plot_drift  # noqa: E402
from serverlight.codec import CodecConfig  # noqa: E402
from serverlight.errors import ConfigError  # noqa: E402
from serverlight.evaluation.drift import (  # noqa: E402
    Crossing,
    CutModel,
    Drift,
    by_position,
    free_running,
    teacher_forced,
)
from serverlight.evaluation.drift_runs import Texts, measure_drift, read_text  # noqa: E402

HALVES, COARSE = CodecConfig(profile="fp16"), CodecConfig(sparsity=0.8)
UNCUT = Crossing(config=None)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> CutModel:
    """A tiny Llama of random weights, large enough ones that its predictions are not all alike."""
    path = tmp_path_factory.mktemp("models") / "tiny-llama"
    config = transformers.LlamaConfig(
        vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, initializer_range=0.3,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(3)
        transformers.LlamaForCausalLM(config).save_pretrained(path)
    return CutModel.load(str(path), "layers.2")


@pytest.fixture(scope="module")
def windows() -> torch.Tensor:
    return torch.randint(96, (3, 40), generator=torch.Generator().manual_seed(1))


def test_nothing_compressed_drifts_nowhere(model: CutModel, windows: torch.Tensor) -> None:
    """Without a codec there is no divergence at all, every choice agrees, and no byte is counted."""
    (drift,) = teacher_forced(model, windows, [UNCUT])
    assert drift.kl.shape == drift.agrees.shape == (3, 40)
    assert drift.kl.max() == 0
    assert drift.agrees.all()
    assert drift.bytes_per_token == 0


def test_one_pass_is_what_chunks_through_caches_give(model: CutModel, windows: torch.Tensor) -> None:
    """The whole text in one pass diverges as it does when the frames reach the tail one by one, as a server runs it."""
    crossing = Crossing(config=COARSE, chunk_tokens=16)
    (drift,) = teacher_forced(model, windows[:1], [crossing])
    front, back = model.head.new_cache(last=2), model.tail.new_cache(first=2)
    with torch.inference_mode():
        pieces = [
            model.tail(crossing.send(model.head(ids, front))[0], back) for ids in windows[:1].split(crossing.chunk_tokens, 1)
        ]  # fmt: skip
        log_q = torch.cat(pieces, 1)[0].double().log_softmax(-1)
        log_p = model.logits(model.states(windows[:1]))[0].double().log_softmax(-1)
    stepwise = (log_p.exp() * (log_p - log_q)).sum(-1)
    assert drift.kl[0] == pytest.approx(stepwise.numpy(), rel=1e-3, abs=1e-6)
    assert drift.kl.mean() > 1e-3


def test_more_bits_drift_less(model: CutModel, windows: torch.Tensor) -> None:
    """Halves cost 16 bits an element and lose next to nothing; a coarse setting costs less and loses more."""
    halves, coarse = teacher_forced(model, windows, [Crossing(config=HALVES), Crossing(config=COARSE)])
    assert halves.kl.mean() < 1e-4 < coarse.kl.mean()
    assert 16 < halves.bits_per_element < 22
    assert coarse.bits_per_element < halves.bits_per_element / 2
    assert halves.bytes_per_token == pytest.approx(halves.bits_per_element * 32 / 8)


def test_a_frame_of_many_tokens_has_one_header(model: CutModel, windows: torch.Tensor) -> None:
    """At the same settings, frames of 16 tokens take fewer bytes than frames of one: 40 tokens are 3 frames, not 40."""
    single, many = teacher_forced(model, windows, [Crossing(config=HALVES), Crossing(config=HALVES, chunk_tokens=16)])
    per_frame = single.bytes_per_token - 64
    assert many.bytes_per_token == pytest.approx(64 + per_frame * 3 / 40, abs=0.2)
    assert (many.kl == single.kl).all()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_free_run_without_a_codec_is_the_models_own(model: CutModel, windows: torch.Tensor, temperature: float) -> None:
    """Halves write what the uncut model writes, also by luck, as long as the luck is the same."""
    runs = [
        free_running(model, windows[:, :5], crossing, num_tokens=30, temperature=temperature)
        for crossing in (UNCUT, Crossing(config=HALVES))
    ]
    assert (runs[0].tokens == runs[1].tokens).mean() > 0.9  # random weights may leave two tokens as good as equal
    assert runs[0].drift.kl.max() == 0
    other = free_running(model, windows[:, :5], UNCUT, num_tokens=30, temperature=temperature, seed=1)
    assert bool((other.tokens == runs[0].tokens).all()) is (temperature == 0)


def test_greedy_text_is_that_of_generate(model: CutModel, windows: torch.Tensor) -> None:
    """The uncut run writes the tokens that one forward pass over them would choose."""
    run = free_running(model, windows[:1, :5], UNCUT, num_tokens=20)
    text = torch.cat([windows[0, :5], torch.from_numpy(run.tokens[0])])[None]
    assert model.logits(model.states(text))[0, 4:-1].argmax(-1).tolist() == run.tokens[0].tolist()


def test_own_text_is_judged_by_the_uncut_model(model: CutModel, windows: torch.Tensor) -> None:
    """Drift of a free run is that of the same tokens read with a teacher: each text token crossed alone."""
    crossing = Crossing(config=COARSE)
    run = free_running(model, windows[:1, :1], crossing, num_tokens=20)
    text = torch.cat([windows[0, :1], torch.from_numpy(run.tokens[0])])[None]
    (forced,) = teacher_forced(model, text[:, :-1], [crossing])
    assert run.drift.kl == pytest.approx(forced.kl, rel=1e-3, abs=1e-6)
    assert run.drift.bytes_per_token == pytest.approx(forced.bytes_per_token)


def test_texts_are_written_apart(model: CutModel, windows: torch.Tensor) -> None:
    """Side by side, each text has frames of its own: bytes are the mean of what each costs alone."""
    crossing = Crossing(config=COARSE)
    together = free_running(model, windows[:2, :5], crossing, num_tokens=6)
    alone = [free_running(model, windows[i : i + 1, :5], crossing, num_tokens=6) for i in range(2)]
    assert together.drift.bytes_per_token == pytest.approx(
        np.mean([run.drift.bytes_per_token for run in alone]), rel=0.02
    )
    assert together.drift.kl == pytest.approx(np.concatenate([run.drift.kl for run in alone]), rel=1e-3, abs=1e-6)


def test_intervals_are_over_texts() -> None:
    """Texts that all drift alike leave no doubt about a mean, however it changes within them; positions count from 1."""
    kl = np.tile(np.arange(8.0), (5, 1))
    drift = Drift(kl=kl, agrees=kl < 4, bits_per_element=1, bytes_per_token=1)
    first, second = by_position(drift, [1, 5, 9])
    assert (first.first, first.last, first.kl, first.kl_interval) == (1, 4, 1.5, (1.5, 1.5))
    assert (second.kl, second.agreement, second.agreement_interval) == (5.5, 0.0, (0.0, 0.0))


def test_nothing_to_measure(model: CutModel) -> None:
    """Without texts the error names the argument."""
    with pytest.raises(ConfigError, match="windows"):
        teacher_forced(model, torch.zeros(0, 5, dtype=torch.int64), [UNCUT])
    with pytest.raises(ConfigError, match="prompts"):
        free_running(model, torch.zeros(5, dtype=torch.int64), UNCUT, num_tokens=3)


def test_plot(tmp_path: pathlib.Path) -> None:
    """The figure is drawn from rows as the benchmark writes them, with and without texts of their own."""
    bucket = {"first": 1, "last": 8, "kl": 0.1, "kl_interval": (0.05, 0.2)}
    row = {"title": "x", "chunk_tokens": 1, "bytes_per_token": 60.0, "kl": 0.1, "positions": [bucket]}
    drawn = {"first_difference": [3, None], "positions": [bucket]}
    rows = [
        {"title": "full server", "config": None},
        {**row, "config": {"profile": "serverlight"}, "drawn": drawn},
        {**row, "config": {"profile": "slicer"}, "chunk_tokens": 128},
    ]
    plot_drift(rows, str(tmp_path / "drift.png"))
    assert (tmp_path / "drift.png").read_bytes().startswith(b"\x89PNG")


def test_rows_of_a_drift(model: CutModel) -> None:
    """There is a row for a full server, for halves, and for each profile at each rate that it can reach, near that rate."""
    texts = Texts.draw([list(range(96)) * 3], tokens=32, num_windows=2, num_prompts=2)
    rows = measure_drift(model, texts, rates=(4.0,), chunks=(1, 16), num_tokens=4)
    json.dumps(rows)
    assert [row["title"] for row in rows[:3]] == ["full server, token ids", "fp16", "fp16"]
    coded = [row for row in rows if row["wanted_bits"]]
    assert {row["chunk_tokens"] for row in coded} <= {1, 16}
    assert all(("greedy" in row) is (row["chunk_tokens"] == 1) for row in rows[1:])
    assert all(abs(row["bits_per_element"] / row["wanted_bits"] - 1) < 0.35 for row in coded)


def test_too_little_text_is_an_error() -> None:
    """Pieces are never used twice; where there are too few, the error says how many there are."""
    with pytest.raises(ConfigError, match="6 pieces of 32 tokens wanted, 3 are there"):
        Texts.draw([list(range(96))], tokens=32, num_windows=2, num_prompts=2)


def test_texts_are_read_as_they_come(tmp_path: pathlib.Path) -> None:
    """Plain, compressed and line by line; the shipped one where none is named; a file of another kind is an error."""
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "b.txt.xz").write_bytes(lzma.compress(b"two"))
    (tmp_path / "c.jsonl").write_text('{"text": "three"}\n{"text": "four"}\n')
    (tmp_path / "d.txt.xz").write_text("five")
    read = [read_text(tmp_path / name) for name in ("a.txt", "b.txt.xz", "c.jsonl")]
    assert read == ["one", "two", "three\nfour"]
    assert len(read_text(None)) > 1000
    with pytest.raises(ConfigError, match="texts: cannot read"):
        read_text(tmp_path / "d.txt.xz")
