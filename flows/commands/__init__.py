"""The commands of the command line, grouped by topic. Each imports what it needs when it is called."""
