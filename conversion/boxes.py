"""Rectangular parts of a parameter: (offsets, sizes), one number each for every dimension."""

from collections.abc import Iterator

from conversion.parameters import Parameter

Box = tuple[tuple[int, ...], tuple[int, ...]]

# Layouts whose whole parameter is the Hugging Face tensors' rows one after another.
BY_ROWS = ("replicated", "column", "vocab", "gate_up")


def cuts(parameter: Parameter, tensor_parallel: int, max_rows: int) -> list[Box]:
    """The parameter as a checkpoint stores it: the parts of the tensor-parallel ranks.

    Layouts that go by rows are cut further where a part has more than `max_rows`. An expert is
    never split over tensor parallelism.
    """
    if len(parameter.index) > 1 or parameter.layout == "replicated":
        tensor_parallel = 1
    rows, *rest = parameter.shape
    if parameter.layout == "row":
        return [((0, low), (rows, n)) for low, n in _parts(rest[0], tensor_parallel)]
    zeros, boxes, first = (0,) * len(rest), [], 0
    for block in parameter.hf_rows if parameter.layout == "gate_up" else (rows,):
        count = tensor_parallel
        if parameter.layout in BY_ROWS:
            count *= -(-block // (max_rows * count))
        boxes += [((first + low, *zeros), (n, *rest)) for low, n in _parts(block, count)]
        first += block
    return boxes


def _parts(length: int, count: int) -> list[tuple[int, int]]:
    """(start, length) of equal parts; the last ones may be shorter or absent."""
    step = -(-length // count)
    return [(low, min(step, length - low)) for low in range(0, length, step)]


def overlap(one: Box, other: Box) -> Box | None:
    """What two boxes share."""
    low = [max(a, b) for a, b in zip(one[0], other[0], strict=True)]
    ends = [
        min(a + n, b + m) for a, n, b, m in zip(one[0], one[1], other[0], other[1], strict=True)
    ]
    sizes = tuple(end - start for start, end in zip(low, ends, strict=True))
    return (tuple(low), sizes) if all(n > 0 for n in sizes) else None


def hf_rows(parameter: Parameter, start: int, stop: int) -> Iterator[tuple[str, int, int]]:
    """Rows start to stop of a BY_ROWS parameter as rows of Hugging Face tensors, in order.

    Yields (name, first row, one past the last row).
    """
    first = 0
    for name, rows in zip(parameter.hf_names, parameter.hf_rows, strict=True):
        low, high = max(start, first), min(stop, first + rows)
        if low < high:
            yield name, low - first, high - first
        first += rows
