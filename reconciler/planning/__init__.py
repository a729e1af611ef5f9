"""PUBLIC, pure: desired state × observed state → plan."""

from reconciler.planning.checks import PlanBroken
from reconciler.planning.memo import Memo
from reconciler.planning.planner import plan

__all__ = ["Memo", "PlanBroken", "plan"]
