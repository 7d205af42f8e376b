"""Sites: named places where a tensor flows, and how they are found in any network."""
