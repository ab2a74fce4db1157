"""The demo's clips: one public-domain portrait, warped by known activations of the 12 action units.

The picture is scikit-image's ``astronaut.png`` (NASA, no known copyright restrictions). What is drawn looks like
photographs of several people, but is none: every clip's file says so, and every report repeats it.
"""
