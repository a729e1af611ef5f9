"""Everything that can go wrong in a history, each with how often; what a fault breaks, it repairs after a while."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING

from reconciler.simulation.faults import consul, controllers, machines, people, ways

if TYPE_CHECKING:
    from reconciler.simulation.history import History

Fault = Callable[["History"], Coroutine[object, object, None]]

FAULTS: tuple[tuple[int, Fault], ...] = (
    (4, machines.agent_crashes),
    (2, machines.agent_is_away_for_long),
    (1, machines.agents_restart_together),
    (2, machines.agent_loses_its_ledger),
    (3, machines.agent_is_paused),
    (3, machines.machine_dies),
    (3, machines.machine_is_paused),
    (2, machines.host_cannot_be_killed),
    (2, machines.many_machines_die),
    (2, machines.keeper_crashes),
    (2, machines.disk_is_full),
    (1, machines.package_is_damaged),
    (3, machines.host_dies),
    (2, machines.host_dies_again_and_again),
    (2, machines.somebody_stops_a_host),
    (1, machines.somebody_starts_a_host),
    (4, ways.node_is_cut),
    (4, ways.node_loses_consul),
    (3, ways.answers_of_consul_to_a_node_get_lost),
    (3, ways.node_returns_after_its_work_moved),
    (2, ways.answers_of_a_node_get_lost),
    (3, ways.node_is_slow),
    (2, ways.link_flaps),
    (3, ways.answers_get_lost),
    (3, controllers.controller_crashes),
    (4, controllers.controller_is_cut),
    (4, controllers.controller_is_paused),
    (3, controllers.leader_is_replaced_while_calls_are_slow),
    (2, consul.consul_goes_away),
    (2, consul.consul_elects_a_leader),
    (1, consul.consul_is_slow),
    (2, consul.a_session_is_destroyed),
    (3, consul.a_lock_is_meddled_with),
    (1, consul.consul_is_wiped),
    (1, consul.consul_is_restored),
    (2, consul.consul_lags),
    (2, consul.answers_of_consul_get_lost),
    (7, people.a_commit_comes),
    (3, people.several_commits_come),
    (2, people.much_leaves_git),
    (2, people.a_node_joins),
    (2, people.a_node_leaves_git),
    (2, people.git_is_away),
    (2, people.a_bad_commit_comes),
    (1, people.git_is_slow),
    (2, people.a_version_is_no_good),
    (2, people.a_package_is_missing),
    (2, people.a_node_is_drained),
)
"""How often, and what happens: a fault ends by itself."""

FAILSAFE_FAULTS: tuple[tuple[int, Fault], ...] = (
    (8, consul.consul_stops),
    (10, consul.a_holder_is_alone),
    (10, consul.a_holder_moves_while_alone),
    (4, consul.a_node_joins_while_a_holder_is_alone),
)
"""Also, in histories of failsafe leases."""
