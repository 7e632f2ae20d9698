"""Services: what answers requests with a model, and the wrappers that batch, queue, cache, split and switch them."""
