"""`Depth`: how many tokens to draft, from what drafts were worth so far and what they cost here.

    tokens per second of depth k = (1 + p_1 + p_1 p_2 + ... + p_1 ... p_k) / (k draft + forward(k + 1))

p_i is the chance that guess i is right where all before it were: a fading count that leans on p_{i-1} where little was
seen, and p_1 on what the draft itself expects of such a proposal. Depth 0, no drafting, is one of the choices; from
there a short draft is tried after a pause that doubles with each failure. And whatever the estimates say, drafting may
lose only what the account holds: not a whole forward to begin with, what it won, and half a percent of all tokens.

A cheap draft (look-up) is asked whenever the account allows, and the depth chosen by the grade of what it proposes; a
costly one is asked for as much as pays. Nothing here reads a clock: costs come in with `learn`, in any unit. All
sessions of a model share what is known of a draft (`depths.py`), and no answer begins to learn anew.
"""

from __future__ import annotations

import threading
from collections.abc import Collection
from dataclasses import dataclass, field

from fluvial.engine.costs import DEPTHS, MOST, Costs

FADE = 0.96  # of a count's weight, with each new one
PRIOR, WEIGHT, LEAN = 0.75, 4.0, 1.5  # what p_1 is taken for, and the counts that this and, in p_i, p_{i-1} stand for
WORTH = 1.02  # times as many tokens a second as without a draft: less is not worth it
CHEAP = 0.03  # of a plain forward, for each guess
START, CEILING, GRANT = 0.9, 8.0, 0.005  # the account, in plain forwards
FIRST_PAUSE, LONGEST_PAUSE = 16, 256  # chances to draft that are let pass before the next trial
REFRESH = 128  # rounds until a plain forward is measured again


@dataclass
class _Record:
    """What became of guesses, by their place in the proposal, and the pause after failures."""

    right: list[float] = field(default_factory=list)
    tried: list[float] = field(default_factory=list)
    pause: int = FIRST_PAUSE
    passed: int = 0
    tree: bool = False

    def note(self, accepted: int, missed: bool) -> None:
        """`accepted` were right and, if `missed`, the next one was wrong."""
        self._count(range(accepted + missed), range(accepted))

    def note_tree(self, guesses: int, right: Collection[int]) -> None:
        """Of a tree those were right: each is counted by its rank alone, since what is in front need not lead to it."""
        self.tree = True
        self._count(range(guesses), right)

    def _count(self, seen: range, right: Collection[int]) -> None:
        if seen:
            self.pause = max(1, self.pause // 4) if right else min(2 * self.pause, LONGEST_PAUSE)
        for i in seen:
            if i == len(self.tried):
                self.right.append(0.0)
                self.tried.append(0.0)
            self.right[i] = FADE * self.right[i] + (i in right)
            self.tried[i] = FADE * self.tried[i] + 1

    def best(self, most: int, chance: float, forward: Costs, draft: float, account: float) -> int:
        """The depth that pays best, 0 ... most; now and then 1 where none does. `chance`: what p_1 leans on."""
        plain, expected, chain, p, top = forward(1), 1.0, 1.0, chance, 1.0
        best, rate, known = 0, WORTH / plain, len(self.tried)
        for k in range(1, most + 1):
            right, tried = (self.right[k - 1], self.tried[k - 1]) if k <= known else (0.0, 0.0)
            lean = WEIGHT if k == 1 else LEAN
            if self.tree:
                chain = (right + lean * chance * top) / (tried + lean)
                top = max(top, chain) if k > 1 else chain
            else:
                p = (right + lean * p) / (tried + lean)
                chain *= p
            expected += chain
            cost = k * draft + forward(k + 1)
            if cost - plain > account * plain:
                break
            if k in DEPTHS and expected > rate * cost:
                best, rate = k, expected / cost
        if best:
            self.passed = 0
            return best
        self.passed += 1
        if self.passed < self.pause or draft + forward(2) - plain > account * plain:
            return 0
        if self.passed > 1:  # what was seen before a pause says less
            self.right, self.tried = [0.9 * n for n in self.right], [0.9 * n for n in self.tried]
        self.passed = 0
        return 1


class Depth:
    """The controller of one kind of draft; for any number of threads."""

    def __init__(self, costs: Costs | None = None) -> None:
        self.forward, self.account = Costs() if costs is None else costs, START
        self.draft: float | None = None  # seconds for each guess
        self._all, self._grades = _Record(), dict[int, _Record]()
        self._rounds, self._lock = 0, threading.Lock()

    def plan(self, room: int) -> int:
        """How many guesses to ask for, at most `room`; 0 for a plain forward. Called once a round."""
        with self._lock:
            self._rounds += 1
            most = min(room, MOST)
            if most < 1 or self.account <= 0 or not self.forward or self._rounds % REFRESH == 0:
                return 0
            if self.draft is None:
                return 1
            if not self._cheap:
                return self._all.best(most, PRIOR, self.forward, self.draft, self.account)
            trial = most * self.draft + self.forward(2) - self.forward(1)
            return most if trial <= self.account * self.forward(1) else 0

    def cut(self, guesses: int, grade: int, chance: float = PRIOR) -> int:
        """How many of the guesses, of that grade, to check; the draft takes `chance` for that of the first."""
        with self._lock:
            if not guesses or not self._cheap:
                return guesses
            record = self._grades.setdefault(grade, _Record())
            return record.best(guesses, chance, self.forward, 0.0, self.account)

    def learn(
        self,
        *,
        drafted: int,
        accepted: int,
        missed: bool,
        grade: int,
        forward: float,
        asked: int = 0,
        draft: float = 0.0,
        tree: Collection[int] | None = None,
    ) -> None:
        """A round is over: of `drafted` guesses `accepted` were right and, if `missed`, the next one was wrong;
        checking cost `forward` seconds, and `asked` guesses cost `draft` seconds before they were cut. `tree`: the
        ranks of the right ones, where the guesses were one."""
        with self._lock:
            self.forward.note(drafted + 1, forward)
            if draft:
                each = draft / max(asked, 1)
                self.draft = each if self.draft is None else self.draft + 0.1 * (min(each, 4 * self.draft) - self.draft)
            if drafted:
                for record in (self._all, self._grades.setdefault(grade, _Record())):
                    if tree is None:
                        record.note(accepted, missed)
                    else:
                        record.note_tree(drafted, tree)
            won = 0.0
            if self.forward:
                plain = self.forward(1)
                won = accepted + 1 - (self.forward(drafted + 1) + draft) / plain
            self.account = min(CEILING, self.account + won + GRANT * (accepted + 1))

    @property
    def _cheap(self) -> bool:
        return self.draft is None or self.draft <= CHEAP * self.forward(1)
