"""Devices a plan can be made for. Speeds are the makers'; what share of them training reaches is an assumption."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from tinychat.config.schema import Config, Device, Precision
from tinychat.config.size_checks import machine_memory
from tinychat.engine.base import resolve_precision
from tinychat.errors import UserError
from tinychat.models.flops import matmul_rate

GB = 1e9


@dataclass(frozen=True)
class Hardware:
    """One device of a rank."""

    name: str
    on_cpu: bool
    memory: float  # bytes
    taken: float  # bytes that the driver, libraries and the interpreter take
    flops: float  # operations per second of dense matrix products in 16 bits, summed in fp32
    flops_fp32: float
    bandwidth: float  # bytes per second from its memory
    link: float  # bytes per second to other ranks' devices and to the host, one way, as reached
    mfu: float  # share of the peak that training is assumed to reach
    per_operator: float  # seconds that starting an operator takes at least

    def peak(self, dtype: torch.dtype) -> float:
        """Operations per second of matrix products in a type."""
        return self.flops_fp32 if dtype is torch.float32 else self.flops


# 3090: NVIDIA's Ampere GA102 whitepaper (tensor cores with fp32 sums; fp32 without TF32); PCIe 4.0 x16, of whose
# 32 GB/s collectives without NVLink reach some 10. H200: its data sheet (SXM), dense; NVLink 900 GB/s both ways.
KNOWN = {
    "3090": Hardware("RTX 3090", False, 24 * 2**30, 0.7 * GB, 71e12, 35.6e12, 936e9, 10e9, 0.3, 8e-6),
    "h200": Hardware("H200", False, 141 * GB, 0.7 * GB, 989e12, 67e12, 4.8e12, 350e9, 0.3, 8e-6),
}
CPU = Hardware("this machine's CPU", True, 0.0, 0.55 * GB, 0.0, 0.0, 15e9, 2e9, 0.5, 2e-6)


def hardware(config: Config) -> Hardware:
    """What `plan` names: true is the device that training would take on this machine; of a CPU only the arithmetic
    that the job would use is measured. Raises UserError."""
    name = str(config.plan).lower()
    if name in KNOWN:
        return KNOWN[name]
    if name not in ("true", "cpu"):
        raise UserError(f"plan={config.plan}: false, true (this machine), cpu, {', '.join(KNOWN)}")
    if name == "true" and config.device is not Device.cpu and torch.cuda.is_available():
        return _gpu_here()
    # fp16, which a CPU does not have, is told by whoever asks what the job computes in.
    precision = Precision.fp32 if config.precision is Precision.fp16 else config.precision
    dtype = resolve_precision(precision, torch.device("cpu"))
    rate = matmul_rate(torch.device("cpu"), dtype)
    return replace(CPU, memory=machine_memory(), flops=rate, flops_fp32=rate)


def _gpu_here() -> Hardware:
    device = torch.device("cuda", 0)
    found = torch.cuda.get_device_properties(device)
    return replace(
        KNOWN["h200"] if "H200" in found.name else KNOWN["3090"],
        name=found.name,
        memory=float(found.total_memory),
        flops=matmul_rate(device, torch.bfloat16),
        flops_fp32=matmul_rate(device, torch.float32),
    )
