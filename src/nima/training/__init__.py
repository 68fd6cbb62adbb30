"""What the stage `train` does: the loop, what steers it, and what surrounds it.

`recipe` prepares a run, `loop` trains, `steering` decides on rates and early stops, `run_state` and
`resuming` are what a killed run goes on from, `micro_batch` finds what fits in memory, `launch` starts the
processes.
"""
