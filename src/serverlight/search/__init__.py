"""SLICER-Search: profile once, predict, choose where to cut and how to compress."""

import sys
from types import ModuleType
from typing import Any

from serverlight.search.calibrate import calibrate_table
from serverlight.search.constraints import Constraints, Objective, Workload
from serverlight.search.fleet import FleetPlan, Member, plan_fleet
from serverlight.search.measure import profile_model
from serverlight.search.optimise import SearchResult, optimise
from serverlight.search.pipeline import search
from serverlight.search.profile import Profile
from serverlight.search.quality import QualityTable

__all__ = [
    "Constraints",
    "FleetPlan",
    "Member",
    "Objective",
    "Profile",
    "QualityTable",
    "SearchResult",
    "Workload",
    "calibrate_table",
    "optimise",
    "plan_fleet",
    "profile_model",
    "search",
]


class _CallablePackage(ModuleType):
    """Lets ``serverlight.search(model, calibration)`` work also once the package of that name has been imported."""

    def __call__(self, *args: Any, **options: Any) -> SearchResult:
        return search(*args, **options)


sys.modules[__name__].__class__ = _CallablePackage
