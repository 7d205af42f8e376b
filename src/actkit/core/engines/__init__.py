"""Where jobs that do not depend on each other run."""
