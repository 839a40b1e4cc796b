"""Point operations: on the CPU and CUDA, under autograd, autocast, torch.compile and export."""

from pointpeft.ops._library import backend
from pointpeft.ops.ball_query import ball_query, ball_query_reference
from pointpeft.ops.chamfer_distance import chamfer_distance, chamfer_distance_reference
from pointpeft.ops.furthest_point_sample import furthest_point_sample, furthest_point_sample_reference

__all__ = [
    "backend",
    "ball_query",
    "ball_query_reference",
    "chamfer_distance",
    "chamfer_distance_reference",
    "furthest_point_sample",
    "furthest_point_sample_reference",
]
