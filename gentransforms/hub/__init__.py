"""Access to the Hugging Face Hub: models, data sets, and the client code that both share."""
