"""The functions that `nestquant_cli` offers to Python programs, each over what the command of the same name runs.

Models are given by name, as on the command line: a folder, a `.gguf` file, a Hub id or `ID@REVISION`, or `demo`. Bad
input raises NestQuantError. Under torchrun every process calls the same function, and they share the work.
"""
