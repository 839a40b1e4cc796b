"""PointGST: adapters that work in the spectral domain of a graph over the patches' centres."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pointpeft.backbones.context import Context
from pointpeft.backbones.layers import Block
from pointpeft.methods.base import Method, factory_kwargs, register_method
from pointpeft.methods.morton import along_curve, cells_of, sorted_by
from pointpeft.model import PointModel
from pointpeft.weights.publication import Publication, Recipe, YamlModel, modelnet_recipe, scanobjectnn_recipes

QUIRKS = ("none", "published")
PUBLISHED_CELLS = 100  # of the space-filling curve per unit of the coordinates, in the published code


@dataclass
class Spectra:
    """Fourier bases of a cloud's graphs; frequencies stand in columns.

    Attributes:
        whole: Of the graph over all centres. [B, G, G]
        runs: Of the graphs over runs of K neighbouring centres. [B, G / K, K, K]
        order: The centres along the space-filling curve that is cut into runs. int64, [B, G]
        back: The inverse permutation. int64, [B, G]
    """

    whole: Tensor
    runs: Tensor
    order: Tensor
    back: Tensor


def adjacency(points: Tensor) -> Tensor:
    """A_ij = 1 / max(1, d_ij / d_min), with d_min the smallest positive distance of this graph.

    On the diagonal, and between points at the same place, it is 1. [..., K, 3] -> [..., K, K]
    """
    distance = (points[..., :, None, :] - points[..., None, :, :]).square().sum(-1).sqrt()
    nearest = distance.where(distance > 0, torch.inf).amin((-2, -1), keepdim=True)
    return 1 / (distance / nearest).clamp(min=1)


def published_adjacency(points: Tensor) -> Tensor:
    """A = 1 / (D / d_min + I) with d_min over all graphs at once. [B, K, 3] -> [B, K, K]

    For more than 25 points `cdist` goes over the dot product, whose diagonal is not exactly zero: then d_min is that
    rounding error, and not a distance.
    """
    distance = torch.cdist(points, points)
    identity = torch.eye(points.shape[-2], device=points.device, dtype=points.dtype)
    return 1 / (distance / distance[distance > 0].min() + identity)


def fourier_basis(a: Tensor) -> Tensor:
    """Eigenvectors of the normalised Laplacian I - D^-1/2 A D^-1/2, by rising frequency. [..., K, K] -> [..., K, K]"""
    scale = torch.rsqrt(a.sum(-1) + 1e-6)
    identity = torch.eye(a.shape[-1], device=a.device, dtype=a.dtype)
    return torch.linalg.eigh(identity - scale[..., :, None] * a * scale[..., None, :]).eigenvectors


def fixed_signs(basis: Tensor) -> Tensor:
    """The basis with the largest entry of each eigenvector positive: solvers are free to give either sign."""
    largest = basis.gather(-2, basis.abs().argmax(-2, keepdim=True))
    return basis * torch.where(largest < 0, -1.0, 1.0).to(basis)


@torch.no_grad()
def spectra(centers: Tensor, local: int, published: bool) -> Spectra:
    """The graphs of clouds, from their centres. [B, G, 3]

    Each graph has its own scale and cells span the cloud; the published code has one scale for the batch, and cells of
    one hundredth of the unit about the origin, where the curve jumps from negative to positive coordinates.
    """
    with torch.autocast(centers.device.type, enabled=False):
        return _spectra(centers.float(), local, published)


def _spectra(centers: Tensor, local: int, published: bool) -> Spectra:
    batch, groups, _ = centers.shape
    order = along_curve((centers * PUBLISHED_CELLS).long() if published else cells_of(centers))
    runs = sorted_by(centers, order).view(batch, groups // local, local, 3)
    if published:
        bases = fourier_basis(published_adjacency(centers)), fourier_basis(published_adjacency(runs.flatten(0, 1)))
        return Spectra(bases[0], bases[1].view(batch, groups // local, local, local), order, order.argsort(-1))
    whole, of_runs = (fixed_signs(fourier_basis(adjacency(points))) for points in (centers, runs))
    return Spectra(whole, of_runs, order, order.argsort(-1))


class SpectralAdapter(nn.Module):
    """W_up (SiLU(z) + g + l) with z = W_down x and, for patches, g and l filtered on two kinds of graphs.

    The graphs are that of all centres and those of runs of them. In a basis U: f = Uᵀ z, g = U (f + SiLU(W LN(f))),
    with one W for both. In the published code U and Uᵀ are exchanged.
    """

    def __init__(self, width: int, rank: int, published: bool, factory: dict[str, Any]):
        super().__init__()
        self.published = published
        self.down = nn.Linear(width, rank, **factory)
        self.norm_whole = nn.LayerNorm(rank, **factory)
        self.norm_runs = nn.LayerNorm(rank, **factory)
        self.tune = nn.Linear(rank, rank, **factory)
        self.up = nn.Linear(rank, width, **factory)
        nn.init.xavier_uniform_(self.down.weight)
        for layer in (self.tune, self.up):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def filtered(self, z: Tensor, basis: Tensor, norm: nn.LayerNorm) -> Tensor:
        """[..., K, R] in the basis [..., K, K] -> [..., K, R]"""
        basis = basis.to(z.dtype)
        forward, inverse = (basis, basis.mT) if self.published else (basis.mT, basis)
        f = forward @ z
        return inverse @ (f + F.silu(self.tune(norm(f))))

    def forward(self, x: Tensor, ctx: Context, graphs: Spectra) -> Tensor:
        """[B, T, C] -> [B, T, C]"""
        z = self.down(x)
        prefix, prompts, patches, suffix = ctx.split(z)
        g = self.filtered(patches, graphs.whole, self.norm_whole)
        runs = sorted_by(patches, graphs.order).unflatten(1, graphs.runs.shape[1:3])  # [B, G / K, K, R]
        l = self.filtered(runs, graphs.runs, self.norm_runs).flatten(1, 2)  # noqa: E741
        added = g + sorted_by(l, graphs.back)
        zeros = [group.new_zeros(group.shape) for group in (prefix, prompts, suffix)]
        return self.up(F.silu(z) + torch.cat([*zeros[:2], added, zeros[2]], 1))


class PointGSTBlock(Block):
    """x ← x + Attn(LN1 x); x ← x + MLP(LN2 x) + A(x)."""

    def __init__(self, block: Block, method: "PointGST"):
        self.adopt(block)
        self.local, self.published = method.local, method.quirks == "published"
        self.spectral = SpectralAdapter(block.width, method.rank, self.published, factory_kwargs(block))

    def graphs(self, ctx: Context) -> Spectra:
        """The bases of this pass, computed by the first block."""
        local = min(self.local, ctx.num_groups)
        return ctx.cached("point_gst", lambda: spectra(ctx.centers, local, self.published))

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        """[B, T, C] -> [B, T, C]"""
        x = self.attention_half(x, ctx)
        skip, u = self.mlp_inputs(x)
        return skip + self.drop_path(self.mlp(u)) + self.spectral(x, ctx, self.graphs(ctx))


def _recipes(backbone: str, folder: str, augment: str) -> tuple[Recipe, ...]:
    """Recipes for one backbone, whose files stand in a folder of its own."""
    configs = f"jerryfeng2003/PointGST cfgs/{folder}/"
    under = "" if backbone == "point_mae" else f"{backbone}/"
    options = {"rank": 36, "local": 32}
    return (
        *scanobjectnn_recipes(
            configs + "finetune_{}_pgst.yaml", augment, under=under, backbone=backbone, method_options=options
        ),
        modelnet_recipe(
            configs + "finetune_modelnet_pgst.yaml", under=under, backbone=backbone, method_options=options
        ),
    )


_NAME = "PointTransformer_PGST"
PUBLICATION = Publication(
    models=(
        YamlModel(_NAME),
        YamlModel(_NAME, folder="act", backbone="act", augment="rotate"),
        YamlModel(_NAME, folder="recon", backbone="recon_plain", augment="rotate"),
    ),
    options={"rank": "rank", "local": "local"},
    optimizer_parts=("adapt",),
    recipes=(
        *_recipes("point_mae", "mae", "scale_translate"),
        *_recipes("act", "act", "rotate"),
        *_recipes("recon_plain", "recon", "rotate"),
    ),
    fixed_defects=("the graph's scale is a cloud's own; published one for the whole batch",),
    markers=(".gft_adapter.",),
    renames=(
        (r"\.spectral\.(down|up)\.", r".gft_adapter.\1."),
        (r"\.spectral\.tune\.", ".gft_adapter.adapt1."),
        (r"\.spectral\.norm_whole\.", ".gft_adapter.norm_ly1."),
        (r"\.spectral\.norm_runs\.", ".gft_adapter.norm_ly2."),
    ),
)


@register_method
@dataclass(frozen=True)
class PointGST(Method):
    """Graph spectral tuning: a low-rank adapter beside the MLP that mixes patches in the Fourier bases of their graph.

    What the released code does otherwise, all of which `quirks="published"` repeats, for its checkpoints:
        - A graph's scale is the smallest positive distance of the whole batch, so that logits depend on the batch; for
          more than 25 centres it is not even a distance, but the rounding error of one.
        - It applies the basis where its transpose belongs, and the other way round.
        - The signs of the eigenvectors are whatever the solver gives; the logits depend on them.
        - The curve that orders the centres into runs jumps at the origin.

    Attributes:
        rank: R of the adapters.
        local: K, centres of a run; all of them where a cloud has fewer patches. It must divide their number.
        quirks: "none", or "published" for what the released code computes.

    Source: Liang et al., "Parameter-efficient fine-tuning in spectral domain for point cloud learning", TPAMI 2025.
    """

    rank: int = 36
    local: int = 32
    quirks: str = "none"

    name = "point_gst"
    trains = (r"^backbone\.(cls_token|cls_pos|norm\.1\.(weight|bias))$",)  # `cls_norm` of PointGPT's files, by its name
    publication = PUBLICATION

    def __post_init__(self) -> None:
        if self.quirks not in QUIRKS:
            raise ValueError(f"quirks must be one of {', '.join(QUIRKS)}, got {self.quirks!r}")
        for name in ("rank", "local"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    @classmethod
    def published_config(cls, config: dict[str, Any]) -> dict[str, Any]:
        """Our options for published weights."""
        return {"quirks": "published", **cls.yaml_options(config)}

    def build(self, model: PointModel) -> None:
        """Puts the adapters in."""
        backbone = model.backbone
        groups = backbone.config.num_groups
        if groups > self.local and groups % self.local:
            raise ValueError(f"local must divide the backbone's num_groups = {groups}, got {self.local}")
        for i, block in enumerate(backbone.blocks):
            backbone.blocks[i] = PointGSTBlock(block, self)
