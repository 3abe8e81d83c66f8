"""What the command line does; one module a command. Imported by `replknet_ext.cli` alone, never by the library."""
