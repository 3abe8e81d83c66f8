"""What the command line does; one module per command. Of the library only `inference_model`'s name leads here."""
