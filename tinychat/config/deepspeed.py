"""DeepSpeed's configuration keys, so that a wrong one is refused before DeepSpeed is imported.

DeepSpeed ignores unknown top-level keys without a word, and some impossible combinations too.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Any

# Read from deepspeed 0.19: runtime/config.py, runtime/constants.py and the configuration models they load.
TOP_LEVEL = frozenset(
    """
    activation_checkpointing aio checkpoint comet comms_logger communication_data_type compile csv_monitor data_types
    datastates_ckpt disable_allgather disable_python_gc dump_state flops_profiler fp16 log_level memory_breakdown
    seq_parallel_communication_data_type tensorboard timers use_data_before_expert_parallelism vocabulary_size
    wall_clock_breakdown wandb zero_optimization
    """.split()
)
ZERO = frozenset(
    """
    allgather_bucket_size allgather_partitions allgather_sequential contiguous_gradients elastic_checkpoint
    enable_sanity_checks gather_16bit_weights_on_model_save ignore_unused_parameters leaf_module load_from_fp32_weights
    log_trace_cache_warnings max_live_parameters max_reuse_distance memory_efficient_linear
    model_persistence_threshold module_granularity_threshold offload_optimizer offload_param overlap_comm
    override_module_apply param_persistence_threshold parameter_alignment pipeline_loading_checkpoint
    prefetch_bucket_size reduce_bucket_size reduce_scatter round_robin_gradients stage stage3_allgather_sequential
    stage3_gather_16bit_weights_on_model_save stage3_max_live_parameters stage3_max_reuse_distance
    stage3_model_persistence_threshold stage3_module_granularity_threshold stage3_param_persistence_threshold
    stage3_prefetch_bucket_size stage3_use_all_reduce_for_fetch_params sub_group_size use_all_reduce_for_fetch_params
    use_multi_rank_bucket_allreduce zenflow zero_hpz_partition_size zero_quantized_gradients
    zero_quantized_nontrainable_weights zero_quantized_weights
    """.split()
)
OFFLOAD_OPTIMIZER = frozenset(
    """
    buffer_count cpuadam_cores_perc device fast_init nvme_path pin_memory pipeline_read pipeline_write ratio
    super_offload
    """.split()
)
OFFLOAD_PARAM = frozenset("buffer_count buffer_size device max_in_cpu nvme_path pin_memory".split())
# What tinychat derives from its own keys; given twice, the two could disagree.
DERIVED = {
    "train_batch_size": "stage.batch_size",
    "train_micro_batch_size_per_gpu": "stage.micro_batch_size",
    "gradient_accumulation_steps": "stage.batch_size and stage.micro_batch_size",
    "managed_gradient_accumulation": "stage.batch_size and stage.micro_batch_size",
    "gradient_clipping": "stage.grad_clip",
    "optimizer": "optim=adamw or optim=muon",
    "scheduler": "stage.schedule",
    "bf16": "precision=bf16",
    "bfloat16": "precision=bf16",
    "amp": "precision",
    "torch_autocast": "precision",
    "steps_per_print": "stage.log_every",
    "zero_allow_untested_optimizer": "optim",
    "zero_force_ds_cpu_optimizer": "optim",
}
# What would change how the loss is summed over micro-batches and ranks, or how data reaches them.
FOREIGN = frozenset(
    """
    autotuning data_efficiency data_parallel_size dataloader_drop_last expert_parallel gradient_allreduce_op
    gradient_predivide_factor hybrid_engine pipeline prescale_gradients sequence_parallel_size tensor_parallel
    weight_quantization
    """.split()
)


def problems(config: dict[str, Any], muon: bool) -> Iterator[str]:
    """One line for each key of `ds.config` that DeepSpeed would ignore, refuse or contradict."""
    for key, value in config.items():
        if key in DERIVED:
            yield f"ds.config.{key} is derived from {DERIVED[key]}; leave it out and set that"
        elif key == "fp16" and (not isinstance(value, dict) or "enabled" in value):
            yield f"ds.config.fp16={value}: whether it is on follows from precision=fp16; give only its other keys"
        elif key in FOREIGN:
            yield f"ds.config.{key} would change how losses and gradients are summed over ranks; leave it out"
        elif key not in TOP_LEVEL:
            yield _unknown(f"ds.config.{key}", key, TOP_LEVEL)
    zero = config.get("zero_optimization")
    if not isinstance(zero, dict):
        yield f"ds.config.zero_optimization={zero}: must be a mapping with `stage`; pick one of ds=zero0..zero3"
        return
    for key in zero:
        if key not in ZERO:
            yield _unknown(f"ds.config.zero_optimization.{key}", key, ZERO)
    if muon and zero.get("zenflow"):
        yield "ds.config.zero_optimization.zenflow does not work with optim=muon; use optim=adamw"
    yield from _offload(zero, muon)
    yield from _auto("ds.config", config)


def _offload(zero: dict[str, Any], muon: bool) -> Iterator[str]:
    stage = zero.get("stage", 0)
    if stage not in (0, 1, 2, 3):
        yield f"ds.config.zero_optimization.stage={stage}: 0, 1, 2 or 3"
        return
    for name, known, first in (
        ("offload_optimizer", OFFLOAD_OPTIMIZER, 1),
        ("offload_param", OFFLOAD_PARAM, 3),
    ):
        part = zero.get(name)
        where = f"ds.config.zero_optimization.{name}"
        if part and not isinstance(part, dict):
            yield f"{where}={part}: a mapping, as {{device: cpu}}"
            continue
        if not part or part.get("device", "none") == "none":
            continue
        if stage < first:
            instead = "use ds=zero3_offload, or leave it out (ds=zero2_offload offloads the optimizer)"
            if name == "offload_optimizer":
                instead = "use ds=zero2_offload or ds=zero3_offload"
            yield f"{where} works with stage {first} and above, found stage {stage} (ignored there); {instead}"
        for key in part:
            if key not in known:
                yield _unknown(f"{where}.{key}", key, known)
        if part["device"] not in ("cpu", "nvme"):
            yield f"{where}.device={part['device']}: none, cpu or nvme"
        if muon and part["device"] == "nvme":
            yield f"{where}.device=nvme does not work with optim=muon, which needs whole matrices; use optim=adamw"
        if part["device"] == "nvme" and not part.get("nvme_path"):
            yield f"{where}.device=nvme needs nvme_path=FOLDER"


def _auto(where: str, value: Any) -> Iterator[str]:
    if value == "auto":
        yield f"{where}=auto is for the transformers Trainer; give a value or leave it out"
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _auto(f"{where}.{key}", inner)


def _unknown(where: str, key: str, known: frozenset[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1)
    return f"{where}: DeepSpeed has no such key" + (f"; did you mean {near[0]}?" if near else "")
