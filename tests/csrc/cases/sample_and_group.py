"""Cases of sample_and_group: sampling, nearest neighbours and centred patches in one."""

from pointpeft.ops import furthest_point_sample_reference
from tests.csrc.cases.draw import FLOATS, Case, Draw, references_take_any_value, rows_or_zeros, wide
from tests.csrc.cases.furthest_point_sample import arguments_of
from tests.csrc.cases.knn import by_clouds


def sample_and_group(draw: Draw) -> Case:
    dtype, b, n = draw.choice(FLOATS), draw.randint(1, 2), draw.size(600)
    groups, size = min(n, draw.size(12)), min(n, draw.choice((1, 8, 32, 33, 130)))
    x, _, lengths, starts, start, min_sq_norm = arguments_of(draw, b, n, max(groups, size), dtype)

    def expected():
        with references_take_any_value():
            first = start if starts is None else starts
            center_idx = furthest_point_sample_reference(
                x, groups, lengths=lengths, start=first, min_sq_norm=min_sq_norm
            )
        centers = rows_or_zeros(x, center_idx)
        neighbor_idx = by_clouds(centers, x, size, lengths)[1]
        neighbors = rows_or_zeros(x, neighbor_idx).to(wide(dtype))
        patches = (neighbors - centers[:, :, None].to(wide(dtype))).to(dtype)
        return tuple((output, None) for output in (patches, centers, center_idx, neighbor_idx))

    arguments = (x, groups, size, lengths, starts, start, min_sq_norm)
    path = "patches" + (" in passes" if size > 128 else "")
    return Case("sample_and_group", path, arguments, expected, draw.device())


CASES = (sample_and_group,)
