"""Filter rules: each a small thing with a name and a threshold that measures a batch of texts, column by column."""
