"""Studies behind the claims of the project: long runs of steps that resume, whose results are files."""
