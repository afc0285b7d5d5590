"""Optional: kernels in C++ for CPUs, where XLA's operations are far from the limit.

``python -m dlrm_jax.native`` builds them, with any C++17 compiler. They are then used for those
lookups and updates of rows that `embedding.kernel_dispatch` names, for DLRM's interaction
(`training.native_model`), and for its dense model in artifacts (`artifact.native_dense`); without
them, everything runs in JAX alone.
"""
