"""Programs in the structures of Pyro's own examples and tutorials, in words of ours, on tiny data.

What those have that a fit must cope with is kept: `infer=`, `config_enumerate`, priors under a mask, lengths, sizes of
subsamples, networks, sites with odd names. Priors have a mode here, where theirs often have none.
"""
