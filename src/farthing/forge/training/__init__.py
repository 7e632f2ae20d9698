"""Training: a schedule, a task's data and loss, and a loop that goes on as if it had not been killed.

The modules are imported one by one, because all but `farthing.forge.training.schedule` import PyTorch.
"""
