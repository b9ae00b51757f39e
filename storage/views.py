"""numpy views of Arrow arrays. pyarrow's own conversion is avoided: it imports pandas, which takes seconds."""

from __future__ import annotations

import numpy as np
import pyarrow as pa


def numpy_view(array: pa.Array) -> np.ndarray:
    """A read-only view of a primitive array's values, shape (len(array),), without a copy.

    Raises ValueError if the array has nulls, because their slots hold no value.
    """
    if array.null_count:
        raise ValueError(f"{array.null_count} values are null")
    dtype = np.dtype(str(array.type))  # Arrow and numpy use the same names for number types
    buffer = array.buffers()[1]
    if buffer is None:
        return np.zeros(0, dtype)
    view = np.frombuffer(buffer, dtype, count=len(array), offset=array.offset * dtype.itemsize)
    view.flags.writeable = False
    return view
