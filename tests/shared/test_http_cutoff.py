"""Cutting blocks short from outside: each cut ends its own block, whatever else is cut."""

from __future__ import annotations

import asyncio

import pytest

from shared.http.cutoff import Cutoff, TimeLimit


@pytest.mark.parametrize("is_inner_first", [True, False])
async def test_both_are_cut_in_one_turn_and_both_blocks_end(is_inner_first: bool) -> None:
    """A client that leaves as its upstream is lost: nothing goes on for it."""
    loop = asyncio.get_running_loop()
    reached: list[str] = []
    with Cutoff() as outer:
        with Cutoff() as inner:
            pair = (inner, outer) if is_inner_first else (outer, inner)
            for each in pair:
                loop.call_soon(each.cut)
            await asyncio.sleep(5)
        reached.append("behind the inner block")
        await asyncio.sleep(5)
    assert (reached, inner.is_cut, outer.is_cut) == ([], True, True)


@pytest.mark.parametrize("is_inner", [True, False])
async def test_a_cut_ends_its_own_block_only(is_inner: bool) -> None:
    reached: list[str] = []
    with Cutoff() as outer:
        with Cutoff() as inner:
            asyncio.get_running_loop().call_soon((inner if is_inner else outer).cut)
            await asyncio.sleep(5)
        reached.append("behind the inner block")
        await asyncio.sleep(0)
    assert (len(reached), inner.is_cut, outer.is_cut) == (is_inner, is_inner, not is_inner)


async def test_a_block_that_was_cut_may_be_followed_by_another() -> None:
    for _ in range(2):
        with TimeLimit(0.01) as limit:
            await asyncio.sleep(5)
        assert limit.is_cut
    with TimeLimit(5) as limit:
        await asyncio.sleep(0)
    assert not limit.is_cut


async def test_a_task_that_is_cancelled_ends_whatever_it_is_in() -> None:
    async def work() -> None:
        with Cutoff():
            await asyncio.sleep(5)

    task = asyncio.ensure_future(work())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
