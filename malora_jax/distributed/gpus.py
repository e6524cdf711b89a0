"""NVIDIA GPUs for which training steps can be compiled without the card.

XLA's GPU compiler reads the figures of a card from a text. The figures here are public: those of
the data sheets, except for the memory, which is what the CUDA driver reports.
"""

import dataclasses
from typing import Any

# Version of the cuDNN library that compiled programs may call.
_CUDNN = 'major: 9 minor: 8'


@dataclasses.dataclass(frozen=True)
class GPU:
    """Public figures of a GPU.

    Attributes:
        product: Name that the CUDA driver reports, which JAX shows as `device_kind`.
        memory_gib: Device memory in GiB, as the CUDA driver reports it.
        bandwidth_gb: Bandwidth of the device memory, in GB/s.
        capability: CUDA compute capability, major and minor.
        multiprocessors: Number of streaming multiprocessors.
        lanes: float32 lanes per multiprocessor.
        threads: Maximum number of resident threads per multiprocessor.
        shared_kib: Shared memory per multiprocessor, in KiB.
        l2_mib: Level-2 cache, in MiB.
        clock_ghz: Boost clock, in GHz.
        peak_tflops: Peak of dense bfloat16 matrix products with float32 sums, in TFLOP/s.
        checked: Whether `make test-gpu-plan` compiles steps for this GPU and checks them.
    """

    product: str
    memory_gib: float
    bandwidth_gb: int
    capability: tuple[int, int]
    multiprocessors: int
    lanes: int
    threads: int
    shared_kib: int
    l2_mib: int
    clock_ghz: float
    peak_tflops: float
    checked: bool = True

    @property
    def memory_bytes(self) -> int:
        """Device memory in bytes."""
        return int(self.memory_gib * 2**30)

    def target_config(self) -> str:
        """Return the figures as XLA's `GpuTargetConfigProto` in text format."""
        major, minor = self.capability
        # From compute capability 9.0 on, XLA uses instructions of exactly this architecture.
        features = 'ACCELERATED_FEATURES' if major >= 9 else 'NONE'
        return f"""
            platform_name: "CUDA"
            device_description_str: "{self.product}"
            dnn_version_info {{ {_CUDNN} }}
            gpu_device_info {{
              cuda_compute_capability {{
                major: {major} minor: {minor} feature_extension: {features}
              }}
              core_count: {self.multiprocessors}
              fpus_per_core: {self.lanes}
              clock_rate_ghz: {self.clock_ghz}
              device_memory_size: {self.memory_bytes}
              memory_bandwidth: {self.bandwidth_gb * 10**9}
              l2_cache_size: {self.l2_mib * 2**20}
              shared_memory_per_core: {self.shared_kib * 2**10}
              shared_memory_per_block: {48 * 2**10}
              shared_memory_per_block_optin: {(self.shared_kib - 1) * 2**10}
              registers_per_core_limit: {2**16}
              registers_per_block_limit: {2**16}
              threads_per_core_limit: {self.threads}
              threads_per_block_limit: 1024
              threads_per_warp: 32
              thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
              block_dim_limit_x: {2**31 - 1}
              block_dim_limit_y: {2**16 - 1} block_dim_limit_z: {2**16 - 1}
            }}
        """


_AMPERE: dict[str, Any] = {'capability': (8, 0), 'lanes': 64, 'threads': 2048, 'shared_kib': 164}
_ADA: dict[str, Any] = {'capability': (8, 9), 'lanes': 128, 'threads': 1536, 'shared_kib': 100}
_HOPPER: dict[str, Any] = {'capability': (9, 0), 'lanes': 128, 'threads': 2048, 'shared_kib': 228}
_BLACKWELL = _HOPPER | {'capability': (10, 0)}
_A100 = _AMPERE | {'multiprocessors': 108, 'l2_mib': 40, 'clock_ghz': 1.41, 'peak_tflops': 312}
_H100 = _HOPPER | {'multiprocessors': 132, 'l2_mib': 50, 'clock_ghz': 1.98, 'peak_tflops': 989}
_L4 = _ADA | {'multiprocessors': 58, 'l2_mib': 48, 'clock_ghz': 2.04, 'peak_tflops': 121}
_RTX4090 = _ADA | {'multiprocessors': 128, 'l2_mib': 72, 'clock_ghz': 2.52, 'peak_tflops': 165}
_B200 = _BLACKWELL | {
    'multiprocessors': 148,
    'l2_mib': 126,
    'clock_ghz': 1.965,
    'peak_tflops': 2250,
}
GPUS = {
    'a100-40gb': GPU('NVIDIA A100-SXM4-40GB', memory_gib=39.4, bandwidth_gb=1555, **_A100),
    'a100-80gb': GPU('NVIDIA A100-SXM4-80GB', memory_gib=79.2, bandwidth_gb=2039, **_A100),
    'h100': GPU('NVIDIA H100 80GB HBM3', memory_gib=79.1, bandwidth_gb=3352, **_H100),
    'h200': GPU('NVIDIA H200', memory_gib=139.8, bandwidth_gb=4800, **_H100),
    'b200': GPU('NVIDIA B200', memory_gib=178.3, bandwidth_gb=8000, checked=False, **_B200),
    'l4': GPU('NVIDIA L4', memory_gib=22.0, bandwidth_gb=300, checked=False, **_L4),
    'rtx4090': GPU(
        'NVIDIA GeForce RTX 4090', memory_gib=23.6, bandwidth_gb=1008, checked=False, **_RTX4090
    ),
}


def find_gpu(device_kind: str) -> str | None:
    """Return the key of a card in `GPUS`; None if the card is not in the table.

    Args:
        device_kind: Name of the card as JAX shows it, such as 'NVIDIA L4'.
    """
    return next((name for name, gpu in GPUS.items() if gpu.product == device_kind), None)
