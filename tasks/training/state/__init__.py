"""What a segment keeps on disk: its work directory, journal, checkpoints and final outputs."""
