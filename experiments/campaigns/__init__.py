"""Campaigns of faults: programs are killed, cut off and started twice, and must lose nothing.

`kills`, `power_cuts`, `disks`, `two_at_once` and `fuzz` are the programs. `jobs` has small things
to do, `aims` the instants at which they are hit, `attempts` and `pairs` what is done to them.
`published_kills` kills a run that publishes, `standby_kills` one that a standby waits beside.
`harness` starts them and sees how they end, `bits` compares what they leave, and `tally` counts.
`shim` is preloaded into them, for the power cuts of `unflushed` and the broken disks of `faults`.
For `fuzz`, `good` makes inputs, `mutations` change them, `inputs` and `command_lines` say what is
run, and `forks` runs it.
"""
