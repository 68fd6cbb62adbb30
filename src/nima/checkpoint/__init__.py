"""Saved state of an unfinished run: written whole or not at all, trusted only when whole.

A run's folder is named by the fingerprint of everything that decides its result, so that another run's
weights can't be found by accident. In it:

    lock                        held while a trainer works here
    run.json                    what the fingerprint was made from
    step-00000300/              state after 300 updates
        model.safetensors  optimizer.safetensors  state.json    (with .gz, .zst, ... when compressed)
        manifest.json           size and sha256 of the others, written last
    best-00000250.safetensors   the best weights so far, named by their step
    names/NAME                  link to a checkpoint that is kept because it has a name
    requests/NAME               asks the trainer to save under this name
"""
