"""What activations, networks and trainings show: statistics that stream, functions of data."""
