"""The instrument; it knows no paper."""
