"""What configs of other tools say of several cards: FSDP's, DeepSpeed's and accelerate's own settings."""
