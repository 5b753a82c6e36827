"""A process that lives for one GGUF header: shut in, it reads a descriptor, says what it found, and ends."""
