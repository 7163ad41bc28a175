"""From a ref and a text to an answer, without HTTP: the Python API that the command line and the server stand on."""
