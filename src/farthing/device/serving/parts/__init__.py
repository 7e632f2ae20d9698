"""A model in parts: run one after another, until one is sure, or each in a process of its own."""
