"""What touches the Hugging Face Hub: models, data sets, and the client that both share."""
