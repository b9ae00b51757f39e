"""From text to training sequences: a module a stage, and a folder for what each does inside."""
