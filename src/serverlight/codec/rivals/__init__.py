"""What the codec is compared with: real bytes from every rival, each at its best setting, in NumPy."""

from serverlight.codec.rivals.families import Family, families, family
from serverlight.codec.rivals.rival import Rival

__all__ = ["Family", "Rival", "families", "family"]
