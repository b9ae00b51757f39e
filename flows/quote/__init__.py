"""What a run costs before it is made: what there is to do, measured rates, and the quote of both."""
