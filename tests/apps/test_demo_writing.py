"""``serverlight demo`` with a language model: real processes on a tiny one, and the arithmetic on made-up figures."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable
from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

from serverlight.apps.demo.language import FULL, MODES, LanguageSetup, Text  # noqa: E402
from serverlight.apps.demo.language_report import summarise, writing_cells, writing_rows  # noqa: E402
from serverlight.apps.demo.modes import DEVICE, FP16, OURS, SLICER  # noqa: E402
from serverlight.apps.demo.writing import WholeModel  # noqa: E402

Cli = Callable[..., Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, save_byte_llama: Callable[..., str]) -> str:
    """A tiny Llama of random weights with a tokenizer of bytes."""
    path = tmp_path_factory.mktemp("models") / "tiny-llama"
    return save_byte_llama(
        path, hidden_size=32, intermediate_size=48, max_position_embeddings=128, initializer_range=0.3
    )


def test_small_demo(cli: Cli, folder: str, tmp_path: pathlib.Path) -> None:
    """Real servers over an imitated link: every mode has its row, and the rows make sense."""
    path = tmp_path / "d.json"
    words = ["--limit", "2", "--tokens", "12", "--link", "100mbit,1ms", "--json", str(path)]
    outcome = cli("demo", folder, *words)
    assert (outcome.code, outcome.err) == (0, "")
    document = json.loads(path.read_text())
    assert {"date", "versions", "hardware", "settings"} <= set(document)
    assert (document["settings"]["cut"], document["settings"]["link"]) == ("layers.2", "100mbit,1ms")
    rows = {row["mode"]: row for row in document["rows"]}
    assert list(rows) == list(MODES)
    assert {row["tokens"] for row in rows.values()} == {24}
    assert rows[DEVICE]["agreement"] == rows[FULL]["agreement"] == rows[FP16]["agreement"] == 1
    assert rows[DEVICE]["agreement_own_text"] == 1
    assert rows[FULL]["uplink_bytes_per_token"] == (2 * 8 + 2 * document["settings"]["prompt_tokens"]) / 24
    assert 64 < rows[FP16]["uplink_bytes_per_step"] <= 64 + 14 + 64  # halves, the frame's header, message and HTTP/2
    assert rows[SLICER]["uplink_bytes_per_step"] < rows[FP16]["uplink_bytes_per_step"]
    assert rows[DEVICE]["uplink_bytes_per_token"] == rows[DEVICE]["server_cpu_ms_per_token"] == 0
    for row in document["rows"]:
        assert 0 < row["token_ms_p50"] <= row["token_ms_p95"]
        assert row["mode"] == DEVICE or 0 < row["server_cpu_ms_per_token"] < 1000
    assert all(rows[mode]["token_ms_p50"] > 2 for mode in (FP16, SLICER, OURS))  # there and back over the link
    assert all(title in outcome.out for title in ("full server, token ids", "layers.2, SLICER", "all on the device"))


def test_whole_model_writes_what_generate_writes(folder: str) -> None:
    """The text that all others are compared with is the one that transformers generates."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = torch.tensor([[5, 9, 33, 71]])
    wanted = {"do_sample": False, "max_new_tokens": 20, "min_new_tokens": 20, "pad_token_id": 0}
    expected = model.generate(ids, attention_mask=torch.ones_like(ids), **wanted)[0, 4:].tolist()
    assert list(WholeModel.load(folder).write(ids[0].tolist(), 20)) == expected


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--cut", "layers.0"], "layers.1 to layers.3"),
        (["--cut", "layers.1", "--cut", "layers.2"], "shown at one cut"),
        (["--cut", "layers.9"], "layers.1 to layers.3"),
        (["--data", "demo-vision"], "leave it away"),
        (["--tokens", "500"], "128"),
    ],
)
def test_wrong_input(cli: Cli, folder: str, words: list[str], message: str) -> None:
    """What a language model cannot be shown with is one line that says so."""
    outcome = cli("demo", folder, *words)
    assert outcome.code == 2
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("\n") == 1
    assert message in outcome.err


# -- the arithmetic, on made-up figures ------------------------------------------------------------


def text(tokens: list[int], *, num_bytes: int, cpu_ms: float, second: float) -> Text:
    return Text(
        token_ids=tokens, num_likeliest=3, seconds=[second] * 4, uplink_bytes=num_bytes, step_bytes=num_bytes // 2, device_ms=4.0,
        server_cpu_ms=cpu_ms,
    )  # fmt: skip


def test_rows_and_what_they_say() -> None:
    """Bytes and milliseconds are shares of the tokens written; agreement is by place; a row says on what it loses."""
    right, wrong = [1, 2, 3, 4], [1, 2, 9, 4]
    texts = {
        FULL: [text(right, num_bytes=8, cpu_ms=16, second=0.1)],
        FP16: [text(right, num_bytes=400, cpu_ms=8, second=0.2)],
        SLICER: [text(wrong, num_bytes=100, cpu_ms=20, second=0.2)],
        OURS: [text(right, num_bytes=40, cpu_ms=8, second=0.05)],
        DEVICE: [text(right, num_bytes=0, cpu_ms=0, second=0.1)],
    }
    setup = LanguageSetup(
        model="m", revision="r", cut="layers.2", vocab_size=99, prompts=[[1]], num_tokens=4, link=None
    )
    rows = writing_rows(texts, setup)
    full, halves, slicer, ours, device = rows
    assert (full.uplink_bytes_per_token, full.tokens_per_s, full.cut) == (2, 10, None)
    assert (halves.ratio_vs_fp16, ours.ratio_vs_fp16, device.ratio_vs_fp16) == (1, 10, None)
    assert (ours.server_time_ratio_vs_full, slicer.server_time_ratio_vs_full) == (2, pytest.approx(0.8))
    assert (slicer.agreement, slicer.same_texts, slicer.first_difference) == (0.75, 0, 3)
    assert ours.agreement_own_text == 0.75
    assert (ours.agreement, ours.same_texts, ours.first_difference) == (1, 1, None)
    assert [cells[1] for cells in writing_cells(rows)] == ["", "", "bytes, server, speed, text", "bytes", ""]
    said = summarise(rows)
    assert "10.0x fewer bytes than plain halves" in said
    assert "5.0x more than token ids" in said
    assert "2.0x less of the server's time" in said
