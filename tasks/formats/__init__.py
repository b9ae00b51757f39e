"""A model's files for other programs: weights rounded to another type, and the file that llama.cpp and Ollama run."""
