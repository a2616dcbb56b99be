"""Requests find the least loaded server; those of a dead one are answered elsewhere, once."""

import asyncio
from collections import Counter
from dataclasses import dataclass, field

import pytest

from alp_megatron.rollout.server.client import ServerLost
from alp_megatron.rollout.server.pool import route


@dataclass
class Server:
    """Answers after `ticks`; dies at its `dies_at`th request, or hangs from there on."""

    ticks: int = 1
    dies_at: int | None = None
    hangs_at: int | None = None
    serving: bool = True
    in_flight: int = 0
    most: int = 0
    asked: list[int] = field(default_factory=list)
    found_hanging: asyncio.Event = field(default_factory=asyncio.Event)

    async def ask(self, request: int) -> str:
        self.asked.append(request)
        self.most = max(self.most, self.in_flight)
        if self.hangs_at is not None and len(self.asked) >= self.hangs_at:
            self.found_hanging.set()
            await asyncio.Event().wait()
        for _ in range(self.ticks):
            await asyncio.sleep(0)
            if self.dies_at is not None and len(self.asked) >= self.dies_at:
                raise ServerLost("gone")
        return f"reply {request}"


def run(requests: int, servers: list[Server], most_in_flight: int = 8):
    lost: list[tuple[Server, str]] = []

    async def ask(server: Server, request: int) -> str:
        return await server.ask(request)

    async def until_dead(server: Server) -> None:
        await server.found_hanging.wait()

    def tell(server: Server, why: str) -> None:
        lost.append((server, why))

    work = route(list(range(requests)), servers, ask, until_dead, tell, most_in_flight)
    replies = asyncio.run(work)
    assert replies == [f"reply {request}" for request in range(requests)]
    assert all(server.in_flight == 0 for server in servers)
    return lost


def test_every_request_is_answered_in_order_by_one_server():
    servers = [Server(), Server(), Server()]
    assert run(50, servers) == []
    assert Counter(sum((s.asked for s in servers), [])) == Counter(range(50))
    assert {len(s.asked) for s in servers} <= {16, 17, 18}


def test_the_fast_server_gets_more():
    slow, fast = Server(ticks=12), Server(ticks=2)
    run(100, [slow, fast])
    assert len(fast.asked) > 2 * len(slow.asked)


def test_no_server_gets_more_than_its_share_at_a_time():
    servers = [Server(ticks=3), Server(ticks=5)]
    run(40, servers, most_in_flight=4)
    assert [server.most for server in servers] == [4, 4]


@pytest.mark.parametrize("how", ["dies_at", "hangs_at"])
@pytest.mark.parametrize("when", [1, 3, 8])
def test_what_a_lost_server_did_not_answer_goes_to_the_others(how, when):
    bad, good = Server(ticks=2, **{how: when}), Server(ticks=2)
    ((server, why),) = run(30, [bad, good])
    assert server is bad and why
    assert not bad.serving and good.serving
    answered_by_bad = set(range(30)) - set(good.asked)
    assert answered_by_bad <= set(bad.asked)
    assert len(good.asked) == len(set(good.asked))  # none asked twice of the one that lives


def test_one_after_another_may_go():
    servers = [Server(dies_at=2), Server(dies_at=9), Server(ticks=2)]
    assert [server for server, _ in run(40, servers)] == servers[:2]


def test_a_server_that_does_not_serve_gets_nothing():
    resting = Server(serving=False)
    run(5, [resting, Server()])
    assert resting.asked == []


def test_without_any_server_it_is_an_error():
    with pytest.raises(ServerLost, match="gone"):
        run(5, [Server(dies_at=1), Server(dies_at=2)])
    with pytest.raises(ServerLost, match="no server is serving"):
        run(5, [Server(serving=False)])


def test_a_refusal_ends_all_and_leaves_no_count_behind():
    class Refuses(Server):
        async def ask(self, request: int) -> str:
            await super().ask(request)
            raise ValueError("a bad request")

    servers = [Refuses(), Server(ticks=50)]
    with pytest.raises(ValueError, match="a bad request"):
        run(20, servers)
    assert [server.in_flight for server in servers] == [0, 0]
    assert servers[1].serving
