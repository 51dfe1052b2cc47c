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
    activation_checkpointing aio amp autotuning bf16 checkpoint comet comms_logger communication_data_type
    compression_training compile csv_monitor curriculum_learning data_efficiency data_types dataloader_drop_last
    disable_allgather disable_python_gc dump_state eigenvalue elasticity flops_profiler fp16 gradient_allreduce_op
    gradient_predivide_factor graph_harvesting hybrid_engine log_level memory_breakdown nebula pipeline
    prescale_gradients progressive_layer_drop seq_parallel_communication_data_type sparse_gradients steps_per_print
    tensor_parallel tensorboard timers torch_autocast use_data_before_expert_parallelism wall_clock_breakdown wandb
    weight_quantization zero_allow_untested_optimizer zero_force_ds_cpu_optimizer zero_optimization
    """.split()
)
ZERO = frozenset(
    """
    stage contiguous_gradients reduce_scatter reduce_bucket_size use_multi_rank_bucket_allreduce allgather_partitions
    allgather_bucket_size overlap_comm compute_grad_norm load_from_fp32_weights elastic_checkpoint offload_param
    offload_optimizer zenflow sub_group_size prefetch_bucket_size stage3_prefetch_bucket_size
    param_persistence_threshold stage3_param_persistence_threshold model_persistence_threshold
    stage3_model_persistence_threshold max_live_parameters stage3_max_live_parameters max_reuse_distance
    stage3_max_reuse_distance gather_16bit_weights_on_model_save stage3_gather_16bit_weights_on_model_save
    module_granularity_threshold stage3_module_granularity_threshold use_all_reduce_for_fetch_params
    stage3_use_all_reduce_for_fetch_params allgather_sequential stage3_allgather_sequential ignore_unused_parameters
    legacy_stage1 round_robin_gradients parameter_alignment zero_hpz_partition_size zero_quantized_weights
    zero_quantized_nontrainable_weights zero_quantized_gradients memory_efficient_linear pipeline_loading_checkpoint
    override_module_apply log_trace_cache_warnings enable_sanity_checks leaf_module
    """.split()
)
OFFLOAD_OPTIMIZER = frozenset(
    "device nvme_path buffer_count pin_memory pipeline_read pipeline_write fast_init ratio".split()
)
OFFLOAD_PARAM = frozenset("device nvme_path buffer_count buffer_size max_in_cpu pin_memory".split())
# What tinychat derives from its own keys; given twice, the two could disagree.
DERIVED = {
    "train_batch_size": "stage.batch_size",
    "train_micro_batch_size_per_gpu": "stage.micro_batch_size",
    "gradient_accumulation_steps": "stage.batch_size and stage.micro_batch_size",
    "gradient_clipping": "stage.grad_clip",
    "optimizer": "optim=adamw or optim=muon",
    "scheduler": "stage.schedule",
    "bf16": "precision=bf16",
    "amp": "precision",
    "torch_autocast": "precision",
}


def problems(config: dict[str, Any], muon: bool) -> Iterator[str]:
    """One line for each key of `ds.config` that DeepSpeed would ignore, refuse or contradict."""
    for key, value in config.items():
        if key in DERIVED:
            yield f"ds.config.{key} is derived from {DERIVED[key]}; leave it out and set that"
        elif key == "fp16" and "enabled" in value:
            yield "ds.config.fp16.enabled is derived from precision=fp16; leave it out and set that"
        elif key not in TOP_LEVEL:
            yield _unknown(f"ds.config.{key}", key, TOP_LEVEL)
    zero = config.get("zero_optimization")
    if not isinstance(zero, dict):
        yield f"ds.config.zero_optimization={zero}: must be a mapping with `stage`; pick one of ds=zero0..zero3"
        return
    for key in zero:
        if key not in ZERO:
            yield _unknown(f"ds.config.zero_optimization.{key}", key, ZERO)
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
        if not part or part.get("device", "none") == "none":
            continue
        where = f"ds.config.zero_optimization.{name}"
        if stage < first:
            instead = "use ds=zero3_offload, or leave it out (ds=zero2_offload offloads the optimizer)"
            if name == "offload_optimizer":
                instead = "use ds=zero2_offload or ds=zero3_offload"
            yield f"{where} works with stage {first} and above, found stage {stage} (DeepSpeed would ignore it); {instead}"
        for key in part:
            if key not in known:
                yield _unknown(f"{where}.{key}", key, known)
        if part["device"] not in ("cpu", "nvme"):
            yield f"{where}.device={part['device']}: none, cpu or nvme"
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
