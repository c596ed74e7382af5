"""Training: the model server beside the driver, and the tasks that push to it."""
