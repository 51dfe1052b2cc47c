"""Which update rule each weight gets, and the learning rate as a pure function of the step (nothing to save, nothing to
restore). Muon on hidden matrices and AdamW on the rest are one optimizer, the same under plain PyTorch and ZeRO."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from tinychat.config.schema import OptimConfig, OptimKind
from tinychat.config.stages import Schedule, TrainLoop
from tinychat.models.adapters import is_adapter

NS_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # steepest at zero: small singular values grow fastest


def orthogonalize(matrix: torch.Tensor, steps: int, dtype: torch.dtype) -> torch.Tensor:
    """Newton-Schulz: U V^T (roughly) of matrix = U S V^T, shape (rows, columns), computed in `dtype`.

    torch.optim.Muon always computes in bf16, which turns last-bit differences of the order of summation into 1e-3
    differences of the update: then even gradient accumulation changes the trajectory. fp32 keeps it.
    """
    a, b, c = NS_COEFFICIENTS
    x = matrix.to(dtype)
    if tall := matrix.size(0) > matrix.size(1):
        x = x.T
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.T if tall else x).to(matrix.dtype)


@dataclass(frozen=True)
class Shards:
    """How whole matrices lie in the flat tensor that a ZeRO rank steps on.

    per_matrix=False (ZeRO 1, 2 and bf16 without ZeRO): all matrices end to end, then cut into `world` equal pieces.
    per_matrix=True (ZeRO 3): each matrix cut into `world` equal, padded pieces; a rank's pieces end to end.
    """

    shapes: tuple[torch.Size, ...]
    parts: tuple[int, ...]  # see MuonAdamW
    per_matrix: bool
    group: Any
    device: torch.device  # where collectives and products run (offloaded partitions lie on the CPU)

    def matrices(self, full: torch.Tensor) -> Iterator[tuple[torch.Tensor, int, Callable[[torch.Tensor], Any]]]:
        """For each matrix of full (world, n): the matrix, its parts, and a function that writes a new one there."""
        world, offset = full.size(0), 0
        for shape, parts in zip(self.shapes, self.parts, strict=True):
            if self.per_matrix:
                width = math.ceil(shape.numel() / world)
                piece = full[:, offset : offset + width]
                offset += width

                def put(new: torch.Tensor, piece: torch.Tensor = piece) -> None:
                    padding = piece.numel() - new.numel()
                    piece.copy_(torch.nn.functional.pad(new.reshape(-1), (0, padding)).view_as(piece))

                yield piece.reshape(-1)[: shape.numel()].view(shape), parts, put
            else:
                matrix = full.view(-1)[offset : offset + shape.numel()].view(shape)
                offset += shape.numel()
                yield matrix, parts, matrix.copy_


class MuonAdamW(torch.optim.Optimizer):
    """Muon on groups with use_muon=True, torch's AdamW on the others.

    Muon needs whole matrices, its momentum does not: under ZeRO the momentum stays in shards like all optimizer state
    (and is saved so); the update alone is gathered, each rank orthogonalises its share of the matrices, and a
    reduce-scatter gives every rank its piece. All of it comes after ZeRO's unscaling and clipping.

    A weight that holds several matrices side by side (GPT-2's queries, keys and values) says so in its attribute
    `muon_parts`; each part is orthogonalised alone.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        lr: float,
        momentum: float,
        ns_steps: int,
        dtype: torch.dtype,
        adamw: dict[str, Any],
    ):
        self.momentum, self.ns_steps, self.ns_dtype = momentum, ns_steps, dtype
        super().__init__(groups, {"lr": lr, "weight_decay": 0.0, "use_muon": False})
        others = self._groups(use_muon=False)
        # Never empty: embeddings and norms are there in every model.
        self.adamw = torch.optim.AdamW(others, lr=lr, **adamw)
        self.shards: dict[torch.Tensor, Shards] = {}

    def _groups(self, use_muon: bool) -> list[dict[str, Any]]:
        return [group for group in self.param_groups if group["use_muon"] is use_muon]

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self._groups(use_muon=True):
            for p in group["params"]:
                if p.grad is not None:
                    self._muon_step(p, group)
        # ZeRO swaps param_groups, load_state_dict swaps both: AdamW always works on the current ones.
        self.adamw.param_groups, self.adamw.state = self._groups(use_muon=False), self.state
        self.adamw.step()

    def _muon_step(self, p: torch.Tensor, group: dict[str, Any]) -> None:
        state = self.state[p]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(p)
        state["momentum_buffer"].lerp_(p.grad, 1 - self.momentum)
        update = p.grad.lerp(state["momentum_buffer"], self.momentum)  # type: ignore[union-attr] # Nesterov
        p.mul_(1 - group["lr"] * group["weight_decay"])
        if p.dim() == 2:
            p.add_(self._orthogonal(update, getattr(p, "muon_parts", 1)), alpha=-group["lr"])
        elif p in self.shards:
            p.add_(self._orthogonal_shard(update, self.shards[p]).to(p), alpha=-group["lr"])
        elif update.any():
            raise RuntimeError("Muon met a flat partition whose matrices it does not know")

    def _orthogonal_shard(self, update: torch.Tensor, shards: Shards) -> torch.Tensor:
        """This rank's piece (n,) of the orthogonalised matrices, from its piece (n,) of the update."""
        world, rank = dist.get_world_size(shards.group), dist.get_rank(shards.group)
        full = torch.empty(world, update.numel(), dtype=torch.float32, device=shards.device)
        dist.all_gather(list(full), update.to(full), group=shards.group)
        for index, (matrix, parts, put) in enumerate(shards.matrices(full)):
            put(self._orthogonal(matrix, parts) if index % world == rank else torch.zeros_like(matrix))
        own = torch.empty_like(full[0])
        dist.reduce_scatter(own, list(full), group=shards.group)  # one term of each sum is not zero: exact
        return own

    def _orthogonal(self, update: torch.Tensor, parts: int) -> torch.Tensor:
        # 0.2 is the root mean square of a typical AdamW update; an orthogonal (m, n) matrix has 1/sqrt(max(m, n)).
        done = [
            orthogonalize(part, self.ns_steps, self.ns_dtype) * (0.2 * math.sqrt(max(part.shape)))
            for part in update.chunk(parts, dim=1)
        ]
        return done[0] if parts == 1 else torch.cat(done, dim=1)

    def attach_zero(self, zero: Any, device: torch.device) -> None:
        """Learn from DeepSpeed's optimizer which matrices lie in which flat partition (none without partitions)."""
        from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
        from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
        from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

        if isinstance(zero, DeepSpeedZeroOptimizer_Stage3):
            flats, members, per_matrix = zero.fp32_partitioned_groups_flat, zero.fp16_groups, True
        elif isinstance(zero, DeepSpeedZeroOptimizer):
            flats, members, per_matrix = zero.single_partition_of_fp32_groups, zero.bit16_groups, False
        elif isinstance(zero, BF16_Optimizer):
            flats, members, per_matrix = zero.fp32_groups_flat_partition, zero.bf16_groups, False
        else:
            return
        for flat, parameters in zip(flats, members, strict=True):
            shapes = tuple(getattr(p, "ds_shape", p.shape) for p in parameters)
            parts = tuple(getattr(p, "muon_parts", 1) for p in parameters)
            self.shards[flat] = Shards(shapes, parts, per_matrix, zero.dp_process_group, device)


def warmup_of(loop: TrainLoop) -> int:
    """Steps of the warm-up: those configured, or half of a run that is shorter than them."""
    return loop.warmup_steps if loop.warmup_steps <= loop.max_steps else loop.max_steps // 2


def lr_factor(step: int, loop: TrainLoop) -> float:
    """Learning rate of 0-based optimizer step `step` / peak.

    Rises in a line over the warm-up (the first step already moves), then: constant stays; linear and cosine fall to
    min_lr_ratio at the end; wsd (warm-up, stable, decay; Hu et al. 2024, MiniCPM) stays and falls in a line over the
    last `decay_fraction` of all steps.

    transformers' get_scheduler has other values (its first step has a rate of 0, its wsd and its floors begin a step
    apart) and counts its own calls; this is a function of the step alone, so that a resumed run goes on exactly.
    """
    warmup = warmup_of(loop)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if loop.schedule is Schedule.constant:
        return 1.0
    begin = warmup
    if loop.schedule is Schedule.wsd:
        begin = max(begin, loop.max_steps - round(loop.decay_fraction * loop.max_steps))
    # The first decaying step is already below the peak, the last one still above the floor: none is wasted.
    progress = max(0.0, (step + 1 - begin) / (loop.max_steps + 1 - begin))
    falling = (1 + math.cos(math.pi * progress)) / 2 if loop.schedule is Schedule.cosine else 1 - progress
    return loop.min_lr_ratio + (1 - loop.min_lr_ratio) * falling


def build_optimizer(model: Any, cfg: OptimConfig, lr: float, dtype: torch.dtype) -> torch.optim.Optimizer:
    """AdamW over everything, or Muon over the hidden matrices and AdamW over the rest.

    An adapter's matrices are the thin factors of an update, not matrices to orthogonalise: AdamW takes them.
    Weight decay falls on hidden matrices alone. Every group carries its `peak_lr`; a parameter with an `lr_ratio` of
    its own has that many times the others'. `dtype` is the arithmetic of Muon's orthogonalisation.
    """
    hidden, rest = split_parameters(model)
    muon = cfg.kind is OptimKind.muon and not is_adapter(model)
    hidden_lr = lr * (cfg.muon_lr_ratio or 1.0) if muon else lr
    groups: list[dict[str, Any]] = [
        {"params": hidden, "lr": hidden_lr, "peak_lr": hidden_lr, "weight_decay": cfg.weight_decay},
        {"params": rest, "lr": lr, "peak_lr": lr, "weight_decay": 0.0},
    ]
    groups = [part for group in groups for part in _by_ratio(group)]
    adamw = {"betas": tuple(cfg.betas), "eps": cfg.eps, "fused": True}
    if not muon:
        return torch.optim.AdamW(groups, lr=lr, **adamw)
    assert cfg.muon_momentum is not None and cfg.muon_ns_steps is not None  # tinychat.config.checks
    for name, p in model.named_parameters():
        if name.endswith("attn.c_attn.weight"):  # GPT-2: queries, keys and values side by side, (in, 3 · out)
            p.muon_parts = 3
    chosen = {id(p) for p in hidden}
    for group in groups:
        group["use_muon"] = id(group["params"][0]) in chosen
    return MuonAdamW(groups, lr, cfg.muon_momentum, cfg.muon_ns_steps, dtype, adamw)


def _by_ratio(group: dict[str, Any]) -> list[dict[str, Any]]:
    """The group split by the parameters' own lr_ratio; [] for an empty one."""
    parts: dict[float, list[torch.nn.Parameter]] = {}
    for p in group["params"]:
        parts.setdefault(getattr(p, "lr_ratio", 1.0), []).append(p)
    rates = {ratio: group["lr"] * ratio for ratio in parts}
    return [{**group, "params": own, "lr": rates[ratio], "peak_lr": rates[ratio]} for ratio, own in parts.items()]


def split_parameters(model: Any) -> tuple[list[torch.nn.Parameter], list[torch.nn.Parameter]]:
    """(matrices of the hidden layers, everything else: embeddings, output heads, norms, biases)."""
    outside = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    head = model.get_output_embeddings()
    if head is not None:
        outside.add(id(head.weight))
    trained = [p for p in model.parameters() if p.requires_grad]
    # A matrix of one row is the head of a reward model or a value function.
    hidden = [p for p in trained if p.dim() == 2 and len(p) > 1 and id(p) not in outside]
    chosen = {id(p) for p in hidden}
    return hidden, [p for p in trained if id(p) not in chosen]
