"""What is asked of a keeper: by its agent, and by the next image of itself."""

from __future__ import annotations

from collections.abc import Callable

from agent.errors import Missing, Refused
from agent.keeper.handover import KeptHost, KeptHosts
from agent.keeper.hosted import BACKOFF, RUNNING, STARTED, STARTING, STOPPED, Hosted
from agent.keeper.lifecycle import Lifecycle
from agent.keeper.protocol import HostOrder


def _same_process(before: HostOrder, after: HostOrder) -> bool:
    """Whether a process that runs the first can run the second: same code, environment, port and limits."""
    publishers = [order.publisher.digest if order.publisher else "" for order in (before, after)]
    return (
        before.component.digest == after.component.digest
        and publishers[0] == publishers[1]
        and (before.env, before.port, before.cpu, before.memory) == (after.env, after.port, after.cpu, after.memory)
        and before.python == after.python
    )


class Supervisor(Lifecycle):
    """All hosts of one data folder, as others ask for them."""

    def start(self, order: HostOrder) -> None:
        """The replica runs this order: started, replaced, or left alone when it runs it already."""
        self.touch(at_once=True)
        if self._leaving:
            raise Refused("the keeper is shutting down", code="SHUTTING_DOWN")
        if self.deadlines.over(order.lease):
            raise Refused(f"the leases of this node are over, {order.replica} may not start", code="LEASE_OVER")
        host = self.hosts.get(order.replica)
        if host is None:
            host = self.hosts[order.replica] = Hosted(order=order)
        elif host.state in (STARTING, STARTED) and not host.ending and host.order.spec_hash == order.spec_hash:
            self.adjust(order)
            return
        elif host.alive or host.ending:
            host.wanted = order
            self.end(host)
            return
        self.fresh(host, order)

    def stop(self, replica: str) -> None:
        """The replica's row ends in Stopped, with no process left of it."""
        self.touch(at_once=True)
        host = self.hosts.get(replica)
        if host is None:
            return
        host.wanted = None
        if host.alive or host.ending:
            self.end(host)
        elif host.state != STOPPED:
            self.settle(host, STOPPED)

    def reconfigure(self, order: HostOrder) -> None:
        """The replica runs this order, in the same process where that is possible."""
        self.touch(at_once=True)
        host = self._known(order.replica)
        within = host.order.runtime == order.runtime == "python" and host.state == STARTED and not host.ending
        if not (within and _same_process(host.order, order) and host.channel is not None):
            self.start(order)
            return
        host.take(order)
        host.state, host.healthy, host.restarts, host.crashes = STARTING, False, 0, ()
        host.channel.write(f'{{"do":"reconfigure","order":{host.order_text}}}\n'.encode())
        self.note(host)

    def adjust(self, order: HostOrder) -> None:
        """Policy, grace and log of this order count from now on."""
        self.touch(at_once=True)
        host = self._known(order.replica)
        if order.lease is not None and host.order.lease is None and self.deadlines.over(order.lease):
            raise Refused(f"the leases of this node are over, {order.replica} cannot come under one", code="LEASE_OVER")
        if host.whole and host.order.spec_hash != order.spec_hash:
            raise Refused(f"{order.replica} runs another spec", code="OTHER_SPEC", hint="reconfigure or start it")
        host.take(order)
        self._tell_order(host)
        self.note(host)

    def rename(self, replica: str, order: HostOrder) -> None:
        """The row and process of `replica` are those of `order.replica` from now on."""
        self.touch(at_once=True)
        host = self._known(replica)
        other = self.hosts.get(order.replica)
        if other is not None and other is not host:
            if other.alive:
                raise Refused(f"{order.replica} is running", code="REPLICA_EXISTS")
            self.forget(order.replica)
        del self.hosts[replica]
        host.take(order)
        self.hosts[order.replica] = host
        if replica != order.replica:
            self.dropped(replica)
        self._tell_order(host)
        self.note(host)

    def _tell_order(self, host: Hosted) -> None:
        """The host knows its order, and who watches over leases knows whether it has one."""
        self.processes.guard(host)
        if host.channel is not None:
            host.channel.write(f'{{"do":"adjust","order":{host.order_text}}}\n'.encode())
        self.deadlines.look()

    def extend(self, deadline: float) -> None:
        """Leased hosts may live until then."""
        self.deadlines.extend(deadline)

    def agree(self, replica: str, deadline: float) -> None:
        """This leased host may live until then."""
        self.deadlines.agree(replica, deadline)

    def fence(self, replica: str, code: str) -> None:
        """The leased host ends within the grace of its lease."""
        host = self.hosts.get(replica)
        if host is None or host.order.lease is None or host.fenced or host.state not in (BACKOFF, *RUNNING):
            return
        self.lease_over(host, code, host.order.lease.grace)

    def forget(self, replica: str) -> None:
        """There is no row of this replica any more."""
        self.touch(at_once=True)
        host = self.hosts.get(replica)
        if host is None:
            return
        if host.alive or host.ending:
            raise Refused(f"{replica} is running", code="HOST_RUNNING", hint="stop it first")
        self.disarm(host)
        del self.hosts[replica]
        self.dropped(replica)
        self.touch()

    def shutdown(self, left: Callable[[], None]) -> None:
        """All hosts are being stopped; `left` is called when none is left, or only what cannot be killed."""
        self._leaving, self._left = True, left
        for replica in list(self.hosts):
            self.stop(replica)
        self._loop.soon(self.check_left)

    def _known(self, replica: str) -> Hosted:
        if (host := self.hosts.get(replica)) is None:
            raise Missing(f"no host of {replica!r}", code="HOST_UNKNOWN")
        return host

    # ------------------------------------------------------------------ from image to image

    def hand_over(self) -> KeptHosts:
        """All that the next image of this keeper has to know of hosts."""
        return KeptHosts(
            hosts=tuple(
                KeptHost(
                    host,
                    line=None if host.channel is None else host.channel.line(),
                    due=None if host.timer is None else host.timer.when,
                )
                for host in self.hosts.values()
            ),
            waiting=self.processes.waiting(),
            swept=tuple(replica for replica, host in self.hosts.items() if self.processes.unproven(host)),
            zygote=self.processes.zygote.hand_over(),
            deadline=self.deadlines.deadline,
            agreed=self.deadlines.agreed,
            problems=self.problems,
        )

    def resume(self, kept: KeptHosts) -> None:
        """What the image of this keeper before us handed over goes on as if nothing had been."""
        self.problems.update(kept.problems)
        self.hosts.update({each.host.order.replica: each.host for each in kept.hosts})
        self.processes.resume(self.hosts, kept)
        for each in kept.hosts:
            if each.due is not None:
                self.set_timer(each.host, each.due)
        self.deadlines.resume(kept.deadline, kept.agreed)
        self.touch()
