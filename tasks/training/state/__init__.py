"""What a segment keeps on disk: its work directory, journal, checkpoints, and what it leaves at the end."""
