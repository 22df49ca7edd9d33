"""Training: packs to gradients, steps, checkpoints. Plain torch; torchrun or Ray start the processes, nothing here knows which."""
