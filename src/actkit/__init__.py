"""actkit: record, understand, trace, steer and economise a neural network's activations."""
