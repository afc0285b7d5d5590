"""Optional: kernels in C++ for CPUs, where XLA's operations are far from the limit.

The first use builds them, or ``python -m dlrm_jax.native``, with any C++17 compiler. They are used
for those lookups and updates of rows that `embedding.kernel_dispatch` names, and for DLRM's
interaction and MLPs in bfloat16 (`training.native_model`); without them, everything runs in JAX
alone.
"""
