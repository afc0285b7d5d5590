"""What most programs import, for `main_job.run`; nothing here defines flags or uses a device."""

import gc
import os
import warnings

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # as programs set it before they import JAX

with warnings.catch_warnings():
    warnings.simplefilter("error")
    import dlrm_jax.job

import jax

import dlrm_jax.cli.page
import dlrm_jax.cli.pictures
import dlrm_jax.data.preprocessing.pipeline

# For programs that don't set it themselves.
jax.config.update("jax_compilation_cache_dir", str(dlrm_jax.files.cache_directory() / "xla"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
gc.freeze()
gc.set_threshold(50_000, 20, 100)  # tracing allocates much and frees little
