"""Many runs that share work: edited variants, streams of data, derivatives."""
