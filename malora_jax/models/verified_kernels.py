"""JAX versions with which the attention kernels passed `tests/fuzz/test_attention_kernels.py`.

The test writes this file.
"""

VERIFIED_VERSIONS: dict[str, tuple[str, ...]] = {
    'splash': ('0.10.2', '0.12.0.1'),
    'triton': ('0.10.2', '0.12.0.1'),
}
