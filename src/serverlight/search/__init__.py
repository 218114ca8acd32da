"""SLICER-Search: profile once, predict, choose where to cut and how to compress."""
