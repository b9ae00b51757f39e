"""Models: imported or newly initialised, trained in a separate process, and the content of their files."""
