"""The three documents people write: Cluster, Package and Instance. Docstrings and descriptions are what editors show."""

from __future__ import annotations

from reconciler.model.documents.base import API_VERSION, Document, Metadata
from reconciler.model.documents.cluster import Cluster, ClusterBody, Leases
from reconciler.model.documents.instance import Health, Instance, InstanceBody
from reconciler.model.documents.package import Package, PackageBody, PackageSource

__all__ = [
    "API_VERSION",
    "KINDS",
    "AnyDocument",
    "Cluster",
    "ClusterBody",
    "Document",
    "Health",
    "Instance",
    "InstanceBody",
    "Leases",
    "Metadata",
    "Package",
    "PackageBody",
    "PackageSource",
]

AnyDocument = Cluster | Package | Instance
KINDS: dict[str, type[Cluster] | type[Package] | type[Instance]] = {
    "Cluster": Cluster,
    "Package": Package,
    "Instance": Instance,
}
