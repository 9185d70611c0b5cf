"""What is asked of the Hugging Face Hub: a config, and the headers of its weights."""
