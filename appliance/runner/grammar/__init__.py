"""What an answer may look like: grammars checked before llama.cpp sees them, and JSON Schema in that form."""
