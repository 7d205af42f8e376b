"""Speed against peers and against the limit; never imported by actkit."""
