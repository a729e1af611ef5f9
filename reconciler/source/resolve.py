"""From a tree of files to the DesiredState it asks for, or to every problem that keeps it from being in force.

The whole tree is resolved once; after that a change to Instance documents costs what changed, and Instances that were left
alone stay the same objects. The short way is only taken between two good trees; anything else goes the whole way again.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from agent.errors import TdieError
from agent.wire import Capacity, PackageRef
from reconciler.model.desired import (
    ClusterSpec,
    DesiredState,
    FailoverPolicy,
    InstanceSpec,
    NodeSpec,
    SourcePolicy,
    SyncPolicy,
)
from reconciler.model.documents import Cluster, ClusterBody, Instance, Package
from reconciler.model.lease_figures import figures
from reconciler.model.problems import Problem
from reconciler.model.versions import best, split_reference
from reconciler.model.windows import SyncWindow
from reconciler.source.catalog import Catalog, is_content, unsupported
from reconciler.source.decode import Decoded, Found, Path
from reconciler.source.findings import Findings
from reconciler.source.hosts import refused_url
from reconciler.source.instances import Located, Made, make
from reconciler.source.relations import check, related
from reconciler.source.shelf import Download, Needed, Packaged, Shelf
from reconciler.source.walk import Tree

UNKNOWN = "?"  # stands for the versions of Package documents that cannot be read

Changed = Mapping[str, tuple[Decoded | None, Decoded | None]]
Table = dict[str, dict[str, Packaged | None]]  # name → version → package; None: it is named, but wrong


@dataclass(frozen=True, slots=True)
class Commit:
    """What people know a tree by."""

    id: str
    subject: str = ""
    author: str = ""


@dataclass(frozen=True, slots=True)
class Resolved:
    """The desired state of a tree, or what is wrong with it, or what must be fetched before it can be said."""

    desired: DesiredState | None = None
    problems: tuple[Problem, ...] = ()
    needed: tuple[Download, ...] = ()


@dataclass(slots=True)
class _Whole:
    """What one pass over a tree gathers."""

    findings: Findings = field(default_factory=Findings)
    clusters: list[tuple[str, Found, Cluster]] = field(default_factory=list)
    packages: list[tuple[str, Found, Package]] = field(default_factory=list)
    instances: dict[str, Located] = field(default_factory=dict)
    table: Table = field(default_factory=dict)
    needed: set[Download] = field(default_factory=set)
    broken: set[tuple[str, str]] = field(default_factory=set)  # (kind, name) of documents that already are a problem
    chosen: dict[str, Packaged | str] = field(default_factory=dict)  # reference → package, or what is wrong with it


@dataclass(slots=True)
class _Good:
    """The last good tree, for the short way to the next one."""

    desired: DesiredState
    folders: frozenset[str]
    packages: list[tuple[str, Found, Package]]
    table: Table
    chosen: dict[str, Packaged | str]


class Resolver:
    """Resolves one tree after another. Used by one thread at a time."""

    def __init__(self, shelf: Shelf, *, cluster_name: str | None = None) -> None:
        self._shelf = shelf
        self._cluster_name = cluster_name
        self._catalog = Catalog()
        self._made: dict[str, Made] = {}
        self._good: _Good | None = None
        self._cluster: ClusterSpec | None = None

    def resolve(self, tree: Tree, commit: Commit) -> Resolved:
        """What the tree asks for. Raises TdieError (GIT_CORRUPT, GIT_TOO_LARGE) when it cannot be read."""
        good, self._good = self._good, None
        with _few_collections():
            changed = self._catalog.advance(tree)
            if good is not None and changed is not None:
                short = self._short(tree, commit, good, changed)
                if short is not None:
                    return short
            return self._long(tree, commit)

    # ------------------------------------------------------------------------------------- the short way

    def _short(self, tree: Tree, commit: Commit, good: _Good, changed: Changed) -> Resolved | None:
        """The next state when only Instance documents changed that no other document depends on; None for anything else."""
        pairs: list[tuple[str, Located]] = []
        for path, (before, after) in changed.items():
            if self._catalog.is_ignored(path) or is_content(path, good.folders):
                continue
            old, new = _instances(path, before), _instances(path, after)
            if old is None or new is None or [o.name for o in old] != [n.name for n in new]:
                return None
            if any(related(located.document.spec) for located in (*old, *new)):
                return None
            pairs += [(path, located) for located in new]
        try:
            same = all(
                self._shelf.get(p.metadata.name, p.spec, tree) is good.table[p.metadata.name].get(p.spec.version)
                for _, _, p in good.packages
            )
        except (TdieError, Needed):
            return None
        if not same:
            return None
        specs: dict[str, InstanceSpec] = {}
        for _, located in pairs:
            made = self._make_known(located, good)
            if made is None or made.spec is None:
                return None
            specs[located.name] = made.spec
        instances = {**good.desired.instances, **specs}
        desired = DesiredState(commit.id, good.desired.cluster, instances, commit.subject, commit.author)
        self._good = replace(good, desired=desired)
        return Resolved(desired)

    def _make_known(self, located: Located, good: _Good) -> Made | None:
        body = located.document.spec
        package = _choose(good.table, good.chosen, body.package)
        publisher = _choose(good.table, good.chosen, body.publisher.package) if body.publisher is not None else None
        if isinstance(package, str) or isinstance(publisher, str):
            return None
        return self._make(located, package, publisher)

    def _make(self, located: Located, package: Packaged, publisher: Packaged | None) -> Made:
        made = self._made.get(located.name)
        if made is None or not made.still(located, package, publisher):
            again = make(located, package, publisher)
            if made is not None and made.spec is not None and made.spec == again.spec:
                again = replace(again, spec=made.spec)
            made = self._made[located.name] = again
        return made

    # -------------------------------------------------------------------------------------- the long way

    def _long(self, tree: Tree, commit: Commit) -> Resolved:
        whole = _Whole()
        folders = self._gather(whole)
        cluster = self._one_cluster(whole)
        self._fill_table(whole, tree, cluster)
        specs = self._make_all(whole)
        names = frozenset(whole.instances)
        broken = frozenset(name for kind, name in whole.broken if kind == "Instance")
        for located, path, code, message in check(whole.instances, cluster.spec if cluster else None, broken):
            whole.findings.at(located.file, located.found, path, code, message)
        everywhere = self._everywhere(whole, cluster)
        if cluster is not None and not names and not whole.findings and not cluster.spec.source.allow_empty:
            text = "there is no Instance in this commit; only spec.source.allowEmpty: true accepts that"
            whole.findings.whole("EMPTY_DESIRED_STATE", text)
        if whole.findings or cluster is None:
            return Resolved(problems=whole.findings.sorted(self._reader(tree)))
        if whole.needed:
            return Resolved(needed=tuple(sorted(whole.needed)))
        spec = _cluster(cluster, everywhere)
        if self._cluster == spec:
            spec = self._cluster
        self._cluster = spec
        for gone in self._made.keys() - names:
            del self._made[gone]
        desired = DesiredState(commit.id, spec, dict(sorted(specs.items())), commit.subject, commit.author)
        self._good = _Good(desired, folders, whole.packages, whole.table, whole.chosen)
        return Resolved(desired)

    def _reader(self, tree: Tree) -> Callable[[str], bytes]:
        return lambda path: tree.read(path, self._catalog.ids[path])

    def _gather(self, whole: _Whole) -> frozenset[str]:
        """Every document by kind, and every problem a file has in itself. Comes back: the package folders."""
        catalog, findings = self._catalog, whole.findings
        folders, inside = catalog.package_folders()
        for path, flaw in unsupported(catalog):
            findings.flaw(path, flaw)
        for path, found in inside:
            text = "a Package document cannot lie in the folder it packs; move it out"
            findings.at(path, found, ("spec", "source", "path"), "PKG_INSIDE", text)
            whole.broken.add(("Package", found.document.metadata.name))
        for path in catalog.paths():
            if catalog.is_ignored(path) or (folders and is_content(path, folders)):
                continue
            decoded = catalog.files[path]
            for flaw in decoded.flaws:
                findings.flaw(path, flaw)
            whole.broken.update(decoded.broken)
            for found in decoded.found:
                match found.document:
                    case Instance() as instance:
                        located = Located(path, found, instance)
                        first = whole.instances.setdefault(located.name, located)
                        if first is not located:
                            _twice(findings, path, found, f"instance '{located.name}'", str(first.place))
                    case Package() as package:
                        whole.packages.append((path, found, package))
                    case Cluster() as cluster:
                        whole.clusters.append((path, found, cluster))
        return folders

    def _one_cluster(self, whole: _Whole) -> Cluster | None:
        findings = whole.findings
        if not whole.clusters:
            if not self._catalog.files:
                findings.whole("EMPTY_DESIRED_STATE", "there is no document at all in this commit")
            elif not any(kind == "Cluster" for kind, _ in whole.broken):
                findings.whole("CLUSTER_MISSING", "there is no Cluster document; exactly one is needed")
            return None
        path, found, cluster = whole.clusters[0]
        for other, again, _ in whole.clusters[1:]:
            place = f"{path}:{found.line}:{found.column}"
            findings.at(
                other, again, ("kind",), "DUPLICATE", f"exactly one Cluster is allowed; the first is in {place}"
            )
        name = cluster.metadata.name
        if self._cluster_name is not None and name != self._cluster_name:
            text = f"this controller looks after cluster '{self._cluster_name}', not '{name}'"
            findings.at(path, found, ("metadata", "name"), "CLUSTER_NAME", text)
        seen: dict[str, int] = {}
        for index, node in enumerate(cluster.spec.nodes):
            if node.name in seen:
                text = f"node '{node.name}' is already listed as number {seen[node.name] + 1}"
                findings.at(path, found, ("spec", "nodes", index, "name"), "DUPLICATE", text)
            seen.setdefault(node.name, index)
        return cluster

    def _fill_table(self, whole: _Whole, tree: Tree, cluster: Cluster | None) -> None:
        hosts = tuple(cluster.spec.source.package_hosts) if cluster else ()
        for kind, name in whole.broken:
            if kind == "Package":  # which version it is cannot be known, so nothing is said of its users
                whole.table.setdefault(name, {})[UNKNOWN] = None
        first: dict[tuple[str, str], str] = {}
        for path, found, package in whole.packages:
            name, version = package.metadata.name, package.spec.version
            place = f"{path}:{found.line}:{found.column}"
            if (earlier := first.setdefault((name, version), place)) != place:
                _twice(whole.findings, path, found, f"package {name}@{version}", earlier)
                continue
            versions = whole.table.setdefault(name, {})
            versions[version] = None
            at: Path = ("spec", "source")
            url = package.spec.source.url
            if url is not None and cluster is not None and (reason := refused_url(url, hosts)):
                whole.findings.at(path, found, (*at, "url"), "PKG_HOST", reason)
                continue
            try:
                versions[version] = self._shelf.get(name, package.spec, tree)
            except Needed as needed:
                if not (needed.download.digest and self._shelf.uploads_unknown):
                    whole.needed.add(needed.download)
            except TdieError as error:
                if error.code == "GIT_CORRUPT":
                    raise
                where = f"{error.where}: " if error.where else ""
                which = next(
                    k for k in ("path", "builtin", "url", "digest") if getattr(package.spec.source, k) is not None
                )
                whole.findings.at(path, found, (*at, which), error.code, f"{where}{error.detail}")

    def _make_all(self, whole: _Whole) -> dict[str, InstanceSpec]:
        specs: dict[str, InstanceSpec] = {}
        for name, located in whole.instances.items():
            body = located.document.spec
            package = self._chosen(whole, located, body.package, ("spec", "package"))
            publisher = None
            if body.publisher is not None:
                publisher = self._chosen(whole, located, body.publisher.package, ("spec", "publisher", "package"))
                if publisher is None:
                    continue
            if package is None:
                continue
            made = self._make(located, package, publisher)
            if made.spec is not None:
                specs[name] = made.spec
            for path, code, message, key in made.complaints:
                whole.findings.at(located.file, located.found, path, code, message, key=key)
        return specs

    def _chosen(self, whole: _Whole, located: Located, reference: str, at: Path) -> Packaged | None:
        package = _choose(whole.table, whole.chosen, reference)
        if isinstance(package, Packaged):
            return package
        if package:
            whole.findings.at(located.file, located.found, at, "DANGLING", package)
        return None

    def _everywhere(self, whole: _Whole, cluster: Cluster | None) -> tuple[PackageRef, ...]:
        """The packages every node gets, sorted."""
        if cluster is None:
            return ()
        path, found, _ = whole.clusters[0]
        refs: dict[str, PackageRef] = {}
        for index, reference in enumerate(cluster.spec.packages):
            package = _choose(whole.table, whole.chosen, reference)
            if isinstance(package, Packaged):
                refs[str(package.ref)] = package.ref
            elif package:
                whole.findings.at(path, found, ("spec", "packages", index), "DANGLING", package)
        for _, _, document in whole.packages:
            known = whole.table[document.metadata.name].get(document.spec.version)
            if document.spec.distribute == "all" and known is not None:
                refs[str(known.ref)] = known.ref
        return tuple(ref for _, ref in sorted(refs.items()))


@contextmanager
def _few_collections() -> Iterator[None]:
    """Without the garbage collector, which would scan a growing heap of values that all stay: half the time of a cold load."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _instances(path: str, decoded: Decoded | None) -> list[Located] | None:
    """The Instances of a file that holds nothing else and is without flaws; None for any other file."""
    if decoded is None or decoded.flaws:
        return None
    rows = [Located(path, found, found.document) for found in decoded.found if isinstance(found.document, Instance)]
    return rows if len(rows) == len(decoded.found) else None


def _choose(table: Table, chosen: dict[str, Packaged | str], reference: str) -> Packaged | str:
    """The best package for a reference, or what is wrong with it ("" when its own document already says)."""
    if (known := chosen.get(reference)) is not None:
        return known
    name, wanted = split_reference(reference)
    versions = table.get(name)
    result: Packaged | str
    if versions is None:
        result = f"there is no package '{name}'"
    elif (version := best(wanted, versions.keys() - {UNKNOWN})) is None and UNKNOWN in versions:
        result = ""
    elif version is None:
        result = f"no version satisfies '{reference}'; there is {', '.join(sorted(versions))}"
    else:
        result = versions[version] or ""
    chosen[reference] = result
    return result


def _twice(findings: Findings, file: str, found: Found, what: str, first: str) -> None:
    findings.at(file, found, ("metadata", "name"), "DUPLICATE", f"{what} is already defined in {first}")


def _cluster(cluster: Cluster, everywhere: tuple[PackageRef, ...]) -> ClusterSpec:
    body: ClusterBody = cluster.spec
    nodes = {
        node.name: NodeSpec(
            name=node.name,
            labels=node.labels,
            capacity=Capacity(slots=node.capacity.slots, cpu=node.capacity.cpu, memory=node.capacity.memory),
            cordoned=node.cordoned,
            address=node.address,
            api_uri=node.api_uri,
        )
        for node in sorted(body.nodes, key=lambda node: node.name)
    }
    sync, failover = body.sync, body.failover
    return ClusterSpec(
        name=cluster.metadata.name,
        nodes=nodes,
        packages=everywhere,
        source=SourcePolicy(body.source.allow_force, body.source.allow_empty, tuple(body.source.package_hosts)),
        sync=SyncPolicy(
            mode=sync.mode,
            interval=sync.interval,
            self_heal=sync.self_heal,
            prune=sync.prune,
            max_prune=sync.max_prune,
            windows=tuple(SyncWindow(w.schedule, w.duration, w.time_zone, w.kind) for w in sync.windows),
        ),
        failover=FailoverPolicy(failover.lost_after, failover.mass_failure.fraction, failover.mass_failure.at_least),
        leases=figures(body.leases),
        retain_versions=body.retention.package_versions
        if "package_versions" in body.retention.model_fields_set
        else None,
        retain_history=body.retention.history,
    )
