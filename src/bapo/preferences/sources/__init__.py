"""Sources of preferences, one a file, each of which says of itself what it is called, knows and reads."""
