"""What a device keeps of models, and how it comes to others."""
