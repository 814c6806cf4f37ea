"""Documents from files and from the starter corpus."""
