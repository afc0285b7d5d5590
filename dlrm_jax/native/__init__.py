"""Optional: kernels in C++ for CPUs, where XLA's operations are far from the limit.

The first use builds them, or ``python -m dlrm_jax.native``, with any C++17 compiler. They are used
for those lookups, updates and initial values of rows that `embedding.kernel_dispatch` names, for
the initial values of dense models (`threefry`), for DLRM's interaction and MLPs in bfloat16
(`training.native_model`), and for DLRM's dense model in artifacts (`artifact.native_dense`);
without them, everything runs in JAX alone.
"""
