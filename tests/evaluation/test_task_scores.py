"""What a cut changes, question by question."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from serverlight.errors import ConfigError
from serverlight.evaluation.statistics import paired_test
from serverlight.evaluation.task_scores import compare_results, linearised


def results(metric: str, values: list[Any], answers: list[Any]) -> dict[str, Any]:
    samples = [
        {"doc_id": i, "filter": "none", "metrics": [metric], metric: value, "filtered_resps": answer}
        for i, (value, answer) in enumerate(zip(values, answers, strict=True))
    ]
    return {"samples": {"task": samples}}


def test_right_and_wrong() -> None:
    """Accuracies get McNemar's exact test: here 5 questions are lost and none is won."""
    choices = [[(-1.0, False), (-2.0, False)]] * 10
    others = [[(-2.0, False), (-1.0, False)]] * 5 + choices[5:]
    [score] = compare_results(results("acc", [0.0] * 5 + [1.0] * 5, others), results("acc", [1.0] * 10, choices))
    assert (score.uncut, score.cut, score.difference.value) == (1.0, 0.5, -0.5)
    assert score.difference.p_value == 2 / 2**5
    assert score.difference.low < -0.5 < score.difference.high
    assert score.same_answers == 0.5


def test_perplexity() -> None:
    """A perplexity's value is the harness's, and its error that of the delta method, which a bootstrap confirms."""
    rng = np.random.default_rng(0)
    samples = [(-float(rng.gamma(4, 3)), int(rng.integers(2, 9))) for _ in range(400)]
    values = linearised("word_perplexity", samples)
    logprobs, units = np.array(samples).T
    assert values.mean() == pytest.approx(math.exp(-logprobs.sum() / units.sum()))
    picks = rng.integers(0, 400, (2000, 400))
    again = np.exp(-logprobs[picks].sum(1) / units[picks].sum(1))
    assert values.std(ddof=1) / 20 == pytest.approx(again.std(), rel=0.1)


def test_paired_is_sharper() -> None:
    """The error of a difference is that of the differences: what both models find hard does not blur it."""
    rng = np.random.default_rng(1)
    hard = rng.normal(0, 10, 200)
    found = paired_test(hard + 0.1 + rng.normal(0, 0.1, 200), hard)
    assert found.value == pytest.approx(0.1, abs=0.03)
    assert found.stderr < 0.02
    assert found.p_value < 1e-6
    same = paired_test(hard, hard)
    assert (same.value, same.low, same.high, same.p_value) == (0, 0, 0, 1)


def test_rolling_texts_have_no_answer() -> None:
    """Where nothing is chosen no share of equal answers is made up."""
    ours = results("bits_per_byte", [(-4.0, 2), (-6.0, 3)], [[-4.0], [-6.0]])
    [score] = compare_results(ours, ours)
    assert score.same_answers is None
    assert score.cut == pytest.approx(2 / math.log(2))


def test_other_questions() -> None:
    """Results of different questions are not compared."""
    ours, theirs = (results("acc", [1.0] * n, [[(-1.0, False), (-2.0, False)]] * n) for n in (3, 4))
    with pytest.raises(ConfigError, match="different questions"):
        compare_results(ours, theirs)
