"""What tests of rounding compile with: `conftest` has all others compiled with less effort."""

OPTIMIZED = {"xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": False}
