"""Networks and data with a known answer, to hold methods against."""
