"""What the command line does; one module a command. Of the library only `inference_model`'s name leads here."""
