"""GH-Feat's encoder (Xu et al. 2021, arXiv 2007.10379): the network, its levels, and the authors' weight file."""
