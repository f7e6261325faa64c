"""Use cases, one module per job: a typed config in, a typed result out. Never argv, never printing."""
