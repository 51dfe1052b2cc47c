"""A checkpoint for other programs: transformers, llama.cpp and Ollama, MLflow's servers, the hub."""
