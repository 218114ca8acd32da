"""Profiles of tiny models, measured: what they hold, not how long anything took."""

from __future__ import annotations

import functools
import pathlib
import textwrap

import pytest
import torch
from torch import nn

from serverlight.errors import ConfigError
from serverlight.models import LoadedModel
from serverlight.partition import partition
from serverlight.search import language_rehearsal, measure, profile_model, rehearsal
from serverlight.search.codec_cost import measure_codec
from serverlight.search.profile import Profile
from serverlight.search.profile_cache import CACHE_VARIABLE, ProfileCache
from serverlight.search.single_shot import candidate_cuts, measure_single_shot, peak_bytes
from serverlight.search.steady import CoreWatch

TINY = """
    import torch
    from torch import nn

    def make():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)), torch.zeros(2, 1, 8, 8)
"""


@pytest.fixture(autouse=True)
def in_brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """As all measurements, but fewer of each, since nothing is said of times here."""
    monkeypatch.setattr(measure, "CoreWatch", functools.partial(CoreWatch, patience_s=1.0))
    monkeypatch.setattr(measure, "measure_codec", functools.partial(measure_codec, budget_s=0.5))
    monkeypatch.setattr(measure, "OTHERS_S", 0.5)
    for module in (rehearsal, language_rehearsal):
        monkeypatch.setattr(module, "REST_S", 0.01)
    monkeypatch.setattr(rehearsal, "ROUNDS", 6)
    monkeypatch.setattr(language_rehearsal, "TEXTS", 2)
    monkeypatch.setattr(language_rehearsal, "STEPS", 6)


@pytest.fixture
def tiny(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A model of the user's own, which the rehearsal's server must find too."""
    (tmp_path / "tiny_profiled.py").write_text(textwrap.dedent(TINY))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return "tiny_profiled:make"


def test_a_profile_of_a_single_shot_model(tiny: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every cut has its times and bytes; progress ends with the last step; the second time it is read, not measured."""
    told = list[tuple[int, int]]()
    threads = torch.get_num_threads()
    found = profile_model(tiny, on="device", progress=lambda done, total: told.append((done, total)))
    assert torch.get_num_threads() == threads
    assert told[0][0] == 0
    assert told[-1][0] == told[-1][1] == len(told) - 1
    assert [cut.name for cut in found.cuts] == ["input", "0", "1", "2", "output"]
    assert (found.kind, found.machine["side"], found.dtype) == ("single-shot", "device", "float32")
    assert found.weight_bytes == 4 * (4 * 9 + 4 + 144 * 5 + 5)
    assert [cut.elements for cut in found.cuts] == [64, 144, 144, 144, 5]
    for cut in found.cuts:
        assert cut.head_weight_bytes + cut.tail_weight_bytes == found.weight_bytes
        assert cut.head.ms() > 0 < cut.tail.ms()
    assert found.codec.encode.ms(rows=100) > found.codec.encode.ms(rows=1) > 0
    assert found.other_codecs.keys() == {"slicer", "cosine", "corrected"}
    assert found.message.latency.ms() > 0 < found.message.server.ms()
    found.save(tmp_path / "profile.json")
    assert Profile.load(tmp_path / "profile.json") == found

    monkeypatch.setattr("serverlight.search.measure.measure_codec", lambda *_, **__: pytest.fail("measured again"))
    assert profile_model(tiny, on="device") == found
    with pytest.raises(pytest.fail.Exception):
        profile_model(tiny, on="device", fresh=True)


def test_sides_are_two() -> None:
    """A machine is a device or a server."""
    with pytest.raises(ConfigError, match="on: must be device or server"):
        profile_model("demo-vision", on="cloud")  # type: ignore[arg-type]


def test_batches_are_announced_one_by_one() -> None:
    """Side inputs are counted in bytes, not in elements; each batch size is a step."""

    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            hidden = self.first(x).masked_fill(mask == 0, 0.0)
            return self.second(hidden).masked_fill(mask == 0, 0.0)

    model = LoadedModel.of("masked", Masked(), (torch.zeros(2, 8), torch.ones(2, 8, dtype=torch.int64)))
    parts = partition(model.module, model.example_inputs)
    steps = list[None]()
    cuts = measure_single_shot(model, parts, batches=(1, 2), budget_s=0.0, advance=lambda: steps.append(None))
    assert len(steps) == 2
    by_name = {cut.name: cut for cut in cuts}
    assert (by_name["first"].elements, by_name["first"].side_bytes) == (8, 8 * 8)
    assert (by_name["output"].elements, by_name["output"].side_bytes) == (8, 0)


def test_activations_are_those_of_two_neighbours() -> None:
    """While an operation runs, what it reads and what it makes are both there."""
    module = nn.Sequential(nn.Linear(8, 100), nn.ReLU(), nn.Linear(100, 2))
    parts = partition(module, torch.zeros(2, 8))
    assert [peak_bytes(parts, cut) for cut in candidate_cuts(parts)] == [4 * 8, 4 * 108, 4 * 200, 4 * 200]


def test_a_profile_of_a_language_model(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cut before each layer, one behind the last, and one with all on the device; weights and caches add up."""
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(1)
    model = transformers.LlamaForCausalLM(config)
    model.save_pretrained(tmp_path / "llama")
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    found = profile_model(str(tmp_path / "llama"), on="device")
    assert [cut.name for cut in found.cuts] == ["layers.0", "layers.1", "layers.2", "output"]
    assert (found.kind, found.dtype) == ("language-model", "float32")
    assert found.weight_bytes == sum(parameter.nbytes for parameter in model.parameters())
    assert {cut.elements for cut in found.cuts[:-1]} == {32}
    assert [cut.head_kv_bytes for cut in found.cuts] == [0, 2 * 2 * 8 * 4, 2 * 2 * 2 * 8 * 4, 2 * 2 * 2 * 8 * 4]
    assert len({cut.head_kv_bytes + cut.tail_kv_bytes for cut in found.cuts}) == 1
    embeddings = 4 * 50 * 32
    assert found.cuts[0].head_weight_bytes == embeddings
    for cut in found.cuts[:-1]:  # tied: both sides hold the embeddings
        assert cut.head_weight_bytes + cut.tail_weight_bytes == found.weight_bytes + embeddings
    assert found.cuts[-1].head_weight_bytes == found.weight_bytes
    assert found.cuts[-1].tail.ms(rows=8) == 0
    assert all(cut.head.ms(context=16) > 0 for cut in found.cuts)


def test_cache_forgets_nothing_and_believes_no_damage(tmp_path: pathlib.Path, tiny: str) -> None:
    """A profile is found under its own key alone; a damaged file counts as none."""
    cache, key = ProfileCache(tmp_path / "kept"), {"model": "a/b", "revision": "0f", "cpu": "x"}
    made = profile_model(tiny, on="device", cache=cache)
    cache.store(key, made)
    assert cache.find(key) == made
    assert cache.find({**key, "cpu": "y"}) is None
    cache.path(key).write_text("{")
    assert cache.find(key) is None
