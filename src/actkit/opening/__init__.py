"""Opens networks: by name, from a folder, the Hub, GGUF files and checkpoints."""
