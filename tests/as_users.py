"""How the tests compile: with less effort than users do, but for what is about rounding."""

from jaxlib import version

# Later versions have no other way to compile fusions, and end with an error at the flag.
_HAS_EMITTERS_FLAG = version.__version_info__ < (0, 11)

QUICKLY = " ".join(
    [
        "--xla_backend_optimization_level=0",
        "--xla_llvm_disable_expensive_passes=true",
        "--xla_cpu_parallel_codegen_split_count=1",
        *(["--xla_cpu_use_fusion_emitters=false"] if _HAS_EMITTERS_FLAG else []),
    ]
)
"""Half of the tests' time: flags of XLA for the tests themselves and the programs they start.

Compiled as users' are: what `OPTIMIZED` is given to.
"""

OPTIMIZED = {
    "xla_backend_optimization_level": 3,
    "xla_llvm_disable_expensive_passes": False,
    **({"xla_cpu_use_fusion_emitters": True} if _HAS_EMITTERS_FLAG else {}),
}
