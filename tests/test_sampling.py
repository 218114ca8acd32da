"""How a token is chosen from logits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serverlight.errors import ConfigError
from serverlight.sampling import Sampling, choose_token

LOGITS = st.lists(st.floats(-30, 30, width=32), min_size=2, max_size=40).map(np.float32)


def test_sampling_depends_on_seed_and_position() -> None:
    """The same place in the sequence draws the same token; top-k 1 is greedy; rare tokens are left out by min-p."""
    logits = np.linspace(0, 3, 50, dtype=np.float32)
    hot = Sampling(temperature=1.0, seed=1)
    drawn = [choose_token(logits, hot, position).token_id for position in range(40)]
    assert drawn == [choose_token(logits, hot, position).token_id for position in range(40)]
    assert len(set(drawn)) > 5
    assert choose_token(logits, Sampling(temperature=1.0, top_k=1), 3).token_id == 49
    assert all(choose_token(logits, Sampling(temperature=1.0, min_p=0.9), i).token_id >= 48 for i in range(20))


@given(LOGITS, st.integers(1, 40))
def test_top_k_leaves_the_likeliest(logits: np.ndarray, top_k: int) -> None:
    """Of equal tokens the first ones stay, and nothing but the K likeliest is ever drawn."""
    kept = set(np.argsort(-logits, kind="stable")[:top_k].tolist())
    hot = Sampling(temperature=50.0, top_k=top_k, seed=5)
    assert {choose_token(logits, hot, position).token_id for position in range(30)} <= kept


def test_chance_is_even() -> None:
    """Over many places each of four equal tokens is drawn a quarter of the time: 4,000 draws, six standard deviations."""
    logits, hot = np.zeros(4, np.float32), Sampling(temperature=1.0, seed=9)
    drawn = [choose_token(logits, hot, position).token_id for position in range(4000)]
    assert all(abs(drawn.count(token) - 1000) < 6 * (4000 * 0.25 * 0.75) ** 0.5 for token in range(4))


@given(LOGITS, st.data())
def test_repetition_penalty_is_that_of_transformers(logits: np.ndarray, data: st.DataObject) -> None:
    """Greedy with a penalty takes the token that transformers' own processor makes the likeliest."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    seen = data.draw(st.sets(st.integers(0, len(logits) - 1), min_size=1))
    penalty = data.draw(st.floats(0.5, 3))
    process = transformers.RepetitionPenaltyLogitsProcessor(penalty)
    expected = process(torch.tensor([sorted(seen)]), torch.tensor(logits)[None])[0]
    chosen = choose_token(logits, Sampling(repetition_penalty=penalty), 1, seen).token_id
    assert expected[chosen] == expected.max()


@given(LOGITS, st.integers(0, 20), st.floats(0, 3), st.integers(0, 1000))
def test_probabilities_do_not_depend_on_how_tokens_are_chosen(
    logits: np.ndarray, num_top: int, temperature: float, seed: int
) -> None:
    """Whatever is drawn, its log-probability is the model's, and the likeliest tokens are the model's, in order."""
    choice = choose_token(logits, Sampling(temperature=temperature, seed=seed, logprobs=num_top), 1, [0])
    exact = logits.astype(np.float64) - np.logaddexp.reduce(logits.astype(np.float64))
    assert choice.logprob == pytest.approx(exact[choice.token_id], abs=1e-5)
    assert len(choice.top_logprobs) == min(num_top, len(logits))
    assert [value for _, value in choice.top_logprobs] == pytest.approx(sorted(exact)[::-1][:num_top], abs=1e-5)
    assert all(value == pytest.approx(exact[token], abs=1e-5) for token, value in choice.top_logprobs)


@pytest.mark.parametrize("field", [{"repetition_penalty": 0}, {"repetition_penalty": float("nan")}, {"logprobs": 21}])
def test_settings_that_cannot_be(field: dict[str, float]) -> None:
    """What makes no sense is refused at birth, by name."""
    with pytest.raises(ConfigError, match=next(iter(field))):
        Sampling(**field)
