"""Tables of qualities: full ones say what the oracle says, sampled ones keep to their budget and tell how wrong they are."""

from __future__ import annotations

import dataclasses
import itertools
import pathlib
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from serverlight.codec import Codec, CodecConfig
from serverlight.errors import ConfigError, CutNotFound
from serverlight.generation import CHUNK_TOKENS, LoadedDecoder
from serverlight.loopback import Loopback
from serverlight.models import LoadedModel
from serverlight.plan import Plan
from serverlight.search import crossings
from serverlight.search.calibrate import calibrate_table
from serverlight.search.grid import candidate_configs
from serverlight.search.quality import QualityTable

NUM = 60
GRID = (
    *(CodecConfig(sparsity=s, distortion=d) for s in (0.3, 0.5, 0.7, 0.8, 0.9, 0.95) for d in (None, 0.15, 0.5)),
    CodecConfig(profile="slicer", sparsity=0.5, num_groups=2),
    CodecConfig(profile="slicer", sparsity=0.8, num_groups=4),
)


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.Flatten(), nn.Linear(8 * 64, 10)
        )
    return LoadedModel.of("tiny", network, torch.zeros(2, 3, 8, 8))


@pytest.fixture(scope="module")
def samples() -> torch.Tensor:
    return torch.randn(NUM, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def full(model: LoadedModel, samples: torch.Tensor) -> QualityTable:
    return calibrate_table(model, samples, cuts=("1", "2"), configs=GRID, budget=None)


@pytest.fixture(scope="module")
def sampled(model: LoadedModel, samples: torch.Tensor) -> QualityTable:
    return calibrate_table(model, samples, cuts=("1", "2"), configs=GRID, budget=0.25)


def test_full_table_says_what_the_oracle_says(model: LoadedModel, samples: torch.Tensor, full: QualityTable) -> None:
    """Bytes and agreement of a measured row are those of Loopback, and nothing is predicted."""
    row = next(row for row in full.rows if row.cut == "2" and row.codec == GRID[9])
    plan = Plan(model=model.name, revision=model.revision, cut="2", codec=row.codec)
    loopback = Loopback(plan, model)
    with torch.inference_mode():
        runs = [(loopback.infer_detailed(x), model.module(x)) for x in torch.split(samples, 1)]
    agreement = np.mean([int(run.outputs.argmax()) == int(uncut.argmax()) for run, uncut in runs])
    num_bytes = np.mean([run.frame_bytes for run, _ in runs])
    assert row.frame_bytes == pytest.approx(num_bytes)
    assert row.bits_per_element == pytest.approx(8 * num_bytes / (8 * 64))
    assert row.loss_pp == pytest.approx(100 * (1 - agreement))
    assert all(row.is_measured for row in full.rows)
    assert (full.held_out_error_pp, full.held_out_error_bits, full.tail_share) == (None, None, 1.0)


def test_measured_rows_of_a_sampled_table_are_those_of_the_full_one(full: QualityTable, sampled: QualityTable) -> None:
    """Looking first and running the rest later changes nothing but the order of sums."""
    truth = {(row.cut, row.codec): row for row in full.rows}
    measured = [row for row in sampled.rows if row.is_measured]
    assert measured
    for row in measured:
        other = truth[row.cut, row.codec]
        assert (row.frame_bytes, row.loss_pp) == (pytest.approx(other.frame_bytes), pytest.approx(other.loss_pp))
        assert row.kl == pytest.approx(other.kl, rel=1e-4, abs=1e-9)


def test_sampled_table_keeps_to_its_budget(sampled: QualityTable) -> None:
    """A quarter of the tail runs is all it takes, every pair has its row, and the error on held-out rows is told."""
    assert sampled.tail_share is not None
    assert sampled.tail_share <= 0.25
    assert len(sampled.rows) == 2 * len(GRID)
    assert sampled.held_out_error_pp is not None
    assert sampled.held_out_error_bits is not None
    assert 0 <= sampled.held_out_error_bits < 0.1


def test_predictions_are_near_what_was_not_run(full: QualityTable, sampled: QualityTable) -> None:
    """Bits within 3 % (median), and most intervals cover the loss that a full run shows."""
    truth = {(row.cut, row.codec): row for row in full.rows}
    pairs = [(row, truth[row.cut, row.codec]) for row in sampled.rows if not row.is_measured]
    assert np.median([abs(row.bits_per_element / other.bits_per_element - 1) for row, other in pairs]) < 0.03
    covered = [row.loss_interval_pp[0] <= other.loss_pp <= row.loss_interval_pp[1] for row, other in pairs]
    assert np.mean(covered) >= 0.8


def test_measured_intervals_hold_their_loss(full: QualityTable) -> None:
    """The loss lies in its own interval; where no sample differs the upper end is that of the rule of three."""
    for row in full.rows:
        assert row.loss_interval_pp[0] <= row.loss_pp <= row.loss_interval_pp[1]
        if row.loss_pp == 0:
            assert row.loss_interval_pp[1] == pytest.approx(100 * 3 / NUM)


def test_same_seed_same_table(model: LoadedModel, samples: torch.Tensor, sampled: QualityTable) -> None:
    """Nothing but the seed decides what is looked at and what is held out."""
    again = calibrate_table(model, samples, cuts=("1", "2"), configs=GRID, budget=0.25)
    assert again == sampled
    other = calibrate_table(model, samples, cuts=("1", "2"), configs=GRID, budget=0.25, seed=1)
    assert other != sampled


def test_labels_make_it_accuracy(model: LoadedModel, samples: torch.Tensor) -> None:
    """With labels the loss is that of accuracy: wrong answers that change to other wrong ones cost nothing."""
    with torch.inference_mode():
        right = model.module(samples).argmax(-1)
    labels = [int(label) if i % 2 else (int(label) + 1) % 10 for i, label in enumerate(right)]
    arguments: dict[str, Any] = {"cuts": ("2",), "configs": [CodecConfig(sparsity=0.97)], "budget": None}
    judged = calibrate_table(model, samples, labels=labels, **arguments)
    agreed = calibrate_table(model, samples, **arguments)
    assert (judged.metric, agreed.metric) == ("accuracy", "agreement")
    assert 0 < judged.rows[0].loss_pp < agreed.rows[0].loss_pp
    assert judged.rows[0].kl == agreed.rows[0].kl


def test_knobs_that_do_nothing_are_not_run(model: LoadedModel, samples: torch.Tensor) -> None:
    """Behind a ReLU no element is negative: settings that differ in asymmetry alone are one row there, and two before it."""
    configs = [CodecConfig(sparsity=0.5), CodecConfig(sparsity=0.5, asymmetry=0.7)]
    table = calibrate_table(model, samples, cuts=("0", "1"), configs=configs, budget=None)
    assert [(row.cut, row.codec.asymmetry) for row in table.rows] == [("0", 1.0), ("0", 0.7), ("1", 1.0)]


def test_default_grid_searches_every_knob() -> None:
    """Sparsity, asymmetry, groups, distortion and both profiles are searched, and no setting is named twice."""
    for kind in ("single-shot", "language-model"):
        configs = candidate_configs(kind)  # type: ignore[arg-type]
        assert len(set(configs)) == len(configs)
        forms = ("transform", "bias_correction") if kind == "single-shot" else ()
        for field in ("profile", "sparsity", "asymmetry", "num_groups", "distortion", *forms):
            assert len({getattr(config, field) for config in configs}) > 1
        assert {config.num_groups for config in configs if config.profile == "serverlight"} == {1}


def test_features_that_do_not_fit_are_made_anew(
    model: LoadedModel, samples: torch.Tensor, sampled: QualityTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without room to keep features and outputs the table is the same."""
    monkeypatch.setattr(crossings.Kept.__init__, "__defaults__", (0,))
    again = calibrate_table(model, samples, cuts=("1", "2"), configs=GRID, budget=0.25)
    for row, other in zip(again.rows, sampled.rows, strict=True):
        assert (row.codec, row.frame_bytes) == (other.codec, other.frame_bytes)
        assert row.kl == pytest.approx(other.kl, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize(
    ("field", "arguments"),
    [
        ("samples", {"samples": []}),
        ("labels", {"labels": [1, 2]}),
        ("budget", {"budget": 0.0}),
        ("budget", {"budget": 1.5}),
        ("cuts", {"cuts": ()}),
        ("cuts", {"cuts": ("1", "1")}),
        ("configs", {"configs": ()}),
    ],
)
def test_bad_arguments_are_named(
    model: LoadedModel, samples: torch.Tensor, field: str, arguments: dict[str, Any]
) -> None:
    """What cannot be calibrated is refused by the name of the argument."""
    given = {"samples": samples, "cuts": ("1",), "configs": GRID, **arguments}
    with pytest.raises(ConfigError, match=field):
        calibrate_table(model, given.pop("samples"), **given)


def test_unknown_cut_is_named(model: LoadedModel, samples: torch.Tensor) -> None:
    """A cut that the model does not have is refused."""
    with pytest.raises(CutNotFound, match="nowhere"):
        calibrate_table(model, samples, cuts=("nowhere",), configs=GRID)


def test_front_has_no_row_that_another_beats(full: QualityTable) -> None:
    """Along each cut's front more bits buy less divergence, and every other row is beaten by one of it."""
    front = full.front()
    for cut in ("1", "2"):
        rows = [row for row in front if row.cut == cut]
        assert all(a.bits_per_element < b.bits_per_element and a.kl > b.kl for a, b in itertools.pairwise(rows))
        for row in full.rows:
            if row.cut == cut:
                assert any(best.bits_per_element <= row.bits_per_element and best.kl <= row.kl for best in rows)


# -- language models ---------------------------------------------------------------------------------------------

TOKENS = 40


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> tuple[LoadedDecoder, LoadedDecoder]:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=6, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("llama")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = transformers.LlamaForCausalLM(config).requires_grad_(False)
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
        network.save_pretrained(folder)
    return LoadedDecoder.head(str(folder), "layers.4"), LoadedDecoder.tail(str(folder), "layers.2")


@pytest.fixture(scope="module")
def texts() -> list[list[int]]:
    return torch.randint(3, 96, (6, TOKENS), generator=torch.Generator().manual_seed(0)).tolist()


@pytest.fixture(scope="module")
def language(decoder: Any, texts: list[list[int]]) -> QualityTable:
    configs = [CodecConfig(sparsity=s) for s in (0.1, 0.4, 0.8)]
    return calibrate_table(decoder, texts, cuts=("layers.2", "layers.4"), configs=configs, budget=None)


def test_frames_of_a_language_model_hold_a_token(decoder: Any, texts: list[list[int]], language: QualityTable) -> None:
    """Bytes are of frames of one token as decode steps send them, and bits of a prompt are those of its chunks."""
    head = decoder[0].part
    row = language.rows[1]
    codec = Codec(row.codec)
    steps, prompt = 0, 0
    for text in texts:
        states = head(torch.tensor([text]), head.new_cache(last=2))
        steps += sum(len(codec.encode(state)) for state in torch.split(states, 1, 1))
        prompt += sum(len(codec.encode(piece)) for piece in torch.split(states, CHUNK_TOKENS, 1))
    assert row.frame_bytes == pytest.approx(steps / (6 * TOKENS))
    assert row.bits_per_element == pytest.approx(8 * steps / (6 * TOKENS * head.hidden_size))
    assert row.prompt_bits_per_element == pytest.approx(8 * prompt / (6 * TOKENS * head.hidden_size))
    assert row.prompt_bits_per_element < row.bits_per_element


def test_loss_over_tokens(language: QualityTable) -> None:
    """Over the length of the texts the loss is the row's, over the first bucket its own, and beyond the texts it tends to the
    last bucket's.
    """
    assert language.position_edges == (0, 16, 32, TOKENS)
    for row in language.rows:
        assert language.loss_over(row, TOKENS) == pytest.approx(row.loss_pp)
        assert language.loss_over(row, 16) == pytest.approx(row.loss_by_position_pp[0])
        assert language.loss_over(row, 10**9) == pytest.approx(row.loss_by_position_pp[-1], abs=1e-3)


def test_sparser_states_lose_more(language: QualityTable) -> None:
    """Divergence rises and bits fall with the sparsity, at every cut."""
    for cut in ("layers.2", "layers.4"):
        rows = [row for row in language.rows if row.cut == cut]
        assert [row.kl for row in rows] == sorted(row.kl for row in rows)
        assert [row.bits_per_element for row in rows] == sorted((row.bits_per_element for row in rows), reverse=True)


def test_texts_of_unlike_length(decoder: Any, texts: list[list[int]]) -> None:
    """Shorter texts count as samples of their own, and are not padded with anything."""
    ragged = [text[: 8 + 5 * i] for i, text in enumerate(texts)]
    config = CodecConfig(sparsity=0.5)
    table = calibrate_table(decoder, ragged, cuts=("layers.2",), configs=[config], budget=None)
    alone = [
        calibrate_table(decoder, [text], cuts=("layers.2",), configs=[config], budget=None).rows[0] for text in ragged
    ]
    assert table.rows[0].kl == pytest.approx(np.mean([row.kl for row in alone]))
    assert table.rows[0].loss_pp == pytest.approx(np.mean([row.loss_pp for row in alone]))


def test_file_keeps_everything(language: QualityTable, sampled: QualityTable, tmp_path: pathlib.Path) -> None:
    """A table is read as it was written; one without the fields that came later is read too."""
    for table in (language, sampled):
        table.save(tmp_path / "quality.json")
        assert QualityTable.load(tmp_path / "quality.json") == table
    old = {key: value for key, value in sampled.to_dict().items() if key not in ("tail_share", "position_edges")}
    old["rows"] = [{k: v for k, v in row.items() if k != "loss_by_position_pp"} for row in old["rows"]]
    assert QualityTable.from_dict(old) == dataclasses.replace(sampled, tail_share=None)


@pytest.mark.parametrize(("field", "arguments"), [("labels", {"labels": [0] * 6}), ("samples", {"samples": [[]]})])
def test_bad_arguments_of_language_models(decoder: Any, texts: Any, field: str, arguments: dict[str, Any]) -> None:
    """Labels and empty texts are refused by name."""
    given = {"samples": texts, "cuts": ("layers.2",), **arguments}
    with pytest.raises(ConfigError, match=field):
        calibrate_table(decoder, given.pop("samples"), **given)


def test_cut_outside_the_parts_is_refused(decoder: Any, texts: list[list[int]]) -> None:
    """A cut whose layers neither part has is an error, not a wrong table."""
    with pytest.raises(ConfigError, match="layers"):
        calibrate_table(decoder, texts, cuts=("layers.5",), configs=GRID[:1])
