"""Preparation of logs of any size as arrays: out of core, resumable, never stale.

    files (`sources`) → columns on disk (`staging`) → vocabularies (`vocabulary`)
        → ids (`encoding`) → arrays by day (`day_arrays`)

`conversion` contains these steps; `pipeline` runs them for training. `serving` takes rows through
the same functions in memory, for prediction.

Every intermediate file is written under a temporary name and renamed when it is complete, so an
interrupted run resumes behind its finished files.
"""
