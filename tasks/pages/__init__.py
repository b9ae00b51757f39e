"""How a page for a reader is made: of which blocks, how they are written, and how figures look. No stage is known here."""
