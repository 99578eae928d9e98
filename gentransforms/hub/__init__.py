"""What touches the Hugging Face Hub."""
