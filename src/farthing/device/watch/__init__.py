"""What a device knows of itself: its sensors, and how its inference goes."""
