"""Pure: a report as Prometheus text. A registry of its own each time, so nothing of an earlier answer stays."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import fields

from prometheus_client import CollectorRegistry, Gauge, generate_latest
from prometheus_client import Counter as Counted

from agent.bus.values import Figures
from agent.wire import ReplicaState, Report


def metrics_text(report: Report, used: Mapping[int, Mapping[str, float]], bus: Figures | None = None) -> bytes:
    """The figures of one node and its bus. `used` holds memory (bytes) and cpuSeconds by process id."""
    registry = CollectorRegistry(auto_describe=False)

    def gauge(name: str, text: str, *labels: str) -> Gauge:
        return Gauge(name, text, labels, registry=registry)

    replicas = gauge("tdie_agent_replicas", "Replicas on this node by state", "state")
    states = Counter(row.state for row in report.replicas)
    for state in ReplicaState:
        replicas.labels(state.value).set(states[state])
    gauge("tdie_agent_healthy_replicas", "Healthy replicas on this node").set(sum(r.healthy for r in report.replicas))
    gauge("tdie_agent_report_index", "Index of the report").set(report.index)
    gauge("tdie_agent_epoch", "Highest epoch that claimed this node").set(report.epoch)
    gauge("tdie_agent_generation", "Accepted generation").set(report.accepted.generation if report.accepted else 0)
    gauge("tdie_agent_settled", "1 when nothing is left to do").set(report.settled)
    problems = gauge("tdie_agent_problems", "Problems of this node by code", "code")
    for code, count in Counter(problem.code for problem in report.problems).items():
        problems.labels(code).set(count)
    memory = gauge("tdie_replica_memory_bytes", "Resident memory of a replica's process", "replica")
    cpu = gauge("tdie_replica_cpu_seconds", "Processor time of a replica's process", "replica")
    restarts = gauge("tdie_replica_restarts", "Restarts of a replica since it was started here", "replica")
    for row in report.replicas:
        restarts.labels(row.replica).set(row.restarts)
        if found := used.get(row.pid or 0):
            memory.labels(row.replica).set(found["memory"])
            cpu.labels(row.replica).set(found["cpuSeconds"])
    if bus is not None:
        _bus(bus, registry)
    return generate_latest(registry)


def _bus(bus: Figures, registry: CollectorRegistry) -> None:
    for field in fields(bus.counters):
        text = f"Messages {field.name} since the agent started"
        Counted(f"tdie_bus_{field.name}", text, registry=registry).inc(getattr(bus.counters, field.name))
    for name, text, found in (
        ("tdie_bus_waiting", "Messages on their way", bus.backlog),
        ("tdie_bus_dead_letters", "Messages that could not be delivered", bus.dead_letters),
    ):
        gauge = Gauge(name, text, ("topic", "instance"), registry=registry)
        for (topic, instance), count in found.items():
            gauge.labels(topic, instance).set(count)
    Gauge("tdie_bus_bytes", "Bytes of messages that are not done", registry=registry).set(bus.bytes)
