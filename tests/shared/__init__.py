"""Models, data and short cuts that several files of tests on one subject share; a module a subject."""
