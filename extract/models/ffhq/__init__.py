"""FFHQ's alignment of a face picture from 68 landmarks (Karras et al. 2019): one geometry, two ways to compute it."""
