"""Tools of the project, run as files; a package so that tests find this folder and no other package of its name."""
