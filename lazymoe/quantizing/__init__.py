"""A finished mixture as llama.cpp reads it: one GGUF file for each type wanted, from one reading of the weights."""
