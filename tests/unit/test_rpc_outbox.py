"""Goal: a connection's bytes leave in the order in which their frames were begun, none inside
another or past one that somebody else sends, and budgets come back once each. Method: the outbox by
hand, and beside a model that is a list of strings, with random steps."""

import asyncio
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridps.rpc.budget import Budget, Grant
from hybridps.rpc.outbox import Frame, Outbox

ALL = 1 << 62


class Held:
    """A budget, and how much of what was held of it came back."""

    def __init__(self) -> None:
        self._budget = Budget(ALL)
        self._held = 0

    def __call__(self, count: int) -> Grant:
        self._held += count
        return self._budget.hold(count)

    @property
    def back(self) -> int:
        return self._held - self._budget.used


class Bytes:
    """Numbered bytes, so that none can stand in for another."""

    def __init__(self) -> None:
        self.made = 0

    def take(self, count: int) -> bytes:
        self.made += count
        return bytes((self.made - n) % 251 for n in range(count, 0, -1))


def drain(outbox: Outbox, limit: int = ALL) -> bytes:
    taken = b""
    while (chunk := outbox.take(limit)) is not None:
        assert 0 < len(chunk) <= limit
        taken += chunk
    return taken


def test_whole_frames_leave_in_order_and_their_budget_when_they_were_handed_over() -> None:
    held, outbox = Held(), Outbox()
    assert not outbox
    assert outbox.take(ALL) is None
    outbox.put(b"one", held(10))
    outbox.put(b"three", held(30))
    assert (bool(outbox), outbox.unsent_bytes) == (True, 8)
    assert drain(outbox) == b"onethree"
    assert (bool(outbox), outbox.unsent_bytes, held.back) == (False, 0, 0)
    outbox.handed_over()
    outbox.handed_over()
    assert held.back == 40


def test_pieces_are_cut_at_the_limit_and_nothing_is_lost_at_the_cuts() -> None:
    outbox = Outbox()
    text = Bytes().take(1000)
    outbox.put(text[:999], None)
    outbox.put(text[999:], None)
    chunks = []
    while (chunk := outbox.take(100)) is not None:
        chunks.append(bytes(chunk))
    assert [len(chunk) for chunk in chunks] == [100] * 9 + [99, 1]
    assert b"".join(chunks) == text


def test_a_frame_waits_behind_one_that_others_send() -> None:
    held, outbox = Held(), Outbox()
    first, second = outbox.begin(held(1)), outbox.begin(held(2))
    outbox.put(b"cc", held(4))
    outbox.end(second, b"bb")
    assert drain(outbox) == b""
    assert (bool(outbox), outbox.unsent_bytes) == (True, 4)
    outbox.handed_over()
    assert held.back == 0
    outbox.end(first, b"a")
    assert drain(outbox) == b"abbcc"
    outbox.handed_over()
    assert (held.back, bool(outbox)) == (7, False)


def test_frames_without_bytes_stop_nothing() -> None:
    outbox = Outbox()
    frame = outbox.begin(None)
    outbox.put(b"", None)
    outbox.put(b"b", None)
    outbox.end(frame, b"")
    assert drain(outbox) == b"b"
    assert not outbox


async def settled(task: asyncio.Task[bool]) -> bool:
    """Whether the task has ended once the loop has gone round."""
    for _ in range(5):
        await asyncio.sleep(0)
    return task.done()


async def test_a_turn_comes_when_all_before_have_left() -> None:
    outbox = Outbox()
    first, second = outbox.begin(None), outbox.begin(None)
    assert await outbox.turn(first)
    outbox.put(b"c", None)
    waiting = asyncio.create_task(outbox.turn(second))
    assert not await settled(waiting)
    outbox.end(first, b"a")
    assert not await settled(waiting), "what is left of the first was not taken"
    assert drain(outbox) == b"a"
    assert await settled(waiting)
    assert await waiting
    outbox.end(second, b"")
    assert drain(outbox) == b"c"


@pytest.mark.parametrize("is_first", [True, False])
async def test_closing_tells_who_waits_and_gives_every_budget_back_once(is_first: bool) -> None:
    held, outbox = Held(), Outbox()
    outbox.put(b"sent", held(1))
    drain(outbox)
    if not is_first:
        outbox.begin(held(2))
    frame = outbox.begin(held(4))
    outbox.put(b"behind", held(8))
    waiting = asyncio.create_task(outbox.turn(frame))
    assert await settled(waiting) == is_first
    outbox.close()
    assert await settled(waiting)
    assert await waiting == is_first
    assert not await outbox.turn(frame)
    assert held.back == (13 if is_first else 15)
    # What was still to be sent comes too late, and is dropped.
    outbox.end(frame, b"late")
    assert (outbox.take(ALL), bool(outbox), outbox.unsent_bytes) == (None, False, 0)
    outbox.handed_over()
    outbox.close()
    assert held.back == (13 if is_first else 15)


def test_what_comes_after_the_close_is_dropped_and_its_budget_given_back() -> None:
    held, outbox = Held(), Outbox()
    outbox.close()
    outbox.put(b"late", held(5))
    assert (bool(outbox), outbox.take(ALL), held.back) == (False, None, 5)


@dataclass
class Sent:
    """A frame of the model."""

    budget: int
    frame: Frame | None
    text: bytes = b""
    is_whole: bool = False


@dataclass
class Model:
    """What the outbox must do: all text in the order of the frames, up to the first that others
    send."""

    frames: list[Sent] = field(default_factory=list)
    taken: bytes = b""

    def due(self) -> bytes:
        text = b""
        for sent in self.frames:
            text += sent.text
            if not sent.is_whole:
                break
        return text

    def ended(self) -> list[Sent]:
        """Frames of which nothing is left."""
        ended, left = [], len(self.taken)
        for sent in self.frames:
            left -= len(sent.text)
            if left < 0 or not sent.is_whole:
                break
            ended.append(sent)
        return ended

    def begun(self) -> list[Sent]:
        return [sent for sent in self.frames if not sent.is_whole]


STEP = st.tuples(
    st.sampled_from(["put", "begin", "end", "end", "take", "take", "drain", "handed"]),
    st.integers(0, 40),
    st.integers(0, 10),
)


@settings(max_examples=300, deadline=None)
@given(steps=st.lists(STEP, max_size=60))
def test_any_steps_agree_with_a_list_of_strings(steps: list[tuple[str, int, int]]) -> None:
    held, outbox, model, source = Held(), Outbox(), Model(), Bytes()
    for step, size, which in steps:
        begun = model.begun()
        if step == "put":
            text = source.take(size)
            outbox.put(text, held(which))
            model.frames.append(Sent(which, None, text, is_whole=True))
        elif step == "begin":
            model.frames.append(Sent(which, outbox.begin(held(which))))
        elif step == "end" and begun:
            sent = begun[which % len(begun)]
            assert sent.frame is not None
            sent.text = source.take(size)
            outbox.end(sent.frame, sent.text)
            sent.is_whole = True
        elif step == "take":
            chunk = outbox.take(size + 1)
            assert chunk is None or 0 < len(chunk) <= size + 1
            model.taken += bytes(chunk or b"")
        elif step == "drain":
            model.taken += drain(outbox)
            assert model.taken == model.due()
            assert bool(outbox) == (len(model.ended()) < len(model.frames))
        elif step == "handed":
            if not outbox.unsent_bytes:
                # A frame whose end has no bytes is noticed here.
                assert outbox.take(ALL) is None
            outbox.handed_over()
            ended = sum(sent.budget for sent in model.ended())
            assert held.back <= ended
            assert outbox.unsent_bytes or held.back == ended
        assert model.due().startswith(model.taken)
        sent_bytes = sum(len(sent.text) for sent in model.frames)
        assert outbox.unsent_bytes == sent_bytes - len(model.taken)
    outbox.close()
    assert held.back == sum(sent.budget for sent in model.frames)
