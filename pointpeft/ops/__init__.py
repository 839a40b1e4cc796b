"""Point operations: on the CPU and CUDA, under autograd, autocast, torch.compile and export."""

from pointpeft.ops.core import derivatives, library
from pointpeft.ops.core.library import backend
from pointpeft.ops.frozen.adapter import AdapterWeights, adapter, adapter_reference
from pointpeft.ops.frozen.attention import attention, attention_reference
from pointpeft.ops.frozen.frozen_attention import frozen_attention, frozen_attention_reference
from pointpeft.ops.frozen.frozen_linear import frozen_linear, frozen_linear_reference
from pointpeft.ops.frozen.frozen_mlp import MlpWeights, NormWeights, frozen_mlp, frozen_mlp_reference
from pointpeft.ops.frozen.layer_norm import layer_norm, layer_norm_reference
from pointpeft.ops.frozen.patch_embed import PatchEmbedWeights, fold_batch_norm, patch_embed, patch_embed_reference
from pointpeft.ops.frozen.patch_embed_statistics import patch_embed_statistics, patch_embed_statistics_reference
from pointpeft.ops.frozen.scale_shift import scale_shift, scale_shift_reference
from pointpeft.ops.points.aggregate_neighbors import aggregate_neighbors, aggregate_neighbors_reference
from pointpeft.ops.points.ball_query import ball_query, ball_query_reference
from pointpeft.ops.points.chamfer_distance import chamfer_distance, chamfer_distance_reference
from pointpeft.ops.points.furthest_point_sample import furthest_point_sample, furthest_point_sample_reference
from pointpeft.ops.points.gather import gather, gather_reference
from pointpeft.ops.points.interpolate import interpolate, interpolate_reference
from pointpeft.ops.points.knn import knn, knn_reference
from pointpeft.ops.points.sample_and_group import Groups, sample_and_group, sample_and_group_reference

__all__ = [
    "AdapterWeights",
    "Groups",
    "MlpWeights",
    "NormWeights",
    "PatchEmbedWeights",
    "adapter",
    "adapter_reference",
    "aggregate_neighbors",
    "aggregate_neighbors_reference",
    "attention",
    "attention_reference",
    "backend",
    "ball_query",
    "ball_query_reference",
    "chamfer_distance",
    "chamfer_distance_reference",
    "fold_batch_norm",
    "frozen_attention",
    "frozen_attention_reference",
    "frozen_linear",
    "frozen_linear_reference",
    "frozen_mlp",
    "frozen_mlp_reference",
    "furthest_point_sample",
    "furthest_point_sample_reference",
    "gather",
    "gather_reference",
    "interpolate",
    "interpolate_reference",
    "knn",
    "knn_reference",
    "layer_norm",
    "layer_norm_reference",
    "patch_embed",
    "patch_embed_reference",
    "patch_embed_statistics",
    "patch_embed_statistics_reference",
    "sample_and_group",
    "sample_and_group_reference",
    "scale_shift",
    "scale_shift_reference",
]

derivatives.refuse_the_rest(library.FUSED)
