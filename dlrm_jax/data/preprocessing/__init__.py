"""From logs of any size to arrays: out of core, resumable, never stale.

    files (`sources`) → columns on disk (`staging`) → vocabularies (`vocabulary`)
        → ids by column and arrays by day (`encoding`); `pipeline` runs it all

Every file on the way is made under another name and renamed when it is complete, so what an
interrupted run has finished is what the next one needn't do again.
"""
