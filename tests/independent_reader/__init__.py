"""A second reader of docs/wire-format.md, in plain Python with the standard library only.

It shares no code with the package: it shows that the page is enough to write a reader from. Slow, and trusting where the
package's reader is not. Values come as Python floats that hold binary32 numbers exactly.
"""

from independent_reader.frame import read_frame
from independent_reader.serverlight import Basis

__all__ = ["Basis", "read_frame"]
