"""What the process that forks workers imports before all else: garbage is looked for in the workers only."""

import gc

gc.disable()
