"""From logs of any size to arrays: out of core, resumable, never stale.

    files (`sources`) → columns on disk (`staging`) → vocabularies (`vocabulary`)
        → ids (`encoding`) → arrays by day (`day_arrays`)

`conversion` ties these steps together; `pipeline` goes them for training, `serving` for prediction.

Every file on the way is made under another name and renamed when it is complete, so what an
interrupted run has finished is what the next one needn't do again.
"""
