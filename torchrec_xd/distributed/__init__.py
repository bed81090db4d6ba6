"""The processes of a run, and tables sharded over them: everything that is distributed."""
