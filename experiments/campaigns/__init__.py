"""Campaigns of faults: programs are killed, cut off and started twice, and must lose nothing.

`kills`, `power_cuts`, `disks`, `two_at_once` and `fuzz` are programs, each in a module of its own.
They share `harness`, which starts other programs and sees how they end; `bits`, which compares what
they leave; `jobs`, small things to do; and `tally`, which counts. For `fuzz`, `good` makes inputs,
`mutations` change them, `inputs` and `command_lines` say what is run, and `forks` runs it.
"""
