"""SLICER-Search: profile once, predict, choose where to cut and how to compress."""

from serverlight.search.measure import profile_model
from serverlight.search.profile import Profile

__all__ = ["Profile", "profile_model"]
