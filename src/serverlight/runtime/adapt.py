"""Follows a link along a frontier: which of its choices the next step takes, and why it changes. Pure but for the log.

Settings of the codec change at no cost. Another cut costs what the caller says (a stream, or the keys and values of a sequence),
and is taken where what it brings over the coming steps is worth more.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import statistics
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from serverlight.errors import ConfigError
from serverlight.frontier import Choice, Frontier
from serverlight.link.estimate import LinkBelief

__all__ = ["Adapter", "Change", "Estimates", "Observation", "Rules", "Standing", "decide"]

NEAR = 0.1
"""Chances that differ by less are alike where none is good."""

SLOWER = 1.2
"""Of choices that are all late, one is left for another that is faster by this factor."""

WINDOW = 5
"""Steps whose median tells how device and server differ from what their choices say."""

LATE_WINDOW, LATE_PRIOR = 20, 4
"""Steps that tell how much device and server vary around that, and so many that would have been as expected."""

MAX_GAP, MAX_WAIT = 16, 4
"""Moves to better choices that fail become this many times rarer at most: probes, and those that looked sure."""

_log = logging.getLogger("serverlight.adapt")


@dataclass(frozen=True, kw_only=True, slots=True)
class Rules:
    """What the user asks for, and how ready to move the client is."""

    deadline_ms: float
    """How long a step should take, all told."""

    device_memory_bytes: int | None = None
    max_loss_pp: float | None = None
    """Choices that exceed these caps are never taken."""

    stay: float = 0.9
    """A choice is left when it is less likely than that to keep the deadline..."""

    enter: float = 0.95
    """...and one that is better is entered only when it is as likely as that..."""

    patience: int = 3
    """...so many steps in a row."""

    probe_after: int = 12
    """Steps after which a better choice that nothing speaks against is tried once: small messages do not show a fast link."""

    probe: float = 0.5
    """How likely it must be to keep the deadline."""

    horizon: int = 100
    """Steps for which a moved cut counts."""

    ms_per_pp: float = 1.0
    """What a percentage point of quality is worth at each step, where a moved cut has a price."""

    def __post_init__(self) -> None:
        if not 0 < self.deadline_ms < math.inf:
            raise ConfigError("deadline_ms", f"must be a positive number of milliseconds, got {self.deadline_ms!r}")
        if not 0 < self.stay <= self.enter <= 1:
            raise ConfigError("enter", f"0 < stay <= enter <= 1 must hold, got {self.stay!r} and {self.enter!r}")
        for name in ("patience", "probe_after", "horizon"):
            if getattr(self, name) < 1:
                raise ConfigError(name, f"must be at least 1 step, got {getattr(self, name)!r}")

    def allow(self, choice: Choice) -> bool:
        """Whether it keeps the caps that no link changes."""
        memory, loss = self.device_memory_bytes, self.max_loss_pp
        return (memory is None or choice.device_memory_bytes <= memory) and (loss is None or choice.loss_pp <= loss)


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimates:
    """What is known before a step."""

    link: LinkBelief = dataclasses.field(default_factory=LinkBelief)
    head_factor: float = 1.0
    """The device takes so many times what its choices say."""

    server_extra_ms: float = 0.0
    """The server takes so much longer than they say; its queue, for instance."""

    late_ms: tuple[float, ...] = (0.0,)
    """How much longer than all that device and server took lately, step by step."""

    def device_ms(self, choice: Choice) -> float:
        """What the device will take for its part."""
        return choice.head_ms * self.head_factor

    def server_ms(self, choice: Choice) -> float:
        """What the server will take for its part."""
        return max(0.0, choice.server_ms + self.server_extra_ms)

    def chance(self, choice: Choice, deadline_ms: float) -> float:
        """How likely the choice is to keep the deadline."""
        left_ms = deadline_ms - self.device_ms(choice)
        if choice.way == "all-device":
            return statistics.fmean(late <= left_ms for late in self.late_ms)
        return self.link.chance(choice.uplink_bytes, left_ms - self.server_ms(choice), self.late_ms)

    def latency_ms(self, choice: Choice) -> float:
        """What it is expected to take; the median."""
        moved = dataclasses.replace(
            choice,
            head_ms=self.device_ms(choice),
            server_ms=self.server_ms(choice),
        )
        return moved.latency_ms(self.link.rate_bits_per_s(), self.link.trip_ms())


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """Where a client stands between two steps."""

    index: int
    """Of the choice in use."""

    step: int = 0
    """How many decisions there have been."""

    waited: int = 0
    """Steps in a row in which a better choice would have done."""

    calm: int = 0
    """Steps since the last change."""

    gap: int = 1
    """Moves that failed make the next one wait so many times longer."""

    is_new: bool = False
    """Whether the choice in use is a better one that has yet to prove itself."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """One change of choice."""

    step: int
    """The step that takes the new choice first, counted from 1."""

    from_choice: Choice | None
    """``None`` at the first step."""

    to_choice: Choice

    reason: str
    """``start``, ``deadline``, ``better``, ``probe``, ``given`` (by the caller), and the figures behind it."""


def decide(
    standing: Standing,
    estimates: Estimates,
    choices: Sequence[Choice],
    rules: Rules,
    price_ms: Callable[[Choice], float] = lambda choice: 0.0,
) -> tuple[Standing, str | None]:
    """Where to stand at the next step, and the reason if that is elsewhere.

    Args:
        standing: where the client stands.
        estimates: what it knows.
        choices: best first; all within the caps that no link changes.
        rules: what it goes by.
        price_ms: what going over to a choice costs once; asked for choices with another cut only.
    """
    chances = [estimates.chance(choice, rules.deadline_ms) for choice in choices]
    here, now = choices[standing.index], standing.index

    def pays(index: int, gain_ms: float) -> bool:
        price = 0.0 if same_cut(here, choices[index]) else price_ms(choices[index])
        return price <= 0 or gain_ms * rules.horizon > price

    later = dataclasses.replace(standing, step=standing.step + 1, calm=standing.calm + 1)
    if later.is_new and later.calm > rules.probe_after:
        later = dataclasses.replace(later, is_new=False, gap=1)
    if chances[now] < rules.stay:
        best = _rescue(now, estimates, choices, chances, rules, pays)
        if best == now:
            return dataclasses.replace(later, waited=0), None
        gap = min(MAX_GAP, 2 * later.gap) if later.is_new else later.gap
        reason = (
            f"deadline: {chances[now]:.0%} likely to keep {rules.deadline_ms:g} ms, {chances[best]:.0%} with the next"
        )
        return Standing(index=best, step=later.step, gap=gap), reason
    better = [i for i in range(now) if pays(i, _gain_ms(here, choices[i], rules))]
    sure = next((i for i in better if chances[i] >= rules.enter), None)
    later = dataclasses.replace(later, waited=0 if sure is None else standing.waited + 1)
    if sure is not None and later.waited >= rules.patience * min(MAX_WAIT, later.gap):
        reason = f"better: {chances[sure]:.0%} likely to keep {rules.deadline_ms:g} ms, for {later.waited} steps"
        return Standing(index=sure, step=later.step, gap=later.gap, is_new=True), reason
    likely = max(better, key=lambda i: chances[i], default=now)
    if sure is None and chances[likely] >= rules.probe and later.calm > rules.probe_after * later.gap and better:
        reason = (
            f"probe: {chances[likely]:.0%} likely to keep {rules.deadline_ms:g} ms, not tried for {later.calm} steps"
        )
        return Standing(index=likely, step=later.step, gap=later.gap, is_new=True), reason
    return later, None


def same_cut(one: Choice, other: Choice) -> bool:
    """Whether going from one to the other changes settings of the codec only."""
    return one.way == other.way and (one.plan and one.plan.cut) == (other.plan and other.plan.cut)


def _rescue(
    now: int,
    estimates: Estimates,
    choices: Sequence[Choice],
    chances: Sequence[float],
    rules: Rules,
    pays: Callable[[int, float], bool],
) -> int:
    """The best choice that is likely to keep the deadline; where none is, the likeliest, or else the fastest."""
    at_home = max(chances[i] for i, choice in enumerate(choices) if same_cut(choices[now], choice))
    able = [i for i in range(len(choices)) if pays(i, (chances[i] - at_home) * rules.deadline_ms)]
    for least in (rules.enter, rules.stay):
        if sure := [i for i in able if chances[i] >= least]:
            return sure[0]
    likely = max(able, key=lambda i: chances[i], default=now)
    if chances[likely] > chances[now] + NEAR:
        return likely
    if chances[likely] > NEAR:
        return now
    times = {i: estimates.latency_ms(choices[i]) for i in {*able, now}}
    fastest = min(times, key=lambda i: (times[i], i))
    return fastest if times[fastest] * SLOWER < times[now] else now


def _gain_ms(here: Choice, there: Choice, rules: Rules) -> float:
    """What a better choice brings at each step: time of the server, and quality at its worth."""
    saved_ms, saved_pp = here.server_busy_ms - there.server_busy_ms, here.loss_pp - there.loss_pp
    return max(0.0, saved_ms) + rules.ms_per_pp * max(0.0, saved_pp)


@dataclass(frozen=True, kw_only=True, slots=True)
class Observation:
    """What one step took."""

    elapsed_s: float
    """Since the step was chosen: how much time what is known has to fade."""

    head_ms: float | None = None
    """Device: head and encoding; ``None`` where the step was not like those that the choices are about."""

    num_bytes: int = 0
    """Bytes up; 0 where nothing was sent."""

    way_ms: float = 0.0
    """From sending to the answer, less the server's own time."""

    server_ms: float | None = None
    """The server's own time, likewise."""


class Adapter:
    """Keeps the estimates, asks :func:`decide`, and tells of changes.

    Args:
        frontier: the choices.
        rules: what the user asks for.
        price_ms: what going over to another cut costs, once.
        on_change: hears of each change; the logger ``serverlight.adapt`` does, too.

    Raises :class:`ConfigError` where no choice keeps the caps that no link changes.
    """

    def __init__(
        self,
        frontier: Frontier,
        rules: Rules,
        *,
        price_ms: Callable[[Choice], float] = lambda choice: 0.0,
        on_change: Callable[[Change], None] | None = None,
    ) -> None:
        self.choices = tuple(filter(rules.allow, frontier.choices))
        if not self.choices:
            raise ConfigError(
                "frontier", "no choice keeps the caps on device memory and loss; relax one, or search anew"
            )
        self.rules, self._price_ms, self._on_change = rules, price_ms, on_change
        self.estimates = Estimates()
        self._standing: Standing | None = None
        self._heads: deque[float] = deque(maxlen=WINDOW)
        self._servers: deque[float] = deque(maxlen=WINDOW)
        self._late = deque([0.0] * LATE_PRIOR, maxlen=LATE_WINDOW)

    @property
    def choice(self) -> Choice | None:
        """The choice in use; ``None`` before the first step."""
        return None if self._standing is None else self.choices[self._standing.index]

    def choose(self, horizon: int | None = None, *, elapsed_s: float = 0.0) -> Choice:
        """The choice for the next step, of ``horizon`` that are left at most, so long after the last one."""
        if elapsed_s:
            self.estimates = dataclasses.replace(self.estimates, link=self.estimates.link.later(elapsed_s))
        if self._standing is None:
            chances = [self.estimates.chance(choice, self.rules.deadline_ms) for choice in self.choices]
            sure = [i for i, chance in enumerate(chances) if chance >= self.rules.enter]
            index = sure[0] if sure else max(range(len(chances)), key=lambda i: chances[i])
            self._go(Standing(index=index, step=1), f"start: {chances[index]:.0%} likely to keep the deadline")
        else:
            rules = self.rules
            if horizon is not None:
                rules = dataclasses.replace(rules, horizon=max(1, min(horizon, rules.horizon)))
            self._go(*decide(self._standing, self.estimates, self.choices, rules, self._price_ms))
        assert self.choice is not None
        return self.choice

    def stand_at(self, choice: Choice, reason: str) -> None:
        """Takes note that the caller uses another choice than was chosen, for a reason of its own."""
        step = 1 if self._standing is None else self._standing.step
        self._go(Standing(index=self.choices.index(choice), step=step), f"given: {reason}")

    def observe(self, seen: Observation, *, link: LinkBelief | None = None) -> None:
        """Takes note of what a step with the choice in use took; ``link`` where the caller has an estimate of its own."""
        assert self.choice is not None
        ran = self.choice.head_ms > 0 and seen.head_ms is not None
        served = seen.num_bytes > 0 and seen.server_ms is not None
        if ran:
            self._heads.append((seen.head_ms or 0.0) / self.choice.head_ms)
        if served:
            self._servers.append((seen.server_ms or 0.0) - self.choice.server_ms)
        if link is None:
            link = self.estimates.link.later(seen.elapsed_s)
            link = link.seen(seen.num_bytes, seen.way_ms) if seen.num_bytes else link
        usual = Estimates(
            link=link,
            head_factor=statistics.median(self._heads) if self._heads else 1.0,
            server_extra_ms=statistics.median(self._servers) if self._servers else 0.0,
        )
        late_ms = (seen.head_ms or 0.0) - usual.device_ms(self.choice) if ran else 0.0
        late_ms += (seen.server_ms or 0.0) - usual.server_ms(self.choice) if served else 0.0
        if ran or served:
            self._late.append(late_ms)
        self.estimates = dataclasses.replace(usual, late_ms=tuple(self._late))

    def _go(self, standing: Standing, reason: str | None) -> None:
        before, self._standing = self.choice, standing
        after = self.choices[standing.index]
        if reason is None or after is before:
            return
        link = self.estimates.link
        change = Change(
            step=standing.step,
            from_choice=before,
            to_choice=after,
            reason=f"{reason} (link {link.rate_bits_per_s() / 1e6:.3g} Mbit/s, {link.trip_ms():.0f} ms)",
        )
        _log.info("step %d: %s to %s; %s", change.step, _name(before), _name(after), change.reason)
        if self._on_change is not None:
            self._on_change(change)


def _name(choice: Choice | None) -> str:
    if choice is None:
        return "nothing"
    where = f" at {choice.plan.cut}" if choice.plan and choice.way == "split" else ""
    return f"{choice.way}{where}, {choice.uplink_bytes} bytes"
