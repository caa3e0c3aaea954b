"""The memory tests are right: whoever finds the answers in the stream gets 1, whoever guesses gets nothing, a seed
gives the same stream again, streams are as long as asked, and facts as old as is said."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from itertools import islice

import numpy as np
import pytest

from fluvial.adapters.errors import UnsupportedError, UsageError
from fluvial.encoders.frame import Frame
from fluvial.engine.recall.reader import reader
from fluvial.engine.recall.registry import TASKS, chosen
from fluvial.engine.recall.report import cells, report
from fluvial.engine.recall.run import Row, draw_of, pour, run
from fluvial.engine.recall.scoring import score
from fluvial.engine.recall.task import Draw, Piece, Question, Room, Task
from tests.engine.tiny import tiny
from tests.long_context.oracle import Oracle

ALL = list(TASKS.values())
LENGTHS = {False: (60, 300), True: (9, 16)}
MODEL = tiny("delta")


@pytest.mark.parametrize("task", ALL, ids=TASKS)
def test_whoever_reads_the_stream_is_right_at_every_length(task: Task) -> None:
    texts, films = ((), LENGTHS[True]) if task.video else (LENGTHS[False], ())
    rows = list(run(MODEL, [task], texts, films, samples=2, new=Oracle))
    wrong = [(row.question, row.expected, row.answer) for row in rows if row.score != 1]
    assert not wrong
    assert {cell.circular for cell in cells(rows)} == {1.0}
    assert len(rows) >= 2 * 2 * task.turns


@pytest.mark.parametrize("task", ALL, ids=TASKS)
def test_no_answer_and_another_answer_are_wrong(task: Task) -> None:
    for question in pour(task, draw_of(task, 30, 1, 3, 5), Room(30), Oracle().read):
        assert score("I do not know.", question) == score("", question) == 0
        assert score("It is " + " and ".join(question.answers) + ".", question) == 1
        if question.others:
            assert score(" or ".join([*question.answers, question.others[0]]), question) == 0


@pytest.mark.parametrize("task", [task for task in ALL if task.turns > 1], ids=lambda task: task.name)
def test_who_always_says_the_same_gets_no_circle(task: Task) -> None:
    streams = [[_questions(task, sample, turn)[0] for turn in range(task.turns)] for sample in range(4)]
    for circle in streams:
        for guess in circle:
            right = [score(" ".join(guess.answers), question) for question in circle]
            asked = {question.text for question in circle}
            assert sum(right) == 1 or len(asked) == len(circle)  # another box each time: nothing to repeat
            assert sum(right) < task.turns
        truths = [question.answers for question in circle]
        assert len(set(truths)) == task.turns  # every option is the truth once


def _questions(task: Task, sample: int, turn: int) -> list[Question]:
    return pour(task, draw_of(task, 24, sample, 4, 7, turn), Room(24), Oracle().read)


@pytest.mark.parametrize("task", ALL, ids=TASKS)
def test_a_seed_gives_the_same_stream_and_another_one_another(task: Task) -> None:
    def stream(seed: int, turn: int = 0) -> bytes:
        pieces: list[Piece] = []

        def read(piece: Piece) -> int:
            pieces.append(piece)
            return 1

        pour(task, draw_of(task, 16, 0, 2, seed, turn), Room(16), read)
        return b"".join(piece.rgb.tobytes() if isinstance(piece, Frame) else piece.encode() for piece in pieces)

    assert stream(1) == stream(1) != stream(2)
    assert task.turns == 1 or task.name == "s5" or stream(1) != stream(1, 1)


@pytest.mark.parametrize("task", ALL, ids=TASKS)
def test_streams_are_as_long_as_asked(task: Task) -> None:
    longest = 0

    def read(piece: Piece) -> int:
        nonlocal longest
        used = 1 if isinstance(piece, Frame) else len(MODEL.tokenizer.encode(piece, special=False))
        longest = max(longest, used)
        return used

    for length in (16, 24) if task.video else (300, 700):
        room = Room(length)

        questions = pour(task, draw_of(task, length, 0, 2, 0), room, read)
        assert 0 <= room.used - length <= (0 if task.video else longest)
        assert all(0 <= question.since <= room.used for question in questions)


@pytest.mark.parametrize("name", ["passkey", "needle", "copy"])
def test_a_fact_is_as_old_as_is_said(name: str) -> None:
    for depth in (0.0, 0.3, 0.9):
        oracle, room = Oracle(), Room(400)
        (question,) = pour(TASKS[name], Draw((3,), depth), room, oracle.read)
        before, fact, after = oracle.text.partition(question.answers[0])
        assert fact and abs(len(after.split()) - (room.used - question.since)) <= 3
        assert depth * 400 <= len(before.split()) <= depth * 400 + 20


@pytest.mark.parametrize(
    ("answer", "worth"),
    [
        ("71432", 1), ("The key is 71432.", 1), ("71432, again 71432", 1), ("171432", 0), ("7143", 0), ("", 0),
        ("71432 71433", 0), ("12345 71432", 0), ("71432, written 3 pages ago", 1),
    ],
)  # fmt: skip
def test_numbers_are_whole_and_a_list_of_guesses_is_worth_nothing(answer: str, worth: float) -> None:
    assert score(answer, Question("?", ("71432",), 0)) == worth


def test_words_in_order_and_numbers_spelled() -> None:
    assert score("Two objects.", Question("?", ("2",), 0, ("1", "3"))) == 1
    assert score("A RED circle!", Question("?", ("red circle",), 0, ("red square",))) == 1
    assert score("circle, red", Question("?", ("red circle",), 0)) == 0
    assert score("bofen", Question("?", ("bofen", "katir"), 0)) == 0.5


class Silent(Oracle):
    def ask(self, question: str, max_tokens: int) -> str:
        return "even"


def test_a_circle_counts_as_one_sample() -> None:
    (cell,) = cells(run(MODEL, chosen(["parity"]), [40], [], samples=6, new=Silent))
    assert (cell.right, cell.circular, cell.chance, cell.answers, cell.samples) == (0.5, 0.0, 0.25, 12, 6)


@pytest.mark.parametrize("plain", [False, True], ids=["chat", "plain"])
def test_a_model_takes_them_in_constant_memory(plain: bool) -> None:
    model = copy.copy(MODEL)
    if plain:
        model.template = None
    asked = model, chosen(["passkey", "mqar"]), [100, 600], ()
    rows = list(run(*asked, samples=1, max_tokens=2))
    assert len(rows) == 2 * (1 + 4) and len({row.state_bytes for row in rows}) == 1
    for row in rows:
        # the ends of pieces may become one token with what follows
        assert row.length * 0.9 <= row.position <= row.length * 1.1 + 40 and row.tape_bytes == 0
        assert 0 < row.age <= row.position
    again = run(model, chosen(["passkey"]), [100], (), samples=1, max_tokens=2)
    assert _without_time(again) == _without_time(rows[:1])
    found = report(model, rows, {"seed": 0}, "1")
    assert found["fingerprint"] == model.fingerprint() and len(found["cells"]) == 4


def _without_time(rows: Iterator[Row] | list[Row]) -> list[tuple[object, ...]]:
    return [(row.task, row.length, row.age, row.position, row.answer, row.score) for row in rows]


def test_questions_aside_do_not_see_each_other() -> None:
    one, two = reader(MODEL), reader(MODEL)
    for taker in (one, two):
        taker.read("The pass key is 12345. " * 3)
        taker.finish()
    one.ask("What is the value of bofen?", 5)
    assert one.position == two.position and one.ask("What is the pass key?", 8) == two.ask("What is the pass key?", 8)


def test_a_video_goes_in_frame_by_frame() -> None:
    (row,) = run(MODEL, chosen(["video-code"]), [], [12], samples=1, max_tokens=2)
    assert row.position > 12 and row.age == 12 - 2 - 6  # at half its length, for two frames


def test_what_cannot_be_asked_is_refused() -> None:
    with pytest.raises(UsageError, match=r"no task 'memory'.*needle-multi-key"):
        chosen(["memory"])
    blind = copy.copy(MODEL)
    blind.tower = None
    with pytest.raises(UnsupportedError, match="video-code"):
        next(run(blind, chosen(["video-code"]), [8], [8]))
    for samples, length in ((0, 8), (1, 0)):
        with pytest.raises(UsageError):
            next(run(MODEL, chosen(["needle"]), [length], [], samples=samples))


def test_a_million_tokens_are_never_in_memory() -> None:
    stream = TASKS["parity"].stream(Draw((1,)), Room(1 << 40))
    sizes = {len(str(piece)) for piece in islice(stream, 1, 2000)}
    assert sizes == {16} and np.ndim(next(stream)) == 0
