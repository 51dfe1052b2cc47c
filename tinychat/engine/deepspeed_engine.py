"""DeepSpeed: ZeRO 0 to 3 with offload, behind the same protocol as plain PyTorch."""

from __future__ import annotations

import collections
import contextlib
import copy
import logging
import math
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from tinychat.engine.base import Batch, Engine, LossFn, StepStats, eval_mode, trained_state
from tinychat.engine.optim import MuonAdamW
from tinychat.errors import UserError
from tinychat.models.adapters import is_adapter
from tinychat.models.checkpoints import saved_buffers, saved_parameters
from tinychat.runtime.world import World

TAG = "deepspeed"
FORCE_SAFE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"


class DeepSpeedEngine(Engine):
    """A DeepSpeed engine with our own optimizer, learning rate and loss normalisation.

    bf16 and fp16 hold the weights in that type and fp32 masters in the partitioned optimizer.
    """

    def __init__(
        self,
        model: Any,
        optimizer: torch.optim.Optimizer,
        world: World,
        dtype: torch.dtype,
        grad_clip: float,
        config: dict[str, Any],
        micro_batch_size: int,
        grad_accum_steps: int,
    ):
        deepspeed = import_deepspeed(world)
        self.optimizer, self.world, self.dtype = optimizer, world, dtype
        self.stage = config.get("zero_optimization", {}).get("stage", 0)
        self.grad_clip = grad_clip or math.inf
        # Stage 0 in fp32 has no wrapper around the optimizer: clipping and the norm are ours there.
        self.own_clip = self.stage == 0 and dtype is torch.float32
        full = {
            **copy.deepcopy(config),
            "train_micro_batch_size_per_gpu": micro_batch_size,
            "gradient_accumulation_steps": grad_accum_steps,
            "gradient_clipping": 0.0 if self.own_clip else grad_clip,
            "bf16": {"enabled": dtype is torch.bfloat16},
            "fp16": {**config.get("fp16", {}), "enabled": dtype is torch.float16},
            "steps_per_print": None,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
        }
        with _zero_rates(optimizer):
            self.engine, *_ = deepspeed.initialize(
                model=model, optimizer=optimizer, config=full, dist_init_required=False
            )
        self.model = self.engine.module
        self._is_whole = self.stage < 3
        if isinstance(optimizer, MuonAdamW):
            optimizer.attach_zero(self.engine.optimizer, world.device)

    def train_step(self, micro_batches: Sequence[Batch], loss_fn: LossFn) -> StepStats:
        self.engine.train()
        total, norm = 0.0, 0.0
        for index, batch in enumerate(micro_batches):
            loss = loss_fn(self.engine, batch)
            total += loss.item()
            # DeepSpeed averages gradients over the ranks where the loss is a sum.
            self.engine.backward(loss * self.world.size, scale_wrt_gas=False)
            if self.own_clip and index == len(micro_batches) - 1:
                norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.grad_clip).item()
            self.engine.step()
        if not self.own_clip:
            norm = float(self.engine.get_global_grad_norm() or 0.0)
        return StepStats(self.world.sum(total)[0], norm, bool(getattr(self.engine.optimizer, "overflow", False)))

    @contextlib.contextmanager
    def inference(self) -> Iterator[Any]:
        # Called through DeepSpeed's wrapper-free module: ZeRO-3's hooks on it fetch the weights layer by layer.
        with eval_mode(self.model), torch.no_grad():
            yield self.model

    @contextlib.contextmanager
    def whole(self, module: Any) -> Iterator[None]:
        if self._is_whole:
            yield
            return
        import deepspeed

        # What a forward pass has prefetched and not used is waited for, and given back.
        self.engine.optimizer.empty_partition_cache()
        with deepspeed.zero.GatheredParameters(list(module.parameters()), modifier_rank=None), self._without_hooks():
            yield

    @contextlib.contextmanager
    def in_fp32(self) -> Iterator[None]:
        with self.whole(self.model):
            weights = [(p, p.data) for p in self.model.parameters() if p.is_floating_point()]
            own = self.dtype, self._is_whole
            self.dtype, self._is_whole = torch.float32, True
            for p, stored in weights:
                p.data = stored.float()
            try:
                yield
            finally:
                for p, stored in weights:
                    p.data = stored
                self.dtype, self._is_whole = own

    @contextlib.contextmanager
    def _without_hooks(self) -> Iterator[None]:
        """Inside, ZeRO-3's hooks do not see the model's modules: at each call they would fetch the weights, which is a
        collective, and give them back afterwards, also those that are gathered."""
        offload = self.engine.optimizer.parameter_offload
        taken = []
        for handle in (offload.fwd_pre_hook, *offload.forward_hooks, *offload.backward_hooks):
            hooks = handle.hooks_dict_ref()
            taken.append((hooks, handle.id, hooks.pop(handle.id)))
        try:
            yield
        finally:  # put back, not registered anew: that would make DeepSpeed record the order of modules again
            for hooks, number, hook in taken:
                hooks[number] = hook

    def save_state(self, folder: Path) -> None:
        with trained_state(self.model):
            self.engine.save_checkpoint(str(folder), tag=TAG, exclude_frozen_parameters=is_adapter(self.model))

    def load_state(self, folder: Path) -> None:
        with _tensors_only():
            path, _ = self.engine.load_checkpoint(str(folder), tag=TAG, load_module_strict=not is_adapter(self.model))
        if path is None:
            raise UserError(
                f"{folder}: DeepSpeed finds none of its state there; remove this checkpoint to use the one before"
            )

    def full_state_dict(self) -> dict[str, torch.Tensor]:
        """fp32 masters where there are any. Every rank takes part."""
        import deepspeed
        from deepspeed.utils import safe_get_full_fp32_param

        masters: dict[torch.Tensor, torch.Tensor] = {}
        wrapper = self.engine.optimizer
        if hasattr(wrapper, "fp32_groups"):  # bf16 without ZeRO: whole masters
            for low, high in zip(wrapper.fp16_groups, wrapper.fp32_groups, strict=True):
                masters.update(zip(low, high, strict=True))
        found = saved_buffers(self.model) if self.world.is_main else {}
        for name, p in saved_parameters(self.model).items():
            full = masters.get(p)
            if full is None and (hasattr(p, "_z3_optimizer") or getattr(p, "_dp_group", None) is not None):
                full = safe_get_full_fp32_param(p)
            with deepspeed.zero.GatheredParameters([p], enabled=full is None and hasattr(p, "ds_id")):
                if self.world.is_main:
                    found[name] = (p if full is None else full).detach().float().cpu().clone()
        return found

    def close(self) -> None:
        self.engine.destroy()


@contextlib.contextmanager
def _zero_rates(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Building ZeRO 3 and bf16 engines calls optimizer.step() on zero gradients, which would decay the weights and
    count as Adam's first step: with a rate of zero the weights stay, and afterwards all state is zero again."""
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    yield
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    for state in optimizer.state.values():
        for value in state.values():
            if torch.is_tensor(value):
                value.zero_()


@contextlib.contextmanager
def _tensors_only() -> Iterator[None]:
    """DeepSpeed loads its state as pickles that may run code; inside, only tensors and its own plain classes load."""
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    allowed = [LossScaler, DynamicLossScaler, fragment_address, ZeroStageEnum, collections.defaultdict, dict, set]
    before = os.environ.get(FORCE_SAFE)
    os.environ[FORCE_SAFE] = "1"
    try:
        with torch.serialization.safe_globals(allowed):
            yield
    finally:
        os.environ.pop(FORCE_SAFE) if before is None else os.environ.update({FORCE_SAFE: before})


def import_deepspeed(world: World) -> Any:
    """The module, set up for this device; call before anything else of it is imported."""
    on_cpu = world.device.type == "cpu"
    os.environ.setdefault("DS_ACCELERATOR", "cpu" if on_cpu else "cuda")
    for name, value in {"RANK": world.rank, "LOCAL_RANK": world.local_rank, "WORLD_SIZE": world.size}.items():
        os.environ.setdefault(name, str(value))  # without all five it asks for MPI
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", "0")
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)  # it warns of any optimizer that is not its own
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    if on_cpu:
        from deepspeed.ops import __compatible_ops__

        # Else the first start compiles a shared-memory operator for 50 s (private: hence the narrow version range).
        __compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed("gloo" if on_cpu else "nccl", verbose=False)
    return deepspeed
