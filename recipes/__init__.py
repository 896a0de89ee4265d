"""The labs of the course, a file each: `python -m framework recipes`."""
