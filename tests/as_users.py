"""How the tests compile: with less effort than users do, but for what is about rounding."""

QUICKLY = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
    "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
)
"""Half of the tests' time: flags of XLA for the tests themselves and the programs they start.

Compiled as users' are: `test_readme`, the jobs of `test_processes`, which are compared with the
oracle, and what `OPTIMIZED` is given to.
"""

OPTIMIZED = {
    "xla_backend_optimization_level": 3,
    "xla_llvm_disable_expensive_passes": False,
    "xla_cpu_use_fusion_emitters": True,
}
