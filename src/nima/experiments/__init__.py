"""Runs by `dvc exp`: their names and grids, the queue, what a run would not see, and what keeps one."""
