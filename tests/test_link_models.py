"""Links that change with time: as models, as files, as people write them, and played to a proxy."""

from __future__ import annotations

import itertools
import math
import pathlib
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serverlight.errors import ConfigError
from serverlight.link import (
    FixedLink,
    GilbertElliott,
    LinkConfig,
    LinkModel,
    LinkPiece,
    LinkPlayer,
    LinkProxy,
    LinkTrace,
    Rayleigh,
    parse_link_model,
)
from serverlight.link.models import Scaled

RADIO = Rayleigh(bandwidth_hz=5e6, snr_db=15.0, block_s=0.1, delay_ms=7.0)
SHADOW = GilbertElliott(
    good=LinkConfig.parse("50mbit,5ms"), bad=LinkConfig.parse("500kbit,9ms"), good_for_s=9.0, bad_for_s=1.0
)


def rates(model: LinkModel, count: int, seed: int = 0) -> list[float]:
    pieces = itertools.islice(model.sample(seed), count)
    return [piece.link.rate_bits_per_s or math.inf if piece.link else 0.0 for piece in pieces]


# -- models -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [RADIO, SHADOW, FixedLink(link=LinkConfig()), Scaled(model=RADIO, factor=2.0)])
def test_course_comes_from_the_seed(model: LinkModel) -> None:
    """The same seed gives the same course; it starts at zero and its times rise."""
    first, again = (list(itertools.islice(model.sample(3), 50)) for _ in range(2))
    assert first == again
    assert first[0].start_s == 0
    assert all(before.start_s < after.start_s for before, after in itertools.pairwise(first))
    if not isinstance(model, FixedLink):
        assert rates(model, 50, seed=4) != rates(model, 50, seed=5) or model is SHADOW


def test_rayleigh_formula() -> None:
    """The outage rate is W log2(1 - snr ln(1 - eps)), the mean is the integral over exponential gains."""
    snr = 10**1.5
    assert RADIO.outage_rate_bits_per_s(0.1) == pytest.approx(5e6 * math.log2(1 - snr * math.log(0.9)))
    gains = np.linspace(0, 40, 2_000_001)
    density = np.exp(-gains) * 5e6 * np.log2(1 + snr * gains)
    assert RADIO.mean_rate_bits_per_s() == pytest.approx(np.trapezoid(density, gains), rel=2e-3)
    assert RADIO.typical(0.1).rate_bits_per_s == RADIO.outage_rate_bits_per_s(0.1)
    assert RADIO.typical().delay_ms == 7.0


def test_rayleigh_blocks_keep_what_the_outage_rate_says() -> None:
    """Of many blocks, the share below the outage rate is the outage, and their mean the mean rate."""
    drawn = rates(RADIO, 20_000, seed=1)
    assert np.mean(np.array(drawn) < RADIO.outage_rate_bits_per_s(0.1)) == pytest.approx(0.1, abs=0.01)
    assert np.mean(drawn) == pytest.approx(RADIO.mean_rate_bits_per_s(), rel=0.02)
    assert min(drawn) >= RADIO.least_bits_per_s


def test_gilbert_elliott_stays() -> None:
    """Stays alternate, have their mean lengths, and the mean rate weighs the states by them."""
    pieces = list(itertools.islice(SHADOW.sample(2), 4001))
    lengths = np.diff([piece.start_s for piece in pieces])
    assert [piece.link for piece in pieces[:4]] == [SHADOW.good, SHADOW.bad] * 2
    assert lengths[::2].mean() == pytest.approx(9.0, rel=0.1)
    assert lengths[1::2].mean() == pytest.approx(1.0, rel=0.1)
    assert SHADOW.typical().rate_bits_per_s == pytest.approx(0.9 * 50e6 + 0.1 * 0.5e6)
    assert SHADOW.typical(0.05) == LinkConfig(rate_bits_per_s=0.5e6, delay_ms=5.4)


def test_link_that_is_cut_has_no_delay_to_count() -> None:
    """A state without a link counts as no rate, and not into the delay; too much of it is refused."""
    model = GilbertElliott(good=LinkConfig.parse("8mbit,6ms"), bad=None, good_for_s=3.0, bad_for_s=1.0)
    assert model.typical() == LinkConfig(rate_bits_per_s=6e6, delay_ms=6.0)
    assert model.typical(0.3) == LinkConfig(rate_bits_per_s=8e6, delay_ms=6.0)
    with pytest.raises(ConfigError, match="cut for more than"):
        model.typical(0.2)


@pytest.mark.parametrize(
    ("kind", "fields", "named"),
    [
        (Rayleigh, {"bandwidth_hz": 0, "snr_db": 1}, "bandwidth_hz"),
        (Rayleigh, {"bandwidth_hz": 1, "snr_db": math.nan}, "snr_db"),
        (Rayleigh, {"bandwidth_hz": 1, "snr_db": 1, "block_s": math.inf}, "block_s"),
        (Rayleigh, {"bandwidth_hz": 1, "snr_db": 1, "delay_ms": -1}, "delay_ms"),
        (GilbertElliott, {"good": LinkConfig(), "bad": None, "good_for_s": 0, "bad_for_s": 1}, "good_for_s"),
        (Scaled, {"model": RADIO, "factor": 0}, "scale"),
    ],
)
def test_nonsense_is_refused(kind: type, fields: dict[str, object], named: str) -> None:
    """The error names the field."""
    with pytest.raises(ConfigError) as caught:
        kind(**fields)
    assert caught.value.field == named


@pytest.mark.parametrize("outage", [0.0, 1.0, -1.0, math.nan])
def test_outage_is_a_share(outage: float) -> None:
    """An outage is a probability, and neither never nor always."""
    for model in (RADIO, SHADOW, FixedLink(link=LinkConfig()), LinkTrace.of(SHADOW.sample(), 5.0)):
        with pytest.raises(ConfigError, match="between 0 and 1"):
            model.typical(outage)


# -- traces -----------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.floats(0.001, 10), st.just(0.0) | st.floats(1, 1e10), st.floats(0, 1e3)), max_size=20))
def test_csv_round_trip(steps: list[tuple[float, float, float]]) -> None:
    """What is written is read again, to the bit."""
    pieces, now_s = [LinkPiece(start_s=0.0, link=LinkConfig(rate_bits_per_s=1e6))], 0.0
    for gap_s, rate, delay_ms in steps:
        now_s += gap_s
        link = LinkConfig(rate_bits_per_s=rate, delay_ms=delay_ms) if rate else None
        pieces.append(LinkPiece(start_s=now_s, link=link))
    trace = LinkTrace(pieces=tuple(pieces))
    assert LinkTrace.read_csv(trace.to_csv()) == trace


def test_trace_is_piecewise_constant() -> None:
    """A piece holds until the next; the last one stays."""
    trace = LinkTrace.read_csv("time_s,rate_bits_per_s,delay_ms\n0,1e6,20\n2.5,2e6,10\n")
    assert [trace.at(now_s) for now_s in (-1, 0, 2.49)] == [LinkConfig.parse("1mbit,20ms")] * 3
    assert [trace.at(now_s) for now_s in (2.5, 1e9)] == [LinkConfig.parse("2mbit,10ms")] * 2
    assert trace.typical() == LinkConfig.parse("1.5mbit,15ms")
    assert tuple(trace.sample()) == trace.pieces


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1 must be time_s"),
        ("time,rate\n0,1\n", "line 1 must be time_s"),
        ("time_s,rate_bits_per_s\n", "no lines"),
        ("time_s,rate_bits_per_s\n0,fast\n", "line 2: cannot read '0,fast'"),
        ("time_s,rate_bits_per_s\n0,1e6\n1\n", "line 3: cannot read '1'"),
        ("time_s,rate_bits_per_s\n0,1e6,20\n", "line 2 has 3 columns"),
        ("time_s,rate_bits_per_s\n0,-1\n", "rate_bits_per_s: line 2"),
        ("time_s,rate_bits_per_s\n0,nan\n", "rate_bits_per_s: line 2"),
        ("time_s,rate_bits_per_s,delay_ms\n0,1e6,inf\n", "delay_ms: line 2"),
        ("time_s,rate_bits_per_s\n1,1e6\n", "starts at 0 s"),
        ("time_s,rate_bits_per_s\n0,1e6\n3,1e6\n3,2e6\n", "must rise"),
    ],
)
def test_wrong_files(text: str, message: str) -> None:
    """A file is read strictly, and the error says where it is wrong."""
    with pytest.raises(ConfigError, match=message):
        LinkTrace.read_csv(text)


def test_trace_of_a_file(tmp_path: pathlib.Path) -> None:
    """A file is a model like the others; one that is not there, or no text, is told by name."""
    path = tmp_path / "walk.csv"
    path.write_text(LinkTrace.of(RADIO.sample(1), 2.0).to_csv())
    model = parse_link_model(str(path))
    assert rates(model, 20) == rates(RADIO, 20, seed=1)
    with pytest.raises(ConfigError, match=r"cannot read .*gone\.csv"):
        parse_link_model(str(tmp_path / "gone.csv"))
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="cannot read"):
        parse_link_model(str(path))


# -- as people write them ---------------------------------------------------------------------------


def test_specs() -> None:
    """Words with units make the models that they name."""
    assert parse_link_model("10mbit,20ms") == FixedLink(link=LinkConfig.parse("10mbit,20ms"))
    assert parse_link_model("rayleigh:bandwidth=5mhz, snr=15db, block=100ms, delay=7ms") == RADIO
    assert parse_link_model("ge:good=5mbit,bad=cut,good_for=2s,bad_for=500ms,delay=4ms") == GilbertElliott(
        good=LinkConfig.parse("5mbit,4ms"), bad=None, good_for_s=2.0, bad_for_s=0.5
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fast", "cannot read 'fast'"),
        ("wifi:5", "'wifi' is none of rayleigh, ge"),
        ("rayleigh:", "none of bandwidth"),
        ("rayleigh:snr=15db", "missing"),
        ("rayleigh:bandwidth=5mhz,snr=15", "units are db"),
        ("rayleigh:bandwidth=5mhz,bandwidth=6mhz,snr=15db", "twice"),
        ("ge:good=cut,bad=1mbit,good_for=1s,bad_for=1s", "cannot read 'cut'"),
        ("ge:bad=cut,good_for=1s,bad_for=1s", "missing"),
    ],
)
def test_wrong_specs(text: str, message: str) -> None:
    """What cannot be read is refused with what to write instead."""
    with pytest.raises(ConfigError, match=message) as caught:
        parse_link_model(text)
    assert "10mbit,20ms" in str(caught.value)


# -- played to a proxy ------------------------------------------------------------------------------


def test_player_sets_the_link(echo: str) -> None:
    """A proxy gets each piece in turn, a cut one too, and keeps the last."""
    pieces = [
        LinkPiece(start_s=0.0, link=LinkConfig.parse("1mbit")),
        LinkPiece(start_s=0.01, link=None),
        LinkPiece(start_s=0.02, link=LinkConfig.parse("2mbit")),
    ]
    heard: list[LinkPiece] = []
    done = threading.Event()

    def hear(piece: LinkPiece) -> None:
        heard.append(piece)
        if len(heard) == 3:
            done.set()

    with LinkProxy(echo, LinkConfig()) as proxy, LinkPlayer(proxy, pieces, on_change=hear):
        assert done.wait(20)
        assert proxy.link == LinkConfig.parse("2mbit")
    assert heard == pieces


def test_player_stops_in_the_middle(echo: str) -> None:
    """A course without an end is left when the context is."""
    with LinkProxy(echo, LinkConfig()) as proxy, LinkPlayer(proxy, SHADOW.sample()):
        pass
