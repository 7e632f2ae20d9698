"""Architecture search: networks of the families, by what they cost on the device and how well they learn the task."""
