"""The DAG: what a run asks for, in order, and what each request's key holds. Nothing is made here."""
