"""The limiter: how many requests are in flight, simulated."""

from __future__ import annotations

import heapq
import random
from typing import Any, Callable

import pytest

import pfu
from testing.place import is_full_run

Latency = Callable[[int, int, random.Random], float]


class Simulation:
    """A closed loop of `limit` requests against a model of a store; time is simulated.

    The limiter hears of them as Engine._steer() tells it.
    """

    def __init__(self, latency: Latency, cap: float = 0.0, size: Any = None, seed: int = 1) -> None:
        self.latency = latency
        self.cap = cap
        self.tokens = self.burst = cap * 0.05
        self.size = size or (lambda rng: 4096)
        self.rng = random.Random(seed)
        self.now = self.refilled = 0.0
        self.limiter = pfu.Limiter(0.0)
        self.meter = pfu.Meter()
        self.told = 0.0
        self.counted = pfu.Tally(0, 0, 0, 0)
        self.flying: list[tuple[float, int, float, int, bool]] = []
        self.begun = self.done = self.drops = 0
        self.limits: list[tuple[float, int]] = []

    def run(self, seconds: float) -> Simulation:
        end = self.now + seconds
        while self.now < end:
            while len(self.flying) < self.limiter.limit:
                self.begin()
            self.now, _, began, size, fine = heapq.heappop(self.flying)
            if fine:
                self.done += 1
                self.meter.completed(size, began, self.now)
            else:
                self.drops += 1
                self.meter.dropped(began, self.now)
            if self.now - self.told >= pfu.TICK_SECONDS:
                self.tell()
            if not self.limits or self.limits[-1][1] != self.limiter.limit:
                self.limits.append((self.now, self.limiter.limit))
        return self

    def tell(self) -> None:
        self.told = self.now
        counted = pfu.Tally._make(getattr(self.meter, name) for name in pfu.Tally._fields)
        change = (after - before for after, before in zip(counted, self.counted))
        self.limiter.absorb(pfu.Tally._make(change), self.now)
        self.counted, self.meter.cut_at = counted, self.limiter.cut_at

    def begin(self) -> None:
        self.begun += 1
        size = self.size(self.rng)
        self.tokens = min(self.burst, self.tokens + (self.now - self.refilled) * self.cap)
        self.refilled = self.now
        fine = not self.cap or self.tokens >= 1
        self.tokens -= fine
        takes = self.latency(len(self.flying) + 1, size, self.rng) if fine else 0.02
        heapq.heappush(self.flying, (self.now + takes, self.begun, self.now, size, fine))

    def reached(self, limit: int) -> float:
        return next((when for when, reached in self.limits if reached >= limit), float("inf"))

    def mean_limit(self, since: float) -> float:
        ends = [*[when for when, _ in self.limits[1:]], self.now]
        spans = [
            (max(end, since) - max(when, since), limit)
            for (when, limit), end in zip(self.limits, ends)
        ]
        return sum(span * limit for span, limit in spans) / (self.now - since)


def steady(seconds: float) -> Latency:
    return lambda flying, size, rng: seconds


def jittered(seconds: float) -> Latency:
    return lambda flying, size, rng: seconds * rng.uniform(0.7, 1.3)


def kneed(seconds: float, knee: int) -> Latency:
    return lambda flying, size, rng: seconds * max(1.0, flying / knee) * rng.uniform(0.7, 1.3)


class TestLimiter:
    """The limit finds itself."""

    @pytest.mark.parametrize("latency", [steady(0.03), jittered(0.03), steady(0.1), jittered(0.1)])
    def test_limit_rises_within_a_second_where_it_pays(self, latency: Latency) -> None:
        simulation = Simulation(latency).run(3)
        assert simulation.reached(512) < 1.2
        assert simulation.limiter.limit == 512

    def test_limit_finds_a_knee(self) -> None:
        simulation = Simulation(kneed(0.03, 100)).run(60)
        assert 90 <= simulation.mean_limit(since=20) <= 115
        assert simulation.done >= 0.95 * 60 * 100 / 0.03

    @pytest.mark.parametrize("seed", range(3))
    def test_limit_holds_under_a_cap(self, seed: int) -> None:
        simulation = Simulation(jittered(0.03), cap=3500, seed=seed).run(60)
        assert simulation.drops < 0.004 * simulation.done
        assert simulation.done > 0.8 * 3500 * 60
        assert len([when for when, _ in simulation.limits if when > 30]) <= 12

    @pytest.mark.parametrize("seed", range(4 if is_full_run() else 1))
    def test_limit_is_calm_with_sizes_of_all_kinds(self, seed: int) -> None:
        def latency(flying: int, size: int, rng: random.Random) -> float:
            return (0.03 + size / 50e6) * max(1.0, flying / 100) * rng.uniform(0.7, 1.3)

        def size(rng: random.Random) -> int:
            return int(min(16e6, rng.lognormvariate(9.7, 2)))

        simulation = Simulation(latency, size=size, seed=seed).run(120)
        assert 80 <= simulation.mean_limit(since=60) <= 160
        assert len([when for when, _ in simulation.limits if when > 60]) <= 16

    def test_limit_follows_changed_work(self) -> None:
        simulation = Simulation(kneed(0.03, 50)).run(40)
        assert simulation.limiter.limit <= 70
        simulation.latency = kneed(0.03, 300)
        simulation.run(60)
        assert simulation.mean_limit(since=90) > 200

    def test_limit_is_cut_when_the_store_is_in_trouble(self) -> None:
        simulation = Simulation(jittered(0.03)).run(3)
        simulation.cap, simulation.burst = 300.0, 10.0
        simulation.run(30)
        assert simulation.limiter.limit <= 20

    def test_limit_can_be_fixed(self) -> None:
        simulation = Simulation(jittered(0.03))
        simulation.limiter = pfu.Limiter(0.0, 7, 7, 7)
        assert simulation.run(20).limits == [(simulation.limits[0][0], 7)]

    def test_limit_does_not_rise_while_it_is_not_used(self) -> None:
        limiter = pfu.Limiter(0.0)
        for number in range(10_000):
            limiter.absorb(pfu.Tally(4096 + pfu.REQUEST_WORK, 1, 0.03, 0), number * 0.01)
        assert limiter.limit == 32

    def test_drops_begun_before_a_cut_do_not_count(self) -> None:
        limiter = pfu.Limiter(0.0)
        meter = pfu.Meter()
        for _ in range(4):
            meter.dropped(1.0, 2.0)
        limiter.absorb(pfu.Tally(0, 0, meter.busy, meter.drops), 2.0)
        assert limiter.limit == 22
        meter = pfu.Meter()
        meter.cut_at = limiter.cut_at
        for _ in range(100):
            meter.dropped(1.5, 2.5)
        limiter.absorb(pfu.Tally(0, 0, meter.busy, meter.drops), 2.5)
        assert limiter.limit == 22

    @pytest.mark.parametrize("busy", [0.0, -0.001])
    @pytest.mark.parametrize("work", [0.0, 1e6])
    def test_the_limiter_divides_by_no_zero(self, busy: float, work: float) -> None:
        limiter = pfu.Limiter(0.0)
        limiter.absorb(pfu.Tally(1e6, 1000, 30.0, 0), 1.0)
        before = limiter.limit
        limiter.absorb(pfu.Tally(work, 1000, busy, 0), 5.0)
        assert limiter.limit == before
        for second in range(10, 40):
            limit = limiter.limit
            limiter.absorb(pfu.Tally(1e6 * limit, 1000 * limit, limit, 0), float(second))
        assert limiter.limit > before
