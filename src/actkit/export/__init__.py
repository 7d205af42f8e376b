"""Edits without actkit: in weights, in adapters of PEFT, in files of llama.cpp."""
