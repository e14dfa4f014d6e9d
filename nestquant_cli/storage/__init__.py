"""Files, folders and runs on disk.

`files` writes files whole or not at all. `locks` keeps a second process out of a folder. `records` has what is known of
the steps of a run, `run` is a folder with a lock and records, and `resume` is a run that ends in a complete folder.
`output_checks` looks at a folder and its disk before the work, and `settings_file` reads YAML settings.
"""
