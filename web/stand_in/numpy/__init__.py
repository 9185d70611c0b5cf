"""What one estimate needs of NumPy, in Python: for a browser whose Pyodide has no NumPy beside it.

Arrays of one or two dimensions, as lists. Anything else is an AttributeError, so that nothing is answered by half.
"""

import math

float64, int64, bool_ = float, int, bool


class ndarray:
    """Rows of numbers, or of rows."""

    def __init__(self, values):
        self.values = values

    def __len__(self):
        return len(self.values)

    def __iter__(self):
        return (ndarray(value) if isinstance(value, list) else value for value in self.values)

    def __getitem__(self, index):
        value = self.values[index]
        return ndarray(value) if isinstance(value, list) else value

    def __setitem__(self, index, value):
        self.values[index] = list(value.values) if isinstance(value, ndarray) else value

    def tolist(self):
        return [value[:] if isinstance(value, list) else value for value in self.values]

    def _with(self, other, act):
        if isinstance(other, ndarray):
            pairs = zip(self.values, other.values, strict=True)
        else:
            pairs = ((value, other) for value in self.values)
        return ndarray([_act(a, b, act) for a, b in pairs])

    def __add__(self, other):
        return self._with(other, lambda a, b: a + b)

    def __sub__(self, other):
        return self._with(other, lambda a, b: a - b)

    def __mul__(self, other):
        return self._with(other, lambda a, b: a * b)

    def __truediv__(self, other):
        return self._with(other, lambda a, b: a / b)

    __radd__, __rmul__ = __add__, __mul__

    @property
    def T(self):
        return ndarray([list(column) for column in zip(*self.values, strict=True)])


def _act(a, b, act):
    if not isinstance(a, list):
        return act(a, b)
    return ndarray(a)._with(ndarray(b) if isinstance(b, list) else b, act).values


def array(values, dtype=None):
    kind = dtype or (lambda value: value)
    return ndarray([[kind(v) for v in value] if isinstance(value, (list, tuple)) else kind(value) for value in values])


def zeros(shape, dtype=float):
    if isinstance(shape, int):
        return ndarray([dtype()] * shape)
    rows, columns = shape
    return ndarray([[dtype()] * columns for _ in range(rows)])


def ceil(value):
    return float(math.ceil(value))


def cbrt(value):
    return math.cbrt(value)


def minimum(one, other):
    return min(one, other)


def maximum(one, other):
    return max(one, other)
