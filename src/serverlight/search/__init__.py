"""SLICER-Search: profile once, predict, choose where to cut and how to compress."""

from serverlight.search.calibrate import calibrate_table
from serverlight.search.measure import profile_model
from serverlight.search.profile import Profile
from serverlight.search.quality import QualityTable

__all__ = ["Profile", "QualityTable", "calibrate_table", "profile_model"]
