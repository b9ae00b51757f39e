"""Building blocks of the pages: blocks, how they are written, how figures look. The modules here know no stage."""
